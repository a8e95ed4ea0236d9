//! `outboard-blk` with one fault, for tests that must notice it: a test that
//! does not fail with these proves nothing about the sound program.
//!
//! A [`Fault`] stands between the runtime and a sound disk ([`Faulty`]), and
//! sees each request before the disk does. The programs in `src/bin` have the
//! command line of outboard-blk and one fault each.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use outboard_blk::disk::Blk;
use outboard_blk::queue::BlkQueue;
use outboard_protocol::kept::Kept;
use outboard_runtime::{Buffer, Chain, Change, Device, Memory, Outcome, Queue};
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_OUT;
use vm_memory::{Address, Bytes, GuestAddress};

/// What is wrong with a disk. Every default is no fault at all.
pub trait Fault: Send + Sync + 'static {
    /// What the driver is shown of the disk's configuration space.
    fn config(&self, config: Vec<u8>) -> Vec<u8> {
        config
    }

    /// The driver writes to the configuration space.
    ///
    /// # Errors
    /// Those of the disk.
    fn write_config(&self, disk: &Blk, offset: u32, data: &[u8]) -> io::Result<Change> {
        disk.write_config(offset, data)
    }

    /// The device was reset.
    fn reset(&self, disk: &Blk, features: u64) {
        disk.reset(features);
    }

    /// The features that the disk believes a driver has accepted.
    fn features(&self, features: u64) -> u64 {
        features
    }

    /// A request has come, and the disk does not know yet.
    fn request(&self, memory: &Arc<Memory>, chain: &Chain) -> Deed {
        let _ = (memory, chain);
        Deed::Nothing
    }
}

/// What a fault did about a request.
#[derive(Debug)]
pub enum Deed {
    /// The disk serves it.
    Nothing,
    /// The disk serves it, with this byte of guest memory changed meanwhile.
    Changed(Flipped),
    /// It is answered, and the disk never hears of it.
    Answered,
}

/// A byte of guest memory with one bit flipped, until it is restored: what
/// reaches the disk is wrong, and the guest's own memory looks right again
/// when it is told.
#[derive(Debug)]
pub struct Flipped {
    memory: Arc<Memory>,
    address: GuestAddress,
}

impl Flipped {
    /// Flips one; `None` where there is no memory.
    pub fn new(memory: &Arc<Memory>, address: GuestAddress) -> Option<Self> {
        let this = Self {
            memory: memory.clone(),
            address,
        };
        this.flip().then_some(this)
    }

    /// Makes the byte what it was.
    pub fn restore(self) {
        self.flip();
    }

    fn flip(&self) -> bool {
        let byte = self.memory.read_obj::<u8>(self.address);
        byte.is_ok_and(|byte| self.memory.write_obj(byte ^ 1, self.address).is_ok())
    }
}

/// A sound disk behind a fault.
#[derive(Debug)]
pub struct Faulty<F> {
    disk: Blk,
    fault: Arc<F>,
}

impl<F: Fault> Faulty<F> {
    /// Puts the fault before the disk.
    pub fn new(disk: Blk, fault: F) -> Self {
        Self {
            disk,
            fault: Arc::new(fault),
        }
    }
}

impl<F: Fault> Device for Faulty<F> {
    type Queue = FaultyQueue<F>;

    fn virtio_id(&self) -> u16 {
        self.disk.virtio_id()
    }

    fn features(&self) -> u64 {
        self.disk.features()
    }

    fn queues(&self) -> u16 {
        self.disk.queues()
    }

    fn max_queue_size(&self) -> u16 {
        self.disk.max_queue_size()
    }

    fn config(&self) -> Vec<u8> {
        self.fault.config(self.disk.config())
    }

    fn write_config(&self, offset: u32, data: &[u8]) -> io::Result<Change> {
        self.fault.write_config(&self.disk, offset, data)
    }

    fn reset(&self, features: u64) {
        self.fault.reset(&self.disk, features);
    }

    fn kept(&self) -> Kept {
        self.disk.kept()
    }

    fn restore(&self, kept: &Kept) -> Result<(), String> {
        self.disk.restore(kept)
    }

    fn queue(&self, index: u16) -> io::Result<FaultyQueue<F>> {
        Ok(FaultyQueue {
            queue: self.disk.queue(index)?,
            fault: self.fault.clone(),
            memory: Arc::default(),
            changed: HashMap::new(),
        })
    }
}

/// One queue of it.
#[derive(Debug)]
pub struct FaultyQueue<F> {
    queue: BlkQueue,
    fault: Arc<F>,
    memory: Arc<Memory>,
    /// What requests under way are to find restored, by their head.
    changed: HashMap<u16, Flipped>,
}

impl<F: Fault> Queue for FaultyQueue<F> {
    fn begin(&mut self, features: u64) -> io::Result<()> {
        self.queue.begin(self.fault.features(features))
    }

    fn map(&mut self, memory: Arc<Memory>) {
        self.queue.map(memory.clone());
        self.memory = memory;
    }

