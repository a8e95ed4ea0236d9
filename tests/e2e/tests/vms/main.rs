//! Whole VMs. Which tests can run is found out at run time; one that cannot
//! is reported as ignored, with the reason.

mod api;
mod boots;
mod disks;
mod endings;
mod guilty;
mod hangs;
mod late;
mod lines;
mod net;
mod outlives;
mod pasted;
mod peers;
mod resized;
mod rng;
mod standbys;
mod storm;
mod swap_faults;
mod swaps;
mod terminal;
mod words;
mod wrong_images;
mod wrong_use;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Trial};

/// What a test needs of the machine it runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// A /dev/kvm that can be opened.
    Kvm,
    /// Root, to become somebody else or to mount.
    Root,
    /// A network namespace of one's own, with a tap in it.
    Network,
    /// A program.
    Program(&'static str),
    /// Temporary files on a file system with direct I/O.
    DirectIo,
    /// That a file system of FUSE can be mounted.
    Fuse,
    /// That no huge pages are free.
    NoHugePages,
    /// Free memory, in GiB.
    Memory(u64),
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
            Self::Network => outboard_e2e::network::missing(),
            Self::Program(name) => missing_program(name),
            Self::DirectIo => {
                let file = tempfile::NamedTempFile::new().ok()?;
                let opened = OpenOptions::new()
                    .read(true)
                    .custom_flags(nix::libc::O_DIRECT)
                    .open(file.path());
                opened.err().map(|error| format!("no direct I/O: {error}"))
            }
            Self::Fuse => outboard_e2e::slow_disk::missing(),
            Self::NoHugePages => {
                let free = meminfo("HugePages_Free:");
                (free > 0).then(|| format!("{free} huge pages are free"))
            }
            Self::Memory(gib) => {
                let free = meminfo("MemAvailable:") >> 20;
                (free < gib).then(|| format!("{free} GiB of memory are free, {gib} needed"))
            }
        }
    }
}

/// Busybox's programs of the same name do not take the same options.
fn missing_program(name: &str) -> Option<String> {
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&directories)
        .filter_map(|directory| directory.join(name).canonicalize().ok())
        .next();
    match found {
        Some(path) if !path.ends_with("busybox") => None,
        Some(_) => Some(format!("{name} is busybox's")),
        None => Some(format!("there is no program {name}")),
    }
}

/// A field of /proc/meminfo as it stands there: kB, or a count.
fn meminfo(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    value.unwrap_or(0)
}

/// A test, before it is known whether it can run.
struct Test {
    name: String,
    needs: &'static [Need],
    run: Box<dyn FnOnce() -> Result<()> + Send>,
}

/// A test by its sentence.
fn test(
    name: impl Into<String>,
    needs: &'static [Need],
    run: impl FnOnce() -> Result<()> + Send + 'static,
) -> Test {
    Test {
        name: name.into(),
        needs,
        run: Box::new(run),
    }
}

impl Test {
    fn trial(self, group: &str) -> Trial {
        let name = format!("{group}::{}", self.name.replace(' ', "_"));
        Trial::ignorable_test(name, move || {
            if let Some(reason) = self.needs.iter().find_map(|need| need.missing()) {
                return Ok(Completion::ignored_with(reason));
            }
            match (self.run)() {
                Ok(()) => Ok(Completion::Completed),
                Err(error) => Err(format!("{error:#}").into()),
            }
        })
    }
}

const KVM: &[Need] = &[Need::Kvm];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let groups = [
        ("api", api::tests()),
        ("boots", boots::tests()),
        ("disks", disks::tests()),
        ("endings", endings::tests()),
        ("guilty", guilty::tests()),
        ("hangs", hangs::tests()),
        ("late", late::tests()),
        ("lines", lines::tests()),
        ("net", net::tests()),
        ("outlives", outlives::tests()),
        ("resized", resized::tests()),
        ("rng", rng::tests()),
        ("standbys", standbys::tests()),
        ("storm", storm::tests()),
        ("swap_faults", swap_faults::tests()),
        ("swaps", swaps::tests()),
        ("terminal", terminal::tests()),
        ("pasted", pasted::tests()),
        ("peers", peers::tests()),
        ("words", words::tests()),
        ("wrong_images", wrong_images::tests()),
        ("wrong_use", wrong_use::tests()),
    ];
    let trials = groups
        .into_iter()
        .flat_map(|(group, tests)| tests.into_iter().map(|test| test.trial(group)))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
