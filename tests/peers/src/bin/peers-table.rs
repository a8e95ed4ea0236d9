//! Prints the tables that the `CELL` lines of logs make, and compares them
//! with those of a text: `peers-table README.md LOG…`. What a run did not try
//! is not compared. The status is 1 if the text says of anything what is not
//! so.

use std::ffi::OsStr;
use std::process::ExitCode;

use anyhow::{Context, Result};
use outboard_peers::table::Tables;

fn main() -> Result<ExitCode> {
    let mut files = std::env::args_os().skip(1);
    let path = files.next().context("usage: peers-table README.md LOG…")?;
    let read = |file: &OsStr| {
        let bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        anyhow::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read(&path)?;
    let mut log = String::new();
    for file in files {
        log += &read(&file)?;
        log.push('\n');
    }
    let tables = Tables::of_log(&log);
    println!("{tables}");
    for peer in tables.other_versions(&text) {
        println!(
            "note: {} tells of another version of {peer}",
            path.display()
        );
    }
    let contradictions = tables.contradictions(&text);
    for contradiction in &contradictions {
        println!("{}: {contradiction}", path.display());
    }
    Ok(match contradictions.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
