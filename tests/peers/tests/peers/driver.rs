//! The `virtio-driver` crate as the driver of outboard-blk: a front-end and a
//! driver in one process, without a VM. It describes memory by ADD_MEM_REG
//! alone, so it needs CONFIGURE_MEM_SLOTS.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use memmap2::MmapMut;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_e2e::PATIENCE;
use outboard_e2e::image::Image;
use outboard_e2e::products::Products;
use outboard_peers::program::{self, Program};
use outboard_peers::table::Outcome;
use virtio_driver::{
    VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};

use crate::{Cell, FRONT_ENDS};

const PEER: &str = "virtio-driver 0.6.1, outboard-blk";
const SIZE: u64 = 16 << 20;
const BLOCK: usize = 64 << 10;

pub fn cells() -> Vec<Cell> {
    let tried: [(_, fn() -> _); 6] = [
        ("data compared", || data(1)),
        ("4 queues", || data(4)),
        ("flush", flush),
        ("discard", discard),
        ("write zeroes", write_zeroes),
        ("packed rings are not offered", packed),
    ];
    let cell = |(tried, run): (&'static str, fn() -> Result<Outcome>)| Cell {
        table: FRONT_ENDS,
        peer: PEER.into(),
        tried,
        needs: &[],
        run: Box::new(run),
    };
    tried.map(cell).into()
}

/// An outboard-blk that listens, with its image.
struct Disk {
    image: Image,
    socket: PathBuf,
    program: Program,
}

impl Disk {
    fn start(queues: u16) -> Result<Self> {
        let image = Image::new(SIZE)?;
        let socket = image.directory().join("blk.sock");
        let mut command = Command::new(Products::get()?.program("outboard-blk"));
        command
            .arg(format!("--socket-path={}", socket.display()))
            .arg(format!("--blk-file={}", image.path().display()))
            .arg(format!("--num-queues={queues}"));
        let program = program::serving(&mut command, &socket)?;
        Ok(Self {
            image,
            socket,
            program,
        })
    }

    fn driver(&self, queues: usize, features: VirtioFeatureFlags) -> Result<Driver> {
        Driver::connect(&self.socket, queues, features)
    }

    /// It has nothing to complain of, and ends in peace.
    fn end(self) -> Result<()> {
        let said = program::end(self.program)?;
        ensure!(said.is_empty(), "it said:\n{said}");
        Ok(())
    }
}

/// The crate's queues, and memory that the device sees. The queues go first:
/// they point into the transport's memory.
struct Driver {
    queues: Vec<VirtioBlkQueue<'static, usize>>,
    transport: Box<VirtioBlkTransport>,
    memory: MmapMut,
}

impl Driver {
    fn connect(socket: &Path, queues: usize, features: VirtioFeatureFlags) -> Result<Self> {
        let wanted = VirtioBlkFeatureFlags::MQ
            | VirtioBlkFeatureFlags::FLUSH
            | VirtioBlkFeatureFlags::DISCARD
            | VirtioBlkFeatureFlags::WRITE_ZEROES;
        let path = socket.to_str().context("a path in UTF-8")?;
        let features = features | VirtioFeatureFlags::VERSION_1;
        let transport = VhostUser::new(path, wanted.bits() | features.bits())?;
        let mut transport: Box<VirtioBlkTransport> = Box::new(transport);
        let has = transport.get_features();
        ensure!(has & wanted.bits() == wanted.bits(), "features {has:#x}");
        let mut queues = VirtioBlkQueue::setup_queues(&mut *transport, queues, 1024)?;
        // With EVENT_IDX it asks for no call at all before.
        for queue in &mut queues {
            queue.set_used_notif_enabled(true);
        }

        let file = File::from(nix::sys::memfd::memfd_create(
            c"guest",
            nix::sys::memfd::MFdFlags::MFD_CLOEXEC,
        )?);
        file.set_len(SIZE)?;
        // SAFETY: the file is this function's own and is never truncated; the device writes into a buffer only while a
        // request of this test names it, and the test looks at it only after the request's completion.
        let memory = unsafe { MmapMut::map_mut(&file) }?;
        transport.map_mem_region(memory.as_ptr() as usize, memory.len(), file.as_raw_fd(), 0)?;
        Ok(Self {
            queues,
            transport,
            memory,
        })
    }

