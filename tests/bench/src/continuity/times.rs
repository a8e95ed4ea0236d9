//! A round of a row, and what a row has come to.

use std::time::Duration;

use anyhow::{Context, Result};
use outboard_e2e::storm::{self, Outcome, Programs, Shape, Storm};
use serde_json::Value;

use super::replug::Replugs;
use super::{Options, Row};
use crate::Products;
use crate::chaos::outages;
use crate::spread::Spread;

/// What a row has come to.
#[derive(Default)]
pub struct Times {
    /// From each kill to the next completion; of a replacement the longest time
    /// without one.
    pub outages: Vec<Duration>,
    /// The median of each round, in milliseconds.
    pub rounds: Vec<f64>,
    /// The slowest request of each round, without a kill (of an image on a disk alone).
    pub slowest: Vec<Duration>,
    /// The parts of each swap, as the machine has measured them.
    pub parts: Vec<[Duration; 5]>,
    /// Errors that the guest saw in each replug.
    pub errors: Vec<f64>,
    /// Why there is nothing.
    pub failed: Option<String>,
    /// The VM whose disk is taken out and put in, for all rounds.
    replugs: Option<Replugs>,
}

impl Times {
    /// Does a round, unless an earlier one has failed.
    pub fn round(&mut self, row: Row, round: u32, products: &Products, options: &Options) {
        if self.failed.is_some() {
            return;
        }
        let before = self.outages.len();
        if let Err(error) = self.try_round(row, round, products, options) {
            self.failed = Some(format!("{error:#}"));
            // Nothing of it stays in the way of the other rows.
            self.replugs = None;
        }
        let these = self.outages.get(before..).unwrap_or_default();
        self.rounds.push(Spread::millis(these).quantile(0.5));
    }

    fn try_round(
        &mut self,
        row: Row,
        round: u32,
        products: &Products,
        options: &Options,
    ) -> Result<()> {
        let seed = options.seed.unwrap_or_else(|| std::process::id().into());
        let seed = seed + u64::from(round);
        let programs = products.for_a_storm();
        let kills = options.kills;
        let run = |kills| -> Result<Outcome> {
            let shape = row.shape(kills, seed, options);
            storm::run(&programs, &shape)?.nothing_is_wrong()
        };
        match row {
            Row::Swap => return self.swap(&programs, &row.shape(0, seed, options), kills),
            Row::StopAndReconnect | Row::Listens => {
                let shape = row.shape(0, seed, options);
                return self.planned(&programs, &shape, kills, Storm::replace_by_plan);
            }
            Row::Replug => return self.replug(&row.shape(0, seed, options), &programs, options),
            Row::Disk => {
                let slowest = run(0)?.result.number("max_ns")?;
                self.slowest.push(Duration::from_nanos(slowest));
            }
            Row::Restart | Row::Standby | Row::Qemu => {}
        }
        let outcome = run(kills)?;
        let outages = outages(&outcome.gaps, &outcome.kills);
        self.outages
            .extend(outages.iter().map(|outage| outage.last));
        Ok(())
    }

    /// Replaces the back-end of a VM so often. The longest time without a completion while
    /// that is done is the outage.
    fn planned(
        &mut self,
        programs: &Programs,
        shape: &Shape,
        times: u32,
        mut replace: impl FnMut(&mut Storm) -> Result<()>,
    ) -> Result<()> {
        let mut storm = Storm::begin(programs, shape)?;
        for _ in 0..times {
            replace(&mut storm)?;
        }
        let outcome = storm.end()?.nothing_is_wrong()?;
        for (place, began) in outcome.kills.iter().enumerate() {
            let next = outcome.kills.get(place + 1).copied();
            let next = next.unwrap_or(Duration::MAX);
            let within = outcome
                .gaps
                .iter()
                .filter(|gap| gap.since.saturating_add(gap.length) > *began && gap.since < next);
            let longest = within.map(|gap| gap.length).max();
            self.outages.push(longest.context("no gap")?);
        }
        Ok(())
    }

    fn swap(&mut self, programs: &Programs, shape: &Shape, times: u32) -> Result<()> {
        let mut all = Vec::new();
        self.planned(programs, shape, times, |storm| {
            storm.killer.wait_a_while();
            storm.killer.note();
            let text = storm.ctl(&["swap", "disk0"])?;
            storm.killer.until_it_goes_on(&mut storm.vm)?;
            let swapped: Value = serde_json::from_str(&text)?;
            let part = |name: &str| {
                let micros = swapped["gap"][name].as_u64();
                micros.map(Duration::from_micros).context(text.clone())
            };
            let parts = ["stop_us", "drain_us", "rest_us", "start_us", "total_us"].map(part);
            let [stop, drain, rest, start, total] = parts;
            all.push([stop?, drain?, rest?, start?, total?]);
            Ok(())
        })?;
        self.parts.extend(all);
        Ok(())
    }

    fn replug(&mut self, shape: &Shape, programs: &Programs, options: &Options) -> Result<()> {
        let vm = match &mut self.replugs {
            Some(vm) => vm,
            none => {
                let guest = options.linux_guest.as_deref();
                let guest = guest.context("no --linux-guest: see tests/peers/build-guest")?;
                none.insert(Replugs::start(programs, guest, shape)?)
            }
        };
        for _ in 0..options.kills {
            let (gap, errors) = vm.replug()?;
            self.outages.push(gap);
            self.errors.push(errors as f64);
        }
        Ok(())
    }
}
