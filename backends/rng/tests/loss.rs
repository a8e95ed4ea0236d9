//! Lent memory that goes away under the program: it ends that session, says why,
//! and serves the next front-end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::fs::File;

use outboard_contract::client::Client;
use outboard_contract::driver::Driver;
use outboard_contract::memory::Memory;
use outboard_contract::program::{Program, command};
use outboard_contract::ring::{Buffer, Ring};
use outboard_protocol::wire::WireError;

const LOW: u64 = 0x10_0000;
const REGION: u64 = 0x20_0000;
/// Where memory ends once it is cut.
const END: u64 = LOW + REGION / 2;

/// A session with memory in a file that can be cut.
fn session(program: &Program) -> (Client, Memory, File) {
    let (memory, file) = Memory::cuttable(LOW, REGION).unwrap();
    let driver = Driver::new(program.client().unwrap(), 0, memory);
    (driver.client, driver.memory, file)
}

fn serves(ring: &mut Ring) {
    let at = LOW + 0x8000;
    assert_eq!(ring.submit(&[Buffer::writable(at, 64)]).unwrap(), 64);
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
    let mut program = command(env!("CARGO_BIN_EXE_outboard-rng"), &[""; 0]);
    let program = Program::serve(&mut program).unwrap();
    for part in parts {
        let (client, guest, file) = session(&program);
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
        let (client, guest, _file) = session(&program);
        let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
        client.start_ring(0, &ring, 0).unwrap();
        serves(&mut ring);
    }
    let said = program.last_words().unwrap();
    let sentence = "cut a front-end off: the guest's memory at 0x203000 is not there any more";
    // The first, the second and the fourth of four.
    assert_eq!(said.matches(sentence).count(), 3, "{said}");
}
