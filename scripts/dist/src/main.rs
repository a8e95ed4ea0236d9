//! `outboard-dist DIRECTORY`: writes the man pages of every program, made of
//! its command line, so that they say what `--help` says. It is a program of
//! its own, so that the products carry nothing for it.

use std::path::PathBuf;

use anyhow::Context;
use clap::{CommandFactory, Parser};

/// Write the man pages of Outboard's programs
#[derive(Parser)]
struct Cli {
    /// The directory, which must exist
    directory: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let directory = Cli::parse().directory;
    for command in [
        outboard::cli::Cli::command(),
        outboard_blk::cli::Cli::command(),
        outboard_net::cli::Cli::command(),
        outboard_rng::Cli::command(),
    ] {
        let name = command.get_name().to_owned();
        // Nobody wants a page for `help`.
        let command = command.disable_help_subcommand(true);
        clap_mangen::generate_to(command, &directory).with_context(|| {
            format!(
                "cannot write the man page of {name} to {}",
                directory.display()
            )
        })?;
    }
    Ok(())
}
