//! Back-ends of others, lent to the bundled guest by our VMM, which has no
//! line of code for any of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use outboard_e2e::image::Image;
use outboard_e2e::vm::{Ended, Run};
use outboard_peers::program::{self, Program};
use outboard_peers::table::Outcome;

use crate::{BACK_ENDS, Cell, Need};

const DAEMON: &[Need] = &[Need::Kvm, Need::Program("qemu-storage-daemon")];
const TRACED: &[Need] = &[
    Need::Kvm,
    Need::Program("qemu-storage-daemon"),
    Need::Program("strace"),
];
const QCOW2: &[Need] = &[
    Need::Kvm,
    Need::Program("qemu-storage-daemon"),
    Need::Program("qemu-img"),
];
const RNG: &[Need] = &[Need::Kvm, Need::Program("vhost-device-rng")];

const SIZE: u64 = 32 << 20;

pub fn cells() -> Vec<Cell> {
    let daemon = named("qemu-storage-daemon");
    let rng = named("vhost-device-rng");
    vec![
        cell(&daemon, "data compared", DAEMON, || a_disk(1)),
        cell(&rng, "data compared", RNG, entropy),
        cell(&daemon, "4 queues", DAEMON, || a_disk(4)),
        cell(&rng, "4 queues", RNG, more_queues_of_entropy),
        cell(&daemon, "read-only", DAEMON, a_read_only_disk),
        cell(&daemon, "a qcow2 image behind it", QCOW2, a_qcow2_image),
        cell(&daemon, "device reset", DAEMON, a_disk_that_is_reset),
        cell(&daemon, "flush", TRACED, a_disk_that_is_flushed),
        cell(&daemon, "one VM after another", DAEMON, several_vms),
        cell(&rng, "one VM after another", RNG, several_vms_with_entropy),
    ]
}

fn cell(
    peer: &str,
    tried: &'static str,
    needs: &'static [Need],
    run: fn() -> Result<Outcome>,
) -> Cell {
    Cell {
        table: BACK_ENDS,
        peer: peer.to_owned(),
        tried,
        needs,
        run: Box::new(run),
    }
}

/// Its name and its version; a test of one that is not there is ignored.
fn named(name: &str) -> String {
    match program::version(name) {
        Ok(version) => format!("{name} {version}"),
        Err(_) => name.to_owned(),
    }
}

/// A storage daemon that serves an image.
struct Daemon {
    program: Program,
    socket: PathBuf,
}

impl Daemon {
    fn start(image: &Path, format: &str, export: &str) -> Result<Self> {
        Self::by(Command::new("qemu-storage-daemon"), image, format, export)
    }

