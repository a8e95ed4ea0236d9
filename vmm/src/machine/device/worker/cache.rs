//! The write cache of a disk whose back-end is not our own.

use std::time::Duration;

use anyhow::Result;
use outboard_log::Rarely;
use outboard_protocol::launch::Whose;
use outboard_protocol::{Deadline, devices};
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;

use super::super::backend::Backend;
use super::Worker;
use crate::machine::frontend::Cache;

impl Worker {
    /// Sets the cache of a disk that has just been attached, and says what the
    /// user may not expect.
    pub(super) fn attach_cache(&mut self) -> Result<Cache> {
        let Whose::Foreign { writeback } = self.whose else {
            return Ok(Cache::Fixed);
        };
        let cache = self.set_cache(writeback)?;
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
        let Whose::Foreign { writeback } = self.whose else {
            return Ok(());
        };
        let cache = self.set_cache(writeback)?;
        if cache != Cache::Fixed {
            let config = self.read_config()?.unwrap_or_default();
            self.function.with_registers(|registers| {
                registers.offer(cache.usable(registers.offered()));
                registers.set_config(&config);
            });
        }
        Ok(())
    }

    /// A driver that does not flush takes each write for durable (virtio 1.3,
    /// section 5.2.6.2).
    pub(super) fn without_flushes(&mut self, features: u64) -> Result<()> {
        let foreign = matches!(self.whose, Whose::Foreign { .. });
        if foreign && features >> VIRTIO_BLK_F_FLUSH & 1 == 0 {
            self.set_cache(false)?;
            self.config_stale = Some(Deadline::after(Duration::ZERO));
        }
        Ok(())
    }

    fn set_cache(&mut self, writeback: bool) -> Result<Cache> {
        let Backend::Idle(session) = &mut self.backend else {
            return Ok(Cache::Fixed);
        };
        if self.spec.kind.virtio_id != devices::BLK {
            return Ok(Cache::Fixed);
        }
        let cache = session.set_cache(writeback, self.spec.kind.config_len as usize)?;
        static UNKNOWN: Rarely = Rarely::new();
        if cache == Cache::Unknown
            && let Some(times) = UNKNOWN.again()
        {
            let id = &self.spec.id;
            log::warn!(
                "{id}: its back-end does not let its write cache be set: the guest takes it for on \
                 if it can be flushed{times}"
            );
        }
        Ok(cache)
    }
}
