//! A storm of kills, and how long the guest had to wait after each.
//!
//! The guest keeps 64 requests in flight on two queues and says how long
//! nothing was completed, and when. An outage is such a time with a kill in it;
//! a successor that is killed before it has completed anything makes it longer,
//! so there are fewer outages than kills. From the last kill in it to its end is
//! what one restart takes, with the wait before it: each start of a VM's back-end
//! waits twice as long as the one before, so there are many VMs with a few kills each.

mod swaps;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use nix::sys::signal::Signal;
use outboard_e2e::record::Found;
use outboard_e2e::storm::killer::Blow;
use outboard_e2e::storm::{self, Gap, Outcome, Shape};

use crate::Products;
use crate::spread::Spread;

/// The guest's clock and this one's are set by the arrival of a line, which may
/// take so long.
const SLACK: Duration = Duration::from_millis(3);

/// How often, and how.
#[derive(Args)]
pub struct Options {
    /// How often outboard-blk is killed.
    #[arg(long, default_value_t = 1000)]
    kills: u32,
    /// Repeats a storm (the system's moments are its own all the same).
    #[arg(long)]
    seed: Option<u64>,
    /// The longest time from a new process to the next kill, in milliseconds.
    #[arg(long, default_value_t = 40)]
    within: u64,
    /// More keys of --disk, such as `direct,engine=threads`.
    #[arg(long, default_value = "")]
    disk: String,
    /// Where the image is (default: in memory).
    #[arg(long)]
    folder: Option<PathBuf>,
    /// More words for the guest, such as `overlap=1 reset_ms=100`.
    #[arg(long, default_value = "")]
    words: String,
    /// SIGSTOP instead of SIGKILL: a hang, which must be found.
    #[arg(long, conflicts_with = "swaps")]
    stop: bool,
    /// Swaps so often instead: among outboard-blk and, if there is one,
    /// qemu-storage-daemon, with pauses, resizes and kills between them.
    #[arg(long, value_name = "N", conflicts_with = "kills")]
    swaps: Option<u32>,
}

impl Options {
    fn shape(&self) -> Shape {
        let seed = self.seed.unwrap_or_else(|| std::process::id().into());
        let mut shape = Shape::new(self.kills, seed).guest(&self.words);
        if !self.disk.is_empty() {
            shape = shape.disk(&format!(",{}", self.disk));
        }
        if let Some(folder) = &self.folder {
            shape.folder.clone_from(folder);
        }
        if self.stop {
            shape.blow = Blow::Signal(Signal::SIGSTOP);
        }
        shape.within = Duration::from_millis(self.within);
        shape
    }
}

/// Runs the storm, prints what became of it, and fails when anything is wrong.
pub fn run(products: &Products, options: &Options) -> Result<()> {
    let shape = options.shape();
    if let Some(swaps) = options.swaps {
        return swaps::run(products, swaps, &shape);
    }
    let Shape {
        kills,
        seed,
        blow,
        folder,
        ..
    } = &shape;
    println!("{kills} times {blow} to outboard-blk, seed {seed}");
    println!(
        "the image in {}, --disk path=…,queues=2{}, guest:{}",
        folder.display(),
        shape.disk,
        shape.guest
    );
    let programs = products.for_a_storm();
    let mut sum = Sum::default();
    for vm in shape.vms() {
        sum.add(storm::run(&programs, &vm)?)?;
    }
    sum.print();
    sum.is_right()
}

/// What all storms together have come to.
#[derive(Default)]
struct Sum {
    vms: usize,
    kills: usize,
    requests: u64,
    checked: u64,
    failures: BTreeMap<&'static str, u64>,
    found: Found,
    outages: Vec<Outage>,
    /// What was said where anything was wrong.
    wrong: Vec<String>,
}

