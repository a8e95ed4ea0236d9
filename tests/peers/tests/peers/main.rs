//! Outboard against vhost-user programs that others wrote. Each test is a
//! cell of the tables that `peers-table` makes of the lines at the end; one
//! that cannot run here is reported as ignored, with the reason, and has none.

mod back_ends;
mod driver;
mod network;
mod steps;
mod under_qemu;

use std::fs::OpenOptions;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Trial};
use outboard_peers::program;
use outboard_peers::table::{self, Outcome};

/// Others' back-ends, our front-end and the bundled guest.
const BACK_ENDS: &str = "back-ends of others, our VMM";
/// Others' front-ends, our back-ends.
const FRONT_ENDS: &str = "front-ends of others, our back-ends";

/// What a test needs of the machine it runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// A /dev/kvm that can be opened.
    Kvm,
    /// A program.
    Program(&'static str),
    /// The files that `build-guest` makes, in the folder that PEERS_GUEST names.
    LinuxGuest,
    /// A network of its own.
    Root,
}

impl Need {
    /// Why this need is not met.
    fn missing(self) -> Option<String> {
        match self {
            Self::Kvm => {
                let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
                kvm.err().map(|error| format!("/dev/kvm: {error}"))
            }
            Self::Program(name) => program::find(name).err(),
            Self::LinuxGuest => std::env::var_os("PEERS_GUEST")
                .is_none()
                .then(|| "PEERS_GUEST names no Linux guest: see build-guest".into()),
            Self::Root => (!nix::unistd::geteuid().is_root()).then(|| "not root".into()),
        }
    }
}

/// A test, which makes one cell of the table.
struct Cell {
    table: &'static str,
    peer: String,
    tried: &'static str,
    needs: &'static [Need],
    run: Box<dyn FnOnce() -> Result<Outcome> + Send>,
}

/// The lines of the cells, in the order of the tests.
type Lines = Arc<Mutex<Vec<(usize, String)>>>;

impl Cell {
    fn trial(self, place: usize, lines: Lines) -> Trial {
        let name = format!("{}::{}", self.peer, self.tried).replace(' ', "_");
        Trial::ignorable_test(name, move || {
            if let Some(reason) = self.needs.iter().find_map(|need| need.missing()) {
                return Ok(Completion::ignored_with(reason));
            }
            let result = (self.run)();
            let outcome = result.as_ref().unwrap_or(&Outcome::Failed);
            let line = table::cell_line(self.table, &self.peer, self.tried, outcome);
            let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
            lines.push((place, line));
            match result {
                Ok(_) => Ok(Completion::Completed),
                Err(error) => Err(format!("{error:#}").into()),
            }
        })
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    // Taps live in a network of the tests' own.
    if Need::Root.missing().is_none()
        && let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
    {
        eprintln!("cannot make a network of the tests' own: {error}");
        return ExitCode::FAILURE;
    }
    let lines = Lines::default();
    let cells = [back_ends::cells(), driver::cells(), under_qemu::cells()];
    let trials = (0..).zip(cells.into_iter().flatten());
    let trials = trials
        .map(|(place, cell)| cell.trial(place, lines.clone()))
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);

    let mut lines = std::mem::take(&mut *lines.lock().unwrap_or_else(PoisonError::into_inner));
    lines.sort();
    for (_, line) in lines {
        println!("{line}");
    }
    conclusion.exit_code()
}
