//! Guest memory that goes away under a request: the session ends, whoever
//! touches the memory first, the kernel or the program; nothing of it reaches the
//! disk; the next front-end is served.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::os::unix::fs::FileExt;

use outboard_contract::memory::Memory;
use outboard_contract::ring::Buffer;
use outboard_protocol::wire::WireError;
use support::*;
use virtio_bindings::virtio_blk::*;

/// Bytes of the memory, and what is left when it is cut.
const SIZE: u64 = 0x20_0000;
const END: u64 = 0x10_0000;

#[test]
fn data_that_is_cut_off_ends_the_session_and_the_next_is_served() {
    // Aligned for direct I/O, and not: read by the kernel, and by the program.
    for (way, at) in WAYS.iter().flat_map(|way| [(way, END), (way, END + 4)]) {
        let program = start(way);
        for (kind, data) in [
            (VIRTIO_BLK_T_IN, Buffer::writable(at, 4096)),
            (VIRTIO_BLK_T_OUT, Buffer::readable(at, 4096)),
        ] {
            let (memory, file) = Memory::cuttable(0, SIZE).unwrap();
            let mut driver = Driver::with(program.client().unwrap(), EVERYTHING, memory);
            let mut header = [0; 16];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            driver.put(HEADER, &header);
            let header = Buffer::readable(HEADER, 16);
            // So that zeroes would be found out.
            image(&program).write_all_at(&[7; 4096], 0).unwrap();
            // Before the request is there: a worker that has just started looks by
            // itself.
            file.set_len(END).unwrap();
            driver
                .ring
                .add(&[header, data, Buffer::writable(STATUS, 1)])
                .unwrap();
            driver.ring.kick().unwrap();
            assert!(
                matches!(driver.client.receive(), Err(WireError::Closed)),
                "{way:?} {at:#x} {kind}"
            );
            assert_eq!(driver.ring.used_idx().unwrap(), 0);
            assert_eq!(
                stored(&image(&program), 0, 4096),
                [7; 4096],
                "{way:?} {at:#x}"
            );
        }
        Driver::of(&program, EVERYTHING).works();
    }
}
