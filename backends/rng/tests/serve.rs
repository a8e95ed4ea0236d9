//! The program as a front-end and a guest see it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use outboard_contract::client::Client;
use outboard_contract::memory::Memory;
use outboard_contract::ring::{Buffer, Descriptor, Ring};
use outboard_contract::soon;
use outboard_protocol::devices::Kind;
use outboard_protocol::launch::Handover;
use outboard_protocol::wire::Header;
use vhost::vhost_user::message::{FrontendReq, VhostUserVringState};
use vm_memory::{ByteValued, Bytes, GuestAddress};

const EVENT_IDX: u64 = 1 << 29;
const INDIRECT: u64 = 1 << 28;
const VERSION_1: u64 = 1 << 32;

/// Guest memory: two regions with a hole between them.
const LOW: u64 = 0x10_0000;
const HIGH: u64 = 0x100_0000;
const REGION: u64 = 0x20_0000;
/// Where tests put data: outside the ring.
const DATA: u64 = LOW + 0x10_0000;
/// What lies in a buffer before the device writes it.
const BEFORE: u8 = 0xa5;

/// NEXT, WRITE and INDIRECT of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const TABLE: u16 = 4;

/// What one test lets its child inherit, no other child may.
static STARTING: Mutex<()> = Mutex::new(());

/// The program; ended, and its status checked, when dropped.
struct Program {
    child: Child,
    folder: tempfile::TempDir,
}

impl Program {
    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = format!("--socket-path={}", folder.path().join("socket").display());
        let child = Self::command(&[&[path.as_str()], arguments].concat());
        Self { child, folder }
    }

    fn command(arguments: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_outboard-rng"))
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn client(&self) -> Client {
        Client::connect(&self.path()).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            return;
        }
        let pid = Pid::from_raw(self.child.id() as i32);
        kill(pid, Signal::SIGTERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
        assert!(!self.path().exists());
    }
}

/// A session with its ring started.
struct Session {
    client: Client,
    guest: Memory,
    ring: Ring,
    /// The available index that the device has been told of.
    told: u16,
}

impl Session {
    fn new(mut client: Client, features: u64) -> Self {
        let guest = Memory::new(&[(LOW, REGION), (HIGH, REGION)]).unwrap();
        let acknowledged = client.negotiate(features | VERSION_1).unwrap();
        client.set_mem_table(&guest).unwrap();
        let ring = Ring::new(&guest, LOW, 16, acknowledged & EVENT_IDX != 0).unwrap();
        client.start_ring(0, &ring, 0).unwrap();
        Self {
            client,
            guest,
            ring,
            told: 0,
        }
    }

    fn lay_out(&self, at: u64, length: usize) {
        let before = vec![BEFORE; length];
        self.guest
            .guest
            .write_slice(&before, GuestAddress(at))
            .unwrap();
    }

