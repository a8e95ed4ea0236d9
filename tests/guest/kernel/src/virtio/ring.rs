//! The driver's side of a split virtqueue (virtio 1.3, 2.7). What the device writes is checked: a used
//! entry must name a chain that is in flight and claim no more bytes than it could write.
//!
//! ```text
//! add -> (published by `publish`) -> the device's -> `take` -> free again
//! ```

use super::feature;
use crate::platform::dma;
use crate::platform::phys::Span;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

/// Descriptor flags (2.7.5).
pub mod flag {
    /// Another descriptor follows.
    pub const NEXT: u16 = 1;
    /// The device writes.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
}

/// The size of a descriptor.
pub const DESCRIPTOR: u64 = 16;
/// Descriptors in each chain's indirect table.
pub const INDIRECT_TABLE: u64 = 64;
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// The three parts of a ring.
#[derive(Clone, Copy)]
pub struct Layout {
    /// The number of descriptors, a power of two.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: Span,
    /// Available ring: flags, index, heads, used_event.
    pub available: Span,
    /// Used ring: flags, index, entries, avail_event.
    pub used: Span,
}

impl Layout {
    /// Allocates a ring of this size.
    pub fn allocate(size: u16) -> Layout {
        let entries = u64::from(size);
        Layout {
            size,
            descriptors: dma::allocate(entries * DESCRIPTOR, 16),
            available: dma::allocate(6 + 2 * entries, 2),
            used: dma::allocate(6 + 8 * entries, 4),
        }
    }
}

/// One piece of a request.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Physical address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// When chains go through an indirect table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Indirect {
    /// Never: also when it was not negotiated.
    Never,
    /// Always.
    Always,
    /// Every other chain.
    Mixed,
}

#[derive(Clone, Copy, Default)]
struct Chain {
    in_flight: bool,
    descriptors: u16,
    writable: u32,
}

/// A used entry, beside what the driver knows of its head.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// The chain's first descriptor, as the device has it.
    pub head: u32,
    /// Bytes that the device says it has written.
    pub written: u32,
    /// Bytes that it could write.
    pub room: u32,
    /// Whether the device had such a chain; there is no other one of this head then.
    pub in_flight: bool,
}

/// A ring and what the driver remembers about it.
pub struct Ring {
    /// Where it is.
    pub layout: Layout,
    event_idx: bool,
    indirect: Indirect,
    tables: Option<Span>,
    free: Vec<u16>,
    chains: Vec<Chain>,
    // Descriptors of direct chains, in order, for each head.
    members: Vec<Vec<u16>>,
    next_available: u16,
    published: u16,
    last_used: u16,
    added: u64,
    /// Kicks at every publication, whether the device wants it or not.
    pub eager: bool,
    /// Notifications that the device asked for, or got all the same.
    pub kicks: u64,
    /// Publications after which it did not want one.
    pub kicks_suppressed: u64,
}

impl Ring {
    /// A ring of `size` descriptors in new memory.
    pub fn new(size: u16) -> Ring {
        let layout = Layout::allocate(size);
        let entries = usize::from(size);
        let mut ring = Ring {
            layout,
            event_idx: false,
            indirect: Indirect::Never,
            tables: None,
            free: Vec::with_capacity(entries),
            chains: alloc::vec![Chain::default(); entries],
            members: (0..entries).map(|_| Vec::with_capacity(8)).collect(),
            next_available: 0,
            published: 0,
            last_used: 0,
            added: 0,
            eager: false,
            kicks: 0,
            kicks_suppressed: 0,
        };
        ring.restart(0, Indirect::Never);
        ring
    }

    /// Makes it empty, for a device that was reset and agreed on these features.
    pub fn restart(&mut self, features: u64, indirect: Indirect) {
        self.event_idx = features & feature::EVENT_IDX != 0;
        self.indirect = if features & feature::INDIRECT_DESC != 0 {
            indirect
        } else {
            Indirect::Never
        };
        if self.indirect != Indirect::Never && self.tables.is_none() {
            self.tables = Some(dma::allocate(
                u64::from(self.layout.size) * INDIRECT_TABLE * DESCRIPTOR,
                16,
            ));
        }
        for part in [
            self.layout.descriptors,
            self.layout.available,
            self.layout.used,
        ] {
            part.fill(0);
        }
        self.free.clear();
        self.free.extend((0..self.layout.size).rev());
        self.chains.fill(Chain::default());
        self.members.iter_mut().for_each(Vec::clear);
        (self.next_available, self.published, self.last_used) = (0, 0, 0);
    }

    /// Writes one descriptor of a table.
    pub fn describe(table: &Span, index: u16, buffer: &Buffer, flags: u16, next: u16) {
        let at = u64::from(index) * DESCRIPTOR;
        table.write(at, buffer.address);
        table.write(at + 8, buffer.length);
        table.write(
            at + 12,
            flags | if buffer.writable { flag::WRITE } else { 0 },
        );
        table.write(at + 14, next);
    }

