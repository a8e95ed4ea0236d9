//! What each program's help gives as an example works when pasted. (Those of
//! outboard-blk are tried by its own tests.)

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use outboard_contract::client::Client;
use outboard_e2e::eventually;
use outboard_e2e::image::Image;
use outboard_e2e::processes::Process;
use outboard_e2e::products::Products;
use outboard_e2e::vm::{Run, Vm};

use crate::{Need, Test, test};

const MIB: u64 = 1 << 20;
const VERSION_1: u64 = 1 << 32;

/// One example makes a tap: root makes it in a network of its own.
const RUNS: &[Need] = &[
    Need::Kvm,
    Need::Root,
    Need::Program("unshare"),
    Need::Program("ip"),
    Need::Program("qemu-storage-daemon"),
];

const CARDS: &[Need] = &[
    Need::Root,
    Need::Program("unshare"),
    Need::Program("ip"),
    Need::Program("passt"),
];

pub fn tests() -> Vec<Test> {
    vec![
        test("the examples of outboard run work when pasted", RUNS, runs),
        test(
            "the examples of outboard-net work when pasted",
            CARDS,
            || back_ends("outboard-net", 3),
        ),
        test("the examples of outboard-rng work when pasted", &[], || {
            back_ends("outboard-rng", 2)
        }),
    ]
}

/// The commands of each example of a help.
fn examples(of: &str) -> Result<Vec<String>> {
    let help = Run::script(&format!("{of} --help"))?
        .to_the_end()?
        .with_code(0)?;
    let (_, text) = help
        .console
        .split_once("Examples:\n")
        .context("no examples")?;
    let (text, _) = text.split_once("\nExit codes:").unwrap_or((text, ""));
    // A title has two spaces before it, a command four or more.
    let mut examples: Vec<String> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("    "), examples.last_mut()) {
            (Some(command), Some(example)) => *example += &format!("{command}\n"),
            _ => examples.push(String::new()),
        }
    }
    examples.retain(|example| !example.is_empty());
    Ok(examples)
}

/// Each example, with the bundled guest for a kernel, in a folder with the
/// files that the example does not make itself.
fn runs() -> Result<()> {
    let examples = examples("outboard run")?;
    ensure!(examples.len() == 6, "{examples:?}");
    let image = Image::new(MIB)?;
    let place = |name: &str| image.directory().join(name);
    fs::copy(Products::get()?.guest("guest-pvh"), place("vmlinuz"))?;
    fs::write(place("initrd.img"), "initrd")?;
    fs::write(place("root.img"), [0; 512])?;
    for example in examples {
        pasted(&example, image.directory()).with_context(|| example.clone())?;
    }
    Ok(())
}

fn pasted(example: &str, directory: &Path) -> Result<()> {
    // A login sets USER; a test may run without one.
    let mut vm = Run::script(&format!("cd {directory:?}; USER=$(id -un)\n{example}"))?
        .under(&["unshare", "--net"])
        .start()?;
    vm.console_line("OUTBOARD idle result=pass")?;
    for process in vm.processes()? {
        if process.args.get(1).is_some_and(|word| word == "run") {
            kill(process.pid, Signal::SIGTERM)?;
        }
    }
    let daemon = |process: &Process| process.args[0].contains("qemu-storage-daemon");
    eventually("the run ends", || {
        let left = vm.processes()?;
        if let Some(daemon) = left.iter().find(|process| daemon(process)) {
            // It is not ours to end but for this test.
            let run = |process: &Process| process.args[0].contains("outboard");
            if !left.iter().any(run) {
                let _ = kill(daemon.pid, Signal::SIGTERM);
            }
        }
        Ok(left.is_empty().then_some(()))
    })?;
    vm.wait()?.with_code(0)?;
    Ok(())
}

/// Each example in a folder of its own in place of /tmp, which everybody may
/// write to; a front-end is served, and it ends when it is told to.
fn back_ends(program: &str, expected: usize) -> Result<()> {
    let examples = examples(program)?;
    ensure!(examples.len() == expected, "{examples:?}");
    for example in examples {
        serves(program, &example).with_context(|| example.clone())?;
    }
    Ok(())
}

fn serves(program: &str, example: &str) -> Result<()> {
    let folder = tempfile::tempdir_in("/tmp")?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777))?;
    let here = format!("{}/", folder.path().display());
    let pasted = example.replace("/tmp/", &here);
    let socket = pasted
        .split_once("--socket-path=")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .context("no socket")?;
    // Root needs no sudo, and has a USER only after a login.
    let script = format!("sudo() {{ \"$@\"; }}; USER=$(id -un)\n{pasted}");
    let run = Run::script(&script)?;
    let run = match pasted.contains("--tap=") {
        true => run.under(&["unshare", "--net"]),
        false => run,
    };
    let mut vm: Vm = run.start()?;
    let served = eventually("a front-end is served", || {
        Ok(Client::connect(socket.as_ref()).ok())
    })
    .and_then(|mut client| client.negotiate(VERSION_1))
    .with_context(|| vm.messages());
    // Those that do not end with it are not ours to end but for this test.
    eventually("all end", || {
        let mut left = vm.processes()?;
        let ours = |process: &Process| process.args[0].ends_with(program);
        left.sort_by_key(|process| !ours(process));
        for process in &left {
            let shell = process.args[0].ends_with("sh");
            if ours(process) || (!shell && !left.iter().any(ours)) {
                let _ = kill(process.pid, Signal::SIGTERM);
            }
        }
        Ok(left.is_empty().then_some(()))
    })?;
    let features = served?;
    ensure!(features & VERSION_1 != 0, "features {features:#x}");
    vm.wait()?.with_code(0)?;
    Ok(())
}
