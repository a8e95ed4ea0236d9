//! All samples, and what they say: quantiles, and ratios of the samples of one
//! round.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::cost::Write;
use super::disk::Disk;
use super::registration::Step;
use super::trip::Trip;
use crate::spread::Spread;

/// What a sample is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Write(Write),
    Trip(Trip),
    Disk(Disk),
    Registration(Step),
}

/// A row of the table.
#[derive(Clone, Debug)]
pub struct Kind {
    pub what: What,
    pub name: String,
    /// The name of the kind that it is compared with.
    pub reference: String,
    /// How many times cheaper than which kind the texts say it is.
    pub text: Option<(String, f64)>,
}

impl Kind {
    /// For people, and for `--only`.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// What one run of a VM came to, besides its times.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Requests a second.
    pub rate: f64,
    /// Microseconds of the vCPU's thread outside the guest, for each request.
    pub outside: f64,
    /// Exits for each request, where KVM tells.
    pub exits: Option<f64>,
    /// Kicks for each request.
    pub kicks: f64,
    /// The share of publications that needed one.
    pub kicked: f64,
}

/// One sample of a kind. Times are in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// How many things were timed.
    pub count: u64,
    /// A guest does not tell this one.
    pub p10: f64,
    pub p50: f64,
    pub p99: f64,
    pub load: Option<Load>,
}

impl Sample {
    /// Of times in nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |share| histogram.value_at_quantile(share) as f64 / 1e3;
        Self {
            count: histogram.len(),
            p10: at(0.1),
            p50: at(0.5),
            p99: at(0.99),
            load: None,
        }
    }
}

/// See the module.
pub struct Report {
    pub kinds: Vec<Kind>,
    /// Of each kind, in the order of the rounds; none where one failed.
    samples: Vec<Vec<Option<Sample>>>,
    failures: Vec<String>,
}

impl Report {
    /// Without samples.
    pub fn new(kinds: Vec<Kind>) -> Self {
        Self {
            samples: vec![Vec::new(); kinds.len()],
            kinds,
            failures: Vec::new(),
        }
    }

