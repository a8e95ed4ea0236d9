//! `--on-io-error=pause` of the program: what fails on the host is held back and told
//! on the line, executed again when that is said there, and neither lost nor told twice
//! when the ring, the session or the process ends meanwhile. The faults are real: a
//! full file system, and a limit on the size of files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "these are tests"
)]

mod support;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use outboard_contract::client::Client;
use outboard_contract::driver;
use outboard_contract::memory::Memory;
use outboard_contract::program::by_shell;
use outboard_contract::ring::{Buffer, Ring};
use outboard_contract::soon;
use outboard_protocol::Deadline;
use outboard_protocol::kept::Kept;
use outboard_protocol::launch::{self, Channel, FromBackend, Link, ToBackend};
use support::{DATA, EVERYTHING, IOERR, OK, Program, RINGS, image, pattern, program, stored};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

const ENGINES: [&str; 2] = ["--engine=auto", "--engine=threads"];
/// Files may have 256 KiB, until that is raised.
const LIMITED: &str = "[ -e $folder/image ] || truncate -s 1M $folder/image; \
                       exec prlimit --fsize=262144:unlimited \"$@\" --blk-fd=5 \
                       5<>$folder/image 9<&0 </dev/null";
/// A file system of 256 KiB, of which there is room for 64 until the ballast goes; it
/// goes itself with the program.
const FULL: &str = "mkdir $folder/full; exec unshare -m sh -ec 'mount -t tmpfs -o size=256k none \
                    $folder/full; head -c 196608 /dev/zero >$folder/full/ballast; \
                    truncate -s 1M $folder/full/image; \
                    exec \"$@\" --blk-fd=5 5<>$folder/full/image 9<&0 </dev/null' sh \"$@\"";
/// The first sector beyond the limit.
const BEYOND: u64 = 512;
const REQUEST: u32 = 4096;

/// A disk with a supervisor.
fn supervised(folder: Option<tempfile::TempDir>, script: &str, engine: &str) -> (Program, Channel) {
    let (line, theirs) = Channel::pair().unwrap();
    let start = ToBackend::Start {
        version: launch::VERSION,
        kept: Kept::Nothing,
        link: Link::Up,
        replay: Default::default(),
        waits: false,
    };
    line.send(&start, &[], soon()).unwrap();
    let mut command = by_shell(script, program(), &[engine, "--on-io-error=pause"]);
    command
        .env(launch::LINE_ENV, "9")
        .stdin(OwnedFd::from(theirs));
    let folder = folder.unwrap_or_else(|| tempfile::tempdir().unwrap());
    let disk = Program::serve_in(folder, &mut command).unwrap();
    let ready = line.recv(soon()).unwrap().expect("it is open").0;
    assert!(matches!(ready, FromBackend::Ready { .. }), "{ready:?}");
    (disk, line)
}

/// The next message but those that tell of requests in flight.
fn heard(line: &Channel, deadline: Deadline) -> std::io::Result<FromBackend> {
    loop {
        let (heard, _) = line.recv(deadline)?.expect("it is open");
        if !matches!(
            heard,
            FromBackend::Found { .. } | FromBackend::Replayed { .. }
        ) {
            return Ok(heard);
        }
    }
}

/// Waits until an error is told.
fn is_told(line: &Channel, words: &[&str]) {
    let heard = heard(line, soon()).unwrap();
    let FromBackend::IoError { queue: 0, text } = heard else {
        panic!("{heard:?}");
    };
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
}

fn nothing_is_told(line: &Channel) {
    let heard = heard(line, Deadline::after(Duration::ZERO));
    assert!(heard.is_err(), "{heard:?}");
}

fn retry(line: &Channel) {
    line.send(&ToBackend::Retry, &[], soon()).unwrap();
}

/// Files may be as large as they like from now on.
fn raise(disk: &Program) {
    let pid = disk.pid().to_string();
    let mut prlimit = Command::new("prlimit");
    let raised = prlimit.args(["--pid", &pid, "--fsize=unlimited"]).status();
    assert!(raised.unwrap().success());
}

fn connect(disk: &Program, memory: Memory) -> driver::Driver {
    driver::Driver::new(disk.client().unwrap(), EVERYTHING, memory)
}

fn memory() -> Memory {
    Memory::new(&[(0, 0x10_0000), (0x10_0000, 0x10_0000)]).unwrap()
}

