use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use vm_memory::{Bytes, GuestAddress};

use super::*;

fn buffer(address: u64, length: u32) -> Buffer {
    Buffer {
        address: GuestAddress(address),
        length,
    }
}

/// Two regions that touch at 0x2000, and a hole after 0x3000.
fn memory() -> Arc<Memory> {
    let regions = [
        (GuestAddress(0x1000), 0x1000),
        (GuestAddress(0x2000), 0x1000),
    ];
    Arc::new(Memory::from_ranges(&regions).unwrap())
}

/// That many buffers of one byte, all the same.
fn many(memory: &Arc<Memory>, count: usize) -> GuestBuffers {
    let mut buffers = GuestBuffers::default();
    let bytes = (0..count).map(|_| buffer(0x1000, 1));
    assert_eq!(buffers.extend(memory, bytes), Ok(count));
    buffers
}

#[test]
fn a_buffer_over_two_regions_is_two_pieces_in_order() {
    let memory = memory();
    memory.write_slice(b"abcdef", GuestAddress(0x1ffd)).unwrap();
    let mut buffers = GuestBuffers::default();
    let added = [buffer(0x1ffd, 6), buffer(0x1000, 0), buffer(0x1ffe, 1)];
    assert_eq!(buffers.extend(&memory, added), Ok(7));
    assert_eq!((buffers.len(), buffers.bytes()), (3, 7));
    let mut bytes = [0; 9];
    assert_eq!(buffers.copy_to(0, &mut bytes), 7);
    assert_eq!(&bytes, b"abcdefb\0\0");
    assert_eq!(buffers.copy_from(4, b"XYZ?"), 3);
    assert_eq!(buffers.copy_to(2, &mut bytes), 5);
    // The last byte is the second one too.
    assert_eq!(&bytes[..5], b"cdXYZ");
    assert_eq!(buffers.copy_to(1, &mut bytes[..1]), 1);
    assert_eq!(&bytes[..1], b"Z");
}

#[test]
fn holes_overflows_and_ends_of_memory_add_nothing() {
    let memory = memory();
    let mut buffers = GuestBuffers::default();
    buffers.extend(&memory, [buffer(0x1000, 4)]).unwrap();
    for (address, length) in [
        (0x2fff, 2),
        (0xfff, 2),
        (0x5000, 1),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (0x1000, u32::MAX),
    ] {
        let good = buffer(0x1000, 16);
        let result = buffers.extend(&memory, [good, buffer(address, length)]);
        assert_eq!(result, Err(Unmapped), "{address:#x}+{length:#x}");
        assert_eq!((buffers.len(), buffers.bytes()), (1, 4));
    }
}

#[test]
fn memory_is_held_as_long_as_there_are_pieces_of_it() {
    let (first, second) = (memory(), memory());
    let mut buffers = many(&first, 2);
    assert_eq!(Arc::strong_count(&first), 2);
    // Pieces of another memory would outlive it.
    assert_eq!(buffers.extend(&second, []), Err(Unmapped));
    buffers.advance(2);
    assert_eq!(buffers.extend(&second, [buffer(0x1000, 1)]), Ok(1));
    assert_eq!(Arc::strong_count(&first), 1);
    drop(buffers);
    assert_eq!(Arc::strong_count(&second), 1);
}

#[test]
fn memory_that_keeps_every_mapping_of_the_former_may_follow_it() {
    let first = memory();
    let at = GuestAddress(0x10_0000);
    let more = Memory::from_ranges(&[(at, 0x1000)]).unwrap();
    let (_, region) = more.remove_region(at, 0x1000).unwrap();
    let second = Arc::new(first.insert_region(region).unwrap());
    let mut buffers = many(&first, 2);
    assert_eq!(buffers.extend(&second, [buffer(0x10_0000, 4)]), Ok(4));
    assert_eq!(Arc::strong_count(&first), 1);
    assert_eq!(Arc::strong_count(&second), 2);
    // Not the other way round.
    assert_eq!(buffers.extend(&first, []), Err(Unmapped));
}

#[test]
fn bytes_are_forgotten_from_the_front() {
    let memory = memory();
    memory.write_slice(b"abcdef", GuestAddress(0x1000)).unwrap();
    let mut buffers = GuestBuffers::default();
    let added = [buffer(0x1000, 2), buffer(0x1002, 2), buffer(0x1004, 2)];
    buffers.extend(&memory, added).unwrap();
    for (count, left) in [
        (0, (3, "abcdef")),
        (1, (3, "bcdef")),
        (2, (2, "def")),
        (1, (1, "ef")),
        (9, (0, "")),
    ] {
        buffers.advance(count);
        let mut bytes = [0; 6];
        let found = buffers.copy_to(0, &mut bytes);
        assert_eq!(
            (buffers.len(), &bytes[..found]),
            (left.0, left.1.as_bytes())
        );
        assert_eq!(buffers.bytes(), found);
    }
}

