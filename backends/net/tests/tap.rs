//! The program on a real tap, in a network of the test's own, driven by a
//! vhost-user client.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "these are tests"
)]

mod support;

use std::ops::Range;
use std::os::fd::AsFd;
use std::time::Duration;

use outboard_contract::client::Ack;
use outboard_contract::program::{by_shell, lent};
use outboard_net::header::Header;
use outboard_protocol::devices::NetConfig;
use support::*;
use vhost::vhost_user::message::FrontendReq;
use virtio_bindings::virtio_net::*;

const MRG_RXBUF: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const QUIET: Duration = Duration::from_millis(300);

#[test]
fn frames_of_every_length_pass_both_ways_unchanged() {
    let Some(mut bench) = Bench::plain() else {
        return;
    };
    for (features, size) in [
        (EVERYTHING, 1526),
        (EVERYTHING & !(1 << 29), 64),
        (EVERYTHING, 300),
        (0, 1526),
        (bit(VIRTIO_NET_F_CSUM), 4096),
    ] {
        let mut driver = bench.driver(features);
        driver.post(0, 120, size);
        let lengths: Vec<_> = (14..=1514).collect();
        for batch in lengths.chunks(40) {
            let old = driver.pairs[0].tx.next_avail;
            for (slot, length) in batch.iter().enumerate() {
                driver.queue_frame(0, slot, Header::default(), &frame(HOST, *length, 1));
            }
            driver.pairs[0].tx.announce(old).unwrap();
            for length in batch {
                assert_eq!(bench.wire.receive().1, frame(HOST, *length, 1), "{length}");
                driver.sent(0);
            }
        }
        // Few enough at a time for the queue of the tap.
        for batch in lengths.chunks(40) {
            for length in batch {
                bench.send(&frame(GUEST, *length, 2));
            }
            for length in batch {
                let (header, found) = driver.receive(0);
                assert_eq!(found, frame(GUEST, *length, 2), "{length} by {size}");
                assert_eq!((header.flags & 1, header.gso_type), (0, 0));
            }
        }
        driver.is_whole();
        drop(driver);
        bench = bench.anew();
    }
}

#[test]
fn segments_and_checksums_are_left_to_whoever_takes_them() {
    let Some(bench) = Bench::plain() else {
        return;
    };
    let mut driver = bench.ready(100);
    assert!(driver.has(VIRTIO_NET_F_HOST_TSO4) && driver.has(VIRTIO_NET_F_GUEST_TSO4));
    for (payload, mss) in [
        (0, 0),
        (1000, 0),
        (1449, 1448),
        (20_000, 536),
        (65_000, 1448),
    ] {
        let (header, frame) = tcp(HOST, payload, mss);
        driver.send_with(0, header, &frame);
        let (found, bytes) = bench.wire.receive();
        assert!(bytes == frame, "{payload}");
        assert_eq!((found.flags, found.gso_type), (1, header.gso_type));
        assert_eq!((found.gso_size, found.csum_start), (mss, 34));

        let (header, frame) = tcp(GUEST, payload, mss);
        bench.wire.send(header, &frame);
        let (found, bytes) = driver.receive(0);
        assert!(bytes == frame, "{payload}");
        assert_eq!((found.flags & 1, found.gso_type), (1, header.gso_type));
        assert_eq!((found.gso_size, found.csum_start), (mss, 34));
        assert_eq!(
            usize::from(found.num_buffers),
            (frame.len() + 12).div_ceil(1526)
        );
    }
    driver.is_whole();
    drop(driver);

    // A driver that takes none of it gets whole segments with checksums.
    let mut driver = bench.driver(MRG_RXBUF);
    driver.post(0, 100, 1526);
    let (header, frame) = tcp(GUEST, 10_000, 1000);
    bench.wire.send(header, &frame);
    let mut payload: Vec<u8> = Vec::new();
    for _ in 0..10 {
        let (found, bytes) = driver.receive(0);
        assert_eq!((found.flags, found.gso_type), (0, 0));
        assert!(tcp_is_sound(&bytes));
        payload.extend(&bytes[54..]);
    }
    assert!(payload == frame[54..]);
    // And may ask for none.
    let (header, frame) = tcp(HOST, 3000, 1000);
    driver.send_with(0, header, &frame);
    driver.send(0, &support::frame(HOST, 60, 1));
    assert_eq!(bench.wire.receive().1, support::frame(HOST, 60, 1));
    driver.is_whole();
}

