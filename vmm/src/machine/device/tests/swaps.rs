//! A back-end that works is replaced by another, which goes wrong at each message, as does
//! the one that is replaced; and the driver does what it likes meanwhile.

use FrontendReq as R;
use nix::sys::stat::fstat;
use outboard_protocol::launch::{Gap, Replaces};

use super::*;

/// For what is to be silent at a message: the whole wait is part of a test.
const SHORT: Limits = Limits {
    message: Duration::from_millis(200),
    answer: Duration::from_millis(200),
};

/// Where the former stops its rings, if nothing else is said.
const BASE: u16 = 5;

/// Whom the device gets in place of another.
struct Candidate {
    number: u64,
    script: Scripted,
    limits: Limits,
    whose: Whose,
    resizes: bool,
}

impl Candidate {
    fn of(script: Scripted) -> Self {
        Self {
            number: 2,
            script,
            limits: Limits::default(),
            whose: Whose::Own,
            resizes: false,
        }
    }

    fn comes(self, bench: &Bench) -> Running {
        let (stream, running) = self.script.start();
        let session = Session::new(stream).within(self.limits).of(self.whose);
        let resizes = self.resizes;
        bench.device.prepare(Newcomer {
            replaces: Some(replaces(resizes)),
            ..newcomer(self.number, session)
        });
        running
    }

    /// It comes, and fits.
    fn waits(self, bench: &Bench) -> Running {
        let session = self.number;
        let running = self.comes(bench);
        let device = "disk0".into();
        assert_eq!(bench.event(), FromMachine::Prepared { device, session });
        running
    }
}

fn replaces(resizes: bool) -> Replaces {
    let restored = Restored::Nothing;
    Replaces { restored, resizes }
}

fn promote(bench: &Bench, number: u64) {
    bench.device.promote(number, replaces(false));
}

/// A back-end that is started, stops its rings at [`BASE`], and was asked nothing since.
fn served(bench: &Bench, fake: Scripted) -> Running {
    served_by(bench, fake, Limits::default(), Whose::Own)
}

fn served_by(bench: &Bench, fake: Scripted, limits: Limits, whose: Whose) -> Running {
    let first = bench.attached_within(fake, limits, whose);
    bench.drive();
    first.wait_for(R::SET_VRING_ENABLE);
    first.wait_for(R::GET_FEATURES);
    first.stop_at(BASE);
    first
}

fn is_handed_back(bench: &Bench, session: u64) {
    let device = "disk0".into();
    assert_eq!(bench.event(), FromMachine::HandedBack { device, session });
}

/// The former has handed back its rings.
fn rests(bench: &Bench, first: &Running) {
    bench.device.hand_back(1);
    is_handed_back(bench, 1);
    first.wait_for(R::GET_VRING_BASE);
    first.wait_for(R::SET_VRING_ENABLE);
}

/// Who has the rings from now on, after what gap, and why it is not a successor.
fn goes_on(bench: &Bench) -> (u64, Gap, Option<String>) {
    match bench.event() {
        FromMachine::GoesOn {
            session, gap, why, ..
        } => (session, gap, why),
        other => panic!("{other:?}"),
    }
}

fn is_lost(bench: &Bench, number: u64, words: &str) -> Cause {
    match bench.event() {
        FromMachine::Lost {
            session,
            text,
            cause,
            ..
        } => {
            assert_eq!(session, number, "{text}");
            assert!(text.contains(words), "{text}");
            cause
        }
        other => panic!("{other:?}"),
    }
}

/// It gets its ring at this index; whether with the region that it has made itself.
fn gets_the_ring(fake: &Running, base: u16, is_its_own: bool) -> Vec<R> {
    let mut seen = Vec::new();
    loop {
        let (request, message) = fake.seen.recv_timeout(PATIENCE).unwrap();
        seen.push(request);
        match request {
            R::SET_VRING_BASE => assert_eq!(message.payload[4..6], base.to_ne_bytes()),
            R::SET_INFLIGHT_FD => {
                let region = fstat(&message.fds[0]).unwrap().st_ino;
                assert_eq!(region == fake.region(), is_its_own, "{seen:?}");
            }
            R::SET_VRING_ENABLE => break,
            _ => {}
        }
    }
    assert!(seen.contains(&R::SET_VRING_KICK), "{seen:?}");
    assert!(seen.contains(&R::SET_INFLIGHT_FD), "{seen:?}");
    seen
}

