//! The program with a peer on a stream socket instead of a tap.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "these are tests"
)]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use outboard_net::header::Header;
use support::*;
use virtio_bindings::virtio_net::*;

fn put(peer: &mut UnixStream, frame: &[u8]) {
    let length = (frame.len() as u32).to_be_bytes();
    peer.write_all(&[&length[..], frame].concat()).unwrap();
}

fn get(peer: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    peer.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    peer.read_exact(&mut frame).unwrap();
    frame
}

#[test]
fn frames_of_every_length_pass_both_ways_unchanged() {
    for (features, size) in [(EVERYTHING, 1526), (EVERYTHING, 100), (0, 1600)] {
        let (program, mut peer) = connected();
        let mut driver = Driver::of(&program, features);
        for offload in [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_MQ,
        ] {
            assert!(!driver.has(offload));
        }
        driver.post(0, 100, size);
        for length in 14..=1514 {
            driver.send(0, &frame(HOST, length, 1));
            assert!(get(&mut peer) == frame(HOST, length, 1), "{length}");
            put(&mut peer, &frame(GUEST, length, 2));
            let (header, found) = driver.receive(0);
            assert!(found == frame(GUEST, length, 2), "{length}");
            assert_eq!((header.flags, header.gso_type), (0, 0));
        }
        driver.is_whole();
    }
}

#[test]
fn frames_cut_anywhere_and_many_at_once_arrive_whole() {
    let (program, mut peer) = connected();
    let mut driver = Driver::of(&program, EVERYTHING);
    driver.post(0, 120, 1526);
    let mut bytes = Vec::new();
    for length in 14..400usize {
        bytes.extend((length as u32).to_be_bytes());
        bytes.extend(frame(GUEST, length, 3));
    }
    // Too short for a frame: passed over.
    bytes.extend([0, 0, 0, 3, 1, 2, 3, 0, 0, 0, 0]);
    bytes.extend([0, 0, 0, 60]);
    bytes.extend(frame(GUEST, 60, 4));
    let mut writer = peer.try_clone().unwrap();
    let thread = std::thread::spawn(move || {
        let mut rest = &bytes[..];
        for size in [1, 3, 700, 2, 5000, 13].iter().cycle() {
            let (now, later) = rest.split_at(rest.len().min(*size));
            writer.write_all(now).unwrap();
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
    });
    for length in 14..400 {
        assert!(driver.receive(0).1 == frame(GUEST, length, 3), "{length}");
    }
    assert!(driver.receive(0).1 == frame(GUEST, 60, 4));
    thread.join().unwrap();
    // The largest there are, and one that waits for buffers.
    let large = frame(GUEST, 65_553, 5);
    put(&mut peer, &large);
    assert!(driver.receive(0).1 == large);
    driver.send(0, &frame(HOST, 60, 1));
    assert!(get(&mut peer) == frame(HOST, 60, 1));
}

#[test]
fn a_frame_that_the_whole_ring_could_not_hold_holds_nobody() {
    let (program, mut peer) = connected();
    let mut driver = Driver::sized(program.client().unwrap(), EVERYTHING, 16);
    for posted in [8, 8] {
        driver.post(0, posted, 1530);
        // Each waited for 5 s, this would be more than a quarter of an hour.
        for mark in 0..20 {
            for _ in 0..5 {
                put(&mut peer, &frame(GUEST, 60_000, 1));
            }
            put(&mut peer, &frame(GUEST, 60, mark));
            assert_eq!(driver.receive(0).1, frame(GUEST, 60, mark));
        }
    }
    driver.is_whole();
    drop(driver);
    let words = program.last_words().unwrap();
    assert!(
        words.contains(", 200 received and too large for the buffer"),
        "{words}"
    );
}

#[test]
fn a_frame_larger_than_all_there_will_ever_be_is_dropped_and_counted() {
    let (program, mut peer) = connected();
    let mut driver = Driver::of(&program, EVERYTHING);
    driver.post(0, 4, 100);
    put(&mut peer, &frame(GUEST, 9000, 1));
    put(&mut peer, &frame(GUEST, 60, 2));
    assert_eq!(driver.receive(0).1, frame(GUEST, 60, 2));
    driver.is_whole();
    drop(driver);
    let words = program.last_words().unwrap();
    assert!(words.contains(", 1 received and too large for the buffer"));
}

#[test]
fn a_peer_that_reads_slowly_loses_nothing() {
    let (program, mut peer) = connected();
    let mut driver = Driver::of(&program, EVERYTHING);
    let mut expected = Vec::new();
    // Far more than the socket holds; the ring holds the rest.
    let old = driver.pairs[0].tx.next_avail;
    for slot in 0..40 {
        let content = frame(HOST, 20_000, slot as u8);
        driver.queue_frame(0, slot, Header::default(), &content);
        expected.push(content);
    }
    driver.pairs[0].tx.announce(old).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(driver.pairs[0].tx.used_idx().unwrap() < 40);
    // A stop in the midst of it finds a consistent ring.
    let base = driver.client.stop_ring(1).unwrap();
    assert_eq!(base, driver.pairs[0].tx.used_idx().unwrap());
    driver
        .client
        .start_ring(1, &driver.pairs[0].tx, base)
        .unwrap();
    for content in &expected {
        assert!(get(&mut peer) == *content);
        driver.sent(0);
    }
    driver.is_whole();
}

#[test]
fn the_peers_end_is_a_link_down_and_the_next_peer_brings_it_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peer");
    let program = start(&[&format!("--peer={},listen", path.display())]);
    let mut driver = Driver::of(&program, EVERYTHING);
    let requests = driver.client.backend_requests().unwrap();
    driver.post(0, 50, 1526);
    assert_eq!(driver.config().status, 0);
    driver.send(0, &frame(HOST, 60, 0));
    for mark in 1..4u8 {
        let mut peer = patient(UnixStream::connect(&path).unwrap()).unwrap();
        link_becomes(&requests, &driver, 1);
        driver.send(0, &frame(HOST, 60, mark));
        assert!(get(&mut peer) == frame(HOST, 60, mark));
        put(&mut peer, &frame(GUEST, 60, mark));
        assert!(driver.receive(0).1 == frame(GUEST, 60, mark));
        // Half a frame, which is lost with its sender; or nonsense.
        let last: &[u8] = match mark {
            1 => &[0, 0, 1, 0, 9, 9, 9],
            2 => &[0xff; 100],
            _ => &[],
        };
        peer.write_all(last).unwrap();
        if mark != 2 {
            drop(peer);
        }
        link_becomes(&requests, &driver, 0);
        driver.send(0, &frame(HOST, 60, mark));
    }
    driver.is_whole();
    assert!(program.is_alive());
}

