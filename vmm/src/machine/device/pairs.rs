//! What of a network back-end a driver can use (virtio 1.3, section 5.1).
//!
//! The rings of a card are numbered by what the back-end has: the control queue
//! comes after all its pairs. So a back-end with fewer pairs than were asked for
//! serves with fewer, and one with more serves a single pair, as without MQ. One
//! that leaves the configuration space to the front-end, as many do, leaves the
//! control queue to it too, whatever it offers; we have none, so then there is
//! neither.

use outboard_protocol::launch;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_NOTF_COAL, VIRTIO_NET_F_RSS, VIRTIO_NET_F_SPEED_DUPLEX,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_F_VQ_NOTF_COAL,
};

use crate::machine::frontend::Agreement;

const VIRTIO_ID_NET: u16 = 1;
/// Offset of `max_virtqueue_pairs` (virtio 1.3, section 5.1.4).
const MAX_PAIRS: usize = 8;

/// Mean something only with a control queue.
const WITH_CONTROL: [u32; 12] = [
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_VLAN,
    VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_RSS,
    VIRTIO_NET_F_HASH_REPORT,
    VIRTIO_NET_F_NOTF_COAL,
    VIRTIO_NET_F_VQ_NOTF_COAL,
];
/// Mean something only with several pairs.
const WITH_PAIRS: [u32; 2] = [VIRTIO_NET_F_MQ, VIRTIO_NET_F_RSS];
/// Mean something only with a configuration space.
const WITH_CONFIG: [u32; 4] = [
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_SPEED_DUPLEX,
];

/// The features of a back-end that its driver is offered; and what to tell the
/// user if it has another number of pairs than was asked for. `config` is the
/// back-end's configuration space.
pub fn usable(
    agreement: &Agreement,
    config: &[u8],
    spec: &launch::Device,
) -> (u64, Option<String>) {
    let features = agreement.features;
    if spec.kind.virtio_id != VIRTIO_ID_NET {
        return (features, None);
    }
    let has = |bit: u32| features >> bit & 1 == 1;
    let configured = agreement.protocol.contains(Protocol::CONFIG);
    // Receive, transmit, control.
    let control = configured && has(VIRTIO_NET_F_CTRL_VQ) && agreement.max_queues > 2;
    let asked = u64::from(spec.queues / 2);
    let field = config.get(MAX_PAIRS..).and_then(<[u8]>::first_chunk::<2>);
    let theirs = match field {
        Some(field) if control && has(VIRTIO_NET_F_MQ) => u16::from_le_bytes(*field).into(),
        _ => 1,
    };
    let several = (2..=asked).contains(&theirs) && agreement.max_queues > 2 * theirs;
    let mut without: Vec<u32> = Vec::new();
    if !configured {
        without.extend(WITH_CONFIG);
    }
    if !control {
        without.extend(WITH_CONTROL);
    }
    if !several {
        without.extend(WITH_PAIRS);
    }
    let features = without
        .iter()
        .fold(features, |left, bit| left & !(1 << bit));
    let gets = if several { theirs } else { 1 };
    let advice = (gets != asked).then(|| {
        let has = theirs.max(1);
        format!(
            "the back-end has {has} pair{} of queues, {asked} were asked: the guest gets {gets}; \
             use queues={has}",
            if has == 1 { "" } else { "s" }
        )
    });
    (features, advice)
}

#[cfg(test)]
mod tests {
    use outboard_protocol::devices::{Kind, NetConfig};

    use super::*;

    const PLAIN: u64 = 1 << 32 | 1 << 15;

    fn spec(pairs: u16) -> launch::Device {
        launch::Device {
            id: "net0".into(),
            kind: Kind::net(),
            queues: 2 * pairs + 1,
            queue_size: 256,
            ring: launch::Ring::Kvm,
        }
    }

    fn bits(bits: &[u32]) -> u64 {
        bits.iter().fold(0, |sum, bit| sum | 1 << bit)
    }

    /// A back-end with everything, `pairs` pairs and `max_queues` queues.
    fn result(pairs: u16, max_queues: u64, asked: u16, without: &[u32]) -> (u64, Option<String>) {
        let everything = PLAIN | bits(&WITH_CONTROL) | bits(&WITH_CONFIG);
        let agreement = Agreement {
            features: everything & !bits(without),
            max_queues,
            protocol: Protocol::MQ | Protocol::CONFIG,
        };
        let config = NetConfig {
            max_virtqueue_pairs: pairs,
            ..NetConfig::default()
        };
        usable(&agreement, &config.to_bytes(), &spec(asked))
    }

    #[test]
    fn what_fits_is_offered_whole() {
        let everything = PLAIN | bits(&WITH_CONTROL) | bits(&WITH_CONFIG);
        assert_eq!(result(4, 9, 4, &[]), (everything, None));
        let single = everything & !bits(&WITH_PAIRS);
        assert_eq!(result(1, 3, 1, &WITH_PAIRS), (single, None));
    }

    #[test]
    fn fewer_pairs_serve_with_a_message_and_more_serve_as_one() {
        let (features, advice) = result(2, 5, 4, &[]);
        assert_eq!(features & bits(&WITH_PAIRS), bits(&WITH_PAIRS));
        let advice = advice.unwrap();
        assert!(advice.contains("has 2 pairs of queues, 4 were asked: the guest gets 2"));
        for (pairs, queues, asked) in [(8, 17, 4), (4, 3, 4), (0, 9, 4), (0xffff, 9, 4)] {
            let (features, advice) = result(pairs, queues, asked, &[]);
            assert_eq!(features & bits(&WITH_PAIRS), 0);
            assert_eq!(
                features & bits(&[VIRTIO_NET_F_CTRL_VQ]),
                bits(&[VIRTIO_NET_F_CTRL_VQ])
            );
            assert!(advice.unwrap().contains("the guest gets 1"));
        }
        // Nobody asked for several.
        let (features, advice) = result(8, 17, 1, &[]);
        assert_eq!((features & bits(&WITH_PAIRS), advice), (0, None));
    }

    #[test]
    fn without_a_control_queue_there_is_nothing_that_needs_one() {
        for (queues, without) in [(9, &[VIRTIO_NET_F_CTRL_VQ][..]), (2, &[])] {
            let (features, advice) = result(1, queues, 1, without);
            assert_eq!(features, PLAIN | bits(&WITH_CONFIG));
            assert_eq!(advice, None);
        }
    }

    #[test]
    fn a_back_end_without_configuration_has_no_control_queue_either() {
        let agreement = Agreement {
            features: u64::MAX,
            max_queues: 128,
            protocol: Protocol::MQ,
        };
        let (features, advice) = usable(&agreement, &[0; NetConfig::LEN], &spec(1));
        let left_out = bits(&WITH_CONTROL) | bits(&WITH_CONFIG);
        assert_eq!((features, advice), (!left_out, None));
        let disk = launch::Device {
            kind: Kind::blk(),
            ..spec(1)
        };
        assert_eq!(usable(&agreement, &[], &disk), (u64::MAX, None));
    }
}