/// It obeys the driver, and nobody else does.
fn is_the_device_s(bench: &Bench, fake: &Running) {
    bench.reset();
    fake.wait_for(R::RESET_DEVICE);
    assert_eq!(bench.told(), []);
}

/// What it was asked until now.
fn seen(fake: &Running) -> Vec<R> {
    fake.seen.try_iter().map(|(request, _)| request).collect()
}

/// Each of these on a device of its own, side by side: most of it is waiting.
fn each<T: Send>(cases: Vec<T>, try_it: impl Fn(&Bench, T) + Sync) {
    std::thread::scope(|scope| {
        for case in cases {
            scope.spawn(|| {
                if let Some(bench) = Bench::new() {
                    try_it(&bench, case);
                }
            });
        }
    });
}

#[test]
fn a_successor_has_the_rings_where_they_were_and_a_region_of_its_own() {
    let Some(bench) = Bench::new() else { return };
    let first = served(&bench, Scripted::disk());
    let second = Candidate::of(Scripted::disk()).waits(&bench);
    assert_eq!(seen(&first), [], "it serves on");
    rests(&bench, &first);
    promote(&bench, 2);
    let (session, gap, why) = goes_on(&bench);
    assert_eq!((session, why), (2, None));
    assert!(gap.start_us > 0, "{gap:?}");
    gets_the_ring(&second, BASE, true);
    first.join();
    assert_eq!(bench.status(), 15, "the driver knows nothing of it");
    // And back.
    second.stop_at(BASE + 4);
    let third = Candidate {
        number: 3,
        ..Candidate::of(Scripted::disk())
    };
    let third = third.waits(&bench);
    bench.device.hand_back(2);
    is_handed_back(&bench, 2);
    promote(&bench, 3);
    assert_eq!(goes_on(&bench).0, 3);
    gets_the_ring(&third, BASE + 4, true);
    second.join();
    is_the_device_s(&bench, &third);
}

/// Every message of the preparation.
#[test]
fn one_that_fails_while_it_is_made_ready_disturbs_nobody() {
    let asked = [
        R::GET_FEATURES,
        R::GET_PROTOCOL_FEATURES,
        R::GET_QUEUE_NUM,
        R::GET_CONFIG,
        R::GET_MAX_MEM_SLOTS,
        R::GET_INFLIGHT_FD,
    ];
    let told = [R::SET_BACKEND_REQ_FD, R::ADD_MEM_REG];
    let faults = [Fault::Value, Fault::Silence, Fault::Close];
    let mut cases = Vec::new();
    for fault in faults {
        cases.extend(asked.iter().chain(&told).map(|at| (*at, fault.clone())));
    }
    let unanswered = [R::SET_OWNER, R::SET_PROTOCOL_FEATURES];
    cases.extend(unanswered.map(|at| (at, Fault::Close)));
    each(cases, |bench, (at, fault)| {
        let first = served(bench, Scripted::disk());
        let candidate = Candidate {
            limits: SHORT,
            ..Candidate::of(Scripted::disk().on(at, fault.clone()))
        };
        let second = candidate.comes(bench);
        match bench.event() {
            FromMachine::Lost { session, text, .. } => {
                assert_eq!(session, 2, "{at:?} {fault:?}: {text}");
            }
            other => panic!("{at:?} {fault:?}: {other:?}"),
        }
        second.join();
        assert_eq!(seen(&first), [], "{at:?} {fault:?}");
        is_the_device_s(bench, &first);
    });
}

