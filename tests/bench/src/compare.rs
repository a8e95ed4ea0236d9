//! What a change must not make slower or larger, beside another build's programs.
//!
//! ```text
//! for each row: one run of each build, in turn, the other one first each time
//!     ──► figures of both, ratio of each pair ──► median, p10–p90
//! ```
//! A row that does not run is named with the reason; the others go on.

use std::path::PathBuf;

use anyhow::{Context, Error, Result, bail, ensure};
use clap::Args;

use crate::Products;
use crate::reads::Disk;
use crate::spread::Spread;
use crate::{doorbell, footprint, net, startup};

/// Against what, and how often.
#[derive(Args)]
pub struct Options {
    /// Directory of the other build's programs.
    #[arg(long, value_name = "DIR")]
    against: PathBuf,
    /// Pairs of runs in each row, besides one that warms up.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Milliseconds of each run's load.
    #[arg(long, default_value_t = 700)]
    millis: u64,
    /// One short pair for each row: whether everything runs, not how fast.
    #[arg(long)]
    quick: bool,
}

/// What one run came to: each figure by its unit.
type Figures = Vec<(String, f64)>;

/// Runs all rows, prints them, and fails when one did not run.
pub fn run(products: &Products, options: &Options) -> Result<()> {
    let theirs = options.against.join("outboard");
    ensure!(theirs.is_file(), "there is no {}", theirs.display());
    let other = products.beside(&options.against);
    let (warm_up, rounds, millis) = match options.quick {
        true => (0, 1, 100),
        false => (1, options.rounds.max(1), options.millis.clamp(50, 60_000)),
    };
    let mut table = Table {
        sides: [products, &other],
        warm_up,
        rounds,
        missing: Vec::new(),
    };
    println!("median (p10–p90); of what is counted a second more is better, of all else less");
    println!(
        "{:42}{:>24}{:>26}{:>22}{:>7}",
        "", "this build", "the other", "this/other", "pairs"
    );
    table.row("start-up", &startup::Image::new(), |image, products| {
        let time = image.outboard(products)?;
        Ok(vec![("ms".into(), time.as_secs_f64() * 1e3)])
    });
    table.row("private memory", &Ok(()), |(), products| {
        let held = footprint::once(products)?.into_iter();
        let figures = held.map(|(role, size)| (format!("{role} KiB"), size as f64));
        Ok(figures.collect())
    });
    table.reads(millis);
    table.row("doorbell and interrupt", &Ok(()), |(), products| {
        let time = doorbell::round_trip(products, millis)?;
        Ok(vec![("µs".into(), time)])
    });
    // Last, as this process leaves the machine's network for it.
    table.frames(millis);
    if !table.missing.is_empty() {
        bail!("these did not run: {}", table.missing.join("; "));
    }
    Ok(())
}

/// How rows are made.
struct Table<'a> {
    /// This build, and the other.
    sides: [&'a Products; 2],
    /// Pairs that do not count, before those that do.
    warm_up: usize,
    rounds: usize,
    /// Rows that did not run.
    missing: Vec<String>,
}

impl Table<'_> {
    /// A disk's rows.
    fn reads(&mut self, millis: u64) {
        type Make = fn() -> Result<Disk>;
        let disks: [(&str, Make); 3] = [
            ("null", Disk::null),
            ("tmpfs", Disk::tmpfs),
            ("cached file", Disk::cached),
        ];
        for (name, make) in disks {
            let disk = make();
            for depth in [1, 32] {
                self.row(
                    &format!("{name}, depth {depth}"),
                    &disk,
                    |disk, products| {
                        let reads = disk.reads_a_second(products, depth, millis)?;
                        Ok(vec![("4 KiB reads/s".into(), reads)])
                    },
                );
            }
        }
    }

    /// A card's rows.
    fn frames(&mut self, millis: u64) {
        let link = net::Link::new();
        for row in net::small_and_full_frames() {
            self.row(&row.name(), &link, |link, products| {
                let packets = net::packets_a_second(products, link, &row, millis)?;
                Ok(vec![("packets/s".into(), packets)])
            });
        }
    }

    /// Runs a row and prints it; `needs` is what all of its runs share.
    fn row<T>(
        &mut self,
        name: &str,
        needs: &Result<T>,
        once: impl Fn(&T, &Products) -> Result<Figures>,
    ) {
        let lines = match needs {
            Ok(needs) => self
                .pairs(|products| once(needs, products))
                .and_then(|pairs| lines(name, &pairs)),
            Err(why) => Err(Error::msg(format!("{why:#}"))),
        };
        match lines {
            Ok(lines) => println!("{}", lines.join("\n")),
            Err(why) => {
                println!("{name}: not run: {why:#}");
                self.missing.push(name.to_owned());
            }
        }
    }

    /// Those that count, each this build's run and the other's.
    fn pairs(&self, once: impl Fn(&Products) -> Result<Figures>) -> Result<Vec<[Figures; 2]>> {
        let [this, other] = self.sides;
        let mut pairs = Vec::new();
        for round in 0..self.warm_up + self.rounds {
            let pair = if round % 2 == 0 {
                let ours = once(this).context("this build")?;
                [ours, once(other).context("the other build")?]
            } else {
                let theirs = once(other).context("the other build")?;
                [once(this).context("this build")?, theirs]
            };
            if round >= self.warm_up {
                pairs.push(pair);
            }
        }
        Ok(pairs)
    }
}

