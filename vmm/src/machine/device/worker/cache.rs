//! The write cache of a disk whose back-end is not our own.

use std::time::Duration;

use anyhow::Result;
use outboard_protocol::Deadline;

use super::super::backend::Backend;
use super::super::kinds::blk::{self, Cache};
use super::Worker;

impl Worker {
    /// Sets the cache of a disk that has just been attached, and says what the
    /// user may not expect.
    pub(super) fn attach_cache(&mut self) -> Result<Cache> {
        let cache = self.settle_cache(true)?;
        if cache == Cache::TurnedOn {
            let id = &self.spec.id;
            log::warn!(
                "{id}: its back-end said that its write cache is off, as some do whose is on: it \
                 has been turned on, and the guest flushes it"
            );
        }
        Ok(cache)
    }

    /// Sets the cache anew after a reset, upon which a back-end may have gone
    /// back to a value of its own. The driver sees the device only afterwards.
    pub(super) fn reset_cache(&mut self) -> Result<()> {
        let cache = self.settle_cache(true)?;
        if cache != Cache::Fixed {
            let config = self.read_config()?.unwrap_or_default();
            self.function.with_registers(|registers| {
                registers.offer(cache.usable(registers.offered()));
                registers.set_config(&config);
            });
        }
        Ok(())
    }

    /// Turns the cache off for a driver that does not flush it.
    pub(super) fn without_flushes(&mut self, features: u64) -> Result<()> {
        if !blk::flushes(features) && self.settle_cache(false)? != Cache::Fixed {
            self.config_stale = Some(Deadline::after(Duration::ZERO));
        }
        Ok(())
    }

    fn settle_cache(&mut self, flushes: bool) -> Result<Cache> {
        match &mut self.backend {
            Backend::Idle(session) => blk::settle_cache(session, (&self.spec, self.whose), flushes),
            _ => Ok(Cache::Fixed),
        }
    }
}
