//! A storm of swaps: at random moments the disk's back-end is replaced on command, by
//! another process of ours or by a qemu-storage-daemon on the same image; between the
//! swaps, and around them, the VM or the device is paused, a swap is only tried, and,
//! while ours serves, the disk is resized and the back-end killed.
//!
//! ```text
//! begun ──► 0 to 40 ms ──► a step ──► the status is true ──► the guest goes on ──► a step …
//!                                                   ──► the stop mark ──► the guest's verdict
//! ```

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use super::daemon::Daemon;
use super::{BLK, IMAGE, Outcome, Programs, Shape, Storm};
use crate::eventually;
use crate::pattern::splitmix64;
use crate::processes::{self, Process};

/// Swaps of one VM.
pub const SWAPS_OF_A_VM: u32 = 13;
/// Kills of one VM, at most: each start of a back-end waits twice as long as the one before.
const KILLS_OF_A_VM: u32 = 4;

/// What a storm of swaps is like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The VM, the disk and the seed; how many kills there may be.
    pub shape: Shape,
    /// How many swaps there are.
    pub swaps: u32,
    /// Whether a qemu-storage-daemon is among those that serve.
    pub foreign: bool,
}

impl Plan {
    /// So many swaps on a disk that both ours and QEMU's can serve.
    pub fn new(swaps: u32, seed: u64) -> Self {
        let shape = Shape::new(KILLS_OF_A_VM, seed).disk(",profile=portable");
        Self {
            // Whether it goes on is to be known soon.
            shape: shape.guest("report=20"),
            swaps,
            foreign: true,
        }
    }

    /// The same as VMs one after the other, each with a seed of its own.
    pub fn vms(&self) -> Vec<Self> {
        let mut vms = Vec::new();
        let mut left = self.swaps;
        while left > 0 {
            let mut plan = self.clone();
            plan.swaps = left.min(SWAPS_OF_A_VM);
            plan.shape.seed = self.shape.seed.wrapping_add(vms.len() as u64);
            left -= plan.swaps;
            vms.push(plan);
        }
        vms
    }
}

/// What was done in a storm, and how long it took.
#[derive(Debug, Default)]
pub struct Done {
    /// Steps by what they were.
    pub steps: BTreeMap<String, u32>,
    /// Of each swap under a guest that ran: how long nobody served, in microseconds, with
    /// its parts.
    pub gaps: Vec<Gap>,
}

/// How long nobody served, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// All of it.
    pub total: u64,
    /// Until the former had handed back its rings.
    pub stop: u64,
    /// Until it had finished what it had taken.
    pub drain: u64,
    /// Until the successor was told to begin.
    pub rest: u64,
    /// Until it had the rings.
    pub start: u64,
}

impl Gap {
    /// As `outboard ctl swap` says it.
    fn of(swapped: &Value) -> Result<Self> {
        let part = |name: &str| {
            let part = swapped["gap"][name].as_u64();
            part.with_context(|| format!("no gap: {swapped}"))
        };
        Ok(Self {
            total: part("total_us")?,
            stop: part("stop_us")?,
            drain: part("drain_us")?,
            rest: part("rest_us")?,
            start: part("start_us")?,
        })
    }
}

/// What is stopped around a swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Around {
    Nothing,
    Vm,
    Device,
}

impl Around {
    const fn words(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Vm => ", the VM paused",
            Self::Device => ", the device paused",
        }
    }
}

/// A storm of swaps in a VM.
#[derive(Debug)]
pub struct Swaps {
    /// The VM, its disk, its workload.
    pub storm: Storm,
    /// Who serves, if it is QEMU's.
    daemon: Option<Daemon>,
    plan: Plan,
    random: u64,
    daemons: u32,
    kills: u32,
    swaps: u32,
    /// What was done.
    pub done: Done,
}

impl Swaps {
    /// Starts the VM, and waits until the workload is under way.
    ///
    /// # Errors
    /// It does not begin.
    pub fn begin(programs: &Programs, plan: &Plan) -> Result<Self> {
        Ok(Self {
            storm: Storm::begin(programs, &plan.shape)?,
            daemon: None,
            random: plan.shape.seed,
            plan: plan.clone(),
            daemons: 0,
            kills: 0,
            swaps: 0,
            done: Done::default(),
        })
    }

