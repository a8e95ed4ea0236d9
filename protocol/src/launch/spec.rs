//! What a machine is to be, and each of its devices.

use serde::{Deserialize, Serialize};

use crate::devices::Kind;

/// Where queue notifications go (`--doorbell`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Doorbell {
    /// A memory BAR.
    #[default]
    Mmio,
    /// An I/O BAR: 64 queues at most.
    Pio,
}

/// Who signals the kick eventfds of all queues (`--kick-path`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KickPath {
    /// KVM, by ioeventfd: no exit to user space.
    #[default]
    Kvm,
    /// The vCPU's thread, after an exit.
    Exit,
    /// A thread of the machine's, woken by the vCPU's after an exit.
    Worker,
}

/// A device as the machine is to build it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The name the user knows it by (`id=`); unique.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// Number of queues the driver is to see, 1 to 64.
    pub queues: u16,
    /// Nobody asked for that number: a back-end with fewer will do.
    pub fewer: bool,
    /// Largest queue size offered: a power of two, 2 to 32768.
    pub queue_size: u16,
    /// How long a ring may stand still before that is told, in milliseconds; `None`: as
    /// long as it likes.
    pub hang_timeout: Option<u32>,
}

/// What the machine is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Number of vCPUs, 1 to 32.
    pub cpus: u8,
    /// Guest memory in bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// Back guest memory with huge pages.
    pub hugepages: bool,
    /// Populate guest memory before the guest starts.
    pub prefault: bool,
    /// Where queue notifications go.
    pub doorbell: Doorbell,
    /// Who signals the kick eventfds. Other than [`KickPath::Kvm`] only where the
    /// supervisor has started every back-end: the machine then writes eventfds
    /// that it has lent, and whoever holds those could make it wait.
    pub kick_path: KickPath,
    /// What the user calls the kernel image, for messages.
    pub kernel: String,
    /// The kernel command line.
    pub cmdline: String,
}

/// Whose back-end is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "who")]
pub enum Whose {
    /// A program of Outboard's own that the supervisor has started as such: it is
    /// as it was told to be, and a ring that it says it has stopped is drained.
    Own,
    /// Any other, by whomever it was started.
    Foreign {
        /// Whether a disk is to have a write cache. What such a back-end says of
        /// it is not believed but written.
        writeback: bool,
    },
}

/// Nothing is known of it, so the guest is to flush.
impl Default for Whose {
    fn default() -> Self {
        Self::Foreign { writeback: true }
    }
}
