use outboard_contract::scripted::Scripted;
use outboard_protocol::devices::BlkConfig;
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_CONFIG_WCE;

use super::*;
use crate::machine::frontend::{Connected, Interruption, Session, cause_of};

fn spec(queues: u16) -> launch::Device {
    launch::Device {
        id: "disk0".into(),
        kind: Kind::blk(),
        queues,
        fewer: false,
        queue_size: 64,
        hang_timeout: None,
    }
}

/// What is found out about a back-end.
fn agreement(fake: Scripted) -> Agreement {
    let (stream, _fake) = fake.start();
    let session = Session::<Connected>::new(stream);
    let session = session.negotiate("disk0", &Interruption::default());
    session.unwrap().agreement()
}

fn refusal(fake: Scripted, queues: u16) -> String {
    let error = fits(&agreement(fake), &spec(queues)).unwrap_err();
    assert_eq!(cause_of(&error), Some(Cause::DoesNotFit));
    format!("{error:#}")
}

#[test]
fn a_back_end_that_does_not_fit_is_refused_with_advice() {
    let legacy = Scripted::disk().features(1 << 30);
    assert!(refusal(legacy, 1).contains("VIRTIO_F_VERSION_1"));
    let small = Scripted::disk().queues(1);
    let text = "the back-end offers 1 queue, 4 were asked: use queues=1";
    assert_eq!(refusal(small, 4), text);
    let single = Scripted::disk().queues(1);
    let nobody_asked = launch::Device {
        fewer: true,
        ..spec(4)
    };
    let single = agreement(single);
    fits(&single, &nobody_asked).unwrap();
    assert_eq!(served(&single, &nobody_asked), 1);
    let none = Scripted::disk().queues(0);
    assert!(refusal(none, 1).contains("0 queues"));
    let single = Scripted::disk().without(Protocol::MQ);
    assert!(refusal(single, 2).contains("use queues=1"));
    let blind = Scripted::disk().without(Protocol::CONFIG);
    assert!(refusal(blind, 1).contains("configuration"));
    let simple = Scripted::disk().features(1 << 32);
    assert!(refusal(simple, 1).contains("configuration"));
}

#[test]
fn a_driver_writes_what_it_may_and_no_more() {
    let cache = 1 << VIRTIO_BLK_F_CONFIG_WCE;
    let disk = Kind::blk();
    assert!(may_write(&disk, cache, 32, &[0]));
    assert!(may_write(&disk, cache, 32, &[1]));
    for (features, offset, data) in [
        (0, 32, &[1][..]),
        (cache, 32, &[2]),
        (cache, 32, &[1, 0]),
        (cache, 0, &[0; 8]),
        (cache, 34, &[1, 0]),
    ] {
        assert!(!may_write(&disk, features, offset, data), "{offset}");
    }
    assert!(!may_write(&Kind::net(), !0, 0, &[2]));
    assert!(!may_write(&Kind::rng(), !0, 0, &[2]));
    assert!(may_write(&Kind::unnamed(18, 8), 0, 1, &[2]));
    assert!(may_write(&Kind::unnamed(2, 60), cache, 32, &[1]));
}

#[test]
fn a_disk_never_says_more_queues_than_the_driver_can_reach() {
    let mut spec = launch::Device {
        id: "disk0".into(),
        kind: Kind::blk(),
        queues: 2,
        fewer: false,
        queue_size: 64,
        hang_timeout: None,
    };
    let of = |num_queues| BlkConfig {
        num_queues,
        capacity: 8,
        ..BlkConfig::default()
    };
    for (has, says) in [(1, 1), (2, 2), (4, 2), (u16::MAX, 2)] {
        let mut config = of(has).to_bytes();
        limit_queues(&mut config, &spec, 2);
        assert_eq!(config, of(says).to_bytes());
    }
    limit_queues(&mut [0; 20], &spec, 2);
    spec.kind = Kind::unnamed(4, 60);
    let mut config = [0xff; 60];
    limit_queues(&mut config, &spec, 2);
    assert_eq!(config, [0xff; 60]);
}

#[test]
fn a_driver_goes_by_a_cache_byte_that_it_is_offered_to_set() {
    let disk = Kind::blk();
    let config = |byte| [vec![0; 32], vec![byte]].concat();
    assert_eq!(shown_cache(&disk, 1 << 11, &config(1)), Some(1));
    assert_eq!(shown_cache(&disk, 1 << 11, &config(0)), Some(0));
    assert_eq!(shown_cache(&disk, 1 << 9, &config(1)), None);
    assert_eq!(shown_cache(&disk, 1 << 11, &[0; 32]), None);
    let other = Kind::unnamed(41, 60);
    assert_eq!(shown_cache(&other, 1 << 11, &config(1)), None);
}

#[test]
fn of_a_device_that_is_no_card_everything_is_usable_but_segments_of_no_bytes() {
    let everything = Agreement {
        features: u64::MAX,
        max_queues: 128,
        protocol: Protocol::MQ,
    };
    let mut other = spec(1);
    other.kind = Kind::unnamed(41, 60);
    assert_eq!(usable(&everything, &[], &other).unwrap(), u64::MAX);
    let disk = |size_max| {
        let config = BlkConfig {
            size_max,
            ..BlkConfig::default()
        };
        usable(&everything, &config.to_bytes(), &spec(1)).unwrap()
    };
    assert_eq!(disk(4096), u64::MAX);
    assert_eq!(disk(0), !(1 << 1), "as qemu-storage-daemon has it");
}