/// That a frame with this header passes both ways uncut and with it.
fn passes_uncut(driver: &mut Driver, bench: &Bench, make: impl Fn([u8; 6]) -> (Header, Vec<u8>)) {
    let (header, frame) = make(HOST);
    driver.send_with(0, header, &frame);
    let (found, bytes) = bench.wire.receive();
    assert!(bytes == frame);
    let same = |found: Header| (found.gso_type, found.gso_size, found.csum_start);
    assert_eq!(same(found), same(header));
    let (header, frame) = make(GUEST);
    bench.wire.send(header, &frame);
    let (found, bytes) = driver.receive(0);
    assert!(bytes == frame);
    assert_eq!(same(found), same(header));
}

#[test]
fn segments_with_ecn_keep_their_mark() {
    let Some(bench) = Bench::plain() else {
        return;
    };
    let mut driver = bench.ready(100);
    assert!(driver.has(VIRTIO_NET_F_HOST_ECN) && driver.has(VIRTIO_NET_F_GUEST_ECN));
    let marked = |to| {
        let (mut header, mut frame) = tcp(to, 20_000, 1448);
        header.gso_type |= VIRTIO_NET_HDR_GSO_ECN as u8;
        // CWR, for the first segment alone.
        frame[47] |= 0x80;
        (header, frame)
    };
    passes_uncut(&mut driver, &bench, marked);
    drop(driver);
    // A driver without ECN gets them cut, the mark on the first alone.
    let without = EVERYTHING & !bit(VIRTIO_NET_F_GUEST_ECN);
    let mut driver = bench.driver(without);
    driver.post(0, 100, 1526);
    let (header, frame) = marked(GUEST);
    bench.wire.send(header, &frame);
    let marks: Vec<_> = (0..20_000usize.div_ceil(1448))
        .map(|_| driver.receive(0).1[47] & 0x80)
        .collect();
    assert!(marks[0] == 0x80 && marks[1..].iter().all(|mark| *mark == 0));
}

#[test]
fn udp_segments_pass_both_ways_where_the_kernel_knows_them() {
    let Some(bench) = Bench::plain() else {
        return;
    };
    let mut driver = bench.driver(EVERYTHING);
    if !driver.has(VIRTIO_NET_F_HOST_USO) {
        eprintln!("SKIP: this kernel has no UDP segmentation on taps (Linux 6.2)");
        return;
    }
    assert!(driver.has(VIRTIO_NET_F_GUEST_USO4) && driver.has(VIRTIO_NET_F_GUEST_USO6));
    driver.post(0, 100, 1526);
    for (payload, part) in [(2000, 1000), (1473, 1472), (40_000, 700)] {
        passes_uncut(&mut driver, &bench, |to| udp(to, payload, part));
    }
    drop(driver);
    // A driver without it gets datagrams of that size.
    let without = bit(VIRTIO_NET_F_GUEST_USO4) | bit(VIRTIO_NET_F_GUEST_USO6);
    let mut driver = bench.driver(EVERYTHING & !without);
    driver.post(0, 100, 1526);
    let (header, frame) = udp(GUEST, 2500, 1000);
    bench.wire.send(header, &frame);
    let received: Vec<_> = (0..3).map(|_| driver.receive(0).1).collect();
    let payload: Vec<_> = received.iter().flat_map(|one| &one[42..]).collect();
    assert!(payload.into_iter().eq(&frame[42..]));
}

#[test]
fn offloads_are_turned_off_and_on_while_the_driver_runs() {
    let Some(bench) = Bench::plain() else {
        return;
    };
    let mut driver = bench.ready(100);
    let offloads = |bits: u64| [&[5, 0][..], &bits.to_le_bytes()].concat();
    let (header, frame) = tcp(GUEST, 5000, 1000);
    assert_eq!(driver.command(&offloads(0)), Some(0));
    bench.wire.send(header, &frame);
    for _ in 0..5 {
        assert!(tcp_is_sound(&driver.receive(0).1));
    }
    let all = bit(VIRTIO_NET_F_GUEST_CSUM) | bit(VIRTIO_NET_F_GUEST_TSO4);
    assert_eq!(driver.command(&offloads(all)), Some(0));
    bench.wire.send(header, &frame);
    assert!(driver.receive(0).1 == frame);
    // Not one of the offloads of this command.
    let wrong = bit(VIRTIO_NET_F_HOST_TSO4);
    assert_eq!(driver.command(&offloads(wrong)), Some(1));
}