#[test]
fn buffers_move_through_a_file_in_any_steps() {
    let memory = memory();
    let content: Vec<u8> = (0..=255).cycle().take(0x2000).collect();
    memory.write_slice(&content, GuestAddress(0x1000)).unwrap();
    let file = tempfile::tempfile().unwrap();
    let mut buffers = GuestBuffers::default();
    let all = || (0..16).map(|i| buffer(0x1000 + i * 0x200, 0x200));
    buffers.extend(&memory, all()).unwrap();
    let mut offset = 0;
    while !buffers.is_empty() {
        let count = buffers.write_at(&file, offset, 0).unwrap().min(777);
        buffers.advance(count);
        offset += count as u64;
    }
    let mut found = Vec::new();
    (&file).read_to_end(&mut found).unwrap();
    assert_eq!(found, content);

    memory
        .write_slice(&[0; 0x2000], GuestAddress(0x1000))
        .unwrap();
    buffers.extend(&memory, all()).unwrap();
    while !buffers.is_empty() {
        let offset = 0x2000 - buffers.bytes() as u64;
        buffers.advance(buffers.read_at(&file, offset).unwrap().min(777));
    }
    memory.read_slice(&mut found, GuestAddress(0x1000)).unwrap();
    assert_eq!(found, content);
}

#[test]
fn more_pieces_than_a_call_takes_come_in_parts() {
    let memory = memory();
    let file = tempfile::tempfile().unwrap();
    let mut buffers = many(&memory, 3000);
    assert_eq!(buffers.entries().len(), MOST_ENTRIES);
    assert_eq!(buffers.write_at(&file, 0, 0).unwrap(), MOST_ENTRIES);
    // What lies in a row is some of it, wherever the queue begins.
    buffers.advance(2000);
    buffers
        .extend(&memory, (0..1500).map(|_| buffer(0x1000, 1)))
        .unwrap();
    while !buffers.is_empty() {
        assert!(!buffers.entries().is_empty());
        let count = buffers.entries().len();
        buffers.advance(count);
    }
}

#[test]
fn pieces_are_aligned_when_each_is() {
    let memory = memory();
    let mut buffers = GuestBuffers::default();
    // A mapping begins at a page.
    let added = [buffer(0x1000, 512), buffer(0x1200, 1024)];
    buffers.extend(&memory, added).unwrap();
    assert!(buffers.is_aligned(512, 512));
    assert!(!buffers.is_aligned(1024, 512));
    assert!(!buffers.is_aligned(512, 1024));
    buffers.advance(1);
    assert!(!buffers.is_aligned(2, 1));
    assert!(!buffers.is_aligned(1, 2));
}

#[test]
fn a_frame_goes_out_after_its_header_and_comes_in_around_it() {
    let memory = memory();
    let frame: Vec<u8> = (0..100).collect();
    memory
        .write_slice(&frame, GuestAddress(0x1ff0 + 12))
        .unwrap();
    let mut buffers = GuestBuffers::default();
    // The place of the header lies over three pieces.
    let added = [buffer(0x1ff0, 1), buffer(0x1ff1, 2), buffer(0x1ff3, 109)];
    buffers.extend(&memory, added).unwrap();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let header = b"twelve bytes";
    let written = buffers.write_after(ours.as_fd(), header, 12);
    assert_eq!(written.unwrap(), 112);
    let sent = buffers.send_after(ours.as_fd(), &[7; 4], 12);
    assert_eq!(sent.unwrap(), 104);
    let mut found = [0; 216];
    theirs.read_exact(&mut found).unwrap();
    assert_eq!(&found[..12], b"twelve bytes");
    assert_eq!(found[12..112], frame);
    assert_eq!(found[112..116], [7; 4]);
    assert_eq!(found[116..], frame);

    theirs.write_all(b"TWELVE BYTES0123456789").unwrap();
    let (mut header, mut rest) = ([0; 12], [0; 8]);
    let result = buffers.read_between(ours.as_fd(), &mut header, 7, &mut rest);
    assert_eq!(result.unwrap(), (22, 7));
    assert_eq!(&header, b"TWELVE BYTES");
    let mut found = [0; 8];
    buffers.copy_to(12, &mut found);
    assert_eq!(&found, b"0123456\x07");
    assert_eq!(&rest, b"789\0\0\0\0\0");
}

#[test]
fn more_pieces_than_a_frame_may_have_are_refused_and_read_in_part() {
    let memory = memory();
    let mut buffers = many(&memory, 1100);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    assert!(buffers.write_after(ours.as_fd(), &[0; 12], 12).is_err());
    assert!(buffers.send_after(ours.as_fd(), &[0; 4], 12).is_err());
    theirs.write_all(&[1; 12]).unwrap();
    let result = buffers.read_between(ours.as_fd(), &mut [0; 12], 9999, &mut [0; 1]);
    assert_eq!(result.unwrap(), (12, MOST_PIECES - 12));
}
