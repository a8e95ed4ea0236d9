//! The line to a supervisor, at the back-end's end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use outboard_contract::client::{Ack, Client};
use outboard_contract::ring::Ring;
use outboard_contract::soon;
use outboard_protocol::Deadline;
use outboard_protocol::counters::{self, Doing};
use outboard_protocol::kept::{CardState, DiskState, Kept};
use outboard_protocol::launch::{Channel, FromBackend, Link, ToBackend};
use outboard_runtime::event::Event;
use outboard_runtime::session::{End, Host, Limits, serve};
use outboard_runtime::{News, Supervisor};
use support::*;

fn start(kept: Kept, link: Link) -> ToBackend {
    ToBackend::Start {
        version: 2,
        kept,
        link,
        replay: Default::default(),
        waits: false,
    }
}

fn disk(writeback: bool) -> Kept {
    Kept::Disk(DiskState {
        writeback,
        sync_failed: false,
    })
}

/// A supervisor that has said this much.
fn said(message: &impl serde::Serialize) -> (Channel, OwnedFd) {
    let (ours, theirs) = Channel::pair().unwrap();
    ours.send(message, &[], soon()).unwrap();
    (ours, theirs.into())
}

/// A host with a supervisor, which serves two sessions.
struct Served {
    line: Channel,
    knobs: Arc<Knobs>,
    first: Client,
    second: Client,
    counters: OwnedFd,
    thread: JoinHandle<[End; 2]>,
}

impl Served {
    fn new(kept: Kept, link: Link, before: &[ToBackend]) -> Self {
        Self::started(&start(kept, link), before)
    }

    /// As a standby.
    fn waiting() -> Self {
        let start = ToBackend::Start {
            version: 2,
            kept: Kept::Nothing,
            link: Link::Up,
            replay: Default::default(),
            waits: true,
        };
        Self::started(&start, &[])
    }

    fn started(start: &ToBackend, before: &[ToBackend]) -> Self {
        let (line, theirs) = said(start);
        for message in before {
            line.send(message, &[], soon()).unwrap();
        }
        let (device, knobs) = Loopback::new(2);
        let supervisor = Supervisor::meet(theirs, soon()).unwrap();
        let mut host = Host::supervised(device, Limits::default(), supervisor).unwrap();
        let (ready, mut fds) = line.recv::<FromBackend>(soon()).unwrap().unwrap();
        ready.check().unwrap();
        let should_wait = matches!(start, ToBackend::Start { waits: true, .. });
        let FromBackend::Ready { sandbox, waits, .. } = ready else {
            panic!("{ready:?}");
        };
        assert!(sandbox.is_empty() && waits == should_wait);
        let (first, theirs) = UnixStream::pair().unwrap();
        let (second, later) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || {
            let stop = Event::new().unwrap();
            [theirs, later].map(|stream| serve(&mut host, stream, stop.as_fd()).unwrap())
        });
        Self {
            line,
            knobs,
            first: Client::new(first),
            second: Client::new(second),
            counters: fds.remove(0),
            thread,
        }
    }

    fn tell(&self, message: &ToBackend, fds: &[&dyn AsFd]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        self.line.send(message, &fds, soon()).unwrap();
    }

    fn heard(&self) -> Vec<String> {
        let heard = self.knobs.heard.lock().unwrap();
        let heard = heard.iter().map(|news| match news {
            News::Peer(_) => "peer".to_owned(),
            news => format!("{news:?}"),
        });
        heard.collect()
    }

    fn end(self) {
        drop((self.first, self.second));
        wait(|| self.thread.is_finished());
        assert_eq!(self.thread.join().unwrap(), [End::Closed, End::Closed]);
    }
}

/// What has been said by now.
fn now(line: &Channel) -> Option<FromBackend> {
    let heard = line.recv::<FromBackend>(Deadline::after(Duration::ZERO));
    heard.ok().map(|heard| heard.expect("it is open").0)
}

#[test]
fn what_was_kept_is_there_in_place_of_the_first_reset() {
    for (kept, first) in [
        (disk(false), &[1 << 32][..]),
        (Kept::Nothing, &[0, 1 << 32]),
    ] {
        let mut served = Served::new(kept.clone(), Link::Up, &[]);
        let config = served.first.config(1, 1).unwrap();
        assert_eq!(config, [if kept == Kept::Nothing { 2 } else { 0 }]);
        served.first.negotiate(VERSION_1).unwrap();
        let resets = || served.knobs.resets.lock().unwrap().clone();
        assert_eq!(resets(), first);
        // The next session begins as any.
        drop(std::mem::replace(
            &mut served.first,
            Client::new(UnixStream::pair().unwrap().0),
        ));
        served.second.negotiate(VERSION_1).unwrap();
        assert_eq!(resets(), [first, &[0, 1 << 32]].concat());
        // Nothing has changed, so nothing was said.
        assert_eq!(now(&served.line), None);
        served.end();
    }
}

