//! A back-end that hangs is found; one that waits for its disk is let be, and while
//! nothing happens nobody is woken.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outboard_contract::program::Program;
use outboard_e2e::eventually;
use outboard_e2e::image::Image;
use outboard_e2e::processes::Process;
use outboard_e2e::vm::{Run, Vm};

use crate::{KVM, Need, Test, test};

const MIB: u64 = 1 << 20;
const STRACE: &[Need] = &[Need::Kvm, Need::Program("strace")];
const FUSE: &[Need] = &[Need::Kvm, Need::Root, Need::Program("qemu-storage-daemon")];
/// A hang is found soon, and ends the VM.
const ENDS: &str = "hang-timeout=1s,on-failure=shutdown";
/// Longer than any hang-timeout here.
const LONG: Duration = Duration::from_secs(4);

pub fn tests() -> Vec<Test> {
    vec![
        test("a back-end that is stopped is found", KVM, stopped),
        test(
            "a back-end that is stopped is found by a guest that resets it",
            KVM,
            stopped_at_a_reset,
        ),
        test(
            "a back-end that hangs is followed by another",
            KVM,
            followed,
        ),
        test(
            "a back-end that may be stopped is let be",
            KVM,
            stopped_and_continued,
        ),
        test(
            "a back-end that does not heed its kicks is found",
            STRACE,
            unheeding,
        ),
        test(
            "a back-end that is long in a system call is let be",
            STRACE,
            submitting,
        ),
        test("a disk that stands still is no hang", FUSE, slow_disk),
        test("an idle vm wakes nobody", KVM, idle),
    ]
}

/// A VM whose guest writes and reads its disk on two queues until it is told to stop.
fn loaded(disk: &str) -> Result<Vm> {
    let mut vm = Run::guest("scenario=load queues=2")?
        .with("--cpus", "2")
        .with("--disk", disk)
        .start()?;
    vm.console_line("progress")?;
    Ok(vm)
}

fn stopped() -> Result<()> {
    let image = Image::new(16 * MIB)?;
    ends_once_stopped(loaded(&format!("{},{ENDS}", image.option()))?)?;
    image.wait_until_free()
}

/// Its disk's back-end is stopped, and that is found.
fn ends_once_stopped(mut vm: Vm) -> Result<()> {
    let disk = vm.process(Process::is_backend)?;
    kill(disk.pid, Signal::SIGSTOP)?;
    let ended = vm.wait()?.with_code(5)?;
    ended.saying(&["disk0: ", "outboard-blk hangs: its process is stopped"])?;
    vm.check_nothing_is_left()
}

/// The guest resets its disk so often that the next reset finds it stopped; the machine
/// waits for an answer then.
fn stopped_at_a_reset() -> Result<()> {
    let image = Image::new(64 * MIB)?;
    let mut vm = Run::guest("scenario=storm stop=1 report=100 reset_ms=20")?
        .with("--disk", format!("{},{ENDS}", image.option()))
        .start()?;
    vm.console_line("progress")?;
    ends_once_stopped(vm)?;
    image.wait_until_free()
}

fn followed() -> Result<()> {
    let image = Image::new(16 * MIB)?;
    let mut vm = loaded(&format!("{},hang-timeout=500ms", image.option()))?;
    for _ in 0..3 {
        let disk = vm.process(Process::is_backend)?;
        kill(disk.pid, Signal::SIGSTOP)?;
        let is_another = |vm: &mut Vm| {
            let now = vm.processes()?.into_iter().find(Process::is_backend);
            Ok(now.filter(|now| now.pid != disk.pid).map(drop))
        };
        eventually("another serves the disk", || is_another(&mut vm))?;
        for _ in 0..3 {
            vm.console_line("progress")?;
        }
    }
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.with_code(0)?.saying(&["outboard-blk hangs: "])?;
    vm.check_nothing_is_left()
}

fn stopped_and_continued() -> Result<()> {
    for timeout in ["off", "60m"] {
        let image = Image::new(16 * MIB)?;
        let mut vm = loaded(&format!("{},hang-timeout={timeout}", image.option()))?;
        let disk = vm.process(Process::is_backend)?;
        kill(disk.pid, Signal::SIGSTOP)?;
        sleep(LONG);
        kill(disk.pid, Signal::SIGCONT)?;
        goes_on(&mut vm)?;
    }
    Ok(())
}

/// Its guest makes progress, and nobody speaks of a hang; ends it.
fn goes_on(vm: &mut Vm) -> Result<()> {
    for _ in 0..3 {
        vm.console_line("progress")?;
    }
    let said = vm.messages();
    ensure!(!said.contains("hangs"), "{said}");
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.with_code(0)?;
    Ok(())
}

/// strace(1) on a process; killed when dropped.
struct Tracer(Child);

