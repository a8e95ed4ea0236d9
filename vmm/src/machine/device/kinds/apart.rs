//! Whether a back-end can be one for a kind of device, as far as its features
//! tell: vhost-user has no request for the kind.
//!
//! The bits 0 to 23 and from 50 on are each kind's own, and mean another thing
//! to each: bit 5 is a card's address and a disk's read-only. So one bit tells
//! little, but:
//!
//! - A device offers no feature without those that it requires (virtio 1.3,
//!   section 2.2). Nearly every disk can flush, which to a card would be ECN
//!   without segmentation.
//! - A card has bits that no disk has, and a disk one that no card has.
//! - A card without any feature of its own would be legal, and nobody has built
//!   one; a source of entropy has none.
//!
//! What passes may be another device still: a disk that is read-only and offers
//! nothing else looks like a card that has an address.

use outboard_protocol::devices::{BLK, DEVICE_FEATURES, NET, RNG};
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_GEOMETRY;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};

/// A card's that no disk of virtio 1.3 has, by any name.
const CARDS_ALONE: u64 = bits(&[
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_VLAN,
    VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
]);
/// A card's that few disks have (as lifetime, secure erase and zones).
const RATHER_CARDS: u64 = CARDS_ALONE
    | bits(&[
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_STATUS,
        VIRTIO_NET_F_CTRL_VQ,
    ]);

/// A card's features that require one of others (virtio 1.3, section 5.1.3.1;
/// offloads are changed by a command on the control queue).
const REQUIRED: [(u32, &[u32]); 10] = [
    (VIRTIO_NET_F_GUEST_TSO4, &[VIRTIO_NET_F_GUEST_CSUM]),
    (VIRTIO_NET_F_GUEST_TSO6, &[VIRTIO_NET_F_GUEST_CSUM]),
    (
        VIRTIO_NET_F_GUEST_ECN,
        &[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6],
    ),
    (VIRTIO_NET_F_GUEST_UFO, &[VIRTIO_NET_F_GUEST_CSUM]),
    (VIRTIO_NET_F_HOST_TSO4, &[VIRTIO_NET_F_CSUM]),
    (VIRTIO_NET_F_HOST_TSO6, &[VIRTIO_NET_F_CSUM]),
    (
        VIRTIO_NET_F_HOST_ECN,
        &[VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6],
    ),
    (VIRTIO_NET_F_HOST_UFO, &[VIRTIO_NET_F_CSUM]),
    (VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, &[VIRTIO_NET_F_CTRL_VQ]),
    // No card's at all: it requires what there is not.
    (VIRTIO_BLK_F_GEOMETRY, &[]),
];

/// Why a back-end with these features is none for a device of this virtio id,
/// if they tell.
pub(crate) fn misfit(virtio_id: u16, features: u64) -> Option<String> {
    let own = features & DEVICE_FEATURES;
    let is_card = own & RATHER_CARDS != 0;
    let (what, perhaps) = match virtio_id {
        NET if own == 0 => ("no feature of a network card", "a source of entropy"),
        NET if !is_card && lacks_a_required(own) => (
            "features that a network card has only together with others",
            "a disk",
        ),
        BLK if own & CARDS_ALONE != 0 => ("features that no disk has", "a network card"),
        RNG if own != 0 => (
            "features of its own, and a source of entropy has none",
            "a disk",
        ),
        _ => return None,
    };
    Some(format!(
        "it offers {what} (features {features:#x}), so it serves another kind of device, perhaps \
         {perhaps}; name another socket, or give this one to the option for its kind"
    ))
}

/// Whether something is offered without what it requires of a card.
fn lacks_a_required(own: u64) -> bool {
    REQUIRED
        .iter()
        .any(|(bit, required)| own >> bit & 1 == 1 && own & bits(required) == 0)
}

const fn bits(mut list: &[u32]) -> u64 {
    let mut sum = 0;
    while let [bit, rest @ ..] = list {
        sum |= 1 << *bit;
        list = rest;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: u64 = bits(&[24, 28, 29, 30, 32, 33]);

    /// What back-ends offer, as they are built and as their users cut it down.
    const CARDS: [(&str, &[u32]); 7] = [
        (
            "outboard-net on a tap",
            &[0, 1, 2, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 18, 20, 22, 23],
        ),
        ("outboard-net with a peer", &[5, 15, 16, 17, 18, 20, 23]),
        ("passt, which announces", &[15, 21]),
        ("passt before that", &[15]),
        (
            "a switch that has turned checksums off, and not what requires them",
            &[3, 12, 13, 14, 15, 17, 18, 21, 22],
        ),
        ("a card with an address", &[5]),
        ("a card with checksums", &[0, 1]),
    ];
    const DISKS: [(&str, &[u32]); 6] = [
        ("outboard-blk", &[2, 6, 9, 10, 11, 12, 13, 14]),
        ("qemu-storage-daemon", &[1, 2, 6, 9, 10, 11, 12, 13, 14]),
        ("outboard-blk, read-only", &[2, 5, 6, 9, 10, 12]),
        ("SPDK", &[1, 2, 6, 10, 12]),
        ("a disk with a cache", &[9]),
        ("a disk with segments", &[2]),
    ];

    #[test]
    fn a_card_is_taken_for_one_and_for_no_disk_as_far_as_it_tells() {
        for (place, (name, own)) in CARDS.into_iter().enumerate() {
            let features = bits(own) | RING;
            assert_eq!(misfit(NET, features), None, "{name}");
            let tells = [true, true, true, false, true, false, false];
            assert_eq!(misfit(BLK, features).is_some(), tells[place], "{name}");
        }
    }

    #[test]
    fn a_disk_is_taken_for_one_and_for_no_card() {
        for (name, own) in DISKS {
            let features = bits(own) | RING;
            assert_eq!(misfit(BLK, features), None, "{name}");
            let why = misfit(NET, features).unwrap_or_default();
            assert!(why.contains("perhaps a disk"), "{name}: {why}");
            assert!(misfit(RNG, features).is_some(), "{name}");
        }
    }

    #[test]
    fn one_without_features_of_its_own_is_a_source_of_entropy_or_a_plain_disk() {
        assert_eq!(misfit(RNG, RING), None);
        assert_eq!(misfit(BLK, RING), None);
        assert!(misfit(NET, RING).is_some());
    }

    #[test]
    fn what_is_behind_an_unknown_id_is_the_user_s_affair() {
        for own in [0, 1, 0xff_ffff] {
            assert_eq!(misfit(26, own), None);
        }
    }

    /// What is not told apart, said here so that nobody relies on it.
    #[test]
    fn a_disk_that_only_reads_looks_like_a_card_that_has_an_address() {
        assert_eq!(misfit(NET, 1 << 5 | RING), None);
        assert_eq!(misfit(BLK, 1 << 5 | RING), None);
    }
}
