use proptest::prelude::*;

use super::*;
use crate::guest::{END, Guest, START, header, segment};

const IN: u32 = VIRTIO_BLK_T_IN;
const OUT: u32 = VIRTIO_BLK_T_OUT;
const DISCARD: u32 = VIRTIO_BLK_T_DISCARD;
const WRITE_ZEROES: u32 = VIRTIO_BLK_T_WRITE_ZEROES;

fn limits() -> Limits {
    Limits {
        capacity: 1 << 20,
        block_size: 512,
        read_only: false,
        discard: true,
        write_zeroes: true,
        bounds: Bounds::default(),
    }
}

/// The operation, or the status that the guest gets.
fn parse_by(guest: &Guest, chain: &Chain, limits: &Limits) -> Result<Operation, u8> {
    match Request::parse(&guest.memory, chain, limits) {
        Ok(request) => Ok(request.operation),
        Err(Refusal::Status(reply, status)) => {
            assert_eq!(reply.finish(&guest.memory, status, 0), (chain.head, 1));
            Err(guest.answer(chain))
        }
        Err(Refusal::NoStatus) => panic!("there is a status byte"),
    }
}

fn parse(guest: &Guest, chain: &Chain) -> Result<Operation, u8> {
    parse_by(guest, chain, &limits())
}

const IOERR: Result<Operation, u8> = Err(1);
const UNSUPP: Result<Operation, u8> = Err(2);

fn bytes(offset: u64, length: u64) -> Range {
    Range { offset, length }
}

#[test]
fn reads_and_writes_are_understood() {
    let mut guest = Guest::new();
    let data = [guest.allocate(512, 1), guest.allocate(1024, 1)];
    let read = guest.chain(IN, 3, &[], &data);
    assert_eq!(parse(&guest, &read), Ok(Operation::Read(bytes(1536, 1536))));
    let write = guest.chain(OUT, 3, &data, &[]);
    assert_eq!(
        parse(&guest, &write),
        Ok(Operation::Write(bytes(1536, 1536)))
    );
}

#[test]
fn a_header_in_single_bytes_and_a_status_behind_data_are_understood() {
    let mut guest = Guest::new();
    let mut readable: Vec<_> = header(OUT, 5)
        .iter()
        .map(|byte| guest.put(&[*byte]))
        .collect();
    // The data begins in the middle of a descriptor.
    let last = readable.pop().unwrap();
    let data = guest.allocate(512, 1);
    assert_eq!(last.address.0 + 1, data.address.0);
    readable.push(Buffer {
        length: 513,
        ..last
    });
    readable.insert(
        3,
        Buffer {
            address: GuestAddress(u64::MAX),
            length: 0,
        },
    );
    let status = guest.status();
    let chain = Chain {
        head: 1,
        readable,
        writable: vec![
            status,
            Buffer {
                address: GuestAddress(0),
                length: 0,
            },
        ],
    };
    let request = Request::parse(&guest.memory, &chain, &limits()).unwrap();
    assert_eq!(request.operation, Operation::Write(bytes(2560, 512)));
    assert_eq!(request.data().collect::<Vec<_>>(), [data]);
    assert_eq!(request.reply.finish(&guest.memory, Status::Ok, 0), (1, 1));
    assert_eq!(guest.get(status), [0]);
}

#[test]
fn a_read_whose_status_shares_its_last_descriptor_is_understood() {
    let mut guest = Guest::new();
    let mut chain = guest.chain(IN, 0, &[], &[]);
    let both = guest.allocate(513, 1);
    chain.writable = vec![both];
    let request = Request::parse(&guest.memory, &chain, &limits()).unwrap();
    let data = Buffer {
        length: 512,
        ..both
    };
    assert_eq!(request.data().collect::<Vec<_>>(), [data]);
    assert_eq!(
        request
            .reply
            .finish(&guest.memory, Status::Unsupported, 512),
        (7, 513)
    );
    assert_eq!(guest.get(both)[512], 2);
}

#[test]
fn ranges_end_with_the_disk() {
    let mut guest = Guest::new();
    let data = guest.allocate(1024, 1);
    let sectors = limits().capacity / 512;
    for (sector, fits) in [
        (sectors - 2, true),
        (sectors - 1, false),
        (sectors, false),
        (u64::MAX, false),
        (u64::MAX / 512, false),
        (u64::MAX / 512 + 1, false),
        (1 << 63, false),
    ] {
        let read = guest.chain(IN, sector, &[], &[data]);
        assert_eq!(parse(&guest, &read).is_ok(), fits, "read at {sector:#x}");
        let write = guest.chain(OUT, sector, &[data], &[]);
        assert_eq!(parse(&guest, &write).is_ok(), fits, "write at {sector:#x}");
    }
}