#[test]
fn a_frame_larger_than_all_buffers_waits_for_more_and_nothing_is_lost() {
    let Some(bench) = Bench::plain() else {
        return;
    };
    let mut driver = bench.driver(EVERYTHING);
    driver.post(0, 2, 100);
    let (header, segment) = tcp(GUEST, 9000, 1000);
    bench.wire.send(header, &segment);
    bench.send(&frame(GUEST, 60, 3));
    std::thread::sleep(QUIET);
    assert!(driver.pairs[0].rx.take_used().unwrap().is_none());
    driver.post(0, 2, 100);
    std::thread::sleep(Duration::from_millis(50));
    driver.post(0, 100, 100);
    assert!(driver.receive(0).1 == segment);
    assert_eq!(driver.receive(0).1, frame(GUEST, 60, 3));
    driver.is_whole();
    drop(driver);
    // Without MRG_RXBUF a frame has one chain and no other chance.
    let mut driver = bench.driver(0);
    driver.post(0, 2, 100);
    bench.send(&frame(GUEST, 400, 4));
    bench.send(&frame(GUEST, 60, 5));
    assert_eq!(driver.receive(0).1, frame(GUEST, 60, 5));
}

#[test]
fn a_frame_larger_than_all_there_will_ever_be_is_dropped_and_counted() {
    let Some(bench) = Bench::plain() else {
        return;
    };
    let mut driver = bench.driver(EVERYTHING);
    driver.post(0, 4, 100);
    let (header, segment) = tcp(GUEST, 9000, 1000);
    bench.wire.send(header, &segment);
    for mark in 0..3 {
        bench.send(&frame(GUEST, 60, mark));
    }
    // The buffers hold each of these, and come back.
    for mark in 0..3 {
        assert_eq!(driver.receive(0).1, frame(GUEST, 60, mark));
    }
    driver.is_whole();
    drop(driver);
    let words = bench.program.last_words().unwrap();
    assert!(words.contains(", 1 received and too large for the buffer"));
}

#[test]
fn segments_are_offered_only_where_a_ring_can_hold_them() {
    if !own_network() {
        return;
    }
    let all = |bits: &[u32]| bits.iter().fold(0, |all, feature| all | bit(*feature));
    let sent = all(&[
        VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_HOST_TSO6,
        VIRTIO_NET_F_HOST_ECN,
    ]);
    let received = all(&[
        VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_GUEST_ECN,
    ]);
    let uso = all(&[
        VIRTIO_NET_F_HOST_USO,
        VIRTIO_NET_F_GUEST_USO4,
        VIRTIO_NET_F_GUEST_USO6,
    ]);
    for (size, offered) in [
        (2, 0),
        (16, 0),
        (32, sent),
        (64, sent),
        (128, sent | received),
        (256, sent | received),
    ] {
        let bench = Bench::again("", &[&format!("--queue-size={size}")]);
        let mut driver = Driver::sized(bench.program.client().unwrap(), EVERYTHING, size);
        let found = driver.features;
        assert_eq!(found & (sent | received), offered, "{size}");
        assert!(found & uso == 0 || offered != 0, "{size}");
        assert!(driver.has(VIRTIO_NET_F_CSUM) && driver.has(VIRTIO_NET_F_GUEST_CSUM));
        // As Linux posts them: as many as the ring has entries.
        driver.post(0, usize::from(size).min(128), 1530);
        let (header, segment) = tcp(GUEST, 20_000, 1448);
        bench.wire.send(header, &segment);
        let mut payload = Vec::new();
        while payload.len() < 20_000 {
            payload.extend_from_slice(&driver.receive(0).1[54..]);
        }
        assert!(payload == segment[54..], "{size}");
        driver.is_whole();
        drop(driver);
        bench.end();
    }
}

