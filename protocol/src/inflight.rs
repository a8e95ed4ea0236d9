//! The inflight region: which requests a back-end has taken and not yet
//! returned, kept in memory that outlives it (vhost-user, "Inflight I/O
//! tracking", split virtqueues).
//!
//! The region is one block per queue, each a header of 16 bytes and an entry
//! of 16 bytes per descriptor, rounded up to 64 bytes as libvhost-user does.
//! The back-end makes it and works in it; the front-end keeps the descriptor
//! and hands it to a successor, which reads there what was under way.
//!
//! ```text
//! take   counter, inflight = 1            (before the device sees the chain)
//! use    next, last_batch_head  for each  (before the used index moves)
//!        used index of the ring
//!        inflight = 0           for each
//!        used_idx
//! ```
//! A process killed between any two of these steps leaves a state from which
//! [`QueueRegion::recover`] finds the same set: no request is lost and none is
//! returned twice.
//!
//! Both sides can write the region at any time, so every access is atomic and
//! every number read from it is checked.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{AtomicAccess, Bytes, MmapRegion, VolatileMemory};

use crate::shared::{self, Alarm, Guard, Place};

/// The version that a region in use carries; 0 means not initialised.
pub const VERSION: u16 = 1;
/// Largest split virtqueue (virtio 1.3, section 2.7).
pub const MAX_QUEUE_SIZE: u16 = 32768;

const ALIGNMENT: u64 = 64;
const HEADER: usize = 16;
const ENTRY: usize = 16;

// Offsets in a queue's header (QueueRegionSplit).
const FEATURES: usize = 0;
const REGION_VERSION: usize = 8;
const DESC_NUM: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;
// Offsets in an entry (DescStateSplit).
const INFLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// The shape of a region: what GET_INFLIGHT_FD asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    queues: u16,
    queue_size: u16,
}

impl Shape {
    /// A region for `queues` (at least 1) of up to `queue_size` descriptors (a
    /// power of two up to [`MAX_QUEUE_SIZE`]); `None` for anything else.
    pub fn new(queues: u16, queue_size: u16) -> Option<Self> {
        let legal = queues > 0 && queue_size.is_power_of_two() && queue_size <= MAX_QUEUE_SIZE;
        legal.then_some(Self { queues, queue_size })
    }

    /// Number of queues.
    pub fn queues(self) -> u16 {
        self.queues
    }

    /// Entries per queue.
    pub fn queue_size(self) -> u16 {
        self.queue_size
    }

    /// Bytes from one queue's block to the next.
    fn stride(self) -> u64 {
        let entries = u64::from(self.queue_size).saturating_mul(ENTRY as u64);
        entries
            .saturating_add(HEADER as u64)
            .next_multiple_of(ALIGNMENT)
    }

    /// Bytes of the whole region.
    pub fn size(self) -> u64 {
        self.stride().saturating_mul(self.queues.into())
    }
}

/// A mapped region. Its file is another process's too and may be cut: what
/// touches a part that is gone finds zeroes, and rings the region's alarm.
#[derive(Clone, Debug)]
pub struct Region {
    map: Arc<MmapRegion<Guard>>,
    file: Arc<File>,
    shape: Shape,
}

