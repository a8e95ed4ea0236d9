//! The commands of the control queue (virtio 1.3, section 5.1.6.5), understood.

use outboard_protocol::tap::{Mac, is_station};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI,
    VIRTIO_NET_CTRL_RX_ALLUNI, VIRTIO_NET_CTRL_RX_NOBCAST, VIRTIO_NET_CTRL_RX_NOMULTI,
    VIRTIO_NET_CTRL_RX_NOUNI, VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_MQ,
};

use crate::filter::Mode;
use crate::header::has;

const RX: u8 = VIRTIO_NET_CTRL_RX as u8;
const MAC: u8 = VIRTIO_NET_CTRL_MAC as u8;
const MQ: u8 = VIRTIO_NET_CTRL_MQ as u8;
const OFFLOADS: u8 = VIRTIO_NET_CTRL_GUEST_OFFLOADS as u8;

const MODES: [(u32, Mode, u32); 6] = [
    (
        VIRTIO_NET_CTRL_RX_PROMISC,
        Mode::Promiscuous,
        VIRTIO_NET_F_CTRL_RX,
    ),
    (
        VIRTIO_NET_CTRL_RX_ALLMULTI,
        Mode::AllMulticast,
        VIRTIO_NET_F_CTRL_RX,
    ),
    (
        VIRTIO_NET_CTRL_RX_ALLUNI,
        Mode::AllUnicast,
        VIRTIO_NET_F_CTRL_RX_EXTRA,
    ),
    (
        VIRTIO_NET_CTRL_RX_NOMULTI,
        Mode::NoMulticast,
        VIRTIO_NET_F_CTRL_RX_EXTRA,
    ),
    (
        VIRTIO_NET_CTRL_RX_NOUNI,
        Mode::NoUnicast,
        VIRTIO_NET_F_CTRL_RX_EXTRA,
    ),
    (
        VIRTIO_NET_CTRL_RX_NOBCAST,
        Mode::NoBroadcast,
        VIRTIO_NET_F_CTRL_RX_EXTRA,
    ),
];

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Turn a receive mode on or off.
    Mode(Mode, bool),
    /// The card's own address.
    Address(Mac),
    /// Further addresses: unicast, multicast.
    Table(Vec<Mac>, Vec<Mac>),
    /// How many queue pairs are used from now on.
    Pairs(u16),
    /// Which of the negotiated GUEST_* offloads are used from now on.
    Offloads(u64),
}

impl Command {
    /// Understands a command: class, command, and what belongs to it. `None`
    /// for one that is unknown, cut short, too long, or not negotiated.
    pub fn parse(bytes: &[u8], features: u64) -> Option<Self> {
        let [class, command, rest @ ..] = bytes else {
            return None;
        };
        match (*class, u32::from(*command)) {
            (RX, command) => {
                let (_, mode, feature) = MODES.iter().find(|(number, ..)| *number == command)?;
                let [on] = *rest else { return None };
                has(features, *feature).then_some(Self::Mode(*mode, on != 0))
            }
            (MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                let own: Mac = rest.try_into().ok()?;
                let usable = is_station(&own) && has(features, VIRTIO_NET_F_CTRL_MAC_ADDR);
                usable.then_some(Self::Address(own))
            }
            (MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) if has(features, VIRTIO_NET_F_CTRL_RX) => {
                let (unicast, rest) = table(rest)?;
                let (multicast, rest) = table(rest)?;
                rest.is_empty().then_some(Self::Table(unicast, multicast))
            }
            (MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) if has(features, VIRTIO_NET_F_MQ) => {
                Some(Self::Pairs(u16::from_le_bytes(rest.try_into().ok()?)))
            }
            (OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET)
                if has(features, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) =>
            {
                Some(Self::Offloads(u64::from_le_bytes(rest.try_into().ok()?)))
            }
            _ => None,
        }
    }
}

/// One table of addresses, after its count; and what comes after it.
fn table(bytes: &[u8]) -> Option<(Vec<Mac>, &[u8])> {
    let (count, rest) = bytes.split_first_chunk::<4>()?;
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let (table, rest) = rest.split_at_checked(count.checked_mul(6)?)?;
    let (addresses, _) = table.as_chunks::<6>();
    Some((addresses.to_vec(), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: u64 = u64::MAX;

    #[test]
    fn each_command_is_understood_if_it_was_negotiated() {
        let mut table = vec![1, 0, 1, 0, 0, 0];
        table.extend([2, 0, 0, 0, 0, 9]);
        table.extend([2, 0, 0, 0]);
        table.extend([1; 6]);
        table.extend([3; 6]);
        for (bytes, command) in [
            (vec![0, 0, 1], Command::Mode(Mode::Promiscuous, true)),
            (vec![0, 1, 0], Command::Mode(Mode::AllMulticast, false)),
            (vec![0, 5, 9], Command::Mode(Mode::NoBroadcast, true)),
            (
                vec![1, 1, 2, 3, 4, 5, 6, 7],
                Command::Address([2, 3, 4, 5, 6, 7]),
            ),
            (
                table,
                Command::Table(vec![[2, 0, 0, 0, 0, 9]], vec![[1; 6], [3; 6]]),
            ),
            (vec![4, 0, 2, 1], Command::Pairs(0x102)),
            (
                vec![5, 0, 2, 0, 0, 0, 0, 0, 0, 1],
                Command::Offloads(1 << 56 | 2),
            ),
        ] {
            // The offload bits come first on the wire, as any number.
            assert_eq!(Command::parse(&bytes, ALL), Some(command), "{bytes:?}");
            assert_eq!(Command::parse(&bytes, 0), None);
            let longer = [&bytes[..], &[0]].concat();
            assert_eq!(Command::parse(&longer, ALL), None, "{longer:?}");
            for length in 0..bytes.len() {
                assert_eq!(Command::parse(&bytes[..length], ALL), None);
            }
        }
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for bytes in [
            &[][..],
            &[0],
            &[0, 6, 1],
            &[2, 0, 1, 0],
            &[3, 0],
            &[4, 1, 0, 0],
            &[255, 255, 0],
            // A group address, and none.
            &[1, 1, 3, 0, 0, 0, 0, 1],
            &[1, 1, 0, 0, 0, 0, 0, 0],
            // A table of more than there is, and of more than there can be.
            &[1, 0, 2, 0, 0, 0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 0],
            &[1, 0, 255, 255, 255, 255, 0, 0, 0, 0],
        ] {
            assert_eq!(Command::parse(bytes, ALL), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange_to_refuse(bytes: Vec<u8>, features: u64) {
            let _ = Command::parse(&bytes, features);
        }
    }
}
