//! The program as a front-end and a guest see it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use outboard_contract::client::Client;
use outboard_contract::driver::{Driver, EVENT_IDX, INDIRECT};
use outboard_contract::memory::Memory;
use outboard_contract::program::{Program, command, lent};
use outboard_contract::ring::{Buffer, Descriptor, INDIRECT as TABLE, NEXT, Ring, WRITE};
use outboard_contract::soon;
use outboard_protocol::devices::Kind;
use outboard_protocol::launch::Handover;
use outboard_protocol::wire::Header;
use vhost::vhost_user::message::{FrontendReq, VhostUserVringState};
use vm_memory::ByteValued;

/// Guest memory: two regions with a hole between them.
const LOW: u64 = 0x10_0000;
const HIGH: u64 = 0x100_0000;
const REGION: u64 = 0x20_0000;
/// Where tests put data: outside the ring.
const DATA: u64 = LOW + 0x10_0000;
/// What lies in a buffer before the device writes it.
const BEFORE: u8 = 0xa5;

fn started(arguments: &[&str]) -> Command {
    command(env!("CARGO_BIN_EXE_outboard-rng"), arguments)
}

fn serve(arguments: &[&str]) -> Program {
    Program::serve(&mut started(arguments)).unwrap()
}

/// A session with its ring started.
struct Session {
    driver: Driver,
    ring: Ring,
    /// The available index that the device has been told of.
    told: u16,
}

impl Session {
    fn new(client: Client, features: u64) -> Self {
        let memory = Memory::new(&[(LOW, REGION), (HIGH, REGION)]).unwrap();
        let driver = Driver::new(client, features, memory);
        let ring = driver.ring(0, LOW, 16);
        Self {
            driver,
            ring,
            told: 0,
        }
    }

    fn of(program: &Program, features: u64) -> Self {
        Self::new(program.client().unwrap(), features)
    }

    fn lay_out(&self, at: u64, length: usize) {
        self.driver.put(at, &vec![BEFORE; length]);
    }

    fn bytes(&self, at: u64, length: usize) -> Vec<u8> {
        self.driver.get(at, length)
    }

    /// Tells the device of `count` more chains, if it wants to know.
    fn announce(&mut self, count: u16) {
        self.ring.announce(self.told).unwrap();
        self.told += count;
    }

    /// Asks for `count` times 64 bytes, at once.
    fn ask_often(&mut self, count: u16) {
        for slot in 0..count {
            let buffer = Buffer::writable(DATA + u64::from(slot) * 64, 64);
            self.ring.add(&[buffer]).unwrap();
        }
        self.announce(count);
    }

    /// Asks for random bytes; returns how many the device says it wrote.
    fn ask(&mut self, buffers: &[Buffer]) -> u32 {
        let head = self.ring.add(buffers).unwrap();
        self.announce(1);
        let (used, written) = self.ring.wait_used(soon()).unwrap();
        assert_eq!(used, head);
        written
    }

    /// The device works as if nothing had happened.
    fn still_serves(&mut self) {
        self.lay_out(DATA, 128);
        assert_eq!(self.ask(&[Buffer::writable(DATA, 64)]), 64);
        let bytes = self.bytes(DATA, 128);
        assert_ne!(bytes[..64], [BEFORE; 64]);
        assert_eq!(bytes[64..], [BEFORE; 64]);
    }
}

#[test]
fn answers_are_random_and_nothing_behind_them_is_written() {
    let program = serve(&[]);
    for features in [0, EVENT_IDX, INDIRECT, EVENT_IDX | INDIRECT] {
        let mut session = Session::of(&program, features);
        session.still_serves();
        let first = session.bytes(DATA, 64);
        session.still_serves();
        assert_ne!(first, session.bytes(DATA, 64));
        // Several buffers, an odd length, and both regions.
        session.lay_out(DATA, 1000);
        session.lay_out(HIGH, 1000);
        let buffers = [
            Buffer::readable(DATA, 10),
            Buffer::writable(DATA, 333),
            Buffer::writable(HIGH, 0),
            Buffer::writable(HIGH, 777),
        ];
        assert_eq!(session.ask(&buffers), 1110);
        assert_eq!(session.bytes(DATA + 333, 600), [BEFORE; 600]);
        assert_eq!(session.bytes(HIGH + 777, 200), [BEFORE; 200]);
        assert_ne!(session.bytes(HIGH + 713, 64), [BEFORE; 64]);
    }
}

#[test]
fn an_answer_is_bounded_however_much_is_asked_for() {
    let program = serve(&[]);
    let mut session = Session::of(&program, 0);
    let most = [Buffer::writable(HIGH, REGION as u32)];
    assert_eq!(session.ask(&most), 64 << 10);
}

