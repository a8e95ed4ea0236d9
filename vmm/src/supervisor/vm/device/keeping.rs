//! What of a device must survive its back-end, and its driver will not say again.

use outboard_protocol::kept::{DiskState, Kept};

use super::Device;

impl Device {
    /// What a successor of its back-end is to be told before its first ring.
    pub(crate) fn kept(&self) -> Option<&Kept> {
        self.kept.as_ref()
    }

    /// What is kept although the driver has gone that set the device up. The machine
    /// resets who is told more than a new driver has set, so the cache is as it was made.
    pub(super) fn kept_anyway(&self) -> Kept {
        match self.sync_failed {
            true => Kept::Disk(DiskState {
                writeback: true,
                sync_failed: true,
            }),
            false => Kept::Nothing,
        }
    }

    /// Notes what a back-end keeps. What one has said of a failed sync, none takes back.
    pub(super) fn keep(&mut self, mut kept: Kept) {
        if let Kept::Disk(disk) = &mut kept {
            disk.sync_failed |= self.sync_failed;
            self.sync_failed = disk.sync_failed;
        }
        self.kept = Some(kept);
    }
}
