//! `outboard-style`: checks of the product's source that compiler and clippy do
//! not make. The `syn` crate parses it; names are resolved as far as that needs
//! no types. `scripts/test style` counts the lines `CHECK name: ok`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

mod circles;
mod known;
mod names;
mod product;
mod sizes;
mod source;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests;
mod tokens;
mod tree;

const HELP: &str = "\
Checks the source of the product. Run it at the top of a checkout; it takes no
arguments.

The product is `vmm/src`, `backends/*/src`, `protocol/src` and
`protocol/*/src`. Whatever is compiled for tests only is left out.

Circles of files: no two files of a crate name one another, in one step or
over others. A file names another when it holds a path to an item that the
other one defines: in a `use`, anywhere else, or in the tokens of a macro or
an attribute.
  - An item that is re-exported belongs to the file that defines it.
  - Naming a module is no step. Naming an item in it is.
  - A file and a file that it declares (`mod name;`) do not count, in either
    direction. A file and a module of its module do.
  - Not seen: methods of a value, `{NAME}` within a text to be printed, and
    what a macro makes of its tokens.
  - Circles that are listed in scripts/style/src/known.rs are no failure, but
    they must be there as they are listed.

Sizes of files and functions: a file has at most 400 lines, with comments and
blank lines. A function has at most 60, from the line of its `fn` to that of
its closing brace, with the functions in it.

Lines of the product: at most 36,100 that are neither blank nor comment alone.";

fn main() -> Result<ExitCode> {
    if let Some(argument) = std::env::args_os().nth(1) {
        println!("{HELP}");
        return Ok(ExitCode::from(if argument == "--help" { 0 } else { 2 }));
    }
    let crates = product::read(Path::new("."))?;
    let files = product::files(&crates);
    let circles: Vec<_> = crates.iter().flat_map(circles::of).collect();
    let checks = [
        ("circles of files", known::check(&circles, known::KNOWN)),
        ("sizes of files and functions", sizes::check(&files)),
        (
            "lines of the product",
            sizes::count(&files, sizes::PRODUCT_LINES),
        ),
    ];
    let mut status = ExitCode::SUCCESS;
    for (name, Outcome { told, wrong }) in checks {
        if wrong.is_empty() {
            println!("CHECK {name}: ok");
        } else {
            println!("CHECK {name}: FAILED");
            status = ExitCode::FAILURE;
        }
        // What is wrong comes last: of a long list the end is repeated.
        for line in told.iter().chain(&wrong) {
            println!("{line}");
        }
    }
    Ok(status)
}

/// What a check has found.
#[derive(Debug, Default)]
struct Outcome {
    told: Vec<String>,
    /// Why it has failed; empty if it has not.
    wrong: Vec<String>,
}
