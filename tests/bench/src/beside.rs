//! Rows of figures of two builds, run in turn.
//!
//! ```text
//! for each row: one run of each build, in turn, the other one first each time
//!     ──► figures of both, ratio of each pair ──► median, p10–p90
//! ```
//! Or one run has both builds alive and in turn, as often as it likes ([`Table::row_of_both`]).
//! A row that does not run is named with the reason; the others go on.

use std::path::PathBuf;

use anyhow::{Context, Error, Result, bail, ensure};
use clap::Args;

use crate::spread::Spread;

/// What one run came to: each figure by its unit.
pub type Figures = Vec<(String, f64)>;

/// Against what, which rows, and how often.
#[derive(Args)]
pub struct Options {
    /// Directory of the other build's programs.
    #[arg(long, value_name = "DIR")]
    pub against: PathBuf,
    /// Pairs of runs in each row, besides one that warms up.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Rows whose name contains this, alone.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// One short pair for each row: whether everything runs, not how fast.
    #[arg(long)]
    pub quick: bool,
}

/// How rows are made. `S` is what there is to say of a build, such as where its programs are.
pub struct Table<'a, S> {
    /// This build, and the other.
    sides: [&'a S; 2],
    /// Pairs that do not count, before those that do.
    warm_up: usize,
    rounds: usize,
    /// Rows are left out whose name does not contain this.
    only: String,
    /// Rows that were not left out.
    chosen: usize,
    /// Those of them that did not run.
    missing: Vec<String>,
}

impl<'a, S> Table<'a, S> {
    /// Prints the table's head. `sides` are this build and the other.
    pub fn new(sides: [&'a S; 2], options: &Options) -> Self {
        println!(
            "{:42}{:>24}{:>26}{:>22}{:>7}",
            "", "this build", "the other", "this/other", "pairs"
        );
        let (warm_up, rounds) = match options.quick {
            true => (0, 1),
            false => (1, options.rounds.max(1)),
        };
        Self {
            sides,
            warm_up,
            rounds,
            only: options.only.clone(),
            chosen: 0,
            missing: Vec::new(),
        }
    }

    /// Fails when a row did not run, or there is none of that name.
    pub fn finish(self) -> Result<()> {
        ensure!(self.chosen > 0, "no row's name contains {:?}", self.only);
        if !self.missing.is_empty() {
            bail!("these did not run: {}", self.missing.join("; "));
        }
        Ok(())
    }

    /// Runs a row and prints it; `needs` is what all of its runs share.
    pub fn row<T>(
        &mut self,
        name: &str,
        needs: &Result<T>,
        once: impl Fn(&T, &S) -> Result<Figures>,
    ) {
        if !self.chooses(name) {
            return;
        }
        let pairs = match needs {
            Ok(needs) => self.pairs(|side| once(needs, side)),
            Err(why) => Err(Error::msg(format!("{why:#}"))),
        };
        self.show(name, pairs);
    }

    /// The same, of pairs whose two runs are one run of both builds: `both` has each
    /// of them in turn for as short a time as it likes.
    pub fn row_of_both(&mut self, name: &str, both: impl Fn([&S; 2]) -> Result<[Figures; 2]>) {
        if !self.chooses(name) {
            return;
        }
        let pairs = (0..self.warm_up + self.rounds).map(|_| both(self.sides));
        let pairs = pairs.collect::<Result<Vec<_>>>();
        let counted = pairs.map(|pairs| pairs.into_iter().skip(self.warm_up).collect());
        self.show(name, counted);
    }

    fn chooses(&mut self, name: &str) -> bool {
        let chosen = name.contains(&self.only);
        self.chosen += usize::from(chosen);
        chosen
    }

    fn show(&mut self, name: &str, pairs: Result<Vec<[Figures; 2]>>) {
        match pairs.and_then(|pairs| lines(name, &pairs)) {
            Ok(lines) => println!("{}", lines.join("\n")),
            Err(why) => {
                println!("{name}: not run: {why:#}");
                self.missing.push(name.to_owned());
            }
        }
    }

    /// Those that count, each this build's run and the other's.
    fn pairs(&self, once: impl Fn(&S) -> Result<Figures>) -> Result<Vec<[Figures; 2]>> {
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
        let (this, other, ratio) = (this.brief(places), other.brief(places), ratio.brief(3));
        let count = pairs.len();
        Ok(format!(
            "{name:42}{this:>24}{other:>26}{ratio:>22}{count:>7}"
        ))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn table(warm_up: usize, rounds: usize, only: &str) -> Table<'static, &'static str> {
        Table {
            sides: [&"this", &"other"],
            warm_up,
            rounds,
            only: only.to_owned(),
            chosen: 0,
            missing: Vec::new(),
        }
    }

    fn figures(list: &[(&str, f64)]) -> Figures {
        list.iter()
            .map(|(unit, figure)| ((*unit).to_owned(), *figure))
            .collect()
    }

    #[test]
    fn each_build_is_first_in_every_other_pair_and_the_first_pair_warms_up() {
        let made = table(1, 2, "");
        let order = RefCell::new(Vec::new());
        let pairs = made.pairs(|side| {
            let mut order = order.borrow_mut();
            order.push(*side);
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
    fn a_row_of_both_has_no_turns_of_its_own() {
        let mut made = table(1, 2, "");
        let runs = RefCell::new(0);
        made.row_of_both("restarts", |sides| {
            assert_eq!(sides, [&"this", &"other"]);
            *runs.borrow_mut() += 1;
            Ok(sides.map(|_| figures(&[("µs", 1.0)])))
        });
        assert_eq!(runs.into_inner(), 3);
        made.row_of_both("more", |_| bail!("no program"));
        assert_eq!(made.missing, ["more"]);
    }

    #[test]
    fn a_row_that_does_not_run_is_missing_and_the_next_one_runs() {
        let mut made = table(0, 1, "");
        let no_tap: Result<()> = Err(Error::msg("no tap"));
        made.row("frames", &no_tap, |(), _| Ok(Vec::new()));
        made.row("reads", &Ok(()), |(), _| bail!("no disk"));
        made.row("start-up", &Ok(()), |(), _| Ok(figures(&[("ms", 1.0)])));
        assert_eq!(made.missing, ["frames", "reads"]);
    }

    #[test]
    fn a_row_that_is_left_out_does_not_run_and_no_row_at_all_is_told() {
        let mut made = table(0, 1, "reads");
        made.row("frames", &Ok(()), |(), _| panic!("it ran"));
        made.row_of_both("restarts", |_| panic!("it ran"));
        assert_eq!(made.chosen, 0);
        made.row("more reads", &Ok(()), |(), _| Ok(figures(&[("ms", 1.0)])));
        made.finish().unwrap();
        let error = table(0, 1, "nothing").finish().unwrap_err();
        assert!(error.to_string().contains("\"nothing\""), "{error}");
    }
}
