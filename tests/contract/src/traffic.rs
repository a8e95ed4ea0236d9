//! What a test asks of a device's queues, and whether it was done.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Result, ensure};
use vm_memory::{Bytes, GuestAddress};

use crate::memory::Memory;
use crate::model::Daemon;
use crate::ring::Buffer;

/// Requests of a queue that may be on their way at a time; each has a page of
/// guest memory.
pub const WINDOW: u64 = 8;
const PAGE: u64 = 4096;

/// Requests of a device, queue by queue, each with a number that counts from 0.
pub trait Traffic {
    /// Number of queues that have requests.
    fn queues(&self) -> u16;
    /// Feature bits that the driver must acknowledge for them.
    fn needs(&self) -> u64;
    /// Prepares a request in the page at `page`; returns its buffers.
    ///
    /// # Errors
    /// Those of the other side of the device.
    fn prepare(
        &mut self,
        memory: &Memory,
        page: u64,
        queue: u16,
        number: u64,
    ) -> Result<Vec<Buffer>>;
    /// Checks a request that came back with `length` bytes written.
    ///
    /// # Errors
    /// It was not done, or done wrong.
    fn check(
        &mut self,
        memory: &Memory,
        page: u64,
        queue: u16,
        number: u64,
        length: u32,
    ) -> Result<()>;
    /// Whose daemon serves it.
    fn daemon(&self) -> Daemon {
        Daemon::Ours
    }
    /// The requests of `queue` that have not come back never will.
    fn forget(&mut self, queue: u16);
}

/// Where request `number` of a queue has its page, from `base`.
pub fn page(base: u64, queue: u16, number: u64) -> u64 {
    base + (u64::from(queue) * WINDOW + number % WINDOW) * PAGE
}

fn put(memory: &Memory, at: u64, bytes: &[u8]) -> Result<()> {
    Ok(memory.guest.write_slice(bytes, GuestAddress(at))?)
}

fn get(memory: &Memory, at: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    memory.guest.read_slice(&mut bytes, GuestAddress(at))?;
    Ok(bytes)
}

/// Bytes that only this request has.
fn pattern(queue: u16, number: u64, length: usize) -> Vec<u8> {
    let start = number.wrapping_mul(7).wrapping_add(u64::from(queue) * 31);
    (0..length)
        .map(|at| (start as usize + at * 3) as u8)
        .collect()
}

/// A disk that is written and read back, sector by sector.
#[derive(Clone, Debug)]
pub struct Disk {
    queues: u16,
    /// What was written, by sector: queue and number of the request.
    written: BTreeMap<u64, (u16, u64)>,
}

/// Bytes that a [`Disk`] must have.
pub const DISK: usize = 1 << 20;
const SECTOR: usize = 512;

impl Disk {
    /// A disk with so many queues.
    pub fn new(queues: u16) -> Self {
        Self {
            queues,
            written: BTreeMap::new(),
        }
    }

    /// Whether request `number` writes: each sector is written, then read.
    fn writes(number: u64) -> bool {
        (number / WINDOW).is_multiple_of(2)
    }

    fn sector(queue: u16, number: u64) -> u64 {
        u64::from(queue) * WINDOW + number % WINDOW
    }

    /// What request `number` is to find on the disk.
    fn content(&self, queue: u16, number: u64) -> Vec<u8> {
        match self.written.get(&Self::sector(queue, number)) {
            Some((queue, number)) => pattern(*queue, *number, SECTOR),
            None => vec![0; SECTOR],
        }
    }
}

impl Traffic for Disk {
    fn queues(&self) -> u16 {
        self.queues
    }

    fn needs(&self) -> u64 {
        0
    }

    /// Header at 0, status at 16, data from 512 on.
    fn prepare(
        &mut self,
        memory: &Memory,
        page: u64,
        queue: u16,
        number: u64,
    ) -> Result<Vec<Buffer>> {
        let writes = Self::writes(number);
        let sector = Self::sector(queue, number);
        let mut header = [0; 17];
        header[0] = u8::from(writes);
        header[8..16].copy_from_slice(&sector.to_le_bytes());
        header[16] = 0xee;
        put(memory, page, &header)?;
        let data = if writes {
            pattern(queue, number, SECTOR)
        } else {
            vec![0xaa; SECTOR]
        };
        put(memory, page + 512, &data)?;
        let half = SECTOR as u32 / 2;
        let parts = [page + 512, page + 512 + u64::from(half)];
        let data = parts.map(|at| match writes {
            true => Buffer::readable(at, half),
            false => Buffer::writable(at, half),
        });
        Ok(vec![
            Buffer::readable(page, 16),
            data[0],
            data[1],
            Buffer::writable(page + 16, 1),
        ])
    }

