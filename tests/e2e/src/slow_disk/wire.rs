//! What the kernel asks a FUSE server, and the answers (linux/fuse.h, 7.31): as much
//! of it as a file system of one file needs, whose root is that file.

use std::io::{self, ErrorKind};

/// The longest message: the longest write, and its header.
pub(super) const LONGEST: usize = MAX_WRITE as usize + 4096;
const MAX_WRITE: u32 = 1 << 20;
const VERSION: [u32; 2] = [7, 31];
/// Reads and direct I/O go on while nobody waits for them; long writes.
const FLAGS: u32 = ASYNC_READ | BIG_WRITES | ASYNC_DIO | MAX_PAGES;
const ASYNC_READ: u32 = 1 << 0;
const BIG_WRITES: u32 = 1 << 5;
const ASYNC_DIO: u32 = 1 << 15;
const MAX_PAGES: u32 = 1 << 22;
/// Requests that nobody waits for: more than a disk's queues hold.
const MAX_BACKGROUND: u16 = 4096;
/// Nothing is cached.
const FOPEN_DIRECT_IO: u32 = 1 << 0;
/// A file, that only its owner may use.
const MODE: u32 = 0o100_600;

/// A part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    /// Bytes, at most [`MAX_WRITE`].
    pub(super) length: u32,
}

impl Piece {
    /// Whether they have a byte in common.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let end = |piece: &Self| piece.offset.saturating_add(piece.length.into());
        self.offset < end(other) && other.offset < end(self)
    }
}

/// What is asked.
#[derive(Debug)]
pub(super) enum Call<'a> {
    Init,
    Attributes,
    Open,
    Read(Piece),
    Write(Piece, &'a [u8]),
    Sync,
    /// There is nothing to do.
    Nothing,
    /// The kernel tells, and waits for no answer.
    NoReply,
    /// The kernel does without.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Message<'a> {
    /// Its number, for the reply.
    pub(super) request: u64,
    pub(super) call: Call<'a>,
}

impl<'a> Message<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> io::Result<Self> {
        let body = bytes.get(40..).unwrap_or_default();
        let call = match u32_at(bytes, 4)? {
            26 => Call::Init,
            // SETATTR changes nothing: the size is fixed.
            3 | 4 => Call::Attributes,
            14 => Call::Open,
            15 => Call::Read(piece(body)?),
            16 => Call::Write(piece(body)?, body.get(40..).unwrap_or_default()),
            20 => Call::Sync,
            // RELEASE, FLUSH, DESTROY.
            18 | 25 | 38 => Call::Nothing,
            // FORGET, INTERRUPT, BATCH_FORGET.
            2 | 36 | 42 => Call::NoReply,
            _ => Call::Unknown,
        };
        Ok(Self {
            request: u64_at(bytes, 8)?,
            call,
        })
    }
}

/// Both begin alike.
fn piece(body: &[u8]) -> io::Result<Piece> {
    Ok(Piece {
        offset: u64_at(body, 8)?,
        length: u32_at(body, 16)?,
    })
}

fn u32_at(bytes: &[u8], place: usize) -> io::Result<u32> {
    let found = bytes.get(place..).and_then(<[u8]>::first_chunk);
    found.copied().map(u32::from_ne_bytes).ok_or_else(short)
}

fn u64_at(bytes: &[u8], place: usize) -> io::Result<u64> {
    let found = bytes.get(place..).and_then(<[u8]>::first_chunk);
    found.copied().map(u64::from_ne_bytes).ok_or_else(short)
}

fn short() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "a short message of the kernel's")
}

/// A reply, to be written at once.
pub(super) fn reply(request: u64, errno: i32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len().saturating_add(16)).unwrap_or(u32::MAX);
    let mut reply = Vec::with_capacity(length as usize);
    reply.extend(length.to_ne_bytes());
    reply.extend(errno.wrapping_neg().to_ne_bytes());
    reply.extend(request.to_ne_bytes());
    reply.extend(body);
    reply
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub(super) fn init() -> Vec<u8> {
    let [major, minor] = VERSION;
    let mut body = words(&[major, minor, 0, FLAGS]);
    body.extend(MAX_BACKGROUND.to_ne_bytes());
    body.extend(MAX_BACKGROUND.to_ne_bytes());
    // Nanoseconds that times are exact to.
    body.extend(words(&[MAX_WRITE, 1]));
    body.extend(((MAX_WRITE >> 12) as u16).to_ne_bytes());
    body.resize(64, 0);
    body
}

/// For ever: they do not change.
pub(super) fn attributes(size: u64) -> Vec<u8> {
    let mut body = Vec::new();
    for word in [3600, 0, 1, size, size >> 9, 0, 0, 0] {
        body.extend(word.to_ne_bytes());
    }
    body.extend(words(&[0, 0, 0, MODE, 1, 0, 0, 0, 4096, 0]));
    body
}

pub(super) fn open() -> Vec<u8> {
    words(&[0, 0, FOPEN_DIRECT_IO, 0])
}

pub(super) fn written(length: u32) -> Vec<u8> {
    words(&[length, 0])
}
