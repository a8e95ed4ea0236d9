//! One queue of a block device with a fixed number of request slots, each with its own memory.

use super::{STATUS_NONE, kind};
use crate::platform::dma;
use crate::platform::phys::Span;
use crate::virtio::ring::{Buffer, Indirect, Ring};
use crate::virtio::transport::Doorbell;
use alloc::string::String;
use alloc::vec::Vec;

/// Offsets in a slot's control block.
const HEADER: u64 = 0;
const HEADER_LENGTH: u32 = 16;
const STATUS: u64 = 16;
const SEGMENT: u64 = 32;
const SEGMENT_LENGTH: u32 = 16;
const CONTROL_LENGTH: u64 = 64;
/// The most pieces that a request's data is cut into.
pub const MAX_PIECES: usize = 16;

/// What a slot is to do.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// One of `blk::kind`.
    pub kind: u32,
    /// Where.
    pub sector: u64,
    /// Bytes of data; for discard and write zeroes the bytes they affect.
    pub length: u64,
}

struct Slot {
    control: Span,
    data: Span,
}

/// A finished request.
#[derive(Clone, Copy, Debug)]
pub struct Finished {
    /// Its slot.
    pub slot: usize,
    /// The device's status byte.
    pub status: u8,
}

/// A queue.
pub struct Queue {
    /// Its number.
    pub index: u16,
    /// Its ring.
    pub ring: Ring,
    /// Its doorbell, once it was started.
    pub doorbell: Option<Doorbell>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    // The slot of each head.
    owners: Vec<usize>,
}

impl Queue {
    /// A queue of `entries` descriptors and `depth` slots for `size` bytes each.
    pub fn new(index: u16, entries: u16, depth: u16, size: u64) -> Queue {
        let slots = (0..depth)
            .map(|_| Slot {
                control: dma::allocate(CONTROL_LENGTH, 64),
                data: dma::allocate(size, 4096),
            })
            .collect();
        Queue {
            index,
            ring: Ring::new(entries),
            doorbell: None,
            slots,
            free: (0..usize::from(depth)).rev().collect(),
            owners: alloc::vec![0; usize::from(entries)],
        }
    }

    /// Forgets all requests, for a device that was reset.
    pub fn restart(&mut self, features: u64, indirect: Indirect) {
        self.ring.restart(features, indirect);
        self.free.clear();
        self.free.extend((0..self.slots.len()).rev());
    }

    /// A slot that is free.
    pub fn free_slot(&self) -> Option<usize> {
        self.free.last().copied()
    }

    /// The number of slots in use.
    pub fn busy(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// A slot's data.
    pub fn data(&self, slot: usize) -> &Span {
        &self.slots[slot].data
    }

    /// Puts a request into the free slot that `free_slot` named, its data cut into `pieces` (lengths that
    /// sum up to it; none: uncut). False if the ring has no room now.
    pub fn submit(&mut self, request: &Request, pieces: &[u32]) -> bool {
        let Some(slot) = self.free_slot() else {
            return false;
        };
        let Slot { control, data } = &self.slots[slot];
        control.write(HEADER, request.kind);
        control.write(HEADER + 4, 0u32);
        control.write(
            HEADER + 8,
            if request.kind == kind::FLUSH {
                0
            } else {
                request.sector
            },
        );
        control.write(STATUS, STATUS_NONE);
        let mut buffers = [Buffer {
            address: 0,
            length: 0,
            writable: false,
        }; MAX_PIECES + 2];
        buffers[0] = Buffer {
            address: control.address() + HEADER,
            length: HEADER_LENGTH,
            writable: false,
        };
        let mut used = 1;
        match request.kind {
            kind::FLUSH => {}
            kind::DISCARD | kind::WRITE_ZEROES => {
                control.write(HEADER + 8, 0u64);
                control.write(SEGMENT, request.sector);
                control.write(SEGMENT + 8, (request.length / super::SECTOR) as u32);
                control.write(SEGMENT + 12, 0u32);
                buffers[1] = Buffer {
                    address: control.address() + SEGMENT,
                    length: SEGMENT_LENGTH,
                    writable: false,
                };
                used += 1;
            }
            _ => {
                let writable = request.kind != kind::WRITE;
                let whole = [request.length as u32];
                let mut at = 0;
                for piece in if pieces.is_empty() { &whole } else { pieces } {
                    buffers[used] = Buffer {
                        address: data.address() + at,
                        length: *piece,
                        writable,
                    };
                    at += u64::from(*piece);
                    used += 1;
                }
            }
        }
        buffers[used] = Buffer {
            address: control.address() + STATUS,
            length: 1,
            writable: true,
        };
        let Some(head) = self.ring.add(&buffers[..=used]) else {
            return false;
        };
        self.owners[usize::from(head)] = slot;
        self.free.pop();
        true
    }

    /// Hands over what was submitted, and rings if the device wants it.
    pub fn publish(&mut self) {
        if self.ring.publish()
            && let Some(doorbell) = &self.doorbell
        {
            doorbell.ring();
        }
    }

    /// Takes one finished request; its slot is free again, its data still there.
    pub fn take(&mut self) -> Result<Option<Finished>, String> {
        let Some((head, _)) = self.ring.take()? else {
            return Ok(None);
        };
        let slot = self.owners[usize::from(head)];
        self.free.push(slot);
        Ok(Some(Finished {
            slot,
            status: self.slots[slot].control.read(STATUS),
        }))
    }
}
