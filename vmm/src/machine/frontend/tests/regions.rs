//! The inflight region stays with the device, whatever becomes of a session.

use nix::sys::stat::fstat;
use outboard_contract::scripted::Running;

use super::*;

/// A device's region, and where its memory is.
struct Bench {
    ram: Ram,
    region: Option<Inflight>,
}

impl Bench {
    fn new() -> Self {
        Self {
            ram: Ram::new(2 << 20, Backing::default()).unwrap(),
            region: None,
        }
    }

    fn start(&mut self, fake: Scripted) -> (Result<Session<Started>>, Running) {
        let (stream, running) = fake.start();
        let session = Session::<Connected>::new(stream).within(SHORT);
        let session = session.negotiate("disk0", &Interruption::default());
        (self.start_again(session.unwrap()), running)
    }

    fn start_again(&mut self, session: Session<Negotiated>) -> Result<Session<Started>> {
        let rings = [ring_start(0)];
        let session = session.describe(&self.ram, 1 << 32, (1, 64), &mut self.region, &rings)?;
        session.enable(&rings)
    }
}

fn faulty(request: FrontendReq) -> Scripted {
    Scripted::disk().on(request, Fault::Close)
}

/// How often a region was asked for, and the files that were handed over.
fn regions(fake: &Running) -> (usize, Vec<u64>) {
    let (mut asked, mut handed) = (0, Vec::new());
    for (request, message) in fake.seen.try_iter() {
        match request {
            FrontendReq::GET_INFLIGHT_FD => asked += 1,
            FrontendReq::SET_INFLIGHT_FD => {
                let fd = message.fds.first().unwrap();
                handed.push(fstat(fd).unwrap().st_ino);
            }
            _ => {}
        }
    }
    (asked, handed)
}

#[test]
fn a_region_outlives_successors_that_die_while_they_are_started() {
    let mut bench = Bench::new();
    let (first, fake) = bench.start(Scripted::disk());
    drop(first.unwrap());
    let (asked, handed) = regions(&fake);
    assert_eq!((asked, handed.len()), (1, 1));
    for request in [
        FrontendReq::SET_INFLIGHT_FD,
        FrontendReq::SET_INFLIGHT_FD,
        FrontendReq::SET_VRING_KICK,
        FrontendReq::SET_VRING_KICK,
        FrontendReq::SET_FEATURES,
        FrontendReq::SET_VRING_ENABLE,
    ] {
        let (dies, fake) = bench.start(faulty(request));
        dies.unwrap_err();
        assert!(bench.region.is_some(), "{request:?}");
        fake.join();
    }
    let (last, fake) = bench.start(Scripted::disk());
    drop(last.unwrap());
    assert_eq!(regions(&fake), (0, handed), "the same, and no fresh one");
}

#[test]
fn a_region_that_was_asked_for_is_kept_although_it_was_never_used() {
    let mut bench = Bench::new();
    let (dies, _fake) = bench.start(faulty(FrontendReq::SET_INFLIGHT_FD));
    dies.unwrap_err();
    assert!(bench.region.is_some());
    let (next, fake) = bench.start(Scripted::disk());
    drop(next.unwrap());
    let (asked, handed) = regions(&fake);
    assert_eq!((asked, handed.len()), (0, 1));
}

#[test]
fn a_region_is_kept_when_a_ring_cannot_be_stopped() {
    let mut bench = Bench::new();
    let (session, fake) = bench.start(faulty(FrontendReq::GET_VRING_BASE));
    session.unwrap().stop().unwrap_err();
    fake.join();
    assert!(bench.region.is_some());
    let (next, fake) = bench.start(Scripted::disk());
    drop(next.unwrap());
    assert_eq!(regions(&fake).0, 0);
}

#[test]
fn rings_that_go_on_after_a_stop_have_the_same_region() {
    let mut bench = Bench::new();
    let (session, fake) = bench.start(Scripted::disk());
    let (session, _) = session.unwrap().stop().unwrap();
    drop(bench.start_again(session).unwrap());
    let (asked, handed) = regions(&fake);
    assert_eq!(asked, 1);
    assert!(handed.len() == 2 && handed[0] == handed[1], "{handed:?}");
}

#[test]
fn one_that_keeps_no_region_leaves_none_to_a_successor() {
    let mut bench = Bench::new();
    let (session, _first) = bench.start(Scripted::disk());
    drop(session.unwrap());
    let keeps_none = Scripted::disk().without(Protocol::INFLIGHT_SHMFD);
    let (session, fake) = bench.start(keeps_none);
    drop(session.unwrap());
    assert_eq!(regions(&fake), (0, Vec::new()));
    assert!(bench.region.is_none());
}

/// Nobody waits for a single answer while a guest does.
#[test]
fn one_that_is_prepared_is_told_all_of_its_rings_before_an_answer_is_waited_for() {
    let script = Scripted::disk().on(FrontendReq::SET_FEATURES, Fault::Silence);
    let (stream, fake) = script.start();
    let session = Session::<Connected>::new(stream).within(SHORT);
    let mut session = session
        .negotiate("disk0", &Interruption::default())
        .unwrap();
    let bench = Bench::new();
    session.prepare(&bench.ram, (2, 64)).unwrap();
    fake.wait_for(FrontendReq::GET_INFLIGHT_FD);
    let (mut region, rings) = (None, [ring_start(0), ring_start(1)]);
    let described = session.describe(&bench.ram, 1 << 32, (2, 64), &mut region, &rings);
    described.unwrap_err();
    assert!(region.is_some(), "the one that it was asked for before");
    let seen: Vec<_> = fake.seen.iter().map(|(request, _)| request).collect();
    let count = |which| seen.iter().filter(|request| **request == which).count();
    assert_eq!(count(FrontendReq::SET_VRING_KICK), 2, "{seen:?}");
    assert_eq!(count(FrontendReq::GET_INFLIGHT_FD), 0, "{seen:?}");
    fake.join();
}

#[test]
fn of_many_rings_the_one_that_is_refused_is_named() {
    let script = Scripted::new(1 << 32, 64, vec![0; 8]);
    for refused in [None, Some(0), Some(9), Some(63)] {
        let script = refused.map_or(script.clone(), |queue| {
            let request = FrontendReq::SET_VRING_NUM;
            script.clone().on_after(request, queue, Fault::Value)
        });
        let (stream, fake) = script.start();
        let session = Session::<Connected>::new(stream).within(SHORT);
        let session = session
            .negotiate("disk0", &Interruption::default())
            .unwrap();
        let rings: Vec<_> = (0..64).map(ring_start).collect();
        let ram = Bench::new().ram;
        let described = session.describe(&ram, 1 << 32, (64, 64), &mut None, &rings);
        match (described, refused) {
            (Ok(session), None) => assert_eq!(session.enable(&rings).unwrap().rings().len(), 64),
            (Err(error), Some(queue)) => {
                let error = format!("{error:#}");
                assert!(
                    error.contains(&format!("starting queue {queue}:")),
                    "{error}"
                );
            }
            (described, _) => panic!("{refused:?}: {described:?}"),
        }
        fake.join();
    }
}
