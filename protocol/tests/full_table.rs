//! A process that has as many descriptors open as it may, and is sent more.
//!
//! One test alone: the limit is that of the whole process.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use outboard_protocol::Deadline;
use outboard_protocol::launch::{Channel, Restored, ToMachine};
use outboard_protocol::wire::{Connection, Header, MAX_FDS, WireError};

/// Opens files until no more can be opened, but for `free` of them.
fn all_but(free: usize) -> Vec<File> {
    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
    }
    files.truncate(files.len() - free);
    files
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

fn pair() -> (Connection, Connection) {
    let (a, b) = UnixStream::pair().unwrap();
    (Connection::new(a), Connection::new(b))
}

#[test]
fn descriptors_that_find_no_room_are_told_from_a_peer_that_breaks_the_rules() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 64, most).unwrap();
    let file = File::open("/dev/null").unwrap();
    let header = Header::request(1);

    for free in 0..3 {
        let (theirs, ours) = pair();
        theirs
            .send(header, b"abc", &[file.as_fd(); 3], soon())
            .unwrap();
        let files = all_but(free);
        match ours.recv(soon()) {
            Err(error @ WireError::Io(_)) => {
                let said = error.to_string();
                assert!(said.contains("many descriptors open as it may"), "{said}");
                assert!(said.contains("`ulimit -n`"), "{said}");
            }
            other => panic!("with {free} free: {other:?}"),
        }
        drop(files);
    }

    // Whoever sends more than is allowed has broken the rules all the same.
    let (theirs, ours) = pair();
    let many = [file.as_fd(); 2 * MAX_FDS];
    theirs.send(header, b"abc", &many, soon()).unwrap();
    let files = all_but(MAX_FDS + 1);
    let result = ours.recv(soon());
    assert!(matches!(result, Err(WireError::Malformed(_))), "{result:?}");
    drop(files);

    // The supervisor's messages to the machine bring some, too.
    let (theirs, ours) = Channel::pair().unwrap();
    let message = ToMachine::Attach {
        device: "disk0".into(),
        session: 1,
        asked: false,
        whose: outboard_protocol::launch::Whose::default(),
        restored: Restored::Nothing,
    };
    theirs.send(&message, &[file.as_fd()], soon()).unwrap();
    let files = all_but(0);
    let error = ours.recv::<ToMachine>(soon()).unwrap_err();
    assert!(error.to_string().contains("`ulimit -n`"), "{error}");
    drop(files);

    // Those that did come are closed again: with room there is no more trouble.
    theirs.send(&message, &[file.as_fd()], soon()).unwrap();
    let (_, fds) = ours.recv::<ToMachine>(soon()).unwrap().unwrap();
    assert_eq!(fds.len(), 1);
    drop((fds, theirs, ours, file));
    assert!(all_but(0).len() > 55, "descriptors are left open");
}
