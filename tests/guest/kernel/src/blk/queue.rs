//! One queue of a block device with a fixed number of request slots, each with its own memory.

use super::{STATUS_NONE, kind};
use crate::platform::phys::Span;
use crate::platform::{canary, dma};
use crate::virtio::ring::{Buffer, Indirect, Ring};
use crate::virtio::transport::Doorbell;
use alloc::collections::VecDeque;
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
    // If there are canaries: what the device may only read, and its sum; what it may not touch.
    read_only: (Span, u64),
    untouched: Span,
}

/// A finished request.
#[derive(Clone, Copy, Debug)]
pub struct Finished {
    /// Its slot.
    pub slot: usize,
    /// The device's status byte.
    pub status: u8,
    /// Bytes that the device says it has written.
    pub written: u32,
}

/// What a used entry is about.
#[derive(Clone, Copy, Debug)]
pub enum Completion {
    /// A request that was in flight, and how many bytes it gave the device to write.
    Of(Finished, u32),
    /// This head, of which none was in flight.
    OfNothing(u32),
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
    // If there are canaries: the slot that was taken last; then poisoned, the oldest first; and how many
    // of them are kept before one is free again.
    last: Option<usize>,
    aside: VecDeque<usize>,
    keep: usize,
    // The slot of each head.
    owners: Vec<usize>,
}

impl Queue {
    /// A queue of `entries` descriptors and `depth` slots for `size` bytes each.
    pub fn new(index: u16, entries: u16, depth: u16, size: u64) -> Queue {
        let slots = (0..depth)
            .map(|_| {
                let data = dma::allocate(size, 4096);
                Slot {
                    control: dma::allocate(CONTROL_LENGTH, 64),
                    data,
                    read_only: (data, 0),
                    untouched: data,
                }
            })
            .collect();
        Queue {
            index,
            ring: Ring::new(entries),
            doorbell: None,
            slots,
            free: (0..usize::from(depth)).rev().collect(),
            last: None,
            aside: VecDeque::with_capacity(canary::keep() + 1),
            keep: canary::keep().min(usize::from(depth) / 2),
            owners: alloc::vec![0; usize::from(entries)],
        }
    }

    /// Forgets all requests, for a device that was reset.
    pub fn restart(&mut self, features: u64, indirect: Indirect) -> Result<(), String> {
        self.ring.restart(features, indirect);
        if self.keep != 0 {
            self.check_aside()?;
            self.aside.clear();
            self.last = None;
            canary::watch(self.slots.iter().map(|slot| &slot.data))?;
        }
        self.free.clear();
        self.free.extend((0..self.slots.len()).rev());
        Ok(())
    }

    /// Fails if data that is kept aside was written.
    pub fn check_aside(&self) -> Result<(), String> {
        let mut aside = self.aside.iter();
        aside.try_for_each(|slot| canary::check_buffer(&self.slots[*slot].data, "read"))
    }

    // The data of the slot that was taken last has been looked at: poisons it and keeps it aside.
    fn poison_last(&mut self) -> Result<(), String> {
        let Some(last) = self.last.take() else {
            return Ok(());
        };
        canary::fill(&self.slots[last].data);
        self.aside.push_back(last);
        if self.aside.len() > self.keep
            && let Some(oldest) = self.aside.pop_front()
        {
            canary::check_buffer(&self.slots[oldest].data, "read")?;
            self.free.push(oldest);
        }
        Ok(())
    }

    // What the device may not have touched of a request.
    fn check_finished(&self, slot: usize) -> Result<(), String> {
        let Slot {
            read_only,
            untouched,
            ..
        } = &self.slots[slot];
        canary::check_sum(&read_only.0, read_only.1, "written")?;
        canary::check_buffer(untouched, "behind-data")
    }

    /// A slot that is free.
    pub fn free_slot(&self) -> Option<usize> {
        self.free.last().copied()
    }

    /// The number of slots in use.
    pub fn busy(&self) -> usize {
        self.slots.len() - self.free.len() - self.aside.len() - usize::from(self.last.is_some())
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
        let Slot { control, data, .. } = &self.slots[slot];
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
        if self.keep != 0 {
            self.remember(slot, request);
        }
        self.free.pop();
        true
    }

    // For `check_finished`: what a slot's request lets the device read, and what it leaves alone.
    fn remember(&mut self, slot: usize, request: &Request) {
        let slot = &mut self.slots[slot];
        let used = match request.kind {
            kind::READ | kind::WRITE => request.length,
            _ => 0,
        };
        slot.untouched = slot.data.part(used, slot.data.length() - used);
        // It may hold what was meant for a request that found no room.
        canary::fill(&slot.untouched);
        let read_only = match request.kind {
            kind::WRITE => slot.data.part(0, used),
            _ => slot.control.part(0, u64::from(HEADER_LENGTH)),
        };
        slot.read_only = (read_only, canary::sum(&read_only));
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
        self.poison_last()?;
        let Some((head, written)) = self.ring.take()? else {
            return Ok(None);
        };
        self.finished(head, written).map(Some)
    }

    /// The same, for a driver that counts what is wrong with completions.
    pub fn take_any(&mut self) -> Result<Option<Completion>, String> {
        self.poison_last()?;
        let Some(used) = self.ring.take_used()? else {
            return Ok(None);
        };
        if !used.in_flight {
            return Ok(Some(Completion::OfNothing(used.head)));
        }
        let finished = self.finished(used.head as u16, used.written)?;
        Ok(Some(Completion::Of(finished, used.room)))
    }

    fn finished(&mut self, head: u16, written: u32) -> Result<Finished, String> {
        let slot = self.owners[usize::from(head)];
        if self.keep == 0 {
            self.free.push(slot);
        } else {
            self.check_finished(slot)?;
            self.last = Some(slot);
        }
        Ok(Finished {
            slot,
            status: self.slots[slot].control.read(STATUS),
            written,
        })
    }
}
