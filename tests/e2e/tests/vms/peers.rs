//! The other end of a device goes and comes back: a back-end at a socket, one of an
//! older release, one whose end is to be waited for by an operator.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use outboard_contract::program::Program;
use outboard_e2e::image::Image;
use outboard_e2e::processes::Process;
use outboard_e2e::storm::killer::Killer;
use outboard_e2e::storm::{self, FrontEnd, Pace, Programs, Shape, Storm};
use outboard_e2e::vm::{Run, Vm};
use outboard_e2e::{eventually, processes};
use serde_json::Value;

use crate::api::{ctl, said};
use crate::disks::storage_daemon;
use crate::storm::seed;
use crate::{KVM, Need, Test, test};

const MIB: u64 = 1 << 20;
const QSD: &[Need] = &[Need::Kvm, Need::Program("qemu-storage-daemon")];

pub fn tests() -> Vec<Test> {
    vec![
        test(
            "a storage daemon that comes back is reconnected if nothing was under way",
            QSD,
            nothing_under_way,
        ),
        test(
            "a storage daemon that goes with requests leaves its device down",
            QSD,
            requests_under_way,
        ),
        test(
            "nothing is wrong after kills of a back-end at a socket",
            KVM,
            at_a_socket,
        ),
        test(
            "an older program that crashed is followed after the guest's reset",
            KVM,
            older,
        ),
        test("a vm waits for an operator", KVM, paused),
        test("a vm ends with its back-end if it is to", KVM, ends),
        test("entropy is replaced by its api under load", KVM, restarted),
    ]
}

/// The control API of a VM.
struct Api(PathBuf);

impl Api {
    fn beside(image: &Image) -> Self {
        Self(image.directory().join("api"))
    }

    /// Runs `outboard ctl`, which must do what it is told.
    fn does(&self, words: &[&str]) -> Result<String> {
        said(ctl(&self.0, words)?)
    }

    fn status(&self) -> Result<Value> {
        let text = self.does(&["--json", "status"])?;
        serde_json::from_str(&text).context(text)
    }

    /// Waits until the VM's first device is in this state, and returns it.
    fn device_is(&self, state: &str) -> Result<Value> {
        eventually(state, || {
            let device = self.status()?["devices"][0].clone();
            Ok((device["state"] == state).then_some(device))
        })
    }

    fn vm_is(&self, state: &str) -> Result<Value> {
        eventually(state, || {
            let vm = self.status()?;
            Ok((vm["state"] == state).then_some(vm))
        })
    }
}

/// A VM whose guest writes and reads a disk at a socket.
fn loaded(socket: &Path, api: &Api) -> Result<Vm> {
    let mut vm = Run::guest("scenario=load report=100")?
        .with("--disk", format!("socket={}", socket.display()))
        .with("--api", &api.0)
        .start()?;
    vm.console_line("progress")?;
    Ok(vm)
}

fn goes_on(vm: &mut Vm) -> Result<()> {
    for _ in 0..3 {
        vm.console_line("progress")?;
    }
    Ok(())
}

/// A socket of a program that was killed is in the way of the next.
fn again(image: &Image, socket: &Path) -> Result<Program> {
    let _ = fs::remove_file(socket);
    image.wait_until_free()?;
    storage_daemon(image, socket)
}

/// In a VM that is paused all requests are finished.
fn nothing_under_way() -> Result<()> {
    let image = Image::new(16 * MIB)?;
    let socket = image.directory().join("blk.sock");
    let api = Api::beside(&image);
    let mut daemon = storage_daemon(&image, &socket)?;
    let mut vm = loaded(&socket, &api)?;
    for _ in 0..2 {
        api.does(&["pause"])?;
        std::thread::sleep(Duration::from_millis(300));
        daemon.kill()?;
        eventually("it is missed", || {
            let device = api.status()?["devices"][0].clone();
            Ok((device["state"] != "running").then_some(()))
        })?;
        daemon = again(&image, &socket)?;
        // Nobody serves it before.
        api.does(&["resume"])?;
        api.device_is("running")?;
        goes_on(&mut vm)?;
    }
    api.does(&["shutdown"])?;
    vm.wait()?.with_code(0)?;
    vm.check_nothing_is_left()
}

