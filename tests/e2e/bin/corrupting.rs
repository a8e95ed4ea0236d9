//! A back-end that serves a disk as outboard-blk does, and corrupts one byte
//! of what one request reads. A test that does not notice is no test.

use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use clap::Parser;
use outboard_blk::disk::{Blk, Disk, Settings, Storage};
use outboard_blk::image::{Image, Options};
use outboard_blk::queue::BlkQueue;
use outboard_runtime::device::Memory;
use outboard_runtime::program::{self, Capabilities};
use outboard_runtime::{Buffer, Chain, Device, Outcome, Queue, inherited};
use vm_memory::Bytes;

/// Which of the reads is corrupted.
const VICTIM: u32 = 100;
/// Reads of at least this many bytes count.
const SECTOR: u32 = 512;

/// The part of outboard-blk's command line that a supervisor uses.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    program: program::Args,
    #[arg(long)]
    blk_fd: RawFd,
    #[arg(long)]
    num_queues: u16,
    #[arg(long, default_value_t = 1024)]
    queue_size: u16,
}

/// A disk with a flaw.
struct Corrupting {
    disk: Blk,
    reads: Arc<AtomicU32>,
}

/// A queue of it.
struct CorruptingQueue {
    queue: BlkQueue,
    reads: Arc<AtomicU32>,
    /// Where the data of each request under way goes.
    targets: HashMap<u16, (Arc<Memory>, Buffer)>,
}

impl Device for Corrupting {
    type Queue = CorruptingQueue;

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
        self.disk.config()
    }

    fn write_config(&self, offset: u32, data: &[u8]) -> io::Result<()> {
        self.disk.write_config(offset, data)
    }

    fn reset(&self, features: u64) {
        self.disk.reset(features);
    }

    fn queue(&self, index: u16, features: u64) -> io::Result<CorruptingQueue> {
        Ok(CorruptingQueue {
            queue: self.disk.queue(index, features)?,
            reads: self.reads.clone(),
            targets: HashMap::new(),
        })
    }
}

impl CorruptingQueue {
    /// A request is complete: its data is in guest memory, and the guest does
    /// not know yet.
    fn complete(reads: &AtomicU32, memory: &Memory, data: Buffer) {
        if reads.fetch_add(1, Ordering::Relaxed) == VICTIM
            && let Ok(byte) = memory.read_obj::<u8>(data.address)
        {
            let _ = memory.write_obj(byte ^ 1, data.address);
        }
    }
}

impl Queue for CorruptingQueue {
    fn take(&mut self, memory: &Arc<Memory>, chain: &Chain) -> Outcome {
        let data = chain.writable.first().copied();
        let data = data.filter(|buffer| buffer.length >= SECTOR);
        let outcome = self.queue.take(memory, chain);
        if let Some(data) = data {
            match outcome {
                Outcome::Done(_) => Self::complete(&self.reads, memory, data),
                Outcome::Deferred => {
                    self.targets.insert(chain.head, (memory.clone(), data));
                }
                Outcome::NotNow => {}
            }
        }
        outcome
    }

    fn submit(&mut self) -> io::Result<()> {
        self.queue.submit()
    }

    fn ready(&self) -> Option<BorrowedFd<'_>> {
        self.queue.ready()
    }

    fn reap(&mut self, done: &mut dyn FnMut(u16, u32)) -> io::Result<()> {
        self.queue.reap(&mut |head, length| {
            if let Some((memory, data)) = self.targets.remove(&head) {
                Self::complete(&self.reads, &memory, data);
            }
            done(head, length);
        })
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let capabilities = Capabilities {
        kind: "block",
        features: &[],
    };
    let image = inherited::take(cli.blk_fd);
    program::run(&cli.program, capabilities, || {
        let options = Options {
            read_only: false,
            direct: false,
        };
        let image = Image::inherit(image.context("cannot use --blk-fd")?, options)?;
        let settings = Settings {
            queues: cli.num_queues,
            queue_size: cli.queue_size,
            ..Settings::default()
        };
        Ok(Corrupting {
            disk: Blk::new(Disk::new(Storage::Image(image), settings)?),
            reads: Arc::new(AtomicU32::new(0)),
        })
    })
}