    /// As [`Self::start`], by a tracer that notes each sync in `trace`.
    fn traced(trace: &Path, image: &Path, format: &str, export: &str) -> Result<Self> {
        let mut command = Command::new("strace");
        // The tracer is not its parent, so that it is ended as any other.
        command
            .args(["-D", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o"])
            .arg(trace)
            .arg("qemu-storage-daemon");
        Self::by(command, image, format, export)
    }

    fn by(mut command: Command, image: &Path, format: &str, export: &str) -> Result<Self> {
        let socket = image.with_extension("sock");
        // Locks are given back a moment after their holder has gone.
        command
            .arg("--blockdev")
            .arg(format!(
                "driver=file,node-name=file,locking=off,discard=unmap,filename={}",
                image.display()
            ))
            .arg("--blockdev")
            .arg(format!(
                "driver={format},node-name=disk,file=file,discard=unmap"
            ))
            .arg("--export")
            .arg(format!(
                "vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={}{export}",
                socket.display()
            ));
        let program = program::serving(&mut command, &socket)?;
        Ok(Self { program, socket })
    }

    /// A run of the bundled guest with it as the disk.
    fn guest(&self, cmdline: &str, options: &str) -> Result<Run> {
        Ok(Run::guest(cmdline)?.with(
            "--disk",
            format!("socket={}{options}", self.socket.display()),
        ))
    }

    /// Ends it, so that its image is whole.
    fn end(self) -> Result<()> {
        program::end(self.program).map(drop)
    }
}

/// The guest's digest is the image's.
fn compare(ended: &Ended, image: &Image, seed: u64) -> Result<()> {
    let result = ended.result("verify")?.passed()?;
    let found = image.check(seed)?;
    ensure!(found.sectors > 0, "the image is empty: {ended}");
    ensure!(
        (found.sectors, found.digest) == (result.number("sectors")?, result.number("digest")?),
        "{found:?} {ended}"
    );
    Ok(())
}

fn a_disk(queues: u16) -> Result<Outcome> {
    let image = Image::new(SIZE)?;
    let export = format!(",writable=on,num-queues={queues}");
    let daemon = Daemon::start(image.path(), "raw", &export)?;
    let cmdline = "scenario=verify requests=4000 seed=5 discard=1 write_zeroes=1";
    let ended = daemon
        .guest(cmdline, &format!(",queues={queues}"))?
        .with("--cpus", queues.to_string())
        .to_the_end()?
        .with_code(0)?;
    daemon.end()?;
    compare(&ended, &image, 5)?;
    Ok(Outcome::Passed)
}

/// Nothing can be written, and the guest is told so.
fn a_read_only_disk() -> Result<Outcome> {
    let image = Image::new(1 << 20)?;
    let before: Vec<u8> = (0..1 << 20).map(|at: u32| (at >> 9) as u8).collect();
    fs::write(image.path(), &before)?;
    let daemon = Daemon::start(image.path(), "raw", ",writable=off")?;
    let identified = daemon.guest("scenario=identify", "")?.to_the_end()?;
    let identified = identified.with_code(0)?;
    identified.result("identify")?.passed()?;
    ensure!(identified.console.contains("ro=1"), "{identified}");
    // The guest does not even try, or the device refuses: it must say that it could not.
    let ended = daemon
        .guest("scenario=verify requests=10", "")?
        .to_the_end()?
        .with_code(0)?;
    ensure!(ended.result("verify")?.passed().is_err(), "{ended}");
    let read = daemon
        .guest("scenario=measure rw=read requests=1000 seconds=600", "")?
        .to_the_end()?
        .with_code(0)?;
    read.result("measure")?.passed()?;
    daemon.end()?;
    ensure!(fs::read(image.path())? == before, "the image was written");
    Ok(Outcome::Passed)
}

/// What the guest wrote into a qcow2 image is what qemu-img reads there.
fn a_qcow2_image() -> Result<Outcome> {
    let raw = Image::new(SIZE)?;
    let qcow2 = raw.directory().join("disk.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        &qcow2.to_string_lossy(),
        &SIZE.to_string(),
    ])?;
    let daemon = Daemon::start(&qcow2, "qcow2", ",writable=on,num-queues=2")?;
    let ended = daemon
        .guest("scenario=verify requests=2000 seed=9", ",queues=2")?
        .with("--cpus", "2")
        .to_the_end()?
        .with_code(0)?;
    daemon.end()?;
    qemu_img(&["check", "-q", &qcow2.to_string_lossy()])?;
    let (from, to) = (qcow2.to_string_lossy(), raw.path().to_string_lossy());
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &from, &to])?;
    compare(&ended, &raw, 9)?;
    Ok(Outcome::Passed)
}

fn qemu_img(arguments: &[&str]) -> Result<()> {
    let status = Command::new("qemu-img").args(arguments).status();
    let status = status.context("qemu-img")?;
    ensure!(status.success(), "qemu-img {arguments:?}: {status}");
    Ok(())
}

fn a_disk_that_is_reset() -> Result<Outcome> {
    let image = Image::new(SIZE)?;
    let daemon = Daemon::start(image.path(), "raw", ",writable=on")?;
    let ended = daemon
        .guest("scenario=verify requests=1000 seed=3 reinit=4", "")?
        .to_the_end()?
        .with_code(0)?;
    daemon.end()?;
    compare(&ended, &image, 3)?;
    Ok(Outcome::Passed)
}