#[test]
fn a_frame_that_the_whole_ring_could_not_hold_holds_nobody() {
    let Some(bench) = Bench::plain() else {
        return;
    };
    // What was offered for larger rings has been taken for a small one.
    let mut driver = Driver::sized(bench.program.client().unwrap(), EVERYTHING, 16);
    assert!(driver.has(VIRTIO_NET_F_GUEST_TSO4));
    // The ring full, and half full, as Linux leaves it without posting anew.
    for posted in [8, 8] {
        driver.post(0, posted, 1530);
        // Each waited for 5 s, this would be the better part of an hour.
        for round in 0..20 {
            for _ in 0..20 {
                let (header, segment) = tcp(GUEST, 60_000, 1448);
                bench.wire.send(header, &segment);
            }
            bench.send(&frame(GUEST, 60, round));
            assert_eq!(driver.receive(0).1, frame(GUEST, 60, round));
        }
    }
    // One that fits is received whole.
    let (header, segment) = tcp(GUEST, 20_000, 1448);
    bench.wire.send(header, &segment);
    assert!(driver.receive(0).1 == segment);
    driver.is_whole();
    drop(driver);
    let words = bench.program.last_words().unwrap();
    assert!(
        words.contains(", 800 received and too large for the buffer"),
        "{words}"
    );
}

#[test]
fn a_stopped_ring_has_its_buffers_back_and_goes_on() {
    let Some(bench) = Bench::plain() else {
        return;
    };
    let mut driver = bench.ready(50);
    for round in 0..5u16 {
        let base = driver.client.stop_ring(0).unwrap();
        assert_eq!(base, driver.pairs[0].rx.used_idx().unwrap());
        assert_eq!(base, 3 * round);
        driver
            .client
            .start_ring(0, &driver.pairs[0].rx, base)
            .unwrap();
        for mark in 0..3 {
            bench.send(&frame(GUEST, 100, mark));
            assert_eq!(driver.receive(0).1, frame(GUEST, 100, mark));
        }
    }
    driver.is_whole();
}

#[test]
fn the_driver_says_what_it_wants_to_receive() {
    let Some(bench) = Bench::new("", &["--mtu=1400"]) else {
        return;
    };
    let mut driver = bench.ready(50);
    assert_eq!(
        driver.config(),
        NetConfig {
            mac: GUEST,
            status: 1,
            max_virtqueue_pairs: 1,
            mtu: 1400
        }
    );
    let other = [2, 0, 0, 0, 0, 9];
    let group = [1, 0, 0x5e, 0, 0, 9];
    let everyone = [0xff; 6];
    let passes = |driver: &mut Driver, to: [u8; 6], expected: bool| {
        bench.send(&frame(to, 100, 6));
        // Broadcast passes as long as this test needs it.
        bench.send(&frame(everyone, 60, 7));
        let first = driver.receive(0).1;
        if expected {
            assert_eq!(first, frame(to, 100, 6));
            assert_eq!(driver.receive(0).1, frame(everyone, 60, 7));
        } else {
            assert_eq!(first, frame(everyone, 60, 7));
        }
    };
    passes(&mut driver, other, true);
    assert_eq!(driver.command(&[0, 0, 0]), Some(0));
    passes(&mut driver, GUEST, true);
    passes(&mut driver, other, false);
    passes(&mut driver, group, false);
    assert_eq!(driver.command(&[0, 1, 1]), Some(0));
    passes(&mut driver, group, true);
    assert_eq!(driver.command(&[0, 1, 0]), Some(0));
    let table = [&[1, 0, 1, 0, 0, 0][..], &other, &[1, 0, 0, 0], &group].concat();
    assert_eq!(driver.command(&table), Some(0));
    passes(&mut driver, other, true);
    passes(&mut driver, group, true);
    assert_eq!(
        driver.command(&[&[1, 1][..], &[2, 0, 0, 0, 0, 8]].concat()),
        Some(0)
    );
    assert_eq!(driver.config().mac, [2, 0, 0, 0, 0, 8]);
    passes(&mut driver, GUEST, false);
    passes(&mut driver, [2, 0, 0, 0, 0, 8], true);
    drop(driver);
    // The next driver begins anew.
    let mut driver = bench.ready(50);
    assert_eq!(driver.config().mac, GUEST);
    passes(&mut driver, other, true);
}

/// Sends a frame from each of four pairs, and 64 flows to them: how many each
/// has got.
fn blast(driver: &mut Driver, bench: &Bench) -> [usize; 4] {
    for pair in 0..4 {
        driver.send(pair, &frame(HOST, 60 + pair, 8));
        assert_eq!(bench.wire.receive().1, frame(HOST, 60 + pair, 8));
    }
    receive_flows(driver, bench)
}

