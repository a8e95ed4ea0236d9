//! A back-end that is a shell script: it writes to the number that it was told, and
//! its socket is read here.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use outboard_protocol::Deadline;
use outboard_protocol::counters::{MAGIC, bytes};
use outboard_protocol::devices::Kind;
use outboard_protocol::kept::DiskState;
use outboard_protocol::launch::Device;

use super::*;
use crate::supervisor::host::fence::Image;
use crate::supervisor::host::lend::Lent;
use crate::supervisor::host::program::Program;
use crate::supervisor::process::child::Death;

const IN_ORDER: Event = Event::Died(Death::Exited(0));
/// It says that it is ready.
const READY: &str =
    r#"printf '{"message":"ready","version":2,"sandbox":{"seccomp":false}}' >&$OUTBOARD_LINE"#;
const LONG: Duration = Duration::from_secs(60);

/// A disk of two queues that is served by this script, which is lent one file.
fn served_by(script: &str) -> Rc<Opened> {
    let spec = Device {
        id: "disk0".into(),
        kind: Kind::blk(),
        queues: 2,
        fewer: false,
        queue_size: 256,
        hang_timeout: None,
    };
    let program = Program::open(Path::new("/bin/sh")).unwrap();
    let args = vec!["-c".into(), script.into()];
    let lent = Lent::Image(Image::new(tempfile::tempfile().unwrap()));
    Opened::served_by(spec, program, args, lent)
}

fn start(backend: &mut Backend, session: SessionNumber, kept: Kept) -> UnixStream {
    let front = backend.start(session, Some(kept), &Parent::of_all(), &Logging::default());
    let front = UnixStream::from(front.unwrap());
    front.set_read_timeout(Some(LONG)).unwrap();
    front
}

