//! Entropy: where it may come from, and how much of it.

use std::fs;

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use outboard_contract::program::{Program, command, option};
use outboard_e2e::processes::Process;
use outboard_e2e::products::Products;
use outboard_e2e::vm::Run;

use crate::{KVM, Test, test};

pub fn tests() -> Vec<Test> {
    vec![
        test("random numbers are verified", KVM, verified),
        test(
            "a guest beyond its rate gets its share and no more",
            KVM,
            bounded,
        ),
        test("a file asks for entropy too", KVM, from_a_file),
        test(
            "a back-end that listens serves entropy to one vm after another",
            KVM,
            listening,
        ),
        test("a killed back-end of entropy is named", KVM, killed),
    ]
}

fn verified() -> Result<()> {
    let mut vm = Run::guest("scenario=rng requests=1000 size=64")?
        .switch("--rng")
        .start()?;
    let ended = vm.wait()?.with_code(0)?;
    let result = ended.result("rng")?.passed()?;
    ensure!(result.number("bytes")? == 64_000, "{ended}");
    ensure!(ended.messages.is_empty(), "{ended}");
    vm.check_nothing_is_left()
}

/// 1000 bytes are 15 answers of 64 and one of 40; the rest would come in an
/// hour, and the guest gives up when nothing has come for a while.
fn bounded() -> Result<()> {
    let ended = Run::guest("scenario=rng requests=100 size=64 depth=8 timeout=3")?
        .with("--rng", "max-bytes=1000,period=3600000")
        .to_the_end()?
        .with_code(0)?;
    let result = ended.result("rng")?;
    ensure!(result.word("reason")? == "timeout", "{ended}");
    ensure!(result.number("used")? == 16, "{ended}");
    Ok(())
}

fn from_a_file() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("vm.toml");
    fs::write(&file, "[[rng]]\nid = \"noise\"\nmax-bytes = 65536\n")?;
    let ended = Run::guest("scenario=rng requests=100")?
        .with("--config", &file)
        .to_the_end()?
        .with_code(0)?;
    ended.result("rng")?.passed()?;
    Ok(())
}

fn listening() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("rng.sock");
    let program = Products::get()?.program("outboard-rng");
    let options = [option("--socket-path=", &socket)];
    let _listener = Program::run(&mut command(program, &options))?;
    let at = format!("socket={},wait=60s", socket.display());
    for (option, value) in [
        ("--rng", at.clone()),
        ("--rng", at.clone()),
        (
            "--device",
            format!("virtio-id=4,queues=1,config-size=0,{at}"),
        ),
    ] {
        let ended = Run::guest("scenario=rng requests=100")?
            .with(option, value)
            .to_the_end()?
            .with_code(0)?;
        ended.result("rng")?.passed()?;
    }
    Ok(())
}

fn killed() -> Result<()> {
    let run = Run::guest("scenario=idle")?.with("--rng", "on-failure=shutdown");
    let mut vm = run.start()?;
    vm.console_line("OUTBOARD idle")?;
    let backend = vm.process(Process::is_backend)?;
    kill(backend.pid, Signal::SIGKILL)?;
    vm.wait()?
        .with_code(5)?
        .saying(&["rng0", "outboard-rng", "SIGKILL"])?;
    vm.check_nothing_is_left()
}