/// Those that it has while it is stopped are gone with it. Whoever comes then cannot
/// know of them.
fn requests_under_way() -> Result<()> {
    let image = Image::new(16 * MIB)?;
    let socket = image.directory().join("blk.sock");
    let api = Api::beside(&image);
    let mut daemon = storage_daemon(&image, &socket)?;
    let mut vm = loaded(&socket, &api)?;
    daemon.signal(Signal::SIGSTOP)?;
    std::thread::sleep(Duration::from_millis(100));
    daemon.kill()?;
    let _daemon = again(&image, &socket)?;
    let device = api.device_is("down")?;
    let why = device["last_error"].as_str().context("no reason")?;
    ensure!(
        why.contains("no inflight region") && why.contains("the guest must reset the device"),
        "{device}"
    );
    ensure!(api.status()?["state"] == "running");
    api.does(&["shutdown"])?;
    vm.wait()?.with_code(0)?.saying(&["no inflight region"])?;
    vm.check_nothing_is_left()
}

fn at_a_socket() -> Result<()> {
    let mut shape = Shape::new(8, seed());
    (shape.front_end, shape.pace) = (FrontEnd::Socket, Pace::OneByOne);
    let outcome = storm::run(&Programs::get()?, &shape)?.nothing_is_wrong()?;
    ensure!(outcome.kills.len() == 8);
    Ok(())
}

/// It tells nobody what it knows of its disk, so that the device is down until the
/// guest, which waits for its requests, resets it.
fn older() -> Result<()> {
    let mut shape = Shape::new(3, seed()).guest("reset_ms=500");
    shape.before = Some(("unset OUTBOARD_LINE".into(), String::new()));
    shape.pace = Pace::OneByOne;
    let outcome = storm::run(&Programs::get()?, &shape)?.nothing_is_wrong()?;
    ensure!(outcome.kills.len() == 3);
    let why = "disk0: it cannot be known whether the I/O of blk is over";
    outcome
        .ended
        .saying(&[why, "the guest must reset the device"])?;
    Ok(())
}

fn paused() -> Result<()> {
    let shape = Shape::new(0, seed()).disk(",on-failure=pause");
    let mut storm = Storm::begin(&Programs::get()?, &shape)?;
    let api = Api(storm.api());
    for _ in 0..2 {
        let pid = storm.killer.next(&mut storm.vm, None)?;
        storm.killer.strike(pid, Signal::SIGKILL)?;
        let vm = api.vm_is("paused")?;
        let reason = vm["reason"].as_str().context("no reason")?;
        ensure!(reason.contains("disk0"), "{vm}");
        ensure!(vm["devices"][0]["pid"].is_null(), "{vm}");
        api.does(&["resume"])?;
        api.does(&["wait", "disk0", "running", "--timeout", "5m"])?;
        storm.killer.until_it_goes_on(&mut storm.vm)?;
    }
    storm.end()?.nothing_is_wrong()?;
    Ok(())
}

fn ends() -> Result<()> {
    let image = Image::new(16 * MIB)?;
    let mut vm = Run::guest("scenario=load")?
        .with("--disk", format!("{},on-failure=shutdown", image.option()))
        .start()?;
    vm.console_line("progress")?;
    let disk = vm.process(Process::is_backend)?;
    kill(disk.pid, Signal::SIGKILL)?;
    let ended = vm.wait()?.with_code(5)?;
    ended.saying(&["disk0", "outboard-blk", "SIGKILL"])?;
    vm.check_nothing_is_left()?;
    image.wait_until_free()
}

fn restarted() -> Result<()> {
    const REQUESTS: u64 = 600_000;
    let folder = tempfile::tempdir()?;
    let api = Api(folder.path().join("api"));
    let mut vm = Run::guest(&format!("scenario=identify,rng requests={REQUESTS}"))?
        .switch("--rng")
        .with("--api", &api.0)
        .start()?;
    vm.console_line("OUTBOARD identify")?;
    let killer = Killer::new("outboard-rng", 0, Duration::ZERO);
    let mut last = killer.next(&mut vm, None)?;
    for _ in 0..5 {
        api.does(&["wait", "rng0", "running", "--timeout", "5m"])?;
        api.does(&["restart", "rng0"])?;
        last = killer.next(&mut vm, Some(last))?;
    }
    let ended = vm.wait()?.with_code(0)?;
    let result = ended.result("rng")?.passed()?;
    ensure!(result.number("requests")? == REQUESTS, "{ended}");
    ensure!(processes::children(vm.pid()).is_empty());
    vm.check_nothing_is_left()
}