fn wait_for(fds: &mut [PollFd<'_>]) {
    let count = poll(fds, Deadline::after(LONG).poll_timeout());
    assert!(count.unwrap() > 0, "nothing came");
}

/// Attends to its line until this many events have come.
fn heard(backend: &mut Backend, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < count {
        let fds = backend.watched();
        let mut fds: Vec<_> = fds.map(|(fd, flags)| PollFd::new(fd, flags)).collect();
        wait_for(&mut fds);
        events.extend(backend.attend());
    }
    events
}

/// What is heard of it once its process is dead, and its end of the line closed: a child
/// of another test may have a copy of that until it has become its program.
fn ended(backend: &mut Backend) -> Vec<Event> {
    let mut events = heard(backend, 1);
    while !matches!(events.last(), Some(Event::HungUp(_))) {
        events.extend(heard(backend, 1));
    }
    events.extend(reaped(backend));
    events
}

/// What is heard of it once its process is dead.
fn reaped(backend: &mut Backend) -> Vec<Event> {
    let mut fds = [PollFd::new(backend.pidfd().unwrap(), PollFlags::POLLIN)];
    wait_for(&mut fds);
    backend.reap()
}

fn disk(writeback: bool) -> Kept {
    Kept::Disk(DiskState {
        writeback,
        sync_failed: false,
    })
}

#[test]
fn a_program_is_told_the_number_of_its_line_and_has_no_other() {
    let opened = served_by(
        "[ $OUTBOARD_LAUNCH = 1 ] && [ $OUTBOARD_LINE = 5 ] && [ -S /proc/$$/fd/5 ] && \
         [ $OUTBOARD_IMAGE = 6 ] && [ /proc/$$/fd/4 -ef /proc/$$/fd/6 ] && \
         [ -f /proc/$$/fd/6 ] && [ ! -e /proc/$$/fd/7 ] && read word <&3",
    );
    let mut both = [(); 2].map(|()| Backend::new(&opened).unwrap());
    // Both live at the same time.
    let fronts = both.each_mut().map(|it| start(it, 1, Kept::Nothing));
    for mut front in fronts {
        front.write_all(b"end\n").unwrap();
    }
    for backend in &mut both {
        // It knows no line, and its end closes what it has left alone.
        assert_eq!(ended(backend), [Event::HungUp(1), IN_ORDER]);
        assert!(backend.child().is_none() && backend.pidfd().is_none());
    }
}

#[test]
fn what_a_predecessor_has_left_is_there_before_the_program_is() {
    let opened = served_by("dd bs=65536 count=1 <&$OUTBOARD_LINE >&3 2>/dev/null");
    let mut backend = Backend::new(&opened).unwrap();
    for (session, kept, shown) in [
        (1, Kept::Nothing, r#""kept":"nothing""#),
        (2, disk(true), r#""kept":{"disk":{"writeback":true"#),
    ] {
        let mut told = String::new();
        let mut front = start(&mut backend, session, kept);
        front.read_to_string(&mut told).unwrap();
        assert!(told.contains(shown), "{told}");
        // What is said is of the session that was begun last.
        assert_eq!(ended(&mut backend), [Event::HungUp(session), IN_ORDER]);
    }
}

#[test]
fn what_it_says_is_heard_while_it_lives() {
    let keeps = r#"printf '{"message":"keeps","kept":"nothing"}' >&$OUTBOARD_LINE"#;
    let opened = served_by(&format!("{READY}; {keeps}; read word <&3"));
    let mut backend = Backend::new(&opened).unwrap();
    let front = start(&mut backend, 7, Kept::Nothing);
    let said = [Event::Ready(7), Event::Keeps(7, Kept::Nothing)];
    assert_eq!(heard(&mut backend, 2), said);
    assert!(backend.reap().is_empty());
    drop(front);
    let death = Event::Died(Death::Exited(1));
    assert_eq!(ended(&mut backend), [Event::HungUp(7), death]);
}

/// A turn of the loop takes 64 messages, and the last of them counts.
#[test]
fn the_last_words_of_one_who_died_are_heard_however_many_they_are() {
    let keeps = |writeback| {
        format!(
            r#"printf '{{"message":"keeps","kept":{{"disk":{{"writeback":{writeback},"sync_failed":false}}}}}}' >&$OUTBOARD_LINE"#
        )
    };
    let (on, off) = (keeps(true), keeps(false));
    let script = format!("{READY}; for i in $(seq 150); do {on}; done; {off}; kill -9 $$");
    let opened = served_by(&script);
    let mut backend = Backend::new(&opened).unwrap();
    let _front = start(&mut backend, 1, Kept::Nothing);
    let events = reaped(&mut backend);
    assert_eq!(events.len(), 154);
    let killed = Event::Died(Death::Killed(nix::sys::signal::Signal::SIGKILL));
    assert_eq!(
        events[151..],
        [Event::Keeps(1, disk(false)), Event::HungUp(1), killed]
    );
}

#[test]
fn nonsense_is_heard_once_and_shown_in_part() {
    let long = "x".repeat(5000);
    let nonsense = format!(r#"printf '{{"message":"{long}"}}' >&$OUTBOARD_LINE"#);
    let opened = served_by(&format!("{nonsense}; {READY} 2>/dev/null; read word <&3"));
    let mut backend = Backend::new(&opened).unwrap();
    let mut front = start(&mut backend, 1, Kept::Nothing);
    let events = heard(&mut backend, 1);
    let [Event::Nonsense(1, why)] = &events[..] else {
        panic!("{events:?}");
    };
    assert!(why.len() == 200 && why.contains("xxx"), "{why}");
    // It serves on, and nobody listens.
    assert!(backend.attend().is_empty() && backend.reap().is_empty());
    front.write_all(b"end\n").unwrap();
    assert_eq!(reaped(&mut backend), [IN_ORDER]);
}

#[test]
fn its_page_of_counters_is_kept_if_it_is_one_of_its_device() {
    let opened = served_by("exit 0");
    let mut backend = Backend::new(&opened).unwrap();
    for (queues, is_taken) in [(3u64, false), (u64::MAX, false), (2, true)] {
        let memory = memfd_create("counters", MFdFlags::MFD_CLOEXEC).unwrap();
        let mut page = File::from(memory);
        page.write_all(&MAGIC.to_ne_bytes()).unwrap();
        page.write_all(&queues.to_ne_bytes()).unwrap();
        page.set_len(bytes(2) as u64).unwrap();
        let ready = Heard::Ready {
            sandbox: [("seccomp".to_owned(), true)].into(),
            release: "0.2.0".into(),
            counters: Some(page.into()),
        };
        assert_eq!(backend.hear(ready), Event::Ready(0));
        assert_eq!(backend.counters.is_some(), is_taken, "{queues}");
        assert_eq!(backend.release(), Some("0.2.0"));
        backend.tell_counts();
    }
    // It can be read until there is another process.
    backend.forget();
    assert!(backend.counters.is_some());
    let _front = start(&mut backend, 1, Kept::Nothing);
    assert!(backend.counters.is_none() && backend.release().is_none());
}
