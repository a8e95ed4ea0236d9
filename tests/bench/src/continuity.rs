//! How long a guest waits for its disk when the back-end is killed: Outboard, which
//! restarts it, with and without one that stands by, and QEMU, which reconnects to
//! the same back-end after the same kill. And how long when it is swapped by
//! `outboard ctl swap`, and by what parts.
//!
//! The guest keeps 64 requests in flight and says when nothing was completed for
//! how long. One kill comes after the other, each when the guest has gone on after
//! the last. The rows take turns.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use outboard_e2e::storm::killer::Aim;
use outboard_e2e::storm::{self, FrontEnd, Outcome, Pace, Programs, Shape, Storm};
use serde_json::Value;

use crate::Products;
use crate::chaos::outages;
use crate::spread::Spread;

/// How often.
#[derive(Args)]
pub struct Options {
    /// Kills of each VM. Each start of its back-end but the first waits, 10 ms and
    /// then twice as long as the one before.
    #[arg(long, default_value_t = 1)]
    kills: u32,
    /// How often all rows are run.
    #[arg(long, default_value_t = 50)]
    rounds: u32,
    /// Where the image on a disk is, which is served with direct I/O.
    #[arg(long, default_value = "/var/tmp")]
    folder: PathBuf,
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
}

const ROWS: [(Row, &str); 5] = [
    (Row::Restart, "outboard"),
    (Row::Standby, "outboard, standby=1"),
    (Row::Qemu, "QEMU, reconnect"),
    (Row::Disk, "outboard, an image on a disk, direct"),
    (Row::Swap, "outboard, ctl swap"),
];

impl Row {
    fn shape(self, kills: u32, seed: u64, options: &Options) -> Shape {
        let mut shape = Shape::new(kills, seed);
        shape.pace = Pace::OneByOne;
        match self {
            Self::Restart | Self::Swap => {}
            Self::Standby => {
                shape = shape.disk(",standby=1");
                shape.aim = Aim::Serving;
            }
            Self::Qemu => shape.front_end = FrontEnd::Qemu,
            Self::Disk => {
                shape = shape.disk(",direct");
                shape.folder.clone_from(&options.folder);
            }
        }
        shape
    }

    /// In milliseconds, what must not be exceeded by 99 of 100.
    fn target(self) -> Option<f64> {
        match self {
            Self::Restart => Some(20.0),
            Self::Standby | Self::Swap => Some(5.0),
            Self::Qemu | Self::Disk => None,
        }
    }
}

/// What a row has come to.
#[derive(Default)]
struct Times {
    /// From each kill to the next completion.
    outages: Vec<Duration>,
    /// The slowest request of each round, without a kill (of an image on a disk alone).
    slowest: Vec<Duration>,
    /// The parts of each swap, as the machine has measured them.
    parts: Vec<[Duration; 5]>,
    /// Why there is nothing.
    failed: Option<String>,
}

impl Times {
    fn round(&mut self, row: Row, round: u32, products: &Products, options: &Options) {
        if self.failed.is_some() {
            return;
        }
        if let Err(error) = self.try_round(row, round, products, options) {
            self.failed = Some(format!("{error:#}"));
        }
    }

    fn try_round(
        &mut self,
        row: Row,
        round: u32,
        products: &Products,
        options: &Options,
    ) -> Result<()> {
        let seed = options.seed.unwrap_or_else(|| std::process::id().into());
        let programs = products.for_a_storm();
        let run = |kills| -> Result<Outcome> {
            let shape = row.shape(kills, seed + u64::from(round), options);
            storm::run(&programs, &shape)?.nothing_is_wrong()
        };
        if row == Row::Swap {
            let shape = row.shape(0, seed + u64::from(round), options);
            return self.swap(&programs, &shape, options.kills);
        }
        if row == Row::Disk {
            let slowest = run(0)?.result.number("max_ns")?;
            self.slowest.push(Duration::from_nanos(slowest));
        }
        let outcome = run(options.kills)?;
        let outages = outages(&outcome.gaps, &outcome.kills);
        self.outages
            .extend(outages.iter().map(|outage| outage.last));
        Ok(())
    }
}