#[test]
fn a_change_is_told_before_it_is_answered_and_once() {
    let mut served = Served::new(Kept::Nothing, Link::Up, &[]);
    served.first.negotiate(VERSION_1).unwrap();
    for writeback in [false, true, false] {
        for told in [true, false] {
            let answer = served.first.set_config(1, &[writeback.into()]).unwrap();
            let kept = disk(writeback);
            let expected = told.then_some(FromBackend::Keeps { kept });
            assert_eq!((answer, now(&served.line)), (Ack::Done, expected));
        }
    }
    // What is refused changes nothing.
    assert_eq!(served.first.set_config(77, &[1]).unwrap(), Ack::Refused);
    assert_eq!(now(&served.line), None);
    served.end();
}

#[test]
fn what_the_supervisor_says_reaches_the_device_at_any_time() {
    let link = Link::NoCarrier;
    let served = Served::new(Kept::Nothing, Link::Down, &[ToBackend::Link { link }]);
    wait(|| served.heard() == ["Link(Down)", "Link(NoCarrier)"]);
    let (peer, _theirs) = UnixStream::pair().unwrap();
    served.tell(&ToBackend::Resize { size: 512 }, &[]);
    served.tell(&ToBackend::Peer, &[&peer]);
    served.tell(&ToBackend::Retry, &[]);
    wait(|| served.heard()[2..] == ["Resize(512)", "peer", "Retry"]);
    served.end();
}

#[test]
fn a_supervisor_that_goes_or_talks_nonsense_ends_no_session() {
    let (peer, _theirs) = UnixStream::pair().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let nonsense: [(ToBackend, &[&dyn AsFd]); 7] = [
        (start(Kept::Nothing, Link::Up), &[]),
        (ToBackend::Peer, &[]),
        (ToBackend::Peer, &[&file]),
        (ToBackend::Peer, &[&peer, &peer]),
        (ToBackend::Resize { size: 1 }, &[&peer]),
        (ToBackend::Retry, &[&peer]),
        (ToBackend::Link { link: Link::Up }, &[&peer]),
    ];
    for message in nonsense.iter().map(Some).chain([None]) {
        let mut served = Served::new(Kept::Nothing, Link::Up, &[]);
        match message {
            Some((message, fds)) => served.tell(message, fds),
            None => served.line = Channel::pair().unwrap().0,
        }
        let guest = guest();
        let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
        served.first.negotiate(VERSION_1).unwrap();
        served.first.set_mem_table(&guest).unwrap();
        served.first.start_ring(0, &ring, 0).unwrap();
        still_serves(&guest, &mut ring);
        // It may have been heard late, and is not heard any more.
        assert_eq!(served.first.set_config(1, &[0]).unwrap(), Ack::Done);
        if message.is_some() {
            served.tell(&ToBackend::Resize { size: 2 }, &[]);
        }
        assert_eq!(served.first.set_config(1, &[1]).unwrap(), Ack::Done);
        assert_eq!(served.heard(), ["Alone"]);
        served.end();
    }
}

#[test]
fn a_start_that_is_none_is_refused_and_is_not_waited_for_without_end() {
    let other = serde_json::json!({"message": "start", "version": 3, "colour": "red"});
    let wrong = serde_json::json!({"message": "start", "version": 2, "kept": {"drum": 1}});
    let (_lines, ends): (Vec<_>, Vec<_>) = [
        said(&other),
        said(&ToBackend::Peer),
        said(&wrong),
        said(&"start"),
    ]
    .into_iter()
    .unzip();
    for (end, words) in ends.into_iter().zip([
        "version 3 of the launch contract, but this program knows only version 2",
        "first message is not `start`",
        "first message: unknown variant `drum`",
        "first message: ",
    ]) {
        let error = format!("{:#}", Supervisor::meet(end, soon()).unwrap_err());
        assert!(error.contains(words), "{error}");
    }
    let (line, theirs) = Channel::pair().unwrap();
    let copy = theirs.as_fd().try_clone_to_owned().unwrap();
    let brief = Deadline::after(Duration::from_millis(20));
    let error = Supervisor::meet(copy, brief).unwrap_err().to_string();
    assert!(error.contains("does not say `start`"), "{error}");
    drop(line);
    let error = Supervisor::meet(theirs.into(), soon()).unwrap_err();
    assert!(
        error.to_string().contains("closed the line before"),
        "{error}"
    );
}

