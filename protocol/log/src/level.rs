//! Which lines are said: `--log-level`, `--verbose`, `RUST_LOG`.

use clap::ValueEnum;
use serde::Deserialize;

/// The environment variable of the `env_logger` crate, whose language it has.
pub const FILTERS_ENV: &str = "RUST_LOG";
/// A guest can make this crate say something with every kick.
const MUTED: &str = "virtio_queue=off";
/// The same of the stock daemon and a front-end with every message. Not told
/// to the programs of others, whose one voice it may be.
const MUTED_HERE: &str = "vhost_user_backend=off";

/// How serious a line must be to be said, from nothing to everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing is logged.
    Off,
    /// What ends a device or a program.
    Error,
    /// What is not as it should be.
    Warn,
    /// What a user may want to know.
    Info,
    /// What a developer may want to know.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    /// The level that is so many steps louder.
    fn louder(self, steps: u8) -> Self {
        let mut louder = Self::value_variants().iter().skip(self as usize);
        *louder.nth(steps.into()).unwrap_or(&Self::Trace)
    }

    /// The same in `RUST_LOG`'s language.
    pub fn filters(self) -> String {
        format!("{MUTED},{self:?}").to_lowercase()
    }
}

/// What every program takes on its command line; to be flattened into its
/// arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Verbosity {
    /// Log what is at least this serious: off, error, warn, info, debug or trace
    /// [default: by RUST_LOG, else warn; info of a back-end started by hand]
    #[arg(
        long,
        value_name = "LEVEL",
        conflicts_with = "verbose",
        hide_possible_values = true
    )]
    log_level: Option<Level>,

    /// Log one level more than the default for each -v
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

impl Verbosity {
    /// What was asked for, if anything was; `usual` is what `-v` adds to.
    pub fn asked(&self, usual: Level) -> Option<Level> {
        let louder = (self.verbose > 0).then(|| usual.louder(self.verbose));
        self.log_level.or(louder)
    }
}

/// What this process lets through: `asked`, or what `RUST_LOG` says, or
/// `usual`.
pub fn filters(asked: Option<Level>, usual: Level) -> String {
    chosen(asked, std::env::var(FILTERS_ENV).ok(), usual)
}

fn chosen(asked: Option<Level>, environment: Option<String>, usual: Level) -> String {
    let environment = environment.filter(|filters| !filters.trim().is_empty());
    let filters = match asked {
        Some(level) => level.filters(),
        None => environment.unwrap_or_else(|| usual.filters()),
    };
    // In front: who names such a crate himself has the last word on it.
    format!("{MUTED},{MUTED_HERE},{filters}")
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use log::{Level as At, Log, Metadata};

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        verbosity: Verbosity,
    }

    fn asked(words: &[&str]) -> Option<Level> {
        let words = [&["program"], words].concat();
        Cli::parse_from(words).verbosity.asked(Level::Warn)
    }

    /// Whether `filters` let a line of a module through.
    fn says(filters: &str, module: &str, level: At) -> bool {
        let logger = env_logger::Builder::new().parse_filters(filters).build();
        logger.enabled(&Metadata::builder().target(module).level(level).build())
    }

    #[test]
    fn every_level_has_its_word_and_each_v_is_one_more() {
        assert_eq!(asked(&[]), None);
        for level in Level::value_variants() {
            let word = format!("{level:?}").to_lowercase();
            assert_eq!(asked(&["--log-level", &word]), Some(*level));
            assert!(level.filters().ends_with(&format!(",{word}")));
        }
        for (words, level) in [
            (&["-v"][..], Level::Info),
            (&["-vv"], Level::Debug),
            (&["--verbose", "--verbose", "-v"], Level::Trace),
            (&["-vvvvvvvvvvvv"], Level::Trace),
        ] {
            assert_eq!(asked(words), Some(level), "{words:?}");
        }
        let both = ["program", "-v", "--log-level=off"];
        assert!(Cli::try_parse_from(both).is_err());
    }

    #[test]
    fn an_option_beats_the_environment_and_that_the_default() {
        for (asked, environment, loudest) in [
            (None, None, Some(At::Info)),
            (None, Some(""), Some(At::Info)),
            (None, Some("warn"), Some(At::Warn)),
            (None, Some("outboard_blk=debug"), Some(At::Debug)),
            (None, Some("other=debug"), None),
            (Some(Level::Error), Some("debug"), Some(At::Error)),
            (Some(Level::Trace), Some("off"), Some(At::Trace)),
            (Some(Level::Off), None, None),
        ] {
            let filters = chosen(asked, environment.map(str::to_owned), Level::Info);
            let said = At::iter().filter(|level| says(&filters, "outboard_blk::x", *level));
            assert_eq!(said.max(), loudest, "{asked:?} {environment:?}");
        }
    }

    #[test]
    fn what_a_guest_makes_a_crate_say_is_said_only_if_that_crate_is_named() {
        for environment in [None, Some("trace"), Some("info,outboard=trace")] {
            for asked in [None, Some(Level::Trace)] {
                let filters = chosen(asked, environment.map(str::to_owned), Level::Trace);
                for module in ["virtio_queue::queue", "vhost_user_backend::handler"] {
                    assert!(!says(&filters, module, At::Error), "{filters}");
                }
            }
        }
        assert!(!says(&Level::Trace.filters(), "virtio_queue", At::Error));
        let named = chosen(None, Some("virtio_queue=warn".into()), Level::Info);
        assert!(says(&named, "virtio_queue::queue", At::Warn));
    }
}
