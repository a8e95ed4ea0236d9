//! The two queues of a pair. A receive queue's buffers go back as soon as their frame was looked at; a
//! transmit queue has a fixed number of slots, each with its own memory.

use super::HEADER;
use crate::platform::phys::Span;
use crate::platform::{canary, dma};
use crate::virtio::ring::{Buffer, Indirect, Ring};
use crate::virtio::transport::Doorbell;
use alloc::collections::VecDeque;
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
    // Poisoned buffers that the device does not have, the oldest first, and how many of them are kept
    // before one is posted again; 0: nothing is poisoned.
    aside: VecDeque<usize>,
    keep: usize,
    /// Frames that were spread over more than one buffer.
    pub merged: u64,
    // How often each buffer came back.
    returned: Vec<u64>,
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
            aside: VecDeque::with_capacity(canary::keep() + 1),
            keep: canary::keep().min(usize::from(count) / 2),
            merged: 0,
            returned: alloc::vec![0; usize::from(count)],
        }
    }

    /// How often each buffer came back since this was made.
    pub fn returned(&self) -> &[u64] {
        &self.returned
    }

    /// Makes it full of empty buffers, for a device that was reset.
    pub fn restart(&mut self, features: u64, indirect: Indirect) -> Result<(), String> {
        self.merge = features & super::feature::MRG_RXBUF != 0;
        self.ring.restart(features, indirect);
        if self.keep != 0 {
            self.check_aside()?;
            self.aside.clear();
            canary::watch(self.buffers.iter())?;
        }
        (0..self.buffers.len()).for_each(|buffer| self.post(buffer));
        Ok(())
    }

    /// Fails if a buffer that is kept aside was written.
    pub fn check_aside(&self) -> Result<(), String> {
        let mut aside = self.aside.iter();
        aside.try_for_each(|buffer| canary::check_buffer(&self.buffers[*buffer], "received"))
    }

    // A buffer that was looked at goes back to the device: if there are canaries, later.
    fn give_back(&mut self, buffer: usize) -> Result<(), String> {
        if self.keep == 0 {
            self.post(buffer);
            return Ok(());
        }
        canary::fill(&self.buffers[buffer]);
        self.aside.push_back(buffer);
        if self.aside.len() > self.keep
            && let Some(oldest) = self.aside.pop_front()
        {
            canary::check_buffer(&self.buffers[oldest], "received")?;
            self.post(oldest);
        }
        Ok(())
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
        let buffer = self.owners[usize::from(head)];
        self.taken.push((buffer, written as usize));
        self.returned[buffer] += 1;
        if self.keep != 0 {
            let (whole, written) = (&self.buffers[buffer], u64::from(written));
            let behind = whole.part(written, whole.length() - written);
            canary::check_buffer(&behind, "behind-frame")?;
        }
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
            self.give_back(self.taken[at].0)?;
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
    // If there are canaries: the frame of each slot, and its sum.
    sums: Vec<(Span, u64)>,
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
            sums: Vec::new(),
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
            let slot = self.owners[usize::from(head)];
            if let Some((frame, sum)) = self.sums.get(slot) {
                canary::check_sum(frame, *sum, "sent")?;
            }
            self.free.push(slot);
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
        if canary::keep() != 0 {
            let frame = span.part(0, (HEADER + length) as u64);
            self.sums.resize(self.slots.len(), (frame, 0));
            self.sums[slot] = (frame, canary::sum(&frame));
        }
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
