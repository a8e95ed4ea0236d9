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
use outboard_contract::ring::Buffer;
use outboard_contract::soon;
use outboard_protocol::Deadline;
use outboard_protocol::counters::{self, Counts};
use outboard_protocol::devices::BlkConfig;
use outboard_protocol::image_lock::{self, Access};
use outboard_protocol::kept::{DiskState, Kept};
use outboard_protocol::launch::{self, Channel, FromBackend, Link, ToBackend};
use outboard_protocol::wire::{Connection, WireError};
use support::*;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

const SIZE: u64 = 1 << 20;
/// An image that is handed over.
const LENT: &str = "truncate -s 1M $folder/image; \
                    exec \"$@\" --blk-fd=5 5<>$folder/image 9<&0 </dev/null";

fn first(kept: Kept) -> ToBackend {
    ToBackend::Start {
        version: launch::VERSION,
        kept,
        link: Link::Up,
        replay: Default::default(),
        waits: false,
    }
}

/// The program with a line on which it finds its start.
fn command(kept: Kept) -> (Channel, Command) {
    let (line, theirs) = Channel::pair().unwrap();
    line.send(&first(kept), &[], soon()).unwrap();
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

/// A disk with a driver, which is told of changes here, and a supervisor.
struct Resized {
    driver: Driver,
    changes: Connection,
    line: Channel,
    program: Program,
}

impl Resized {
    fn start((program, line): (Program, Channel)) -> Self {
        let driver = Driver::of(&program, EVERYTHING);
        let changes = driver.client.backend_requests().unwrap();
        Self {
            driver,
            changes,
            line,
            program,
        }
    }

    /// The next session.
    fn again(self) -> Self {
        drop((self.driver, self.changes));
        Self::start((self.program, self.line))
    }

    fn tell(&self, size: u64) {
        let message = ToBackend::Resize { size };
        self.line.send(&message, &[], soon()).unwrap();
    }

    /// The next answer.
    fn answer(&self) -> u64 {
        match self.line.recv(soon()).unwrap().expect("it is open").0 {
            FromBackend::Resized { size } => size,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the driver is told that the configuration has changed, and reads the
    /// capacity there, in bytes.
    fn changed(&self) -> u64 {
        self.changes.recv(soon()).unwrap();
        self.capacity()
    }

    fn capacity(&self) -> u64 {
        let bytes = self.driver.client.config(0, 8).unwrap();
        u64::from_le_bytes(bytes.try_into().unwrap()) * 512
    }

    /// Whether the driver has been told of a change that nobody has waited for.
    fn is_told(&self) -> bool {
        let message = self.changes.recv(Deadline::after(Duration::ZERO));
        !matches!(message, Err(WireError::TimedOut))
    }
}

#[test]
fn a_disk_grows_and_shrinks_while_it_is_served() {
    let mut disk = Resized::start(supervised(Kept::Nothing));
    let (half, last) = (SIZE / 2, SIZE / 512);
    image(&disk.program).set_len(2 * SIZE).unwrap();
    assert_eq!(disk.driver.write(last, &[7; 512]).0, IOERR);
    disk.tell(2 * SIZE);
    assert_eq!((disk.changed(), disk.answer()), (2 * SIZE, 2 * SIZE));
    assert_eq!(disk.driver.write(last, &[7; 512]).0, OK);
    disk.tell(half + 511);
    assert_eq!((disk.changed(), disk.answer()), (half, half));
    image(&disk.program).set_len(half).unwrap();
    for sector in [half / 512, half / 512 - 1] {
        assert_eq!(disk.driver.write(sector, &[7; 1024]).0, IOERR);
        assert_eq!(disk.driver.read(sector, 1024).0, IOERR);
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            assert_eq!(disk.driver.segment(kind, sector, 2, 0).0, IOERR);
        }
    }
    assert_eq!(disk.driver.write(half / 512 - 1, &[7; 512]).0, OK);
    disk.driver.works();
    assert_eq!(image(&disk.program).metadata().unwrap().len(), half);
}

#[test]
fn what_a_disk_cannot_become_is_refused_and_what_it_is_is_no_change() {
    let mut disk = Resized::start(supervised(Kept::Nothing));
    for wrong in [SIZE + 512, 0, 511] {
        disk.tell(wrong);
        assert_eq!(disk.answer(), SIZE, "{wrong}");
        let words = format!("it was to have {wrong} bytes, and its image has {SIZE} bytes");
        disk.program.says(&[&words]).unwrap();
    }
    disk.tell(SIZE);
    assert_eq!((disk.answer(), disk.capacity()), (SIZE, SIZE));
    disk.driver.works();
    assert!(!disk.is_told(), "nothing has changed");
}

/// The supervisor says that the disk is shorter, and its front-end comes again before the
/// image is cut.
#[test]
fn the_next_session_goes_by_what_was_said_and_not_by_an_image_that_is_yet_to_be_cut() {
    let disk = Resized::start(supervised(Kept::Nothing));
    disk.tell(SIZE / 2);
    assert_eq!(disk.answer(), SIZE / 2);
    let mut disk = disk.again();
    assert_eq!(disk.capacity(), SIZE / 2);
    assert_eq!(disk.driver.write(SIZE / 1024, &[7; 512]).0, IOERR);
    // An image that was cut to less is what there is.
    image(&disk.program).set_len(SIZE / 4).unwrap();
    let disk = disk.again();
    assert_eq!(disk.capacity(), SIZE / 4);
}

/// Many writes are under way, over the whole disk, when it shrinks; its image is cut when
/// that has been answered, and nothing makes it longer again.
#[test]
fn nothing_is_written_beyond_the_end_once_the_answer_is_there() {
    const AT_ONCE: u64 = 8;
    let mut disk = Resized::start(supervised(Kept::Nothing));
    let half = SIZE / 2;
    for round in 0..100 {
        let image = image(&disk.program);
        image.set_len(SIZE).unwrap();
        disk.tell(SIZE);
        assert_eq!(disk.answer(), SIZE);
        let first = (0..AT_ONCE).map(|number| disk.begin(number, number * SIZE / AT_ONCE / 512));
        let _: Vec<_> = first.collect();
        disk.driver.ring.kick().unwrap();
        disk.tell(half);
        assert_eq!(disk.answer(), half);
        image.set_len(half).unwrap();
        for number in AT_ONCE..2 * AT_ONCE {
            disk.begin(number, (number - AT_ONCE) * SIZE / AT_ONCE / 512);
        }
        disk.driver.ring.kick().unwrap();
        for _ in 0..2 * AT_ONCE {
            disk.driver.ring.wait_used(soon()).unwrap();
        }
        for number in 0..2 * AT_ONCE {
            let status = disk.driver.get(STATUS + number, 1)[0];
            let is_within = number % AT_ONCE < AT_ONCE / 2;
            let expected: &[u8] = match (is_within, number < AT_ONCE) {
                (true, _) => &[OK],
                (false, true) => &[OK, IOERR],
                (false, false) => &[IOERR],
            };
            assert!(expected.contains(&status), "{round}, {number}: {status}");
        }
        assert_eq!(image.metadata().unwrap().len(), half, "{round}");
    }
}

impl Resized {
    /// Makes a write of one sector available, of which there are several at once.
    fn begin(&mut self, number: u64, sector: u64) {
        let header = HEADER + 16 * number;
        let head = [u64::from(VIRTIO_BLK_T_OUT), sector].map(u64::to_le_bytes);
        self.driver.put(header, head.as_flattened());
        self.driver.put(STATUS + number, &[0xee]);
        let buffers = [
            Buffer::readable(header, 16),
            Buffer::readable(DATA, 512),
            Buffer::writable(STATUS + number, 1),
        ];
        self.driver.ring.add(&buffers).unwrap();
    }
}

/// The write is held by strace(1), beyond what is to be the end.
#[test]
fn the_answer_waits_for_a_write_that_the_kernel_has() {
    let strace = Command::new("strace").args(["-qq", "true"]).output();
    if !strace.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIP: strace(1) cannot trace here");
        return;
    }
    let (line, theirs) = Channel::pair().unwrap();
    line.send(&first(Kept::Nothing), &[], soon()).unwrap();
    let script = "truncate -s 1M $folder/image; \
                  exec strace -D -f -qq -o $folder/trace -e trace=pwritev2 \
                  -e inject=pwritev2:delay_enter=2s \
                  \"$@\" --engine=threads --blk-fd=5 5<>$folder/image 9<&0 </dev/null";
    let mut command = by_shell(script, program(), &[]);
    let command = command.env(launch::LINE_ENV, "9");
    let program = Program::serve(command.stdin(OwnedFd::from(theirs))).unwrap();
    let ready = line.recv(soon()).unwrap().expect("it is open").0;
    assert!(matches!(ready, FromBackend::Ready { .. }), "{ready:?}");
    let mut disk = Resized::start((program, line));
    disk.begin(0, SIZE / 512 - 1);
    disk.driver.put(DATA, &[7; 512]);
    disk.driver.ring.kick().unwrap();
    let trace = disk.program.folder().join("trace");
    let began = || std::fs::read_to_string(&trace).ok()?.find("pwritev2");
    disk.program.until("the write has begun", began).unwrap();
    disk.tell(SIZE / 2);
    assert_eq!(disk.changed(), SIZE / 2, "the driver is told at once");
    assert_eq!(disk.answer(), SIZE / 2);
    let last = stored(&image(&disk.program), SIZE - 512, 512);
    assert!(last == [7; 512], "it was still under way");
    disk.driver.ring.wait_used(soon()).unwrap();
    assert_eq!(disk.driver.get(STATUS, 1), [OK]);
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
