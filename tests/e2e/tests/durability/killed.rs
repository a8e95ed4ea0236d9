//! A process is killed, and what the guest was told is written is there: it is
//! the host's, in its page cache or on its storage, not the process's.
//!
//! The back-end is one that never syncs the image, so that nothing of this is
//! owed to a flush; of others' back-ends there is none such, and the guest
//! flushes in the end.

use std::fmt;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use outboard_e2e::image::{Content, Image};
use outboard_e2e::processes::Process;
use outboard_e2e::vm::GuestResult;

use crate::served::{Program, Served, Way};
use crate::{no_kvm, trial};

const SEED: u64 = 1;
const CANNOT_FLUSH: &str = " features_mask=0xfffffffffffffdff";
const NEVER_FLUSHED: &str = "what was written and never flushed survives";
const FLUSHED: &str = "what was written and flushed survives";
const FORGETFUL: Program = Program::Faulty("blk-forgets-syncs");

/// How it ends.
#[derive(Clone, Copy)]
enum Fate {
    BackEnd,
    Machine,
    Supervisor,
    Orderly,
}

const FATES: [Fate; 4] = [
    Fate::BackEnd,
    Fate::Machine,
    Fate::Supervisor,
    Fate::Orderly,
];

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BackEnd => "SIGKILL of the back-end",
            Self::Machine => "SIGKILL of the machine",
            Self::Supervisor => "SIGKILL of the supervisor",
            Self::Orderly => "an orderly end",
        })
    }
}

/// A disk and its driver.
#[derive(Clone, Copy)]
struct Disk {
    options: &'static [&'static str],
    cannot_flush: bool,
    name: &'static str,
}

const DISKS: [Disk; 5] = [
    Disk {
        options: &[],
        cannot_flush: false,
        name: "",
    },
    Disk {
        options: &["direct"],
        cannot_flush: false,
        name: " with direct I-O",
    },
    Disk {
        options: &["wce=off"],
        cannot_flush: false,
        name: " with the write cache off",
    },
    Disk {
        options: &["direct", "wce=off"],
        cannot_flush: false,
        name: " with the write cache off and direct I-O",
    },
    Disk {
        options: &[],
        cannot_flush: true,
        name: " of a driver that cannot flush",
    },
];

/// The guest writes, reads everything back, and rests; then `fate` comes.
fn what_was_written_is_there(way: Way, program: Program, disk: Disk, fate: Fate) -> Result<()> {
    let image = Image::new(16 << 20)?;
    let features = if disk.cannot_flush { CANNOT_FLUSH } else { "" };
    let cmdline =
        format!("scenario=verify,idle requests=500 depth=8 seed={SEED} flush_every=0{features}");
    let mut served = Served::start(way, program, &image, disk.options, &cmdline)?;
    let line = served.vm.console_line("OUTBOARD verify ")?;
    let result = GuestResult::from_line(&line, "OUTBOARD verify")?.passed()?;
    let told = Content {
        sectors: result.number("sectors")?,
        digest: result.number("digest")?,
    };
    ensure!(
        told.sectors > 100,
        "the guest wrote next to nothing: {told:?}"
    );
    match fate {
        Fate::BackEnd => kill(served.backend()?, Signal::SIGKILL)?,
        Fate::Machine => kill(served.vm.process(Process::is_machine)?.pid, Signal::SIGKILL)?,
        Fate::Supervisor => served.vm.signal(Signal::SIGKILL)?,
        Fate::Orderly => served.vm.signal(Signal::SIGTERM)?,
    }
    let status = served.vm.wait()?.status;
    let orderly = matches!(fate, Fate::Orderly);
    ensure!(status.success() == orderly, "{status}");
    served.vm.check_nothing_is_left()?;
    let found = image.check(SEED)?;
    ensure!(
        found == told,
        "the guest was told {told:?}, found was {found:?}"
    );
    Ok(())
}

/// The tests of this file: how a disk is served, and what becomes of it.
pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut add = |what: &str, way: Way, program, disk: Disk, fate: Fate| {
        trials.push(trial(
            format!("{what} {fate}{} {way}", disk.name),
            move || no_kvm().or_else(|| way.missing()),
            move || what_was_written_is_there(way, program, disk, fate),
        ));
    };
    for fate in FATES {
        for disk in DISKS {
            for way in ["io_uring", "threads"].map(Way::Engine) {
                add(NEVER_FLUSHED, way, FORGETFUL, disk, fate);
            }
        }
        let [plain, .., cannot_flush] = DISKS;
        add(FLUSHED, Way::StorageDaemon, Program::Sound, plain, fate);
        add(
            NEVER_FLUSHED,
            Way::StorageDaemon,
            Program::Sound,
            cannot_flush,
            fate,
        );
    }
    trials
}