    fn take(&mut self, chain: &Chain) -> Outcome {
        let changed = match self.fault.request(&self.memory, chain) {
            Deed::Nothing => return self.queue.take(chain),
            Deed::Answered => return Outcome::Done(1),
            Deed::Changed(byte) => byte,
        };
        let outcome = self.queue.take(chain);
        match outcome {
            Outcome::Deferred => drop(self.changed.insert(chain.head, changed)),
            Outcome::Done(_) | Outcome::NotNow => changed.restore(),
        }
        outcome
    }

    fn refuse(&mut self, chain: &Chain) -> (u32, String) {
        self.queue.refuse(chain)
    }

    fn submit(&mut self) -> io::Result<()> {
        self.queue.submit()
    }

    fn ready(&self) -> Option<BorrowedFd<'_>> {
        self.queue.ready()
    }

    fn reap(&mut self, done: &mut dyn FnMut(u16, u32)) -> io::Result<()> {
        let changed = &mut self.changed;
        self.queue.reap(&mut |head, written| {
            if let Some(byte) = changed.remove(&head) {
                byte.restore();
            }
            done(head, written);
        })
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    fn end(&mut self) {
        self.queue.end();
        self.changed.clear();
    }
}

/// A block request's header (virtio 1.3, section 5.2.6): its type, and the
/// sector that it begins at.
pub fn header(memory: &Memory, chain: &Chain) -> Option<(u32, u64)> {
    let mut bytes = [0; HEADER as usize];
    for (offset, byte) in (0..).zip(&mut bytes) {
        *byte = memory.read_obj(place(&chain.readable, offset)?).ok()?;
    }
    let kind = u32::from_le_bytes(*bytes.first_chunk()?);
    let sector = u64::from_le_bytes(*bytes.last_chunk()?);
    Some((kind, sector))
}

/// Which write of the bundled guest's a request is, if it is one: its number, counted up
/// from 1 by each write to the disk, which is the third word of what it writes. So it is
/// the same however often and by whomever it is executed.
pub fn number_of_write(memory: &Memory, chain: &Chain) -> Option<u64> {
    let (VIRTIO_BLK_T_OUT, _) = header(memory, chain)? else {
        return None;
    };
    let mut words = [0; 3 * size_of::<u64>()];
    for (offset, byte) in (HEADER..).zip(&mut words) {
        *byte = memory.read_obj(place(&chain.readable, offset)?).ok()?;
    }
    let (first, last) = (words.first_chunk()?, words.last_chunk()?);
    (first == b"OUTBOARD").then_some(u64::from_le_bytes(*last))
}

/// Bytes in a block request's header.
pub const HEADER: u64 = 16;

/// Where byte `offset` of these buffers, put together, lies.
pub fn place(buffers: &[Buffer], offset: u64) -> Option<GuestAddress> {
    let mut left = offset;
    for buffer in buffers {
        match left.checked_sub(buffer.length.into()) {
            None => return buffer.address.checked_add(left),
            Some(rest) => left = rest,
        }
    }
    None
}

/// Bytes in all of these buffers.
pub fn length(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.length)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Arc<Memory> {
        Arc::new(Memory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap())
    }

    fn buffer(address: u64, length: u32) -> Buffer {
        Buffer {
            address: GuestAddress(address),
            length,
        }
    }

    #[test]
    fn a_header_is_found_in_pieces() {
        let memory = memory();
        memory.write_obj(1_u32, GuestAddress(100)).unwrap();
        memory.write_obj(77_u64, GuestAddress(204)).unwrap();
        let chain = Chain {
            readable: vec![buffer(100, 4), buffer(200, 600)],
            ..Chain::default()
        };
        assert_eq!(header(&memory, &chain), Some((1, 77)));
        assert_eq!(place(&chain.readable, 16), Some(GuestAddress(212)));
        assert_eq!(length(&chain.readable), 604);
        assert_eq!(place(&chain.readable, 604), None);
    }

    #[test]
    fn a_write_of_the_guest_s_has_a_number() {
        let memory = memory();
        memory
            .write_obj(VIRTIO_BLK_T_OUT, GuestAddress(100))
            .unwrap();
        memory.write_slice(b"OUTBOARD", GuestAddress(200)).unwrap();
        memory.write_obj(700_u64, GuestAddress(216)).unwrap();
        let chain = Chain {
            readable: vec![buffer(100, 16), buffer(200, 512)],
            ..Chain::default()
        };
        assert_eq!(number_of_write(&memory, &chain), Some(700));
        memory.write_obj(0_u32, GuestAddress(100)).unwrap();
        assert_eq!(number_of_write(&memory, &chain), None, "a read");
    }

    #[test]
    fn a_flipped_byte_is_wrong_until_it_is_restored() {
        let memory = memory();
        let flipped = Flipped::new(&memory, GuestAddress(9)).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(9)).unwrap(), 1);
        flipped.restore();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(9)).unwrap(), 0);
        assert!(Flipped::new(&memory, GuestAddress(4096)).is_none());
    }
}