impl Tracer {
    /// Each call of this name takes so many seconds more, on any thread, from the next on.
    fn slows(call: &str, seconds: u64, pid: Pid, folder: &Path) -> Result<Self> {
        let child = Command::new("strace")
            .args(["-f", "-qq", "-p", &pid.to_string()])
            .arg("-o")
            .arg(folder.join("trace"))
            .arg(format!("-etrace={call}"))
            .arg(format!("-einject={call}:delay_enter={seconds}s"))
            .stdin(Stdio::null())
            .spawn()?;
        let traced = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let tracer = status
                .lines()
                .find_map(|line| line.strip_prefix("TracerPid:"));
            Ok(tracer.filter(|tracer| tracer.trim() != "0").map(drop))
        };
        eventually("it is traced", traced)?;
        Ok(Self(child))
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Its threads wake up, and never come to read what was kicked.
fn unheeding() -> Result<()> {
    let image = Image::new(16 * MIB)?;
    let mut vm = loaded(&format!("{},{ENDS}", image.option()))?;
    let disk = vm.process(Process::is_backend)?;
    let tracer = Tracer::slows("preadv2", 3600, disk.pid, image.directory())?;
    eventually("it is killed", || {
        let status = fs::read_to_string(format!("/proc/{}/status", disk.pid));
        let is_dead = |status: String| status.contains("\nState:\tZ").then_some(());
        Ok(status.map_or(Some(()), is_dead))
    })?;
    // What is traced is not reaped before.
    drop(tracer);
    let ended = vm.wait()?.with_code(5)?;
    ended.saying(&["outboard-blk hangs: it was kicked, and does not wake up"])?;
    Ok(())
}

/// Each hand-over of requests to the kernel takes longer than a hang may.
fn submitting() -> Result<()> {
    let image = Image::new(16 * MIB)?;
    let mut vm = loaded(&format!("{},hang-timeout=500ms", image.option()))?;
    let disk = vm.process(Process::is_backend)?;
    let tracer = Tracer::slows("io_uring_enter", 3, disk.pid, image.directory())?;
    sleep(2 * LONG);
    drop(tracer);
    goes_on(&mut vm)
}

/// An image whose I/O stands still while the program that has it is stopped (FUSE).
struct SlowImage {
    program: Program,
    path: PathBuf,
    _image: Image,
}

impl SlowImage {
    fn new() -> Result<Self> {
        let image = Image::new(16 * MIB)?;
        let path = image.directory().join("slow");
        fs::write(&path, [])?;
        let node = format!("file,node-name=disk,filename={}", image.path().display());
        let export = format!(
            "fuse,id=export,node-name=disk,writable=on,mountpoint={}",
            path.display()
        );
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--blockdev", &node, "--export", &export]);
        let program = Program::run(&mut command)?;
        let is_there = || {
            fs::metadata(&path)
                .is_ok_and(|file| file.len() > 0)
                .then_some(())
        };
        program.until("it serves the image", is_there)?;
        Ok(Self {
            program,
            path,
            _image: image,
        })
    }
}

fn slow_disk() -> Result<()> {
    let mut image = SlowImage::new()?;
    let disk = format!(
        "path={},format=raw,hang-timeout=500ms",
        image.path.display()
    );
    let mut vm = loaded(&disk)?;
    for _ in 0..2 {
        kill(image.program.pid(), Signal::SIGSTOP)?;
        sleep(LONG);
        let alive = vm.process(Process::is_backend);
        kill(image.program.pid(), Signal::SIGCONT)?;
        alive.context("its back-end was taken for one that hangs")?;
        vm.console_line("progress")?;
    }
    goes_on(&mut vm)?;
    image.program.end(Signal::SIGTERM)?;
    Ok(())
}

/// How often each thread of these processes has gone to sleep, but the vCPU's, which the
/// guest wakes by its own timer.
fn sleeps(processes: &[Process]) -> Result<BTreeMap<String, u64>> {
    let mut sleeps = BTreeMap::new();
    for process in processes {
        for task in fs::read_dir(format!("/proc/{}/task", process.pid))? {
            let folder = task?.path();
            let name = fs::read_to_string(folder.join("comm"))?;
            if name.starts_with("vcpu") {
                continue;
            }
            let status = fs::read_to_string(folder.join("status"))?;
            let count = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            let count = count.context("no count of switches")?.trim().parse()?;
            let thread = format!("{} {}", folder.display(), name.trim());
            sleeps.insert(thread, count);
        }
    }
    Ok(sleeps)
}

/// The guest waits for frames that nobody sends.
fn idle() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("peer.sock");
    let peer = UnixListener::bind(&socket)?;
    let mut vm = Run::guest("scenario=net-echo ip=192.0.2.2 timeout=3600")?
        .with(
            "--net",
            format!("peer={},hang-timeout=400ms", socket.display()),
        )
        .start()?;
    let _connection = peer.accept()?;
    vm.console_line("ready")?;
    let processes = vm.processes()?;
    ensure!(processes.len() >= 3, "{processes:?}");
    // What has been started settles; then nothing moves.
    let mut before = BTreeMap::new();
    for _ in 0..30 {
        let now = sleeps(&processes)?;
        if now == before {
            vm.signal(Signal::SIGTERM)?;
            vm.wait()?.with_code(0)?;
            return Ok(());
        }
        before = now;
        sleep(Duration::from_secs(2));
    }
    let after = sleeps(&processes)?;
    bail!("who is woken: {before:#?}, then {after:#?}")
}