impl Times {
    /// Swaps the back-end of a VM so often. The longest time without a completion while
    /// that is done is the outage.
    fn swap(&mut self, programs: &Programs, shape: &Shape, times: u32) -> Result<()> {
        let mut storm = Storm::begin(programs, shape)?;
        let mut calls = Vec::new();
        for _ in 0..times {
            storm.killer.wait_a_while();
            storm.killer.note();
            let text = storm.ctl(&["swap", "disk0"])?;
            let began = storm.killer.kills.last().copied().unwrap_or_default();
            storm.killer.until_it_goes_on(&mut storm.vm)?;
            let swapped: Value = serde_json::from_str(&text)?;
            let part = |name: &str| {
                let micros = swapped["gap"][name].as_u64();
                micros.map(Duration::from_micros).context(text.clone())
            };
            let parts = ["stop_us", "drain_us", "rest_us", "start_us", "total_us"].map(part);
            let [stop, drain, rest, start, total] = parts;
            self.parts.push([stop?, drain?, rest?, start?, total?]);
            calls.push(began);
        }
        let outcome = storm.end()?.nothing_is_wrong()?;
        for (place, began) in calls.iter().enumerate() {
            let next = calls.get(place + 1).copied().unwrap_or(Duration::MAX);
            let within = outcome
                .gaps
                .iter()
                .filter(|gap| gap.since.saturating_add(gap.length) > *began && gap.since < next);
            let longest = within.map(|gap| gap.length).max();
            self.outages.push(longest.context("no gap")?);
        }
        Ok(())
    }
}

/// Runs all rows and prints them; fails where one did not run.
pub fn run(products: &Products, options: &Options) -> Result<()> {
    let rounds = if options.quick { 2 } else { options.rounds };
    let mut rows = ROWS.map(|(row, name)| (row, name, Times::default()));
    for round in 0..rounds {
        for (row, _, times) in &mut rows {
            times.round(*row, round, products, options);
        }
    }
    println!(
        "SIGKILL (of a swap: the last completion before it) to the next completion, ms; 64 requests \
         in flight on 2 queues"
    );
    println!(
        "{:<38}{:>6}{:>10}{:>10}{:>10}{:>10}",
        "", "kills", "p50", "p90", "p99", "longest"
    );
    for (row, name, times) in &rows {
        print(*row, name, times);
    }
    let medians = rows
        .each_ref()
        .map(|(_, _, times)| Spread::millis(&times.outages).quantile(0.5));
    let [restart, standby, qemu, ..] = medians;
    println!(
        "QEMU / outboard, medians: {:.0}; with standby=1: {:.0} (target: at least 40)",
        qemu / restart,
        qemu / standby
    );
    let failed = rows.iter().filter(|(_, _, times)| times.failed.is_some());
    match failed.count() {
        0 => Ok(()),
        count => bail!("{count} rows did not run"),
    }
}

fn print(row: Row, name: &str, times: &Times) {
    if let Some(reason) = &times.failed {
        println!("{name:<38} {reason}");
        return;
    }
    let spread = Spread::millis(&times.outages);
    let [p50, p90, p99, longest] = [0.5, 0.9, 0.99, 1.0].map(|share| spread.quantile(share));
    let count = spread.len();
    print!("{name:<38}{count:>6}{p50:>10.2}{p90:>10.2}{p99:>10.2}{longest:>10.2}");
    match row.target() {
        Some(target) if p99 < target => println!("  target: p99 under {target} ms: met"),
        Some(target) => println!("  target: p99 under {target} ms: MISSED"),
        None => println!(),
    }
    if !times.parts.is_empty() {
        let names = [
            "stop",
            "drain",
            "rest",
            "start",
            "all that the machine sees",
        ];
        for (place, name) in names.iter().enumerate() {
            let part = times.parts.iter().filter_map(|parts| parts.get(place));
            let spread = Spread::millis(&part.copied().collect::<Vec<_>>());
            let [p50, p90, p99, longest] =
                [0.5, 0.9, 0.99, 1.0].map(|share| spread.quantile(share));
            println!("    {name:<40}{p50:>10.2}{p90:>10.2}{p99:>10.2}{longest:>10.2}");
        }
    }
    if !times.slowest.is_empty() {
        let slowest = Spread::millis(&times.slowest).quantile(1.0);
        println!(
            "{:<44}{:>10.2}{:>10.2}{:>10.2}{:>10.2}  beyond the slowest request without a kill ({slowest:.2})",
            "",
            p50 - slowest,
            p90 - slowest,
            p99 - slowest,
            longest - slowest
        );
    }
}
