//! The cases of `scenario=rings`: what each puts into the ring, and what may come of it.

mod build;
mod request;
mod ring;

use super::rings::Bench;
use crate::blk::feature::{DISCARD, FLUSH, WRITE_ZEROES};
use crate::blk::kind;
use crate::virtio::feature::INDIRECT_DESC;
use crate::virtio::ring::flag;
use crate::virtio::transport::common;
use alloc::string::String;
use build::{
    buffer, chain, data, directed, free_sector, header, header_at, short_header, status, three,
    transfer,
};
pub use request::nothing_leaks;
use request::{header_split, many_pieces, segment};
use ring::*;

/// What a device may do with a case.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// It is unusual, but right: success.
    Ok,
    /// The chain is sound and the request is not: an error status (or a device that needs a reset).
    Error,
    /// The ring itself is unsound: nothing in particular.
    Any,
}

/// One case.
pub struct Case {
    /// Its name in the output.
    pub name: &'static str,
    /// Features without which it makes no sense.
    pub needs: u64,
    /// What may come of it.
    pub expect: Expect,
    /// Fills the ring and rings the doorbell.
    pub make: fn(&mut Bench) -> Result<(), String>,
}

const fn case(
    name: &'static str,
    expect: Expect,
    make: fn(&mut Bench) -> Result<(), String>,
) -> Case {
    Case {
        name,
        needs: 0,
        expect,
        make,
    }
}

const fn with(needs: u64, case: Case) -> Case {
    Case { needs, ..case }
}

use Expect::{Any, Error, Ok as Good};

