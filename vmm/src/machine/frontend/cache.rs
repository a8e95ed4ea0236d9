//! A disk's write cache (virtio 1.3, sections 5.2.5 and 5.2.6.2).
//!
//! A driver that has CONFIG_WCE goes by the byte `writeback` alone: where it is
//! 0, it sends no flush. Back-ends say 0 whose cache is on (qemu-storage-daemon
//! until it was told once), so what was synced would be lost in a power cut.
//! The byte of a back-end that is not our own is therefore written before a
//! driver sees it, and read back. Where that fails, CONFIG_WCE is not offered: a
//! driver then takes the cache for on where it can flush, and goes by FLUSH.

use anyhow::{Context, Result};
use outboard_protocol::devices::BlkConfig;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO};

use super::{Negotiated, Session};

const CONFIG_WCE: u64 = 1 << VIRTIO_BLK_F_CONFIG_WCE;
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
const READ_ONLY: u64 = 1 << VIRTIO_BLK_F_RO;

/// What became of a disk's write cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// The back-end lets nobody change it, or nothing is written.
    Fixed,
    /// It is as it was to be, and the byte says so.
    Set,
    /// It is on, and the byte, which said otherwise before, says so.
    TurnedOn,
    /// The back-end offers to change it and does not: nobody may believe what
    /// the byte says.
    Unknown,
}

impl Cache {
    /// The features that a driver can be offered of these.
    pub fn usable(self, features: u64) -> u64 {
        match self {
            Self::Unknown => features & !CONFIG_WCE,
            Self::Fixed | Self::Set | Self::TurnedOn => features,
        }
    }
}

impl Session<Negotiated> {
    /// Turns the write cache of a disk on or off, whatever the back-end says of
    /// it. One that cannot flush must not have any (section 5.2.5.2). The driver
    /// is to see `len` bytes of configuration.
    ///
    /// # Errors
    /// The back-end has gone, or does not answer.
    pub fn set_cache(&mut self, writeback: bool, len: usize) -> Result<Cache> {
        let features = self.agreement().features;
        if features & CONFIG_WCE == 0 || features & READ_ONLY != 0 {
            return Ok(Cache::Fixed);
        }
        let wanted = u8::from(writeback && features & FLUSH != 0);
        let setting = "setting the disk's write cache";
        let Some(before) = self.writeback(len).context(setting)? else {
            return Ok(Cache::Unknown);
        };
        let obeyed = self.write_config(BlkConfig::WRITEBACK, &[wanted]);
        if !obeyed.context(setting)? || self.writeback(len).context(setting)? != Some(wanted) {
            return Ok(Cache::Unknown);
        }
        Ok(match (before, wanted) {
            (0, 1) => Cache::TurnedOn,
            _ => Cache::Set,
        })
    }

    fn writeback(&mut self, len: usize) -> Result<Option<u8>> {
        let config = self.read_config(len)?;
        let at = BlkConfig::WRITEBACK as usize;
        Ok(config.and_then(|config| config.get(at).copied()))
    }
}
