//! Where a ring and its words lie.

use super::*;

#[test]
fn every_word_lies_where_the_specification_has_it() {
    let memory = Memory::from_ranges(&[(GuestAddress(0), 0x3000)]).unwrap();
    let words = View::new(&memory, &layout()).unwrap();
    let places = [
        (Word::AvailFlags, 0x1000),
        (Word::AvailIdx, 0x1002),
        (Word::AvailHead(0), 0x1004),
        (Word::AvailHead(3 * SIZE + 7), 0x1012),
        (Word::UsedEvent, 0x1014),
        (Word::UsedFlags, 0x2000),
        (Word::UsedIdx, 0x2002),
        (Word::AvailEvent, 0x2044),
    ];
    for (value, (word, at)) in (0x0100..).zip(places) {
        words.store(word, value, Ordering::Relaxed).unwrap();
        let found: u16 = memory.read_obj(GuestAddress(at)).unwrap();
        assert_eq!(found, value, "{word:?}");
        assert_eq!(words.load(word, Ordering::Relaxed), Ok(value));
    }
    words.set_used(2 * SIZE + 7, 5, 0x0102_0304).unwrap();
    let element: [u32; 2] = memory.read_obj(GuestAddress(0x203c)).unwrap();
    assert_eq!(element, [5, 0x0102_0304]);
}

#[test]
fn a_ring_is_mapped_where_each_of_its_parts_is_in_memory_to_its_end() {
    let [descriptors, available, used] = Layout::lengths(SIZE);
    assert_eq!([descriptors, available, used], [128, 22, 70]);
    let whole = [
        (GuestAddress(0), descriptors as usize),
        (GuestAddress(0x1000), available as usize),
        (GuestAddress(0x2000), used as usize),
    ];
    let is_mapped = |ranges: &[_]| {
        let memory = Memory::from_ranges(ranges).unwrap();
        View::new(&memory, &layout()).is_some()
    };
    assert!(is_mapped(&whole));
    for part in 0..3 {
        let mut cut = whole;
        cut[part].1 -= 1;
        assert!(!is_mapped(&cut), "part {part}");
    }
}

#[test]
fn a_layout_is_of_a_legal_size_and_aligned_and_its_used_ring_lies_apart() {
    let make = |size, parts: [u64; 3]| {
        let [descriptors, available, used] = parts.map(GuestAddress);
        Layout::new(size, descriptors, available, used)
    };
    let good = [0x1000, 0x2000, 0x3000];
    for size in [0, 3, 12, 32769, 65535] {
        assert!(make(size, good).is_err(), "{size} entries");
    }
    assert!(make(1, good).is_ok());
    assert!(make(32768, [0, 0x10_0000, 0x20_0000]).is_ok());
    for (part, alignment) in [(0, 16), (1, 2), (2, 4)] {
        let mut parts = good;
        parts[part] += alignment / 2;
        assert!(make(SIZE, parts).is_err(), "part {part}");
        parts[part] += alignment / 2;
        assert!(make(SIZE, parts).is_ok(), "part {part}");
    }
    // 128 bytes, 22 and 70: side by side is well, a byte over is not.
    for used in [0x1080, 0x1000 - 72, 0x2018, 0x2000 - 72] {
        assert!(make(SIZE, [0x1000, 0x2000, used]).is_ok(), "{used:#x}");
    }
    for used in [0x107c, 0x1000 - 68, 0x2014, 0x2000 - 68] {
        assert!(make(SIZE, [0x1000, 0x2000, used]).is_err(), "{used:#x}");
    }
    assert!(make(SIZE, [0x1000, 0x2046, 0x2000]).is_ok());
    assert!(make(SIZE, [0x1000, 0x2044, 0x2000]).is_err());
    // What only the driver writes may lie over itself.
    assert!(make(SIZE, [0x1000, 0x1000, 0x3000]).is_ok());

    // So for two rings: neither's used ring over any part of the other.
    let first = make(SIZE, good).unwrap();
    let [far, farther] = [0x5000, 0x6000];
    for (parts, expected) in [
        ([far, farther, 0x7000], false),
        ([0x1000, 0x2000, 0x7000], false),
        ([far, farther, 0x1070], true),
        ([far, farther, 0x2000], true),
        ([far, farther, 0x3000], true),
        ([0x3000, farther, 0x7000], true),
        ([far, 0x3000, 0x7000], true),
        ([far, farther, 0x3048], false),
    ] {
        let second = make(SIZE, parts).unwrap();
        assert_eq!(first.collides(&second), expected, "{parts:x?}");
        assert_eq!(second.collides(&first), expected, "{parts:x?}");
    }
}