/// What a guest flushes is synced; and the byte that a Linux guest goes by, and
/// that this daemon has at 0 by itself, says that it has to flush.
fn a_disk_that_is_flushed() -> Result<Outcome> {
    const REQUESTS: u64 = 400;
    const EVERY: u64 = 4;
    let image = Image::new(SIZE)?;
    let trace = image.path().with_extension("trace");
    let daemon = Daemon::traced(&trace, image.path(), "raw", ",writable=on")?;
    let cmdline =
        format!("scenario=identify,verify requests={REQUESTS} depth=1 flush_every={EVERY}");
    let ended = daemon.guest(&cmdline, "")?.to_the_end()?.with_code(0)?;
    ended.result("verify")?.passed()?;
    ensure!(ended.console.contains(" wce=1 "), "{ended}");
    daemon.end()?;
    let trace = fs::read_to_string(&trace).context("the trace")?;
    let calls = trace.lines().filter(|line| line.contains("sync("));
    let syncs = calls.count() as u64;
    // One with nothing written since the last needs none.
    let least = REQUESTS / EVERY / 2;
    ensure!(syncs >= least, "{syncs} syncs, {least} at least:\n{trace}");
    Ok(Outcome::Passed)
}

fn several_vms() -> Result<Outcome> {
    let image = Image::new(SIZE)?;
    let daemon = Daemon::start(image.path(), "raw", ",writable=on")?;
    for _ in 0..2 {
        let run = daemon.guest("scenario=verify requests=500 fresh=0", "")?;
        run.to_the_end()?.with_code(0)?.result("verify")?.passed()?;
    }
    daemon.end()?;
    Ok(Outcome::Passed)
}

/// An entropy device in a folder of its own.
struct Entropy {
    program: Program,
    directory: tempfile::TempDir,
}

impl Entropy {
    fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let file = program::find("vhost-device-rng").map_err(anyhow::Error::msg)?;
        let mut command = Command::new(file);
        // Without limits in the way: so many bytes within so many milliseconds.
        command
            .arg("--socket-path")
            .arg(directory.path().join("rng.sock"))
            .args(["--period", "1000", "--max-bytes", "1073741824"]);
        let socket = directory.path().join("rng.sock0");
        Ok(Self {
            program: program::serving(&mut command, &socket)?,
            directory,
        })
    }

    /// It numbers its sockets.
    fn socket(&self) -> PathBuf {
        self.directory.path().join("rng.sock0")
    }

    fn guest(&self, queues: u16) -> Result<Run> {
        let device = format!(
            "virtio-id=4,socket={},queues={queues},config-size=0,wait=60s",
            self.socket().display()
        );
        Ok(Run::guest("scenario=rng requests=1000")?.with("--device", device))
    }
}

fn entropy() -> Result<Outcome> {
    let device = Entropy::start()?;
    let ended = device.guest(1)?.to_the_end()?.with_code(0)?;
    let result = ended.result("rng")?.passed()?;
    ensure!(result.number("bytes")? >= 60_000, "{ended}");
    Ok(Outcome::Passed)
}

fn more_queues_of_entropy() -> Result<Outcome> {
    let device = Entropy::start()?;
    let ended = device.guest(4)?.to_the_end()?.with_code(1)?;
    let advice = "the back-end offers 1 queue";
    ended.saying(&[advice])?;
    Ok(Outcome::Unsupported("it offers 1 queue".into()))
}

fn several_vms_with_entropy() -> Result<Outcome> {
    let device = Entropy::start()?;
    for _ in 0..2 {
        let ended = device.guest(1)?.to_the_end()?.with_code(0)?;
        ended.result("rng")?.passed()?;
    }
    let lives = device.program.is_alive();
    ensure!(lives, "it ended; it said:\n{}", device.program.said());
    Ok(Outcome::Passed)
}
