//! `outboard-net`: a network card in a process of its own.

use std::process::ExitCode;

use clap::Parser;
use outboard_net::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().serve()
}
