//! All samples, and what they say: absolute figures, ratios of the runs of one
//! round, and whether the targets are met.

use std::fmt::Write;
use std::fs;
use std::path::Path as FilePath;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::spread::Spread;

use super::plan::{Load, Path, Row, Side};
use super::stats::{Figure, Sample};

/// A target: of which rows, which figure, and the ratio that it must reach or
/// must not exceed.
struct Target {
    load: Load,
    figure: Figure,
    ratio: f64,
    at_least: bool,
}

impl Target {
    fn is_for(&self, row: &Row) -> bool {
        let path = matches!(row.path, Path::HostToGuest | Path::GuestToHost);
        path && self.load == row.load
    }
}

const TARGETS: [Target; 3] = [
    Target {
        load: Load::Frames(64),
        figure: Figure::PacketsPerSecond,
        ratio: 1.5,
        at_least: true,
    },
    Target {
        load: Load::Segments,
        figure: Figure::BytesPerSecond,
        ratio: 1.0,
        at_least: true,
    },
    Target {
        load: Load::Segments,
        figure: Figure::CpuPerGigabyte,
        ratio: 0.8,
        at_least: false,
    },
];

/// The samples of each row and side, in the order of the rounds.
pub struct Report {
    rounds: usize,
    samples: Vec<(Row, Side, Option<Sample>)>,
}

impl Report {
    /// For so many rounds.
    pub fn new(rounds: usize) -> Self {
        Self {
            rounds,
            samples: Vec::new(),
        }
    }

    /// Adds the next round's; none is one that did not run.
    pub fn add(&mut self, row: &Row, side: Side, sample: Option<Sample>) {
        self.samples.push((*row, side, sample));
    }

    fn of(&self, row: &Row, side: Side) -> impl Iterator<Item = Option<&Sample>> {
        let wanted = (*row, side);
        self.samples
            .iter()
            .filter(move |(row, side, _)| (*row, *side) == wanted)
            .map(|(_, _, sample)| sample.as_ref())
    }

    fn spread(&self, row: &Row, side: Side, figure: Figure) -> Spread {
        let samples = self.of(row, side).flatten();
        Spread::new(samples.map(|sample| figure.of(sample)).collect())
    }

    /// Ours by theirs in each round that has both.
    fn ratio(&self, row: &Row, figure: Figure) -> Spread {
        let both = self
            .of(row, Side::Outboard)
            .zip(self.of(row, Side::Qemu))
            .filter_map(|(ours, theirs)| Some((figure.of(ours?), figure.of(theirs?))));
        Spread::new(both.map(|(ours, theirs)| ours / theirs).collect())
    }

    /// Rows and sides without a finite figure for every round.
    pub fn missing(&self, rows: &[Row]) -> Vec<String> {
        let mut missing = Vec::new();
        for row in rows {
            for side in row.sides() {
                let whole = row.figures().iter().all(|figure| {
                    let spread = self.spread(row, side, *figure);
                    spread.len() == self.rounds && spread.is_finite()
                });
                if !whole {
                    missing.push(format!("{}, {}", row.name(), side.name()));
                }
            }
        }
        missing
    }

    /// For people.
    pub fn text(&self, rows: &[Row]) -> String {
        let mut text = String::new();
        for row in rows {
            let _ = writeln!(text, "\n{} ({} rounds)", row.name(), self.rounds);
            for figure in row.figures() {
                self.line(&mut text, row, *figure);
            }
        }
        let _ = writeln!(text, "\ntargets, by the median of the ratios Outboard/QEMU");
        for row in rows {
            for target in TARGETS.iter().filter(|target| target.is_for(row)) {
                let spread = self.ratio(row, target.figure);
                let median = spread.quantile(0.5);
                let (met, words) = match target.at_least {
                    true => (median >= target.ratio, "at least"),
                    false => (median <= target.ratio, "at most"),
                };
                let verdict = if met { "met" } else { "MISSED" };
                let _ = writeln!(
                    text,
                    "  {}: {} {words} {:.1}x: {verdict} ({median:.2}x)",
                    row.name(),
                    target.figure.name(),
                    target.ratio,
                );
            }
        }
        text
    }