/// Every message of the start before the first ring is enabled.
#[test]
fn the_former_goes_on_where_it_was_if_its_successor_fails_before_its_first_ring() {
    let messages = [
        (R::GET_CONFIG, 1),
        (R::SET_FEATURES, 0),
        (R::SET_INFLIGHT_FD, 0),
        (R::SET_VRING_NUM, 0),
        (R::SET_VRING_BASE, 0),
        (R::SET_VRING_ADDR, 0),
        (R::SET_VRING_ERR, 0),
        (R::SET_VRING_CALL, 0),
        (R::SET_VRING_KICK, 0),
    ];
    let mut cases = Vec::new();
    for fault in [Fault::Value, Fault::Silence, Fault::Close] {
        let faulty = messages.iter();
        // What is read a second time is another configuration only by its payload.
        let faulty = faulty.filter(|(at, _)| (*at, &fault) != (R::GET_CONFIG, &Fault::Value));
        cases.extend(faulty.map(|(at, spared)| (*at, *spared, fault.clone())));
    }
    each(cases, |bench, (at, spared, fault)| {
        let what = format!("{at:?} {fault:?}");
        let first = served(bench, Scripted::disk());
        let script = Scripted::disk().on_after(at, spared, fault);
        let second = Candidate::of(script).waits(bench);
        rests(bench, &first);
        promote(bench, 2);
        let (session, gap, why) = goes_on(bench);
        assert_eq!(session, 1, "{what}");
        assert!(gap.start_us > 0, "{what}: {gap:?}");
        let why = why.unwrap_or_else(|| panic!("{what}: no reason"));
        assert!(!why.is_empty(), "{what}");
        let asked = gets_the_ring(&first, BASE, true);
        assert!(!asked.contains(&R::GET_INFLIGHT_FD), "{asked:?}");
        second.join();
        assert_eq!(bench.status(), 15, "{what}");
        is_the_device_s(bench, &first);
    });
}

/// It has had a ring, perhaps: nobody else can have it as it was.
#[test]
fn a_successor_that_fails_with_a_ring_is_the_device_s_and_is_lost() {
    let mut cases = Vec::new();
    for fault in [Fault::Value, Fault::Close, Fault::Silence] {
        cases.push((R::SET_VRING_ENABLE, 0, fault.clone()));
        // The question whether it has learnt that its ring is enabled.
        if fault != Fault::Value {
            cases.push((R::GET_FEATURES, 1, fault));
        }
    }
    each(cases, |bench, (at, spared, fault)| {
        let first = served(bench, Scripted::disk());
        let script = Scripted::disk().on_after(at, spared, fault);
        let second = Candidate::of(script).waits(bench);
        rests(bench, &first);
        promote(bench, 2);
        let (session, gap, why) = goes_on(bench);
        assert_eq!((session, why), (2, None), "{at:?}");
        assert!(gap.start_us > 0, "{gap:?}");
        is_lost(bench, 2, "");
        first.join();
        second.join();
        // What it has done is told by the used index, and by its region.
        bench.device.is_vacant(2);
        bench.uses(BASE + 2);
        let (stream, third) = Scripted::disk().start();
        let session = Session::new(stream).of(Whose::Own);
        bench.device.attach(newcomer(3, session));
        gets_the_ring(&third, BASE + 2, false);
    });
}

/// The former is gone as well when it is to go on.
#[test]
fn both_fail_at_once_and_it_is_told_that_it_was_the_former_that_had_the_rings() {
    let Some(bench) = Bench::new() else { return };
    let dies = Scripted::disk().on_after(R::SET_FEATURES, 1, Fault::Close);
    let first = served(&bench, dies);
    let refuses = Scripted::disk().on(R::SET_VRING_NUM, Fault::Value);
    let second = Candidate::of(refuses).waits(&bench);
    rests(&bench, &first);
    promote(&bench, 2);
    let (session, _, why) = goes_on(&bench);
    assert_eq!(session, 1);
    assert!(why.is_some_and(|why| why.contains("SET_VRING_NUM")));
    is_lost(&bench, 1, "closed");
    first.join();
    second.join();
    assert_eq!(bench.told(), []);
}

