//! Requests that a predecessor had taken, one at a time, and one of them refused.
//!
//! As in `recovery`, a predecessor is "dead" when it is silent, and its successor works
//! on a copy of the region. A request that kills is one that is never returned: what its
//! back-end has said by then is all that a supervisor would know.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use outboard_contract::client::{Ack, Client};
use outboard_contract::memory::{Memory as Guest, sealed};
use outboard_contract::ring::Ring;
use outboard_contract::soon;
use outboard_protocol::Deadline;
use outboard_protocol::kept::Kept;
use outboard_protocol::launch::{Channel, FromBackend, InFlight, Link, Replay, ToBackend};
use outboard_runtime::Supervisor;
use outboard_runtime::event::Event;
use outboard_runtime::session::{Host, Limits, serve};
use support::*;
use vhost::vhost_user::message::VhostUserInflight;

const SIZE: u16 = 32;

/// How a back-end begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// It serves both rings.
    Serves,
    /// It is a standby, which takes over.
    Waits,
    /// The second ring begins when the first has executed something: else either may be
    /// the first that has the turn.
    InTurn,
}

/// A back-end that serves two queues, and its supervisor's end of the line.
struct Backend {
    line: Channel,
    knobs: Arc<Knobs>,
    client: Client,
    region: (VhostUserInflight, OwnedFd),
}

impl Backend {
    /// With the region of the one before, if there was one, and both rings.
    fn start(guest: &Guest, rings: &mut [Ring; 2], before: Option<&Self>, replay: Replay) -> Self {
        Self::begin(guest, rings, before, replay, How::Serves)
    }

    /// The same in another way.
    fn begin(
        guest: &Guest,
        rings: &mut [Ring; 2],
        before: Option<&Self>,
        replay: Replay,
        how: How,
    ) -> Self {
        let waits = how == How::Waits;
        let (line, theirs) = Channel::pair().unwrap();
        let (kept, link) = (Kept::Nothing, Link::Up);
        let start = ToBackend::Start {
            version: 2,
            kept: kept.clone(),
            link,
            replay: match waits {
                true => Replay::default(),
                false => replay.clone(),
            },
            waits,
        };
        line.send(&start, &[], soon()).unwrap();
        let supervisor = Supervisor::meet(theirs.into(), soon()).unwrap();
        let (device, knobs) = Loopback::new(2);
        let mut host = Host::supervised(device, Limits::default(), supervisor).unwrap();
        let (front, back) = UnixStream::pair().unwrap();
        std::thread::spawn(move || serve(&mut host, back, Event::new().unwrap().as_fd()));
        let mut client = Client::new(front);
        client.negotiate(EVENT_IDX | VERSION_1).unwrap();
        client.set_mem_table(guest).unwrap();
        if waits {
            let take_over = ToBackend::TakeOver { kept, replay };
            line.send(&take_over, &[], soon()).unwrap();
        }
        let region = match before {
            None => client.get_inflight(2, SIZE).unwrap(),
            Some(before) => (before.region.0, before.copy()),
        };
        let ack = client.set_inflight(&region.0, region.1.as_fd()).unwrap();
        assert_eq!(ack, Ack::Done);
        for (index, ring) in (0..).zip(rings) {
            ring.renew_events().unwrap();
            client
                .start_ring(index, ring, ring.used_idx().unwrap())
                .unwrap();
            if how == How::InTurn {
                wait(|| !knobs.seen.lock().unwrap().is_empty());
            }
        }
        let this = Self {
            line,
            knobs,
            client,
            region,
        };
        assert!(matches!(this.hear(), FromBackend::Ready { .. }));
        this
    }

    /// The region as it is now.
    fn copy(&self) -> OwnedFd {
        let (described, fd) = &self.region;
        let mut bytes = vec![0; described.mmap_size as usize];
        let file = File::from(fd.try_clone().unwrap());
        file.read_exact_at(&mut bytes, 0).unwrap();
        let copy = sealed(described.mmap_size).unwrap();
        copy.write_all_at(&bytes, 0).unwrap();
        copy.into()
    }

    fn hear(&self) -> FromBackend {
        let heard = self.line.recv(soon()).unwrap();
        heard.unwrap().0
    }

    fn is_silent(&self) -> bool {
        let now = Deadline::after(Duration::ZERO);
        self.line.recv::<FromBackend>(now).is_err()
    }

    fn seen(&self) -> Vec<u8> {
        self.knobs.seen.lock().unwrap().clone()
    }

    fn wait_seen(&self, marks: &[u8]) {
        wait(|| self.seen().len() >= marks.len());
        assert_eq!(self.seen(), marks);
    }
}

fn rings(guest: &Guest) -> [Ring; 2] {
    [LOW, LOW + 0x8000].map(|place| Ring::new(guest, place, SIZE, true).unwrap())
}

fn one_by_one(refuse: &[InFlight]) -> Replay {
    Replay {
        one_by_one: true,
        refuse: refuse.to_vec(),
    }
}

fn request(queue: u16, head: u16, counter: u64) -> InFlight {
    InFlight {
        queue,
        head,
        counter,
    }
}

