//! A descriptor chain understood as a block request (virtio 1.3, section 5.2.6).
//!
//! ```text
//! chain ──parse──► Request ──execute (crate::task)──► Reply::finish ──► used length
//!            └───► Refusal: a status at once, or no place for one
//! ```
//!
//! A request is `readable: header (16 bytes), data out` and `writable: data in,
//! status (the very last byte)`, cut into descriptors in any way. The header
//! and what follows it in a discard is copied once and never looked at again.
//! Nothing here trusts a length, an address or a sum of them.

use outboard_runtime::chain::{Buffer, Chain};
use outboard_runtime::device::Memory;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

/// Bytes in a sector, the unit of every offset and length on the wire.
pub const SECTOR: u64 = 512;
/// Bytes in a request's header.
const HEADER: u64 = 16;
/// Bytes in a segment of a discard or write-zeroes.
const SEGMENT: u64 = 16;
/// Bytes in a serial number.
pub const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Most segments in a discard or write-zeroes.
pub const MAX_SEGMENTS: u32 = 32;
/// Most sectors in a segment of a discard: 1 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Most sectors in a segment of a write-zeroes: 128 MiB, since they may have to
/// be written one by one.
pub const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 18;

/// Bounds of a discard and a write-zeroes. By default, those of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Most segments in either, at most [`MAX_SEGMENTS`].
    pub segments: u32,
    /// Most sectors in a segment of a discard.
    pub discard: u32,
    /// Most sectors in a segment of a write-zeroes.
    pub write_zeroes: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            segments: MAX_SEGMENTS,
            discard: MAX_DISCARD_SECTORS,
            write_zeroes: MAX_WRITE_ZEROES_SECTORS,
        }
    }
}

/// How a request ends (virtio 1.3, section 5.2.6, `status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// `VIRTIO_BLK_S_OK`.
    Ok = 0,
    /// `VIRTIO_BLK_S_IOERR`.
    IoErr = 1,
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported = 2,
}

/// What a request is checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size of the disk in bytes, a multiple of `block_size`.
    pub capacity: u64,
    /// Offsets and lengths are multiples of this many bytes: a power of two,
    /// at least [`SECTOR`]. Under direct I/O a smaller write would be a read, a
    /// change and a write that no lock keeps together with the writes of other
    /// queues, so it is refused; and what is refused does not follow from how
    /// the image was opened, so it is without direct I/O too.
    pub block_size: u32,
    /// Nothing may be changed.
    pub read_only: bool,
    /// Discard is offered.
    pub discard: bool,
    /// Write-zeroes is offered.
    pub write_zeroes: bool,
    /// How much either may name.
    pub bounds: Bounds,
}

/// A part of the disk, in bytes; within its capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// A segment of a write-zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where.
    pub range: Range,
    /// It may be deallocated; always so in a discard.
    pub unmap: bool,
}

/// What is asked for. All ranges are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read the range into the chain's data.
    Read(Range),
    /// Write the chain's data to the range.
    Write(Range),
    /// Make completed writes durable.
    Flush,
    /// Forget the content of the segments.
    Discard(Vec<Segment>),
    /// Make the segments zeroes.
    WriteZeroes(Vec<Segment>),
    /// Write the serial number into the chain's data: this many bytes, 20 at
    /// most.
    Identify(usize),
}

/// The place for a status, and what must be known to return the chain.
#[derive(Debug)]
pub struct Reply {
    head: u16,
    status: GuestAddress,
}

impl Reply {
    /// Finds the last writable byte of a chain.
    fn of(memory: &Memory, chain: &Chain) -> Option<Self> {
        let last = chain.writable.iter().rev().find(|last| last.length > 0)?;
        let status = last
            .address
            .checked_add(u64::from(last.length).checked_sub(1)?)?;
        let head = chain.head;
        let there = memory.address_in_range(status);
        there.then_some(Self { head, status })
    }

    /// Ends a request whose execution wrote `written` bytes of data to the
    /// guest. Returns the chain's head and its used length: the bytes that were
    /// written, with the status.
    pub fn finish(self, memory: &Memory, status: Status, written: u64) -> (u16, u32) {
        // The address was found in this memory, or in a part of it.
        let told = memory.write_obj(status as u8, self.status).is_ok();
        let used = written.saturating_add(told.into());
        (self.head, u32::try_from(used).unwrap_or(u32::MAX))
    }
}

