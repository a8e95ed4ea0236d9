//! The front-end in a process that has as many descriptors open as it may.
//!
//! One test alone: the limit is that of the whole process.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use outboard::machine::frontend::{Connected, Interruption, Session};
use outboard_protocol::Deadline;
use outboard_protocol::descriptors::NoRoom;
use outboard_protocol::wire::{Connection, Header};

use vhost::vhost_user::message::FrontendReq;

#[test]
fn a_back_end_is_not_blamed_for_a_descriptor_that_finds_no_room() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 64, most).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    // The answer is there before the question, and brings a descriptor.
    let header = Header::reply_to(FrontendReq::GET_FEATURES.into());
    let file = File::open("/dev/null").unwrap();
    let soon = Deadline::after(Duration::from_secs(20));
    Connection::new(theirs.try_clone().unwrap())
        .send(header, &[0; 8], &[file.as_fd()], soon)
        .unwrap();
    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
    }
    // One that is kept of the connection has room, one that comes over it not.
    files.pop();
    let result = Session::<Connected>::new(ours).negotiate("disk0", &Interruption::default());
    drop(files);
    let error = result.unwrap_err();
    assert!(NoRoom::within(error.as_ref()).is_some(), "{error:#}");
    let error = format!("{error:#}");
    assert!(error.contains("a message brought is lost"), "{error}");
    assert!(error.contains("raise its limit (`ulimit -n`"), "{error}");
}
