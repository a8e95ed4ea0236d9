//! A back-end of QEMU's that is replaced by plan: the fastest order in which its guest goes on.
//!
//! ```text
//! QEMU connects:  SIGTERM ──► its chardev is disconnected ──► stop ──► the next one listens ──► connected ──► cont
//! QEMU listens:   the next one waits ──► SIGTERM ──► QEMU takes it
//! ```
//! `stop` does not come first, as one would expect (its GET_VRING_BASE drains the rings):
//! QEMU 7.2.22, whose VM is stopped when its back-end goes, does not notice, sends the next
//! one no memory table after `cont`, or cannot start the device at all if `cont` comes before
//! the chardev has connected again, and the device is dead until QEMU is started anew. So the
//! back-end is ended while the VM runs, and what it leaves in flight is in the inflight region.
//! `reconnect` is in whole seconds, and nothing makes QEMU try earlier: a vhost-user device
//! refuses `chardev-change`.

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::json;

use super::qemu::CHARDEV;
use super::{Storm, qmp};
use crate::qmp::Qmp;

impl Storm {
    /// Replaces the back-end some time from now, notes when it has begun, and waits until
    /// the guest has gone on.
    ///
    /// # Errors
    /// The VM is not QEMU's, or the guest does not go on.
    pub fn replace_by_plan(&mut self) -> Result<()> {
        let own = self.own.as_mut().context("not a VM of QEMU's")?;
        let mut qemu = Qmp::connect(&qmp(&self.image))?;
        own.have_one_wait()?;
        self.killer.wait_a_while();
        self.killer.note();
        own.end(Signal::SIGTERM)?;
        if !own.connects() {
            qemu.until_chardev(CHARDEV, false)?;
            qemu.execute("stop", json!({}))?;
            own.start()?;
            qemu.until_chardev(CHARDEV, true)?;
            qemu.execute("cont", json!({}))?;
        }
        self.killer.until_it_goes_on(&mut self.vm)
    }
}
