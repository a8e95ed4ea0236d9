//! The doorbell: what it costs a guest to ring one, and what it is worth.
//!
//! ```text
//! for each round, for each kind: one sample ──► report ──► table, JSON, picture
//! ```
//! - [`cost`]: a bare loop of writes, nothing behind the doorbell (the test of 2009);
//! - [`trip`]: ring, back-end, call, and the guest has seen it;
//! - [`disk`]: a disk's requests, by who rings (the question of 2018);
//! - [`registration`]: what it costs to register one, and that nothing leaks.
//!
//! `tests/bench/DOORBELL.md` says what is measured and what follows from it.

mod cost;
mod disk;
mod exits;
mod picture;
mod registration;
mod report;
mod targets;
mod trip;
mod vm;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::Products;
use report::Report;

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// Rounds of all kinds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds of each run of a VM.
    #[arg(long, default_value_t = 500)]
    millis: u64,
    /// Registrations and releases.
    #[arg(long, default_value_t = 100_000)]
    registrations: u64,
    /// Kinds whose name contains this, alone.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Writes all samples to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws the picture into this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// One short round: whether everything runs, not how fast.
    #[arg(long)]
    quick: bool,
}

/// What each sample takes, and which kinds there are.
#[derive(Clone, Copy)]
struct Extent {
    rounds: usize,
    millis: u64,
    registrations: u64,
    /// Other doorbells in the VM, for [`cost`].
    others: &'static [usize],
}

impl Extent {
    fn of(options: &Options) -> Self {
        if options.quick {
            return Self {
                rounds: 1,
                millis: 40,
                registrations: 200,
                others: &[1, 8, 64, 512],
            };
        }
        Self {
            rounds: options.rounds.max(1),
            millis: options.millis.clamp(40, 60_000),
            registrations: options.registrations.max(1),
            others: &[1, 8, 64, 512, 4096],
        }
    }
}

/// The median time of one run's doorbells, from the guest's write to the
/// interrupt of the back-end's answer, in microseconds: both sleep until then.
pub fn round_trip(products: &Products, millis: u64) -> Result<f64> {
    let asleep = trip::Trip {
        back_end_polls: false,
        guest_polls: false,
    };
    Ok(vm::Vms::new(products, millis)?.trip(&asleep)?.p50)
}

/// Measures, prints, and fails when something did not run.
pub fn run(products: &Products, options: &Options) -> Result<()> {
    exits::prepare();
    let extent = Extent::of(options);
    let only = options.only.as_deref().unwrap_or_default();
    let mut kinds = cost::kinds(extent.others);
    kinds.extend(trip::kinds());
    kinds.extend(disk::kinds());
    kinds.extend(registration::kinds());
    kinds.retain(|kind| kind.name().contains(only));
    if kinds.is_empty() {
        bail!("no kind's name contains {only:?}; try `MMIO`, `round trip` or `randread`");
    }
    let mut costs = cost::Bench::new(&kinds, extent.others)?;
    let vms = vm::Vms::new(products, extent.millis)?;
    let mut report = Report::new(kinds);
    for round in 0..extent.rounds {
        for index in report.order(round) {
            let sample = match &report.kinds[index].what {
                report::What::Write(write) => costs.sample(write),
                report::What::Trip(trip) => vms.trip(trip),
                report::What::Disk(disk) => vms.disk(disk),
                report::What::Registration(step) => {
                    registration::sample(*step, extent.registrations / extent.rounds as u64)
                }
            };
            report.add(index, sample);
        }
        eprintln!("round {} of {} is over", round + 1, extent.rounds);
    }
    print!("{}", report.text());
    print!("{}", targets::text(&report));
    if let Some(path) = &options.json {
        report.write_json(path)?;
    }
    if let Some(path) = &options.svg {
        picture::draw(&report, path)?;
        println!("the picture is in {}", path.display());
    }
    report.check()
}
