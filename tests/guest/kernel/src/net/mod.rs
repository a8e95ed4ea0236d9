//! The network device's driver (virtio 1.3, 5.1).

pub mod control;
pub mod device;
pub mod port;
pub mod queue;

pub use device::Net;
pub use port::{Port, Room};

/// virtio device identity.
pub const KIND: u16 = 1;
/// Bytes of the header before each frame: with VERSION_1 it has num_buffers in any case (5.1.6).
pub const HEADER: usize = 12;
/// The longest frame with segmentation offload: 64 KiB of IP behind an Ethernet header.
pub const LONGEST: usize = 65_535 + 14;

/// Feature bits (5.1.3).
pub mod feature {
    /// VIRTIO_NET_F_CSUM
    pub const CSUM: u64 = 1 << 0;
    /// VIRTIO_NET_F_GUEST_CSUM
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    /// VIRTIO_NET_F_MTU
    pub const MTU: u64 = 1 << 3;
    /// VIRTIO_NET_F_MAC
    pub const MAC: u64 = 1 << 5;
    /// VIRTIO_NET_F_GUEST_TSO4
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// VIRTIO_NET_F_GUEST_TSO6
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// VIRTIO_NET_F_GUEST_ECN
    pub const GUEST_ECN: u64 = 1 << 9;
    /// VIRTIO_NET_F_HOST_TSO4
    pub const HOST_TSO4: u64 = 1 << 11;
    /// VIRTIO_NET_F_HOST_TSO6
    pub const HOST_TSO6: u64 = 1 << 12;
    /// VIRTIO_NET_F_HOST_ECN
    pub const HOST_ECN: u64 = 1 << 13;
    /// VIRTIO_NET_F_MRG_RXBUF
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// VIRTIO_NET_F_STATUS
    pub const STATUS: u64 = 1 << 16;
    /// VIRTIO_NET_F_CTRL_VQ
    pub const CTRL_VQ: u64 = 1 << 17;
    /// VIRTIO_NET_F_CTRL_RX
    pub const CTRL_RX: u64 = 1 << 18;
    /// VIRTIO_NET_F_CTRL_RX_EXTRA
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    /// VIRTIO_NET_F_MQ
    pub const MQ: u64 = 1 << 22;
    /// VIRTIO_NET_F_CTRL_MAC_ADDR
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    /// All of these.
    pub const KNOWN: u64 = CSUM
        | GUEST_CSUM
        | CTRL_GUEST_OFFLOADS
        | MTU
        | MAC
        | GUEST_TSO4
        | GUEST_TSO6
        | GUEST_ECN
        | HOST_TSO4
        | HOST_TSO6
        | HOST_ECN
        | MRG_RXBUF
        | STATUS
        | CTRL_VQ
        | CTRL_RX
        | CTRL_RX_EXTRA
        | MQ
        | CTRL_MAC_ADDR;
    /// What each needs (5.1.3.1): any of the second.
    pub const NEEDS: [(u64, u64); 11] = [
        (GUEST_TSO4, GUEST_CSUM),
        (GUEST_TSO6, GUEST_CSUM),
        (GUEST_ECN, GUEST_TSO4 | GUEST_TSO6),
        (HOST_TSO4, CSUM),
        (HOST_TSO6, CSUM),
        (HOST_ECN, HOST_TSO4 | HOST_TSO6),
        (CTRL_GUEST_OFFLOADS, CTRL_VQ),
        (CTRL_RX, CTRL_VQ),
        (CTRL_RX_EXTRA, CTRL_VQ),
        (MQ, CTRL_VQ),
        (CTRL_MAC_ADDR, CTRL_VQ),
    ];
}