#[test]
fn a_back_end_that_keeps_its_rings_is_lost_or_goes_on() {
    // One of somebody else's that has stopped at 5 and returned none of those.
    let stuck = || Scripted::disk().without(Protocol::INFLIGHT_SHMFD);
    let Some(bench) = Bench::new() else { return };
    let first = served_by(&bench, stuck(), SHORT, Whose::default());
    let second = Candidate::of(Scripted::disk()).waits(&bench);
    bench.device.hand_back(1);
    let (session, gap, why) = goes_on(&bench);
    assert_eq!(session, 1);
    assert!(gap.drain_us > 0, "{gap:?}");
    assert!(why.is_some_and(|why| why.contains("did not finish")));
    let base = first.wait_for(R::SET_VRING_BASE);
    assert_eq!(base.payload[4..6], BASE.to_ne_bytes());
    first.wait_for(R::SET_VRING_ENABLE);
    assert!(!seen(&second).contains(&R::SET_FEATURES));
    // Once it has, it is as any other.
    bench.uses(BASE);
    bench.device.hand_back(1);
    is_handed_back(&bench, 1);
    promote(&bench, 2);
    assert_eq!(goes_on(&bench).0, 2);
    gets_the_ring(&second, BASE, true);
}

#[test]
fn one_that_waits_serves_after_the_loss_of_a_back_end_that_did_not_hand_back_its_rings() {
    let faults = vec![
        (Fault::Silence, "silent"),
        (Fault::Close, "closed"),
        (Fault::Value, "stopped queue"),
    ];
    each(faults, |bench, (fault, words)| {
        let script = Scripted::disk().on(R::GET_VRING_BASE, fault);
        let first = served_by(bench, script, SHORT, Whose::Own);
        let second = Candidate::of(Scripted::disk()).waits(bench);
        bench.device.hand_back(1);
        is_lost(bench, 1, words);
        first.join();
        bench.device.is_vacant(1);
        bench.uses(3);
        promote(bench, 2);
        let device = "disk0".into();
        assert_eq!(bench.event(), FromMachine::Attached { device, session: 2 });
        gets_the_ring(&second, 3, false);
        is_the_device_s(bench, &second);
    });
}

/// What it has handed back is known exactly: nothing is looked for in the ring.
#[test]
fn a_former_that_dies_while_its_rings_rest_is_followed_where_it_has_handed_them_back() {
    let Some(bench) = Bench::new() else { return };
    let first = served(&bench, Scripted::disk());
    let second = Candidate::of(Scripted::disk()).waits(&bench);
    rests(&bench, &first);
    first.hang_up();
    is_lost(&bench, 1, "closed");
    promote(&bench, 2);
    let device = "disk0".into();
    assert_eq!(bench.event(), FromMachine::Attached { device, session: 2 });
    gets_the_ring(&second, BASE, false);
    // It may be there still, until it is said to be gone.
    bench.write(BAR + 20, 0, 1);
    second.wait_for(R::RESET_DEVICE);
    std::thread::sleep(Duration::from_millis(50));
    assert_ne!(bench.status(), 0);
    bench.device.is_vacant(1);
    eventually(|| bench.status() == 0);
}

#[test]
fn a_successor_that_is_gone_before_it_is_called_or_was_never_there_leaves_the_former() {
    let Some(bench) = Bench::new() else { return };
    let first = served(&bench, Scripted::disk());
    let second = Candidate::of(Scripted::disk()).waits(&bench);
    rests(&bench, &first);
    second.hang_up();
    is_lost(&bench, 2, "closed");
    promote(&bench, 2);
    let (session, _, why) = goes_on(&bench);
    assert_eq!(session, 1);
    assert!(why.is_some_and(|why| why.contains("no back-end that waits")));
    let asked = gets_the_ring(&first, BASE, true);
    assert!(!asked.contains(&R::GET_INFLIGHT_FD), "{asked:?}");
    rests(&bench, &first);
    promote(&bench, 9);
    assert_eq!(goes_on(&bench).0, 1);
    let asked = gets_the_ring(&first, BASE, true);
    assert!(!asked.contains(&R::GET_INFLIGHT_FD), "{asked:?}");
    is_the_device_s(&bench, &first);
}

#[test]
fn rings_are_handed_back_once_and_by_whom_has_them() {
    let Some(bench) = Bench::new() else { return };
    let first = served(&bench, Scripted::disk());
    // Nobody of this number has them.
    bench.device.hand_back(7);
    rests(&bench, &first);
    bench.device.hand_back(1);
    is_handed_back(&bench, 1);
    assert_eq!(seen(&first), [], "it has none any more");
    promote(&bench, 1);
    let (session, gap, why) = goes_on(&bench);
    assert_eq!((session, why), (1, None));
    assert!(gap.rest_us > 0, "{gap:?}");
    let asked = gets_the_ring(&first, BASE, true);
    assert!(!asked.contains(&R::GET_INFLIGHT_FD), "{asked:?}");
    is_the_device_s(&bench, &first);
}

