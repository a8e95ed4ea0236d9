//! The two queues of a pair. A receive queue's buffers go back as soon as their frame was looked at; a
//! transmit queue has a fixed number of slots, each with its own memory.

use super::HEADER;
use crate::platform::dma;
use crate::platform::phys::Span;
use crate::virtio::ring::{Buffer, Indirect, Ring};
use crate::virtio::transport::Doorbell;
use alloc::string::String;
use alloc::vec::Vec;
use guest_logic::packet::Offload;

/// The most pieces that a frame is cut into.
pub const MAX_PIECES: usize = 8;
const NUM_BUFFERS: usize = 10;

/// Frames from the device.
pub struct Receive {
    /// Its number.
    pub index: u16,
    /// Its ring.
    pub ring: Ring,
    /// Its doorbell, once it was started.
    pub doorbell: Option<Doorbell>,
    merge: bool,
    buffers: Vec<Span>,
    // The buffer of each head.
    owners: Vec<usize>,
    // A frame in several buffers is put together here.
    whole: Vec<u8>,
    // Buffers of the frame that is looked at.
    taken: Vec<(usize, usize)>,
    /// Frames that were spread over more than one buffer.
    pub merged: u64,
}

impl Receive {
    /// A queue of `entries` descriptors and `count` buffers of `size` bytes.
    pub fn new(index: u16, entries: u16, count: u16, size: u64) -> Receive {
        Receive {
            index,
            ring: Ring::new(entries),
            doorbell: None,
            merge: false,
            buffers: (0..count).map(|_| dma::allocate(size, 64)).collect(),
            owners: alloc::vec![0; usize::from(entries)],
            whole: Vec::with_capacity(super::LONGEST + HEADER),
            taken: Vec::with_capacity(usize::from(entries)),
            merged: 0,
        }
    }

    /// Makes it full of empty buffers, for a device that was reset.
    pub fn restart(&mut self, features: u64, indirect: Indirect) {
        self.merge = features & super::feature::MRG_RXBUF != 0;
        self.ring.restart(features, indirect);
        (0..self.buffers.len()).for_each(|buffer| self.post(buffer));
    }

    fn post(&mut self, buffer: usize) {
        let span = &self.buffers[buffer];
        let whole = Buffer {
            address: span.address(),
            length: span.length() as u32,
            writable: true,
        };
        if let Some(head) = self.ring.add(&[whole]) {
            self.owners[usize::from(head)] = buffer;
        }
    }

    /// Hands over the buffers that were posted, and rings if the device wants it.
    pub fn publish(&mut self) {
        if self.ring.publish()
            && let Some(doorbell) = &self.doorbell
        {
            doorbell.ring();
        }
    }

    fn take_buffer(&mut self) -> Result<bool, String> {
        let Some((head, written)) = self.ring.take()? else {
            return Ok(false);
        };
        self.taken
            .push((self.owners[usize::from(head)], written as usize));
        Ok(true)
    }

    /// Shows the next frame to `look`. False if there is none.
    pub fn next<T>(
        &mut self,
        look: impl FnOnce(&Offload, &[u8]) -> T,
    ) -> Result<Option<T>, String> {
        self.taken.clear();
        if !self.take_buffer()? {
            return Ok(None);
        }
        let (first, written) = self.taken[0];
        // SAFETY: the device has given the buffer back, and only this queue reaches it.
        let bytes = unsafe { self.buffers[first].bytes() };
        if written < HEADER {
            return Err(alloc::format!("reason=short-header length={written}"));
        }
        let offload = Offload::from_bytes(&bytes[..HEADER]);
        let count = u16::from_le_bytes([bytes[NUM_BUFFERS], bytes[NUM_BUFFERS + 1]]);
        // Without MRG_RXBUF it is to be 1 in any case (5.1.6.4.1), but older QEMUs leave it at 0.
        let count = if self.merge { count } else { count.max(1) };
        if count == 0 || (count > 1 && !self.merge) {
            return Err(alloc::format!("reason=num-buffers num_buffers={count}"));
        }
        let answer = if count == 1 {
            look(&offload, &bytes[HEADER..written])
        } else {
            self.gather(usize::from(count), &bytes[HEADER..written])?;
            look(&offload, &self.whole)
        };
        for at in 0..self.taken.len() {
            self.post(self.taken[at].0);
        }
        Ok(Some(answer))
    }

    fn gather(&mut self, count: usize, first: &[u8]) -> Result<(), String> {
        self.merged += 1;
        self.whole.clear();
        self.whole.extend_from_slice(first);
        for at in 1..count {
            if !self.take_buffer()? {
                return Err(alloc::format!(
                    "reason=merge-incomplete num_buffers={count} present={at}"
                ));
            }
            let (buffer, written) = self.taken[at];
            // SAFETY: as in `next`.
            let bytes = unsafe { self.buffers[buffer].bytes() };
            self.whole.extend_from_slice(&bytes[..written]);
        }
        Ok(())
    }
}