    /// Goes on until there were as many swaps as the plan has.
    ///
    /// # Errors
    /// A step is not done, the status is not true, or the guest does not go on.
    pub fn rage(&mut self) -> Result<()> {
        while self.swaps < self.plan.swaps {
            self.storm.killer.wait_a_while();
            let step = self.step()?;
            let after = || format!("after {step}: {}", self.storm.vm.messages());
            self.tells_the_truth().with_context(after)?;
            *self.done.steps.entry(step).or_default() += 1;
            self.goes_on()?;
        }
        Ok(())
    }

    /// Ends the workload: what became of it.
    ///
    /// # Errors
    /// The run does not end as it must.
    pub fn end(mut self) -> Result<(Outcome, Done)> {
        Ok((self.storm.end()?, self.done))
    }

    /// A random step, done: its name.
    fn step(&mut self) -> Result<String> {
        match self.below(11) {
            0 => self.paused(Around::Vm),
            1 => self.paused(Around::Device),
            2 => self.tried(),
            3 | 4 if self.may_kill() => self.killed(),
            5 => self.swapped(Around::Vm),
            6 => self.swapped(Around::Device),
            7 if self.daemon.is_none() => self.resized(),
            _ => self.swapped(Around::Nothing),
        }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random = splitmix64(self.random);
        // Its low bits decide the waits.
        (self.random >> 20) % end
    }

    /// What a killed storage daemon had in flight nobody could repeat.
    fn may_kill(&self) -> bool {
        self.daemon.is_none() && self.kills < self.plan.shape.kills
    }

    fn paused(&mut self, around: Around) -> Result<String> {
        self.pause(around)?;
        self.storm.killer.wait_a_while();
        self.resume(around)?;
        Ok(format!("pause and resume{}", around.words()))
    }

    /// Who serves is the same as before, and its process.
    fn tried(&mut self) -> Result<String> {
        let before = self.device()?;
        let (to, daemon) = self.successor()?;
        let mut words = vec!["--dry-run".to_owned()];
        words.extend(daemon.as_ref().map(socket));
        let tried = self.swap(&words)?;
        ensure!(tried["gap"].is_null(), "{tried}");
        let after = self.device()?;
        for key in ["program", "pid"] {
            ensure!(before[key] == after[key], "{before}, then {after}");
        }
        Ok(format!("dry run to {to}"))
    }

    /// Behind all that the guest uses.
    fn resized(&mut self) -> Result<String> {
        let size = (IMAGE + (self.below(16) << 20)).to_string();
        self.storm.ctl(&["resize", "disk0", &size])?;
        Ok("resize".into())
    }

    fn killed(&mut self) -> Result<String> {
        self.kills += 1;
        // Of two any.
        let all = self.storm.killer.all(&self.storm.vm);
        let chosen = self.below(all.len() as u64) as usize;
        let pid = *all.get(chosen).context("there is no back-end")?;
        self.storm.killer.strike(pid, Signal::SIGKILL)?;
        self.until(|device| Ok(device["pid"] != pid.as_raw() && device["state"] == "running"))?;
        Ok("SIGKILL".into())
    }

    fn swapped(&mut self, around: Around) -> Result<String> {
        let (to, daemon) = self.successor()?;
        let from = match self.daemon {
            Some(_) => "qemu-storage-daemon",
            None => "ours",
        };
        self.pause(around)?;
        let words: Vec<_> = daemon.as_ref().map(socket).into_iter().collect();
        let swapped = self.swap(&words)?;
        let gap = Gap::of(&swapped)?;
        if around == Around::Nothing {
            self.done.gaps.push(gap);
        }
        // It has nothing any more, so it may be gone at once.
        let former = std::mem::replace(&mut self.daemon, daemon);
        former.map_or(Ok(()), Daemon::kill)?;
        // A device that is paused goes on with its successor.
        if around == Around::Vm {
            self.resume(around)?;
        }
        self.swaps += 1;
        Ok(format!("swap of {from} for {to}{}", around.words()))
    }

