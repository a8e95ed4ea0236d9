//! What is to become of one device, whatever its kind: what the machine builds, who
//! serves it, and what that program is lent and told. Nothing has been opened.
//!
//! ```text
//! DiskSettings, NetSettings, … ──DeviceOption::plan──▶ Plan ──host::lend::open──▶ Opened
//!   (as written)                                       (checked)                  (descriptors)
//! ```
//! A kind of device ends at its plan: whoever asks one asks what it lends, and not
//! whether it is a disk.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use outboard_protocol::launch::{self, Whose};
use serde::Deserialize;

use crate::supervisor::text::units::Wait;

/// Most queues of a device.
const MAX_QUEUES: u64 = 64;
/// Default size of a queue.
const DEFAULT_QUEUE_SIZE: u64 = 256;
/// How long to wait for a socket by default.
const DEFAULT_WAIT: Duration = Duration::from_secs(2);
/// The first descriptor that a program is lent, behind its socket.
pub(crate) const LENT_FD: i32 = launch::BACKEND_FD + 1;

/// An option that adds a device: what was written of one.
pub(crate) trait DeviceOption: Sized {
    /// The option without its hyphens. With its number it names a device that was
    /// given no name.
    const OPTION: &'static str;
    /// What its help says, with every key.
    const HELP: &'static str;

    /// The name that the device was given.
    fn id(&self) -> Option<&str>;

    /// The plan of the device `id` of a VM with so many CPUs.
    ///
    /// # Errors
    /// A message that names the key and says what would be right.
    fn plan(self, id: String, cpus: u64) -> Result<Plan, String>;
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The option that it comes from, without its hyphens.
    pub(crate) option: &'static str,
    /// What the machine is to build.
    pub(crate) spec: launch::Device,
    /// Who serves it.
    pub(crate) served_by: ServedBy,
    /// What becomes of the VM when its back-end fails.
    pub(crate) on_failure: OnFailure,
    /// A second process waits beside the one that serves.
    pub(crate) standby: bool,
}

/// What becomes of a VM, one of whose back-ends has failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnFailure {
    /// It is started again, or connected to, and the guest waits.
    #[default]
    Restart,
    /// The VM is paused, and it is started again when the VM is resumed.
    Pause,
    /// The VM is ended.
    Shutdown,
}

/// Who serves a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ServedBy {
    /// A program that is started for it.
    Program {
        /// Which.
        executable: Executable,
        /// What it is lent beside its socket.
        lend: Lend,
        /// What it is told (PROTOCOL.md, launch contract).
        args: Vec<String>,
    },
    /// Whoever listens at a socket.
    Socket {
        /// Where.
        path: PathBuf,
        /// How long to wait for it.
        wait: Wait,
    },
}

/// A program that keeps the launch contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Executable {
    /// One of Outboard's own.
    Own {
        /// Its name, which it is found by.
        name: &'static str,
        /// Whether each queue has a thread of its own in it.
        threads: bool,
    },
    /// One that the user has named.
    Named {
        /// Where it is.
        path: PathBuf,
        /// Whether a disk is to have a write cache.
        writeback: bool,
    },
}

/// What a program is lent beside its socket: descriptors from [`LENT_FD`] on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lend {
    /// Nothing.
    Nothing,
    /// A disk image.
    Image {
        /// Where it is.
        path: PathBuf,
        /// How it is used.
        usage: Usage,
    },
    /// A queue of a tap for each pair of queues.
    Tap {
        /// Its name.
        name: String,
        /// How many.
        pairs: u16,
    },
    /// A socket that is connected to the peer that listens at a path.
    Connect {
        /// Where.
        path: PathBuf,
        /// How long to wait for it.
        wait: Wait,
    },
    /// A socket of our own, at which a peer connects.
    Listen {
        /// Where.
        path: PathBuf,
    },
}

/// How an image is to be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Nothing is written.
    pub(crate) readonly: bool,
    /// The page cache is bypassed (O_DIRECT).
    pub(crate) direct: bool,
    /// The block size, 512 or 4096; `None` for the image's own.
    pub(crate) block_size: Option<u32>,
    /// It is raw, whatever it looks like.
    pub(crate) raw: bool,
}

