//! A line, with a back-end's end in the test's hands.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt::Linger, sockopt::SndBuf};
use outboard_protocol::kept::DiskState;

use outboard_protocol::launch::{InFlight, LONGEST_TEXT};

use super::*;

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn is_due(line: &Line) -> bool {
    let mut fds = [PollFd::new(line.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
}

/// Attends to it until the back-end has a message.
fn next(line: &mut Line, theirs: &Channel) -> (ToBackend, Vec<OwnedFd>) {
    let limit = soon();
    while !limit.passed() {
        match theirs.recv(at_once()) {
            Ok(message) => return message.unwrap(),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::TimedOut),
        }
        let mut fds = [PollFd::new(line.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, limit.poll_timeout()).unwrap();
        assert!(line.attend().is_empty());
    }
    panic!("nothing came");
}

fn say(theirs: &Channel, message: &FromBackend) {
    theirs.send(message, &[], soon()).unwrap();
}

fn ready() -> FromBackend {
    FromBackend::Ready {
        version: VERSION,
        sandbox: BTreeMap::new(),
        release: "0.2.0".into(),
        waits: false,
    }
}

/// A line whose back-end has been told to start.
fn started(peer: Option<Way>) -> (Line, Channel) {
    let mut line = Line::new(peer, None).unwrap();
    let theirs = Channel::new(line.begin(Kept::Nothing).unwrap());
    let (start, _) = theirs.recv::<ToBackend>(soon()).unwrap().unwrap();
    assert!(matches!(start, ToBackend::Start { version: 2, .. }));
    (line, theirs)
}

#[test]
fn what_was_kept_is_there_before_the_back_end_is() {
    let kept = Kept::Disk(DiskState {
        writeback: false,
        sync_failed: true,
    });
    let mut line = Line::new(None, Some("lo")).unwrap();
    let theirs = Channel::new(line.begin(kept.clone()).unwrap());
    let (start, fds) = theirs.recv::<ToBackend>(soon()).unwrap().unwrap();
    let ToBackend::Start { kept: told, .. } = start else {
        panic!("{start:?}");
    };
    assert_eq!((told, fds.len()), (kept, 0));
}

#[test]
fn what_it_says_is_heard_in_order_and_its_end_once() {
    let (mut line, theirs) = started(None);
    assert!(!is_due(&line));
    let page = std::fs::File::open("/dev/null").unwrap();
    theirs.send(&ready(), &[page.as_fd()], soon()).unwrap();
    let kept = Kept::Nothing;
    say(&theirs, &FromBackend::Keeps { kept });
    // It has no peer, and none is looked for.
    say(&theirs, &FromBackend::WantsPeer);
    drop(theirs);
    assert!(is_due(&line));
    let heard = line.attend();
    assert!(
        matches!(
            &heard[..],
            [
                Heard::Ready {
                    counters: Some(_),
                    release,
                    ..
                },
                Heard::Keeps(Kept::Nothing),
                Heard::HungUp
            ] if release == "0.2.0"
        ),
        "{heard:?}"
    );
    assert!(!is_due(&line), "it would be readable for ever");
    assert!(line.attend().is_empty());
}

#[test]
fn what_failed_on_the_host_is_heard_and_may_be_tried_again() {
    let (mut line, theirs) = started(None);
    theirs.send(&ready(), &[], soon()).unwrap();
    let failed = |text: &str| FromBackend::IoError {
        queue: 3,
        text: text.into(),
    };
    say(&theirs, &failed("cannot write"));
    let heard = line.attend();
    assert!(
        matches!(&heard[..], [Heard::Ready { .. }, Heard::IoError { queue: 3, text }] if text == "cannot write"),
        "{heard:?}"
    );
    line.retry();
    let (told, _) = theirs.recv::<ToBackend>(soon()).unwrap().unwrap();
    assert_eq!(told, ToBackend::Retry);
    // No more is told than fits on a line of ours.
    say(&theirs, &failed(&"x".repeat(LONGEST_TEXT + 1)));
    let heard = line.attend();
    assert!(matches!(&heard[..], [Heard::Nonsense(_)]), "{heard:?}");
    // Nobody hears this, and nothing comes of it.
    line.retry();
}

#[test]
fn what_no_back_end_says_ends_its_line() {
    let out_of_bounds = FromBackend::Ready {
        version: 3,
        sandbox: BTreeMap::new(),
        release: String::new(),
        waits: false,
    };
    let keeps = || FromBackend::Keeps {
        kept: Kept::Nothing,
    };
    for (said, fds) in [
        (vec![out_of_bounds], 0),
        (vec![keeps()], 0),
        (vec![FromBackend::WantsPeer], 0),
        (vec![ready(), ready()], 0),
        (vec![ready()], 2),
        (vec![ready(), keeps()], 1),
    ] {
        let (mut line, theirs) = started(None);
        let (last, first) = said.split_last().unwrap();
        first.iter().for_each(|message| say(&theirs, message));
        let page = std::fs::File::open("/dev/null").unwrap();
        let fds = vec![page.as_fd(); fds];
        theirs.send(last, &fds, soon()).unwrap();
        say(&theirs, &keeps());
        let heard = line.attend();
        assert!(
            matches!(heard.last(), Some(Heard::Nonsense(_))),
            "{heard:?}"
        );
        assert!(!is_due(&line));
        line.resize(1);
        assert!(line.attend().is_empty());
    }
    let (mut line, theirs) = started(None);
    let long = BTreeMap::from([("message", "x".repeat(5000))]);
    theirs.send(&long, &[], soon()).unwrap();
    let heard = line.attend();
    let [Heard::Nonsense(why)] = &heard[..] else {
        panic!("{heard:?}");
    };
    assert!(why.len() == SHOWN && why.contains("xxx"), "{why}");
}

#[test]
fn one_who_never_stops_speaking_is_heard_in_turns() {
    let keeps = FromBackend::Keeps {
        kept: Kept::Nothing,
    };
    for (said, heard) in [(keeps, AT_ONCE), (FromBackend::WantsPeer, 0)] {
        let (mut line, theirs) = started(None);
        say(&theirs, &ready());
        assert_eq!(line.attend().len(), 1);
        for _ in 0..=AT_ONCE {
            say(&theirs, &said);
        }
        assert_eq!(line.attend().len(), heard);
        assert!(is_due(&line), "one is left");
        line.attend();
        assert!(!is_due(&line));
    }
}

#[test]
fn a_resize_is_told_and_its_answer_is_heard() {
    let (mut line, theirs) = started(None);
    say(&theirs, &ready());
    line.attend();
    line.resize(1024);
    let (told, _) = theirs.recv::<ToBackend>(soon()).unwrap().unwrap();
    assert_eq!(told, ToBackend::Resize { size: 1024 });
    assert!(
        line.attend().is_empty(),
        "who does not know it says nothing"
    );
    say(&theirs, &FromBackend::Resized { size: u64::MAX });
    let heard = line.attend();
    assert!(
        matches!(&heard[..], [Heard::Resized(u64::MAX)]),
        "{heard:?}"
    );
    // As anything else, it is said when the back-end is ready, and not before.
    let successor = Channel::new(line.begin(Kept::Nothing).unwrap());
    say(&successor, &FromBackend::Resized { size: 1024 });
    let heard = line.attend();
    assert!(matches!(&heard[..], [Heard::Nonsense(_)]), "{heard:?}");
}

#[test]
fn every_request_that_is_found_is_heard_and_a_successor_is_told_what_to_refuse() {
    let (mut line, theirs) = started(None);
    say(&theirs, &ready());
    let [one, two] = [1, 2].map(|head| InFlight {
        queue: 3,
        head,
        counter: 7,
    });
    for head in [1, 2] {
        let requests = vec![(head, 7)];
        say(&theirs, &FromBackend::Found { queue: 3, requests });
    }
    say(&theirs, &FromBackend::Replays(one));
    say(&theirs, &FromBackend::Replayed { queue: 3 });
    let heard = line.attend();
    let [
        _,
        Heard::InFlight(Told::Found(first)),
        Heard::InFlight(Told::Found(second)),
        Heard::InFlight(Told::Replays(of)),
        Heard::InFlight(Told::Replayed(3)),
    ] = &heard[..]
    else {
        panic!("{heard:?}");
    };
    assert_eq!(
        (&first[..], &second[..], *of),
        (&[one][..], &[two][..], one)
    );
    let replay = Replay {
        one_by_one: true,
        refuse: vec![two],
    };
    let theirs = line.begin_again(Kept::Nothing, replay.clone()).unwrap();
    let (start, _) = Channel::new(theirs).recv(soon()).unwrap().unwrap();
    let ToBackend::Start { replay: told, .. } = start else {
        panic!("{start:?}");
    };
    assert_eq!(told, replay);
}

#[test]
fn a_successor_has_a_line_of_its_own() {
    let (mut line, theirs) = started(None);
    say(&theirs, &ready());
    line.attend();
    let successor = Channel::new(line.begin(Kept::Nothing).unwrap());
    // What the predecessor says is nobody's affair.
    let kept = Kept::Nothing;
    assert!(
        theirs
            .send(&FromBackend::Keeps { kept }, &[], soon())
            .is_err()
    );
    say(&successor, &ready());
    assert!(matches!(&line.attend()[..], [Heard::Ready { .. }]));
    line.end();
    assert!(!is_due(&line));
}

#[test]
fn of_what_a_back_end_does_not_read_the_last_is_told() {
    let (mut line, theirs) = started(None);
    setsockopt(&line.open.as_ref().unwrap().channel, SndBuf, &1).unwrap();
    for size in 1..=1000 {
        line.resize(size * 512);
    }
    assert!(
        line.open.as_ref().unwrap().waits,
        "the socket took them all"
    );
    assert!(!is_due(&line), "there is nothing to do until it reads");
    let mut last = 0;
    while last != 1000 * 512 {
        let (message, _) = next(&mut line, &theirs);
        let ToBackend::Resize { size } = message else {
            panic!("{message:?}");
        };
        assert!(size > last);
        last = size;
    }
    assert!(!line.open.as_ref().unwrap().waits);
}

#[test]
fn a_peer_that_listens_is_connected_to_again_when_it_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peer");
    let listener = UnixListener::bind(&path).unwrap();
    let (mut line, theirs) = started(Some(Way::Connecting(path)));
    say(&theirs, &ready());
    line.attend();
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "nobody has asked for it");
    for turn in 0..3 {
        say(&theirs, &FromBackend::WantsPeer);
        let (message, fds) = next(&mut line, &theirs);
        assert_eq!((message, fds.len()), (ToBackend::Peer, 1), "{turn}");
        assert!(listener.accept().is_ok());
    }
}