/// All of them.
pub const CASES: &[Case] = &[
    // Rings (BAD-INPUTS C)
    case("loop-of-one", Any, |b| looped(b, 1, 16)),
    case("loop-of-two", Any, |b| looped(b, 2, 16)),
    case("loop-of-all", Any, |b| looped(b, b.ring.size, 16)),
    case("loop-of-nothing", Any, |b| looped(b, 2, 0)),
    case("next-beyond-table", Any, |b| next_is(b, b.ring.size)),
    case("next-far-beyond", Any, |b| next_is(b, 0xffff)),
    case("head-beyond-table", Any, |b| head_is(b, b.ring.size)),
    case("head-far-beyond", Any, |b| head_is(b, 0xffff)),
    case("lengths-past-4-gib", Any, lengths_past_4_gib),
    case("index-jumps", Any, |b| index_jumps(b, b.ring.size)),
    case("index-jumps-far", Any, |b| index_jumps(b, 0x8000)),
    case("index-goes-back", Any, index_goes_back),
    case("same-head-twice", Any, same_head_twice),
    case("address-overflows", Any, |b| {
        read_to(b, u64::MAX - 100, 4096)
    }),
    case("address-last-byte", Any, |b| read_to(b, u64::MAX, 512)),
    case("data-in-hole", Any, |b| read_to(b, b.hole, 4096)),
    case("data-over-edge", Any, |b| read_to(b, b.edge - 512, 1024)),
    case("nothing-at-bad-address", Any, nothing_at_bad_address),
    case("header-in-hole", Any, |b| {
        three(b, header_at(b.hole), data(b, 512, true), status(b))
    }),
    case("status-in-hole", Any, |b| {
        three(b, header(b), data(b, 512, true), buffer(b.hole, 1, true))
    }),
    case("all-of-memory", Any, |b| read_to(b, 0, u32::MAX)),
    case("changing-request", Any, changing_request),
    case("endless", Any, endless),
    case("ring-moved", Any, |b| {
        ring_changed(b, common::QUEUE_DESCRIPTORS, b.hole as u32)
    }),
    case("ring-shrunk", Any, |b| {
        ring_changed(b, common::QUEUE_SIZE, 2)
    }),
    case("ring-in-hole", Any, ring_in_hole),
    with(
        INDIRECT_DESC,
        case("indirect", Good, |b| indirect(b, 48, 0, flag::INDIRECT)),
    ),
    with(
        INDIRECT_DESC,
        case("indirect-empty", Any, |b| indirect(b, 0, 0, flag::INDIRECT)),
    ),
    with(
        INDIRECT_DESC,
        case("indirect-not-16", Any, |b| {
            indirect(b, 47, 0, flag::INDIRECT)
        }),
    ),
    with(
        INDIRECT_DESC,
        case("indirect-too-long", Any, |b| {
            indirect(b, !15, 0, flag::INDIRECT)
        }),
    ),
    with(
        INDIRECT_DESC,
        case("indirect-nested", Any, |b| {
            indirect(b, 48, flag::INDIRECT, flag::INDIRECT)
        }),
    ),
    with(
        INDIRECT_DESC,
        case("indirect-and-next", Any, |b| {
            indirect(b, 48, 0, flag::INDIRECT | flag::NEXT)
        }),
    ),
    with(INDIRECT_DESC, case("indirect-loop", Any, indirect_loop)),
    with(
        INDIRECT_DESC,
        case("indirect-in-hole", Any, |b| indirect_at(b, b.hole)),
    ),
    with(
        INDIRECT_DESC,
        case("indirect-over-edge", Any, |b| indirect_at(b, b.edge - 24)),
    ),
    case("indirect-not-agreed", Any, |b| {
        indirect(b, 48, 0, flag::INDIRECT)
    }),
    // Requests (BAD-INPUTS D)
    case("read-at-end", Good, |b| {
        transfer(b, kind::READ, b.capacity - 1, 512)
    }),
    case("write-at-end", Good, |b| {
        transfer(b, kind::WRITE, b.capacity - 1, 512)
    }),
    case("read-over-end", Error, |b| {
        transfer(b, kind::READ, b.capacity - 1, 1024)
    }),
    case("write-over-end", Error, |b| {
        transfer(b, kind::WRITE, b.capacity - 1, 1024)
    }),
    case("read-past-end", Error, |b| {
        transfer(b, kind::READ, b.capacity, 512)
    }),
    case("write-past-end", Error, |b| {
        transfer(b, kind::WRITE, b.capacity, 512)
    }),
    case("write-sector-overflows", Error, |b| {
        transfer(b, kind::WRITE, u64::MAX, 512)
    }),
    case("write-bytes-overflow", Error, |b| {
        transfer(b, kind::WRITE, 1 << 55, 512)
    }),
    case("write-not-512", Error, |b| {
        transfer(b, kind::WRITE, free_sector(b), 511)
    }),
    case("read-not-512", Error, |b| {
        transfer(b, kind::READ, free_sector(b), 513)
    }),
    case("type-unknown", Error, |b| transfer(b, 0xdead, 0, 512)),
    case("type-scsi", Error, |b| transfer(b, 2, 0, 512)),
    case("read-into-readable", Any, |b| {
        directed(b, kind::READ, false)
    }),
    case("write-from-writable", Any, |b| {
        directed(b, kind::WRITE, true)
    }),
    case("head-alone", Any, |b| chain(b, kind::READ, &[header(b)])),
    case("no-status", Any, |b| {
        chain(b, kind::WRITE, &[header(b), data(b, 512, false)])
    }),
    case("status-readable", Any, |b| {
        three(
            b,
            header(b),
            data(b, 512, false),
            buffer(b.status().address(), 1, false),
        )
    }),
    case("status-empty", Any, |b| {
        three(
            b,
            header(b),
            data(b, 512, true),
            buffer(b.status().address(), 0, true),
        )
    }),
    case("header-short", Any, |b| {
        three(b, short_header(b), data(b, 512, true), status(b))
    }),
    case("header-writable", Any, |b| {
        three(
            b,
            buffer(b.header().address(), 16, true),
            data(b, 512, true),
            status(b),
        )
    }),
    case("header-split", Good, header_split),
    case("data-in-many-pieces", Good, many_pieces),
    case("get-id-short", Any, |b| transfer(b, kind::GET_ID, 0, 10)),
    case("get-id-long", Any, |b| transfer(b, kind::GET_ID, 0, 100)),
    case("read-without-data", Any, |b| {
        chain(b, kind::READ, &[header(b), status(b)])
    }),
    with(
        FLUSH,
        case("flush", Good, |b| {
            chain(b, kind::FLUSH, &[header(b), status(b)])
        }),
    ),
    with(
        FLUSH,
        case("flush-with-data", Any, |b| transfer(b, kind::FLUSH, 7, 512)),
    ),
    with(
        DISCARD,
        case("discard", Good, |b| {
            segment(b, kind::DISCARD, free_sector(b), 8, 0)
        }),
    ),
    with(
        DISCARD,
        case("discard-over-end", Error, |b| {
            segment(b, kind::DISCARD, b.capacity - 1, 2, 0)
        }),
    ),
    with(
        DISCARD,
        case("discard-overflows", Error, |b| {
            segment(b, kind::DISCARD, u64::MAX, u32::MAX, 0)
        }),
    ),
    with(
        DISCARD,
        case("discard-unknown-flag", Error, |b| {
            segment(b, kind::DISCARD, free_sector(b), 8, 0x80)
        }),
    ),
    with(
        DISCARD,
        case("discard-cut", Error, |b| transfer(b, kind::DISCARD, 0, 15)),
    ),
    with(
        DISCARD,
        case("discard-empty", Any, |b| {
            segment(b, kind::DISCARD, free_sector(b), 0, 0)
        }),
    ),
    with(
        DISCARD,
        case("discard-no-segment", Any, |b| {
            chain(b, kind::DISCARD, &[header(b), status(b)])
        }),
    ),
    with(
        DISCARD,
        case("discard-many-segments", Error, |b| {
            transfer(b, kind::DISCARD, 0, 4096)
        }),
    ),
    with(
        WRITE_ZEROES,
        case("zeroes", Good, |b| {
            segment(b, kind::WRITE_ZEROES, free_sector(b), 8, 0)
        }),
    ),
    with(
        WRITE_ZEROES,
        case("zeroes-over-end", Error, |b| {
            segment(b, kind::WRITE_ZEROES, b.capacity - 1, 2, 0)
        }),
    ),
    with(
        WRITE_ZEROES,
        case("zeroes-overflow", Error, |b| {
            segment(b, kind::WRITE_ZEROES, u64::MAX, u32::MAX, 1)
        }),
    ),
    with(
        WRITE_ZEROES,
        case("zeroes-many-segments", Error, |b| {
            transfer(b, kind::WRITE_ZEROES, 0, 4096)
        }),
    ),
];
