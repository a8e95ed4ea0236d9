//! A disk as the runtime takes it.

use std::io;
use std::sync::Arc;

use outboard_protocol::devices::BlkConfig;
use outboard_protocol::kept::Kept;
use outboard_runtime::device::{Change, Device, OTHER_KIND};
use outboard_runtime::{News, Notifier, Supervisor};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::Disk;
use crate::cache;
use crate::queue::BlkQueue;

/// A disk, of which all queues share one.
#[derive(Clone, Debug)]
pub struct Blk(pub(super) Arc<Disk>);

impl Blk {
    /// The device of a disk.
    pub fn new(disk: Disk) -> Self {
        Self(Arc::new(disk))
    }

    /// What its queues share.
    #[cfg(test)]
    pub(crate) fn shared(&self) -> Arc<Disk> {
        self.0.clone()
    }
}

impl Device for Blk {
    type Queue = BlkQueue;

    fn virtio_id(&self) -> u16 {
        VIRTIO_ID_BLOCK as u16
    }

    fn attach(&self, notifier: Notifier) {
        // The runtime does this once.
        let _ = self.0.notifier.set(notifier);
    }

    fn supervised(&self, supervisor: &Arc<Supervisor>) {
        self.0.durability.supervised(supervisor);
        self.0.capacity.supervised(supervisor);
        if let Some(holds) = self.0.holds() {
            holds.supervised(supervisor);
        }
    }

    fn attend(&self) {
        if let Some(holds) = self.0.holds() {
            holds.begin();
        }
        self.0.measure();
    }

    fn leave(&self) {
        if let Some(holds) = self.0.holds() {
            holds.leave();
        }
    }

    fn hear(&self, news: News) {
        match (news, self.0.holds()) {
            (News::Resize(size), _) => self.0.resize(size),
            // Whom nobody tells when to try again does so, and reports what fails.
            (News::Retry | News::Alone, Some(holds)) => holds.retry(),
            (news, _) => news.pass_over(),
        }
    }

    fn features(&self) -> u64 {
        self.0.features()
    }

    fn queues(&self) -> u16 {
        self.0.settings.queues
    }

    fn max_queue_size(&self) -> u16 {
        self.0.settings.queue_size
    }

    fn config(&self) -> Vec<u8> {
        self.0.config().to_bytes().to_vec()
    }

    fn write_config(&self, offset: u32, data: &[u8]) -> io::Result<Change> {
        match (offset, data) {
            (BlkConfig::WRITEBACK, [value]) if !self.0.limits.read_only => {
                Ok(cache::set_writeback(&self.0, *value != 0))
            }
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "only the writeback byte of a block device's configuration can be written",
            )),
        }
    }

    fn io_errors(&self) -> u64 {
        self.0.troubles.take_count()
    }

    fn reset(&self, features: u64) {
        // Not when features are acknowledged: with a front-end that sends them
        // at DRIVER_OK, the driver may have turned the cache off before (virtio
        // 1.3, section 3.1.1, step 7), and sends no flush from then on.
        if features == 0 {
            self.0.durability.reset();
        }
    }

    fn kept(&self) -> Kept {
        Kept::Disk(self.0.durability.kept())
    }

    fn restore(&self, kept: &Kept) -> Result<(), String> {
        let Kept::Disk(kept) = kept else {
            return Err(OTHER_KIND.into());
        };
        self.0.durability.restore(*kept);
        Ok(())
    }

    fn queue(&self, index: u16) -> io::Result<BlkQueue> {
        let mut queue = BlkQueue::new(self.0.clone(), self.0.engine()?);
        queue.hold_back(index)?;
        Ok(queue)
    }
}
