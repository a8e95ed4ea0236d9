//! A disk that goes bad in one place: from its hundredth write on, one bit of
//! that write's first sector is stored wrong, as often as it is written.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use outboard_blk::cli::Cli;
use outboard_hostile::{Deed, Fault, Faulty, Flipped, HEADER, header, length, place};
use outboard_runtime::{Chain, Memory};
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_OUT;

/// Which write finds the bad place.
const WRITE: u64 = 100;
/// Which byte of the sector is bad.
const BYTE: u64 = 400;
const SECTOR: u64 = 512;

struct Corrupts {
    writes: AtomicU64,
    /// The sector that is bad; none while it is `u64::MAX`.
    bad: AtomicU64,
}

impl Corrupts {
    /// The byte of this write's data that will be stored wrong.
    fn target(&self, sector: u64, sectors: u64) -> Option<u64> {
        if self.writes.fetch_add(1, Ordering::Relaxed) == WRITE {
            self.bad.store(sector, Ordering::Relaxed);
        }
        let place = self.bad.load(Ordering::Relaxed).checked_sub(sector)?;
        (place < sectors).then(|| place * SECTOR + BYTE)
    }
}

impl Fault for Corrupts {
    fn request(&self, memory: &Arc<Memory>, chain: &Chain) -> Deed {
        let Some((VIRTIO_BLK_T_OUT, sector)) = header(memory, chain) else {
            return Deed::Nothing;
        };
        let sectors = length(&chain.readable).saturating_sub(HEADER) / SECTOR;
        self.target(sector, sectors)
            .and_then(|byte| place(&chain.readable, HEADER + byte))
            .and_then(|address| Flipped::new(memory, address))
            .map_or(Deed::Nothing, Deed::Changed)
    }
}

fn main() -> ExitCode {
    Cli::parse().serve(|disk| {
        let fault = Corrupts {
            writes: AtomicU64::new(0),
            bad: AtomicU64::new(u64::MAX),
        };
        Faulty::new(disk, fault)
    })
}
