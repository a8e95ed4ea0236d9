//! A storm: the bundled guest reads, writes and flushes, its back-end is killed
//! at random moments, and in the end both the guest and the image say what
//! became of each block.
//!
//! ```text
//! begun ──► a kill ──► another process is there ──► 0 to 40 ms ──► a kill …
//!                                                       ──► the stop mark ──► the guest's verdict
//! ```
//! With [`Pace::Anyhow`] the next kill does not wait until the device serves
//! again: so many of them hit a successor somewhere in its start.
//!
//! - [`killer`]: who kills, whom and when;
//! - [`swaps`]: a storm in which back-ends are replaced on command, too;
//! - [`daemon`]: QEMU's program for a disk, for those;
//! - `qemu`: the same back-end at a socket, restarted by the test: under QEMU, too;
//! - `planned`: and there replaced by plan;
//! - [`step`]: a process that is killed between two system calls.

pub mod daemon;
pub mod killer;
mod planned;
mod qemu;
pub mod step;
pub mod swaps;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Pid;
use serde_json::Value;

use crate::eventually;
use crate::image::Image;
use crate::pattern::SECTOR;
use crate::products::{Products, write_script};
use crate::record::{self, Found, Layout, STOP};
use crate::vm::{Ended, GuestResult, Run, Vm};
use killer::{Aim, Blow, Killer};
use qemu::BackEnd;

/// Bytes of the image: small, so that blocks are written again and again.
pub const IMAGE: u64 = 16 << 20;
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

/// Kills of one VM: each start of a back-end waits twice as long as the one
/// before, and many kills would be a test of patience.
pub const KILLS_OF_A_VM: u32 = 8;

/// Whose VM it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontEnd {
    /// `outboard run`, which starts its back-end itself, and the next one.
    Outboard,
    /// `outboard run` with a back-end that listens, to which it reconnects; the next
    /// one is started as soon as the last one is gone.
    Socket,
    /// QEMU with a back-end that listens, to which it reconnects; the next one
    /// is started as soon as the last one is gone.
    Qemu,
    /// QEMU, which listens for back-ends that connect.
    QemuListens,
}

/// When the next kill comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As soon as there is another process, and some time.
    Anyhow,
    /// When the guest has gone on after the last one, and some time.
    OneByOne,
}

/// The programs and the guest that a storm needs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The folder with Outboard's programs.
    pub bin: PathBuf,
    /// The bundled guest with its PVH note.
    pub guest: PathBuf,
}

impl Programs {
    /// Those under test.
    ///
    /// # Errors
    /// They are missing.
    pub fn get() -> Result<Self> {
        let products = Products::get()?;
        Ok(Self {
            bin: products.program(""),
            guest: products.guest("guest-pvh"),
        })
    }
}