impl Region {
    /// Makes a fresh region in a memfd that nobody can resize.
    ///
    /// # Errors
    /// Those of memfd_create(2), ftruncate(2) and mmap(2).
    pub fn create(shape: Shape) -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"vhost-user-inflight", flags)?);
        file.set_len(shape.size())?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        let region = Self::map(file, 0, shape, &Arc::new(Alarm::new()?))?;
        region.initialise()?;
        Ok(region)
    }

    /// Maps a region that the front-end sent: `shape.size()` bytes of `fd` at
    /// `offset`. A region that was never initialised is initialised. `alarm`
    /// rings when a part of it is found to be gone.
    ///
    /// # Errors
    /// `InvalidInput` when it is not of a regular file or ends too early, when
    /// it cannot be mapped, or when it is of another version or shape.
    pub fn open(fd: OwnedFd, offset: u64, shape: Shape, alarm: &Arc<Alarm>) -> io::Result<Self> {
        let region = Self::map(File::from(fd), offset, shape, alarm)?;
        region.check()?;
        Ok(region)
    }

    fn map(file: File, offset: u64, shape: Shape, alarm: &Arc<Alarm>) -> io::Result<Self> {
        let map = shared::map(&file, offset, shape.size(), Place::Inflight, alarm);
        Ok(Self {
            map: Arc::new(map.map_err(|why| invalid(&why))?),
            file: Arc::new(file),
            shape,
        })
    }

    /// Forgets whatever is in flight, for a device that is reset: its driver has
    /// given those requests up. No ring may use the region meanwhile.
    ///
    /// # Errors
    /// None that a region made by this module can have.
    pub fn initialise(&self) -> io::Result<()> {
        for queue in self.queue_regions() {
            queue.initialise().map_err(io::Error::from)?;
        }
        Ok(())
    }

    fn check(&self) -> io::Result<()> {
        for queue in self.queue_regions() {
            let version: u16 = queue.load(REGION_VERSION)?;
            let desc_num: u16 = queue.load(DESC_NUM)?;
            let features: u64 = queue.load(FEATURES)?;
            match version {
                0 => queue.initialise()?,
                VERSION if desc_num == self.shape.queue_size && features == 0 => {}
                VERSION => return Err(invalid("its queue size or its features are not ours")),
                _ => return Err(invalid("its version is unknown")),
            }
        }
        Ok(())
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The file, to send to the front-end. Of one that was
    /// [made](Self::create), the region is all that is in it.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The block of one queue, if the region has it.
    pub fn queue(&self, index: u16) -> Option<QueueRegion> {
        let base = self.shape.stride().checked_mul(index.into())?;
        (index < self.shape.queues).then_some(QueueRegion {
            map: self.map.clone(),
            base: usize::try_from(base).ok()?,
            size: self.shape.queue_size,
        })
    }

    fn queue_regions(&self) -> impl Iterator<Item = QueueRegion> {
        (0..self.shape.queues).filter_map(|index| self.queue(index))
    }
}

/// Why a region cannot be worked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corrupt {
    /// An index points beyond the queue.
    Index,
    /// The last batch is longer than the queue, or its list is broken.
    Batch,
}

impl From<Corrupt> for io::Error {
    fn from(corrupt: Corrupt) -> Self {
        invalid(match corrupt {
            Corrupt::Index => "the inflight region names a descriptor beyond the queue",
            Corrupt::Batch => "the inflight region's last batch is not a list of its length",
        })
    }
}

/// What a predecessor left in a queue's block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The heads to be taken again, and the counters of their taking, in that order.
    pub requests: Vec<(u16, u64)>,
    /// The first value of the global counter that was never given.
    pub counter: u64,
}

impl Recovered {
    /// The heads alone, in their order.
    pub fn heads(&self) -> Vec<u16> {
        self.requests.iter().map(|(head, _)| *head).collect()
    }
}

/// The block of one queue.
#[derive(Clone, Debug)]
pub struct QueueRegion {
    map: Arc<MmapRegion<Guard>>,
    base: usize,
    size: u16,
}

impl QueueRegion {
    /// Entries in this block: at least the size of the ring it tracks.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Notes that `head` was taken, as the `counter`-th of the queue's life.
    ///
    /// # Errors
    /// [`Corrupt::Index`] when `head` is beyond the queue.
    pub fn take(&self, head: u16, counter: u64) -> Result<(), Corrupt> {
        self.store(self.field(head, COUNTER)?, counter)?;
        self.store(self.field(head, INFLIGHT)?, 1u8)
    }

    /// Undoes a taking: the head stays in the available ring.
    ///
    /// # Errors
    /// [`Corrupt::Index`] when `head` is beyond the queue.
    pub fn put_back(&self, head: u16) -> Result<(), Corrupt> {
        self.store(self.field(head, INFLIGHT)?, 0u8)
    }

