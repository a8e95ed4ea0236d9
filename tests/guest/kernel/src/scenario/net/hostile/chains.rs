//! What is sent and is no frame, or whose header lies.

use super::{Bench, SCRATCH};
use crate::net::{HEADER, LONGEST};
use crate::virtio::ring::Buffer;
use alloc::string::String;
use alloc::vec::Vec;
use guest_logic::datagram::{self, ECHO_PORT, FIRST_PORT, Header};
use guest_logic::packet::{self, End, Offload, UDP_HEADERS};
use guest_logic::segment::Segment;

/// An address that is not memory.
const NOWHERE: u64 = 1 << 40;
const DATA: u32 = 3000;

fn readable(address: u64, length: u64) -> Buffer {
    Buffer {
        address,
        length: length as u32,
        writable: false,
    }
}

fn writable(address: u64, length: u64) -> Buffer {
    Buffer {
        writable: true,
        ..readable(address, length)
    }
}

/// Chains that hold no frame, or not in memory.
fn shapes(at: u64) -> Vec<(&'static str, Vec<Buffer>)> {
    let part = |offset: u64, length: u64| readable(at + offset, length);
    let longest = (HEADER + LONGEST) as u64;
    alloc::vec![
        ("nothing", alloc::vec![part(0, 0)]),
        ("one-byte", alloc::vec![part(0, 1)]),
        ("header-but-one-byte", alloc::vec![part(0, 11)]),
        ("header-alone", alloc::vec![part(0, 12)]),
        (
            "header-alone-in-pieces",
            (0..12).map(|at| part(at, 1)).collect()
        ),
        ("no-ethernet-header", alloc::vec![part(0, 12), part(12, 13)]),
        ("nothing-to-read", alloc::vec![writable(at, 100)]),
        (
            "header-and-something-to-write",
            alloc::vec![part(0, 12), writable(at + 12, 100)]
        ),
        ("longer-than-64-kib", alloc::vec![part(0, longest + 5)]),
        (
            "much-longer",
            (0..15).map(|piece| part(piece << 16, 1 << 16)).collect()
        ),
        (
            "as-long-as-can-be",
            alloc::vec![readable(at, u64::from(u32::MAX)); 8]
        ),
        ("nowhere", alloc::vec![readable(NOWHERE, 100)]),
        (
            "header-nowhere",
            alloc::vec![readable(NOWHERE, 12), part(12, 100)]
        ),
        (
            "frame-nowhere",
            alloc::vec![part(0, 12), readable(NOWHERE, 100)]
        ),
        (
            "address-overflows",
            alloc::vec![part(0, 12), readable(u64::MAX - 10, 100)]
        ),
    ]
}

/// Headers that do not fit a frame with `DATA` bytes of data, to be cut.
fn lies(good: Offload, frame: usize) -> Vec<(&'static str, Offload)> {
    let start = |csum_start: u16| Offload { csum_start, ..good };
    let size = |gso_size: u16| Offload { gso_size, ..good };
    let kind = |gso_type: u8| Offload { gso_type, ..good };
    alloc::vec![
        ("csum-start-beyond-the-frame", start(frame as u16 + 1)),
        ("csum-start-at-the-end", start(frame as u16 - 1)),
        ("csum-start-far-beyond", start(0xffff)),
        (
            "csum-offset-beyond",
            Offload {
                csum_offset: 0xffff,
                ..good
            }
        ),
        ("gso-size-0", size(0)),
        ("gso-size-1", size(1)),
        ("gso-size-huge", size(0xffff)),
        ("gso-without-checksum", Offload { flags: 0, ..good }),
        ("gso-of-no-kind", kind(0x7f)),
        ("gso-of-ecn-alone", kind(Offload::ECN)),
        ("gso-of-another-protocol", kind(3)),
        ("gso-of-another-version", kind(Offload::TCPV6)),
        (
            "header-length-huge",
            Offload {
                hdr_len: 0xffff,
                ..good
            }
        ),
        ("header-length-0", Offload { hdr_len: 0, ..good }),
        (
            "checksum-of-everything",
            Offload {
                csum_start: 0,
                csum_offset: 0,
                gso_type: 0,
                ..good
            }
        ),
    ]
}

/// Runs the cases; how many.
pub fn run(bench: &mut Bench) -> Result<usize, String> {
    bench.scratch.fill(0);
    let shapes = shapes(bench.scratch.address());
    for (name, chain) in &shapes {
        let outcome = bench.send(chain);
        bench.judge(name, outcome)?;
    }
    let (own, peer) = (bench.run.ports[0].out.own, bench.peer);
    let segment = Segment {
        total: DATA,
        gso_size: 1000,
        ..Segment::default()
    };
    let frame = segment.headers() + DATA as usize;
    let mut bytes = alloc::vec![0; frame];
    let good = segment.write(&mut bytes, &own, &peer);
    let lies = lies(good, frame);
    for (name, offload) in &lies {
        put(bench, offload, &bytes);
        let whole = readable(bench.scratch.address(), (HEADER + frame) as u64);
        let outcome = bench.send(&[whole]);
        bench.judge(name, outcome)?;
    }
    let pieces = [1, 5, 11, 13];
    for piece in pieces {
        let outcome = in_pieces(bench, piece);
        bench.judge("sound-in-pieces", outcome)?;
    }
    Ok(shapes.len() + lies.len() + pieces.len())
}

fn put(bench: &Bench, offload: &Offload, frame: &[u8]) {
    let header = offload.to_bytes();
    let header = header.iter().chain(&[0; HEADER - Offload::LENGTH]);
    for (at, byte) in header.chain(frame).enumerate() {
        bench.scratch.write(at as u64, *byte);
    }
}

/// A sound datagram, header and all in pieces of so many bytes: it must arrive.
fn in_pieces(bench: &mut Bench, piece: u64) -> Result<(), String> {
    let own = End {
        port: FIRST_PORT,
        ..bench.run.ports[0].out.own
    };
    let to = End {
        port: ECHO_PORT,
        ..bench.peer
    };
    let number = SCRATCH + piece;
    let header = Header {
        number,
        stream: 0,
        acknowledge: 0,
    };
    let mut frame = alloc::vec![0; UDP_HEADERS + 40];
    datagram::write(&mut frame[UDP_HEADERS..], &header);
    let offload = packet::udp(&mut frame, &own, &to, false);
    put(bench, &offload, &frame);
    let (begin, end) = (bench.scratch.address(), (HEADER + frame.len()) as u64);
    let starts = (0..end).step_by(piece as usize);
    let chain: Vec<_> = starts
        .map(|at| readable(begin + at, piece.min(end - at)))
        .collect();
    for _ in 0..super::TRIES {
        bench.send(&chain)?;
        if bench.hear(number, super::AGAIN)? {
            return Ok(());
        }
    }
    Err("reason=no-echo".into())
}
