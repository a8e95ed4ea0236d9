//! A disk that says that data is durable and never asks the kernel to make it
//! so: a flush succeeds at once, and a write with the write cache off, or by a
//! driver that cannot flush, is an ordinary one. What it shows a driver is
//! what a sound disk shows.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use clap::Parser;
use outboard_blk::cli::Cli;
use outboard_blk::disk::Blk;
use outboard_hostile::{Deed, Fault, Faulty, header, length, place};
use outboard_protocol::devices::BlkConfig;
use outboard_runtime::{Chain, Change, Device, Memory};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_S_OK, VIRTIO_BLK_T_FLUSH};
use vm_memory::Bytes;

struct Forgets {
    /// The state of the write cache that was asked for.
    initially: u8,
    shown: AtomicU8,
}

impl Forgets {
    fn new(disk: &Blk) -> Self {
        let writeback = disk.config().get(BlkConfig::WRITEBACK as usize).copied();
        let initially = writeback.unwrap_or(1);
        forget(disk);
        Self {
            initially,
            shown: AtomicU8::new(initially),
        }
    }
}

/// Turns the disk's write cache on, behind the driver's back. A read-only disk
/// refuses, and has nothing to forget.
fn forget(disk: &Blk) {
    let _ = disk.write_config(BlkConfig::WRITEBACK, &[1]);
}

impl Fault for Forgets {
    fn config(&self, mut config: Vec<u8>) -> Vec<u8> {
        if let Some(writeback) = config.get_mut(BlkConfig::WRITEBACK as usize) {
            *writeback = self.shown.load(Ordering::Relaxed);
        }
        config
    }

    fn write_config(&self, disk: &Blk, offset: u32, data: &[u8]) -> io::Result<Change> {
        match (offset, data) {
            (BlkConfig::WRITEBACK, [value]) => {
                self.shown.store(*value, Ordering::Relaxed);
                Ok(Change::Done)
            }
            _ => disk.write_config(offset, data),
        }
    }

    fn reset(&self, disk: &Blk, features: u64) {
        disk.reset(features);
        forget(disk);
        self.shown.store(self.initially, Ordering::Relaxed);
    }

    fn features(&self, features: u64) -> u64 {
        features | 1 << VIRTIO_BLK_F_FLUSH
    }

    fn request(&self, memory: &Arc<Memory>, chain: &Chain) -> Deed {
        let Some((VIRTIO_BLK_T_FLUSH, _)) = header(memory, chain) else {
            return Deed::Nothing;
        };
        let status = length(&chain.writable)
            .checked_sub(1)
            .and_then(|last| place(&chain.writable, last));
        match status.map(|status| memory.write_obj(VIRTIO_BLK_S_OK as u8, status)) {
            Some(Ok(())) => Deed::Answered,
            // Nothing to answer in: the disk knows what to say of that.
            _ => Deed::Nothing,
        }
    }
}

fn main() -> ExitCode {
    Cli::parse().serve(|disk| {
        let fault = Forgets::new(&disk);
        Faulty::new(disk, fault)
    })
}