#[test]
fn a_peer_that_connects_waits_until_it_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peer");
    let way = Way::Listening(UnixListener::bind(&path).unwrap().into());
    let (mut line, theirs) = started(Some(way));
    say(&theirs, &ready());
    line.attend();
    let _first = UnixStream::connect(&path).unwrap();
    assert!(!is_due(&line));
    say(&theirs, &FromBackend::WantsPeer);
    let (message, fds) = next(&mut line, &theirs);
    assert_eq!((message, fds.len()), (ToBackend::Peer, 1));
    // A successor begins with a peer of its own: the first may have had a part of a
    // frame.
    let _second = UnixStream::connect(&path).unwrap();
    let theirs = Channel::new(line.begin(Kept::Nothing).unwrap());
    theirs.recv::<ToBackend>(soon()).unwrap().unwrap();
    say(&theirs, &ready());
    assert_eq!(line.attend().len(), 1);
    assert!(!is_due(&line));
    say(&theirs, &FromBackend::WantsPeer);
    assert_eq!(next(&mut line, &theirs).0, ToBackend::Peer);
}

/// A peer that was wanted and is not there yet would wake us for ever.
#[test]
fn one_who_is_not_heard_any_more_wants_no_peer() {
    for nonsense in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer");
        let way = Way::Listening(UnixListener::bind(&path).unwrap().into());
        let (mut line, theirs) = started(Some(way));
        say(&theirs, &ready());
        say(&theirs, &FromBackend::WantsPeer);
        assert_eq!(line.attend().len(), 1);
        let mut fds = [PollFd::new(line.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, soon().poll_timeout()).unwrap();
        assert!(line.attend().is_empty() && !is_due(&line), "nobody came");
        match nonsense {
            true => say(&theirs, &ready()),
            false => drop(theirs),
        }
        assert_eq!(line.attend().len(), 1);
        let _late = UnixStream::connect(&path).unwrap();
        assert!(!is_due(&line));
    }
}

