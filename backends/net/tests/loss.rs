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

use outboard_contract::client::Client;
use outboard_contract::driver;
use outboard_contract::memory::Memory;
use outboard_contract::ring::{Buffer, Ring};
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
        let (memory, file) = Memory::cuttable(0, SIZE).unwrap();
        let driver = driver::Driver::new(program.client().unwrap(), 0, memory);
        let rings = [(0, 0x1000), (1, 0x8000)];
        let [rx, tx] = rings.map(|(index, at)| driver.ring(index, at, 64));
        Self {
            client: driver.client,
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
    let Some(bench) = Bench::plain() else {
        return;
    };
    // The kernel is to write there. It is gone before the buffer is there: a worker
    // that has just started looks by itself.
    let mut session = Session::new(&bench.program);
    session.cut();
    session.rx.add(&[Buffer::writable(LEFT, 1526)]).unwrap();
    session.rx.kick().unwrap();
    bench.send(&frame(GUEST, 64, 2));
    session.wait_for_its_end();
    // And to read there, after a header that is still there.
    let mut session = Session::new(&bench.program);
    let parts = [Buffer::readable(THERE, 12), Buffer::readable(LEFT, 64)];
    session.cut();
    session.tx.add(&parts).unwrap();
    session.tx.kick().unwrap();
    session.wait_for_its_end();
    // The tap is as good as before.
    let mut driver = bench.ready(16);
    bench.send(&frame(GUEST, 100, 3));
    assert_eq!(driver.receive(0).1, frame(GUEST, 100, 3));
    driver.send(0, &frame(HOST, 100, 4));
    assert_eq!(bench.wire.receive().1, frame(HOST, 100, 4));
    drop(driver);
    let said = bench.program.last_words().unwrap();
    let sentence = "cut a front-end off: the guest's memory at 0x100000 is not there any more";
    assert_eq!(said.matches(sentence).count(), 2, "{said}");
    assert!(!said.contains("it was deleted"), "{said}");
}

#[test]
fn memory_that_is_cut_off_is_not_the_fault_of_the_peer() {
    let (program, mut peer) = connected();
    let mut session = Session::new(&program);
    let parts = [Buffer::readable(THERE, 12), Buffer::readable(LEFT, 64)];
    session.cut();
    session.tx.add(&parts).unwrap();
    session.tx.kick().unwrap();
    session.wait_for_its_end();
    // The connection stays, and nothing of that frame went.
    let mut driver = Driver::of(&program, EVERYTHING);
    driver.send(0, &frame(HOST, 100, 4));
    let mut read = [0; 4 + 100];
    peer.read_exact(&mut read).unwrap();
    assert_eq!(read[..4], 100u32.to_be_bytes());
    assert_eq!(read[4..], frame(HOST, 100, 4));
}