#[test]
fn what_is_found_is_told_before_it_is_executed_and_when_it_is_over() {
    let guest = guest();
    let mut rings = rings(&guest);
    let first = Backend::start(&guest, &mut rings, None, Replay::default());
    let heads = [0, 1].map(|mark| submit(&guest, &mut rings[1], LATER, mark));
    first.knobs.wait_held(2);
    assert!(first.is_silent(), "it has found nothing");

    let second = Backend::start(&guest, &mut rings, Some(&first), Replay::default());
    second.knobs.wait_held(2);
    let found = FromBackend::Found {
        queue: 1,
        requests: vec![(heads[0], 1), (heads[1], 2)],
    };
    assert_eq!(second.hear(), found);
    assert!(second.is_silent());
    second.knobs.open(true);
    assert_eq!(second.hear(), FromBackend::Replayed { queue: 1 });
    for mark in [0, 1] {
        rings[1].wait_used(soon()).unwrap();
        check(&guest, mark);
    }
    still_serves(&guest, &mut rings[1]);
    assert!(second.is_silent());
}

#[test]
fn one_by_one_each_is_named_first_and_nothing_else_is_executed() {
    let guest = guest();
    let mut rings = rings(&guest);
    let first = Backend::start(&guest, &mut rings, None, Replay::default());
    // Two that are done when they are executed again, one that never is, one after it.
    for (queue, mark) in [(0, 0), (0, 1), (1, 2), (1, 3)] {
        submit(&guest, &mut rings[queue], LATER, mark);
        first.knobs.wait_held(usize::from(mark) + 1);
    }
    for mark in [0, 1, 3] {
        fill(&guest, place(mark).0, NOW, mark, 64);
    }
    let order = one_by_one(&[]);
    let second = Backend::begin(&guest, &mut rings, Some(&first), order, How::InTurn);
    second.knobs.wait_held(1);
    let (mut told, mut named) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        match second.hear() {
            FromBackend::Replays(request) => named.push(request),
            other => told.push(other),
        }
    }
    let kills = request(1, named[2].head, 1);
    let order: Vec<_> = named.iter().map(|of| (of.queue, of.counter)).collect();
    assert_eq!(order, [(0, 1), (0, 2), (1, 1)]);
    assert_eq!(named[2], kills);
    assert_eq!(
        told.len(),
        3,
        "two queues have found some, one has replayed them"
    );
    // Neither the one after it nor anything new, of whatever queue, is executed.
    let new = submit(&guest, &mut rings[0], NOW, 4);
    rings[0].kick().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    second.wait_seen(&[0, 1, 2]);
    assert!(second.is_silent());

    // It has died of that: the next one does not execute it.
    for _ in 0..2 {
        rings[0].wait_used(soon()).unwrap();
    }
    let third = Backend::start(&guest, &mut rings, Some(&second), one_by_one(&[kills]));
    assert_eq!(rings[1].wait_used(soon()).unwrap(), (kills.head, 0));
    rings[1].wait_used(soon()).unwrap();
    expect(&guest, &mut rings[0], new, 4);
    // What is new may be first: its ring begins before the other one.
    wait(|| third.seen().len() == 2);
    let told: Vec<_> = (0..4).map(|_| third.hear()).collect();
    let [
        FromBackend::Found { .. },
        refused,
        FromBackend::Replays(last),
        over,
    ] = &told[..]
    else {
        panic!("{told:?}");
    };
    let expected = FromBackend::Refused {
        queue: 1,
        head: kills.head,
        counter: 1,
        text: "a request".into(),
    };
    assert_eq!(*refused, expected);
    assert_eq!((last.queue, last.counter), (1, 2));
    assert_eq!(*over, FromBackend::Replayed { queue: 1 });
    drop(third.client);
}

#[test]
fn a_ring_is_stopped_while_it_replays_one_by_one() {
    let guest = guest();
    let mut rings = rings(&guest);
    let first = Backend::start(&guest, &mut rings, None, Replay::default());
    for (queue, mark) in [(0, 0), (1, 1), (1, 2)] {
        submit(&guest, &mut rings[queue], LATER, mark);
        first.knobs.wait_held(usize::from(mark) + 1);
    }
    let order = one_by_one(&[]);
    let second = Backend::begin(&guest, &mut rings, Some(&first), order, How::InTurn);
    second.knobs.wait_held(1);
    let opens = {
        let knobs = second.knobs.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            knobs.open(true);
        })
    };
    // The other ring has the turn; this one is drained when it has come round.
    assert_eq!(second.client.stop_ring(1).unwrap(), 2);
    assert_eq!(rings[1].used_idx().unwrap(), 2);
    second.wait_seen(&[0, 1, 2]);
    rings[0].wait_used(soon()).unwrap();
    still_serves(&guest, &mut rings[0]);
    opens.join().unwrap();
}

#[test]
fn a_standby_deals_with_them_as_it_is_told_when_it_takes_over() {
    let guest = guest();
    let mut rings = rings(&guest);
    let first = Backend::start(&guest, &mut rings, None, Replay::default());
    let head = submit(&guest, &mut rings[1], LATER, 0);
    first.knobs.wait_held(1);
    let order = one_by_one(&[request(1, head, 1)]);
    let second = Backend::begin(&guest, &mut rings, Some(&first), order, How::Waits);
    let found = FromBackend::Found {
        queue: 1,
        requests: vec![(head, 1)],
    };
    assert_eq!(second.hear(), found);
    let refused = second.hear();
    assert!(
        matches!(refused, FromBackend::Refused { queue: 1, head: of, counter: 1, .. } if of == head),
        "{refused:?}"
    );
    rings[1].wait_used(soon()).unwrap();
    assert!(second.seen().is_empty(), "it was not executed");
}