/// A socket whose last close(2) waits an hour for its peer to read.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    socket.set_nonblocking(true).unwrap();
    while io::Write::write(&mut socket, &[0; 1 << 16]).is_ok() {}
    let hour = nix::libc::linger {
        l_onoff: 1,
        l_linger: 3600,
    };
    setsockopt(&socket, Linger, &hour).unwrap();
    (socket, listener.accept().unwrap().0)
}

/// Whatever is said with it, and whether or not that is read.
#[test]
fn a_descriptor_that_is_not_wanted_is_closed_by_nobody_who_is_waited_for() {
    let keeps = || FromBackend::Keeps {
        kept: Kept::Nothing,
    };
    // `None` is no message.
    for said in [
        vec![Some(ready()), Some(keeps())],
        vec![None],
        vec![None, None],
    ] {
        let (mut line, theirs) = started(None);
        let (socket, _peer) = lingering();
        let (last, first) = said.split_last().unwrap();
        let send = |message, fds: &[_]| theirs.send(message, fds, soon()).unwrap();
        first.iter().for_each(|message| send(message, &[]));
        send(last, &[socket.as_fd()]);
        drop(socket);
        let (done, is_done) = channel();
        thread::spawn(move || {
            let heard = line.attend();
            assert!(matches!(heard.last(), Some(Heard::Nonsense(_))));
            done.send(()).unwrap();
        });
        let limit = Duration::from_secs(60);
        is_done.recv_timeout(limit).expect("it is held up");
    }
}

