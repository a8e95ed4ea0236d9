//! VMs with one disk and the bundled guest's `measure`, and what they counted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::disk::Disk;
use super::exits;
use super::report::Sample;
use super::trip::Trip;
use crate::Products;
use crate::processes::family;
use crate::program::{Program, passed, word};

const WAIT: Duration = Duration::from_secs(60);
const IMAGE: u64 = 64 << 20;
/// Where files are in memory.
const MEMORY: &str = "/dev/shm";
/// A back-end that may poll for so long between two requests never sleeps.
const ALWAYS: &str = "--poll-us=65535";
const NEVER: &str = "--poll-us=0";

/// What VMs are made of.
pub struct Vms<'a> {
    products: &'a Products,
    folder: tempfile::TempDir,
    image: PathBuf,
    millis: u64,
}

impl<'a> Vms<'a> {
    /// Runs of so many milliseconds.
    ///
    /// # Errors
    /// There is no room for the image.
    pub fn new(products: &'a Products, millis: u64) -> Result<Self> {
        let folder = match Path::new(MEMORY).is_dir() {
            true => tempfile::tempdir_in(MEMORY)?,
            false => tempfile::tempdir()?,
        };
        let image = folder.path().join("disk.img");
        // Written, so that reads find pages.
        fs::write(&image, vec![0xa5; IMAGE as usize]).context("making an image in memory")?;
        Ok(Self {
            products,
            folder,
            image,
            millis,
        })
    }

    /// One run of a round trip.
    pub fn trip(&self, trip: &Trip) -> Result<Sample> {
        let socket = self.folder.path().join("disk.sock");
        let mut command = Command::new(self.products.bin.join("outboard-blk"));
        let polls = if trip.back_end_polls { ALWAYS } else { NEVER };
        command
            .args(["--null=64M", polls])
            .arg(format!("--socket-path={}", socket.display()));
        let back_end = Program::start(&mut command)?;
        // Each on a processor of its own: where they meet is not what is asked.
        pin(back_end.pid(), 1)?;
        let mode = if trip.guest_polls { "poll" } else { "irq" };
        let words = format!("rw=randread size=512 depth=1 mode={mode}");
        let disk = format!("socket={},wait=30s", socket.display());
        let sample = self.measure(&words, &["--disk", &disk], Some(0));
        drop(back_end);
        sample
    }

    /// One run of a disk's workload.
    pub fn disk(&self, disk: &Disk) -> Result<Sample> {
        let kick = if disk.suppression { "wanted" } else { "always" };
        let (rw, depth) = (disk.rw, disk.depth);
        let words = format!("rw={rw} size=4096 depth={depth} kick={kick} mode=poll");
        let options = format!("path={},queues=1", self.image.display());
        let options = [
            "--disk",
            &options,
            "--kick-path",
            disk.ring,
            "--doorbell",
            disk.doorbell,
        ];
        self.measure(&words, &options, None)
    }

    fn measure(&self, words: &str, options: &[&str], cpu: Option<usize>) -> Result<Sample> {
        let cmdline = format!("scenario=measure {words} exit=halt millis={}", self.millis);
        let mut command = Command::new(self.products.bin.join("outboard"));
        command.args(["run", "--memory", "64M", "--cpus", "1"]);
        command
            .args(["--cmdline", &cmdline])
            .args(options)
            .arg("--kernel");
        let mut vm = Program::start(command.arg(&self.products.guest))?;
        vm.hear("!", WAIT)?;
        let machine = machine(vm.pid())?;
        if let Some(cpu) = cpu {
            pin(machine, cpu)?;
        }
        let before = (outside(machine)?, exits::count(machine));
        let line = vm.line("OUTBOARD measure result=", WAIT)?;
        let after = (outside(machine)?, exits::count(machine));
        passed(&line)?;
        let requests = word(&line, "requests")?;
        ensure!(requests > 0, "no request was served: {line}");
        let each = |number: u64| number as f64 / requests as f64;
        let [kicks, suppressed] = [word(&line, "kicks")?, word(&line, "suppressed")?];
        let exits = after
            .1
            .zip(before.1)
            .map(|(after, before)| each(after.saturating_sub(before)));
        Ok(Sample {
            count: requests,
            p10: f64::NAN,
            p50: word(&line, "p50_ns")? as f64 / 1e3,
            p99: word(&line, "p99_ns")? as f64 / 1e3,
            load: Some(super::report::Load {
                rate: word(&line, "iops")? as f64,
                outside: each(after.0.saturating_sub(before.0)) / 1e3,
                exits,
                kicks: each(kicks),
                kicked: kicks as f64 / (kicks + suppressed).max(1) as f64,
            }),
        })
    }
}

/// Keeps all threads of a process on one processor, where there is another.
fn pin(pid: u32, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    if std::thread::available_parallelism()?.get() > 1 {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let name = thread?.file_name();
            let number = name.to_str().context("a thread's number")?.parse()?;
            match sched_setaffinity(Pid::from_raw(number), &set) {
                // One that has ended meanwhile.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno).context("keeping a thread on a processor"),
            }
        }
    }
    Ok(())
}

/// The machine among the processes of a VM.
fn machine(supervisor: u32) -> Result<u32> {
    let is_machine = |pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).nth(1) == Some(b"machine")
    };
    let mut all = family(supervisor)?.into_iter();
    all.find(is_machine)
        .context("the VM has no machine process")
}

/// Processor time that the vCPU's thread of a machine has spent outside its
/// guest, in nanoseconds: all of it, which is exact, less the guest's, which
/// the kernel notes by ticks.
fn outside(machine: u32) -> Result<u64> {
    for thread in fs::read_dir(format!("/proc/{machine}/task"))? {
        let path = thread?.path();
        if !fs::read_to_string(path.join("comm"))?.starts_with("vcpu") {
            continue;
        }
        let number = |text: &str, at: usize| -> Option<u64> {
            text.split_whitespace().nth(at)?.parse().ok()
        };
        let all = number(&fs::read_to_string(path.join("schedstat"))?, 0);
        let stat = fs::read_to_string(path.join("stat"))?;
        let (_, rest) = stat.rsplit_once(')').context("a thread's stat")?;
        // proc_pid_stat(5): field 43, in ticks of USER_HZ, which is 100.
        let guest = number(rest, 40);
        let (all, guest) = all.zip(guest).context("a thread's times")?;
        return Ok(all.saturating_sub(guest * 10_000_000));
    }
    anyhow::bail!("the machine has no vCPU")
}