    /// The kinds of a round: another one first each time, and every other round
    /// backwards.
    pub fn order(&self, round: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.kinds.len()).collect();
        order.rotate_left(round * 7 % self.kinds.len().max(1));
        if round % 2 == 1 {
            order.reverse();
        }
        order
    }

    /// Notes a sample of the kind with this index.
    pub fn add(&mut self, index: usize, sample: Result<Sample>) {
        if let Err(error) = &sample {
            let name = &self.kinds[index].name;
            self.failures.push(format!("{name}: {error:#}"));
        }
        self.samples[index].push(sample.ok());
    }

    /// The place of a kind.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.kinds.iter().position(|kind| kind.name == name)
    }

    /// One figure of all samples of a kind.
    pub fn spread(&self, index: usize, figure: impl Fn(&Sample) -> f64) -> Spread {
        let samples = self.samples[index].iter().flatten();
        Spread::new(samples.map(figure).collect())
    }

    /// The ratio of the medians of two kinds in each round: how many times
    /// cheaper `cheap` is.
    pub fn ratio(&self, dear: &str, cheap: &str) -> Option<Spread> {
        let (dear, cheap) = (self.index(dear)?, self.index(cheap)?);
        let rounds = self.samples[dear].iter().zip(&self.samples[cheap]);
        let ratios = rounds.filter_map(|(dear, cheap)| Some((*dear)?.p50 / (*cheap)?.p50));
        Some(Spread::new(ratios.collect()))
    }

    /// The table.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut heading = "";
        for (index, kind) in self.kinds.iter().enumerate() {
            let (title, columns) = heading_of(kind.what);
            if title != heading {
                heading = title;
                let _ = writeln!(text, "\n{title}\n{:57}{columns}", "");
            }
            let _ = writeln!(text, "{:57}{}", kind.name, self.row(index));
        }
        text
    }

    fn row(&self, index: usize) -> String {
        let kind = &self.kinds[index];
        let of = |figure: fn(&Sample) -> f64| self.spread(index, figure).quantile(0.5);
        let mut row = format!("{:8.2} {:8.2}", of(|s| s.p50), of(|s| s.p99));
        match self.ratio(&kind.reference, &kind.name) {
            Some(_) if kind.reference == kind.name => row += &format!("{:>22}", "1"),
            Some(ratio) => row += &format!("{:>22}", brief(&ratio)),
            None => row += &format!("{:>22}", "–"),
        }
        let load = |figure: fn(&Load) -> f64| {
            let of = |sample: &Sample| sample.load.as_ref().map_or(f64::NAN, figure);
            self.spread(index, of).quantile(0.5)
        };
        if matches!(kind.what, What::Trip(_) | What::Disk(_)) {
            let exits = load(|load| load.exits.unwrap_or(f64::NAN));
            row += &format!(
                "{:9.0} {:9.2} {:>7} {:7.2} {:6.0} %",
                load(|load| load.rate),
                load(|load| load.outside),
                if exits.is_finite() {
                    format!("{exits:.2}")
                } else {
                    "–".into()
                },
                load(|load| load.kicks),
                load(|load| load.kicked) * 100.0
            );
        }
        row
    }

    /// All samples.
    pub fn write_json(&self, path: &Path) -> Result<()> {
        let sample = |sample: &Sample| {
            let load = sample.load.map(|load| {
                json!({
                    "requests_per_second": load.rate,
                    "outside_us_per_request": load.outside,
                    "exits_per_request": load.exits,
                    "kicks_per_request": load.kicks,
                    "kicked_share": load.kicked,
                })
            });
            json!({
                "count": sample.count,
                "p10_us": Some(sample.p10).filter(|p10| p10.is_finite()),
                "p50_us": sample.p50,
                "p99_us": sample.p99,
                "load": load,
            })
        };
        let rows = self.kinds.iter().zip(&self.samples).map(|(kind, samples)| {
            json!({
                "name": kind.name,
                "compared_with": kind.reference,
                "ratio_of_the_text": kind.text.as_ref().map(|(_, ratio)| ratio),
                "samples": samples.iter().map(|one| one.as_ref().map(sample)).collect::<Vec<_>>(),
            })
        });
        let json = json!({
            "hardware_virtualization": super::targets::is_hardware(),
            "rows": rows.collect::<Vec<Value>>(),
        });
        fs::write(path, format!("{json:#}\n"))
            .with_context(|| format!("writing {}", path.display()))
    }

    /// That every kind has a sample of each round, with finite figures.
    ///
    /// # Errors
    /// What is missing, and why.
    pub fn check(&self) -> Result<()> {
        let mut missing = self.failures.clone();
        for (kind, samples) in self.kinds.iter().zip(&self.samples) {
            let finite = |sample: &Sample| {
                let load = sample.load.as_ref();
                let loads = load.map_or([0.0; 4], |l| [l.rate, l.outside, l.kicks, l.kicked]);
                let times = [sample.p50, sample.p99];
                times.iter().all(|time| time.is_finite() && *time > 0.0)
                    && loads.iter().all(|figure| figure.is_finite())
            };
            if samples.is_empty() || !samples.iter().flatten().all(finite) {
                missing.push(format!("{}: a figure is not finite", kind.name));
            }
        }
        if !missing.is_empty() {
            bail!("these did not run: {}", missing.join("; "));
        }
        Ok(())
    }
}

/// A ratio with its spread.
pub fn brief(ratio: &Spread) -> String {
    let at = |share| ratio.quantile(share);
    format!("{:.2} ({:.2}–{:.2})", at(0.5), at(0.1), at(0.9))
}

fn heading_of(what: What) -> (&'static str, &'static str) {
    match what {
        What::Write(_) => (
            "A write, nothing behind it: µs, and how many times cheaper than the exit at the same place",
            "     p50      p99    ratio (p10–p90)",
        ),
        What::Trip(_) => (
            "A round trip, ring kvm: µs, and how many times shorter than with both asleep",
            "     p50      p99    ratio (p10–p90)        /s   outside   exits   kicks  kicked",
        ),
        What::Disk(_) => (
            "A disk in memory, 4 KiB: µs, and how many times shorter than with an exit",
            "     p50      p99    ratio (p10–p90)        /s   outside   exits   kicks  kicked",
        ),
        What::Registration(_) => ("Registering", "     p50      p99"),
    }
}