/// Frames to the device.
pub struct Transmit {
    /// Its number.
    pub index: u16,
    /// Its ring.
    pub ring: Ring,
    /// Its doorbell, once it was started.
    pub doorbell: Option<Doorbell>,
    /// Into how many descriptors a frame and its header go; 0: 1 to 5 in turn.
    pub pieces: usize,
    slots: Vec<Span>,
    free: Vec<usize>,
    owners: Vec<usize>,
    sent: u64,
}

impl Transmit {
    /// A queue of `entries` descriptors and `depth` slots for frames of `size` bytes.
    pub fn new(index: u16, entries: u16, depth: u16, size: u64) -> Transmit {
        Transmit {
            index,
            ring: Ring::new(entries),
            doorbell: None,
            pieces: 1,
            slots: (0..depth)
                .map(|_| dma::allocate(size + HEADER as u64, 64))
                .collect(),
            free: (0..usize::from(depth)).rev().collect(),
            owners: alloc::vec![0; usize::from(entries)],
            sent: 0,
        }
    }

    /// Forgets all frames, for a device that was reset.
    pub fn restart(&mut self, features: u64, indirect: Indirect) {
        self.ring.restart(features, indirect);
        self.free.clear();
        self.free.extend((0..self.slots.len()).rev());
    }

    /// Takes back what the device has sent. True if that was anything.
    pub fn reclaim(&mut self) -> Result<bool, String> {
        let mut any = false;
        while let Some((head, _)) = self.ring.take()? {
            self.free.push(self.owners[usize::from(head)]);
            any = true;
        }
        Ok(any)
    }

    /// Whether `send` has a slot for a frame.
    pub fn has_room(&mut self) -> Result<bool, String> {
        if self.free.is_empty() {
            self.reclaim()?;
        }
        Ok(!self.free.is_empty())
    }

    /// Whether the device has sent everything (as of the last `reclaim`).
    pub fn is_drained(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Bytes of the longest frame.
    pub fn longest(&self) -> usize {
        self.slots
            .first()
            .map_or(0, |slot| slot.length() as usize - HEADER)
    }

    /// Puts a frame of `length` bytes, written by `fill`, into the ring; `publish` hands it over. False if
    /// there is no room now.
    pub fn send(
        &mut self,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> Offload,
    ) -> Result<bool, String> {
        self.has_room()?;
        let Some(slot) = self.free.last().copied() else {
            return Ok(false);
        };
        let span = self.slots[slot];
        // SAFETY: the slot is free, so the device does not have it, and only this queue reaches it.
        let bytes = unsafe { span.bytes_mut() };
        let (header, frame) = bytes.split_at_mut(HEADER);
        let offload = fill(&mut frame[..length]);
        header[..Offload::LENGTH].copy_from_slice(&offload.to_bytes());
        header[NUM_BUFFERS..].fill(0);
        let pieces = match self.pieces {
            0 => 1 + (self.sent % 5) as usize,
            pieces => pieces,
        };
        let mut buffers = [Buffer {
            address: 0,
            length: 0,
            writable: false,
        }; MAX_PIECES];
        let used = cut(&mut buffers[..pieces], span.address(), HEADER + length);
        let Some(head) = self.ring.add(&buffers[..used]) else {
            return Ok(false);
        };
        self.owners[usize::from(head)] = slot;
        self.free.pop();
        self.sent += 1;
        Ok(true)
    }

    /// Hands over what was sent, and rings if the device wants it.
    pub fn publish(&mut self) {
        if self.ring.publish()
            && let Some(doorbell) = &self.doorbell
        {
            doorbell.ring();
        }
    }
}

// One piece: all of it. Two: the header and the rest. Three: a piece ends within the header. More: the rest
// in equal parts. Returns how many there are.
fn cut(buffers: &mut [Buffer], address: u64, length: usize) -> usize {
    let ends = match buffers.len() {
        1 => [length, 0, 0],
        3 => [5, HEADER, length],
        _ => [HEADER, 0, 0],
    };
    let (mut at, mut used, count) = (0, 0, buffers.len());
    for (piece, buffer) in buffers.iter_mut().enumerate() {
        let end = match ends.get(piece) {
            Some(end) if *end != 0 => *end,
            _ => at + (length - at).div_ceil(count - piece),
        };
        if end == at {
            break;
        }
        buffer.address = address + at as u64;
        buffer.length = (end - at) as u32;
        (at, used) = (end, used + 1);
    }
    used
}
