//! The driver's side of a split ring (virtio 1.3, section 2.7), and the means
//! to write anything else into one.

use std::os::fd::AsFd;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use outboard_protocol::Deadline;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::memory::Memory;

/// VIRTQ_DESC_F_NEXT.
pub const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE.
pub const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT.
pub const INDIRECT: u16 = 4;

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// Whether the device may write it.
    pub writable: bool,
}

impl Buffer {
    /// A buffer for the device to read.
    pub fn readable(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            writable: false,
        }
    }

    /// A buffer for the device to write.
    pub fn writable(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            writable: true,
        }
    }
}

/// A ring and its descriptors; the driver's state is public, for tests that
/// are to break it.
#[derive(Debug)]
pub struct Ring {
    memory: GuestMemoryMmap<()>,
    /// Number of entries.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// Index that the next head gets.
    pub next_avail: u16,
    /// Index of the next used element to look at.
    pub next_used: u16,
    /// Whether EVENT_IDX was negotiated.
    pub event_idx: bool,
    free: Vec<u16>,
    chains: Vec<Vec<u16>>,
    /// From the driver to the device.
    pub kick: EventFd,
    /// From the device to the driver.
    pub call: EventFd,
    /// From the device: the ring is broken.
    pub err: EventFd,
}

impl Ring {
    /// Bytes that a ring of this size takes, with all its parts.
    pub fn bytes(size: u16) -> u64 {
        (16 + 2 + 8) * u64::from(size) + 64
    }

