//! A storm: the bundled guest reads, writes and flushes, its back-end is killed
//! at random moments, and in the end both the guest and the image say what
//! became of each block.
//!
//! ```text
//! begun ──► a kill ──► another process is there ──► 0 to 40 ms ──► a kill …
//!                                                       ──► the stop mark ──► the guest's verdict
//! ```
//! The next kill does not wait until the device serves again: so many of them
//! hit a successor somewhere in its start.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::eventually;
use crate::image::Image;
use crate::pattern::{SECTOR, splitmix64};
use crate::processes::{self, Process};
use crate::record::{self, Found, Layout, STOP};
use crate::vm::{Ended, GuestResult, Run, Vm};

/// Bytes of the image: small, so that blocks are written again and again.
const IMAGE: u64 = 16 << 20;
const BLK: &str = "outboard-blk";
/// Bytes in a block.
const BLOCK: u64 = 4096;
/// Kinds of failure that the guest counts.
const FAILURES: [&str; 9] = [
    "lost",
    "stale",
    "torn",
    "misplaced",
    "newer",
    "twice",
    "unwritten",
    "status",
    "length",
];

/// What a storm is like.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Where the image is made.
    pub folder: PathBuf,
    /// More keys of `--disk`, each with its comma in front.
    pub disk: String,
    /// More words for the guest.
    pub guest: String,
    /// How often the back-end is sent the signal.
    pub kills: u32,
    /// Which signal.
    pub signal: Signal,
    /// The longest time from a new process to the next kill.
    pub within: Duration,
    /// Of the guest's choices and of the moments.
    pub seed: u64,
}

impl Shape {
    /// So many SIGKILLs, on a disk in a tmpfs if there is one.
    pub fn new(kills: u32, seed: u64) -> Self {
        let shm = Path::new("/dev/shm");
        Self {
            folder: match shm.is_dir() {
                true => shm.to_owned(),
                false => std::env::temp_dir(),
            },
            disk: String::new(),
            guest: String::new(),
            kills,
            signal: Signal::SIGKILL,
            within: Duration::from_millis(40),
            seed,
        }
    }

    /// With these keys of `--disk` too.
    pub fn disk(mut self, keys: &str) -> Self {
        self.disk.push_str(keys);
        self
    }

    /// With these words for the guest too.
    pub fn guest(mut self, words: &str) -> Self {
        self.guest.push(' ');
        self.guest.push_str(words);
        self
    }
}

/// A time in which nothing was completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// From the beginning of the workload to the last completion before it.
    pub since: Duration,
    /// To the next completion.
    pub length: Duration,
}

/// What became of a storm.
#[derive(Debug)]
pub struct Outcome {
    /// What the guest says.
    pub result: GuestResult,
    /// What the image says.
    pub found: Found,
    /// The longest gaps, the longest first: as many as there were kills, and
    /// some more.
    pub gaps: Vec<Gap>,
    /// When the kills were, from the beginning of the workload.
    pub kills: Vec<Duration>,
    /// How the run ended.
    pub ended: Ended,
}

impl Outcome {
    /// Failures that the guest has counted, by their names; those that it has
    /// not are left out.
    ///
    /// # Errors
    /// It does not say.
    pub fn failures(&self) -> Result<Vec<(&'static str, u64)>> {
        let mut counts = Vec::new();
        for name in FAILURES {
            counts.push((name, self.result.number(name)?));
        }
        counts.retain(|(_, count)| *count != 0);
        Ok(counts)
    }

    /// Checks that neither the guest nor the image has found anything wrong.
    ///
    /// # Errors
    /// What is wrong, with all that was said.
    pub fn nothing_is_wrong(self) -> Result<Self> {
        let (failures, ended) = (self.failures()?, &self.ended);
        ensure!(failures.is_empty(), "{failures:?}: {ended}");
        self.result.clone().passed()?;
        ensure!(self.found.is_right(), "{:?}: {ended}", self.found);
        ensure!(self.found.written > 0, "nothing was written: {ended}");
        Ok(self)
    }
}

/// Who kills the back-ends of one program, one after the other.
#[derive(Debug)]
pub struct Killer {
    program: &'static str,
    began: Instant,
    random: u64,
    within: Duration,
    /// When it has killed, from the beginning on.
    pub kills: Vec<Duration>,
}

impl Killer {
    /// One who has not killed yet, and takes the time from now on.
    pub fn new(program: &'static str, seed: u64, within: Duration) -> Self {
        Self {
            program,
            began: Instant::now(),
            random: seed,
            within,
            kills: Vec::new(),
        }
    }

    /// The back-end as it is now: the newest, if there are two.
    fn newest(&self, vm: &Vm) -> Option<Pid> {
        let is = |process: &Process| {
            let name = process.args.first().map(Path::new);
            name.is_some_and(|name| name.ends_with(self.program))
        };
        let children = processes::children(vm.pid()).into_iter();
        children.filter(is).map(|process| process.pid).max()
    }

