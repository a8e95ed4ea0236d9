//! Which engine a disk has: the one that was asked for, or what is to be had.

use std::fs::File;
use std::io;
use std::sync::Arc;

use clap::ValueEnum;
use outboard_log::rarely;

use super::Engine;
use super::threads::Threads;
use super::uring::{Unusable, Uring};

/// Which engine to use (`--engine`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// io_uring if the kernel permits it, else threads
    #[default]
    Auto,
    /// io_uring, or an error where the kernel does not permit it
    #[value(name = "io_uring")]
    IoUring,
    /// Threads, with system calls that wait
    Threads,
}

impl Choice {
    /// Tries whether `io_uring` is to be had: where it is not, [`Choice::Auto`]
    /// becomes threads, and that is said.
    ///
    /// # Errors
    /// `io_uring` was asked for by name and is not to be had.
    pub fn settle(self) -> anyhow::Result<Self> {
        if self == Self::Threads {
            return Ok(self);
        }
        match (self, Uring::probe()) {
            (_, Ok(())) => Ok(self),
            (Self::Auto | Self::Threads, Err(why)) => {
                // Where it is not permitted, that is as it should be; a limit
                // that is too low is not.
                let level = match why {
                    Unusable::Absent(_) => log::Level::Info,
                    Unusable::NoThreads(_) => log::Level::Warn,
                };
                let remedy = why.remedy();
                log::log!(
                    level,
                    "io_uring is not to be had ({why}): using threads; {remedy}"
                );
                Ok(Self::Threads)
            }
            (Self::IoUring, Err(why)) => anyhow::bail!(
                "cannot use io_uring: {why}; use --engine=auto or --engine=threads, or {}",
                why.remedy()
            ),
        }
    }

    /// Makes an engine for `file` that holds up to `depth` jobs at a time.
    ///
    /// # Errors
    /// Those of the resources it needs.
    pub fn make(self, file: &Arc<File>, depth: u16) -> io::Result<Box<dyn Engine>> {
        if self != Self::Threads {
            match Uring::new(file.clone(), depth) {
                Ok(engine) => return Ok(Box::new(engine)),
                Err(error) if self == Self::Auto => {
                    rarely!(warn, "no io_uring for a queue ({error}): it has threads");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Box::new(Threads::new(file.clone(), depth)?))
    }
}
