//! The program while another process serves its card, and once it has taken over from
//! that one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "these are tests"
)]

mod support;

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use outboard_contract::soon;
use outboard_net::header::Header;
use outboard_protocol::Deadline;
use outboard_protocol::kept::{CardState, Kept};
use outboard_protocol::launch::{Channel, FromBackend, Link, ToBackend};
use outboard_protocol::tap;
use outboard_protocol::wire::Connection;
use support::*;

/// A peer that is a name, as under a supervisor.
const NOWHERE: &str = "--peer=/nowhere/at/all";
const MAC: &str = "--mac=02:00:00:00:00:01";

fn waits(lent: OwnedFd, arguments: &[&str]) -> (Program, Channel) {
    let start = start_with(Kept::Nothing, Link::Up, true);
    supervised(&start, Some(lent), arguments)
}

/// Waits for a card with this peer, as a supervisor starts it.
fn waits_for_a_peer() -> (Program, Channel) {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let (family, flags) = (AddressFamily::Unix, SockFlag::SOCK_CLOEXEC);
    let nobody = socket(family, SockType::Stream, flags, None).unwrap();
    waits(nobody, &["--peer-fd=8", NOWHERE, MAC])
}

fn take_over(line: &Channel, kept: Kept) {
    let replay = Default::default();
    let message = ToBackend::TakeOver { kept, replay };
    line.send(&message, &[], soon()).unwrap();
}

/// The next that is said, but for what a card keeps.
fn says(line: &Channel) -> FromBackend {
    loop {
        match line.recv(soon()).unwrap().expect("it is open").0 {
            FromBackend::Keeps { .. } => {}
            other => return other,
        }
    }
}

/// Nothing has been said by now.
fn is_silent(line: &Channel) -> bool {
    line.recv::<FromBackend>(Deadline::after(Duration::ZERO))
        .is_err()
}

/// The driver of a card that takes over: its rings begin, with buffers.
fn begins(driver: &mut Driver) {
    driver.start_pair();
    driver.start_control();
    driver.post(0, 50, 1526);
}

fn negotiated(program: &Program) -> (Driver, Connection) {
    let driver = Driver::negotiated(program.client().unwrap(), EVERYTHING);
    let requests = driver.client.backend_requests().unwrap();
    (driver, requests)
}

#[test]
fn a_standby_on_a_tap_takes_nothing_and_changes_nothing_until_it_takes_over() {
    if !own_network() {
        return;
    }
    make_tap("t0", "");
    let queue = tap::open("t0", 1).unwrap().remove(0);
    let copy = || queue.try_clone().unwrap();
    let start = start_with(Kept::Nothing, Link::Up, false);
    let (first, line) = supervised(&start, Some(copy()), &["--tap-fd=8", MAC]);
    let mut before = Driver::of(&first, EVERYTHING);
    before.post(0, 50, 1526);
    assert_eq!(before.command(&[0, 0, 0]), Some(0), "not promiscuous");

    let (second, other) = waits(copy(), &["--tap-fd=8", MAC]);
    let (mut after, _requests) = negotiated(&second);
    assert_eq!(after.features, before.features);
    assert_eq!(after.config(), before.config());
    let ring = after.fresh_ring(0x1000, 128);
    assert!(after.client.start_ring(0, &ring, 0).is_err());
    after.client.stop_ring(0).unwrap();
    let wire = Wire::new("t0", true);
    for mark in 0..20 {
        wire.send(Header::default(), &frame([2, 0, 0, 0, 0, 9], 100, mark));
        let (header, segments) = tcp(GUEST, 5000, 1000);
        wire.send(header, &segments);
        assert!(before.receive(0).1 == segments, "whole, and no stranger's");
        before.send(0, &frame(HOST, 60, mark));
        assert_eq!(wire.receive().1, frame(HOST, 60, mark));
    }
    assert!(is_silent(&other));
    let mut kept = Kept::Nothing;
    while let Ok(Some((FromBackend::Keeps { kept: told }, _))) =
        line.recv(Deadline::after(Duration::ZERO))
    {
        kept = told;
    }

    drop((before, first));
    take_over(&other, kept.clone());
    // What came meanwhile is there.
    wire.send(Header::default(), &frame([2, 0, 0, 0, 0, 9], 100, 1));
    wire.send(Header::default(), &frame(GUEST, 100, 2));
    begins(&mut after);
    assert_eq!(after.receive(0).1, frame(GUEST, 100, 2));
    let (header, segments) = tcp(GUEST, 5000, 1000);
    wire.send(header, &segments);
    assert!(after.receive(0).1 == segments);
    after.send(0, &frame(HOST, 60, 3));
    assert_eq!(wire.receive().1, frame(HOST, 60, 3));
    after.is_whole();
}

