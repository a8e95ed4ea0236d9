//! The configuration: what the driver writes, and what it is to see.

use std::time::Duration;

use anyhow::Result;
use outboard_protocol::Deadline;

use super::super::kinds;
use super::Worker;
use crate::machine::virtio::Registers;

impl Worker {
    pub(super) fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<()> {
        let features = self.function.with_registers(|r| r.driver_features());
        let result = match kinds::may_write(&self.spec.kind, features, offset, data) {
            true => self.backend.write_config(offset, data),
            false => Ok(false),
        };
        self.function.with_registers(Registers::config_written);
        // What the back-end made of it.
        self.config_stale = Some(Deadline::after(Duration::ZERO));
        if result? && let Some(byte) = kinds::cache_byte(&self.spec.kind, offset, data) {
            self.driver.has_set_cache(byte);
        }
        Ok(())
    }

    /// The configuration as the driver is to see it, if there is a back-end.
    pub(super) fn read_config(&mut self) -> Result<Option<Vec<u8>>> {
        let Some(mut config) = self.backend.read_config(&self.spec)? else {
            return Ok(None);
        };
        kinds::limit_queues(&mut config, &self.spec, self.served);
        Ok(Some(config))
    }

    pub(super) fn refresh_config(&mut self) -> Result<()> {
        let Some(config) = self.read_config()? else {
            return Ok(());
        };
        if self.function.with_registers(|r| r.set_config(&config)) {
            self.function.interrupts.config_changed();
        }
        Ok(())
    }
}