fn receive_flows(driver: &mut Driver, bench: &Bench) -> [usize; 4] {
    let mut count = [0; 4];
    for port in 0..64u8 {
        let (_, mut segment) = tcp(GUEST, 100, 0);
        segment[35] = port;
        bench.send(&segment);
    }
    let mut left = 64;
    let deadline = outboard_contract::soon();
    while left > 0 {
        for (pair, count) in count.iter_mut().enumerate() {
            // A frame from before may have been on its way still.
            let received = driver.try_receive(pair, Duration::ZERO);
            if received.is_some_and(|(_, bytes)| bytes.len() == 154) {
                *count += 1;
                left -= 1;
            }
        }
        assert!(!deadline.passed(), "{left} frames are missing");
    }
    count
}

/// A driver of four pairs that run, with buffers for all; its control queue is
/// started by the caller.
fn four_pairs(bench: &Bench, features: u64) -> Driver {
    let mut driver = Driver::negotiated(bench.program.client().unwrap(), features);
    for _ in 0..4 {
        driver.start_pair();
    }
    (0..4).for_each(|pair| driver.post(pair, 100, 1526));
    driver
}

/// Enables or disables rings.
fn enable(driver: &Driver, rings: Range<u32>, enabled: u32) {
    for ring in rings {
        let request = FrontendReq::SET_VRING_ENABLE;
        let answer = driver.client.vring_state(request, ring, enabled);
        assert_eq!(answer.unwrap(), Ack::Done);
    }
}

#[test]
fn several_pairs_share_the_frames_when_the_driver_asks_for_it() {
    let Some(bench) = Bench::of_four_pairs() else {
        return;
    };
    let mut driver = four_pairs(&bench, EVERYTHING);
    assert_eq!(driver.config().max_virtqueue_pairs, 4);
    driver.start_control();
    assert_eq!(blast(&mut driver, &bench), [64, 0, 0, 0]);
    for wrong in [0u16, 5, 0x8000, 0xffff] {
        let command = [&[4, 0][..], &wrong.to_le_bytes()].concat();
        assert_eq!(driver.command(&command), Some(1));
    }
    assert_eq!(driver.command(&[4, 0, 4, 0]), Some(0));
    assert!(pairs_used(&mut driver, &bench) > 1);
    // While frames flow.
    for turn in 0..50u8 {
        bench.send(&frame(GUEST, 100, turn));
        assert_eq!(driver.command(&[4, 0, 1 + turn % 4, 0]), Some(0));
        driver.send(usize::from(turn % 4), &frame(HOST, 60, turn));
        assert_eq!(bench.wire.receive().1, frame(HOST, 60, turn));
    }
    assert_eq!(driver.command(&[4, 0, 1, 0]), Some(0));
    assert_eq!(blast(&mut driver, &bench), [64, 0, 0, 0]);
    driver.is_whole();
}

#[test]
fn pairs_are_attached_as_their_rings_are_enabled_when_the_front_end_has_the_control_queue() {
    let Some(bench) = Bench::of_four_pairs() else {
        return;
    };
    let features = EVERYTHING & !bit(VIRTIO_NET_F_CTRL_VQ);
    let mut driver = four_pairs(&bench, features);
    assert!(pairs_used(&mut driver, &bench) > 1);
    // All but the first are turned off, as by a driver that wants one pair.
    enable(&driver, 2..8, 0);
    assert_eq!(receive_flows(&mut driver, &bench), [64, 0, 0, 0]);
    enable(&driver, 2..8, 1);
    assert!(pairs_used(&mut driver, &bench) > 1);
    driver.is_whole();
}

fn pairs_used(driver: &mut Driver, bench: &Bench) -> usize {
    let count = blast(driver, bench);
    count.iter().filter(|count| **count > 0).count()
}

#[test]
fn every_enabled_pair_is_used_when_the_front_end_keeps_the_control_queue_and_says_nothing_of_it() {
    let Some(bench) = Bench::of_four_pairs() else {
        return;
    };
    let mut driver = four_pairs(&bench, EVERYTHING);
    assert!(driver.has(VIRTIO_NET_F_CTRL_VQ) && driver.has(VIRTIO_NET_F_MQ));
    assert_eq!(pairs_used(&mut driver, &bench), 4);
    enable(&driver, 2..8, 0);
    assert_eq!(receive_flows(&mut driver, &bench), [64, 0, 0, 0]);
    enable(&driver, 2..8, 1);
    assert_eq!(pairs_used(&mut driver, &bench), 4);
    // It may bring the control queue after all.
    driver.start_control();
    assert_eq!(receive_flows(&mut driver, &bench), [64, 0, 0, 0]);
    driver.is_whole();
}

