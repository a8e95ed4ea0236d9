//! The program with a line to a supervisor, which has what is behind the card.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "these are tests"
)]

mod support;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use outboard_contract::soon;
use outboard_protocol::Deadline;
use outboard_protocol::kept::{CardState, Kept};
use outboard_protocol::launch::{Channel, FromBackend, Link, ToBackend};
use support::*;

/// A program with a line, which is ready.
fn supervised(kept: CardState, link: Link, arguments: &[&str]) -> (Program, Channel) {
    support::supervised(&start_with(Kept::Card(kept), link, false), None, arguments)
}

fn next(line: &Channel) -> FromBackend {
    line.recv(soon()).unwrap().expect("it is open").0
}

/// What has been said by now.
fn now(line: &Channel) -> Option<FromBackend> {
    let heard = line.recv::<FromBackend>(Deadline::after(Duration::ZERO));
    heard.ok().map(|heard| heard.expect("it is open").0)
}

#[test]
fn a_peer_comes_by_the_line_and_another_when_it_has_gone() {
    let nowhere = ["--peer=/nowhere/at/all"];
    let (program, line) = supervised(CardState::default(), Link::Up, &nowhere);
    assert_eq!(program.outside(), None, "it is one process");
    let mut driver = Driver::of(&program, EVERYTHING);
    let requests = driver.client.backend_requests().unwrap();
    driver.post(0, 50, 1526);
    assert_eq!(driver.config().status, 0);
    for mark in 0..3 {
        while next(&line) != FromBackend::WantsPeer {}
        let (ours, theirs) = UnixStream::pair().unwrap();
        line.send(&ToBackend::Peer, &[theirs.as_fd()], soon())
            .unwrap();
        drop(theirs);
        let mut peer = patient(ours).unwrap();
        link_becomes(&requests, &driver, 1);
        driver.send(0, &frame(HOST, 60, mark));
        let mut frames = [0; 64];
        peer.read_exact(&mut frames).unwrap();
        assert_eq!(frames[4..], frame(HOST, 60, mark));
        peer.write_all(&[&[0, 0, 0, 60][..], &frame(GUEST, 60, mark)].concat())
            .unwrap();
        assert_eq!(driver.receive(0).1, frame(GUEST, 60, mark));
        // Nobody has asked for another, so that is let go.
        let (stranger, theirs) = UnixStream::pair().unwrap();
        line.send(&ToBackend::Peer, &[theirs.as_fd()], soon())
            .unwrap();
        drop(theirs);
        assert_eq!(patient(stranger).unwrap().read(&mut [0]).unwrap(), 0);
        drop(peer);
        link_becomes(&requests, &driver, 0);
    }
    program
        .says(&[
            "WARN peer /nowhere/at/all",
            "until it can be connected to again",
        ])
        .unwrap();
    program
        .says(&["WARN peer /nowhere/at/all: connected again"])
        .unwrap();
    driver.is_whole();
}

#[test]
fn a_command_is_told_before_it_is_answered() {
    let nowhere = ["--peer=/nowhere/at/all"];
    let (program, line) = supervised(CardState::default(), Link::Up, &nowhere);
    let mut driver = Driver::of(&program, EVERYTHING);
    assert_eq!(driver.command(&[0, 0, 1]), Some(0));
    // What the beginning of a driver has changed.
    while now(&line).is_some() {}
    for promiscuous in [false, true] {
        for told in [true, false] {
            assert_eq!(driver.command(&[0, 0, promiscuous.into()]), Some(0));
            match now(&line) {
                Some(FromBackend::Keeps {
                    kept: Kept::Card(kept),
                }) if told => {
                    assert_eq!(kept.modes.promiscuous, promiscuous);
                    assert_eq!(kept.pairs, Some(1));
                }
                other => assert!(!told && other.is_none(), "{other:?}"),
            }
        }
    }
}

#[test]
fn a_successor_is_what_its_predecessor_was() {
    let kept = CardState {
        mac: Some([2, 0, 0, 0, 0, 9]),
        ..CardState::default()
    };
    let arguments = ["--peer=/nowhere/at/all", "--mac=02:00:00:00:00:01"];
    for (kept, mac) in [(kept, 9), (CardState::default(), 1)] {
        let (program, _line) = supervised(kept, Link::Up, &arguments);
        let driver = Driver::of(&program, EVERYTHING);
        assert_eq!(driver.config().mac[5], mac);
    }
}

#[test]
fn the_link_of_a_tap_is_what_the_supervisor_says() {
    if !own_network() {
        return;
    }
    make_tap("t0", "");
    let (program, line) = supervised(CardState::default(), Link::Down, &["--tap=t0"]);
    let driver = Driver::of(&program, EVERYTHING);
    let requests = driver.client.backend_requests().unwrap();
    link_becomes(&requests, &driver, 0);
    for (link, status) in [
        (Link::Up, 1),
        (Link::NoCarrier, 0),
        // It is there, so it is in another network.
        (Link::Gone, 1),
        (Link::Down, 0),
    ] {
        line.send(&ToBackend::Link { link }, &[], soon()).unwrap();
        link_becomes(&requests, &driver, status);
    }
    // Nobody watches it here.
    ip("link set t0 down");
    ip("link set t0 up");
    assert_eq!(driver.config().status, 0);
}