    fn bytes(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.guest
            .guest
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
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
    let program = Program::start(&[]);
    for features in [0, EVENT_IDX, INDIRECT, EVENT_IDX | INDIRECT] {
        let mut session = Session::new(program.client(), features);
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
    let program = Program::start(&[]);
    let mut session = Session::new(program.client(), 0);
    let most = [Buffer::writable(HIGH, REGION as u32)];
    assert_eq!(session.ask(&most), 64 << 10);
}

#[test]
fn a_guest_beyond_its_rate_gets_what_is_left_and_then_waits() {
    let program = Program::start(&["--max-bytes=200", "--period=3600000"]);
    let mut session = Session::new(program.client(), EVENT_IDX);
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
    assert_eq!(session.client.stop_ring(0).unwrap(), 4);
    assert_eq!(session.ring.used_idx().unwrap(), 4);
    // The wait for the next hour holds nobody up.
    drop(session);
    let mut next = Session::new(program.client(), 0);
    assert_eq!(next.ask(&[Buffer::writable(DATA, 64)]), 64);
}

#[test]
fn a_guest_that_waited_is_served_when_the_period_is_over() {
    let program = Program::start(&["--max-bytes=64", "--period=20"]);
    let mut session = Session::new(program.client(), EVENT_IDX);
    session.ask_often(8);
    for _ in 0..8 {
        assert_eq!(session.ring.wait_used(soon()).unwrap().1, 64);
    }
    assert_eq!(session.client.stop_ring(0).unwrap(), 8);
}

/// Chains that are none: each is answered with nothing written, or, where there
/// is nothing to answer, left alone; and the device goes on.
#[test]
fn hostile_chains_are_answered_and_the_device_goes_on() {
    let program = Program::start(&[]);
    let mut session = Session::new(program.client(), INDIRECT);
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
    let program = Program::start(&[]);
    let mut session = Session::new(program.client(), EVENT_IDX);
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
    let base = session.client.stop_ring(0).unwrap();
    assert_eq!((base, session.ring.used_idx().unwrap()), (sane, 1));
    drop(session);
    Session::new(program.client(), EVENT_IDX).still_serves();
}

#[test]
fn one_front_end_is_served_after_another_and_nothing_piles_up() {
    let program = Program::start(&[]);
    let descriptors = || {
        let folder = format!("/proc/{}/fd", program.child.id());
        std::fs::read_dir(folder).unwrap().count()
    };
    let mut counts = Vec::new();
    for _ in 0..4 {
        let mut session = Session::new(program.client(), 0);
        session.still_serves();
        counts.push(descriptors());
    }
    assert_eq!(counts, [counts[0]; 4]);
    // One that breaks the rules is cut off, and the next is served.
    let client = program.client();
    client.send(Header::reply_to(1), &[], &[]).unwrap();
    client.receive().unwrap_err();
    Session::new(program.client(), 0).still_serves();
}

/// The thread that serves the queue, held by the test that traces it.
struct Worker(Pid);

impl Worker {
    /// Holds the one of a program with a session.
    fn seize(program: &Program) -> Self {
        let tasks = format!("/proc/{}/task", program.child.id());
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
    let program = Program::start(&[]);
    let mut session = Session::new(program.client(), 0);
    session.still_serves();
    let worker = Worker::seize(&program);
    session.ring.kick().unwrap();
    worker.hold_when_told();
    let stop = VhostUserVringState::new(0, 0);
    let request = Header::request(FrontendReq::GET_VRING_BASE.into());
    session.client.send(request, stop.as_slice(), &[]).unwrap();
    // A daemon that does not wait for the thread answers now; it alone needs the
    // time, and passes by mistake if that is too short.
    let mut answer = [PollFd::new(
        session.client.connection.as_fd(),
        PollFlags::POLLIN,
    )];
    let answered = poll(&mut answer, PollTimeout::from(500u16)).unwrap();
    let restart = |session: &mut Session| {
        let base: VhostUserVringState = session.client.receive().unwrap().body().unwrap();
        session.ring.renew_events().unwrap();
        let base = u16::try_from(base.num).unwrap();
        session.client.start_ring(0, &session.ring, base).unwrap();
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
fn inheriting(socket: OwnedFd) -> Child {
    let _alone = STARTING.lock().unwrap();
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let argument = format!("--fd={}", socket.as_fd().as_raw_fd());
    Program::command(&[&argument])
}

fn ends_with(mut child: Child, status: i32, words: &str) {
    let ended = child.wait().unwrap();
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(ended.code(), Some(status), "{said}");
    assert!(said.contains(words), "{said:?} without {words:?}");
}

#[test]
fn the_launch_contracts_socket_is_served_and_the_program_ends_with_it() {
    let (front, back) = Handover::of(&Kind::rng()).sockets().unwrap();
    let child = inheriting(back);
    Session::new(Client::new(front), EVENT_IDX).still_serves();
    ends_with(child, 0, "");
    // A front-end that is gone already, before or after it has asked.
    for asks in [false, true] {
        let (front, back) = Handover::Listening.sockets().unwrap();
        let client = Client::new(front);
        if asks {
            let request = Header::request(FrontendReq::GET_FEATURES.into());
            client.send(request, &[], &[]).unwrap();
        }
        drop(client);
        ends_with(inheriting(back), 0, "");
    }
}

#[test]
fn wrong_use_is_refused_and_says_what_to_do() {
    ends_with(Program::command(&[]), 2, "--socket-path");
    ends_with(Program::command(&["--fd=77"]), 1, "not open");
    let (_front, back) = UnixStream::pair().unwrap();
    ends_with(inheriting(back.into()), 1, "give one that listens");
    for wrong in ["--max-bytes=0", "--period=0", "--period=4294967296"] {
        ends_with(Program::command(&[wrong]), 2, "is not in");
    }
}
