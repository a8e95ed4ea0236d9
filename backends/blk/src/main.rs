//! `outboard-blk`: a disk in a process of its own.

use std::process::ExitCode;

use clap::Parser;
use outboard_blk::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().serve(|blk| blk)
}
