//! Rings that share a worker.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "these are tests"
)]

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use outboard_contract::memory::Memory;
use outboard_contract::ring::Ring;
use outboard_contract::soon;
use outboard_protocol::wire::Header;
use outboard_runtime::session::Limits;
use support::*;
use vhost::vhost_user::message::{FrontendReq, VhostUserVringState};
use vm_memory::ByteValued;

/// A session of four queues, two of them to a worker, all started.
fn started(guest: &Memory, event_idx: bool) -> (Session, Vec<Ring>) {
    let features = VERSION_1 | if event_idx { EVENT_IDX } else { 0 };
    let (mut device, knobs) = Loopback::new(4);
    device.together = 2;
    let poll = Duration::ZERO;
    let limits = Limits::default();
    let mut session = Session::serving(device, knobs, Limits { poll, ..limits });
    session.client.negotiate(features).unwrap();
    session.client.set_mem_table(guest).unwrap();
    let rings = (0..4u8).map(|index| {
        let at = LOW + 0x4000 * u64::from(index);
        let ring = Ring::new(guest, at, 16, event_idx).unwrap();
        session.client.start_ring(index, &ring, 0).unwrap();
        ring
    });
    let rings = rings.collect();
    (session, rings)
}

#[test]
fn two_queues_to_a_worker_are_served_by_one_thread() {
    let guest = guest();
    for event_idx in [false, true] {
        let (session, mut rings) = started(&guest, event_idx);
        for _ in 0..100 {
            for ring in &mut rings {
                still_serves(&guest, ring);
            }
        }
        let threads = session.knobs.threads.lock().unwrap().clone();
        assert_eq!(threads[&0], threads[&1]);
        assert_eq!(threads[&2], threads[&3]);
        assert_ne!(threads[&0], threads[&2]);
        session.close();
    }
}

#[test]
fn a_ring_that_waits_does_not_hold_up_the_other() {
    let guest = guest();
    let (session, mut rings) = started(&guest, true);
    let later = submit(&guest, &mut rings[0], LATER, 1);
    session.knobs.wait_held(1);
    let not_now = submit(&guest, &mut rings[0], NOT_NOW, 2);
    for _ in 0..10 {
        still_serves(&guest, &mut rings[1]);
    }
    assert!(rings[0].take_used().unwrap().is_none());
    session.knobs.open(true);
    let mut answered = [0; 2].map(|_| rings[0].wait_used(soon()).unwrap().0);
    answered.sort_unstable();
    let mut asked = [later, not_now];
    asked.sort_unstable();
    assert_eq!(answered, asked);
    session.close();
}

#[test]
fn one_ring_is_stopped_and_started_while_the_other_goes_on() {
    let guest = guest();
    let (session, mut rings) = started(&guest, true);
    let mut base = 0;
    for round in 0..20 {
        assert_eq!(session.client.stop_ring(0).unwrap(), base);
        // What is submitted meanwhile waits for the start.
        let head = submit(&guest, &mut rings[0], NOW, 7);
        still_serves(&guest, &mut rings[1]);
        assert!(rings[0].take_used().unwrap().is_none(), "{round}");
        session.client.start_ring(0, &rings[0], base).unwrap();
        expect(&guest, &mut rings[0], head, 7);
        still_serves(&guest, &mut rings[1]);
        base += 1;
    }
    // What its worker has of the other ring is not waited for.
    let head = submit(&guest, &mut rings[1], LATER, 9);
    session.knobs.wait_held(1);
    assert_eq!(session.client.stop_ring(0).unwrap(), base);
    assert_eq!(session.knobs.held.load(Ordering::SeqCst), 1);
    session.knobs.open(true);
    expect(&guest, &mut rings[1], head, 9);
    still_serves(&guest, &mut rings[1]);
    session.close();
}

#[test]
fn a_ring_is_served_while_the_one_beside_it_is_drained() {
    let guest = guest();
    for event_idx in [false, true] {
        let (session, mut rings) = started(&guest, event_idx);
        submit(&guest, &mut rings[0], LATER, 1);
        session.knobs.wait_held(1);
        let stop = VhostUserVringState::new(0, 0);
        let header = Header::request(FrontendReq::GET_VRING_BASE.into());
        session.client.send(header, stop.as_slice(), &[]).unwrap();
        wait(|| session.knobs.asked_back.load(Ordering::SeqCst) > 0);
        for _ in 0..100 {
            still_serves(&guest, &mut rings[1]);
        }
        assert_eq!(session.knobs.held.load(Ordering::SeqCst), 1);
        assert_eq!(rings[0].used_idx().unwrap(), 0);
        session.knobs.open(true);
        let reply = session.client.receive().unwrap();
        let state: VhostUserVringState = reply.body().unwrap();
        assert_eq!({ state.num }, 1);
        assert_eq!(rings[0].used_idx().unwrap(), 1);
        still_serves(&guest, &mut rings[1]);
        session.close();
    }
}