impl Sum {
    fn add(&mut self, outcome: Outcome) -> Result<()> {
        self.vms += 1;
        self.kills += outcome.kills.len();
        self.requests += outcome.result.number("requests")?;
        self.checked += outcome.result.number("checked")?;
        for (name, count) in outcome.failures()? {
            *self.failures.entry(name).or_default() += count;
        }
        self.found.blocks += outcome.found.blocks;
        self.found.lost += outcome.found.lost;
        self.found.torn += outcome.found.torn;
        self.found.misplaced += outcome.found.misplaced;
        self.found.newer += outcome.found.newer;
        self.outages.extend(outages(&outcome.gaps, &outcome.kills));
        if let Err(error) = outcome.nothing_is_wrong() {
            self.wrong.push(format!("{error:#}"));
        }
        Ok(())
    }

    fn print_wrong(&self) {
        let found = &self.found;
        println!("the guests: {}", wrong(&self.failures));
        println!(
            "the images: {} blocks, {} lost, {} torn, {} misplaced, {} newer",
            found.blocks, found.lost, found.torn, found.misplaced, found.newer
        );
    }

    /// Fails with what was said where anything was wrong first.
    fn is_right(&self) -> Result<()> {
        match self.wrong.first() {
            Some(wrong) => bail!("{wrong}"),
            None => Ok(()),
        }
    }

    fn print(&self) {
        let Self {
            vms,
            kills,
            requests,
            checked,
            outages,
            ..
        } = self;
        println!("{kills} kills of {vms} VMs: requests {requests}, blocks looked at {checked}");
        self.print_wrong();
        if outages.is_empty() {
            return;
        }
        let millis = |time: fn(&Outage) -> Duration| {
            let times: Vec<_> = outages.iter().map(time).collect();
            distribution(&Spread::millis(&times))
        };
        println!("outages:    {}", outages.len());
        println!(
            "  without a completion, ms:            {}",
            millis(|outage| outage.length)
        );
        println!(
            "  last kill to next completion, ms:    {}",
            millis(|outage| outage.last)
        );
    }
}

fn wrong(failures: &BTreeMap<&str, u64>) -> String {
    if failures.is_empty() {
        return "0 lost, 0 completed twice, 0 torn, 0 stale, nothing else wrong".into();
    }
    let words: Vec<_> = failures
        .iter()
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    words.join(", ")
}

fn distribution(spread: &Spread) -> String {
    let of = |share| spread.quantile(share);
    format!(
        "p50 {:.2}, p90 {:.2}, p99 {:.2}, longest {:.2}",
        of(0.5),
        of(0.9),
        of(0.99),
        of(1.0)
    )
}

/// A time without a completion, with a kill in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    length: Duration,
    /// From the last kill in it to its end.
    pub last: Duration,
}

/// The outages: of each kill the longest gap that it lies in. A kill that lies in
/// none of them made none that is worth the name: nothing was in flight, or the
/// gap is shorter than all that the guest names.
pub fn outages(gaps: &[Gap], kills: &[Duration]) -> Vec<Outage> {
    let mut found = BTreeMap::new();
    for kill in kills {
        let covers =
            |gap: &&Gap| *kill + SLACK >= gap.since && *kill <= gap.since + gap.length + SLACK;
        if let Some(gap) = gaps.iter().filter(covers).max_by_key(|gap| gap.length) {
            let end = gap.since + gap.length;
            let last = end.saturating_sub(*kill).min(gap.length);
            // Kills come in their order: the last one stays.
            found.insert(
                gap.since,
                Outage {
                    length: gap.length,
                    last,
                },
            );
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(since: u64, length: u64) -> Gap {
        Gap {
            since: Duration::from_millis(since),
            length: Duration::from_millis(length),
        }
    }

    #[test]
    fn kills_in_one_gap_are_one_outage_and_the_last_of_them_counts() {
        let gaps = [gap(100, 50), gap(300, 20), gap(600, 10)];
        let kills = [110, 130, 305, 800].map(Duration::from_millis);
        let outage = |length, last| Outage {
            length: Duration::from_millis(length),
            last: Duration::from_millis(last),
        };
        assert_eq!(outages(&gaps, &kills), [outage(50, 20), outage(20, 15)]);
        assert_eq!(outages(&[], &kills), []);
    }
}