    /// Somebody who is to serve next, and who that is.
    fn successor(&mut self) -> Result<(&'static str, Option<Daemon>)> {
        if !self.plan.foreign || self.below(2) == 0 {
            return Ok(("ours", None));
        }
        self.daemons += 1;
        let image = &self.storm.image;
        let socket = image.directory().join(format!("{}.sock", self.daemons));
        let direct = self.plan.shape.disk.contains("direct");
        let daemon = Daemon::start(image.path(), socket, direct)?;
        Ok(("qemu-storage-daemon", Some(daemon)))
    }

    /// Runs `outboard ctl swap`.
    fn swap(&self, words: &[String]) -> Result<Value> {
        let mut all = vec!["swap", "disk0"];
        all.extend(words.iter().map(String::as_str));
        let text = self.storm.ctl(&all);
        let text = text.with_context(|| self.storm.vm.messages())?;
        serde_json::from_str(&text).context(text)
    }

    fn pause(&self, around: Around) -> Result<()> {
        self.order(around, "pause")
    }

    fn resume(&self, around: Around) -> Result<()> {
        self.order(around, "resume")
    }

    fn order(&self, around: Around, word: &str) -> Result<()> {
        match around {
            Around::Nothing => return Ok(()),
            Around::Vm => self.storm.ctl(&[word]),
            Around::Device => self.storm.ctl(&[word, "disk0"]),
        }
        .map(drop)
    }

    fn device(&self) -> Result<Value> {
        Ok(self.storm.status()?["devices"][0].take())
    }

    /// Waits until this is true of the device.
    fn until(&self, is: impl Fn(&Value) -> Result<bool>) -> Result<()> {
        let mut last = Value::Null;
        let found = eventually("the status says so", || {
            last = self.device()?;
            Ok(is(&last)?.then_some(()))
        });
        found.with_context(|| last.to_string())
    }

    /// The status says who serves, and that is who is there; the former has gone, or goes.
    fn tells_the_truth(&self) -> Result<()> {
        let device = self.device()?;
        let state = &device["state"];
        ensure!(state == "running", "{device}");
        let program = match &self.daemon {
            Some(daemon) => daemon.socket().display().to_string(),
            None => BLK.to_owned(),
        };
        ensure!(device["program"] == program, "{program} serves: {device}");
        let is_foreign = self.daemon.is_some();
        ensure!(device["pid"].is_null() == is_foreign, "{device}");
        self.until(|device| {
            let there = back_ends(&self.storm);
            let pid = device["pid"].as_i64();
            Ok(match pid {
                None => there.is_empty(),
                Some(pid) => there
                    .first()
                    .is_some_and(|it| i64::from(it.as_raw()) == pid),
            } && there.len() <= 1 + usize::from(self.stands_by() && !is_foreign))
        })
    }

    fn stands_by(&self) -> bool {
        self.plan.shape.disk.contains("standby=1")
    }

    fn goes_on(&mut self) -> Result<()> {
        self.storm.killer.note();
        self.storm.killer.until_it_goes_on(&mut self.storm.vm)
    }
}

fn socket(daemon: &Daemon) -> String {
    format!("socket={}", daemon.socket().display())
}

/// The oldest first.
fn back_ends(storm: &Storm) -> Vec<Pid> {
    let all = processes::children(storm.vm.pid()).into_iter();
    let back_ends = all.filter(Process::is_backend);
    back_ends.map(|process| process.pid).collect()
}

/// A whole storm, whose seed is said wherever it fails.
///
/// # Errors
/// A step was not done, or the VM did not come to its end. What it and the image say of
/// it is for [`Outcome::nothing_is_wrong`].
pub fn run(programs: &Programs, plan: &Plan) -> Result<(Outcome, Done)> {
    let whole = || {
        let mut swaps = Swaps::begin(programs, plan)?;
        let raged = swaps.rage();
        raged.with_context(|| format!("done so far: {:?}, then:", swaps.done.steps))?;
        swaps.end()
    };
    whole().with_context(|| format!("seed {}, {plan:?}", plan.shape.seed))
}