#[test]
fn a_guest_beyond_its_rate_gets_what_is_left_and_then_waits() {
    let program = serve(&["--max-bytes=200", "--period=3600000"]);
    let mut session = Session::of(&program, EVENT_IDX);
    session.ask_often(8);
    let mut lengths = Vec::new();
    for _ in 0..4 {
        lengths.push(session.ring.wait_used(soon()).unwrap().1);
    }
    assert_eq!(lengths, [64, 64, 64, 8]);
    for _ in 0..100 {
        session.ring.kick().unwrap();
    }
    // The stop is the proof: the rest has not been taken, and never will be.
    assert_eq!(session.driver.client.stop_ring(0).unwrap(), 4);
    assert_eq!(session.ring.used_idx().unwrap(), 4);
    // The wait for the next hour holds nobody up.
    drop(session);
    let mut next = Session::of(&program, 0);
    assert_eq!(next.ask(&[Buffer::writable(DATA, 64)]), 64);
}

#[test]
fn a_guest_that_waited_is_served_when_the_period_is_over() {
    let program = serve(&["--max-bytes=64", "--period=20"]);
    let mut session = Session::of(&program, EVENT_IDX);
    session.ask_often(8);
    for _ in 0..8 {
        assert_eq!(session.ring.wait_used(soon()).unwrap().1, 64);
    }
    assert_eq!(session.driver.client.stop_ring(0).unwrap(), 8);
}

/// Chains that are none: each is answered with nothing written, or, where there
/// is nothing to answer, left alone; and the device goes on.
#[test]
fn hostile_chains_are_answered_and_the_device_goes_on() {
    let program = serve(&[]);
    let mut session = Session::of(&program, INDIRECT);
    let table = DATA + 0x1000;
    let hole = LOW + REGION;
    let write = |next| WRITE | if next { NEXT } else { 0 };
    let cases: &[(&str, &[Descriptor])] = &[
        ("no writable part", &[(DATA, 64, 0, 0)]),
        ("zero length", &[(DATA, 0, WRITE, 0)]),
        ("zero length at a bad address", &[(hole, 0, WRITE, 0)]),
        ("a loop of one", &[(DATA, 8, write(true), 0)]),
        ("a loop of zero length", &[(DATA, 0, write(true), 0)]),
        (
            "a loop of two",
            &[(DATA, 8, write(true), 1), (DATA, 8, write(true), 0)],
        ),
        ("next beyond the table", &[(DATA, 8, write(true), 16)]),
        (
            "next far beyond the table",
            &[(DATA, 8, write(true), 0xffff)],
        ),
        ("in a hole", &[(hole, 64, WRITE, 0)]),
        ("beyond everything", &[(u64::MAX - 7, 64, WRITE, 0)]),
        (
            "lengths that sum past 4 GiB",
            &[
                (DATA, u32::MAX, NEXT, 1),
                (DATA, u32::MAX, NEXT, 2),
                (DATA, 8, WRITE, 0),
            ],
        ),
        ("an empty indirect table", &[(table, 0, TABLE, 0)]),
        ("a table of no whole entries", &[(table, 24, TABLE, 0)]),
        ("a table in a hole", &[(hole, 32, TABLE, 0)]),
        ("a table of tables", &[(table, 16, TABLE, 0)]),
        ("a table longer than any", &[(LOW, REGION as u32, TABLE, 0)]),
    ];
    // The nested one.
    let nested = (table, 16u32, TABLE, 0u16);
    session.ring.write_descriptor(table, 0, nested).unwrap();
    for (what, descriptors) in cases {
        session.lay_out(DATA, 64);
        for (index, descriptor) in descriptors.iter().enumerate() {
            session
                .ring
                .set_descriptor(index as u16, *descriptor)
                .unwrap();
        }
        session.ring.offer_head(0).unwrap();
        session.announce(1);
        let (head, written) = session.ring.wait_used(soon()).unwrap();
        assert_eq!((head, written), (0, 0), "{what}");
        assert_eq!(session.bytes(DATA, 64), [BEFORE; 64], "{what}");
    }
    // A buffer into a hole: what lies before it counts.
    let buffers = [Buffer::writable(DATA, 32), Buffer::writable(hole - 8, 64)];
    assert_eq!(session.ask(&buffers), 32);
    session.still_serves();
}

#[test]
fn heads_and_indexes_that_make_no_sense_are_survived() {
    let program = serve(&[]);
    let mut session = Session::of(&program, EVENT_IDX);
    // Nobody can look for a head that is none; the next one is served.
    session.ring.offer_head(16).unwrap();
    session.ring.offer_head(0xffff).unwrap();
    session.announce(2);
    session.still_serves();
    // An index that jumps by more than the ring: the device stands still until
    // it is reset, and answers its front-end.
    let sane = session.told;
    session.ring.set_avail_idx(sane.wrapping_add(17)).unwrap();
    for _ in 0..100 {
        session.ring.kick().unwrap();
    }
    let base = session.driver.client.stop_ring(0).unwrap();
    assert_eq!((base, session.ring.used_idx().unwrap()), (sane, 1));
    drop(session);
    Session::of(&program, EVENT_IDX).still_serves();
}