#[test]
fn no_pair_is_used_before_the_driver_has_commanded_it_once_the_control_queue_is_described() {
    let Some(bench) = Bench::of_four_pairs() else {
        return;
    };
    let mut driver = Driver::negotiated(bench.program.client().unwrap(), EVERYTHING);
    // All rings are described, and then enabled one after another, as by
    // Outboard's machine: the control queue last.
    let rings: Vec<_> = (0..9).map(|index| driver.described(index)).collect();
    driver.take_rings(rings);
    enable(&driver, 0..8, 1);
    for pair in 0..4 {
        driver.post(pair, 100, 1526);
    }
    assert_eq!(receive_flows(&mut driver, &bench), [64, 0, 0, 0]);
    enable(&driver, 8..9, 1);
    assert_eq!(receive_flows(&mut driver, &bench), [64, 0, 0, 0]);
    assert_eq!(driver.command(&[4, 0, 4, 0]), Some(0));
    assert_eq!(pairs_used(&mut driver, &bench), 4);
    // A command lasts while the rings rest: a VM that is paused.
    assert_eq!(driver.command(&[4, 0, 1, 0]), Some(0));
    let control = driver.control.take().unwrap();
    let base = driver.client.stop_ring(8).unwrap();
    assert_eq!(receive_flows(&mut driver, &bench), [64, 0, 0, 0]);
    driver.client.start_ring(8, &control, base).unwrap();
    driver.control = Some(control);
    assert_eq!(receive_flows(&mut driver, &bench), [64, 0, 0, 0]);
    driver.is_whole();
}

#[test]
fn a_driver_without_mq_finds_its_control_queue_after_the_first_pair() {
    let Some(bench) = Bench::new("multi_queue", &["--num-queues=2"]) else {
        return;
    };
    let mut driver = bench.driver(EVERYTHING & !bit(VIRTIO_NET_F_MQ));
    assert_eq!(driver.command(&[0, 0, 0]), Some(0));
    assert_eq!(driver.command(&[4, 0, 2, 0]), Some(1));
}

#[test]
fn a_tap_deleted_underneath_is_a_link_down_and_no_more() {
    if !own_network() {
        return;
    }
    for writes in [false, true] {
        make_tap("t0", "");
        let program = on_tap("t0", &[]);
        let mut driver = Driver::of(&program, EVERYTHING);
        let requests = driver.client.backend_requests().unwrap();
        driver.post(0, 50, 1526);
        driver.send(0, &frame(HOST, 60, 1));
        assert_eq!(driver.config().status, 1);
        if writes {
            driver.client.stop_ring(0).unwrap();
        }
        ip("link del t0");
        if writes {
            driver.send(0, &frame(HOST, 60, 1));
        }
        link_becomes(&requests, &driver, 0);
        for _ in 0..200 {
            driver.send(0, &frame(HOST, 60, 1));
        }
        assert_eq!(driver.command(&[0, 0, 1]), Some(0));
        driver.is_whole();
        drop(driver);
        let driver = Driver::of(&program, EVERYTHING);
        assert_eq!(driver.config().status, 0);
        assert!(program.is_alive());
        let log = program.said();
        assert_eq!(log.matches("sees its link down").count(), 1, "{log}");
    }
}

#[test]
fn a_tap_that_is_turned_off_is_a_link_down_until_it_is_turned_on() {
    if !own_network() {
        return;
    }
    make_tap("t0", "");
    ip("link set t0 down");
    // It may be off from the beginning.
    let program = on_tap("t0", &[]);
    let mut driver = Driver::of(&program, EVERYTHING);
    let requests = driver.client.backend_requests().unwrap();
    driver.post(0, 50, 1526);
    assert_eq!(driver.config().status, 0);
    for (off, on) in [
        ("link set t0 down", "link set t0 up"),
        ("link set t0 carrier off", "link set t0 carrier on"),
    ] {
        ip(on);
        ip("link set t0 up");
        link_becomes(&requests, &driver, 1);
        let wire = Wire::new("t0", false);
        driver.send(0, &frame(HOST, 60, 1));
        assert_eq!(wire.receive().1, frame(HOST, 60, 1));
        wire.send(Header::default(), &frame(GUEST, 60, 2));
        assert_eq!(driver.receive(0).1, frame(GUEST, 60, 2));
        ip(off);
        link_becomes(&requests, &driver, 0);
        driver.send(0, &frame(HOST, 60, 3));
    }
    // What happens to others is no news.
    make_tap("t1", "");
    ip("link set t1 down");
    ip("link del t0");
    program.says(&["it was deleted"]).unwrap();
    let log = program.said();
    assert_eq!(log.matches("sees its link down").count(), 4, "{log}");
    assert_eq!(log.matches("sees its link up").count(), 2, "{log}");
    assert_eq!(driver.config().status, 0);
    assert!(program.is_alive());
    driver.is_whole();
}

