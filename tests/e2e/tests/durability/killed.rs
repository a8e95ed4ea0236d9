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

/// The guest writes, reads everything back, and rests; then `fate` comes.
fn what_was_written_is_there(
    way: Way,
    program: Program,
    options: &[&str],
    fate: Fate,
) -> Result<()> {
    let image = Image::new(16 << 20)?;
    let cmdline = format!("scenario=verify,idle requests=500 depth=8 seed={SEED} flush_every=0");
    let mut served = Served::start(way, program, &image, options, &cmdline)?;
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
    let cached: &[&str] = &[];
    let served = [
        (Way::Engine("io_uring"), cached, ""),
        (Way::Engine("threads"), cached, ""),
        (Way::Path, &["direct"], " with direct I-O"),
    ];
    let all = served
        .into_iter()
        .flat_map(|one| FATES.map(|fate| (one, fate)));
    let test = |((way, options, how), fate): ((Way, &'static [&'static str], &str), Fate)| {
        trial(
            format!("what was written and never flushed survives {fate}{how} {way}"),
            move || no_kvm().or_else(|| way.missing()),
            move || what_was_written_is_there(way, FORGETFUL, options, fate),
        )
    };
    let others = |fate: Fate| {
        let way = Way::StorageDaemon;
        trial(
            format!("what was written and flushed survives {fate} {way}"),
            move || no_kvm().or_else(|| way.missing()),
            move || what_was_written_is_there(way, Program::Sound, &[], fate),
        )
    };
    all.map(test).chain(FATES.map(others)).collect()
}