    /// Adds `head` to the batch that is about to be returned; call it before
    /// the used index moves.
    ///
    /// # Errors
    /// [`Corrupt::Index`] when `head` is beyond the queue.
    pub fn batch(&self, head: u16) -> Result<(), Corrupt> {
        let last: u16 = self.load(LAST_BATCH_HEAD)?;
        self.store(self.field(head, NEXT)?, last)?;
        self.store(LAST_BATCH_HEAD, head)
    }

    /// Ends the batch `heads`; call it after the used index has moved to
    /// `used_idx`.
    ///
    /// # Errors
    /// [`Corrupt::Index`] when a head is beyond the queue.
    pub fn commit(&self, heads: impl Iterator<Item = u16>, used_idx: u16) -> Result<(), Corrupt> {
        for head in heads {
            self.put_back(head)?;
        }
        self.store(USED_IDX, used_idx)
    }

    /// Finds what a predecessor had under way on a ring of `ring_size` whose
    /// used index is `used_idx`, and leaves the block ready to go on: the last
    /// batch, if the predecessor died in the middle of it, is ended.
    ///
    /// # Errors
    /// [`Corrupt`] when the content cannot come from the rules above.
    pub fn recover(&self, used_idx: u16, ring_size: u16) -> Result<Recovered, Corrupt> {
        if ring_size > self.size {
            return Err(Corrupt::Index);
        }
        // With nothing in flight there is nothing that a batch could clear; a
        // fresh region, whose used index was never stored, is such a case.
        let mut found = self.in_flight()?;
        if !found.is_empty() {
            self.end_last_batch(used_idx)?;
            found = self.in_flight()?;
        }
        self.store(USED_IDX, used_idx)?;
        if found.iter().any(|(_, head)| *head >= ring_size) {
            return Err(Corrupt::Index);
        }
        found.sort_unstable();
        Ok(Recovered {
            counter: self.last_counter()?.wrapping_add(1),
            requests: found.into_iter().map(|(at, head)| (head, at)).collect(),
        })
    }

    /// The counter that was given last, if any was: also to a request that has been
    /// returned since, so that head and counter are never those of two requests.
    fn last_counter(&self) -> Result<u64, Corrupt> {
        (0..self.size).try_fold(0, |last, head| {
            Ok(self.load::<u64>(self.field(head, COUNTER)?)?.max(last))
        })
    }

    /// The counters and heads of all entries in flight.
    fn in_flight(&self) -> Result<Vec<(u64, u16)>, Corrupt> {
        let mut found = Vec::new();
        for head in 0..self.size {
            if self.load::<u8>(self.field(head, INFLIGHT)?)? != 0 {
                found.push((self.load(self.field(head, COUNTER)?)?, head));
            }
        }
        Ok(found)
    }

    fn end_last_batch(&self, used_idx: u16) -> Result<(), Corrupt> {
        let stored: u16 = self.load(USED_IDX)?;
        let length = used_idx.wrapping_sub(stored);
        if length > self.size {
            return Err(Corrupt::Batch);
        }
        let mut head: u16 = self.load(LAST_BATCH_HEAD)?;
        for _ in 0..length {
            let in_flight = self.field(head, INFLIGHT);
            self.store(in_flight.map_err(|_| Corrupt::Batch)?, 0u8)?;
            head = self.load(self.field(head, NEXT)?)?;
        }
        Ok(())
    }

    fn initialise(&self) -> Result<(), Corrupt> {
        for head in 0..self.size {
            self.put_back(head)?;
        }
        self.store(FEATURES, 0u64)?;
        self.store(DESC_NUM, self.size)?;
        self.store(LAST_BATCH_HEAD, 0u16)?;
        self.store(USED_IDX, 0u16)?;
        self.store(REGION_VERSION, VERSION)
    }

    /// Where a field of an entry is, from the block's beginning on.
    fn field(&self, head: u16, field: usize) -> Result<usize, Corrupt> {
        if head >= self.size {
            return Err(Corrupt::Index);
        }
        let entry = usize::from(head).saturating_mul(ENTRY);
        Ok(entry.saturating_add(HEADER).saturating_add(field))
    }

