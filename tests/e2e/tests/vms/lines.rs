//! The line between a back-end and its supervisor, as programs of others use it or
//! do not: the VM runs in any case.

use std::fs;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use outboard_e2e::eventually;
use outboard_e2e::image::Image;
use outboard_e2e::products::{self, Products};
use outboard_e2e::vm::{Ended, Run, Vm};

use crate::{KVM, Test, test};

const MIB: u64 = 1 << 20;
/// What is said of a program that does not use its line.
const VERSION_1: &str = "disk0: backend keeps version 1 of the launch contract";

pub fn tests() -> Vec<Test> {
    vec![
        test(
            "a program that knows no line serves and is not complained about",
            KVM,
            knows_no_line,
        ),
        test(
            "that a program knows no line is told who asks for it, once a vm",
            KVM,
            told_once,
        ),
        test(
            "a program of outboard's own that is older serves, with a warning",
            KVM,
            older,
        ),
        test(
            "a program that says nonsense on its line serves on",
            KVM,
            nonsense,
        ),
        test(
            "a program that closes its line serves on",
            KVM,
            closes_its_line,
        ),
        test(
            "a program that never stops speaking is ended as any other",
            KVM,
            never_stops,
        ),
    ]
}

/// A VM whose disk is served by outboard-blk, after a shell has done this in its place.
/// outboard-blk itself knows of no line then.
fn run(image: &Image, before: &str, cmdline: &str) -> Result<Run> {
    let blk = Products::get()?.program("outboard-blk");
    let path = image.directory().join("backend");
    let text = format!("{before}\nunset OUTBOARD_LINE\nexec {blk:?} \"$@\"");
    products::write_script(&path, &text)?;
    let disk = format!("{},backend={}", image.option(), path.display());
    Ok(Run::guest(cmdline)?.with("--disk", disk))
}

fn count(ended: &Ended, words: &str) -> usize {
    let lines = ended.messages.lines();
    lines.filter(|line| line.contains(words)).count()
}

fn knows_no_line() -> Result<()> {
    let image = Image::new(MIB)?;
    let run = run(&image, "", "scenario=verify requests=100")?;
    let mut vm = run.under(&["env", "-u", "RUST_LOG"]).start()?;
    let ended = vm.wait()?.with_code(0)?;
    ended.result("verify")?.passed()?;
    ensure!(ended.messages.is_empty(), "{ended}");
    vm.check_nothing_is_left()
}

fn told_once() -> Result<()> {
    let image = Image::new(16 * MIB)?;
    let scenario = "scenario=verify requests=100 exit=reset fresh=0";
    let mut vm = run(&image, "", scenario)?
        .switch("-v")
        .with("--on-reset", "restart")
        .start()?;
    for _ in 0..3 {
        vm.console_line("OUTBOARD verify result=pass")?;
    }
    vm.signal(Signal::SIGTERM)?;
    let ended = vm.wait()?.with_code(0)?;
    ensure!(count(&ended, VERSION_1) == 1, "{ended}");
    vm.check_nothing_is_left()
}

/// One that is beside outboard, as it would be of an earlier release.
fn older() -> Result<()> {
    let image = Image::new(MIB)?;
    let products = Products::get()?;
    // Beside the programs, so that a link will do: a copy takes much room.
    let folder = tempfile::tempdir_in(products.program(""))?;
    let place = |name: &str| folder.path().join(name);
    fs::hard_link(products.program("outboard"), place("outboard"))?;
    let blk = products.program("outboard-blk");
    let text = format!("unset OUTBOARD_LINE\nexec {blk:?} \"$@\"");
    products::write_script(&place("outboard-blk"), &text)?;
    let mut vm = Run::program(place("outboard"))
        .switch("run")
        .with("--kernel", products.guest("guest-pvh"))
        .with("--cmdline", "scenario=verify requests=100")
        .with("--disk", image.option())
        .start()?;
    let ended = vm.wait()?.with_code(0)?;
    ended.result("verify")?.passed()?;
    let words = "WARN disk0: outboard-blk keeps version 1 of the launch contract";
    ensure!(count(&ended, words) == 1, "{ended}");
    vm.check_nothing_is_left()
}

fn nonsense() -> Result<()> {
    let image = Image::new(MIB)?;
    let before = "printf 'It is not for me to say \\033[2J what I am.' >&$OUTBOARD_LINE";
    let mut vm = run(&image, before, "scenario=verify requests=100")?.start()?;
    let ended = vm.wait()?.with_code(0)?;
    ended.result("verify")?.passed()?;
    let words = "WARN disk0: backend says what no back-end says (";
    ensure!(count(&ended, words) == 1, "{ended}");
    ensure!(count(&ended, "\u{1b}") == 0, "{ended}");
    vm.check_nothing_is_left()
}

/// A guest that is busy until somebody ends it.
const BUSY: &str = "scenario=verify requests=100000000";
/// A program says that it is ready.
const READY: &str = r#"printf '{"message":"ready","version":2,"sandbox":{}}' >&$OUTBOARD_LINE"#;

fn says(vm: &Vm, words: &str) -> Result<()> {
    eventually(words, || Ok(vm.messages().contains(words).then_some(())))
}

fn closes_its_line() -> Result<()> {
    let image = Image::new(MIB)?;
    let before = format!("{READY}\neval \"exec $OUTBOARD_LINE>&-\"");
    let mut vm = run(&image, &before, BUSY)?.start()?;
    says(
        &vm,
        "WARN disk0: backend has closed its line to outboard: it serves on",
    )?;
    vm.signal(Signal::SIGTERM)?;
    let ended = vm.wait()?.with_code(0)?;
    ensure!(count(&ended, "launch contract") == 0, "{ended}");
    vm.check_nothing_is_left()
}

/// A signal is heard, and the end of the program, whatever it started says on.
fn never_stops() -> Result<()> {
    let image = Image::new(MIB)?;
    let keeps = r#"printf '{"message":"keeps","kept":"nothing"}' >&$OUTBOARD_LINE"#;
    let before = format!("{READY}\nwhile :; do {keeps}; done 2>/dev/null &");
    let mut vm = run(
        &image,
        &before,
        "scenario=verify requests=100 exit=reset fresh=0",
    )?
    .with("--on-reset", "restart")
    .start()?;
    for _ in 0..2 {
        vm.console_line("OUTBOARD verify result=pass")?;
    }
    vm.signal(Signal::SIGTERM)?;
    let ended = vm.wait()?.with_code(0)?;
    ensure!(count(&ended, "WARN") == 0, "{ended}");
    vm.check_nothing_is_left()
}
