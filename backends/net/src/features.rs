//! What a card offers its driver (virtio 1.3, section 5.1.3), by what is behind
//! it and by how large its rings can be.

use outboard_protocol::tap::Mac;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
};

use crate::tap::Tap;

/// How a card is to appear.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Its address; without one the driver chooses.
    pub mac: Option<Mac>,
    /// The MTU that the driver is told, if any.
    pub mtu: Option<u16>,
    /// Largest queue size, a power of two.
    pub queue_size: u16,
}

/// What a card of either kind offers.
const ALWAYS: [u32; 6] = [
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
];
/// What a tap does besides.
const CHECKSUMS: [u32; 3] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
];
/// What it does for frames that the driver leaves to be cut up: TCP, and UDP on
/// kernels that know it.
const SENT_WHOLE: ([u32; 3], [u32; 1]) = (
    [
        VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_HOST_TSO6,
        VIRTIO_NET_F_HOST_ECN,
    ],
    [VIRTIO_NET_F_HOST_USO],
);
/// The same for frames to the driver.
const RECEIVED_WHOLE: ([u32; 3], [u32; 2]) = (
    [
        VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_GUEST_ECN,
    ],
    [VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6],
);
/// Least queue size with which frames of 64 KiB are sent. Linux has one in 17
/// pages (MAX_SKB_FRAGS), what comes before them, and the header: 19 descriptors,
/// unless it may use indirect ones. (Its driver sends nothing at all by a ring of
/// fewer: it waits until so many are free.)
const LEAST_TO_SEND_WHOLE: u16 = 32;
/// Least queue size with which they are received. In mergeable buffers of 1,526
/// bytes, the least for Ethernet (virtio 1.3, section 5.1.6.3.1), one takes 43;
/// and as Linux posts buffers anew only when half of the ring is free, there must
/// be twice as many, or one might wait for buffers that nobody posts. (Without
/// mergeable buffers each holds a whole one, in 19 descriptors at most.)
const LEAST_TO_RECEIVE_WHOLE: u16 = 128;
/// The offloads that CTRL_GUEST_OFFLOADS turns on and off (section
/// 5.1.6.5.6.1).
const GUEST_OFFLOADS: [u32; 6] = [
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
];

/// The device-specific feature bits of a card with so many `pairs` of queues,
/// and with a tap behind it or not.
pub fn offered(settings: &Settings, pairs: u16, tap: Option<&Tap>) -> u64 {
    let perhaps = [
        (VIRTIO_NET_F_MAC, settings.mac.is_some()),
        (VIRTIO_NET_F_MTU, settings.mtu.is_some()),
        (VIRTIO_NET_F_MQ, pairs > 1),
    ];
    let perhaps = perhaps.iter().filter(|(_, offered)| *offered);
    let mut bits: Vec<u32> = perhaps.map(|(bit, _)| *bit).collect();
    bits.extend(ALWAYS);
    if let Some(tap) = tap {
        let (uso, size) = (tap.has_uso(), settings.queue_size);
        bits.extend(CHECKSUMS);
        if size >= LEAST_TO_SEND_WHOLE {
            bits.extend(SENT_WHOLE.0);
            bits.extend(SENT_WHOLE.1.iter().filter(|_| uso));
        }
        if size >= LEAST_TO_RECEIVE_WHOLE {
            bits.extend(RECEIVED_WHOLE.0);
            bits.extend(RECEIVED_WHOLE.1.iter().filter(|_| uso));
        }
    }
    all(bits)
}

/// The offloads that CTRL_GUEST_OFFLOADS turns on and off (section
/// 5.1.6.5.6.1).
pub fn guest_offloads() -> u64 {
    all(GUEST_OFFLOADS)
}

fn all(bits: impl IntoIterator<Item = u32>) -> u64 {
    bits.into_iter()
        .fold(0, |features, bit| features | 1 << bit)
}