    // Only the order in which this process stores matters, since the successor
    // reads after it has died; Release keeps the compiler to it.
    fn store<T: AtomicAccess>(&self, offset: usize, value: T) -> Result<(), Corrupt> {
        let slice = self.map.as_volatile_slice();
        slice
            .store(value, self.base.saturating_add(offset), Ordering::Release)
            .map_err(|_| Corrupt::Index)
    }

    fn load<T: AtomicAccess>(&self, offset: usize) -> Result<T, Corrupt> {
        let slice = self.map.as_volatile_slice();
        slice
            .load(self.base.saturating_add(offset), Ordering::Acquire)
            .map_err(|_| Corrupt::Index)
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("the inflight region is refused: {what}"),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::shared::Lost;

    fn shape() -> Shape {
        Shape::new(2, 8).unwrap()
    }

    /// Offset of the second queue's block: 16 + 8 * 16 = 144, rounded up to 64.
    const SECOND: u64 = 192;

    fn file_of(region: &Region) -> File {
        File::from(region.file().try_clone_to_owned().unwrap())
    }

    fn bytes<const N: usize>(file: &File, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn successor(file: &File) -> QueueRegion {
        let fd = file.try_clone().unwrap().into();
        let alarm = Arc::new(Alarm::new().unwrap());
        let region = Region::open(fd, 0, shape(), &alarm);
        region.unwrap().queue(1).unwrap()
    }

    #[test]
    fn the_layout_is_that_of_the_specification_byte_for_byte() {
        assert_eq!(shape().size(), 2 * SECOND);
        assert_eq!((shape().queues(), shape().queue_size()), (2, 8));
        let region = Region::create(shape()).unwrap();
        assert_eq!(region.shape(), shape());
        assert!(region.queue(2).is_none());
        assert_eq!(region.queue(1).unwrap().size(), 8);
        let file = file_of(&region);
        let queue = region.queue(1).unwrap();
        queue.take(5, 0x0102_0304_0506_0708).unwrap();
        queue.take(3, 9).unwrap();
        queue.batch(5).unwrap();
        queue.batch(3).unwrap();
        queue.commit([5].into_iter(), 0x1122).unwrap();
        // features, version, desc_num, last_batch_head, used_idx
        assert_eq!(
            bytes(&file, SECOND),
            [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 3, 0, 0x22, 0x11]
        );
        // inflight, padding, next, counter
        let fifth = [0, 0, 0, 0, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1];
        assert_eq!(bytes(&file, SECOND + 16 + 5 * 16), fifth);
        let third = [1, 0, 0, 0, 0, 0, 5, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(bytes(&file, SECOND + 16 + 3 * 16), third);
        // The first queue's block is untouched but for its header.
        assert_eq!(
            bytes(&file, 0),
            [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 0, 0, 0, 0]
        );
        assert_eq!(bytes(&file, 16), [0; 144 - 16]);
    }

    #[test]
    fn a_successor_takes_what_was_in_flight_in_its_order() {
        let file = file_of(&Region::create(shape()).unwrap());
        let queue = successor(&file);
        for (head, counter) in [(6, 10), (1, 11), (4, 12)] {
            queue.take(head, counter).unwrap();
        }
        queue.batch(1).unwrap();
        queue.commit([1].into_iter(), 1).unwrap();
        let recovered = successor(&file).recover(1, 8).unwrap();
        assert_eq!(recovered.heads(), [6, 4]);
        assert_eq!(recovered.counter, 13);
    }

    /// Also of a request that has been returned: who asks for both knows it for ever.
    #[test]
    fn no_counter_is_given_twice() {
        let file = file_of(&Region::create(shape()).unwrap());
        let recover = |used| successor(&file).recover(used, 8).unwrap();
        assert_eq!(recover(0).counter, 1);
        let queue = successor(&file);
        queue.take(6, 1).unwrap();
        queue.take(1, 2).unwrap();
        queue.batch(1).unwrap();
        queue.commit([1].into_iter(), 1).unwrap();
        assert_eq!((recover(1).requests, recover(1).counter), (vec![(6, 1)], 3));
        queue.batch(6).unwrap();
        queue.commit([6].into_iter(), 2).unwrap();
        assert_eq!((recover(2).requests, recover(2).counter), (vec![], 3));
    }

    /// Every point at which the predecessor can die while it returns a batch
    /// of two: the successor finds both or neither, as the used index says.
    #[test]
    fn a_batch_cut_anywhere_is_neither_lost_nor_returned_twice() {
        for cut in 0..=5 {
            let file = file_of(&Region::create(shape()).unwrap());
            let queue = successor(&file);
            for head in [0, 2, 7] {
                queue.take(head, head.into()).unwrap();
            }
            let mut used = 0;
            if cut > 0 {
                queue.batch(0).unwrap();
            }
            if cut > 1 {
                queue.batch(7).unwrap();
            }
            if cut > 2 {
                used = 2;
            }
            if cut > 3 {
                queue.put_back(0).unwrap();
            }
            if cut > 4 {
                queue.commit([0, 7].into_iter(), used).unwrap();
            }
            let heads = successor(&file).recover(used, 8).unwrap().heads();
            let expected: &[u16] = if used == 0 { &[0, 2, 7] } else { &[2] };
            assert_eq!(heads, expected, "cut {cut}");
            // And a successor of the successor finds the same.
            assert_eq!(successor(&file).recover(used, 8).unwrap().heads(), expected);
        }
    }

    /// A block whose memory ends at `end`: whatever is to be stored from there
    /// on is not, as if the process had been killed just before.
    fn cut_at(end: usize) -> QueueRegion {
        QueueRegion {
            map: Arc::new(MmapRegion::new(end).unwrap()),
            base: 0,
            size: 8,
        }
    }

    #[test]
    fn an_entry_is_not_in_flight_before_its_counter_is_stored() {
        let entry = HEADER + ENTRY * 5;
        let queue = cut_at(entry + COUNTER);
        assert_eq!(queue.take(5, 7), Err(Corrupt::Index));
        assert_eq!(queue.load(entry + INFLIGHT), Ok(0u8));
    }

    #[test]
    fn a_batch_does_not_begin_with_an_entry_that_names_no_next() {
        let queue = cut_at(HEADER + ENTRY * 5 + NEXT);
        queue.batch(3).unwrap();
        assert_eq!(queue.batch(5), Err(Corrupt::Index));
        assert_eq!(queue.load(LAST_BATCH_HEAD), Ok(3u16));
    }

    #[test]
    fn a_batch_has_not_ended_while_an_entry_of_it_is_in_flight() {
        let queue = cut_at(HEADER + ENTRY * 5);
        let batch = [4, 5].into_iter();
        assert_eq!(queue.commit(batch, 9), Err(Corrupt::Index));
        assert_eq!(queue.load(USED_IDX), Ok(0u16));
    }

    #[test]
    fn a_block_has_no_version_before_it_is_empty() {
        let queue = cut_at(HEADER + ENTRY * 7);
        assert_eq!(queue.initialise(), Err(Corrupt::Index));
        assert_eq!(queue.load(REGION_VERSION), Ok(0u16));
    }

    #[test]
    fn a_fresh_region_serves_a_ring_that_has_long_been_used() {
        let file = file_of(&Region::create(shape()).unwrap());
        let queue = successor(&file);
        assert!(queue.recover(40_000, 8).unwrap().heads().is_empty());
        queue.take(2, 0).unwrap();
        assert_eq!(successor(&file).recover(40_000, 8).unwrap().heads(), [2]);
    }

    #[test]
    fn a_batch_of_the_whole_queue_is_a_batch() {
        let file = file_of(&Region::create(shape()).unwrap());
        let queue = successor(&file);
        for head in 0..8 {
            queue.take(head, head.into()).unwrap();
            queue.batch(head).unwrap();
        }
        assert!(successor(&file).recover(8, 8).unwrap().heads().is_empty());
    }

    #[test]
    fn a_region_of_zeroes_and_one_that_is_initialised_again_are_as_new() {
        let new = file_of(&Region::create(shape()).unwrap());
        let new: [u8; 2 * SECOND as usize] = bytes(&new, 0);
        let region = Region::create(shape()).unwrap();
        let file = file_of(&region);
        file.write_all_at(&[0; 2 * SECOND as usize], 0).unwrap();
        successor(&file);
        assert_eq!(bytes(&file, 0), new, "opened by a successor");

        for queue in [0, SECOND] {
            file.write_all_at(&[0xff; 16], queue).unwrap();
            for entry in 1..=8 {
                file.write_all_at(&[1], queue + 16 * entry).unwrap();
            }
        }
        region.initialise().unwrap();
        assert_eq!(bytes(&file, 0), new, "initialised again");
    }

    #[test]
    fn content_that_no_back_end_wrote_is_refused() {
        let damaged = |damage: &dyn Fn(&File)| {
            let file = file_of(&Region::create(shape()).unwrap());
            successor(&file).take(2, 0).unwrap();
            damage(&file);
            successor(&file).recover(3, 8)
        };
        // A batch longer than the queue, or going back in time.
        let used_idx = |value: u16| {
            move |file: &File| {
                let bytes = value.to_le_bytes();
                file.write_all_at(&bytes, SECOND + 14).unwrap();
            }
        };
        assert_eq!(damaged(&used_idx(50_000)), Err(Corrupt::Batch));
        assert_eq!(damaged(&used_idx(4)), Err(Corrupt::Batch));
        // A list that leaves the queue.
        let list = |file: &File| file.write_all_at(&[8, 0], SECOND + 12).unwrap();
        assert_eq!(damaged(&list), Err(Corrupt::Batch));
        // A head that the queue has and the ring has not.
        let file = file_of(&Region::create(shape()).unwrap());
        successor(&file).take(4, 0).unwrap();
        assert_eq!(successor(&file).recover(0, 4), Err(Corrupt::Index));
        assert_eq!(successor(&file).recover(0, 16), Err(Corrupt::Index));
    }

    #[test]
    fn a_file_that_is_small_or_of_another_kind_is_refused() {
        let alarm = Arc::new(Alarm::new().unwrap());
        let open = |file: &File, offset, shape| {
            Region::open(file.try_clone().unwrap().into(), offset, shape, &alarm).map(drop)
        };
        let good = file_of(&Region::create(shape()).unwrap());
        assert!(open(&good, 0, shape()).is_ok());
        assert!(open(&good, 64, shape()).is_err());
        assert!(open(&good, u64::MAX - 8, shape()).is_err());
        assert!(open(&good, 0, Shape::new(3, 8).unwrap()).is_err());
        // The same bytes read as another queue size.
        let other = open(&good, 0, Shape::new(1, 16).unwrap()).unwrap_err();
        assert!(other.to_string().contains("queue size"), "{other}");
        good.write_all_at(&[2], SECOND + 8).unwrap();
        assert!(open(&good, 0, shape()).is_err());
        assert!(open(&File::open("/dev/zero").unwrap(), 0, shape()).is_err());
    }

    /// As DPDK makes it, and anybody whose kernel has no memfd: a seal would be
    /// no proof, and a file without one is no fault.
    #[test]
    fn a_file_that_is_not_sealed_is_taken_and_may_be_cut() {
        let file = File::from(memfd_create(c"unsealed", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(shape().size()).unwrap();
        let alarm = Arc::new(Alarm::new().unwrap());
        let region = Region::open(file.try_clone().unwrap().into(), 0, shape(), &alarm).unwrap();
        let queue = region.queue(1).unwrap();
        queue.take(3, 7).unwrap();
        assert_eq!(alarm.lost(), None);
        file.set_len(0).unwrap();
        queue.take(4, 8).unwrap();
        assert_eq!(alarm.lost(), Some(Lost::Inflight));
    }

    #[test]
    fn only_shapes_of_real_queues_exist() {
        assert!(Shape::new(0, 8).is_none());
        for size in [0, 3, 32769, 65535] {
            assert!(Shape::new(1, size).is_none(), "{size}");
        }
        assert!(Shape::new(u16::MAX, MAX_QUEUE_SIZE).is_some());
    }
}
