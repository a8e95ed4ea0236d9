//! Whole VMs. Which tests can run is found out at run time; one that cannot
//! is reported as ignored, with the reason.

mod boots;
mod disks;
mod endings;
mod terminal;
mod wrong_use;

use std::fs::OpenOptions;
use std::process::{Command, ExitCode};

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Trial};

/// What a test needs of the machine it runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// A /dev/kvm that can be opened.
    Kvm,
    /// Root, to become somebody else or to mount.
    Root,
    /// A program.
    Program(&'static str),
}

impl Need {
    /// Why this need is not met.
    fn missing(self) -> Option<String> {
        match self {
            Self::Kvm => {
                let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
                kvm.err().map(|error| format!("/dev/kvm: {error}"))
            }
            Self::Root => (!nix::unistd::geteuid().is_root()).then(|| "not root".into()),
            Self::Program(name) => {
                let found = Command::new(name).arg("--version").output();
                found.err().map(|error| format!("{name}: {error}"))
            }
        }
    }
}

/// A test by its sentence.
fn trial(
    name: impl Into<String>,
    needs: &'static [Need],
    test: impl FnOnce() -> Result<()> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name.into().replace(' ', "_"), move || {
        if let Some(reason) = needs.iter().find_map(|need| need.missing()) {
            return Ok(Completion::ignored_with(reason));
        }
        match test() {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => Err(format!("{error:#}").into()),
        }
    })
}

const KVM: &[Need] = &[Need::Kvm];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = [
        boots::trials(),
        disks::trials(),
        endings::trials(),
        terminal::trials(),
        wrong_use::trials(),
    ];
    let trials = trials.into_iter().flatten().collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
