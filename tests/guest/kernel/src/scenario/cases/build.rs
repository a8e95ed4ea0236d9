//! What cases are made of: buffers, and chains of them on queue 0.

use crate::blk::kind;
use crate::scenario::rings::{Bench, RESERVE};
use crate::virtio::ring::{Buffer, flag};
use alloc::string::String;

pub fn buffer(address: u64, length: u32, writable: bool) -> Buffer {
    Buffer {
        address,
        length,
        writable,
    }
}

pub fn header_at(address: u64) -> Buffer {
    buffer(address, 16, false)
}

pub fn header(bench: &Bench) -> Buffer {
    header_at(bench.header().address())
}

pub fn short_header(bench: &Bench) -> Buffer {
    buffer(bench.header().address(), 8, false)
}

pub fn data(bench: &Bench, length: u32, writable: bool) -> Buffer {
    buffer(bench.data().address(), length, writable)
}

pub fn status(bench: &Bench) -> Buffer {
    buffer(bench.status().address(), 1, true)
}

pub fn free_sector(bench: &Bench) -> u64 {
    bench.capacity - RESERVE
}

/// A chain of these buffers from descriptor 0 on, offered and rung for.
pub fn chain(bench: &mut Bench, kind: u32, buffers: &[Buffer]) -> Result<(), String> {
    if bench.header().read::<u64>(8) == 0 && matches!(kind, kind::READ | kind::WRITE) {
        bench.ask(kind, free_sector(bench));
    } else {
        bench.header().write(0, kind);
    }
    link(bench, buffers);
    bench.offer(0);
    bench.ring_with(0);
    Ok(())
}

pub fn link(bench: &Bench, buffers: &[Buffer]) {
    for (at, buffer) in buffers.iter().enumerate() {
        let next = if at + 1 < buffers.len() {
            at as u16 + 1
        } else {
            0
        };
        bench.describe(
            at as u16,
            *buffer,
            if next != 0 { flag::NEXT } else { 0 },
            next,
        );
    }
}

pub fn three(
    bench: &mut Bench,
    first: Buffer,
    second: Buffer,
    third: Buffer,
) -> Result<(), String> {
    let kind = if second.writable {
        kind::READ
    } else {
        kind::WRITE
    };
    chain(bench, kind, &[first, second, third])
}

pub fn transfer(bench: &mut Bench, kind: u32, sector: u64, length: u32) -> Result<(), String> {
    let reads = matches!(kind, kind::READ | kind::GET_ID);
    bench.ask(kind, sector);
    link(
        bench,
        &[header(bench), data(bench, length, reads), status(bench)],
    );
    bench.offer(0);
    bench.ring_with(0);
    Ok(())
}

pub fn directed(bench: &mut Bench, kind: u32, writable: bool) -> Result<(), String> {
    chain(
        bench,
        kind,
        &[header(bench), data(bench, 512, writable), status(bench)],
    )
}