#[test]
fn a_tap_that_cannot_be_had_is_refused_with_what_to_do() {
    if !own_network() {
        return;
    }
    make_tap("single", "");
    make_tap("multi", "multi_queue");
    make_tap("full", "multi_queue");
    ip("tuntap add dev tun0 mode tun");
    let _most = outboard_protocol::tap::open("full", 255).unwrap();
    let refused = |arguments: &[&str], words: &str| {
        start(arguments).ends_with(1, words).unwrap();
    };
    for (arguments, words) in [
        (
            &["--tap=none"][..],
            "tap none does not exist; `ip tuntap add",
        ),
        (&["--tap=lo"], "lo is not a tap"),
        (&["--tap=tun0"], "tun0 is not a tap"),
        (
            &["--tap=full", "--num-queues=3"],
            "tap full is busy: of 3 queues only 1 are free",
        ),
        (
            &["--tap=single", "--num-queues=2"],
            "tap single has one queue only; make it with `multi_queue`",
        ),
        (&["--tap-fd=77"], "descriptor 77"),
        (
            &["--peer=/nowhere/peer"],
            "no peer listens at /nowhere/peer",
        ),
    ] {
        refused(arguments, words);
    }
    let holder = on_tap("single", &[]);
    let driver = Driver::of(&holder, 0);
    refused(&["--tap=single"], "tap single is busy");
    drop(driver);
    // A tap of several queues serves one as well.
    let program = on_tap("multi", &[]);
    assert_eq!(
        Driver::of(&program, EVERYTHING)
            .config()
            .max_virtqueue_pairs,
        1
    );
}

#[test]
fn rights_are_named_when_they_are_missing() {
    if !own_network() {
        return;
    }
    make_tap("t0", "user 1234");
    // Root without the one capability that matters.
    let script = "exec setpriv --bounding-set=-net_admin --inh-caps=-net_admin \"$@\"";
    let mut command = by_shell(script, support::program(), &["--tap=t0"]);
    let mut program = Program::serve(&mut command).unwrap();
    if program.wait().unwrap().code() == Some(127) {
        println!("SKIP: there is no setpriv");
        return;
    }
    let error = program.ends_with(1, "tap t0 may not be used").unwrap();
    assert!(
        error.contains("run as root or with CAP_NET_ADMIN"),
        "{error}"
    );
}

/// Opens the tap as a stranger does who sets nothing, with as many queues: it is
/// as new, lets every frame through, cut and after a header of 10 bytes.
fn is_as_new(name: &str, queues: u16) {
    let tap = outboard_protocol::tap::open(name, queues).unwrap();
    let wire = Wire::new(name, true);
    let other = [2, 0, 0, 0, 0, 9];
    wire.send(Header::default(), &frame(other, 100, 6));
    let (header, segment) = tcp(other, 3000, 1000);
    wire.send(header, &segment);
    let lengths = [100, 1054, 1054, 1054].map(|frame| frame + 10);
    // Which flow has which queue is the kernel's affair.
    let mut found = Vec::new();
    let deadline = outboard_contract::soon();
    while found.len() < lengths.len() {
        let mut bytes = [0; 4096];
        for queue in &tap {
            if let Ok(length) = nix::unistd::read(queue, &mut bytes) {
                assert_eq!(bytes[..10], [0; 10], "a header that asks for nothing");
                assert_eq!(bytes[10..16], other);
                found.push(length);
            }
        }
        assert!(!deadline.passed(), "{found:?}");
    }
    found.sort_unstable();
    assert_eq!(found, lengths);
}