#[test]
fn a_device_without_a_driver_is_swapped_and_then_driven() {
    let Some(bench) = Bench::new() else { return };
    let first = bench.attached(Scripted::disk());
    let second = Candidate::of(Scripted::disk()).waits(&bench);
    bench.device.hand_back(1);
    is_handed_back(&bench, 1);
    promote(&bench, 2);
    assert_eq!(goes_on(&bench).0, 2);
    first.join();
    bench.drive();
    gets_the_ring(&second, 0, true);
    is_the_device_s(&bench, &second);
}

#[test]
fn what_the_driver_does_while_its_rings_rest_is_so_for_the_successor() {
    // It comes up.
    let Some(bench) = Bench::new() else { return };
    let first = bench.attached(Scripted::disk());
    let second = Candidate::of(Scripted::disk()).waits(&bench);
    bench.device.hand_back(1);
    is_handed_back(&bench, 1);
    bench.drive();
    promote(&bench, 2);
    assert_eq!(goes_on(&bench).0, 2);
    gets_the_ring(&second, 0, true);
    assert!(!first.has_come(R::SET_VRING_KICK));
    // It resets the device, and has set it up again or not.
    for drives in [true, false] {
        let Some(bench) = Bench::new() else { return };
        let first = served(&bench, Scripted::disk());
        let second = Candidate::of(Scripted::disk()).waits(&bench);
        rests(&bench, &first);
        bench.reset();
        first.wait_for(R::RESET_DEVICE);
        if drives {
            bench.drive();
        }
        promote(&bench, 2);
        assert_eq!(goes_on(&bench).0, 2);
        if !drives {
            assert!(!seen(&second).contains(&R::SET_VRING_KICK));
            bench.drive();
        }
        gets_the_ring(&second, 0, true);
        is_the_device_s(&bench, &second);
    }
}

#[test]
fn bus_mastering_that_is_turned_off_while_rings_rest_keeps_them_at_rest() {
    let Some(bench) = Bench::new() else { return };
    let first = served(&bench, Scripted::disk());
    let second = Candidate::of(Scripted::disk()).waits(&bench);
    rests(&bench, &first);
    // It returns: nobody has a ring.
    master(&bench, false);
    promote(&bench, 2);
    assert_eq!(goes_on(&bench).0, 2);
    assert!(!seen(&second).contains(&R::SET_VRING_KICK));
    master(&bench, true);
    bench.write(NOTIFY, 0, 2);
    gets_the_ring(&second, BASE, true);
    is_the_device_s(&bench, &second);
    // And when it is turned on again meanwhile, a kick has to wait.
    let Some(bench) = Bench::new() else { return };
    let first = served(&bench, Scripted::disk());
    let second = Candidate::of(Scripted::disk()).waits(&bench);
    rests(&bench, &first);
    master(&bench, false);
    master(&bench, true);
    bench.write(NOTIFY, 0, 2);
    promote(&bench, 2);
    assert_eq!(goes_on(&bench).0, 2);
    gets_the_ring(&second, BASE, true);
    assert!(!first.has_come(R::SET_VRING_KICK));
}

#[test]
fn a_queue_that_is_enabled_while_the_others_rest_is_started_with_them() {
    let Some(bench) = Bench::new() else { return };
    let first = served(&bench, Scripted::disk());
    let second = Candidate::of(Scripted::disk()).waits(&bench);
    rests(&bench, &first);
    bench.write(BAR + 22, 1, 2);
    for (at, address) in [32, 40, 48].into_iter().zip([0x4000, 0x5000, 0x6000]) {
        bench.write(BAR + at, address, 8);
    }
    bench.write(BAR + 28, 1, 2);
    promote(&bench, 2);
    assert_eq!(goes_on(&bench).0, 2);
    let kicks = seen(&second);
    let kicks = kicks.iter().filter(|it| **it == R::SET_VRING_KICK);
    assert_eq!(kicks.count(), 2);
    assert!(!first.has_come(R::SET_VRING_KICK));
    is_the_device_s(&bench, &second);
}