#[test]
fn a_peer_that_listens_again_is_connected_to_again() {
    let (program, mut peer) = connected();
    let path = program.folder().join("peer");
    let mut driver = Driver::of(&program, EVERYTHING);
    let requests = driver.client.backend_requests().unwrap();
    driver.post(0, 50, 1526);
    driver.send(0, &frame(HOST, 60, 0));
    assert!(get(&mut peer) == frame(HOST, 60, 0));
    drop(peer);
    link_becomes(&requests, &driver, 0);
    std::fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let mut peer = patient(listener.accept().unwrap().0).unwrap();
    link_becomes(&requests, &driver, 1);
    driver.send(0, &frame(HOST, 60, 1));
    assert!(get(&mut peer) == frame(HOST, 60, 1));
    put(&mut peer, &frame(GUEST, 60, 2));
    assert!(driver.receive(0).1 == frame(GUEST, 60, 2));
    let log = program.said();
    assert_eq!(log.matches("sees its link down").count(), 1, "{log}");
    assert_eq!(log.matches("sees its link up").count(), 1, "{log}");
    // Whoever sees warnings alone learns of both.
    let mut told = log.lines().filter(|line| line.contains("sees its link"));
    assert!(told.all(|line| line.contains(": WARN peer ")), "{log}");
    driver.is_whole();
}

#[test]
fn a_peer_that_goes_while_frames_are_sent_to_it_is_a_link_down() {
    let (program, peer) = connected();
    let mut driver = Driver::of(&program, EVERYTHING);
    let requests = driver.client.backend_requests().unwrap();
    assert_eq!(driver.config().status, 1);
    driver.client.stop_ring(0).unwrap();
    // Not by closing it: of its descriptor, a process that another test is just
    // starting has a copy until its exec, and nothing is sent after these two.
    peer.shutdown(std::net::Shutdown::Both).unwrap();
    driver.send(0, &frame(HOST, 60, 1));
    driver.send(0, &frame(HOST, 60, 1));
    link_becomes(&requests, &driver, 0);
    driver.is_whole();
    assert!(program.is_alive());
}

#[test]
fn a_peer_that_goes_is_a_link_down_without_a_single_buffer() {
    let (program, peer) = connected();
    let driver = Driver::of(&program, EVERYTHING);
    let requests = driver.client.backend_requests().unwrap();
    assert_eq!(driver.config().status, 1);
    drop(peer);
    link_becomes(&requests, &driver, 0);
    driver.is_whole();
    assert!(program.is_alive());
}

#[test]
fn last_frames_wait_for_buffers_and_not_for_ever() {
    for late in [true, false] {
        let (program, mut peer) = connected();
        let mut driver = Driver::of(&program, EVERYTHING);
        let requests = driver.client.backend_requests().unwrap();
        assert_eq!(driver.config().status, 1);
        for mark in 0..3 {
            put(&mut peer, &frame(GUEST, 60, mark));
        }
        drop(peer);
        if late {
            // Two of them come to wait for what the driver gives again.
            driver.post(0, 1, 1526);
            for mark in 0..3 {
                assert!(driver.receive(0).1 == frame(GUEST, 60, mark));
            }
        }
        link_becomes(&requests, &driver, 0);
        driver.is_whole();
        assert!(program.is_alive());
    }
}

#[test]
fn a_queue_that_was_not_negotiated_is_there_and_does_nothing() {
    let (program, mut peer) = connected();
    let mut driver = Driver::of(&program, 0);
    driver.control = Some(driver.ring(2, 16));
    assert_eq!(driver.command(&[0, 0, 1]), None);
    driver.send(0, &frame(HOST, 60, 1));
    assert!(get(&mut peer) == frame(HOST, 60, 1));
    driver.is_whole();
    assert!(program.is_alive());
}

#[test]
fn two_of_them_talk_to_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peer");
    let first = start(&[&format!("--peer={},listen", path.display())]);
    let mut one = Driver::of(&first, EVERYTHING);
    one.post(0, 100, 1526);
    let second = start(&[&format!("--peer={}", path.display())]);
    let mut two = Driver::of(&second, EVERYTHING);
    two.post(0, 100, 1526);
    while one.config().status == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    for length in 14..200 {
        one.send(0, &frame(HOST, length, 1));
        assert!(two.receive(0).1 == frame(HOST, length, 1));
        two.send(0, &frame(HOST, length, 2));
        assert!(one.receive(0).1 == frame(HOST, length, 2));
    }
}