/// What a storm is like.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Whose VM it is.
    pub front_end: FrontEnd,
    /// When kills come.
    pub pace: Pace,
    /// Whom they hit.
    pub aim: Aim,
    /// Where the image is made.
    pub folder: PathBuf,
    /// More keys of `--disk`, each with its comma in front.
    pub disk: String,
    /// What a shell does before it becomes the back-end, of a VM of Outboard's, and
    /// the first options that it then gives it.
    pub before: Option<(String, String)>,
    /// More options of `outboard run`, of a VM of Outboard's.
    pub more: Vec<(String, PathBuf)>,
    /// More words for the guest.
    pub guest: String,
    /// How often the back-end is struck.
    pub kills: u32,
    /// With what.
    pub blow: Blow,
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
            front_end: FrontEnd::Outboard,
            pace: Pace::Anyhow,
            aim: Aim::Newest,
            folder: match shm.is_dir() {
                true => shm.to_owned(),
                false => std::env::temp_dir(),
            },
            disk: String::new(),
            before: None,
            more: Vec::new(),
            guest: String::new(),
            kills,
            blow: Blow::KILL,
            within: Duration::from_millis(40),
            seed,
        }
    }

    /// The same as VMs one after the other, with [`KILLS_OF_A_VM`] at most, each
    /// with a seed of its own.
    pub fn vms(&self) -> Vec<Self> {
        let mut vms = Vec::new();
        let mut left = self.kills;
        loop {
            let mut shape = self.clone();
            shape.kills = left.min(KILLS_OF_A_VM);
            shape.seed = self.seed.wrapping_add(vms.len() as u64);
            left = left.saturating_sub(shape.kills);
            vms.push(shape);
            if left == 0 {
                return vms;
            }
        }
    }

    /// With these keys of `--disk` too.
    pub fn disk(mut self, keys: &str) -> Self {
        self.disk.push_str(keys);
        self
    }

    /// With these options of outboard-blk's own.
    pub fn options(mut self, options: &str) -> Self {
        self.before = Some((String::new(), options.into()));
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

/// A storm in a VM.
#[derive(Debug)]
pub struct Storm {
    /// The VM.
    pub vm: Vm,
    /// Its disk.
    pub image: Image,
    /// The file that is behind the disk now.
    pub behind: PathBuf,
    /// Who kills.
    pub killer: Killer,
    /// The back-end, where the test has started it.
    own: Option<BackEnd>,
    seed: u64,
    /// Whose VM it is, if it has a control API.
    outboard: Option<PathBuf>,
}

impl Storm {
    /// Starts a VM with a disk and the guest's words, and waits until the
    /// workload is under way.
    ///
    /// # Errors
    /// It does not begin.
    pub fn begin(programs: &Programs, shape: &Shape) -> Result<Self> {
        Self::begin_on(programs, shape, Image::new_in(&shape.folder, IMAGE)?)
    }

    /// The same, on a disk of [`IMAGE`] zeros.
    ///
    /// # Errors
    /// It does not begin.
    pub fn begin_on(programs: &Programs, shape: &Shape, image: Image) -> Result<Self> {
        let mut storm = Self::start(programs, shape, image)?;
        storm.vm.console_line("begun scenario=storm")?;
        // Its time is that of the workload.
        storm.killer = Killer::new(BLK, shape.seed, shape.within);
        storm.killer.aim = shape.aim;
        storm.vm.console_line("progress scenario=storm")?;
        Ok(storm)
    }

    /// Starts a VM with a disk of [`IMAGE`] zeros and the guest's words.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(programs: &Programs, shape: &Shape, image: Image) -> Result<Self> {
        let Shape { seed, guest, .. } = shape;
        let gaps = u64::from(shape.kills) + 16;
        let cmdline = format!("scenario=storm stop=1 seed={seed} gaps={gaps} report=100{guest}");
        let mut own = match shape.front_end {
            FrontEnd::Outboard => None,
            FrontEnd::Socket | FrontEnd::Qemu => Some(BackEnd::new(programs, shape, &image)),
            FrontEnd::QemuListens => Some(BackEnd::that_connects(programs, shape, &image)?),
        };
        let run = match (&own, shape.front_end) {
            (None, _) => outboard(programs, shape, &image, &cmdline)?,
            (Some(own), FrontEnd::Socket) => vm(programs, &cmdline).with("--disk", own.disk()),
            (Some(own), _) => own.front_end(programs, &cmdline, &qmp(&image)),
        };
        // Who listens comes first.
        let vm = match &mut own {
            None => run.start()?,
            Some(own) if own.connects() => {
                let vm = run.start()?;
                own.start().with_context(|| vm.messages())?;
                vm
            }
            Some(own) => {
                own.start()?;
                run.start()?
            }
        };
        Ok(Self {
            vm,
            behind: image.path().to_owned(),
            image,
            killer: Killer::new(BLK, *seed, shape.within),
            outboard: own.is_none().then(|| programs.bin.join("outboard")),
            own,
            seed: *seed,
        })
    }

    /// What `outboard ctl` prints, as JSON.
    ///
    /// # Errors
    /// It fails, or the VM is not Outboard's.
    pub fn ctl(&self, words: &[&str]) -> Result<String> {
        let outboard = self.outboard.as_ref().context("not a VM of Outboard's")?;
        let mut ctl = Command::new(outboard);
        ctl.args(["ctl", "--json"]).args(words);
        ctl.env("OUTBOARD_API", self.api());
        let output = ctl.output()?;
        ensure!(output.status.success(), "{words:?}: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The socket of the control API, of a VM of Outboard's.
    pub fn api(&self) -> PathBuf {
        api(&self.image)
    }

    /// Strikes this back-end.
    ///
    /// # Errors
    /// The system or the VM does not let it.
    pub fn strike(&mut self, pid: Pid, blow: Blow) -> Result<()> {
        match blow {
            Blow::Signal(signal) => self.killer.strike(pid, signal),
            Blow::Restart => {
                self.killer.note();
                self.ctl(&["restart", "disk0"]).map(drop)
            }
        }
    }

    /// What the control API says of the VM.
    ///
    /// # Errors
    /// As [`Self::ctl`].
    pub fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.ctl(&["status"])?)?)
    }

    /// Waits until the second process of the disk is ready to take over.
    ///
    /// # Errors
    /// It does not become so.
    pub fn until_a_standby_is_ready(&self) -> Result<()> {
        let ready = eventually("the standby is ready", || {
            let status = self.status()?;
            Ok((status["devices"][0]["standby"] == "ready").then_some(()))
        });
        ready.with_context(|| self.vm.messages())
    }

    /// Kills as often and as fast as the shape says. A back-end beside which another is to
    /// stand by is killed only once that is ready, if the kills wait for the guest.
    ///
    /// # Errors
    /// No successor comes up, or the guest does not go on.
    pub fn rage(&mut self, shape: &Shape) -> Result<()> {
        let mut last = None;
        for kill in 0..shape.kills {
            if (shape.aim, shape.pace) == (Aim::Serving, Pace::OneByOne) {
                self.until_a_standby_is_ready()?;
            }
            match (&mut self.own, shape.pace) {
                (None, _) => {
                    let pid = self.killer.next(&mut self.vm, last)?;
                    self.killer.wait_a_while();
                    self.strike(pid, shape.blow)?;
                    last = Some(pid);
                }
                (Some(own), Pace::OneByOne) => {
                    self.killer.wait_a_while();
                    self.killer.note();
                    own.replace()?;
                }
                (Some(_), Pace::Anyhow) => bail!("a front-end takes its time to reconnect"),
            }
            match shape.pace {
                Pace::OneByOne => self.killer.until_it_goes_on(&mut self.vm)?,
                // In the end there is one that lives.
                Pace::Anyhow if kill + 1 == shape.kills => {
                    self.killer.next(&mut self.vm, last)?;
                }
                Pace::Anyhow => {}
            }
        }
        Ok(())
    }

    /// Tells the guest to end its workload: how the image is laid out, and the image.
    ///
    /// # Errors
    /// The image cannot be written.
    pub fn stop(&self) -> Result<(Layout, File)> {
        let layout = Layout::new(IMAGE / SECTOR as u64, BLOCK / SECTOR as u64);
        let layout = layout.context("a layout")?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).open(&self.behind)?;
        file.write_all_at(&STOP.to_le_bytes(), layout.stop * SECTOR as u64)?;
        Ok((layout, file))
    }

    /// Tells the guest to end and waits for what it and the image say.
    ///
    /// # Errors
    /// The run does not end as it must.
    pub fn end(&mut self) -> Result<Outcome> {
        let (layout, file) = self.stop()?;
        let ended = self.vm.wait()?.with_code(0)?;
        drop(self.own.take());
        let result = ended.result("storm")?;
        let found = record::check(&layout, self.seed, |sector, bytes| {
            file.read_exact_at(bytes, sector * SECTOR as u64)
        })?;
        Ok(Outcome {
            gaps: gaps(&ended.console)?,
            result,
            found,
            kills: std::mem::take(&mut self.killer.kills),
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

fn outboard(programs: &Programs, shape: &Shape, image: &Image, cmdline: &str) -> Result<Run> {
    let mut disk = format!("{},queues=2{}", image.option(), shape.disk);
    if let Some((before, options)) = &shape.before {
        let script = image.directory().join("blk");
        let program = programs.bin.join(BLK);
        let become_it = format!("exec '{}' {options} \"$@\"", program.display());
        write_script(&script, &format!("{before}\n{become_it}"))?;
        disk.push_str(&format!(",backend={}", script.display()));
    }
    let mut run = vm(programs, cmdline)
        .with("--disk", disk)
        .with("--api", api(image));
    for (option, value) in &shape.more {
        run = run.with(option, value);
    }
    Ok(run)
}

fn api(image: &Image) -> PathBuf {
    image.directory().join("api")
}

/// The control socket of a VM of QEMU's.
fn qmp(image: &Image) -> PathBuf {
    image.directory().join("qmp")
}

/// A VM without a disk yet.
fn vm(programs: &Programs, cmdline: &str) -> Run {
    Run::program(programs.bin.join("outboard"))
        .switch("run")
        .with("--kernel", &programs.guest)
        .with("--cpus", "2")
        .with("--memory", "256M")
        .with("--cmdline", cmdline)
}

/// A whole storm, whose seed is said wherever it fails.
///
/// # Errors
/// The VM did not come to its end. What it and the image say of it is for
/// [`Outcome::nothing_is_wrong`].
pub fn run(programs: &Programs, shape: &Shape) -> Result<Outcome> {
    let whole = || {
        let mut storm = Storm::begin(programs, shape)?;
        storm.rage(shape)?;
        storm.end()
    };
    whole().with_context(|| format!("seed {}, {shape:?}", shape.seed))
}
