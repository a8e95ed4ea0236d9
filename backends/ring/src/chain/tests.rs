use proptest::prelude::*;

use super::*;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Address, length, flags and next of a descriptor.
type Words = (u64, u32, u16, u16);

fn bytes(table: &[Words]) -> Vec<u8> {
    let descriptors = table.iter().flat_map(|(address, length, flags, next)| {
        let [flags, next] = [flags, next].map(|word| word.to_le_bytes());
        let head = [
            address.to_le_bytes().to_vec(),
            length.to_le_bytes().to_vec(),
        ];
        [head.concat(), flags.to_vec(), next.to_vec()].concat()
    });
    descriptors.collect()
}

/// Reads the chain at head 0 of a ring that has this table.
fn read(table: &[Words], memory: Option<&Memory>) -> Result<Chain, Malformed> {
    let mut table = bytes(table);
    let size = (table.len() / 16) as u16;
    // What a chain that was read before has left.
    let stale = buffer(0xdead, 1);
    let mut chain = Chain {
        head: 99,
        readable: vec![stale],
        writable: vec![stale],
    };
    let table = VolatileSlice::from(&mut table[..]);
    chain.read(&table, size, 0, memory).map(|()| chain)
}

/// Reads a table of this many bytes of `table`, in memory at 4096, to which
/// head 0 refers.
fn indirect(length: u32, table: &[Words]) -> Result<Chain, Malformed> {
    let memory = Memory::from_ranges(&[(GuestAddress(4096), 1 << 17)]).unwrap();
    let inner = bytes(table);
    memory.write_slice(&inner, GuestAddress(4096)).unwrap();
    read(&[(4096, length, INDIRECT, 0)], Some(&memory))
}

fn buffer(address: u64, length: u32) -> Buffer {
    Buffer {
        address: GuestAddress(address),
        length,
    }
}

#[test]
fn a_chain_is_its_buffers_in_order_and_nothing_of_the_one_before() {
    let table = [
        (0x1000, 1, NEXT, 3),
        (0x4000, 4, WRITE, 2),
        (0x9999, 9, 0, 0),
        (0x2000, 2, NEXT, 4),
        (0x3000, 3, NEXT | WRITE, 1),
    ];
    let chain = read(&table, None).unwrap();
    assert_eq!(chain.head, 0);
    assert_eq!(chain.readable, [buffer(0x1000, 1), buffer(0x2000, 2)]);
    assert_eq!(chain.writable, [buffer(0x3000, 3), buffer(0x4000, 4)]);
    assert_eq!(chain.writable_bytes(), 7);
}

#[test]
fn a_chain_may_be_as_long_as_its_table_and_no_longer() {
    let line = |last: Words| [(0, 1, NEXT, 1), (0, 1, NEXT, 2), last];
    assert_eq!(read(&line((0, 1, 0, 9)), None).unwrap().readable.len(), 3);
    for next in 0..3 {
        let looped = read(&line((0, 1, NEXT, next)), None);
        assert_eq!(looped, Err(Malformed::Length), "back to {next}");
    }
    for next in [3, 4, u16::MAX] {
        let beyond = read(&[(0, 1, NEXT, 1), (0, 1, NEXT, next), (0, 1, 0, 0)], None);
        assert_eq!(beyond, Err(Malformed::Next), "on to {next}");
    }
}

#[test]
fn nothing_is_readable_after_something_writable() {
    let table = [(0, 1, NEXT | WRITE, 1), (0, 1, 0, 0)];
    assert_eq!(read(&table, None), Err(Malformed::Order));
}

#[test]
fn the_bytes_of_a_chain_fit_32_bits() {
    let table = |length| [(0, u32::MAX - 7, NEXT, 1), (0, length, WRITE, 0)];
    assert_eq!(read(&table(7), None).unwrap().writable_bytes(), 7);
    assert_eq!(read(&table(8), None), Err(Malformed::Bytes));
}

#[test]
fn a_table_that_ends_before_its_ring_does_is_unreachable() {
    let mut table = bytes(&[(0, 1, NEXT, 1)]);
    let table = VolatileSlice::from(&mut table[..]);
    let read = Chain::default().read(&table, 2, 0, None);
    assert_eq!(read, Err(Malformed::Unreachable));
}