    fn line(&self, text: &mut String, row: &Row, figure: Figure) {
        let _ = write!(text, "  {:<18}", figure.name());
        for side in row.sides() {
            let spread = self.spread(row, side, figure);
            let part = |share| grouped(spread.quantile(share), figure.decimals());
            let _ = write!(
                text,
                "{} {:>9} ({}–{})   ",
                side.name(),
                part(0.5),
                part(0.1),
                part(0.9)
            );
        }
        let ratio = self.ratio(row, figure);
        if ratio.is_finite() {
            let part = |share| ratio.quantile(share);
            let _ = write!(
                text,
                "ratio {:.2} ({:.2}–{:.2})",
                part(0.5),
                part(0.1),
                part(0.9)
            );
        }
        text.push('\n');
    }

    /// All figures of all runs.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_json(&self, rows: &[Row], path: &FilePath) -> Result<()> {
        let mut list = Vec::new();
        for row in rows {
            let mut sides = Map::new();
            for side in row.sides() {
                let mut figures = Map::new();
                for figure in row.figures() {
                    let runs = self.of(row, side);
                    let runs: Vec<_> = runs.map(|run| run.map(|run| figure.of(run))).collect();
                    figures.insert(figure.name().into(), json!(runs));
                }
                sides.insert(side.name().into(), Value::Object(figures));
            }
            list.push(json!({ "row": row.name(), "sides": sides }));
        }
        let text = serde_json::to_string_pretty(&json!({ "rows": list }))?;
        fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
    }
}

/// A number with commas between thousands.
fn grouped(value: f64, decimals: usize) -> String {
    let plain = format!("{value:.decimals$}");
    let (whole, rest) = match plain.split_once('.') {
        Some((whole, rest)) => (whole, format!(".{rest}")),
        None => (plain.as_str(), String::new()),
    };
    let mut text = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) && value.is_finite() {
            text.push(',');
        }
        text.push(digit);
    }
    text + &rest
}

#[cfg(test)]
mod tests {
    use super::super::plan::rows;
    use super::super::stats::Latency;
    use super::*;
    use crate::processes::Cpu;

    fn sample(packets: u64) -> Sample {
        Sample {
            packets,
            bytes: packets * 22,
            nanoseconds: 1_000_000,
            lost: 0,
            cpu: Cpu {
                vcpus: 100,
                devices: 100,
            },
            peer: 100,
            latency: Some(Latency {
                p50: 1.0,
                p99: 2.0,
                p999: 3.0,
            }),
        }
    }

    fn full(rounds: usize) -> Report {
        let mut report = Report::new(rounds);
        for round in 0..rounds as u64 {
            for row in rows() {
                for (faster, side) in (1..).zip(row.sides().into_iter().rev()) {
                    report.add(&row, side, Some(sample(faster * (1000 + round))));
                }
            }
        }
        report
    }

    #[test]
    fn a_ratio_is_of_the_runs_of_one_round() {
        let ratio = full(5).ratio(&rows()[0], Figure::PacketsPerSecond);
        assert_eq!((ratio.quantile(0.1), ratio.quantile(0.9)), (2.0, 2.0));
    }

    #[test]
    fn a_row_that_did_not_run_or_received_nothing_is_missing() {
        assert_eq!(full(3).missing(&rows()), Vec::<String>::new());
        let mut report = full(3);
        report.samples[7].2 = None;
        assert_eq!(report.missing(&rows()).len(), 1);
        let mut report = full(3);
        report.samples[4].2 = Some(sample(0));
        assert_eq!(report.missing(&rows()).len(), 1);
        let mut report = full(3);
        report.samples.pop();
        assert_eq!(report.missing(&rows()).len(), 1);
    }

    #[test]
    fn every_target_has_a_verdict_in_both_directions() {
        let text = full(3).text(&rows());
        assert_eq!(text.matches(": met (").count(), 6, "{text}");
        assert!(text.contains("ratio 2.00 (2.00–2.00)"), "{text}");
        for row in rows() {
            assert!(text.contains(&row.name()), "{text}");
        }
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(grouped(1_234_567.4, 0), "1,234,567");
        assert_eq!(grouped(999.0, 0), "999");
        assert_eq!(grouped(1000.5, 3), "1,000.500");
        assert_eq!(grouped(f64::NAN, 0), "NaN");
    }
}
