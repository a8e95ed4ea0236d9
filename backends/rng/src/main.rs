//! `outboard-rng`: entropy in a process of its own.

use std::process::ExitCode;

use clap::Parser;
use outboard_rng::Cli;

fn main() -> ExitCode {
    Cli::parse().serve()
}