/// A line for each figure of a row.
///
/// # Errors
/// A run has another set of figures than the first, or one that is no number.
fn lines(row: &str, pairs: &[[Figures; 2]]) -> Result<Vec<String>> {
    let units = |figures: &Figures| -> Vec<String> {
        figures.iter().map(|(unit, _)| unit.clone()).collect()
    };
    let expected = units(&pairs.first().context("no pair")?[0]);
    for figures in pairs.iter().flatten() {
        let found = units(figures);
        ensure!(
            found == expected,
            "a run has {found:?}, the first {expected:?}"
        );
    }
    let lines = expected.iter().enumerate().map(|(at, unit)| {
        let of = |figure: fn(f64, f64) -> f64| {
            let both = pairs.iter().map(|[a, b]| figure(a[at].1, b[at].1));
            Spread::new(both.collect())
        };
        let (this, other, ratio) = (of(|this, _| this), of(|_, other| other), of(|a, b| a / b));
        ensure!(
            this.is_finite() && other.is_finite() && ratio.is_finite(),
            "{unit}: a figure is no number"
        );
        let places = if this.quantile(0.5) < 100.0 { 2 } else { 0 };
        let name = format!("{row}, {unit}");
        let (this, other, ratio) = (
            brief(&this, places),
            brief(&other, places),
            brief(&ratio, 3),
        );
        let count = pairs.len();
        Ok(format!(
            "{name:42}{this:>24}{other:>26}{ratio:>22}{count:>7}"
        ))
    });
    lines.collect()
}

fn brief(spread: &Spread, places: usize) -> String {
    let [low, median, high] = [0.1, 0.5, 0.9].map(|share| spread.quantile(share));
    format!("{median:.places$} ({low:.places$}–{high:.places$})")
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn products(bin: &str) -> Products {
        Products {
            bin: bin.into(),
            guest: "guest".into(),
        }
    }

    fn figures(list: &[(&str, f64)]) -> Figures {
        list.iter()
            .map(|(unit, figure)| ((*unit).to_owned(), *figure))
            .collect()
    }

    #[test]
    fn each_build_is_first_in_every_other_pair_and_the_first_pair_warms_up() {
        let (this, other) = (products("this"), products("other"));
        let table = Table {
            sides: [&this, &other],
            warm_up: 1,
            rounds: 2,
            missing: Vec::new(),
        };
        let order = RefCell::new(Vec::new());
        let pairs = table.pairs(|products| {
            let mut order = order.borrow_mut();
            order.push(products.bin.display().to_string());
            Ok(figures(&[("ms", order.len() as f64)]))
        });
        let order = order.into_inner();
        assert_eq!(order, ["this", "other", "other", "this", "this", "other"]);
        let figure = |pair: [Figures; 2]| pair.map(|figures| figures[0].1);
        let pairs: Vec<_> = pairs.unwrap().into_iter().map(figure).collect();
        assert_eq!(pairs, [[4.0, 3.0], [5.0, 6.0]]);
    }

    #[test]
    fn a_ratio_is_of_the_runs_of_one_pair() {
        let pair = |this, other| [figures(&[("ms", this)]), figures(&[("ms", other)])];
        let lines = lines("start-up", &[pair(10.0, 20.0), pair(400.0, 800.0)]).unwrap();
        assert_eq!(lines.len(), 1);
        let line = lines[0].split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(line.starts_with("start-up, ms "), "{line}");
        assert!(line.ends_with(" 0.500 (0.500–0.500) 2"), "{line}");
    }

    #[test]
    fn a_figure_that_one_run_lacks_or_that_is_no_number_is_no_row() {
        let both = figures(&[("machine KiB", 1.0), ("outboard-blk KiB", 2.0)]);
        let fewer = figures(&[("machine KiB", 1.0)]);
        assert!(lines("memory", &[[both.clone(), both.clone()]]).is_ok());
        assert!(lines("memory", &[[both.clone(), fewer]]).is_err());
        let nothing = figures(&[("machine KiB", f64::NAN), ("outboard-blk KiB", 2.0)]);
        assert!(lines("memory", &[[both, nothing]]).is_err());
        assert!(lines("memory", &[]).is_err());
    }

    #[test]
    fn a_row_that_does_not_run_is_missing_and_the_next_one_runs() {
        let (this, other) = (products("this"), products("other"));
        let mut table = Table {
            sides: [&this, &other],
            warm_up: 0,
            rounds: 1,
            missing: Vec::new(),
        };
        let no_tap: Result<()> = Err(Error::msg("no tap"));
        table.row("frames", &no_tap, |(), _| Ok(Vec::new()));
        table.row("reads", &Ok(()), |(), _| bail!("no disk"));
        table.row("start-up", &Ok(()), |(), _| Ok(figures(&[("ms", 1.0)])));
        assert_eq!(table.missing, ["frames", "reads"]);
    }
}