    /// Rings queue `queue` and waits for `count` completions, all good.
    fn complete(&mut self, queue: usize, mut count: usize) -> Result<()> {
        self.transport.get_submission_notifier(queue).notify()?;
        let call = self.transport.get_completion_fd(queue);
        loop {
            for completion in self.queues[queue].completions() {
                ensure!(
                    completion.ret == 0,
                    "request {}: {}",
                    completion.context,
                    completion.ret
                );
                count = count.checked_sub(1).context("a completion too many")?;
            }
            if count == 0 {
                return Ok(());
            }
            let timeout = PollTimeout::try_from(PATIENCE)?;
            if poll(&mut [PollFd::new(call.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
                bail!("{count} requests were not completed");
            }
            call.read()?;
        }
    }

    /// Writes or reads the whole disk, block by block, on every queue in turn.
    fn transfer(&mut self, write: bool) -> Result<()> {
        let queues = self.queues.len();
        for queue in 0..queues {
            let mut count = 0;
            for (block, bytes) in self.memory.chunks_mut(BLOCK).enumerate() {
                if block % queues != queue {
                    continue;
                }
                let place = (block * BLOCK) as u64;
                match write {
                    true => self.queues[queue].write(place, bytes, block)?,
                    false => self.queues[queue].read(place, bytes, block)?,
                }
                count += 1;
            }
            self.complete(queue, count)?;
        }
        Ok(())
    }

    /// Fills memory with what no other block holds.
    fn fill(&mut self, seed: u8) {
        for (at, byte) in self.memory.iter_mut().enumerate() {
            *byte = ((at >> 9) as u8) ^ ((at >> 17) as u8) ^ (at as u8).wrapping_mul(seed) ^ seed;
        }
    }

    fn holds(&self, image: &Image) -> Result<bool> {
        Ok(std::fs::read(image.path())? == self.memory[..])
    }
}

fn data(queues: usize) -> Result<Outcome> {
    let disk = Disk::start(queues as u16)?;
    let mut driver = disk.driver(queues, VirtioFeatureFlags::RING_EVENT_IDX)?;
    for seed in [3, 7] {
        driver.fill(seed);
        driver.transfer(true)?;
        driver.queues[0].flush(0)?;
        driver.complete(0, 1)?;
        ensure!(
            driver.holds(&disk.image)?,
            "the image is not what was written"
        );
        driver.memory.fill(0xee);
        driver.transfer(false)?;
        ensure!(driver.holds(&disk.image)?, "what was read is not the image");
    }
    drop(driver);
    disk.end()?;
    Ok(Outcome::Passed)
}

/// What can be seen of a flush without cutting the power: its answer, in any
/// place among writes.
fn flush() -> Result<Outcome> {
    let disk = Disk::start(1)?;
    let mut driver = disk.driver(1, VirtioFeatureFlags::empty())?;
    driver.fill(11);
    let mut count = 0;
    for (block, bytes) in driver.memory.chunks_mut(BLOCK).take(16).enumerate() {
        driver.queues[0].write((block * BLOCK) as u64, bytes, block)?;
        driver.queues[0].flush(block)?;
        count += 2;
    }
    driver.complete(0, count)?;
    let found = std::fs::read(disk.image.path())?;
    ensure!(
        found[..16 * BLOCK] == driver.memory[..16 * BLOCK],
        "not what was written"
    );
    drop(driver);
    disk.end()?;
    Ok(Outcome::Passed)
}

/// A written disk of which the middle is done away with by `request`: blocks
/// of the image's file before and after, and the middle reads as zeroes.
fn without_the_middle(
    request: impl FnOnce(&mut VirtioBlkQueue<'static, usize>, u64, u64) -> std::io::Result<()>,
) -> Result<(u64, u64)> {
    let disk = Disk::start(1)?;
    let mut driver = disk.driver(1, VirtioFeatureFlags::empty())?;
    driver.fill(5);
    driver.transfer(true)?;
    driver.queues[0].flush(0)?;
    driver.complete(0, 1)?;
    let file = File::open(disk.image.path())?;
    file.sync_all()?;
    let before = file.metadata()?.blocks();

    let (from, length) = (4 << 20, 8 << 20);
    request(&mut driver.queues[0], from, length)?;
    driver.complete(0, 1)?;
    file.sync_all()?;
    let after = file.metadata()?.blocks();
    driver.memory[from as usize..(from + length) as usize].fill(0);
    ensure!(driver.holds(&disk.image)?, "not the middle alone is zero");
    drop(driver);
    disk.end()?;
    Ok((before, after))
}

fn discard() -> Result<Outcome> {
    let (before, after) = without_the_middle(|queue, from, length| queue.discard(from, length, 0))?;
    ensure!(after < before, "{before} blocks before, {after} after");
    Ok(Outcome::Passed)
}

fn write_zeroes() -> Result<Outcome> {
    without_the_middle(|queue, from, length| queue.write_zeroes(from, length, false, 0))?;
    let (before, after) =
        without_the_middle(|queue, from, length| queue.write_zeroes(from, length, true, 0))?;
    ensure!(
        after < before,
        "unmapped: {before} blocks before, {after} after"
    );
    Ok(Outcome::Passed)
}

/// Packed rings are not offered: a driver that asks for them is left with
/// split ones, which work.
fn packed() -> Result<Outcome> {
    let disk = Disk::start(1)?;
    let mut driver = disk.driver(1, VirtioFeatureFlags::RING_PACKED)?;
    let has = driver.transport.get_features();
    ensure!(
        has & VirtioFeatureFlags::RING_PACKED.bits() == 0,
        "features {has:#x}"
    );
    driver.fill(13);
    driver.transfer(true)?;
    ensure!(
        driver.holds(&disk.image)?,
        "the image is not what was written"
    );
    drop(driver);
    disk.end()?;
    Ok(Outcome::Passed)
}