#[test]
fn lengths_are_whole_sectors_or_blocks() {
    let mut guest = Guest::new();
    for length in [1, 511, 513] {
        let data = guest.allocate(length, 1);
        let write = guest.chain(OUT, 0, &[data], &[]);
        assert_eq!(parse(&guest, &write), IOERR, "{length}");
    }
    let empty = guest.chain(OUT, 0, &[], &[]);
    assert_eq!(parse(&guest, &empty), Ok(Operation::Write(bytes(0, 0))));
    let blocks = Limits {
        block_size: 4096,
        ..limits()
    };
    let data = guest.allocate(4096, 1);
    let sector = Buffer {
        length: 512,
        ..data
    };
    for (sector, data, fits) in [(8, data, true), (1, data, false), (8, sector, false)] {
        let chain = guest.chain(IN, sector, &[], &[data]);
        assert_eq!(parse_by(&guest, &chain, &blocks).is_ok(), fits);
    }
}

#[test]
fn data_in_the_wrong_direction_is_refused() {
    let mut guest = Guest::new();
    let data = guest.allocate(512, 1);
    for kind in [IN, OUT, DISCARD, WRITE_ZEROES, VIRTIO_BLK_T_GET_ID] {
        let chain = guest.chain(kind, 0, &[data], &[data]);
        assert_eq!(parse(&guest, &chain), IOERR, "type {kind}");
    }
}

#[test]
fn a_header_that_is_short_or_not_in_memory_is_refused() {
    let mut guest = Guest::new();
    let mut chain = guest.chain(IN, 0, &[], &[]);
    chain.readable[0].length = 15;
    assert_eq!(parse(&guest, &chain), IOERR);
    chain.readable.clear();
    assert_eq!(parse(&guest, &chain), IOERR);
    chain.readable = vec![Buffer {
        address: GuestAddress(END - 8),
        length: 16,
    }];
    assert_eq!(parse(&guest, &chain), IOERR);
    chain.readable = vec![Buffer {
        address: GuestAddress(u64::MAX - 8),
        length: 16,
    }];
    assert_eq!(parse(&guest, &chain), IOERR);
}

#[test]
fn a_chain_without_a_place_for_its_status_is_not_executed() {
    let mut guest = Guest::new();
    let good = guest.chain(OUT, 0, &[], &[]);
    let at = |address, length| Buffer {
        address: GuestAddress(address),
        length,
    };
    for writable in [
        vec![],
        vec![at(START, 0)],
        vec![at(END, 1)],
        vec![at(END - 1, 2)],
        vec![at(u64::MAX, 1)],
        vec![at(u64::MAX, u32::MAX)],
        vec![at(START - 1, 1)],
    ] {
        let chain = Chain {
            writable,
            ..good.clone()
        };
        let result = Request::parse(&guest.memory, &chain, &limits());
        assert!(matches!(result, Err(Refusal::NoStatus)), "{chain:?}");
    }
}

#[test]
fn unknown_types_are_unsupported() {
    let mut guest = Guest::new();
    for kind in [2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 0x8000_0000, u32::MAX] {
        let chain = guest.chain(kind, 0, &[], &[]);
        assert_eq!(parse(&guest, &chain), UNSUPP, "type {kind}");
    }
}

#[test]
fn a_read_only_disk_is_not_changed() {
    let mut guest = Guest::new();
    let segment = guest.put(&segment(0, 8, 0));
    let data = guest.allocate(512, 1);
    let limits = Limits {
        read_only: true,
        ..limits()
    };
    for (kind, data) in [(OUT, data), (DISCARD, segment), (WRITE_ZEROES, segment)] {
        let chain = guest.chain(kind, 0, &[data], &[]);
        assert_eq!(parse_by(&guest, &chain, &limits), IOERR);
    }
    let read = guest.chain(IN, 0, &[], &[data]);
    assert!(parse_by(&guest, &read, &limits).is_ok());
}

#[test]
fn segments_are_understood() {
    let mut guest = Guest::new();
    let segments = [segment(0, 8, 1), segment(16, 4, 0)].concat();
    let (a, b) = segments.split_at(5);
    let data = [guest.put(a), guest.put(b)];
    let chain = guest.chain(WRITE_ZEROES, 0, &data, &[]);
    let expected = vec![
        Segment {
            range: bytes(0, 4096),
            unmap: true,
        },
        Segment {
            range: bytes(8192, 2048),
            unmap: false,
        },
    ];
    assert_eq!(parse(&guest, &chain), Ok(Operation::WriteZeroes(expected)));
    let data = guest.put(&segment(2, 1, 0));
    let chain = guest.chain(DISCARD, 0, &[data], &[]);
    let expected = vec![Segment {
        range: bytes(1024, 512),
        unmap: true,
    }];
    assert_eq!(parse(&guest, &chain), Ok(Operation::Discard(expected)));
}