    /// An empty ring at `base` (a multiple of 16) of `memory`.
    ///
    /// # Errors
    /// Those of eventfd(2), and when it does not fit into memory.
    pub fn new(memory: &Memory, base: u64, size: u16, event_idx: bool) -> anyhow::Result<Self> {
        let available = base + 16 * u64::from(size);
        let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(16);
        let ring = Self {
            memory: memory.guest.clone(),
            size,
            descriptors: base,
            available,
            used,
            next_avail: 0,
            next_used: 0,
            event_idx,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); size.into()],
            kick: fresh_event()?,
            call: fresh_event()?,
            err: fresh_event()?,
        };
        let zeros = vec![0; usize::try_from(Self::bytes(size))?];
        ring.memory.write_slice(&zeros, GuestAddress(base))?;
        Ok(ring)
    }

    /// Fresh kick, call and err descriptors, as for a new session.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn renew_events(&mut self) -> anyhow::Result<()> {
        for event in [&mut self.kick, &mut self.call, &mut self.err] {
            *event = fresh_event()?;
        }
        Ok(())
    }

    /// Writes a descriptor.
    ///
    /// # Errors
    /// When it lies outside memory.
    pub fn set_descriptor(&self, index: u16, descriptor: Descriptor) -> anyhow::Result<()> {
        self.write_descriptor(self.descriptors, index, descriptor)
    }

    /// Writes a descriptor of a table anywhere.
    ///
    /// # Errors
    /// When it lies outside memory.
    pub fn write_descriptor(
        &self,
        table: u64,
        index: u16,
        (address, length, flags, next): Descriptor,
    ) -> anyhow::Result<()> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let at = table + 16 * u64::from(index);
        Ok(self.memory.write_slice(&bytes, GuestAddress(at))?)
    }

    /// Makes a chain available, in descriptors of the ring; returns its head.
    /// The device is told by [`Self::announce`].
    ///
    /// # Errors
    /// When there are too few free descriptors.
    pub fn add(&mut self, buffers: &[Buffer]) -> anyhow::Result<u16> {
        let indices = self.allocate(buffers.len())?;
        for (place, buffer) in buffers.iter().enumerate() {
            let next = indices.get(place + 1).copied();
            self.set_descriptor(indices[place], chained(buffer, next))?;
        }
        self.offer(indices)
    }

    /// The same with an indirect table at `table`, which takes 16 bytes for
    /// each buffer.
    ///
    /// # Errors
    /// When there is no free descriptor.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> anyhow::Result<u16> {
        let indices = self.allocate(1)?;
        let count = u16::try_from(buffers.len())?;
        for (index, buffer) in (0..count).zip(buffers) {
            let next = (index + 1 < count).then_some(index + 1);
            self.write_descriptor(table, index, chained(buffer, next))?;
        }
        self.set_descriptor(indices[0], (table, 16 * u32::from(count), INDIRECT, 0))?;
        self.offer(indices)
    }

    fn allocate(&mut self, count: usize) -> anyhow::Result<Vec<u16>> {
        let rest = self.free.len().checked_sub(count);
        let rest = rest.filter(|_| count > 0).context("no free descriptors")?;
        let mut indices = self.free.split_off(rest);
        indices.reverse();
        Ok(indices)
    }

    fn offer(&mut self, indices: Vec<u16>) -> anyhow::Result<u16> {
        let head = indices[0];
        self.chains[usize::from(head)] = indices;
        self.offer_head(head)?;
        Ok(head)
    }

    /// Puts any head into the available ring and moves its index.
    ///
    /// # Errors
    /// When the ring lies outside memory.
    pub fn offer_head(&mut self, head: u16) -> anyhow::Result<()> {
        let at = self.available + 4 + 2 * u64::from(self.next_avail % self.size);
        self.memory
            .store(head.to_le(), GuestAddress(at), Ordering::Relaxed)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        self.set_avail_idx(self.next_avail)
    }

    /// Writes the available index, whatever it was.
    ///
    /// # Errors
    /// When the ring lies outside memory.
    pub fn set_avail_idx(&self, index: u16) -> anyhow::Result<()> {
        let at = GuestAddress(self.available + 2);
        Ok(self.memory.store(index.to_le(), at, Ordering::Release)?)
    }

    /// Kicks if the device wants it for what was added since index `old`;
    /// answers whether it did.
    ///
    /// # Errors
    /// When the ring lies outside memory.
    pub fn announce(&self, old: u16) -> anyhow::Result<bool> {
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.avail_event()?;
            let passed = self.next_avail.wrapping_sub(event).wrapping_sub(1);
            passed < self.next_avail.wrapping_sub(old)
        } else {
            self.used_flags()? & 1 == 0
        };
        if wanted {
            self.kick()?;
        }
        Ok(wanted)
    }

    /// Kicks, wanted or not.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn kick(&self) -> anyhow::Result<()> {
        self.kick.write(1)?;
        Ok(())
    }

    /// The index after which the device wants a kick.
    ///
    /// # Errors
    /// When the ring lies outside memory.
    pub fn avail_event(&self) -> anyhow::Result<u16> {
        self.load(self.used + 4 + 8 * u64::from(self.size))
    }

    /// The flags of the used ring.
    ///
    /// # Errors
    /// When the ring lies outside memory.
    pub fn used_flags(&self) -> anyhow::Result<u16> {
        self.load(self.used)
    }

    /// The device's used index.
    ///
    /// # Errors
    /// When the ring lies outside memory.
    pub fn used_idx(&self) -> anyhow::Result<u16> {
        self.load(self.used + 2)
    }

    /// Asks for no calls, or for calls (without EVENT_IDX).
    ///
    /// # Errors
    /// When the ring lies outside memory.
    pub fn suppress_calls(&self, suppress: bool) -> anyhow::Result<()> {
        let at = GuestAddress(self.available);
        Ok(self
            .memory
            .store(u16::from(suppress).to_le(), at, Ordering::SeqCst)?)
    }

    /// Asks for a call once the device's used index passes `index` (EVENT_IDX).
    ///
    /// # Errors
    /// When the ring lies outside memory.
    pub fn set_used_event(&self, index: u16) -> anyhow::Result<()> {
        let at = GuestAddress(self.available + 4 + 2 * u64::from(self.size));
        Ok(self.memory.store(index.to_le(), at, Ordering::SeqCst)?)
    }

    /// The next used element, head and length, if there is one; its descriptors
    /// are free again.
    ///
    /// # Errors
    /// When the device returned a head that it was not given.
    pub fn take_used(&mut self) -> anyhow::Result<Option<(u16, u32)>> {
        if self.used_idx()? == self.next_used {
            return Ok(None);
        }
        let at = self.used + 4 + 8 * u64::from(self.next_used % self.size);
        let head: u32 = self.memory.load(GuestAddress(at), Ordering::Relaxed)?;
        let length: u32 = self.memory.load(GuestAddress(at + 4), Ordering::Relaxed)?;
        let head = u16::try_from(u32::from_le(head)).context("a head beyond any ring")?;
        let Some(chain) = self.chains.get_mut(usize::from(head)) else {
            bail!("the device returned head {head} of {}", self.size);
        };
        self.free.append(chain);
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some((head, u32::from_le(length))))
    }

    /// Waits for the next used element, without relying on calls.
    ///
    /// # Errors
    /// When none has come by the deadline.
    pub fn wait_used(&mut self, deadline: Deadline) -> anyhow::Result<(u16, u32)> {
        loop {
            if let Some(used) = self.take_used()? {
                return Ok(used);
            }
            if deadline.passed() {
                bail!("the device returned nothing in time");
            }
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    }

    /// Makes a chain available, announces it, and waits until it comes back: the
    /// used length.
    ///
    /// # Errors
    /// Those of [`Self::add`] and [`Self::wait_used`], or another one came back.
    pub fn submit(&mut self, buffers: &[Buffer]) -> anyhow::Result<u32> {
        let old = self.next_avail;
        let head = self.add(buffers)?;
        self.announce(old)?;
        let (used, length) = self.wait_used(crate::soon())?;
        ensure!(used == head, "chain {used} came back, not {head}");
        Ok(length)
    }

    fn load(&self, at: u64) -> anyhow::Result<u16> {
        let value: u16 = self.memory.load(GuestAddress(at), Ordering::Acquire)?;
        Ok(u16::from_le(value))
    }
}

/// Address, length, flags and next of a descriptor.
pub type Descriptor = (u64, u32, u16, u16);

fn chained(buffer: &Buffer, next: Option<u16>) -> Descriptor {
    let write = if buffer.writable { WRITE } else { 0 };
    let flags = write | next.map_or(0, |_| NEXT);
    (buffer.address, buffer.length, flags, next.unwrap_or(0))
}

/// A descriptor to be lent.
///
/// # Errors
/// Those of eventfd(2).
pub fn fresh_event() -> anyhow::Result<EventFd> {
    Ok(EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK)?)
}

/// How many events wait; they are forgotten.
pub fn drain(event: &EventFd) -> u64 {
    event.read().unwrap_or(0)
}

/// Waits until an event waits, and forgets it.
///
/// # Errors
/// When there is none by the deadline.
pub fn wait_event(event: &EventFd, deadline: Deadline) -> anyhow::Result<()> {
    let timeout = PollTimeout::try_from(deadline.left()).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, timeout)? == 0 {
        bail!("no event in time");
    }
    drain(event);
    Ok(())
}
