//! QEMU's unplug and replug: the device is taken out of a guest under load, and another,
//! with a back-end of its own on the same image, put in.
//!
//! ```text
//! cont ──► under load ──► device_del … DEVICE_DELETED ──► chardev-remove ──► SIGTERM
//!      ──► the next one listens ──► chardev-add ──► device_add ──► its first completion ──► under load ──► stop
//! ```
//! The bundled guest follows no hotplug, so it is a stock Linux: one VM for all rounds, which is
//! stopped between them. The times are taken at the back-ends, by their pages of counters:
//! from the last completion of the old one to the first of the new one. That is Linux'
//! own first read of a new disk; a program in the guest must find the new disk and open it,
//! which is not counted. What it had asked of the old one since the kernel let go of that
//! has ended in errors.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use outboard_e2e::image::Image;
use outboard_e2e::pattern::splitmix64;
use outboard_e2e::storm::{IMAGE, Programs, Shape};
use outboard_e2e::{PATIENCE, eventually, processes};
use outboard_peers::guest::Guest;
use outboard_peers::program::{self, Program};
use outboard_peers::qemu::Qemu;
use outboard_protocol::counters;
use serde_json::{Value, json};

use crate::host;

const QUEUES: u16 = 2;
/// Completions that Linux does not come to by itself: its load goes on.
const MANY: u64 = 200;
/// How often a page is looked at, and so how exact a time is.
const EACH: Duration = Duration::from_micros(200);
/// In the guest: fio on the disk that has our serial number, and again on the next one.
const LOAD: &str = "(while :; do for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" != swapped ] || \
    fio --name=load --filename=/dev/${d##*/} --size=8M --rw=randrw --bs=4k --ioengine=io_uring \
    --iodepth=32 --numjobs=2 --cpus_allowed=0-1 --cpus_allowed_policy=split --thread --direct=1 \
    --fsync=50 --randrepeat=0 --time_based --runtime=1d; done; sleep 0.02; done) >/tmp/load.log 2>&1 &";

/// What it is that is measured.
pub fn how() -> String {
    let accelerator = match host::has_hardware_kvm() {
        true => "KVM",
        false => "software emulation (TCG), since this machine's KVM runs no stock kernel",
    };
    format!(
        "  unplug and replug: on {accelerator}, a Linux guest,\n    \
         fio with 32 reads, writes and syncs of 4 KiB in flight on each of 2 queues; from the last completion of\n    \
         the old outboard-blk to the first of the new one, which is Linux' own read of a new disk."
    )
}

/// A VM whose disk is taken out and put in. It is stopped but for [`Self::replug`].
pub struct Replugs {
    qemu: Qemu,
    guest: Guest,
    backend: Program,
    /// Of the back-end.
    number: u32,
    errors: u64,
    random: u64,
    within: Duration,
    blk: PathBuf,
    image: Image,
}

impl Replugs {
    /// Boots the guest in this folder, and starts its load, on an image where the shape has it.
    pub fn start(programs: &Programs, linux: &Path, shape: &Shape) -> Result<Self> {
        let image = Image::new_in(&shape.folder, IMAGE)?;
        let at = image.directory();
        let blk = programs.bin.join("outboard-blk");
        let backend = serve(&blk, &image, 0)?;
        let mut qemu = Qemu::start(at, &arguments(linux, at)?)?;
        plug(&mut qemu, &image, 0)?;
        qemu.execute("cont", json!({}))?;
        let mut guest = Guest::connect(at)?;
        let booted = guest.booted();
        booted.with_context(|| format!("QEMU said:\n{}", qemu.said()))?;
        guest.run(LOAD)?;
        let mut vm = Self {
            qemu,
            guest,
            backend,
            number: 0,
            errors: 0,
            random: shape.seed,
            within: shape.within,
            blk,
            image,
        };
        vm.until_under_load()?;
        vm.qemu.execute("stop", json!({}))?;
        Ok(vm)
    }

    /// Replaces the back-end, once: how long nothing was completed, and how many errors
    /// the guest saw.
    pub fn replug(&mut self) -> Result<(Duration, u64)> {
        self.qemu.execute("cont", json!({}))?;
        self.until_under_load()?;
        self.random = splitmix64(self.random);
        let most = u64::try_from(self.within.as_micros()).unwrap_or(u64::MAX);
        let wait = self.random.checked_rem(most).unwrap_or(0);
        thread::sleep(Duration::from_micros(wait));

        let old = self.page()?;
        let over = AtomicBool::new(false);
        let (last, first) = thread::scope(|scope| {
            let last = scope.spawn(|| last_completion(&old, &over));
            let first = self.replace();
            over.store(true, Ordering::Relaxed);
            (last.join(), first)
        });
        let first = first?;
        let last = last.map_err(|_| anyhow!("it was not watched"))??;
        self.until_under_load()?;
        let before = self.errors;
        self.errors = self.seen()?;
        self.qemu.execute("stop", json!({}))?;
        let gap = first.saturating_duration_since(last);
        Ok((gap, self.errors.saturating_sub(before)))
    }

