//! `outboard`: the supervisor and, started by it, the machine.

use std::process::{ExitCode, Termination};

use clap::Parser;
use outboard::cli::{Cli, Command};
use outboard::supervisor;

fn main() -> ExitCode {
    env_logger::init();
    match Cli::parse().command {
        Command::Run(run) => {
            let (file, settings) = run.settings();
            supervisor::run(file, settings).report()
        }
        Command::Machine => ExitCode::FAILURE,
    }
}