#[test]
fn segments_beyond_limits_are_refused() {
    let mut guest = Guest::new();
    let sectors = limits().capacity / 512;
    let many = segment(0, 1, 0).repeat(MAX_SEGMENTS as usize + 1);
    let cases: [(&[u8], _); 9] = [
        (&[], IOERR),
        (&[0; 15], IOERR),
        (&[0; 17], IOERR),
        (&many, IOERR),
        (&segment(sectors - 1, 2, 0), IOERR),
        (&segment(u64::MAX, 1, 0), IOERR),
        (&segment(0, u32::MAX, 0), IOERR),
        (&segment(0, 1, 2), UNSUPP),
        (&segment(0, 1, u32::MAX), UNSUPP),
    ];
    for kind in [DISCARD, WRITE_ZEROES] {
        for (data, expected) in &cases {
            let data = guest.put(data);
            let chain = guest.chain(kind, 0, &[data], &[]);
            assert_eq!(parse(&guest, &chain), *expected, "type {kind}");
        }
    }
    let unmap = guest.put(&segment(0, 1, 1));
    let chain = guest.chain(DISCARD, 0, &[unmap], &[]);
    assert_eq!(parse(&guest, &chain), UNSUPP);
}

#[test]
fn narrower_bounds_are_kept_to() {
    let mut guest = Guest::new();
    let limits = Limits {
        capacity: 1 << 30,
        bounds: Bounds {
            segments: 1,
            discard: 100,
            write_zeroes: 200,
        },
        ..limits()
    };
    for (kind, most) in [(DISCARD, 100), (WRITE_ZEROES, 200)] {
        for (data, is_accepted) in [
            (segment(0, most, 0).to_vec(), true),
            (segment(0, most + 1, 0).to_vec(), false),
            (segment(0, 1, 0).repeat(2), false),
        ] {
            let data = guest.put(&data);
            let chain = guest.chain(kind, 0, &[data], &[]);
            let found = parse_by(&guest, &chain, &limits);
            assert_eq!(found.is_ok(), is_accepted, "type {kind}");
            assert!(is_accepted || found == IOERR, "type {kind}");
        }
    }
}

#[test]
fn what_was_not_offered_is_unsupported() {
    let mut guest = Guest::new();
    let data = guest.put(&segment(0, 1, 0));
    for (discard, write_zeroes) in [(false, true), (true, false)] {
        let limits = Limits {
            discard,
            write_zeroes,
            ..limits()
        };
        for (kind, offered) in [(DISCARD, discard), (WRITE_ZEROES, write_zeroes)] {
            let chain = guest.chain(kind, 0, &[data], &[]);
            let found = parse_by(&guest, &chain, &limits);
            assert_eq!(found.is_ok(), offered, "type {kind}");
            assert!(offered || found == UNSUPP, "type {kind}");
        }
    }
}

#[test]
fn as_many_and_as_long_segments_as_are_told_are_accepted() {
    let mut guest = Guest::new();
    let limits = Limits {
        capacity: 1 << 40,
        ..limits()
    };
    for (kind, most) in [
        (DISCARD, MAX_DISCARD_SECTORS),
        (WRITE_ZEROES, MAX_WRITE_ZEROES_SECTORS),
    ] {
        let all = segment(0, most, 0).repeat(MAX_SEGMENTS as usize);
        let data = guest.put(&all);
        let chain = guest.chain(kind, 0, &[data], &[]);
        let (Ok(Operation::Discard(found)) | Ok(Operation::WriteZeroes(found))) =
            parse_by(&guest, &chain, &limits)
        else {
            panic!("type {kind} is refused");
        };
        assert_eq!(found.len(), MAX_SEGMENTS as usize);
        let data = guest.put(&segment(0, most + 1, 0));
        let chain = guest.chain(kind, 0, &[data], &[]);
        assert_eq!(parse_by(&guest, &chain, &limits), IOERR, "type {kind}");
    }
}

#[test]
fn an_identity_is_as_long_as_asked_for_and_20_at_most() {
    let mut guest = Guest::new();
    for (asked, given) in [(0, 0), (7, 7), (20, 20), (512, 20)] {
        let data = guest.allocate(asked, 1);
        let chain = guest.chain(VIRTIO_BLK_T_GET_ID, 0, &[], &[data]);
        assert_eq!(parse(&guest, &chain), Ok(Operation::Identify(given)));
    }
}

