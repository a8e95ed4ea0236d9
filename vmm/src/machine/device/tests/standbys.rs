//! A back-end waits beside the one that serves, and serves when that is lost.

use outboard_protocol::launch::Replaces;

use super::*;

fn prepare(bench: &Bench, number: u64, fake: Scripted) -> Running {
    let (stream, running) = fake.start();
    let session = Session::new(stream).of(Whose::Own);
    bench.device.prepare(newcomer(number, session));
    running
}

fn is_prepared(bench: &Bench, session: u64) {
    let device = "disk0".into();
    assert_eq!(bench.event(), FromMachine::Prepared { device, session });
}

fn is_attached(bench: &Bench, session: u64) {
    let device = "disk0".into();
    assert_eq!(bench.event(), FromMachine::Attached { device, session });
}

fn is_lost(bench: &Bench, number: u64, words: &str) {
    match bench.event() {
        FromMachine::Lost { session, text, .. } => {
            assert_eq!(session, number, "{text}");
            assert!(text.contains(words), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

/// A disk that is served and used, and another back-end that waits for it.
fn served_and_waited_for(bench: &Bench) -> (Running, Running) {
    let first = bench.attached(Scripted::disk());
    bench.drive();
    first.wait_for(FrontendReq::SET_VRING_ENABLE);
    let second = prepare(bench, 2, Scripted::disk());
    is_prepared(bench, 2);
    (first, second)
}

/// What it was asked until now.
fn seen(fake: &Running) -> Vec<FrontendReq> {
    fake.seen.try_iter().map(|(request, _)| request).collect()
}

fn promote(bench: &Bench, number: u64) {
    let replaces = Replaces {
        restored: Restored::Nothing,
        resizes: false,
    };
    bench.device.promote(number, replaces);
}

#[test]
fn it_has_memory_and_no_ring_and_serves_when_it_is_to() {
    let Some(bench) = Bench::new() else { return };
    let (first, second) = served_and_waited_for(&bench);
    let before = seen(&second);
    let has = |request| before.contains(&request);
    assert!(
        has(FrontendReq::ADD_MEM_REG) || has(FrontendReq::SET_MEM_TABLE),
        "{before:?}"
    );
    for ring in [
        FrontendReq::SET_FEATURES,
        FrontendReq::SET_VRING_KICK,
        FrontendReq::SET_INFLIGHT_FD,
    ] {
        assert!(!has(ring), "{before:?}");
    }
    bench.uses(5);
    first.hang_up();
    is_lost(&bench, 1, "closed");
    bench.device.is_vacant(1);
    promote(&bench, 2);
    is_attached(&bench, 2);
    let after = seen(&second);
    let lent = [FrontendReq::ADD_MEM_REG, FrontendReq::SET_MEM_TABLE];
    assert!(!after.iter().any(|it| lent.contains(it)), "{after:?}");
    assert!(after.contains(&FrontendReq::SET_INFLIGHT_FD), "{after:?}");
    assert!(after.contains(&FrontendReq::SET_VRING_ENABLE), "{after:?}");
    assert_eq!(bench.status(), 15, "the driver knows nothing of it");
    // It is the device's, and is lost as any other; the next one waits by then.
    let third = prepare(&bench, 3, Scripted::disk());
    is_prepared(&bench, 3);
    second.hang_up();
    is_lost(&bench, 2, "closed");
    bench.device.is_vacant(2);
    promote(&bench, 3);
    is_attached(&bench, 3);
    bench.reset();
    third.wait_for(FrontendReq::RESET_DEVICE);
}

#[test]
fn one_that_is_lost_while_it_waits_disturbs_nobody() {
    let Some(bench) = Bench::new() else { return };
    let (first, second) = served_and_waited_for(&bench);
    seen(&first);
    second.hang_up();
    is_lost(&bench, 2, "closed");
    // One that does not fit is not taken, either.
    let other = BlkConfig {
        num_queues: 1,
        ..BlkConfig::default()
    };
    let other = Scripted::disk().config(other.to_bytes()[..8].to_vec());
    let _other = prepare(&bench, 3, other);
    is_lost(&bench, 3, "GET_CONFIG");
    promote(&bench, 3);
    is_lost(&bench, 3, "already");
    assert_eq!(seen(&first), [], "it serves on");
    bench.reset();
    first.wait_for(FrontendReq::RESET_DEVICE);
}

/// Its silence is its own: the guest's reset does not wait for it.
#[test]
fn one_that_says_nothing_keeps_nobody_waiting() {
    let Some(bench) = Bench::new() else { return };
    let first = bench.attached(Scripted::disk());
    bench.drive();
    first.wait_for(FrontendReq::SET_VRING_ENABLE);
    let (stream, _silent) = std::os::unix::net::UnixStream::pair().unwrap();
    let session = Session::new(stream).of(Whose::Own);
    bench.device.prepare(newcomer(2, session));
    bench.reset();
    first.wait_for(FrontendReq::RESET_DEVICE);
    // Another takes its place.
    let _second = prepare(&bench, 3, Scripted::disk());
    is_lost(&bench, 2, "another takes its place");
    is_prepared(&bench, 3);
}

#[test]
fn one_whose_end_comes_with_that_of_the_first_is_not_promoted() {
    let Some(bench) = Bench::new() else { return };
    let (first, second) = served_and_waited_for(&bench);
    second.hang_up();
    is_lost(&bench, 2, "closed");
    first.hang_up();
    is_lost(&bench, 1, "closed");
    bench.device.is_vacant(1);
    promote(&bench, 2);
    is_lost(&bench, 2, "no back-end that waits");
    bench.device.is_vacant(2);
    let fake = {
        let (stream, running) = Scripted::disk().start();
        bench.device.attach(newcomer(3, Session::new(stream)));
        running
    };
    is_attached(&bench, 3);
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
}

/// A driver that has set the device up anew meanwhile finds what it has set up.
#[test]
fn it_serves_the_driver_that_there_is_then() {
    let Some(bench) = Bench::new() else { return };
    let (first, second) = served_and_waited_for(&bench);
    bench.reset();
    first.wait_for(FrontendReq::RESET_DEVICE);
    first.hang_up();
    is_lost(&bench, 1, "closed");
    bench.device.is_vacant(1);
    promote(&bench, 2);
    is_attached(&bench, 2);
    assert!(!seen(&second).contains(&FrontendReq::SET_VRING_KICK));
    bench.drive();
    second.wait_for(FrontendReq::SET_VRING_ENABLE);
}