impl ServedBy {
    /// Whoever listens at `path`. `decides` are the keys that such a back-end
    /// decides for itself, and whether they were given all the same.
    ///
    /// # Errors
    /// A message that names the first of these.
    pub(crate) fn socket(
        path: PathBuf,
        wait: Option<Wait>,
        decides: &[(&str, bool)],
    ) -> Result<Self, String> {
        if let Some((key, _)) = decides.iter().find(|(_, given)| *given) {
            return Err(format!(
                "`{key}` and `socket` exclude each other: the back-end that listens there decides that \
                 itself"
            ));
        }
        let wait = self::wait(wait);
        Ok(Self::Socket { path, wait })
    }

    /// Whose back-end it is, as the machine is told.
    pub(crate) fn whose(&self) -> Whose {
        match self {
            Self::Program {
                executable: Executable::Own { .. },
                ..
            } => Whose::Own,
            Self::Program {
                executable: Executable::Named { writeback, .. },
                ..
            } => Whose::Foreign {
                writeback: *writeback,
            },
            Self::Socket { .. } => Whose::default(),
        }
    }
}

impl Executable {
    /// One that the user has named, for a device without a write cache to choose.
    pub(crate) fn named(path: PathBuf) -> Self {
        let writeback = true;
        Self::Named { path, writeback }
    }
}

impl Lend {
    /// How many descriptors it is.
    pub(crate) fn count(&self) -> u16 {
        match self {
            Self::Nothing => 0,
            Self::Image { .. } | Self::Connect { .. } | Self::Listen { .. } => 1,
            Self::Tap { pairs, .. } => *pairs,
        }
    }
}

/// The command line of a back-end, in the order in which it is told.
#[derive(Debug)]
pub(crate) struct Args(Vec<String>);

impl Args {
    /// The socket, which every back-end has.
    pub(crate) fn with_socket() -> Self {
        Self(vec![format!("--fd={}", launch::BACKEND_FD)])
    }

    /// And `--key=value`, if there is a value.
    pub(crate) fn value(mut self, key: &str, value: Option<impl Display>) -> Self {
        self.0.extend(value.map(|value| format!("--{key}={value}")));
        self
    }

    /// And `--key`, if it is on.
    pub(crate) fn switch(mut self, key: &str, on: bool) -> Self {
        self.0.extend(on.then(|| format!("--{key}")));
        self
    }

    /// All of it.
    pub(crate) fn all(self) -> Vec<String> {
        self.0
    }
}

/// How long to wait for a socket where `wait` was written.
pub(crate) fn wait(wait: Option<Wait>) -> Wait {
    wait.unwrap_or(Wait::For(DEFAULT_WAIT))
}

/// Refuses a `wait` where there is no socket to wait for.
///
/// # Errors
/// A message that says what `wait` is for.
pub(crate) fn nothing_to_wait_for(wait: Option<Wait>) -> Result<(), String> {
    match wait {
        Some(_) => Err("`wait` is for a `socket=PATH`; there is none".into()),
        None => Ok(()),
    }
}

/// Checks a number of queues.
///
/// # Errors
/// A message with the range.
pub(crate) fn queues(count: u64) -> Result<u16, String> {
    within("queues", count, 1, MAX_QUEUES).map(|count| count as u16)
}

/// Checks the size of a queue, which has a default.
///
/// # Errors
/// A message that says what sizes there are.
pub(crate) fn queue_size(size: Option<u64>) -> Result<u16, String> {
    let size = size.unwrap_or(DEFAULT_QUEUE_SIZE);
    if !size.is_power_of_two() {
        return Err(format!("queue-size {size}: give a power of two"));
    }
    within("queue-size", size, 2, 32768).map(|size| size as u16)
}

/// Reads `standby`, of a device that a program is started for.
///
/// # Errors
/// A message with the range.
pub(crate) fn standby(standby: Option<u64>) -> Result<bool, String> {
    within("standby", standby.unwrap_or(0), 0, 1).map(|standby| standby == 1)
}

/// Checks that `what` is between `least` and `most`, both included.
///
/// # Errors
/// A message with the range.
pub(crate) fn within(what: &str, value: u64, least: u64, most: u64) -> Result<u64, String> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(format!("{what} {value}: give {least} to {most}"))
}
