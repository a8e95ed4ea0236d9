//! Rings that nobody serves, and owners that nobody wakes.

use std::os::fd::OwnedFd;

use super::*;

/// Where the driver says how many chains it has made available.
const AVAILABLE: u64 = 0x2002;

/// A disk whose ring runs, and the test as its back-end.
struct Watched {
    bench: Bench,
    fake: Running,
    kick: File,
    id: String,
}

impl Watched {
    /// A disk with this id, 8 bytes at most and no other test's, whose back-end has
    /// consumed the kicks of the start.
    fn new(id: &str, whose: Whose, hang_timeout: u32) -> Option<Self> {
        let bench = Bench::of(launch::Device {
            id: id.into(),
            hang_timeout: Some(hang_timeout),
            ..spec(Kind::blk(), 2, false)
        })?;
        let fake = bench.attach_within(Scripted::disk(), Limits::default(), whose);
        assert!(matches!(bench.event(), FromMachine::Attached { .. }));
        let mut watched = Self {
            bench,
            fake,
            kick: File::open("/dev/null").unwrap(),
            id: id.into(),
        };
        watched.start();
        Some(watched)
    }

    fn start(&mut self) {
        self.bench.drive();
        let kick = self.fake.wait_for(FrontendReq::SET_VRING_KICK);
        let kick: OwnedFd = kick.fds.into_iter().next().unwrap();
        self.kick = kick.into();
        self.fake.wait_for(FrontendReq::SET_VRING_ENABLE);
        // The one of the start and the one after it was enabled.
        let mut count = 0;
        eventually(|| {
            count += self.hears();
            count == 2
        });
    }

    fn put(&self, address: u64, value: u16) {
        let address = GuestAddress(address);
        self.bench.ram.guest().write_obj(value, address).unwrap();
    }

    /// As KVM does it.
    fn kicked(&self) {
        (&self.kick).write_all(&1u64.to_ne_bytes()).unwrap();
    }

    /// A kick that is consumed at once.
    fn kicked_and_heard(&self) {
        self.kicked();
        assert_eq!(self.hears(), 1);
    }

    /// Consumes what was kicked by now: how often it was.
    fn hears(&self) -> u64 {
        let mut count = [0; 8];
        let read = (&self.kick).read(&mut count);
        read.map_or(0, |_| u64::from_ne_bytes(count))
    }

    /// How often this ring was told by now, and whether for a kick. It is next told so.
    fn unserved(&self) -> (bool, u32) {
        match self.bench.event() {
            FromMachine::Unserved {
                session: 1,
                queue: 0,
                kick,
                times,
                device,
            } if device == self.id => (kick, times),
            other => panic!("{other:?}"),
        }
    }

    /// How often its owner has gone to sleep.
    fn sleeps(&self) -> u64 {
        let name = format!("device {}", self.id);
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let folders = tasks.map(|task| task.unwrap().path());
        let read = |folder: &std::path::Path, file| {
            std::fs::read_to_string(folder.join(file)).unwrap_or_default()
        };
        let mut owners = folders.filter(|folder| read(folder, "comm").trim() == name);
        let status = read(&owners.next().unwrap(), "status");
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.unwrap().trim().parse().unwrap()
    }

    /// Waits until its owner sleeps on: how often it has gone to sleep.
    fn at_rest(&self) -> u64 {
        let mut before = 0;
        let mut now = self.sleeps();
        eventually(|| {
            std::thread::sleep(Duration::from_millis(700));
            before = std::mem::replace(&mut now, self.sleeps());
            before == now
        });
        now
    }

    fn nothing_is_told(&self) {
        assert_eq!(self.bench.told(), []);
    }
}

const SHORT: u32 = 200;

#[test]
fn a_kick_that_nobody_consumes_is_told_until_somebody_does() {
    for (id, whose) in [("kick-own", Whose::Own), ("kick-oth", Whose::default())] {
        let Some(mut watched) = Watched::new(id, whose, SHORT) else {
            return;
        };
        for _ in 0..2 {
            let rest = watched.at_rest();
            assert_eq!(watched.at_rest(), rest, "nothing wakes it");
            watched.kicked();
            for times in 1..=3 {
                assert_eq!(watched.unserved(), (true, times));
            }
            assert_eq!(watched.hears(), 1);
            watched.at_rest();
            watched.bench.told();
        }
        // Nor is it told of a driver that has gone.
        watched.kicked();
        assert_eq!(watched.unserved(), (true, 1));
        watched.bench.reset();
        watched.bench.told();
        let rest = watched.at_rest();
        assert_eq!(watched.at_rest(), rest);
        watched.nothing_is_told();
        watched.start();
        watched.at_rest();
        watched.nothing_is_told();
        watched.kicked();
        assert_eq!(watched.unserved(), (true, 1));
    }
}

