//! Guest memory that goes away under a card: the session ends, nobody else is
//! blamed, and the next front-end finds the link up.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "these are tests"
)]

mod support;

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use outboard_contract::client::Client;
use outboard_contract::memory::Memory;
use outboard_contract::ring::{Buffer, Ring};
use outboard_net::header::Header;
use outboard_protocol::wire::WireError;
use support::*;

/// Bytes of the memory, and what is left when it is cut.
const SIZE: u64 = 0x20_0000;
const LEFT: u64 = 0x10_0000;
/// In what is left.
const THERE: u64 = 0x8_0000;

struct Session {
    client: Client,
    rx: Ring,
    tx: Ring,
    file: File,
}

impl Session {
    fn new(program: &Program) -> Self {
        let file = File::from(memfd_create(c"not sealed", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(SIZE).unwrap();
        let memory = Memory::of(vec![(0, file.try_clone().unwrap())]).unwrap();
        let mut client = program.client();
        client.negotiate(VERSION_1).unwrap();
        client.set_mem_table(&memory).unwrap();
        let [rx, tx] = [0x1000, 0x8000].map(|at| Ring::new(&memory, at, 64, false).unwrap());
        client.start_ring(0, &rx, 0).unwrap();
        client.start_ring(1, &tx, 0).unwrap();
        Self {
            client,
            rx,
            tx,
            file,
        }
    }

    fn cut(&self) {
        self.file.set_len(LEFT).unwrap();
    }

    fn wait_for_its_end(self) {
        assert!(matches!(self.client.receive(), Err(WireError::Closed)));
        assert_eq!(self.rx.used_idx().unwrap(), 0);
        assert_eq!(self.tx.used_idx().unwrap(), 0);
    }
}

#[test]
fn memory_that_is_cut_off_is_not_the_fault_of_the_tap() {
    if !own_network() {
        return;
    }
    make_tap("t0", "");
    let program = Program::start(&["--tap=t0", "--mac=02:00:00:00:00:01"]);
    let wire = Wire::new("t0", false);
    // The kernel is to write there. It is gone before the buffer is there: a worker
    // that has just started looks by itself.
    let mut session = Session::new(&program);
    session.cut();
    session.rx.add(&[Buffer::writable(LEFT, 1526)]).unwrap();
    session.rx.kick().unwrap();
    wire.send(Header::default(), &frame(GUEST, 64, 2));
    session.wait_for_its_end();
    // And to read there, after a header that is still there.
    let mut session = Session::new(&program);
    let parts = [Buffer::readable(THERE, 12), Buffer::readable(LEFT, 64)];
    session.cut();
    session.tx.add(&parts).unwrap();
    session.tx.kick().unwrap();
    session.wait_for_its_end();
    // The tap is as good as before.
    let mut driver = program.driver(EVERYTHING);
    driver.post(0, 16, 1526);
    wire.send(Header::default(), &frame(GUEST, 100, 3));
    assert_eq!(driver.receive(0).1, frame(GUEST, 100, 3));
    driver.send(0, &frame(HOST, 100, 4));
    assert_eq!(wire.receive().1, frame(HOST, 100, 4));
    drop(driver);
    let said = program.last_words();
    let sentence = "cut a front-end off: the guest's memory at 0x100000 is not there any more";
    assert_eq!(said.matches(sentence).count(), 2, "{said}");
    assert!(!said.contains("it was deleted"), "{said}");
}

#[test]
fn memory_that_is_cut_off_is_not_the_fault_of_the_peer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peer");
    let listener = UnixListener::bind(&path).unwrap();
    let program = Program::start(&[&format!("--peer={}", path.display())]);
    let mut peer = listener.accept().unwrap().0;
    let mut session = Session::new(&program);
    let parts = [Buffer::readable(THERE, 12), Buffer::readable(LEFT, 64)];
    session.cut();
    session.tx.add(&parts).unwrap();
    session.tx.kick().unwrap();
    session.wait_for_its_end();
    // The connection stays, and nothing of that frame went.
    let mut driver = program.driver(EVERYTHING);
    driver.send(0, &frame(HOST, 100, 4));
    peer.set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let mut read = [0; 4 + 100];
    peer.read_exact(&mut read).unwrap();
    assert_eq!(read[..4], 100u32.to_be_bytes());
    assert_eq!(read[4..], frame(HOST, 100, 4));
}
