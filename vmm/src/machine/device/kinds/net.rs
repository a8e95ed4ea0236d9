//! What of a network back-end a driver can use (virtio 1.3, section 5.1).
//!
//! The rings of a card are numbered by what the back-end has: the control queue
//! comes after all its pairs. So a back-end serves either all its pairs or, as
//! without MQ, one: who asked for another number is refused. One that leaves the
//! configuration space to the front-end, as many do, leaves the control queue to
//! it too, whatever it offers; we have none, so then there is neither.

use anyhow::{Result, bail};
use outboard_protocol::devices::Kind;
use outboard_protocol::launch::{self, Cause};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_NOTF_COAL, VIRTIO_NET_F_RSS, VIRTIO_NET_F_SPEED_DUPLEX,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_F_VQ_NOTF_COAL,
};

use crate::machine::frontend::{Agreement, because};

/// Offset of `max_virtqueue_pairs` (virtio 1.3, section 5.1.4).
const PAIRS_FIELD: usize = 8;
/// Most pairs that a card can be given.
const MAX_PAIRS: u64 = 31;

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

/// The features of a back-end that its driver is offered. `config` is the
/// back-end's configuration space.
///
/// # Errors
/// It has another number of pairs than somebody has asked for.
pub(crate) fn usable(agreement: &Agreement, config: &[u8], spec: &launch::Device) -> Result<u64> {
    let features = agreement.features;
    let has = |bit: u32| features >> bit & 1 == 1;
    let configured = agreement.protocol.contains(Protocol::CONFIG);
    // Receive, transmit, control.
    let control = configured && has(VIRTIO_NET_F_CTRL_VQ) && agreement.max_queues > 2;
    let asked = u64::from(spec.queues / 2);
    let field = config.get(PAIRS_FIELD..).and_then(<[u8]>::first_chunk::<2>);
    let theirs = match field {
        Some(field) if control && has(VIRTIO_NET_F_MQ) => u16::from_le_bytes(*field).into(),
        _ => 1,
    };
    let whole = theirs >= 2 && agreement.max_queues > 2 * theirs;
    let several = whole && theirs <= asked;
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
    if !spec.fewer && asked != if several { theirs } else { 1 } {
        let has = if whole { theirs } else { 1 };
        bail!(because(Cause::DoesNotFit, refusal(has, spec)));
    }
    Ok(without
        .iter()
        .fold(features, |left, bit| left & !(1 << bit)))
}

/// What who asked for another number of pairs is told. A device that only the
/// command line describes has its queues counted one by one.
fn refusal(has: u64, spec: &launch::Device) -> String {
    let s = if has == 1 { "" } else { "s" };
    let pairs = if has > MAX_PAIRS { 1 } else { has };
    match spec.kind == Kind::net() {
        true => format!(
            "the back-end offers {has} pair{s} of queues, {} were asked: use queues={pairs}",
            spec.queues / 2,
        ),
        false => format!(
            "the back-end offers {has} pair{s} of queues, {} queues were asked: use queues={} (two \
             for each pair, and one for control)",
            spec.queues,
            2 * pairs + 1
        ),
    }
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
            fewer: false,
            queue_size: 256,
            hang_timeout: None,
        }
    }

    fn bits(bits: &[u32]) -> u64 {
        bits.iter().fold(0, |sum, bit| sum | 1 << bit)
    }

    /// A back-end with everything, `pairs` pairs and `max_queues` queues.
    fn result(spec: &launch::Device, pairs: u16, max_queues: u64, without: &[u32]) -> Result<u64> {
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
        usable(&agreement, &config.to_bytes(), spec)
    }

    #[test]
    fn what_fits_is_offered_whole() {
        let everything = PLAIN | bits(&WITH_CONTROL) | bits(&WITH_CONFIG);
        assert_eq!(result(&spec(4), 4, 9, &[]).unwrap(), everything);
        let single = everything & !bits(&WITH_PAIRS);
        assert_eq!(result(&spec(1), 1, 3, &WITH_PAIRS).unwrap(), single);
    }

    #[test]
    fn another_number_of_pairs_than_was_asked_for_is_refused_with_the_one_there_is() {
        for (pairs, queues, asked, words) in [
            (
                2,
                5,
                4,
                "offers 2 pairs of queues, 4 were asked: use queues=2",
            ),
            (
                8,
                17,
                4,
                "offers 8 pairs of queues, 4 were asked: use queues=8",
            ),
            (
                4,
                3,
                4,
                "offers 1 pair of queues, 4 were asked: use queues=1",
            ),
            (0, 9, 4, "use queues=1"),
            (0xffff, 9, 4, "use queues=1"),
            (
                64,
                129,
                4,
                "offers 64 pairs of queues, 4 were asked: use queues=1",
            ),
        ] {
            let error = result(&spec(asked), pairs, queues, &[]).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            let other = launch::Device {
                kind: Kind::unnamed(1, 12),
                ..spec(asked)
            };
            let error = result(&other, pairs, queues, &[]).unwrap_err();
            assert!(error.to_string().contains("9 queues were asked"), "{error}");
        }
    }

    #[test]
    fn who_asked_for_no_number_gets_the_pairs_there_are() {
        let nobody_asked = |pairs| launch::Device {
            fewer: true,
            ..spec(pairs)
        };
        let features = result(&nobody_asked(4), 2, 5, &[]).unwrap();
        assert_eq!(features & bits(&WITH_PAIRS), bits(&WITH_PAIRS));
        for (asked, pairs, queues) in [(1, 8, 17), (4, 8, 17), (4, 4, 3), (4, 0, 9)] {
            let features = result(&nobody_asked(asked), pairs, queues, &[]).unwrap();
            assert_eq!(features & bits(&WITH_PAIRS), 0);
            let control = bits(&[VIRTIO_NET_F_CTRL_VQ]);
            assert_eq!(features & control, control);
        }
        // One pair is one however many there are.
        let features = result(&spec(1), 8, 17, &[]).unwrap();
        assert_eq!(features & bits(&WITH_PAIRS), 0);
    }

    #[test]
    fn without_a_control_queue_there_is_nothing_that_needs_one() {
        for (queues, without) in [(9, &[VIRTIO_NET_F_CTRL_VQ][..]), (2, &[])] {
            let features = result(&spec(1), 1, queues, without).unwrap();
            assert_eq!(features, PLAIN | bits(&WITH_CONFIG));
        }
    }

    #[test]
    fn a_back_end_without_configuration_has_no_control_queue_either() {
        let agreement = Agreement {
            features: u64::MAX,
            max_queues: 128,
            protocol: Protocol::MQ,
        };
        let features = usable(&agreement, &[0; NetConfig::LEN], &spec(1));
        let left_out = bits(&WITH_CONTROL) | bits(&WITH_CONFIG);
        assert_eq!(features.unwrap(), !left_out);
    }
}