/// FLUSH and CONFIG_WCE.
const WCE: u64 = 1 << 11 | 1 << 9;
/// Of the byte in a disk's configuration.
const CACHE: u64 = 32;

fn cached(writeback: u8) -> Scripted {
    let config = BlkConfig {
        capacity: 2048,
        num_queues: 4,
        writeback,
        ..BlkConfig::default()
    };
    Scripted::disk()
        .with(WCE)
        .config(config.to_bytes().to_vec())
}

fn cached_and_served(bench: &Bench) -> Running {
    let first = bench.attached_within(cached(1), Limits::default(), Whose::Own);
    bench.drive_with(WCE);
    first.wait_for(R::SET_VRING_ENABLE);
    first.stop_at(BASE);
    first
}

#[test]
fn a_cache_that_is_turned_off_while_rings_rest_is_off_in_the_successor() {
    let Some(bench) = Bench::new() else { return };
    let first = cached_and_served(&bench);
    let second = Candidate::of(cached(1)).waits(&bench);
    rests(&bench, &first);
    bench.write(CONFIG + CACHE, 0, 1);
    promote(&bench, 2);
    assert_eq!(goes_on(&bench).0, 2);
    let set = second.wait_for(R::SET_CONFIG);
    assert_eq!(set.payload[12..], [0]);
    gets_the_ring(&second, BASE, true);
    assert_eq!(bench.read(CONFIG + CACHE, 1), 0);
}

/// It is the only message of a preparation that is sent by the thread which the guest's
/// resets wait for, too.
#[test]
fn one_that_is_silent_when_its_cache_is_set_is_not_waited_for_as_one_that_serves() {
    let Some(bench) = Bench::new() else { return };
    let first = cached_and_served(&bench);
    bench.write(CONFIG + CACHE, 0, 1);
    first.wait_for(R::SET_CONFIG);
    let silent = cached(1).on(R::SET_CONFIG, Fault::Silence);
    let second = Candidate::of(silent).comes(&bench);
    is_lost(&bench, 2, "silent");
    second.join();
    is_the_device_s(&bench, &first);
    // One that cannot set it is not taken, either.
    let Some(bench) = Bench::new() else { return };
    let first = cached_and_served(&bench);
    bench.write(CONFIG + CACHE, 0, 1);
    first.wait_for(R::SET_CONFIG);
    let _second = Candidate::of(cached(1).on(R::SET_CONFIG, Fault::Value)).comes(&bench);
    is_lost(&bench, 2, "write cache");
    is_the_device_s(&bench, &first);
}

fn sized(capacity: u64) -> Scripted {
    let config = BlkConfig {
        capacity,
        num_queues: 4,
        ..BlkConfig::default()
    };
    Scripted::disk().config(config.to_bytes().to_vec())
}

const GENERATION: u64 = BAR + 21;

#[test]
fn another_capacity_is_told_once_it_is_served_and_only_if_it_is_wanted() {
    let Some(bench) = Bench::new() else { return };
    let first = served(&bench, Scripted::disk());
    for number in [2, 3] {
        let candidate = Candidate {
            number,
            ..Candidate::of(sized(4096))
        };
        let second = candidate.comes(&bench);
        assert_eq!(is_lost(&bench, number, "--resize"), Cause::DoesNotFit);
        second.join();
    }
    let resizes = true;
    let candidate = Candidate {
        number: 4,
        resizes,
        ..Candidate::of(sized(4096))
    };
    let second = candidate.waits(&bench);
    let before = bench.read(GENERATION, 1);
    assert_eq!(seen(&first), [], "it serves on");
    rests(&bench, &first);
    assert_eq!(bench.read(CONFIG, 8), 2048);
    assert_eq!(bench.pending() & 1, 0);
    bench.device.promote(4, replaces(resizes));
    assert_eq!(goes_on(&bench).0, 4);
    assert_eq!(bench.read(CONFIG, 8), 4096);
    assert_ne!(bench.read(GENERATION, 1), before);
    eventually(|| bench.pending() & 1 == 1);
    gets_the_ring(&second, BASE, true);
}