/// A request that was not accepted.
#[derive(Debug)]
pub enum Refusal {
    /// There is no byte to write a status to: the chain comes back with used
    /// length 0 and nothing is done.
    NoStatus,
    /// This is its answer.
    Status(Reply, Status),
}

/// A request that was understood and lies within all limits. Whether its data
/// lies in guest memory is found out when it is used.
#[derive(Debug)]
pub struct Request<'a> {
    /// What to do.
    pub operation: Operation,
    /// How to answer.
    pub reply: Reply,
    chain: &'a Chain,
}

impl<'a> Request<'a> {
    /// Reads a chain.
    ///
    /// # Errors
    /// A [`Refusal`], which is the guest's answer.
    pub fn parse(memory: &Memory, chain: &'a Chain, limits: &Limits) -> Result<Self, Refusal> {
        let Some(reply) = Reply::of(memory, chain) else {
            return Err(Refusal::NoStatus);
        };
        match operation(memory, chain, limits) {
            Ok(operation) => Ok(Self {
                operation,
                reply,
                chain,
            }),
            Err(status) => Err(Refusal::Status(reply, status)),
        }
    }

    /// The buffers of the data of a read, a write or an identify, in order.
    pub fn data(&self) -> impl Iterator<Item = Buffer> + use<'a> {
        let (buffers, skip, length) = match self.operation {
            Operation::Read(range) => (&self.chain.writable, 0, range.length),
            Operation::Write(range) => (&self.chain.readable, HEADER, range.length),
            Operation::Identify(length) => (&self.chain.writable, 0, length as u64),
            _ => (&self.chain.writable, 0, 0),
        };
        part(buffers, skip, length)
    }
}

/// Ends a request with an I/O error whatever it asks for, and does nothing with it.
/// Returns the used length, and what it is, for the log.
pub fn refuse(memory: &Memory, chain: &Chain) -> (u32, String) {
    let mut header = [0; HEADER as usize];
    let what = match gather(memory, &chain.readable, 0, &mut header) {
        Ok(()) => describe(field(&header, 0), wide(&header, 8), chain),
        Err(_) => "a request without a header".into(),
    };
    let reply = Reply::of(memory, chain);
    let answer = reply.map(|reply| reply.finish(memory, Status::IoErr, 0));
    (answer.map_or(0, |(_, used)| used), what)
}

/// What a request asks for, in words: its kind, and its place in sectors of 512 bytes.
fn describe(kind: u32, sector: u64, chain: &Chain) -> String {
    let bytes = |buffers: &[Buffer]| buffers.iter().map(|buffer| u64::from(buffer.length)).sum();
    let (read, written): (u64, u64) = (bytes(&chain.writable), bytes(&chain.readable));
    match kind {
        VIRTIO_BLK_T_IN => {
            let bytes = read.saturating_sub(1);
            format!("a read of {bytes} bytes at sector {sector}")
        }
        VIRTIO_BLK_T_OUT => {
            let bytes = written.saturating_sub(HEADER);
            format!("a write of {bytes} bytes at sector {sector}")
        }
        VIRTIO_BLK_T_FLUSH => "a flush".into(),
        VIRTIO_BLK_T_GET_ID => "a question for the serial number".into(),
        VIRTIO_BLK_T_DISCARD => "a discard".into(),
        VIRTIO_BLK_T_WRITE_ZEROES => "a write of zeroes".into(),
        _ => format!("a request of type {kind} at sector {sector}"),
    }
}

/// Understands a chain that has a status byte.
fn operation(memory: &Memory, chain: &Chain, limits: &Limits) -> Result<Operation, Status> {
    let mut header = [0; HEADER as usize];
    gather(memory, &chain.readable, 0, &mut header)?;
    let kind = field(&header, 0);
    let sector = wide(&header, 8);
    let readable = total(&chain.readable).saturating_sub(HEADER);
    let writable = total(&chain.writable).saturating_sub(1);
    let changes = matches!(
        kind,
        VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
    );
    if changes && limits.read_only {
        return Err(Status::IoErr);
    }
    match kind {
        VIRTIO_BLK_T_IN => {
            only(writable, readable)?;
            range(sector, writable, limits).map(Operation::Read)
        }
        VIRTIO_BLK_T_OUT => {
            only(readable, writable)?;
            range(sector, readable, limits).map(Operation::Write)
        }
        VIRTIO_BLK_T_FLUSH => Ok(Operation::Flush),
        VIRTIO_BLK_T_DISCARD if limits.discard => {
            only(readable, writable)?;
            let rules = (0, limits.bounds.discard);
            segments(memory, &chain.readable, limits, rules).map(Operation::Discard)
        }
        VIRTIO_BLK_T_WRITE_ZEROES if limits.write_zeroes => {
            only(readable, writable)?;
            let most = limits.bounds.write_zeroes;
            let rules = (VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, most);
            segments(memory, &chain.readable, limits, rules).map(Operation::WriteZeroes)
        }
        VIRTIO_BLK_T_GET_ID => {
            only(writable, readable)?;
            Ok(Operation::Identify(writable.min(ID_BYTES as u64) as usize))
        }
        _ => Err(Status::Unsupported),
    }
}