#[test]
fn an_indirect_table_goes_on_where_the_direct_descriptors_end() {
    let memory = Memory::from_ranges(&[(GuestAddress(4096), 4096)]).unwrap();
    let inner = bytes(&[(0x2000, 2, NEXT, 1), (0x3000, 3, WRITE, 0)]);
    memory.write_slice(&inner, GuestAddress(4096)).unwrap();
    // Whether it is marked writable says nothing.
    for flags in [INDIRECT, INDIRECT | WRITE] {
        let table = [(0x1000, 1, NEXT, 1), (4096, 32, flags, 0)];
        let chain = read(&table, Some(&memory)).unwrap();
        assert_eq!(chain.readable, [buffer(0x1000, 1), buffer(0x2000, 2)]);
        assert_eq!(chain.writable, [buffer(0x3000, 3)]);
        assert_eq!(
            read(&table, None),
            Err(Malformed::Indirect),
            "not agreed on"
        );
    }
    let chained_on = [(4096, 32, INDIRECT | NEXT, 1), (0, 1, 0, 0)];
    assert_eq!(read(&chained_on, Some(&memory)), Err(Malformed::Indirect));
    for at in [0, 4096 - 16, 8192 - 16, u64::MAX - 15] {
        let elsewhere = read(&[(at, 32, INDIRECT, 0)], Some(&memory));
        assert_eq!(elsewhere, Err(Malformed::Indirect), "at {at:#x}");
    }
}

#[test]
fn an_indirect_table_is_1_to_1024_whole_descriptors_none_of_them_indirect() {
    let long: Vec<Words> = (1..=1024).map(|next| (0, 1, NEXT, next)).collect();
    let mut ended = long.clone();
    ended[1023].2 = 0;
    assert_eq!(indirect(1024 * 16, &ended).unwrap().readable.len(), 1024);
    assert_eq!(indirect(1024 * 16, &long), Err(Malformed::Length));
    assert_eq!(indirect(16, &[(0, 1, 0, 0)]).unwrap().readable.len(), 1);
    for length in [0, 1, 15, 17, 1024 * 16 + 1, 1025 * 16, 65537 * 16] {
        let refused = indirect(length, &ended);
        assert_eq!(refused, Err(Malformed::Indirect), "{length} bytes");
    }
    // Its own length counts, not the ring's.
    assert_eq!(indirect(16, &ended), Err(Malformed::Length));
    let nested = [(4096, 16, INDIRECT, 0)];
    assert_eq!(indirect(16, &nested), Err(Malformed::Indirect));
}

/// What the specification says of a direct chain, at length.
fn described(table: &[Words]) -> Option<(Vec<Buffer>, Vec<Buffer>)> {
    let (mut readable, mut writable) = (Vec::new(), Vec::new());
    let mut index = 0;
    let mut sum = 0;
    for _ in 0..table.len() {
        let (address, length, flags, next) = *table.get(usize::from(index))?;
        sum += u64::from(length);
        let buffer = buffer(address, length);
        match (flags & INDIRECT, flags & WRITE) {
            (0, 0) if writable.is_empty() => readable.push(buffer),
            (0, WRITE) => writable.push(buffer),
            _ => return None,
        }
        if flags & NEXT == 0 {
            return (sum <= u64::from(u32::MAX)).then_some((readable, writable));
        }
        index = next;
    }
    None
}

proptest! {
    #[test]
    fn a_table_of_any_content_is_a_chain_or_malformed_as_described(
        table in prop::collection::vec(
            (any::<u64>(), prop_oneof![4 => 0u32..100, 1 => any::<u32>()],
             prop_oneof![8 => Just(NEXT), 2 => Just(WRITE), 2 => Just(NEXT | WRITE), 1 => 0u16..8],
             0u16..6), 1..6)
    ) {
        let found = read(&table, None).ok().map(|chain| (chain.readable, chain.writable));
        prop_assert_eq!(found, described(&table));
    }
}