    /// Waits for a back-end other than this one.
    ///
    /// # Errors
    /// None comes up, or the run is over.
    pub fn next(&self, vm: &mut Vm, last: Option<Pid>) -> Result<Pid> {
        let found = eventually("another back-end is there", || {
            ensure!(!vm.is_over()?, "the run is over");
            Ok(self.newest(vm).filter(|pid| Some(*pid) != last))
        });
        let kills = self.kills.len();
        found.with_context(|| format!("after {kills} kills; {last:?} was last: {}", vm.messages()))
    }

    /// Sends a back-end a signal, unless it is gone already.
    ///
    /// # Errors
    /// The system does not let it.
    pub fn strike(&mut self, pid: Pid, signal: Signal) -> Result<()> {
        self.kills.push(self.began.elapsed());
        match kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).context("kill"),
        }
    }

    /// Waits for some time, at most as long as it was told.
    fn wait_a_while(&mut self) {
        self.random = splitmix64(self.random);
        let most = u64::try_from(self.within.as_micros()).unwrap_or(u64::MAX);
        let wait = self.random.checked_rem(most).unwrap_or(0);
        std::thread::sleep(Duration::from_micros(wait));
    }

    /// Sends the signal to one back-end after the other. In the end there is
    /// one that lives.
    ///
    /// # Errors
    /// No successor comes up.
    pub fn kill_them(&mut self, vm: &mut Vm, times: u32, signal: Signal) -> Result<()> {
        let mut last = None;
        for _ in 0..times {
            let pid = self.next(vm, last)?;
            self.wait_a_while();
            self.strike(pid, signal)?;
            last = Some(pid);
        }
        self.next(vm, last)?;
        Ok(())
    }
}

/// A storm in a VM.
#[derive(Debug)]
pub struct Storm {
    /// The VM.
    pub vm: Vm,
    /// Its disk.
    pub image: Image,
    /// Who kills.
    pub killer: Killer,
    seed: u64,
}

impl Storm {
    /// Starts `base` (a program and its kernel) with a disk and the guest's
    /// words, and waits until the workload is under way.
    ///
    /// # Errors
    /// It does not begin.
    pub fn begin(base: Run, shape: &Shape) -> Result<Self> {
        let image = Image::new_in(&shape.folder, IMAGE)?;
        let Shape {
            seed, guest, disk, ..
        } = shape;
        let gaps = u64::from(shape.kills) + 16;
        let cmdline = format!("scenario=storm stop=1 seed={seed} gaps={gaps}{guest}");
        let mut vm = base
            .with("--cpus", "2")
            .with("--memory", "256M")
            .with("--disk", format!("{},queues=2{disk}", image.option()))
            .with("--cmdline", cmdline)
            .start()?;
        vm.console_line("begun scenario=storm")?;
        let killer = Killer::new(BLK, *seed, shape.within);
        vm.console_line("progress scenario=storm")?;
        Ok(Self {
            vm,
            image,
            killer,
            seed: *seed,
        })
    }

    /// Tells the guest to end and waits for what it and the image say.
    ///
    /// # Errors
    /// The run does not end as it must.
    pub fn end(mut self) -> Result<Outcome> {
        let layout = Layout::new(IMAGE / SECTOR as u64, BLOCK / SECTOR as u64);
        let layout = layout.context("a layout")?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.image.path())?;
        file.write_all_at(&STOP.to_le_bytes(), layout.stop * SECTOR as u64)?;
        let ended = self.vm.wait()?.with_code(0)?;
        let result = ended.result("storm")?;
        let found = record::check(&layout, self.seed, |sector, bytes| {
            file.read_exact_at(bytes, sector * SECTOR as u64)
        })?;
        Ok(Outcome {
            gaps: gaps(&ended.console)?,
            result,
            found,
            kills: self.killer.kills,
            ended,
        })
    }
}

/// The guest's `gap` lines.
///
/// # Errors
/// One of them is none.
pub fn gaps(console: &str) -> Result<Vec<Gap>> {
    let lines = console.lines().filter(|line| line.starts_with("gap "));
    lines
        .map(|line| {
            let words = GuestResult::from_words(line);
            Ok(Gap {
                since: Duration::from_nanos(words.number("at_ns")?),
                length: Duration::from_nanos(words.number("ns")?),
            })
        })
        .collect()
}

/// A whole storm, whose seed is said wherever it fails.
///
/// # Errors
/// The VM did not come to its end. What it and the image say of it is for
/// [`Outcome::nothing_is_wrong`].
pub fn run(base: Run, shape: &Shape) -> Result<Outcome> {
    let whole = || {
        let mut storm = Storm::begin(base, shape)?;
        let Storm { vm, killer, .. } = &mut storm;
        killer.kill_them(vm, shape.kills, shape.signal)?;
        storm.end()
    };
    whole().with_context(|| format!("seed {}, {shape:?}", shape.seed))
}