    /// When the new one has completed something.
    fn replace(&mut self) -> Result<Instant> {
        let (old, chardev) = (device(self.number), chardev(self.number));
        self.qemu.execute("device_del", json!({"id": old}))?;
        while self.qemu.event("DEVICE_DELETED")?["data"]["device"] != old.as_str() {}
        self.qemu
            .execute("chardev-remove", json!({"id": chardev}))?;
        let status = self.backend.end(Signal::SIGTERM)?;
        ensure!(status.success(), "{status}: {}", self.backend.said());
        self.number += 1;
        self.backend = serve(&self.blk, &self.image, self.number)?;
        plug(&mut self.qemu, &self.image, self.number)?;
        first_completion(&self.page()?)
    }

    /// Errors of requests that fio has told so far.
    fn seen(&mut self) -> Result<u64> {
        let count = "grep -c 'io_u error' /tmp/load.log || true";
        Ok(self.guest.run(count)?.parse()?)
    }

    fn page(&self) -> Result<File> {
        let pid = self.backend.pid();
        eventually("the back-end counts", || Ok(processes::counters(pid)))
    }

    /// Waits until the guest has gone on.
    fn until_under_load(&self) -> Result<()> {
        let page = self.page()?;
        let start = completions(&page)?;
        eventually("the guest's load goes on", || {
            Ok((completions(&page)? >= start + MANY).then_some(()))
        })
    }
}

/// How often something was completed.
fn completions(page: &File) -> Result<u64> {
    let queues = counters::read(page, QUEUES)?;
    Ok(queues.iter().map(|queue| queue.counts.batches).sum())
}

/// When the last thing was completed, once it is over.
fn last_completion(page: &File, over: &AtomicBool) -> Result<Instant> {
    let (mut at, mut last) = (Instant::now(), completions(page)?);
    loop {
        let is_over = over.load(Ordering::Relaxed);
        let (now, count) = (Instant::now(), completions(page)?);
        if count != last {
            (at, last) = (now, count);
        }
        if is_over {
            return Ok(at);
        }
        thread::sleep(EACH);
    }
}

fn first_completion(page: &File) -> Result<Instant> {
    let end = Instant::now() + PATIENCE;
    loop {
        let now = Instant::now();
        if completions(page)? > 0 {
            return Ok(now);
        }
        ensure!(now < end, "the guest reads nothing of the new disk");
        thread::sleep(EACH);
    }
}

fn device(number: u32) -> String {
    format!("disk{number}")
}

fn chardev(number: u32) -> String {
    format!("to-disk{number}")
}

fn socket(image: &Image, number: u32) -> PathBuf {
    image.directory().join(format!("blk{number}.sock"))
}

fn serve(blk: &Path, image: &Image, number: u32) -> Result<Program> {
    let socket = socket(image, number);
    let mut command = Command::new(blk);
    command
        .arg(format!("--socket-path={}", socket.display()))
        .arg(format!("--blk-file={}", image.path().display()))
        .arg(format!("--num-queues={QUEUES}"))
        .args(["--serial=swapped", "--log-level=error"]);
    program::serving(&mut command, &socket)
}

fn plug(qemu: &mut Qemu, image: &Image, number: u32) -> Result<()> {
    let path = socket(image, number).display().to_string();
    let chardev = chardev(number);
    let address = json!({"type": "unix", "data": {"path": path}});
    let backend = json!({"type": "socket", "data": {"addr": address, "server": false}});
    qemu.execute("chardev-add", json!({"id": chardev, "backend": backend}))?;
    let device: Value = json!({
        "driver": "vhost-user-blk-pci", "id": device(number), "bus": "for-disk",
        "chardev": chardev, "num-queues": QUEUES,
    });
    qemu.execute("device_add", device)?;
    Ok(())
}

/// QEMU's arguments, with a port for the disk that is plugged in.
fn arguments(linux: &Path, directory: &Path) -> Result<Vec<String>> {
    let file = |name: &str| {
        let file = linux.join(name);
        ensure!(
            file.is_file(),
            "no Linux guest: there is no {}",
            file.display()
        );
        Ok(file.display().to_string())
    };
    let accelerator = match host::has_hardware_kvm() {
        true => "-accel kvm -cpu host",
        false => "-accel tcg,thread=multi -cpu max",
    };
    let fixed = [
        "-S -m 384 -smp 2 -nodefaults -display none -nic none",
        accelerator,
        "-M q35,memory-backend=memory -object memory-backend-memfd,id=memory,size=384M,share=on",
        "-device pcie-root-port,id=for-disk,chassis=1,addr=2",
    ];
    let words = fixed.iter().flat_map(|line| line.split(' '));
    let mut words: Vec<String> = words.map(str::to_owned).collect();
    words.extend(Guest::arguments(directory));
    let root = format!(
        "if=none,id=root,format=raw,snapshot=on,file={}",
        file("root.img")?
    );
    let cmdline = "console=ttyS0 root=/dev/vda panic=-1 nokaslr mitigations=off";
    let more = [
        ["-kernel", &file("vmlinuz")?],
        ["-initrd", &file("initrd.img")?],
        ["-append", cmdline],
        ["-drive", &root],
        ["-device", "virtio-blk-pci,drive=root,addr=1"],
    ];
    words.extend(more.concat().into_iter().map(str::to_owned));
    Ok(words)
}