#[test]
fn one_front_end_is_served_after_another_and_nothing_piles_up() {
    let program = serve(&[]);
    let descriptors = || {
        let folder = format!("/proc/{}/fd", program.pid());
        std::fs::read_dir(folder).unwrap().count()
    };
    let mut counts = Vec::new();
    for _ in 0..4 {
        let mut session = Session::of(&program, 0);
        session.still_serves();
        counts.push(descriptors());
    }
    assert_eq!(counts, [counts[0]; 4]);
    // One that breaks the rules is cut off, and the next is served.
    let client = program.client().unwrap();
    client.send(Header::reply_to(1), &[], &[]).unwrap();
    client.receive().unwrap_err();
    Session::of(&program, 0).still_serves();
}

/// The thread that serves the queue, held by the test that traces it.
struct Worker(Pid);

impl Worker {
    /// Holds the one of a program with a session.
    fn seize(program: &Program) -> Self {
        let tasks = format!("/proc/{}/task", program.pid());
        let tasks = std::fs::read_dir(tasks).unwrap();
        let worker = tasks.map(Result::unwrap).find(|task| {
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap();
            name == "vring_worker\n"
        });
        let worker = worker.expect("no thread is called vring_worker");
        let id = worker.file_name().into_string().unwrap().parse().unwrap();
        let worker = Self(Pid::from_raw(id));
        ptrace::seize(worker.0, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(worker.0).unwrap();
        waitpid(worker.0, Some(WaitPidFlag::__WALL)).unwrap();
        worker
    }

    /// Lets it go on until epoll has told it of something.
    fn hold_when_told(&self) {
        loop {
            ptrace::syscall(self.0, None).unwrap();
            waitpid(self.0, Some(WaitPidFlag::__WALL)).unwrap();
            let registers = ptrace::getregs(self.0).unwrap();
            let waits = [nix::libc::SYS_epoll_wait, nix::libc::SYS_epoll_pwait];
            // Negative when it begins to wait, and when that is interrupted.
            let told = registers.rax as i64 > 0;
            if told && waits.contains(&(registers.orig_rax as i64)) {
                return;
            }
        }
    }

    fn let_go(self) {
        ptrace::detach(self.0, None).unwrap();
    }
}

/// A ring is stopped and started again while the thread that serves it has an old
/// kick in hand: it must not take that for the new kick, which nobody has rung.
#[test]
fn a_kick_from_before_a_stop_is_not_one_after_it() {
    let program = serve(&[]);
    let mut session = Session::of(&program, 0);
    session.still_serves();
    let worker = Worker::seize(&program);
    session.ring.kick().unwrap();
    worker.hold_when_told();
    let stop = VhostUserVringState::new(0, 0);
    let request = Header::request(FrontendReq::GET_VRING_BASE.into());
    session
        .driver
        .client
        .send(request, stop.as_slice(), &[])
        .unwrap();
    // A daemon that does not wait for the thread answers now; it alone needs the
    // time, and passes by mistake if that is too short.
    let mut answer = [PollFd::new(
        session.driver.client.connection.as_fd(),
        PollFlags::POLLIN,
    )];
    let answered = poll(&mut answer, PollTimeout::from(500u16)).unwrap();
    let restart = |session: &mut Session| {
        let base: VhostUserVringState = session.driver.client.receive().unwrap().body().unwrap();
        session.ring.renew_events().unwrap();
        let base = u16::try_from(base.num).unwrap();
        session
            .driver
            .client
            .start_ring(0, &session.ring, base)
            .unwrap();
    };
    if answered > 0 {
        restart(&mut session);
        worker.let_go();
    } else {
        worker.let_go();
        restart(&mut session);
    }
    session.still_serves();
}

/// Starts the program with a socket that it inherits.
fn inheriting(socket: OwnedFd) -> Program {
    let program = env!("CARGO_BIN_EXE_outboard-rng");
    Program::run(&mut lent(socket, program, &["--fd=9"]).unwrap()).unwrap()
}

#[test]
fn the_launch_contracts_socket_is_served_and_the_program_ends_with_it() {
    let (front, back) = Handover::of(&Kind::rng()).sockets().unwrap();
    let program = inheriting(back);
    Session::new(Client::new(front), EVENT_IDX).still_serves();
    program.ends_with(0, "").unwrap();
    // A front-end that is gone already, before or after it has asked.
    for asks in [false, true] {
        let (front, back) = Handover::Listening.sockets().unwrap();
        let client = Client::new(front);
        if asks {
            let request = Header::request(FrontendReq::GET_FEATURES.into());
            client.send(request, &[], &[]).unwrap();
        }
        drop(client);
        inheriting(back).ends_with(0, "").unwrap();
    }
}

#[test]
fn wrong_use_is_refused_and_says_what_to_do() {
    let refused = |arguments: &[&str], status: i32, words: &str| {
        let program = Program::run(&mut started(arguments)).unwrap();
        program.ends_with(status, words).unwrap();
    };
    refused(&[], 2, "--socket-path");
    refused(&["--fd=77"], 1, "not open");
    let (_front, back) = UnixStream::pair().unwrap();
    let program = inheriting(back.into());
    program.ends_with(1, "give one that listens").unwrap();
    for wrong in ["--max-bytes=0", "--period=0", "--period=4294967296"] {
        refused(&[wrong], 2, "is not in");
    }
}
