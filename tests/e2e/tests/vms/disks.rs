//! Where a disk may come from, and where a VM's settings may.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use outboard_contract::program::{Program, command, option};
use outboard_e2e::image::Image;
use outboard_e2e::products::Products;
use outboard_e2e::vm::Run;
use outboard_e2e::{eventually, processes};

use crate::{KVM, Need, Test, test};

const DIRECT: &[Need] = &[Need::Kvm, Need::DirectIo];

const MIB: u64 = 1 << 20;

pub fn tests() -> Vec<Test> {
    vec![
        test(
            "a back-end that listens serves one vm after another",
            KVM,
            a_listening_back_end,
        ),
        test(
            "a vm waits for a back-end that comes late",
            KVM,
            a_late_back_end,
        ),
        test("a stale socket is replaced", &[], a_stale_socket),
        test(
            "settings come from a file and the command line wins",
            KVM,
            settings_from_a_file,
        ),
        test(
            "only machine and back-end hold guest memory",
            KVM,
            who_holds_guest_memory,
        ),
        test("a console goes to a file or nowhere", KVM, consoles),
        test(
            "a measurement has a request in it however short it is",
            KVM,
            a_short_measurement,
        ),
        test("a disk without a write cache is verified", KVM, || {
            options(",wce=off")
        }),
        test("a portable disk is verified", KVM, || {
            options(",profile=portable")
        }),
        test("a disk past the page cache is verified", DIRECT, || {
            options(",direct")
        }),
    ]
}

/// An outboard-blk that listens; dropped, it is killed.
pub fn listener(image: &Image, socket: &Path) -> Result<Program> {
    let options = [
        option("--socket-path=", socket),
        option("--blk-file=", image.path()),
    ];
    listening(
        &mut command(Products::get()?.program("outboard-blk"), &options),
        socket,
    )
}

/// QEMU's, with the image as it is.
pub fn storage_daemon(image: &Image, socket: &Path) -> Result<Program> {
    let node = "node-name=disk";
    let file = format!("file,{node},filename={}", image.path().display());
    let export = format!(
        "vhost-user-blk,id=export,{node},writable=on,addr.type=unix,addr.path={}",
        socket.display()
    );
    let options = ["--blockdev", &file, "--export", &export];
    listening(&mut command("qemu-storage-daemon", &options), socket)
}

/// Waits until a program listens.
pub fn listening(command: &mut Command, socket: &Path) -> Result<Program> {
    let program = Program::run(command)?;
    program.until("it listens", || UnixStream::connect(socket).ok())?;
    Ok(program)
}

fn verify_at(socket: &Path, wait: &str) -> Result<()> {
    let ended = Run::guest("scenario=verify requests=1000 fresh=0")?
        .with("--disk", format!("socket={}{wait}", socket.display()))
        .to_the_end()?
        .with_code(0)?;
    ended.result("verify")?.passed()?;
    Ok(())
}

fn a_listening_back_end() -> Result<()> {
    let image = Image::new(16 * MIB)?;
    let socket = image.directory().join("blk.sock");
    let mut listener = listener(&image, &socket)?;
    verify_at(&socket, "")?;
    verify_at(&socket, "")?;
    listener.end(Signal::SIGTERM)?;
    ensure!(image.others()?.is_empty(), "left: {:?}", image.others()?);
    image.wait_until_free()
}

fn a_late_back_end() -> Result<()> {
    let image = Image::new(16 * MIB)?;
    let socket = image.directory().join("blk.sock");
    let mut vm = Run::guest("scenario=identify")?
        .with(
            "--disk",
            format!("socket={},wait=forever", socket.display()),
        )
        .start()?;
    eventually("the wait is mentioned", || {
        Ok(vm
            .messages()
            .contains("waiting for a back-end")
            .then_some(()))
    })?;
    let _listener = listener(&image, &socket)?;
    vm.wait()?.with_code(0)?.result("identify")?.passed()?;
    Ok(())
}

