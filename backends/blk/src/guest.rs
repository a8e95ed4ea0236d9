//! A guest for tests: memory, and requests laid out in it.

use std::sync::Arc;

use outboard_runtime::chain::{Buffer, Chain};
use outboard_runtime::device::Memory;
use vm_memory::{Bytes, GuestAddress};

/// Where memory begins; it has two regions that touch, and a hole behind them.
pub const START: u64 = 0x10_0000;
/// Bytes in all.
pub const SIZE: u64 = 0x20_0000;
/// First address of the hole.
pub const END: u64 = START + SIZE;

/// Guest memory with a next free address.
pub struct Guest {
    pub memory: Arc<Memory>,
    next: u64,
}

impl Guest {
    pub fn new() -> Self {
        let half = SIZE / 2;
        let regions = [
            (GuestAddress(START), half as usize),
            (GuestAddress(START + half), half as usize),
        ];
        Self {
            memory: Arc::new(Memory::from_ranges(&regions).unwrap()),
            next: START,
        }
    }

    /// Everything allocated so far is free again.
    pub fn recycle(&mut self) {
        self.next = START;
    }

    /// The next `length` bytes, at a multiple of `align`.
    pub fn allocate(&mut self, length: u32, align: u64) -> Buffer {
        let address = self.next.next_multiple_of(align);
        self.next = address + u64::from(length);
        assert!(self.next <= END, "the guest is out of memory");
        Buffer {
            address: GuestAddress(address),
            length,
        }
    }

    /// A buffer with this content.
    pub fn put(&mut self, bytes: &[u8]) -> Buffer {
        let buffer = self.allocate(bytes.len() as u32, 1);
        self.memory.write_slice(bytes, buffer.address).unwrap();
        buffer
    }

    /// What is in a buffer.
    pub fn get(&self, buffer: Buffer) -> Vec<u8> {
        let mut bytes = vec![0; buffer.length as usize];
        self.memory.read_slice(&mut bytes, buffer.address).unwrap();
        bytes
    }

    /// A status byte that nothing has written.
    pub fn status(&mut self) -> Buffer {
        self.put(&[0xee])
    }

    /// A request of `kind` at `sector` with data in these buffers.
    pub fn chain(
        &mut self,
        kind: u32,
        sector: u64,
        readable: &[Buffer],
        writable: &[Buffer],
    ) -> Chain {
        let header = self.put(&header(kind, sector));
        let status = self.status();
        Chain {
            head: 7,
            readable: [&[header], readable].concat(),
            writable: [writable, &[status]].concat(),
        }
    }

    /// The status of a chain made by [`Self::chain`].
    pub fn answer(&self, chain: &Chain) -> u8 {
        self.get(*chain.writable.last().unwrap())[0]
    }
}

pub fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

/// A segment of a discard or write-zeroes.
pub fn segment(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut segment = [0; 16];
    segment[..8].copy_from_slice(&sector.to_le_bytes());
    segment[8..12].copy_from_slice(&sectors.to_le_bytes());
    segment[12..].copy_from_slice(&flags.to_le_bytes());
    segment
}

/// `length` bytes that differ by position and by `generation`.
pub fn pattern(length: usize, generation: u8) -> Vec<u8> {
    let byte = |i: usize| (i / 512) as u8 ^ (i as u8) ^ generation.wrapping_mul(37);
    (0..length).map(byte).collect()
}
