//! The block device's driver (virtio 1.3, 5.2).

pub mod device;
pub mod queue;

pub use device::Blk;
pub use queue::{Queue, Request};

/// virtio device identity.
pub const KIND: u16 = 2;
/// The unit of positions and lengths, whatever the block size.
pub const SECTOR: u64 = 512;

/// Feature bits (5.2.3).
pub mod feature {
    /// VIRTIO_BLK_F_SIZE_MAX
    pub const SIZE_MAX: u64 = 1 << 1;
    /// VIRTIO_BLK_F_SEG_MAX
    pub const SEG_MAX: u64 = 1 << 2;
    /// VIRTIO_BLK_F_RO
    pub const RO: u64 = 1 << 5;
    /// VIRTIO_BLK_F_BLK_SIZE
    pub const BLK_SIZE: u64 = 1 << 6;
    /// VIRTIO_BLK_F_FLUSH
    pub const FLUSH: u64 = 1 << 9;
    /// VIRTIO_BLK_F_TOPOLOGY
    pub const TOPOLOGY: u64 = 1 << 10;
    /// VIRTIO_BLK_F_CONFIG_WCE
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// VIRTIO_BLK_F_MQ
    pub const MQ: u64 = 1 << 12;
    /// VIRTIO_BLK_F_DISCARD
    pub const DISCARD: u64 = 1 << 13;
    /// VIRTIO_BLK_F_WRITE_ZEROES
    pub const WRITE_ZEROES: u64 = 1 << 14;
    /// All of these.
    pub const KNOWN: u64 = SIZE_MAX
        | SEG_MAX
        | RO
        | BLK_SIZE
        | FLUSH
        | TOPOLOGY
        | CONFIG_WCE
        | MQ
        | DISCARD
        | WRITE_ZEROES;
}

/// Request types (5.2.6).
pub mod kind {
    /// VIRTIO_BLK_T_IN
    pub const READ: u32 = 0;
    /// VIRTIO_BLK_T_OUT
    pub const WRITE: u32 = 1;
    /// VIRTIO_BLK_T_FLUSH
    pub const FLUSH: u32 = 4;
    /// VIRTIO_BLK_T_GET_ID
    pub const GET_ID: u32 = 8;
    /// VIRTIO_BLK_T_DISCARD
    pub const DISCARD: u32 = 11;
    /// VIRTIO_BLK_T_WRITE_ZEROES
    pub const WRITE_ZEROES: u32 = 13;
}

/// VIRTIO_BLK_S_OK
pub const STATUS_OK: u8 = 0;
/// What the driver puts there before.
pub const STATUS_NONE: u8 = 0xff;