/// Makes a request available, the `number`th of its test; one of a page.
fn offer(driver: &driver::Driver, ring: &mut Ring, number: u64, kind: u32, sector: u64) -> u16 {
    let (header, data) = (0x8000 + number * 32, DATA + number * 4096);
    let mut bytes = [0; 17];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&sector.to_le_bytes());
    bytes[16] = 0xee;
    driver.put(header, &bytes);
    if kind == VIRTIO_BLK_T_OUT {
        driver.put(data, &pattern(REQUEST as usize, number as u8));
    }
    let data = match kind {
        VIRTIO_BLK_T_OUT => Buffer::readable(data, REQUEST),
        _ => Buffer::writable(data, REQUEST),
    };
    let buffers = [
        Buffer::readable(header, 16),
        data,
        Buffer::writable(header + 16, 1),
    ];
    let head = ring.add(&buffers).unwrap();
    ring.kick().unwrap();
    head
}

fn status(driver: &driver::Driver, number: u64) -> u8 {
    driver.get(0x8000 + number * 32 + 16, 1)[0]
}

/// Waits for the answers to these heads, in any order.
fn answers(ring: &mut Ring, heads: &[u16]) {
    let mut answered: Vec<_> = heads
        .iter()
        .map(|_| ring.wait_used(soon()).unwrap().0)
        .collect();
    answered.sort_unstable();
    let mut heads = heads.to_vec();
    heads.sort_unstable();
    assert_eq!(answered, heads);
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIP: only root can mount a file system of the test's own");
    }
    root
}

#[test]
fn a_guest_sees_no_error_of_a_full_file_system_when_room_is_made() {
    if !is_root() {
        return;
    }
    for engine in ENGINES {
        let (disk, line) = supervised(None, FULL, engine);
        let driver = connect(&disk, memory());
        let mut ring = driver.ring(0, RINGS, 128);
        // 32 pages, of which about half find room.
        let heads: Vec<_> = (0..32)
            .map(|number| offer(&driver, &mut ring, number, VIRTIO_BLK_T_OUT, number * 8))
            .collect();
        let words = ["cannot write", "No space left on device", "make room"];
        is_told(&line, &words);
        // There is no room yet.
        for _ in 0..3 {
            nothing_is_told(&line);
            retry(&line);
            is_told(&line, &words);
        }
        // What does not need any is served.
        let read = offer(&driver, &mut ring, 40, VIRTIO_BLK_T_IN, 0);
        let path = format!("{}/full/ballast", disk.folder().display());
        fs::remove_file(format!("/proc/{}/root{path}", disk.pid())).unwrap();
        let held = (0..32).filter(|number| status(&driver, *number) == 0xee);
        assert!(held.count() > 0, "nothing was held back");
        retry(&line);
        answers(&mut ring, &[&heads[..], &[read]].concat());
        for number in (0..32).chain([40]) {
            assert_eq!(status(&driver, number), OK, "{engine}: {number}");
        }
        nothing_is_told(&line);
        assert_eq!(driver.client.stop_ring(0).unwrap(), 33);
        drop(driver);
        let said = disk.last_words().unwrap();
        assert!(!said.contains("I/O errors"), "{said}");
    }
}

#[test]
fn what_is_written_when_it_is_tried_again_is_what_was_to_be_written() {
    for engine in ENGINES {
        let (disk, line) = supervised(None, LIMITED, engine);
        let driver = connect(&disk, memory());
        let mut ring = driver.ring(0, RINGS, 64);
        let sectors = [BEYOND + 8, 0, BEYOND + 64];
        let heads = [0, 1, 2].map(|number| {
            let sector = sectors[number as usize];
            offer(&driver, &mut ring, number, VIRTIO_BLK_T_OUT, sector)
        });
        answers(&mut ring, &heads[1..2]);
        is_told(&line, &["File too large", "ulimit -f"]);
        raise(&disk);
        retry(&line);
        answers(&mut ring, &[heads[0], heads[2]]);
        for (number, sector) in (0..).zip(sectors) {
            let expected = pattern(REQUEST as usize, number);
            assert_eq!(stored(&image(&disk), sector * 512, 4096), expected);
        }
    }
}

/// As when a driver resets its device, or turns its bus mastering off.
#[test]
fn a_stop_of_the_ring_waits_for_nothing_and_ends_what_is_held_in_its_error() {
    for engine in ENGINES {
        let (disk, line) = supervised(None, LIMITED, engine);
        let driver = connect(&disk, memory());
        let mut ring = driver.ring(0, RINGS, 64);
        let heads =
            [0, 1].map(|number| offer(&driver, &mut ring, number, VIRTIO_BLK_T_OUT, BEYOND));
        is_told(&line, &["File too large"]);
        // It may not have seen the second yet.
        let taken = driver.client.stop_ring(0).unwrap();
        answers(&mut ring, &heads[..usize::from(taken)]);
        for number in 0..u64::from(taken) {
            assert_eq!(status(&driver, number), IOERR);
        }
        // The next ring is served, and holds back what fails again.
        let mut ring = driver.ring(0, RINGS, 64);
        offer(&driver, &mut ring, 2, VIRTIO_BLK_T_OUT, BEYOND);
        retry(&line);
        is_told(&line, &["File too large"]);
    }
}