#[test]
fn rings_that_begin_again_have_the_tap_as_their_driver_had_it() {
    if !own_network() {
        return;
    }
    make_tap("t0", "");
    let queues = tap::open("t0", 1).unwrap();
    let start = start_with(Kept::Nothing, Link::Up, false);
    let lent = queues[0].try_clone().unwrap();
    let (program, _line) = supervised(&start, Some(lent), &["--tap-fd=8", MAC]);
    let mut driver = Driver::of(&program, EVERYTHING);
    driver.post(0, 50, 1526);
    assert_eq!(driver.command(&[0, 0, 0]), Some(0), "not promiscuous");
    let wire = Wire::new("t0", true);
    for round in 0..3 {
        let bases = [0, 1, 2].map(|index| driver.client.stop_ring(index).unwrap());
        // Another process has served the card, and is gone.
        tap::make_as_new(&queues).unwrap();
        let control = driver.control.as_ref().unwrap();
        let rings = [&driver.pairs[0].rx, &driver.pairs[0].tx, control];
        for ((index, ring), base) in (0..).zip(rings).zip(bases) {
            driver.client.start_ring(index, ring, base).unwrap();
        }
        wire.send(Header::default(), &frame([2, 0, 0, 0, 0, 9], 100, round));
        let (header, segments) = tcp(GUEST, 5000, 1000);
        wire.send(header, &segments);
        assert!(driver.receive(0).1 == segments, "whole, and no stranger's");
        driver.send(0, &frame(HOST, 60, round));
        assert_eq!(wire.receive().1, frame(HOST, 60, round));
    }
    driver.is_whole();
}

/// The driver sees its link up all the time, and hears of no change.
#[test]
fn a_standby_wants_a_peer_once_it_has_taken_over_and_the_link_stays_up() {
    let (program, line) = waits_for_a_peer();
    let (mut driver, requests) = negotiated(&program);
    assert_eq!(driver.config().status, 1);
    assert!(is_silent(&line));
    take_over(&line, Kept::Card(CardState::default()));
    begins(&mut driver);
    assert_eq!(says(&line), FromBackend::WantsPeer);
    assert_eq!(driver.config().status, 1);
    // There is nobody to take it.
    driver.send(0, &frame(HOST, 60, 1));
    let (ours, theirs) = UnixStream::pair().unwrap();
    line.send(&ToBackend::Peer, &[theirs.as_fd()], soon())
        .unwrap();
    drop(theirs);
    let mut peer = patient(ours).unwrap();
    peer.write_all(&[&[0, 0, 0, 60][..], &frame(GUEST, 60, 2)].concat())
        .unwrap();
    assert_eq!(driver.receive(0).1, frame(GUEST, 60, 2));
    driver.send(0, &frame(HOST, 60, 3));
    let mut frames = [0; 64];
    peer.read_exact(&mut frames).unwrap();
    assert_eq!(frames[4..], frame(HOST, 60, 3));
    // From here on it is a card like any other, whose first change this is.
    drop(peer);
    requests.recv(soon()).unwrap();
    assert_eq!(driver.config().status, 0);
    assert_eq!(says(&line), FromBackend::WantsPeer);
    driver.is_whole();
}

#[test]
fn a_peer_that_does_not_come_after_a_while_is_a_link_down() {
    let (program, line) = waits_for_a_peer();
    let (mut driver, requests) = negotiated(&program);
    take_over(&line, Kept::Nothing);
    begins(&mut driver);
    link_becomes(&requests, &driver, 0);
    assert_eq!(says(&line), FromBackend::WantsPeer);
    program
        .says(&["WARN peer /nowhere", "none has come since", "link down"])
        .unwrap();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    line.send(&ToBackend::Peer, &[theirs.as_fd()], soon())
        .unwrap();
    link_becomes(&requests, &driver, 1);
    driver.is_whole();
}
