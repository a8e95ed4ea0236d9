//! What the VMM knows of a disk: its write cache, its number of queues, what a
//! driver may write.
//!
//! A driver that has CONFIG_WCE goes by the byte `writeback` alone (virtio 1.3,
//! sections 5.2.5 and 5.2.6.2): where it is 0, it sends no flush. Back-ends say 0
//! whose cache is on (qemu-storage-daemon until it was told once), so what was
//! synced would be lost in a power cut. The byte of a back-end that is not our own
//! is therefore written before a driver sees it, and read back. Where that fails,
//! CONFIG_WCE is not offered: a driver then takes the cache for on where it can
//! flush, and goes by FLUSH.

mod clash;

use anyhow::{Context, Result};
use outboard_log::rarely;
use outboard_protocol::devices::{BLK, BlkConfig};
use outboard_protocol::launch::{self, Whose};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SIZE_MAX,
};

pub(crate) use self::clash::{Capacity, clash};
use crate::machine::frontend::{Negotiated, Session};

const SIZE_MAX: u64 = 1 << VIRTIO_BLK_F_SIZE_MAX;
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
    pub(crate) fn usable(self, features: u64) -> u64 {
        match self {
            Self::Unknown => features & !CONFIG_WCE,
            Self::Fixed | Self::Set | Self::TurnedOn => features,
        }
    }
}

/// Sets the write cache of a disk before a driver sees it, or goes on without
/// flushing it: to what whoever runs the back-end said of it, and to off for a
/// driver that does not flush (`flushes`), since that takes each write for durable
/// (section 5.2.6.2). A back-end of ours says what is true; of other devices
/// nothing is set.
///
/// # Errors
/// The back-end has gone, or does not answer.
pub(crate) fn settle_cache(
    session: &mut Session<Negotiated>,
    (spec, whose): (&launch::Device, Whose),
    flushes: bool,
) -> Result<Cache> {
    let Whose::Foreign { writeback } = whose else {
        return Ok(Cache::Fixed);
    };
    if spec.kind.virtio_id != BLK {
        return Ok(Cache::Fixed);
    }
    let len = spec.kind.config_len as usize;
    let cache = set_cache(session, writeback && flushes, len)?;
    if cache == Cache::Unknown {
        let id = &spec.id;
        rarely!(
            warn,
            "{id}: its back-end does not let its write cache be set: the guest takes it for on if \
             it can be flushed"
        );
    }
    Ok(cache)
}

/// The features that a driver is offered of these. Segments of no bytes at most, as
/// qemu-storage-daemon 7.2 has it, is a limit that nobody keeps: it is not offered, and so
/// another can serve the disk that has none.
pub(crate) fn usable(features: u64, config: &[u8]) -> u64 {
    let limit = config.get(BlkConfig::SIZE_MAX).unwrap_or_default();
    match limit.iter().all(|byte| *byte == 0) {
        true => features & !SIZE_MAX,
        false => features,
    }
}

/// Whether a driver with these features flushes.
pub(crate) fn flushes(features: u64) -> bool {
    features & FLUSH != 0
}

/// Turns the write cache of a disk on or off, whatever the back-end says of it.
/// One that cannot flush must not have any (section 5.2.5.2). The driver is to see
/// `len` bytes of configuration.
///
/// # Errors
/// The back-end has gone, or does not answer.
pub fn set_cache(session: &mut Session<Negotiated>, writeback: bool, len: usize) -> Result<Cache> {
    let features = session.agreement().features;
    if features & CONFIG_WCE == 0 || features & READ_ONLY != 0 {
        return Ok(Cache::Fixed);
    }
    let wanted = u8::from(writeback && features & FLUSH != 0);
    let setting = "setting the disk's write cache";
    let Some(before) = byte(session, len).context(setting)? else {
        return Ok(Cache::Unknown);
    };
    let obeyed = session.write_config(BlkConfig::WRITEBACK, &[wanted]);
    if !obeyed.context(setting)? || byte(session, len).context(setting)? != Some(wanted) {
        return Ok(Cache::Unknown);
    }
    Ok(match (before, wanted) {
        (0, 1) => Cache::TurnedOn,
        _ => Cache::Set,
    })
}

/// Makes a disk's byte `writeback` this one; `len` as in [`set_cache`]. Returns whether
/// it is.
///
/// # Errors
/// The back-end has gone, or does not answer.
pub(crate) fn has_cache(session: &mut Session<Negotiated>, len: usize, wanted: u8) -> Result<bool> {
    let setting = "setting the disk's write cache to what the guest has set";
    if byte(session, len).context(setting)? == Some(wanted) {
        return Ok(true);
    }
    let obeyed = session.write_config(BlkConfig::WRITEBACK, &[wanted]);
    Ok(obeyed.context(setting)? && byte(session, len).context(setting)? == Some(wanted))
}

/// The byte `writeback`, as the back-end has it.
fn byte(session: &mut Session<Negotiated>, len: usize) -> Result<Option<u8>> {
    let config = session.read_config(len)?;
    let at = BlkConfig::WRITEBACK as usize;
    Ok(config.and_then(|config| config.get(at).copied()))
}

/// A driver may write the byte that turns the cache on and off (section 5.2.4).
pub(super) fn may_write(features: u64, offset: u32, data: &[u8]) -> bool {
    features & CONFIG_WCE != 0 && offset == BlkConfig::WRITEBACK && matches!(data, [0 | 1])
}

/// The byte as a driver that is offered these features sees it and may go by it.
pub(super) fn shown_cache(features: u64, config: &[u8]) -> Option<u8> {
    let byte = config.get(BlkConfig::WRITEBACK as usize).copied();
    byte.filter(|byte| features & CONFIG_WCE != 0 && *byte <= 1)
}

/// Offset of `num_queues` in the configuration (section 5.2.4).
const NUM_QUEUES: usize = 34;

/// Makes the configuration say no more queues than these.
pub(super) fn limit_queues(config: &mut [u8], served: u16) {
    if let Some(field) = config.get_mut(NUM_QUEUES..NUM_QUEUES + 2)
        && let &mut [low, high] = field
    {
        let queues = u16::from_le_bytes([low, high]).min(served);
        field.copy_from_slice(&queues.to_le_bytes());
    }
}
