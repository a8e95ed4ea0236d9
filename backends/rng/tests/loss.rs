//! Lent memory that goes away under the program: it ends that session, says why,
//! and serves the next front-end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, Stdio};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outboard_contract::client::Client;
use outboard_contract::memory::Memory;
use outboard_contract::ring::{Buffer, Ring};
use outboard_contract::soon;
use outboard_protocol::wire::WireError;

const VERSION_1: u64 = 1 << 32;
const LOW: u64 = 0x10_0000;
const REGION: u64 = 0x20_0000;
/// Where memory ends once it is cut.
const END: u64 = LOW + REGION / 2;

struct Program {
    child: Child,
    folder: tempfile::TempDir,
}

impl Program {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = format!("--socket-path={}", folder.path().join("socket").display());
        let child = Command::new(env!("CARGO_BIN_EXE_outboard-rng"))
            .arg(path)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    /// A session with memory in a file that can be cut.
    fn session(&self) -> (Client, Memory, File) {
        let file = File::from(memfd_create(c"not sealed", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(REGION).unwrap();
        let guest = Memory::of(vec![(LOW, file.try_clone().unwrap())]).unwrap();
        let mut client = Client::connect(&self.folder.path().join("socket")).unwrap();
        client.negotiate(VERSION_1).unwrap();
        client.set_mem_table(&guest).unwrap();
        (client, guest, file)
    }

    /// Ends it; what it said.
    fn end(mut self) -> String {
        let pid = Pid::from_raw(self.child.id() as i32);
        kill(pid, Signal::SIGTERM).unwrap();
        let status = self.child.wait().unwrap();
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        assert!(status.success(), "{status}: {said}");
        said
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serves(ring: &mut Ring) {
    let at = LOW + 0x8000;
    let head = ring.add(&[Buffer::writable(at, 64)]).unwrap();
    ring.kick().unwrap();
    assert_eq!(ring.wait_used(soon()).unwrap(), (head, 64));
}

/// Every part of a ring, and a buffer: what is touched by the daemon, and what
/// by the device.
#[test]
fn memory_that_is_cut_ends_the_session_and_the_next_is_served() {
    type Part = fn(&mut Ring) -> &mut u64;
    let parts: [Option<Part>; 4] = [
        Some(|ring| &mut ring.descriptors),
        Some(|ring| &mut ring.available),
        Some(|ring| &mut ring.used),
        None,
    ];
    let program = Program::start();
    for part in parts {
        let (client, guest, file) = program.session();
        let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
        if let Some(part) = part {
            *part(&mut ring) = END + 0x3000;
        }
        client.start_ring(0, &ring, 0).unwrap();
        serves(&mut ring);
        let buffer = if part.is_none() {
            END + 0x3000
        } else {
            LOW + 0x8000
        };
        let lose = || {
            ring.add(&[Buffer::writable(buffer, 64)]).unwrap();
            file.set_len(END - LOW).unwrap();
        };
        client.unseen(0, lose).unwrap();
        ring.kick().unwrap();
        assert!(matches!(client.receive(), Err(WireError::Closed)));
        if part.is_none() {
            assert_eq!(ring.used_idx().unwrap(), 1, "it was not returned");
        }
        // The next one's memory is whole.
        let (client, guest, _file) = program.session();
        let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
        client.start_ring(0, &ring, 0).unwrap();
        serves(&mut ring);
    }
    let said = program.end();
    let sentence = "cut a front-end off: the guest's memory at 0x203000 is not there any more";
    // The first, the second and the fourth of four.
    assert_eq!(said.matches(sentence).count(), 3, "{said}");
}