fn a_stale_socket() -> Result<()> {
    let image = Image::new(MIB)?;
    let socket = image.directory().join("blk.sock");
    let mut first = listener(&image, &socket)?;
    first.end(Signal::SIGKILL)?;
    let left = fs::symlink_metadata(&socket).context("a killed back-end leaves its socket")?;
    ensure!(left.file_type().is_socket());
    let mut second = listener(&image, &socket)?;
    second.end(Signal::SIGTERM)?;
    ensure!(image.others()?.is_empty(), "left: {:?}", image.others()?);
    image.wait_until_free()
}

fn settings_from_a_file() -> Result<()> {
    let image = Image::new(MIB)?;
    let file = image.directory().join("vm.toml");
    let kernel = Products::get()?.guest("guest-pvh");
    fs::write(
        &file,
        format!(
            "kernel = {kernel:?}\ncmdline = \"scenario=identify\"\ncpus = 1\nmemory = \"128M\"\n\
             [[disk]]\npath = {:?}\nserial = \"from-file\"\n",
            image.path()
        ),
    )?;
    let ended = Run::plain()?
        .with("--config", &file)
        .with("--cpus", "2")
        .to_the_end()?
        .with_code(0)?;
    let result = ended.result("identify")?.passed()?;
    ensure!(result.number("processors")? == 2, "{ended}");
    ensure!(ended.console.contains("serial=from-file"), "{ended}");
    Ok(())
}

fn who_holds_guest_memory() -> Result<()> {
    let image = Image::new(16 * MIB)?;
    let mut vm = Run::guest("scenario=load")?
        .with("--disk", image.option())
        .start()?;
    vm.console_line("progress")?;
    let all = vm.processes()?;
    ensure!(all.len() == 3, "{all:?}");
    for process in &all {
        let memory = processes::memfds(process.pid);
        let holds = process.is_machine() || process.is_backend();
        ensure!(memory.is_empty() != holds, "{process:?} holds {memory:?}");
        let files = processes::descriptors(process.pid);
        let has = |what: &str| files.iter().any(|(_, target)| target.contains(what));
        ensure!(
            has("disk.img") != process.is_machine(),
            "{process:?}: {files:?}"
        );
        ensure!(has("kvm") != process.is_backend(), "{process:?}: {files:?}");
    }
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.with_code(0)?;
    vm.check_nothing_is_left()
}

fn consoles() -> Result<()> {
    let image = Image::new(MIB)?;
    let log = image.directory().join("console");
    fs::write(&log, "before\n")?;
    let run = || Run::guest("scenario=identify");
    let ended = run()?
        .with("--console", format!("file={}", log.display()))
        .to_the_end()?
        .with_code(0)?;
    ensure!(ended.console.is_empty(), "{ended}");
    let text = fs::read_to_string(&log)?;
    ensure!(
        text.starts_with("before\n") && text.contains("OUTBOARD identify"),
        "{text}"
    );
    let ended = run()?
        .with("--console", "null")
        .to_the_end()?
        .with_code(0)?;
    ensure!(ended.console.is_empty(), "{ended}");
    Ok(())
}

fn options(options: &str) -> Result<()> {
    let image = Image::new(16 * MIB)?;
    let ended = Run::guest("scenario=verify requests=2000 flush_every=16")?
        .with("--cpus", "2")
        .with("--disk", format!("{}{options}", image.option()))
        .to_the_end()?
        .with_code(0)?;
    let result = ended.result("verify")?.passed()?;
    let found = image.check(1)?;
    ensure!(
        found.sectors == result.number("sectors")?,
        "{found:?} {result:?}"
    );
    ensure!(
        found.digest == result.number("digest")?,
        "{found:?} {result:?}"
    );
    Ok(())
}

/// The start of the device alone takes longer than a millisecond.
fn a_short_measurement() -> Result<()> {
    let image = Image::new(MIB)?;
    let ended = Run::guest("scenario=measure mode=poll depth=1 millis=1")?
        .with("--disk", image.option())
        .to_the_end()?
        .with_code(0)?;
    let result = ended.result("measure")?.passed()?;
    ensure!(result.number("requests")? > 0, "{ended}");
    ensure!(result.number("iops")? > 0, "{ended}");
    Ok(())
}
