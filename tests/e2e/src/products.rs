//! The programs and guests under test.
//!
//! `OUTBOARD_BIN_DIR` (or `OUTBOARD_BIN`, which the scripts set) names a folder with
//! the programs, `GUESTS` one with the bundled guest's packagings; what is
//! not named is built.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};

/// The ways in which the bundled guest is packed.
pub const PACKAGINGS: [&str; 3] = ["guest-pvh", "guest-elf64", "guest.bzimage"];

/// Outboard's programs.
const PROGRAMS: [&str; 4] = ["outboard", "outboard-blk", "outboard-net", "outboard-rng"];

/// Where the programs and guests are.
#[derive(Debug)]
pub struct Products {
    programs: PathBuf,
    guests: PathBuf,
}

impl Products {
    /// Those of this run of the tests: found or built once.
    ///
    /// # Errors
    /// What is missing, or how building it failed.
    pub fn get() -> Result<&'static Self> {
        static PRODUCTS: OnceLock<Result<Products, String>> = OnceLock::new();
        PRODUCTS
            .get_or_init(|| Self::find().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow!("{error}"))
    }

    fn find() -> Result<Self> {
        let named = env::var_os("OUTBOARD_BIN_DIR").or_else(|| env::var_os("OUTBOARD_BIN"));
        let programs = match named {
            Some(directory) => PathBuf::from(directory),
            None => build_programs(&PROGRAMS)?,
        };
        let guests = match env::var_os("GUESTS") {
            Some(directory) => PathBuf::from(directory),
            None => build_guests()?,
        };
        let products = Self { programs, guests };
        let peer = products.guest("guest-peer");
        let guests = PACKAGINGS.map(|name| products.guest(name));
        let programs = PROGRAMS.map(|name| products.program(name));
        for file in programs.iter().chain(&guests).chain([&peer]) {
            if !file.is_file() {
                bail!("{} is missing", file.display());
            }
        }
        Ok(products)
    }

    /// One of Outboard's programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// The bundled guest in one of [`PACKAGINGS`].
    pub fn guest(&self, name: &str) -> PathBuf {
        self.guests.join(name)
    }
}

/// outboard-blk with a fault, by the name of that program. Those are never installed: they
/// lie in `OUTBOARD_HOSTILE`, or are built beside this test.
///
/// # Errors
/// How building them failed.
pub fn faulty(name: &str) -> Result<PathBuf> {
    static FAULTY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let directory = FAULTY.get_or_init(|| faulty_programs().map_err(|error| format!("{error:#}")));
    let directory = directory.as_ref().map_err(|error| anyhow!("{error}"))?;
    Ok(directory.join(name))
}

fn faulty_programs() -> Result<PathBuf> {
    match env::var_os("OUTBOARD_HOSTILE") {
        Some(directory) => Ok(directory.into()),
        None => build_programs(&["outboard-hostile"]),
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Builds these packages as this test was built: debug, or release.
fn build_programs(packages: &[&str]) -> Result<PathBuf> {
    let test = env::current_exe()?;
    let directory = test
        .ancestors()
        .nth(2)
        .context("this test is not in a target folder; set OUTBOARD_BIN_DIR")?;
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--locked"]);
    cargo.args(packages.iter().flat_map(|name| ["-p", name]));
    if directory.ends_with("release") {
        cargo.arg("--release");
    }
    succeed(cargo.current_dir(workspace()))?;
    Ok(directory.to_owned())
}

fn build_guests() -> Result<PathBuf> {
    // target/TRIPLE/PROFILE/deps/THIS
    let test = env::current_exe()?;
    let target = test
        .ancestors()
        .nth(4)
        .context("this test is not in a target folder; set GUESTS")?;
    let guests = target.join("guest");
    let mut build = Command::new(workspace().join("tests/guest/build"));
    succeed(
        build
            .arg(&guests)
            .env("CARGO_TARGET_DIR", target.join("guest-build")),
    )?;
    Ok(guests)
}

/// Writes a shell script that can be executed at once. Another process writes
/// it: what this one has open for writing, a child that any of its threads
/// starts has open too until it has become its program, and the kernel executes
/// no file that somebody has open for writing.
///
/// # Errors
/// Those of the file system.
pub fn write_script(path: &Path, text: &str) -> Result<()> {
    let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" >\"$0\" && chmod 755 \"$0\"";
    let mut shell = Command::new("/bin/sh");
    succeed(shell.arg("-c").arg(write).arg(path).arg(text))
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("starting {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}