/// What it has been the device's with is the device's from then on.
#[test]
fn one_of_another_capacity_that_fails_with_a_ring_is_followed_by_one_of_the_same() {
    let Some(bench) = Bench::new() else { return };
    let first = served(&bench, Scripted::disk());
    let resizes = true;
    let candidate = Candidate {
        resizes,
        ..Candidate::of(sized(4096).on(R::SET_VRING_ENABLE, Fault::Close))
    };
    let second = candidate.waits(&bench);
    rests(&bench, &first);
    bench.device.promote(2, replaces(resizes));
    assert_eq!(goes_on(&bench).0, 2);
    is_lost(&bench, 2, "closed");
    second.join();
    bench.device.is_vacant(2);
    let (stream, third) = sized(4096).start();
    let session = Session::new(stream).of(Whose::Own);
    bench.device.attach(newcomer(3, session));
    let device = "disk0".into();
    assert_eq!(bench.event(), FromMachine::Attached { device, session: 3 });
    gets_the_ring(&third, 0, false);
    assert_eq!(bench.read(CONFIG, 8), 4096);
}

#[test]
fn what_a_driver_goes_by_is_not_taken_from_it() {
    let offers = 1 << 2 | 1 << 12 | 1 << 13;
    let config = |seg_max, num_queues, max_discard_sectors| {
        let config = BlkConfig {
            capacity: 2048,
            seg_max,
            num_queues,
            max_discard_sectors,
            ..BlkConfig::default()
        };
        let disk = Scripted::disk().with(offers);
        disk.config(config.to_bytes().to_vec())
    };
    let cases = [
        (Scripted::disk(), "features"),
        (config(32, 4, 1 << 21), "profile=portable"),
        (config(126, 4, 32768), "profile=portable"),
        (config(126, 1, 1 << 21).queues(1), "1 queue"),
        (config(126, 4, 1 << 21).config(vec![0; 8]), "GET_CONFIG"),
    ];
    each(cases.into(), |bench, (script, words)| {
        let first = bench.attached(config(126, 4, 1 << 21));
        bench.drive_with(offers);
        first.wait_for(R::SET_VRING_ENABLE);
        first.wait_for(R::GET_FEATURES);
        let second = Candidate::of(script).comes(bench);
        assert_eq!(is_lost(bench, 2, words), Cause::DoesNotFit);
        second.join();
        assert_eq!(seen(&first), [], "it serves on");
        is_the_device_s(bench, &first);
    });
}

/// One that has acknowledged features reads by them what it goes by, and is ready
/// afterwards.
#[test]
fn what_a_driver_goes_by_that_is_just_being_set_up_is_not_taken_from_it() {
    let rich = || {
        Scripted::disk().with(1 << 2).config({
            let config = BlkConfig {
                capacity: 2048,
                seg_max: 126,
                num_queues: 4,
                ..BlkConfig::default()
            };
            config.to_bytes().to_vec()
        })
    };
    for has_acknowledged in [true, false] {
        let Some(bench) = Bench::new() else { return };
        let first = bench.attached(rich());
        bench.write(BAR + 20, 3, 1);
        if has_acknowledged {
            for (which, bits) in [(0, 1 << 2), (1, 1)] {
                bench.write(BAR + 8, which, 4);
                bench.write(BAR + 12, bits, 4);
            }
            bench.write(BAR + 20, 11, 1);
            assert_eq!(bench.status(), 11);
        }
        let second = Candidate::of(Scripted::disk()).comes(&bench);
        assert_eq!(is_lost(&bench, 2, "features"), Cause::DoesNotFit);
        second.join();
        let third = Candidate {
            number: 3,
            ..Candidate::of(rich())
        };
        let _third = third.waits(&bench);
        is_the_device_s_when_idle(&bench, &first);
    }
}

/// Of a driver that has set nothing up there is nothing to be told.
fn is_the_device_s_when_idle(bench: &Bench, fake: &Running) {
    bench.reset();
    bench.drive();
    fake.wait_for(R::SET_VRING_ENABLE);
    assert_eq!(bench.told(), []);
}
