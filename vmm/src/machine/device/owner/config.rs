//! The configuration space: what the driver writes, and what it is to see.

use std::time::Duration;

use anyhow::{Error, Result};
use outboard_protocol::Deadline;
use outboard_protocol::launch::Cause;

use super::Owner;
use crate::machine::device::kinds;
use crate::machine::device::seat::Seat;
use crate::machine::frontend::{because, cause_of};
use crate::machine::virtio::Registers;

impl Owner {
    /// The driver wrote to the configuration. What it may write is passed on, and
    /// then it sees what the back-end made of it. Until then it reads back what it
    /// wrote, and goes by it: so if a back-end is lost over that, or there is none, its
    /// successor gets what the driver reads.
    pub(super) fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<()> {
        let Seat { spec, function, .. } = &self.seat;
        let features = function.with_registers(|registers| registers.driver_features());
        let allowed = kinds::may_write(&spec.kind, features, offset, data);
        let result = match &mut self.serving {
            Some(serving) if allowed => serving.write_config(offset, data),
            _ => Ok(false),
        };
        function.with_registers(Registers::config_written);
        self.config_stale = Some(Deadline::after(Duration::ZERO));
        if allowed {
            self.driver.has_configured();
        }
        result.map(drop)
    }

    pub(super) fn refresh_config(&mut self) -> Result<()> {
        let Some(serving) = &mut self.serving else {
            return Ok(());
        };
        let Seat { spec, function, .. } = &self.seat;
        let config = serving.read_config(spec).map_err(no_longer_fits)?;
        if function.with_registers(|registers| registers.set_config(&config)) {
            function.interrupts.config_changed();
        }
        Ok(())
    }
}

/// A configuration that did fit, as the driver was told, and does no longer.
pub(super) fn no_longer_fits(error: Error) -> Error {
    match cause_of(&error) {
        Some(Cause::DoesNotFit) => because(Cause::BrokeProtocol, format!("{error:#}")),
        _ => error,
    }
}
