//! What is left of a disk when its power is cut: in an emulated host, images
//! lie on a disk of which QEMU logs every write and every flush. The moment at
//! which a guest has ended is marked in the log. What was written before the
//! last flush before that moment is replayed, and nothing else: that is all
//! that a disk with a volatile cache must still have. On it, the file system
//! is mended and the image must hold every sector as the guest was told.
//!
//! This believes neither the kernel's tracepoints nor the guest's view, and
//! it sees a flush that comes before the data, or that syncs too little.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};
use libtest_mimic::Trial;
use outboard_e2e::image::{Content, Image};
use outboard_e2e::products::Products;
use outboard_e2e::vm::Ended;
use tempfile::TempDir;

use crate::block_log::Log;
use crate::served::Program;
use crate::trial;

/// A page of the emulated host's disk that no file system reaches to; page
/// `MARK + n` is written when the guest of case `n` (from 1) has ended.
const MARK: u64 = 1 << 17;
/// What `power-cut.sh` gives an image.
const IMAGE: u64 = 8 << 20;
const SEED: u64 = 1;

const SOUND: Program = Program::Sound;
const FORGETFUL: Program = Program::Faulty("blk-forgets-syncs");
const FLUSHES: &str = "flush_every=32";
const NEVER_FLUSHES: &str = "flush_every=0";
const CANNOT_FLUSH: &str = "features_mask=0xfffffffffffffdff";

struct Case {
    sentence: &'static str,
    program: Program,
    options: &'static str,
    guest: &'static str,
}

const fn case(
    sentence: &'static str,
    program: Program,
    options: &'static str,
    guest: &'static str,
) -> Case {
    Case {
        sentence,
        program,
        options,
        guest,
    }
}

const CASES: [Case; 12] = [
    case(
        "what was flushed survives a power cut by io_uring",
        SOUND,
        "--engine=io_uring",
        FLUSHES,
    ),
    case(
        "what was flushed survives a power cut by threads",
        SOUND,
        "--engine=threads",
        FLUSHES,
    ),
    case(
        "what was flushed survives a power cut with direct I-O by io_uring",
        SOUND,
        "--engine=io_uring --direct",
        FLUSHES,
    ),
    case(
        "what was flushed survives a power cut with direct I-O by threads",
        SOUND,
        "--engine=threads --direct",
        FLUSHES,
    ),
    case(
        "with the write cache off what was written survives a power cut by io_uring",
        SOUND,
        "--engine=io_uring --wce=off",
        NEVER_FLUSHES,
    ),
    case(
        "with the write cache off what was written survives a power cut by threads",
        SOUND,
        "--engine=threads --wce=off",
        NEVER_FLUSHES,
    ),
    case(
        "with the write cache off and direct I-O what was written survives a power cut by io_uring",
        SOUND,
        "--engine=io_uring --wce=off --direct",
        NEVER_FLUSHES,
    ),
    case(
        "what a driver wrote that cannot flush survives a power cut by io_uring",
        SOUND,
        "--engine=io_uring",
        CANNOT_FLUSH,
    ),
    case(
        "what a driver wrote that cannot flush survives a power cut by threads",
        SOUND,
        "--engine=threads",
        CANNOT_FLUSH,
    ),
    case(
        "a back-end that forgets flushes loses data in a power cut",
        FORGETFUL,
        "--engine=io_uring",
        FLUSHES,
    ),
    case(
        "a back-end that forgets flushes loses data in a power cut with direct I-O",
        FORGETFUL,
        "--engine=threads --direct",
        FLUSHES,
    ),
    case(
        "a back-end that forgets that its write cache is off loses data in a power cut",
        FORGETFUL,
        "--engine=threads --wce=off",
        NEVER_FLUSHES,
    ),
];

/// What a guest was told, and what was left.
struct Aftermath {
    told: Content,
    found: Result<Content, String>,
}

/// A case on its own, of those that ran together.
fn check(number: usize) -> Result<()> {
    static ALL: OnceLock<Result<Vec<Aftermath>, String>> = OnceLock::new();
    let all = ALL.get_or_init(|| cut_all().map_err(|error| format!("{error:#}")));
    let all = all.as_ref().map_err(|error| anyhow!("{error}"))?;
    let (Aftermath { told, found }, case) = all
        .get(number)
        .zip(CASES.get(number))
        .context("no such case")?;
    ensure!(
        told.sectors > 100,
        "the guest wrote next to nothing: {told:?}"
    );
    let survived = found.as_ref() == Ok(told);
    ensure!(
        survived == (case.program == SOUND),
        "the guest was told {told:?}, found was {found:?}"
    );
    Ok(())
}

