//! The program with a line to a supervisor, which has the image's lock and knows what
//! a successor must.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "these are tests"
)]

mod support;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use outboard_contract::client::Ack;
use outboard_contract::program::by_shell;
use outboard_contract::soon;
use outboard_protocol::Deadline;
use outboard_protocol::counters::{self, Counts};
use outboard_protocol::devices::BlkConfig;
use outboard_protocol::image_lock::{self, Access};
use outboard_protocol::kept::{DiskState, Kept};
use outboard_protocol::launch::{self, Channel, FromBackend, Link, ToBackend};
use support::*;
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_FLUSH;

const SIZE: u64 = 1 << 20;
/// An image that is handed over.
const LENT: &str = "truncate -s 1M $folder/image; \
                    exec \"$@\" --blk-fd=5 5<>$folder/image 9<&0 </dev/null";

/// The program with a line on which it finds its start.
fn command(kept: Kept) -> (Channel, Command) {
    let (line, theirs) = Channel::pair().unwrap();
    let start = ToBackend::Start {
        version: launch::VERSION,
        kept,
        link: Link::Up,
        replay: Default::default(),
        waits: false,
    };
    line.send(&start, &[], soon()).unwrap();
    let mut command = by_shell(LENT, program(), &[]);
    command
        .env(launch::LINE_ENV, "9")
        .stdin(OwnedFd::from(theirs));
    (line, command)
}

fn supervised(kept: Kept) -> (Program, Channel) {
    let (line, mut command) = command(kept);
    let program = Program::serve(&mut command).unwrap();
    let ready = line.recv(soon()).unwrap().expect("it is open").0;
    assert!(matches!(ready, FromBackend::Ready { .. }), "{ready:?}");
    (program, line)
}

fn disk(writeback: bool, sync_failed: bool) -> Kept {
    Kept::Disk(DiskState {
        writeback,
        sync_failed,
    })
}

/// What has been said by now.
fn now(line: &Channel) -> Option<FromBackend> {
    let heard = line.recv::<FromBackend>(Deadline::after(Duration::ZERO));
    heard.ok().map(|heard| heard.expect("it is open").0)
}

#[test]
fn the_lock_of_an_image_is_the_supervisors() {
    for (has_line, serves) in [(true, true), (false, false)] {
        let folder = tempfile::tempdir().unwrap();
        let image = File::create_new(folder.path().join("image")).unwrap();
        image.set_len(SIZE).unwrap();
        // By an open file of its own.
        image_lock::lock(&image, Access::Write).unwrap();
        let (line, mut command) = command(Kept::Nothing);
        if !has_line {
            command.env_remove(launch::LINE_ENV);
        }
        let program = Program::serve_in(folder, &mut command).unwrap();
        if serves {
            Driver::of(&program, EVERYTHING).works();
        } else {
            program.ends_with(1, "another process").unwrap();
        }
        drop(line);
    }
}

#[test]
fn the_cache_byte_is_told_before_it_is_answered() {
    let (program, line) = supervised(Kept::Nothing);
    let driver = Driver::of(&program, EVERYTHING);
    for writeback in [false, true] {
        for told in [true, false] {
            let ack = driver
                .client
                .set_config(BlkConfig::WRITEBACK, &[writeback.into()]);
            assert_eq!(ack.unwrap(), Ack::Done);
            let kept = disk(writeback, false);
            assert_eq!(now(&line), told.then_some(FromBackend::Keeps { kept }));
        }
    }
}

#[test]
fn a_successor_knows_of_a_sync_that_failed_and_of_the_cache() {
    let (program, line) = supervised(disk(false, true));
    let mut driver = Driver::of(&program, EVERYTHING);
    assert_eq!(driver.client.config(BlkConfig::WRITEBACK, 1).unwrap(), [0]);
    assert_eq!(driver.request(VIRTIO_BLK_T_FLUSH, 0, &[]).0, IOERR);
    program.says(&["before this program was started"]).unwrap();
    assert_eq!(now(&line), None, "it is known");
}

#[test]
fn a_disk_grows_when_its_image_has_and_shrinks_in_no_session() {
    let (program, line) = supervised(Kept::Nothing);
    let mut driver = Driver::of(&program, EVERYTHING);
    let requests = driver.client.backend_requests().unwrap();
    let sectors = || {
        let bytes = driver.client.config(0, 8).unwrap();
        u64::from_le_bytes(bytes.try_into().unwrap())
    };
    let tell = |size| line.send(&ToBackend::Resize { size }, &[], soon()).unwrap();
    image(&program).set_len(2 * SIZE).unwrap();
    tell(2 * SIZE);
    requests.recv(soon()).unwrap();
    assert_eq!(sectors(), 2 * SIZE / 512);
    image(&program).set_len(SIZE).unwrap();
    tell(SIZE);
    program
        .says(&["the disk keeps its 2097152 bytes", "has 1048576"])
        .unwrap();
    assert_eq!(sectors(), 2 * SIZE / 512);
    image(&program).set_len(2 * SIZE).unwrap();
    assert_eq!(driver.write(SIZE / 512, &[7; 512]).0, OK);
    driver.works();
}

#[test]
fn what_the_driver_moves_and_what_fails_is_on_the_page() {
    let (line, mut command) = command(Kept::Nothing);
    let program = Program::serve(&mut command).unwrap();
    let page = line.recv::<FromBackend>(soon()).unwrap().unwrap().1;
    let counts = || {
        let queues = counters::read(&page[0], 1).unwrap();
        queues
            .iter()
            .fold(Counts::default(), |sum, queue| sum.with(&queue.counts))
    };
    let mut driver = Driver::of(&program, EVERYTHING);
    for _ in 0..2 * counters::TIMED {
        assert_eq!(driver.write(8, &[7; 1024]).0, OK);
    }
    assert_eq!(driver.read(8, 512).0, OK);
    assert_eq!(driver.read(SIZE / 512, 512).0, IOERR, "behind the end");
    // It is counted before it is published, but shown after.
    while counts().errors == 0 {
        assert!(!soon().passed());
        std::thread::yield_now();
    }
    let counts = counts();
    let requests = 2 * counters::TIMED + 2;
    assert_eq!(counts.chains, requests);
    assert_eq!(counts.bytes_written, 2 * counters::TIMED * 1024);
    assert_eq!(counts.bytes_read, 512);
    assert_eq!(counts.errors, 1);
    assert_eq!(counts.calls + counts.suppressed, counts.batches);
    assert_eq!(counts.timed, 2);
    assert!(counts.time >= counts.longest && counts.longest > 0);
}
