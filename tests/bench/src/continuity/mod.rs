//! How long a guest waits for its disk when the back-end is killed: Outboard, which
//! restarts it, with and without one that stands by, and QEMU, which reconnects to
//! the same back-end after the same kill. And how long when it is replaced by plan: by
//! `outboard ctl swap`, and by what parts, and in the ways that QEMU has.
//!
//! ```text
//! for each round, for each row: one kill, or one replacement ──► the longest time without a completion
//! QEMU's time / that of the swap of the same round ──► median, p10–p90
//! ```
//! The guest keeps 64 requests in flight and says when nothing was completed for
//! how long. One kill comes after the other, each when the guest has gone on after
//! the last. The rows take turns.
//!
//! - [`times`]: a round of a row, and what a row has come to;
//! - [`replug`]: QEMU's unplug and replug, which needs a Linux guest;
//! - [`report`]: the table and the ratios.

mod replug;
mod report;
mod times;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use outboard_e2e::storm::killer::Aim;
use outboard_e2e::storm::{FrontEnd, Pace, Shape};

use crate::Products;
use times::Times;

/// How often.
#[derive(Args)]
pub struct Options {
    /// Kills, or replacements, of each VM. Each start of its back-end but the first waits,
    /// 10 ms and then twice as long as the one before.
    #[arg(long, default_value_t = 1)]
    kills: u32,
    /// How often all rows are run.
    #[arg(long, default_value_t = 50)]
    rounds: u32,
    /// Where the image on a disk is, which is served with direct I/O.
    #[arg(long, default_value = "/var/tmp")]
    folder: PathBuf,
    /// Folder of the Linux guest that QEMU's unplug and replug needs, as
    /// tests/peers/build-guest makes it (scripts/bench does so).
    #[arg(long, value_name = "DIR")]
    linux_guest: Option<PathBuf>,
    /// Of the moments.
    #[arg(long)]
    seed: Option<u64>,
    /// Two rounds.
    #[arg(long)]
    quick: bool,
}

/// Who serves the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    Restart,
    Standby,
    Qemu,
    /// An image on a disk.
    Disk,
    /// Swapped, not killed.
    Swap,
    /// QEMU connects to a back-end that is replaced by plan, while the VM is stopped.
    StopAndReconnect,
    /// QEMU listens, and the next back-end is there when the last one ends.
    Listens,
    /// The device is taken out and another put in.
    Replug,
}

const ROWS: [(Row, &str); 8] = [
    (Row::Restart, "outboard"),
    (Row::Standby, "outboard, standby=1"),
    (Row::Qemu, "QEMU, reconnect"),
    (Row::Disk, "outboard, an image on a disk, direct"),
    (Row::Swap, "outboard, ctl swap"),
    (Row::StopAndReconnect, "QEMU, stop and reconnect"),
    (Row::Listens, "QEMU listens, the next one waits"),
    (Row::Replug, "QEMU, unplug and replug"),
];

impl Row {
    fn shape(self, kills: u32, seed: u64, options: &Options) -> Shape {
        let mut shape = Shape::new(kills, seed);
        shape.pace = Pace::OneByOne;
        match self {
            Self::Restart | Self::Swap | Self::Replug => {}
            Self::Standby => {
                shape = shape.disk(",standby=1");
                shape.aim = Aim::Serving;
            }
            Self::Qemu | Self::StopAndReconnect => shape.front_end = FrontEnd::Qemu,
            Self::Listens => shape.front_end = FrontEnd::QemuListens,
            Self::Disk => {
                shape = shape.disk(",direct");
                shape.folder.clone_from(&options.folder);
            }
        }
        shape
    }

    fn is_qemu(self) -> bool {
        match self {
            Self::Qemu | Self::StopAndReconnect | Self::Listens | Self::Replug => true,
            Self::Restart | Self::Standby | Self::Disk | Self::Swap => false,
        }
    }

    /// In milliseconds, what must not be exceeded by 99 of 100.
    fn target(self) -> Option<f64> {
        match self {
            Self::Restart => Some(20.0),
            Self::Standby | Self::Swap => Some(5.0),
            Self::Qemu | Self::Disk | Self::StopAndReconnect | Self::Listens | Self::Replug => None,
        }
    }
}

/// A row, its name, and what it has come to.
type Done = (Row, &'static str, Times);

/// Runs all rows and prints them; fails where one did not run.
pub fn run(products: &Products, options: &Options) -> Result<()> {
    let rounds = if options.quick { 2 } else { options.rounds };
    let mut rows: [Done; 8] = ROWS.map(|(row, name)| (row, name, Times::default()));
    for round in 0..rounds {
        for (row, _, times) in &mut rows {
            times.round(*row, round, products, options);
        }
    }
    report::print(&rows);
    let failed = rows.iter().filter(|(_, _, times)| times.failed.is_some());
    match failed.count() {
        0 => Ok(()),
        count => bail!("{count} rows did not run"),
    }
}