#[test]
fn what_a_device_cannot_restore_ends_its_start_before_it_is_ready() {
    let (line, theirs) = said(&start(Kept::Card(CardState::default()), Link::Up));
    let supervisor = Supervisor::meet(theirs, soon()).unwrap();
    let (device, _knobs) = Loopback::new(1);
    let error = Host::supervised(device, Limits::default(), supervisor).unwrap_err();
    assert!(
        error.to_string().contains("of another kind of device"),
        "{error}"
    );
    assert!(line.recv::<FromBackend>(soon()).unwrap().is_none());
}

#[test]
fn the_page_of_counters_goes_on_from_ring_to_ring() {
    let mut served = Served::new(Kept::Nothing, Link::Up, &[]);
    let guest = guest();
    served.first.negotiate(VERSION_1).unwrap();
    served.first.set_mem_table(&guest).unwrap();
    for chains in 1..4 {
        let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
        served.first.start_ring(1, &ring, 0).unwrap();
        still_serves(&guest, &mut ring);
        let shown = || counters::read(&served.counters, 2).unwrap()[1];
        // While it is served, too.
        let is_asleep = || shown().pulse.doing == Doing::Asleep;
        wait(|| shown().counts.chains == chains && shown().counts.sleeps > 0 && is_asleep());
        let asleep = shown().pulse;
        served.first.stop_ring(1).unwrap();
        assert_eq!(shown().pulse, asleep, "it goes no round without a cause");
        let [none, counts] = counters::read(&served.counters, 2).unwrap()[..] else {
            panic!("two queues");
        };
        let (none, counts) = (none.counts, counts.counts);
        assert_eq!(counts.calls + counts.suppressed, chains);
        assert!(counts.kicks > 0, "{counts:?}");
        assert_eq!(
            (none.chains, counts.chains, counts.batches),
            (0, chains, chains)
        );
    }
    served.end();
}

#[test]
fn one_that_waits_starts_no_ring_and_says_nothing_before_it_takes_over() {
    let mut served = Served::waiting();
    let guest = guest();
    let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
    served.first.negotiate(VERSION_1).unwrap();
    served.first.set_mem_table(&guest).unwrap();
    let error = served.first.start_ring(0, &ring, 0).unwrap_err();
    assert!(error.to_string().contains("Refused"), "{error}");
    served.first.stop_ring(0).unwrap();
    assert_eq!(served.first.set_config(1, &[1]).unwrap(), Ack::Done);
    assert_eq!(now(&served.line), None);
    served.tell(
        &ToBackend::TakeOver {
            kept: disk(false),
            replay: Default::default(),
        },
        &[],
    );
    // It has heard that, whatever it is asked next.
    assert_eq!(served.first.config(1, 1).unwrap(), [0]);
    let took_over = served.knobs.took_over.lock().unwrap().clone();
    assert_eq!((took_over.len(), took_over[0][1]), (1, 0), "as restored");
    served.first.start_ring(0, &ring, 0).unwrap();
    still_serves(&guest, &mut ring);
    assert_eq!(now(&served.line), None, "its supervisor knows that");
    assert_eq!(served.first.set_config(1, &[1]).unwrap(), Ack::Done);
    let kept = disk(true);
    assert_eq!(now(&served.line), Some(FromBackend::Keeps { kept }));
    assert!(served.heard().is_empty(), "it is no business of the device");
    served.end();
}

#[test]
fn one_that_cannot_go_on_as_its_predecessor_did_serves_nothing() {
    let mut served = Served::waiting();
    let guest = guest();
    let ring = Ring::new(&guest, LOW, 16, false).unwrap();
    let kept = Kept::Card(CardState::default());
    served.tell(
        &ToBackend::TakeOver {
            kept,
            replay: Default::default(),
        },
        &[],
    );
    served.first.negotiate(VERSION_1).unwrap();
    served.first.set_mem_table(&guest).unwrap();
    assert!(served.first.start_ring(0, &ring, 0).is_err());
    assert!(served.knobs.took_over.lock().unwrap().is_empty());
    served.end();
}