#[test]
fn lengths_that_no_used_length_can_tell_are_refused() {
    let mut guest = Guest::new();
    let huge = Buffer {
        address: GuestAddress(START),
        length: u32::MAX,
    };
    let limits = Limits {
        capacity: 1 << 60,
        ..limits()
    };
    let chain = guest.chain(IN, 0, &[], &[huge, huge]);
    assert_eq!(parse_by(&guest, &chain, &limits), IOERR);
    // One byte more with the status.
    let chain = guest.chain(VIRTIO_BLK_T_GET_ID, 0, &[], &[huge]);
    assert_eq!(parse_by(&guest, &chain, &limits), IOERR);
    let less = Buffer {
        length: u32::MAX - 1,
        ..huge
    };
    let chain = guest.chain(VIRTIO_BLK_T_GET_ID, 0, &[], &[less]);
    let identity = Operation::Identify(ID_BYTES);
    assert_eq!(parse_by(&guest, &chain, &limits), Ok(identity));
}

/// Buffers of which some are good, some nearly.
pub fn buffers() -> impl Strategy<Value = Vec<Buffer>> {
    let address = prop_oneof![
        8 => START..END,
        1 => END - 600..END + 8,
        1 => START - 8..START + 8,
        1 => any::<u64>(),
    ];
    let length = prop_oneof![
        4 => Just(512u32),
        2 => 0..2048u32,
        1 => Just(1),
        1 => Just(16),
        1 => any::<u32>(),
    ];
    let buffer = (address, length).prop_map(|(address, length)| Buffer {
        address: GuestAddress(address),
        length,
    });
    prop::collection::vec(buffer, 0..6)
}

proptest! {
    #[test]
    fn whatever_a_guest_writes_is_a_request_within_limits_or_a_refusal(
        readable in buffers(),
        writable in buffers(),
        kind in prop_oneof![0..16u32, any::<u32>()],
        sector in prop_oneof![0..4096u64, any::<u64>()],
        segments in prop::collection::vec(any::<u8>(), 0..64),
        good_header in any::<bool>(),
        block_size in prop_oneof![Just(512u32), Just(4096)],
        read_only in any::<bool>(),
    ) {
        let mut guest = Guest::new();
        let mut readable = readable;
        if good_header {
            let header = guest.put(&header(kind, sector));
            let segments = guest.put(&segments);
            readable.splice(0..0, [header, segments]);
        }
        let limits = Limits { block_size, read_only, ..limits() };
        let chain = Chain { head: 3, readable, writable };
        let Ok(request) = Request::parse(&guest.memory, &chain, &limits) else {
            return Ok(());
        };
        let ranges: Vec<Range> = match &request.operation {
            Operation::Read(range) | Operation::Write(range) => vec![*range],
            Operation::Discard(segments) | Operation::WriteZeroes(segments) => {
                segments.iter().map(|segment| segment.range).collect()
            }
            Operation::Flush | Operation::Identify(_) => vec![],
        };
        for range in ranges {
            prop_assert!(range.offset + range.length <= limits.capacity);
            prop_assert!(range.offset.is_multiple_of(u64::from(block_size)));
            prop_assert!(range.length.is_multiple_of(u64::from(block_size)));
        }
        let changes = !matches!(
            request.operation,
            Operation::Read(_) | Operation::Flush | Operation::Identify(_)
        );
        prop_assert!(!(changes && read_only));
        let length: u64 = request.data().map(|buffer| u64::from(buffer.length)).sum();
        match &request.operation {
            Operation::Read(range) | Operation::Write(range) => {
                prop_assert_eq!(length, range.length);
            }
            Operation::Identify(asked) => prop_assert_eq!(length, *asked as u64),
            _ => prop_assert_eq!(length, 0),
        }
    }
}

#[test]
fn a_request_that_is_refused_is_an_error_and_says_what_it_was() {
    let mut guest = Guest::new();
    let data = [guest.allocate(512, 1)];
    let write = guest.chain(OUT, 77, &data, &[]);
    let (used, what) = refuse(&guest.memory, &write);
    assert_eq!((used, guest.answer(&write)), (1, 1));
    assert_eq!(what, "a write of 512 bytes at sector 77");
    for (kind, expected) in [
        (IN, "a read of 512 bytes at sector 77"),
        (VIRTIO_BLK_T_FLUSH, "a flush"),
        (VIRTIO_BLK_T_GET_ID, "a question for the serial number"),
        (DISCARD, "a discard"),
        (WRITE_ZEROES, "a write of zeroes"),
        (99, "a request of type 99 at sector 77"),
    ] {
        let chain = guest.chain(kind, 77, &[], &data);
        assert_eq!(refuse(&guest.memory, &chain), (1, expected.into()));
        assert_eq!(guest.answer(&chain), 1, "{expected}");
    }
    let nothing = Chain::default();
    let (used, what) = refuse(&guest.memory, &nothing);
    assert_eq!((used, what.as_str()), (0, "a request without a header"));
}