#[test]
fn chains_that_are_not_returned_are_told_and_of_our_own_back_end_alone() {
    let Some(own) = Watched::new("slow-own", Whose::Own, SHORT) else {
        return;
    };
    let other = Watched::new("slow-oth", Whose::default(), SHORT).unwrap();
    let takes_one = |watched: &Watched| {
        watched.at_rest();
        watched.put(AVAILABLE, 1);
        watched.kicked_and_heard();
    };
    takes_one(&own);
    for times in 1..=3 {
        assert_eq!(own.unserved(), (false, times));
    }
    // There is no more to be expected of it than that it consumes kicks.
    takes_one(&other);
    other.at_rest();
    other.nothing_is_told();
    own.bench.uses(1);
    own.at_rest();
    own.bench.told();
    own.at_rest();
    own.nothing_is_told();
}

#[test]
fn a_back_end_that_wants_no_kicks_and_does_nothing_is_told() {
    let Some(watched) = Watched::new("unwanted", Whose::Own, SHORT) else {
        return;
    };
    watched.at_rest();
    // It has consumed the kick before anybody could look, and asks for no more.
    watched.put(USED, 1);
    watched.kicked_and_heard();
    assert_eq!(watched.unserved(), (false, 1));
    watched.put(AVAILABLE, 1);
    assert_eq!(watched.unserved(), (false, 2));
    watched.put(USED, 0);
    watched.bench.uses(1);
    watched.at_rest();
}

#[test]
fn a_first_kick_wakes_the_owner_once_and_those_that_follow_do_not() {
    // A look a second.
    let Some(watched) = Watched::new("woken", Whose::Own, 4000) else {
        return;
    };
    let rest = watched.at_rest();
    for _ in 0..1000 {
        watched.kicked_and_heard();
    }
    // For the kick, and for the look that finds all quiet.
    let woken = watched.at_rest() - rest;
    assert!((1..=3).contains(&woken), "{woken} times");
    watched.nothing_is_told();
}

/// Its owner, who waits, looks at no ring meanwhile.
#[test]
fn an_answer_that_does_not_come_is_told_of_every_queue_until_it_comes() {
    let Some(bench) = Bench::of(launch::Device {
        hang_timeout: Some(SHORT),
        ..spec(Kind::blk(), 2, false)
    }) else {
        return;
    };
    let silent = Scripted::disk().on(FrontendReq::GET_VRING_BASE, Fault::Silence);
    let fake = bench.attached_within(silent, PATIENT, Whose::Own);
    bench.drive();
    bench.write(BAR + 20, 0, 1);
    fake.wait_for(FrontendReq::GET_VRING_BASE);
    tells_of_both_queues(&bench);
}

/// It has answered, and its requests are not done.
#[test]
fn requests_that_a_stopped_ring_still_has_are_told_of_every_queue_until_they_are_done() {
    let Some(bench) = Bench::of(launch::Device {
        hang_timeout: Some(SHORT),
        ..spec(Kind::blk(), 2, false)
    }) else {
        return;
    };
    let fake = bench.attached_within(Scripted::disk(), PATIENT, Whose::default());
    bench.drive();
    bench.uses(u16::MAX);
    bench.write(BAR + 20, 0, 1);
    fake.wait_for(FrontendReq::GET_VRING_BASE);
    tells_of_both_queues(&bench);
}

fn tells_of_both_queues(bench: &Bench) {
    for (times, queue) in (1..=3).flat_map(|times| [(times, 0), (times, 1)]) {
        let expected = FromMachine::Unserved {
            device: "disk0".into(),
            session: 1,
            queue,
            kick: false,
            times,
        };
        assert_eq!(bench.event(), expected);
    }
}

#[test]
fn of_a_device_that_may_hang_no_answer_is_told_to_be_late() {
    let Some(bench) = Bench::new() else { return };
    let late = Fault::Late(Duration::from_millis(4 * u64::from(SHORT)));
    let late = Scripted::disk().on(FrontendReq::GET_VRING_BASE, late);
    let _fake = bench.attached_within(late, PATIENT, Whose::Own);
    bench.drive();
    bench.reset();
    assert_eq!(bench.told(), []);
}
