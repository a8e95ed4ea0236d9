//! What a front-end lends and changes afterwards, and what passes by itself: the
//! next front-end is served.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::io::Read;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outboard_contract::client::Client;
use outboard_contract::memory::Memory;
use outboard_contract::ring::{Buffer, Ring};
use outboard_contract::soon;
use rustix::process::{Resource, Rlimit, prlimit};
use vhost::vhost_user::message::FrontendReq as R;

const VERSION_1: u64 = 1 << 32;
const DATA: u64 = 0x8000;

struct Program {
    child: Child,
    folder: tempfile::TempDir,
}

impl Program {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_outboard-rng"))
            .arg(format!(
                "--socket-path={}",
                folder.path().join("socket").display()
            ))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// A connection with a ring that runs, which has served one request.
    fn session(&self) -> (Client, Memory, Ring) {
        let (mut client, guest) = self.begun();
        let mut ring = Ring::new(&guest, 0x1000, 16, false).unwrap();
        for event in [&ring.kick, &ring.call] {
            fcntl(event, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        }
        client.start_ring(0, &ring, 0).unwrap();
        client.acknowledged = true;
        ask(&mut ring);
        ring.wait_used(soon()).unwrap();
        (client, guest, ring)
    }

    fn begun(&self) -> (Client, Memory) {
        let mut client = Client::connect(&self.path()).unwrap();
        let guest = Memory::new(&[(0, 0x10_0000)]).unwrap();
        client.negotiate(VERSION_1).unwrap();
        client.set_mem_table(&guest).unwrap();
        (client, guest)
    }

    /// Serves another front-end, and ends by this signal; what it said.
    fn ends(mut self, signal: Signal) -> String {
        drop(self.session());
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
        assert!(!self.path().exists());
        let mut said = String::new();
        let stderr = self.child.stderr.as_mut().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        said
    }

    fn limit_descriptors(&self, most: u64) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32);
        let limits = Rlimit {
            current: Some(most),
            maximum: Some(1000),
        };
        prlimit(pid, Resource::Nofile, limits).unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ask(ring: &mut Ring) {
    ring.add(&[Buffer::writable(DATA, 64)]).unwrap();
    ring.kick().unwrap();
}

#[test]
fn what_is_no_eventfd_is_cut_off_its_own_end_of_the_connection_too() {
    let program = Program::start();
    for request in [R::SET_VRING_KICK, R::SET_VRING_CALL, R::SET_VRING_ERR] {
        let (client, _guest) = program.begun();
        let own = client.connection.as_fd();
        client.tell(request, &[0; 8], &[own]).unwrap();
        // Whatever it was answered: it is over.
        while client.receive().is_ok() {}
    }
    let said = program.ends(Signal::SIGTERM);
    assert!(said.contains("no eventfd"), "{said}");
}

#[test]
fn a_kick_without_an_end_is_cut_off() {
    let program = Program::start();
    let (client, _guest, _ring) = program.session();
    let endless = EventFd::from_value_and_flags(u32::MAX, EfdFlags::EFD_SEMAPHORE).unwrap();
    client.stop_ring(0).unwrap();
    let _ = client.vring_fd(R::SET_VRING_KICK, 0, &endless);
    while client.receive().is_ok() {}
    let said = program.ends(Signal::SIGTERM);
    assert!(said.contains("EFD_SEMAPHORE"), "{said}");
}

#[test]
fn a_call_that_is_filled_and_made_to_block_holds_nothing_up() {
    let program = Program::start();
    for stopped in [false, true] {
        let (client, _guest, mut ring) = program.session();
        let _ = ring.call.read();
        ring.call.write(u64::MAX - 1).unwrap();
        fcntl(&ring.call, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        ask(&mut ring);
        ring.wait_used(soon()).unwrap();
        if stopped {
            // It is answered, or cut off.
            let _ = client.stop_ring(0);
        }
    }
    program.ends(Signal::SIGTERM);
}

#[test]
fn a_lack_of_descriptors_is_waited_out() {
    let mut program = Program::start();
    let session = program.session();
    program.limit_descriptors(5);
    drop(session);
    let stderr = program.child.stderr.as_mut().unwrap();
    let mut said = vec![0; 4096];
    let count = stderr.read(&mut said).unwrap();
    let said = String::from_utf8_lossy(&said[..count]).into_owned();
    assert!(
        said.contains("cannot accept a front-end for the moment"),
        "{said}"
    );
    program.limit_descriptors(1000);
    program.ends(Signal::SIGTERM);
}

#[test]
fn a_hangup_ends_it_in_order() {
    let said = Program::start().ends(Signal::SIGHUP);
    assert_eq!(said, "");
}
