//! A descriptor chain as it was read, once, from guest memory.

use virtio_queue::desc::split::Descriptor;
use vm_memory::GuestMemoryBackend;
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use crate::memory::Memory;

/// Most descriptors in an indirect table. The specification's limit is the
/// queue size (virtio 1.3, section 2.7.5.3.1), but drivers that offer few
/// descriptors do use longer tables; QEMU has this limit too.
pub const MAX_INDIRECT: u16 = 1024;

const DESCRIPTOR: u32 = 16;

/// One buffer of a chain (virtio 1.3, section 2.7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Where it begins in guest-physical memory; not checked.
    pub address: GuestAddress,
    /// Its length in bytes; not checked.
    pub length: u32,
}

/// A chain: device-readable buffers, then device-writable ones (virtio 1.3,
/// section 2.7.4.2 has no other order). Addresses and lengths are the guest's
/// word; the device checks them against memory as it uses them. All lengths
/// together are less than 4 GiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Index of the first descriptor: what names the chain until it is used.
    pub head: u16,
    /// What the driver wrote for the device.
    pub readable: Vec<Buffer>,
    /// Where the device may write.
    pub writable: Vec<Buffer>,
}

/// What there was at the head of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Nothing.
    Nothing,
    /// A chain that is none; it is returned to the driver.
    Malformed,
    /// A chain.
    Chain,
}

/// Why a chain is not one. The kinds differ only for tests and readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// The next index is beyond the table.
    Next,
    /// Longer than its table: a loop, or more than the device takes.
    Length,
    /// A readable descriptor after a writable one.
    Order,
    /// An indirect table that is nested, empty, no multiple of 16 bytes, too
    /// long, not in one region, chained on, or was not negotiated.
    Indirect,
    /// The lengths sum to 4 GiB or more.
    Bytes,
    /// The table cannot be read.
    Unreachable,
}

impl Chain {
    /// Reads the chain that begins at `head` of `table`, each descriptor once.
    /// The vectors are reused; their growth is bounded by the queue size and
    /// [`MAX_INDIRECT`].
    pub(crate) fn read(
        &mut self,
        table: &VolatileSlice<'_>,
        size: u16,
        head: u16,
        memory: Option<&Memory>,
    ) -> Result<(), Malformed> {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        let indirect = self.walk(table, size, head, memory.is_some())?;
        if let (Some(indirect), Some(memory)) = (indirect, memory) {
            let count = indirect_count(&indirect)?;
            let length = usize::try_from(indirect.len()).map_err(|_| Malformed::Indirect)?;
            let table = memory
                .get_slice(indirect.addr(), length)
                .map_err(|_| Malformed::Indirect)?;
            self.walk(&table, count, 0, false)?;
        }
        self.check_bytes()
    }

    /// Bytes that the device may write.
    pub(crate) fn writable_bytes(&self) -> u32 {
        // Cannot overflow: the sum of all was checked.
        self.writable
            .iter()
            .fold(0, |sum, buffer| sum.saturating_add(buffer.length))
    }

    /// Walks one table; returns the indirect descriptor it ends in, if any.
    fn walk(
        &mut self,
        table: &VolatileSlice<'_>,
        size: u16,
        first: u16,
        indirect_allowed: bool,
    ) -> Result<Option<Descriptor>, Malformed> {
        let mut index = first;
        for _ in 0..size {
            if index >= size {
                return Err(Malformed::Next);
            }
            let descriptor: Descriptor = table
                .read_obj(usize::from(index).saturating_mul(DESCRIPTOR as usize))
                .map_err(|_| Malformed::Unreachable)?;
            if descriptor.refers_to_indirect_table() {
                if !indirect_allowed || descriptor.has_next() {
                    return Err(Malformed::Indirect);
                }
                return Ok(Some(descriptor));
            }
            self.push(&descriptor)?;
            if !descriptor.has_next() {
                return Ok(None);
            }
            index = descriptor.next();
        }
        Err(Malformed::Length)
    }

    fn push(&mut self, descriptor: &Descriptor) -> Result<(), Malformed> {
        let buffer = Buffer {
            address: descriptor.addr(),
            length: descriptor.len(),
        };
        if descriptor.is_write_only() {
            self.writable.push(buffer);
        } else if self.writable.is_empty() {
            self.readable.push(buffer);
        } else {
            return Err(Malformed::Order);
        }
        Ok(())
    }

    fn check_bytes(&self) -> Result<(), Malformed> {
        let all = self.readable.iter().chain(&self.writable);
        let sum: u64 = all.map(|buffer| u64::from(buffer.length)).sum();
        u32::try_from(sum).map(drop).map_err(|_| Malformed::Bytes)
    }
}

fn indirect_count(descriptor: &Descriptor) -> Result<u16, Malformed> {
    let length = descriptor.len();
    let count = length / DESCRIPTOR;
    match u16::try_from(count) {
        Ok(1..=MAX_INDIRECT) if length.is_multiple_of(DESCRIPTOR) => Ok(count as u16),
        _ => Err(Malformed::Indirect),
    }
}

#[cfg(test)]
mod tests;
