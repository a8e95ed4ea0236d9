//! The network beside QEMU's own tap back-end: packets and bytes a second,
//! round trips, and the processor time that they cost.
//!
//! ```text
//! for each round, for each row: one run on each side, in turn ──► samples
//! samples of a row ──► ratio of each round ──► median, p10–p90 ──► verdicts
//! ```
//! Each run is a VM of its own, on a tap in a network namespace of ours.

mod link;
mod plan;
mod report;
mod run;
mod sides;
mod stats;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::{Products, host};
pub use link::Link;
use plan::{Load, Path, Row, Side};
use report::Report;
use stats::Figure;

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// Rounds of all rows.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds of traffic in each run.
    #[arg(long, default_value_t = 1000)]
    millis: u64,
    /// Rows whose name contains this, alone.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// More words for the guest's command line, such as `spin=100`.
    #[arg(long, value_name = "TEXT", default_value = "")]
    words: String,
    /// Writes all samples to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// One short round: whether everything runs, not how fast.
    #[arg(long)]
    quick: bool,
}

/// Frames of 64 and 1,500 bytes, from the host to the guest and back.
pub fn small_and_full_frames() -> impl Iterator<Item = Row> {
    plan::rows().into_iter().filter(|row| {
        matches!(row.path, Path::HostToGuest | Path::GuestToHost)
            && matches!(row.load, Load::Frames(_))
    })
}

/// One run of a row by these programs: the frames that arrived in a second.
pub fn packets_a_second(products: &Products, link: &Link, row: &Row, millis: u64) -> Result<f64> {
    let sample = run::Bench::new(products, link, millis, "").sample(row, Side::Outboard)?;
    Ok(Figure::PacketsPerSecond.of(&sample))
}

/// Measures, prints, and fails when something did not run.
pub fn run(products: &Products, options: &Options) -> Result<()> {
    let (rounds, millis) = match options.quick {
        true => (1, 100),
        false => (options.rounds.max(1), options.millis.clamp(50, 60_000)),
    };
    let only = options.only.as_deref().unwrap_or_default();
    let rows: Vec<_> = plan::rows()
        .into_iter()
        .filter(|row| row.name().contains(only))
        .collect();
    if rows.is_empty() {
        let names: Vec<_> = plan::rows().iter().map(Row::name).collect();
        bail!(
            "no row's name contains {only:?}; rows: {}",
            names.join(", ")
        );
    }
    let link = Link::new()?;
    let bench = run::Bench::new(products, &link, millis, &options.words);
    let mut report = Report::new(rounds);
    for round in 0..rounds {
        for row in &rows {
            let mut sides = row.sides();
            if round % 2 == 1 {
                sides.reverse();
            }
            for side in sides {
                let sample = bench.sample(row, side);
                if let Err(error) = &sample {
                    eprintln!("bench: {}, {}: {error:#}", row.name(), side.name());
                }
                report.add(row, side, sample.ok());
            }
        }
        eprintln!("round {} of {rounds} is over", round + 1);
    }
    println!("{}", host::versions());
    print!("{}", report.text(&rows));
    if let Some(path) = &options.json {
        report.write_json(&rows, path)?;
    }
    let missing = report.missing(&rows);
    if !missing.is_empty() {
        bail!("these did not run: {}", missing.join("; "));
    }
    Ok(())
}