/// Makes the inflight region that a front-end keeps for its device; what is answered
/// hands it to the next back-end.
fn track(client: &Client) -> impl Fn(&Client) + use<> {
    let (described, region) = client.get_inflight(1, 64).unwrap();
    let hand = move |client: &Client| {
        client.set_inflight(&described, region.as_fd()).unwrap();
    };
    hand(client);
    hand
}

#[test]
fn a_successor_executes_what_was_held_however_its_predecessor_ended() {
    type End = fn(&mut Program);
    let ends: [End; 2] = [
        |disk| disk.kill().unwrap(),
        |disk| {
            let status = disk.end(nix::sys::signal::Signal::SIGTERM).unwrap();
            assert!(status.success(), "{status}");
        },
    ];
    for (engine, end) in ENGINES.into_iter().zip(ends) {
        let shared = tempfile::tempdir().unwrap();
        let folder = shared.path().display();
        let script = LIMITED.replace("$folder/image", &format!("{folder}/image"));
        let (mut disk, line) = supervised(None, &script, engine);
        let driver = connect(&disk, memory());
        let hand_region_to = track(&driver.client);
        let mut ring = driver.ring(0, RINGS, 64);
        let heads = [0, 1, 2].map(|number| {
            let sector = if number == 1 { 0 } else { BEYOND };
            offer(&driver, &mut ring, number, VIRTIO_BLK_T_OUT, sector)
        });
        answers(&mut ring, &heads[1..2]);
        is_told(&line, &["File too large"]);
        end(&mut disk);
        assert_eq!([0, 2].map(|number| status(&driver, number)), [0xee; 2]);
        assert_eq!(ring.used_idx().unwrap(), 1);

        // It may fail again, and be tried again.
        let (disk, line) = supervised(None, &script, engine);
        let client = disk.client().unwrap();
        let driver = driver::Driver::new(client, EVERYTHING, driver.memory);
        hand_region_to(&driver.client);
        driver.client.start_ring(0, &ring, 1).unwrap();
        is_told(&line, &["File too large"]);
        raise(&disk);
        retry(&line);
        answers(&mut ring, &[heads[0], heads[2]]);
        assert_eq!([0, 2].map(|number| status(&driver, number)), [OK; 2]);
        nothing_is_told(&line);
    }
}

/// A front-end that goes leaves what is held to the next one.
#[test]
fn a_session_that_ends_answers_nothing_that_is_held() {
    for engine in ENGINES {
        let (disk, line) = supervised(None, LIMITED, engine);
        let driver = connect(&disk, memory());
        let hand_region_to = track(&driver.client);
        let mut ring = driver.ring(0, RINGS, 64);
        let head = offer(&driver, &mut ring, 0, VIRTIO_BLK_T_OUT, BEYOND);
        is_told(&line, &["File too large"]);
        let memory = driver.memory;
        drop(driver.client);
        let driver = connect(&disk, memory);
        assert_eq!(status(&driver, 0), 0xee);
        hand_region_to(&driver.client);
        driver.client.start_ring(0, &ring, 0).unwrap();
        is_told(&line, &["File too large"]);
        raise(&disk);
        retry(&line);
        answers(&mut ring, &[head]);
        assert_eq!(status(&driver, 0), OK);
    }
}

#[test]
fn who_is_not_heard_any_more_is_not_waited_for() {
    let (disk, line) = supervised(None, LIMITED, ENGINES[0]);
    let driver = connect(&disk, memory());
    let mut ring = driver.ring(0, RINGS, 64);
    let head = offer(&driver, &mut ring, 0, VIRTIO_BLK_T_OUT, BEYOND);
    is_told(&line, &["File too large"]);
    drop(line);
    answers(&mut ring, &[head]);
    assert_eq!(status(&driver, 0), IOERR);
    let head = offer(&driver, &mut ring, 1, VIRTIO_BLK_T_OUT, BEYOND);
    answers(&mut ring, &[head]);
    assert_eq!(status(&driver, 1), IOERR);
    disk.says(&["the supervisor has closed the line"]).unwrap();
}

#[test]
fn by_hand_there_is_nobody_who_could_pause_a_vm() {
    let disk = support::start(&["--on-io-error=pause"]);
    disk.ends_with(1, "needs somebody who pauses the VM and resumes it")
        .unwrap();
}