#[test]
fn what_was_set_of_a_tap_is_taken_back_at_the_end() {
    if !own_network() {
        return;
    }
    // Each by a name of its own, and none is deleted: a child that another test starts
    // may hold a copy of the descriptor by which one was looked at, and with that the
    // tap, for a moment. They go with the test's network.
    let taps = [
        ("t0", "", 1),
        ("t1", "multi_queue", 1),
        ("t2", "multi_queue", 4),
    ];
    for (name, kind, queues) in taps {
        make_tap(name, kind);
        let program = on_tap(name, &[&format!("--num-queues={queues}")]);
        let mut driver = Driver::of(&program, EVERYTHING);
        // No frames but the driver's own.
        assert_eq!(driver.command(&[0, 0, 0]), Some(0));
        drop(driver);
        drop(program);
        is_as_new(name, queues);
    }
}

#[test]
fn a_tap_whose_user_was_killed_is_set_up_anew_and_taken_back_by_the_next() {
    let Some(mut bench) = Bench::plain() else {
        return;
    };
    let mut driver = bench.driver(EVERYTHING);
    assert_eq!(driver.command(&[0, 0, 0]), Some(0));
    bench.program.kill().unwrap();
    drop(driver);
    let bench = bench.anew();
    let mut driver = bench.driver(EVERYTHING & !bit(VIRTIO_NET_F_CTRL_VQ));
    driver.post(0, 50, 1526);
    let other = [2, 0, 0, 0, 0, 9];
    bench.send(&frame(other, 100, 6));
    assert_eq!(driver.receive(0).1, frame(other, 100, 6));
    drop(driver);
    drop(bench);
    is_as_new("t0", 1);
}

#[test]
fn a_tap_of_which_another_has_a_queue_is_left_as_it_is() {
    if !own_network() {
        return;
    }
    make_tap("t0", "multi_queue");
    // It stands for a VM that was started twice.
    let first = outboard_protocol::tap::open("t0", 2).unwrap();
    let program = on_tap("t0", &["--num-queues=2"]);
    let mut driver = Driver::of(&program, EVERYTHING);
    assert_eq!(driver.command(&[0, 0, 0]), Some(0));
    drop((driver, program));
    let wire = Wire::new("t0", false);
    for port in 0..16 {
        let (_, mut segment) = tcp(GUEST, 100, 0);
        segment[35] = port;
        wire.send(Header::default(), &segment);
    }
    let (mut found, deadline) = (0, outboard_contract::soon());
    while found < 16 {
        for queue in &first {
            let mut bytes = [0; 4096];
            if let Ok(length) = nix::unistd::read(queue, &mut bytes) {
                assert_eq!((length, &bytes[12..18]), (12 + 154, &GUEST[..]));
                found += 1;
            }
        }
        assert!(!deadline.passed(), "{found} frames");
    }
}

#[test]
fn a_tap_that_a_supervisor_has_lent_is_left_to_it() {
    if !own_network() {
        return;
    }
    make_tap("t0", "");
    let queue = outboard_protocol::tap::open("t0", 1).unwrap();
    for (supervised, header) in [(true, 12), (false, 10)] {
        let tap = queue[0].try_clone().unwrap();
        let arguments = ["--tap-fd=9", "--mac=02:00:00:00:00:01"];
        let mut command = lent(tap, support::program(), &arguments).unwrap();
        if supervised {
            command.env("OUTBOARD_LAUNCH", "1");
        }
        let program = Program::serve(&mut command).unwrap();
        drop(Driver::of(&program, EVERYTHING));
        program.last_words().unwrap();
        let wire = Wire::new("t0", false);
        wire.send(Header::default(), &frame(GUEST, 100, 6));
        let mut bytes = [0; 4096];
        assert_eq!(
            nix::unistd::read(queue[0].as_fd(), &mut bytes),
            Ok(header + 100)
        );
    }
}

#[test]
fn nothing_in_the_configuration_can_be_written() {
    let Some(bench) = Bench::plain() else {
        return;
    };
    let driver = bench.driver(EVERYTHING);
    assert_eq!(driver.client.set_config(0, &[2; 6]).unwrap(), Ack::Refused);
    let queues: u64 = driver
        .client
        .ask(FrontendReq::GET_QUEUE_NUM, &[])
        .unwrap()
        .body()
        .unwrap();
    assert_eq!(queues, 3);
}