/// Data has one direction; its length fits a used length with the status.
fn only(data: u64, wrong: u64) -> Result<(), Status> {
    if wrong > 0 || data >= u64::from(u32::MAX) {
        return Err(Status::IoErr);
    }
    Ok(())
}

/// Checks a range in every way that there is.
fn range(sector: u64, length: u64, limits: &Limits) -> Result<Range, Status> {
    let offset = sector.checked_mul(SECTOR).ok_or(Status::IoErr)?;
    let end = offset.checked_add(length).ok_or(Status::IoErr)?;
    let block = u64::from(limits.block_size).max(SECTOR);
    let whole = offset.is_multiple_of(block) && length.is_multiple_of(block);
    if end > limits.capacity || !whole {
        return Err(Status::IoErr);
    }
    Ok(Range { offset, length })
}

/// Reads the segments that follow a header; `rules` are the flags that are
/// allowed and the most sectors in each.
fn segments(
    memory: &Memory,
    readable: &[Buffer],
    limits: &Limits,
    (flags_allowed, most): (u32, u32),
) -> Result<Vec<Segment>, Status> {
    let length = total(readable).saturating_sub(HEADER);
    let count = length / SEGMENT;
    let many = count > u64::from(limits.bounds.segments);
    if count == 0 || !length.is_multiple_of(SEGMENT) || many {
        return Err(Status::IoErr);
    }
    let mut bytes = [0; SEGMENT as usize * MAX_SEGMENTS as usize];
    let bytes = bytes.get_mut(..length as usize).ok_or(Status::IoErr)?;
    gather(memory, readable, HEADER, bytes)?;
    let mut segments = Vec::with_capacity(count as usize);
    for segment in bytes.chunks_exact(SEGMENT as usize) {
        let (sectors, flags) = (field(segment, 8), field(segment, 12));
        // Section 5.2.6.2: unknown flags, and unmap in a discard.
        if flags & !flags_allowed != 0 {
            return Err(Status::Unsupported);
        }
        if sectors > most {
            return Err(Status::IoErr);
        }
        segments.push(Segment {
            range: range(
                wide(segment, 0),
                u64::from(sectors).saturating_mul(SECTOR),
                limits,
            )?,
            unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || flags_allowed == 0,
        });
    }
    Ok(segments)
}

/// The sum of lengths: no more than 2^32 for each of at most 2^16 descriptors.
fn total(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.length)).sum()
}

/// `length` bytes of the concatenated buffers, from byte `skip` on.
fn part(buffers: &[Buffer], skip: u64, length: u64) -> impl Iterator<Item = Buffer> {
    let (mut skip, mut left) = (skip, length);
    buffers.iter().filter_map(move |buffer| {
        let skipped = skip.min(buffer.length.into());
        skip = skip.saturating_sub(skipped);
        let taken = u64::from(buffer.length).saturating_sub(skipped).min(left);
        left = left.saturating_sub(taken);
        (taken > 0).then(|| Buffer {
            // An overflow ends at the last address, where nothing is mapped.
            address: GuestAddress(buffer.address.0.saturating_add(skipped)),
            length: taken as u32,
        })
    })
}

/// Copies `to.len()` bytes of the concatenated buffers, from byte `skip` on.
fn gather(memory: &Memory, buffers: &[Buffer], skip: u64, to: &mut [u8]) -> Result<(), Status> {
    let mut rest = to;
    for buffer in part(buffers, skip, rest.len() as u64) {
        let (now, later) = rest
            .split_at_mut_checked(buffer.length as usize)
            .ok_or(Status::IoErr)?;
        memory
            .read_slice(now, buffer.address)
            .map_err(|_| Status::IoErr)?;
        rest = later;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(Status::IoErr)
    }
}

/// A 32-bit field, little-endian; 0 beyond the end.
fn field(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// A 64-bit field, likewise.
fn wide(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
pub(crate) mod tests;
