//! `outboard-dist DIRECTORY`: writes the man pages of every program, made of
//! its command line, so that they say what `--help` says. It is a program of
//! its own, so that the products carry nothing for it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory, Parser};

mod help;
mod page;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests;

/// Write the man pages of Outboard's programs
#[derive(Parser)]
struct Cli {
    /// The directory, which must exist
    directory: PathBuf,
}

fn main() -> Result<()> {
    let directory = Cli::parse().directory;
    for (name, page) in pages()? {
        let file = directory.join(format!("{name}.1"));
        std::fs::write(&file, page)
            .with_context(|| format!("cannot write the man page {}", file.display()))?;
    }
    Ok(())
}

/// Every page by its name.
fn pages() -> Result<Vec<(String, String)>> {
    let commands = commands();
    let names: Vec<_> = commands.iter().map(page::name).collect();
    let page = |command: &Command| {
        let name = page::name(command);
        let page = page::render(command, &names)
            .with_context(|| format!("the help of {name} cannot be made a man page"))?;
        Ok((name, page))
    };
    commands.iter().map(page).collect()
}

/// The programs, and behind each its subcommands.
fn commands() -> Vec<Command> {
    let programs = [
        outboard::cli::Cli::command(),
        outboard_blk::cli::Cli::command(),
        outboard_net::cli::Cli::command(),
        outboard_rng::Cli::command(),
    ];
    let mut commands = Vec::new();
    for program in programs {
        // Nobody wants a page for `help`.
        let mut program = program.disable_help_subcommand(true);
        program.build();
        let shown = |command: &&Command| !command.is_hide_set();
        let subcommands: Vec<_> = program.get_subcommands().filter(shown).cloned().collect();
        commands.push(program);
        commands.extend(subcommands);
    }
    commands
}