    fn check(
        &mut self,
        memory: &Memory,
        page: u64,
        queue: u16,
        number: u64,
        length: u32,
    ) -> Result<()> {
        let status = get(memory, page + 16, 1)?;
        ensure!(status == [0], "status {status:?}");
        if Self::writes(number) {
            ensure!(length == 1, "{length} bytes written");
            let sector = Self::sector(queue, number);
            self.written.insert(sector, (queue, number));
        } else {
            ensure!(length == SECTOR as u32 + 1, "{length} bytes written");
            let data = get(memory, page + 512, SECTOR)?;
            ensure!(data == self.content(queue, number), "other data");
        }
        Ok(())
    }

    fn forget(&mut self, _queue: u16) {}
}

/// A network card and its peer: receive queue, transmit queue, control queue.
#[derive(Debug)]
pub struct Card {
    peer: UnixStream,
    /// Frames given to the card and not received yet.
    waiting: VecDeque<u64>,
    /// Receive buffers that wait for one.
    posted: usize,
}

const HEADER: u32 = 12;
const FRAME: usize = 60;
const CTRL_VQ: u64 = 1 << 17;
const CTRL_RX: u64 = 1 << 18;

impl Card {
    /// A card by what is behind it.
    pub fn new(peer: UnixStream) -> Self {
        Self {
            peer,
            waiting: VecDeque::new(),
            posted: 0,
        }
    }

    fn frame(queue: u16, number: u64) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend(pattern(queue, number, FRAME - 6));
        frame
    }
}

impl Traffic for Card {
    fn queues(&self) -> u16 {
        3
    }

    fn needs(&self) -> u64 {
        CTRL_VQ | CTRL_RX
    }

    fn prepare(
        &mut self,
        memory: &Memory,
        page: u64,
        queue: u16,
        number: u64,
    ) -> Result<Vec<Buffer>> {
        let whole = HEADER + FRAME as u32;
        Ok(match queue {
            0 => {
                put(memory, page, &vec![0xaa; whole as usize])?;
                self.posted += 1;
                // One that was meant for a forgotten buffer may wait still.
                if self.waiting.len() < self.posted {
                    let frame = Self::frame(0, number);
                    let length = u32::try_from(frame.len())?.to_be_bytes();
                    self.peer.write_all(&[&length[..], &frame].concat())?;
                    self.waiting.push_back(number);
                }
                vec![Buffer::writable(page, whole)]
            }
            1 => {
                put(memory, page, &[0; HEADER as usize])?;
                put(memory, page + u64::from(HEADER), &Self::frame(1, number))?;
                vec![
                    Buffer::readable(page, HEADER),
                    Buffer::readable(page + u64::from(HEADER), FRAME as u32),
                ]
            }
            // Promiscuous mode, on or off.
            _ => {
                put(memory, page, &[0, 0, (number % 2) as u8, 0xee])?;
                vec![Buffer::readable(page, 3), Buffer::writable(page + 3, 1)]
            }
        })
    }

    fn check(
        &mut self,
        memory: &Memory,
        page: u64,
        queue: u16,
        number: u64,
        length: u32,
    ) -> Result<()> {
        match queue {
            0 => {
                self.posted -= 1;
                let expected = self
                    .waiting
                    .pop_front()
                    .map(|number| Self::frame(0, number));
                let found = get(memory, page + u64::from(HEADER), FRAME)?;
                ensure!(expected == Some(found), "another frame");
                ensure!(length == HEADER + FRAME as u32, "{length} bytes written");
            }
            1 => {
                let mut bytes = [0; 4 + FRAME];
                self.peer.read_exact(&mut bytes)?;
                ensure!(bytes[..4] == (FRAME as u32).to_be_bytes(), "another length");
                ensure!(bytes[4..] == Self::frame(1, number), "another frame");
                ensure!(length == 0, "{length} bytes written");
            }
            _ => {
                ensure!(get(memory, page + 3, 1)? == [0], "the command failed");
                ensure!(length == 1, "{length} bytes written");
            }
        }
        Ok(())
    }

    fn forget(&mut self, queue: u16) {
        if queue == 0 {
            self.posted = 0;
        }
    }
}

/// A source of entropy.
#[derive(Clone, Copy, Debug)]
pub struct Entropy;

impl Traffic for Entropy {
    fn daemon(&self) -> Daemon {
        Daemon::Stock
    }

    fn queues(&self) -> u16 {
        1
    }

    fn needs(&self) -> u64 {
        0
    }

    fn prepare(&mut self, memory: &Memory, page: u64, _: u16, _: u64) -> Result<Vec<Buffer>> {
        put(memory, page, &[0; 64])?;
        Ok(vec![Buffer::writable(page, 64)])
    }

    fn check(&mut self, memory: &Memory, page: u64, _: u16, _: u64, length: u32) -> Result<()> {
        ensure!((1..=64).contains(&length), "{length} bytes written");
        let bytes = get(memory, page, length as usize)?;
        ensure!(
            length < 16 || bytes.iter().any(|byte| *byte != 0),
            "only zeroes"
        );
        Ok(())
    }

    fn forget(&mut self, _queue: u16) {}
}
