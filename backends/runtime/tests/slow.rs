//! A device that takes its time: a write to its configuration, and requests of a
//! ring that is to be stopped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_contract::client::Ack;
use outboard_contract::ring::Ring;
use outboard_runtime::session::{End, Limits};
use support::*;
use vhost::vhost_user::message::FrontendReq;

/// Lines that were logged, of all tests here.
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Logged;

impl log::Log for Logged {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{} {}", record.level(), record.args());
        LOGGED.lock().unwrap().push(line);
    }
    fn flush(&self) {}
}

fn says(words: &[&str]) {
    let has = |line: &String| words.iter().all(|word| line.contains(word));
    wait(|| LOGGED.lock().unwrap().iter().any(has));
}

fn session(drain: Duration) -> Session {
    // Refused the second time, when another test was first.
    let _ = log::set_logger(&Logged);
    log::set_max_level(log::LevelFilter::Warn);
    let limits = Limits {
        poll: Duration::ZERO,
        drain,
        ..Limits::default()
    };
    let mut session = Session::within(1, limits);
    session.client.negotiate(VERSION_1).unwrap();
    session
}

/// Sends the write, asks for an answer, and waits until it has begun.
fn begin(session: &Session, byte: u8) {
    let before = session.knobs.preparing.load(Ordering::SeqCst);
    send(session, byte);
    wait(|| session.knobs.preparing.load(Ordering::SeqCst) > before);
}

fn send(session: &Session, byte: u8) {
    use outboard_protocol::wire::Header;
    let header = Header::request(FrontendReq::SET_CONFIG.into()).with_need_reply();
    let mut payload = [SLOW, 1, 0].map(u32::to_ne_bytes).concat();
    payload.push(byte);
    session.client.send(header, &payload, &[]).unwrap();
}

fn answer(session: &Session) -> Ack {
    let request = FrontendReq::SET_CONFIG.into();
    session.client.acknowledgement(request).unwrap()
}

fn open(session: &Session) {
    session.knobs.gate.store(true, Ordering::SeqCst);
}

fn config(session: &Session) -> Vec<u8> {
    session.client.config(0, 4).unwrap()
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_write_that_takes_its_time_is_answered_when_it_is_done_and_what_follows_waits() {
    let session = session(LONG);
    begin(&session, 9);
    // Obeyed in order: nothing is answered before the write is.
    let unasked = outboard_protocol::wire::Header::request(FrontendReq::GET_QUEUE_NUM.into());
    session.client.send(unasked, &[], &[]).unwrap();
    let mut fds = [PollFd::new(
        session.client.connection.as_fd(),
        PollFlags::POLLIN,
    )];
    let silent = poll(&mut fds, PollTimeout::from(50u8)).unwrap() == 0;
    assert!(silent, "answered before it was done");
    open(&session);
    assert!(matches!(answer(&session), Ack::Done));
    assert_eq!(session.client.receive().unwrap().body::<u64>().unwrap(), 1);
    assert_eq!(config(&session), [1, 2, 9, 4]);
    // A quick one needs no thread.
    assert!(matches!(
        session.client.set_config(1, &[7]).unwrap(),
        Ack::Done
    ));
    assert_eq!(config(&session), [1, 7, 9, 4]);
    assert_eq!(session.close(), End::Closed);
}

#[test]
fn a_write_that_fails_is_refused_and_changes_nothing() {
    let session = session(LONG);
    open(&session);
    begin(&session, 0xff);
    assert!(matches!(answer(&session), Ack::Refused));
    assert_eq!(config(&session), [1, 2, 3, 4]);
    says(&["WARN cannot open the gate", "no such key"]);
    assert_eq!(session.close(), End::Closed);
}

#[test]
fn a_session_that_is_to_end_waits_for_no_write() {
    let session = session(LONG);
    let knobs = session.knobs.clone();
    begin(&session, 9);
    assert_eq!(session.stop(), End::Stopped);
    knobs.gate.store(true, Ordering::SeqCst);
    wait(|| knobs.over.load(Ordering::SeqCst) == 1);
    assert_eq!(
        knobs.config.lock().unwrap()[2],
        3,
        "nobody was there to hear of it"
    );
}

#[test]
fn a_front_end_that_has_gone_waits_for_no_write() {
    let session = session(LONG);
    let knobs = session.knobs.clone();
    begin(&session, 9);
    assert_eq!(session.close(), End::Closed);
    knobs.gate.store(true, Ordering::SeqCst);
    wait(|| knobs.over.load(Ordering::SeqCst) == 1);
    assert_eq!(
        knobs.config.lock().unwrap()[2],
        3,
        "nobody was there to hear of it"
    );
}

#[test]
fn a_write_that_takes_too_long_is_refused_and_said_and_one_is_tried_at_a_time() {
    let session = session(Duration::from_millis(50));
    begin(&session, 9);
    assert!(matches!(answer(&session), Ack::Refused));
    says(&["WARN cannot open the gate: its key: it has not ended within 0.05 s"]);
    // The first is with the kernel still.
    send(&session, 8);
    assert!(matches!(answer(&session), Ack::Refused));
    assert_eq!(session.knobs.preparing.load(Ordering::SeqCst), 1);
    says(&["an earlier attempt is still under way"]);
    assert_eq!(config(&session), [1, 2, 3, 4]);
    open(&session);
    wait(|| session.knobs.over.load(Ordering::SeqCst) == 2);
    assert_eq!(config(&session), [1, 2, 3, 4], "it came too late");
    assert_eq!(session.close(), End::Closed);
}

#[test]
fn what_a_stop_waits_for_in_vain_is_said() {
    let guest = guest();
    let session = session(Duration::from_millis(50));
    session.client.set_mem_table(&guest).unwrap();
    let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
    session.client.start_ring(0, &ring, 0).unwrap();
    for mark in 0..3 {
        submit(&guest, &mut ring, LATER, mark);
    }
    session.knobs.wait_held(3);
    assert!(session.client.stop_ring(0).is_err());
    session.wait_stuck();
    says(&["ERROR queue 0: 3 requests have not ended within "]);
}