    /// Puts a chain into the ring; `publish` hands it over. `None` if it does not fit now.
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        self.added += 1;
        let through_table = match self.indirect {
            Indirect::Never => false,
            Indirect::Always => true,
            Indirect::Mixed => self.added.is_multiple_of(2),
        };
        let fits_table = buffers.len() as u64 <= INDIRECT_TABLE;
        let head = match self.tables.filter(|_| through_table && fits_table) {
            Some(tables) => self.add_indirect(&tables, buffers)?,
            None => self.add_direct(buffers)?,
        };
        self.chains[usize::from(head)] = Chain {
            in_flight: true,
            descriptors: self.members[usize::from(head)].len() as u16,
            writable: buffers
                .iter()
                .filter(|b| b.writable)
                .fold(0, |sum, b| sum.wrapping_add(b.length)),
        };
        self.offer(head);
        Some(head)
    }

    fn add_indirect(&mut self, tables: &Span, buffers: &[Buffer]) -> Option<u16> {
        let head = self.free.pop()?;
        let length = INDIRECT_TABLE * DESCRIPTOR;
        let table = tables.part(u64::from(head) * length, length);
        let last = buffers.len() - 1;
        for (at, buffer) in buffers.iter().enumerate() {
            let flags = if at < last { flag::NEXT } else { 0 };
            Self::describe(
                &table,
                at as u16,
                buffer,
                flags,
                if at < last { at as u16 + 1 } else { 0 },
            );
        }
        let whole = Buffer {
            address: table.address(),
            length: (buffers.len() as u64 * DESCRIPTOR) as u32,
            writable: false,
        };
        Self::describe(&self.layout.descriptors, head, &whole, flag::INDIRECT, 0);
        self.members[usize::from(head)].clear();
        self.members[usize::from(head)].push(head);
        Some(head)
    }

    fn add_direct(&mut self, buffers: &[Buffer]) -> Option<u16> {
        let left = self.free.len().checked_sub(buffers.len())?;
        let head = *self.free.last()?;
        let mut members = core::mem::take(&mut self.members[usize::from(head)]);
        members.clear();
        members.extend(self.free.drain(left..).rev());
        for (at, buffer) in buffers.iter().enumerate() {
            let next = members.get(at + 1).copied();
            let flags = if next.is_some() { flag::NEXT } else { 0 };
            Self::describe(
                &self.layout.descriptors,
                members[at],
                buffer,
                flags,
                next.unwrap_or(0),
            );
        }
        self.members[usize::from(head)] = members;
        Some(head)
    }

    /// Writes a head into the available ring, without any bookkeeping.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next_available % self.layout.size);
        self.layout.available.write(4 + 2 * slot, head);
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Hands over what was added and says whether the device wants to be told (2.7.13.4).
    pub fn publish(&mut self) -> bool {
        if self.next_available == self.published {
            return false;
        }
        let (old, new) = (self.published, self.next_available);
        fence(Ordering::Release);
        self.layout.available.write(2, new);
        self.published = new;
        fence(Ordering::SeqCst);
        let wanted = if self.eager {
            true
        } else if self.event_idx {
            let event: u16 = self.layout.used.read(4 + 8 * u64::from(self.layout.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.layout.used.read::<u16>(0) & NO_NOTIFY == 0
        };
        if wanted {
            self.kicks += 1;
        } else {
            self.kicks_suppressed += 1;
        }
        wanted
    }

    /// The device's used index.
    pub fn used_index(&self) -> u16 {
        self.layout.used.read(2)
    }

    /// Takes one finished chain: its head and how much the device wrote.
    pub fn take(&mut self) -> Result<Option<(u16, u32)>, String> {
        let Some(used) = self.take_used()? else {
            return Ok(None);
        };
        let head = used.head;
        if !used.in_flight {
            return Err(alloc::format!(
                "reason=used-head head={head} {}",
                self.state()
            ));
        }
        if used.written > used.room {
            return Err(alloc::format!(
                "reason=used-length head={head} length={} room={}",
                used.written,
                used.room
            ));
        }
        Ok(Some((head as u16, used.written)))
    }

    /// Takes one used entry as it is: what is wrong with it is for the caller to say.
    pub fn take_used(&mut self) -> Result<Option<Used>, String> {
        let ready = self.used_index().wrapping_sub(self.last_used);
        if ready == 0 {
            return Ok(None);
        }
        fence(Ordering::Acquire);
        if ready > self.layout.size {
            return Err(alloc::format!("reason=used-index {}", self.state()));
        }
        let at = 4 + 8 * u64::from(self.last_used % self.layout.size);
        let (head, written): (u32, u32) =
            (self.layout.used.read(at), self.layout.used.read(at + 4));
        self.last_used = self.last_used.wrapping_add(1);
        let mut used = Used {
            head,
            written,
            room: 0,
            in_flight: false,
        };
        let chain = self.chains.get_mut(head as usize);
        let Some(chain) = chain.filter(|chain| chain.in_flight) else {
            return Ok(Some(used));
        };
        (used.in_flight, used.room) = (true, chain.writable);
        chain.in_flight = false;
        let members = core::mem::take(&mut self.members[head as usize]);
        self.free.extend(members.iter().rev());
        self.members[head as usize] = members;
        Ok(Some(used))
    }

    /// Asks for an interrupt with the next chain. True if one has finished already, so that halting would
    /// miss it (2.7.10).
    pub fn arm(&mut self) -> bool {
        if self.event_idx {
            self.layout
                .available
                .write(4 + 2 * u64::from(self.layout.size), self.last_used);
        } else {
            self.layout.available.write(0, 0u16);
        }
        fence(Ordering::SeqCst);
        self.used_index() != self.last_used
    }

    /// Wants no interrupts for now.
    pub fn disarm(&mut self) {
        if !self.event_idx {
            self.layout.available.write(0, NO_INTERRUPT);
        }
    }

    /// The number of chains that the device has.
    pub fn in_flight(&self) -> usize {
        self.chains.iter().filter(|chain| chain.in_flight).count()
    }

    /// What a reader of a failure needs to know.
    pub fn state(&self) -> String {
        let descriptors: u16 = self
            .chains
            .iter()
            .filter(|c| c.in_flight)
            .map(|c| c.descriptors)
            .sum();
        alloc::format!(
            "avail={} used={} last_used={} in_flight={} descriptors={descriptors}",
            self.published,
            self.used_index(),
            self.last_used,
            self.in_flight()
        )
    }
}