/// Runs all cases in one emulated host and looks at what is left of each.
fn cut_all() -> Result<Vec<Aftermath>> {
    let folder = tempfile::tempdir()?;
    run_emulated_host(&folder)?;
    let log = Log::open(&folder.path().join("writes.log"))?;
    let numbers = 1..=CASES.len();
    numbers
        .map(|number| {
            let console = folder.path().join(format!("out/{number}.txt"));
            let told = told(&console).with_context(|| format!("case {number}"))?;
            let found = found(&folder, &log, number).map_err(|error| format!("{error:#}"));
            Ok(Aftermath { told, found })
        })
        .collect()
}

/// The guest's own word, after it has read everything back.
fn told(console: &Path) -> Result<Content> {
    let ended = Ended {
        status: ExitStatus::default(),
        console: fs::read_to_string(console).context("the guest's console")?,
        messages: String::new(),
    };
    let result = ended.result("verify")?.passed()?;
    Ok(Content {
        sectors: result.number("sectors")?,
        digest: result.number("digest")?,
    })
}

/// What an image holds after the power was cut when its guest had ended.
fn found(folder: &TempDir, log: &Log, number: usize) -> Result<Content> {
    let disk = folder.path().join("cut.img");
    let mark = (MARK + number as u64) * 4096 / 512;
    log.replay_until_cut(mark, &disk)?;
    let status = Command::new(tool("e2fsck")?)
        .args(["-f", "-y"])
        .arg(&disk)
        .output()?
        .status;
    ensure!(
        status.code().is_some_and(|code| code < 4),
        "e2fsck: {status}"
    );
    let image = Image::new(IMAGE)?;
    let dump = format!("dump /{number}.img {}", image.path().display());
    let output = Command::new(tool("debugfs")?)
        .args(["-R", &dump])
        .arg(&disk)
        .output()?;
    ensure!(output.status.success(), "debugfs: {}", output.status);
    let left = fs::metadata(image.path())?.len();
    ensure!(left == IMAGE, "{left} bytes are left of the image");
    image.check(SEED)
}

fn run_emulated_host(folder: &TempDir) -> Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/durability");
    let (script, cases) = (folder.path().join("script"), folder.path().join("cases"));
    fs::write(&script, format!("#!/bin/sh\nexec ./power-cut.sh {MARK}\n"))?;
    fs::write(&cases, lines()?)?;
    let products = Products::get()?;
    let files = [
        here.join("power-cut.sh"),
        cases,
        products.program("outboard"),
        SOUND.path()?,
        FORGETFUL.path()?,
        products.guest("guest-pvh"),
        tool("mke2fs")?,
    ];
    let mut linux = Command::new(scripts_linux());
    linux.arg("--emulated-host").arg(script);
    for file in &files {
        linux.arg("--file").arg(file);
    }
    linux.arg("--out").arg(folder.path().join("out"));
    linux
        .arg("--log-writes")
        .arg(folder.path().join("writes.log"));
    let output = folder.path().join("output.txt");
    let status = run(&mut linux, &output)?;
    let said = fs::read_to_string(&output)?;
    ensure!(status.success(), "the emulated host: {status}: {said}");
    Ok(())
}

/// The lines of `power-cut.sh`'s file `cases`.
fn lines() -> Result<String> {
    let mut lines = String::new();
    for (number, case) in (1..).zip(&CASES) {
        let program = case.program.path()?;
        let program = program.file_name().context("a program")?.to_string_lossy();
        let (options, guest) = (case.options, case.guest);
        lines += &format!(
            "{number}|{program}|{options}|\
             scenario=verify requests=200 depth=16 queues=2 seed={SEED} {guest}\n"
        );
    }
    Ok(lines)
}

/// Runs a script, which itself ends what says nothing any more, to its end.
fn run(command: &mut Command, output: &Path) -> Result<ExitStatus> {
    command.stdin(Stdio::null());
    command.stdout(File::create(output)?);
    command.stderr(File::options().append(true).open(output)?);
    Ok(command.status()?)
}

fn scripts_linux() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/linux")
}

/// A program by its name; some are where only root's PATH looks.
fn tool(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("there is no {name} on this machine"))
}

/// Why there can be no emulated host here. The script installs what it needs
/// where it may.
fn no_emulated_host() -> Option<String> {
    let script = scripts_linux();
    if !script.is_file() {
        return Some(format!("there is no {}", script.display()));
    }
    let can_install = nix::unistd::geteuid().is_root() && tool("apt-get").is_ok();
    let programs: &[&str] = match can_install {
        true => &["mke2fs"],
        false => &["mke2fs", "qemu-system-x86_64"],
    };
    let missing = programs.iter().find_map(|name| tool(name).err());
    missing.map(|error| error.to_string())
}

/// The tests of this file. The first that runs does the work for all.
pub fn trials() -> Vec<Trial> {
    let trials = CASES.iter().enumerate().map(|(number, case)| {
        trial(case.sentence.to_owned(), no_emulated_host, move || {
            check(number)
        })
    });
    trials.collect()
}