fn waiting() -> FromBackend {
    FromBackend::Ready {
        version: VERSION,
        sandbox: BTreeMap::new(),
        waits: true,
        release: String::new(),
    }
}

#[test]
fn one_that_waits_is_told_what_was_kept_when_it_is_to_take_over() {
    let mut line = Line::new(None, None).unwrap();
    let theirs = Channel::new(line.wait().unwrap());
    let (start, _) = theirs.recv::<ToBackend>(soon()).unwrap().unwrap();
    assert!(matches!(start, ToBackend::Start { waits: true, .. }));
    let kept = Kept::Disk(DiskState {
        writeback: false,
        sync_failed: true,
    });
    assert!(
        line.take_over(kept.clone(), Replay::default()).is_err(),
        "it is not ready"
    );
    say(&theirs, &waiting());
    assert!(matches!(&line.attend()[..], [Heard::Ready { .. }]));
    line.take_over(kept.clone(), Replay::default()).unwrap();
    assert_eq!(
        next(&mut line, &theirs).0,
        ToBackend::TakeOver {
            kept,
            replay: Replay::default()
        }
    );
    line.end();
    assert!(line.take_over(Kept::Nothing, Replay::default()).is_err());
}

#[test]
fn who_waits_says_so_and_who_does_not_wait_says_nothing_of_it() {
    let (mut line, theirs) = started(None);
    say(&theirs, &waiting());
    assert!(matches!(&line.attend()[..], [Heard::Nonsense(_)]));
    let theirs = Channel::new(line.wait().unwrap());
    say(&theirs, &ready());
    assert!(matches!(&line.attend()[..], [Heard::Nonsense(_)]));
}
