//! What the control API is asked, what it answers and what it tells, as its JSON has
//! it. The OpenAPI description is made of these types, and their comments are in it.

mod changes;

use std::fmt;

use outboard_log::line::OneLine;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::changes::{
    GapTimes, LinkRequest, ResizeRequest, Resized, Served, SwapRequest, SwapStep, Swapped,
};

/// The body of a request that has nothing to say: `{}`, or none at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoFields {}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Vm {
    /// Its name (`--name`), if it has one.
    pub name: Option<String>,
    /// The release of Outboard that runs it.
    pub version: String,
    /// Where it is.
    pub state: VmState,
    /// Why it is there, where there is more to say.
    pub reason: Option<String>,
    /// Process id of its supervisor, `outboard run`.
    pub pid: u32,
    /// Process id of the machine process, which holds the guest.
    pub machine_pid: Option<u32>,
    /// Milliseconds since `outboard run` began.
    pub uptime_ms: u64,
    /// Number of virtual CPUs.
    pub vcpus: u8,
    /// Guest memory in bytes.
    pub memory: u64,
    /// Its devices, in slot order.
    pub devices: Vec<Device>,
}

/// Where a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Its processes are being started, or somebody whom it needs is looked for.
    Starting,
    /// The guest runs.
    Running,
    /// The guest is stopped, and can be resumed; if an operator has asked for that, its disks
    /// are at rest.
    Paused,
    /// It is being ended, or is about to be started again after a guest's reset.
    Ending,
}

/// A device of a VM, and the back-end that serves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Device {
    /// Its name (`id=`), unique in the VM.
    pub id: String,
    /// What it is: `blk`, `net`, `rng`, or `virtio-N`.
    pub kind: String,
    /// Where it is.
    pub state: DeviceState,
    /// Why it is there, where there is more to say.
    pub reason: Option<String>,
    /// Process id of its back-end, if Outboard has started one.
    pub pid: Option<u32>,
    /// The program of its back-end, or the path of the socket where somebody else's is.
    pub program: String,
    /// The release of that program, if it has said so.
    pub version: Option<String>,
    /// The virtio features that the driver has acknowledged, as a hexadecimal number.
    pub features: Option<String>,
    /// Number of queues that the driver is offered.
    pub queues: u16,
    /// Whether a second process waits to take over (`standby=1`).
    pub standby: Standby,
    /// How many times its back-end was replaced.
    pub restarts: u64,
    /// Why its last back-end was lost.
    pub last_error: Option<String>,
    /// Microseconds that the last loss of a back-end took, from its end until another
    /// served.
    pub last_outage_us: Option<u64>,
    /// How many requests were ended in an error because one back-end after another had
    /// died of them.
    pub refused_requests: u64,
    /// The last of them.
    pub last_refused: Option<Refused>,
    /// What the queues have done, each at its number; empty if its back-end does not
    /// count. It is the back-end's word.
    pub counters: Vec<QueueCounters>,
}

/// A request that one back-end after another has died of: it was ended in an I/O error,
/// and not executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    /// Number of its queue.
    pub queue: u16,
    /// Its first descriptor, by which the driver knows it.
    pub head: u16,
    /// What it asked for: of a disk, its kind, length, and first sector of 512 bytes. It is
    /// the back-end's word.
    pub request: String,
    /// How many back-ends have died, or hung, while they had it; the last of them had
    /// nothing else.
    pub deaths: u32,
}

/// Where a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// Its first back-end is looked for or being started.
    Starting,
    /// It is served.
    Running,
    /// It has a back-end, which takes nothing until the device, or the VM, is resumed.
    Paused,
    /// It has no back-end, and none is coming.
    Down,
    /// Its back-end is gone, and another is being started.
    Restarting,
    /// Its back-end is gone, and its I/O must be over before another may begin.
    WaitingForIo,
    /// The VM ends, and its back-end with it.
    Ending,
}

/// Whether a second process waits for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Standby {
    /// There is none, for now or at all.
    None,
    /// It is being started.
    Starting,
    /// It takes over when the back-end is gone.
    Ready,
}

/// What one queue has done since the VM began, over all of its back-ends; what they do
/// not count is `null`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QueueCounters {
    /// Requests (of a card: buffers) taken.
    pub requests: Option<u64>,
    /// Bytes that the driver was given: what it read of a disk, frames received.
    pub bytes_read: Option<u64>,
    /// Bytes that the driver gave: what it wrote to a disk, frames sent.
    pub bytes_written: Option<u64>,
    /// Requests that failed.
    pub errors: Option<u64>,
    /// Kicks of the driver that were seen.
    pub kicks: Option<u64>,
    /// Calls made to the driver.
    pub calls: Option<u64>,
    /// Calls that the driver did not want.
    pub suppressed: Option<u64>,
    /// Requests whose latency was measured.
    pub latency_samples: Option<u64>,
    /// The sum of those latencies, in microseconds.
    pub latency_sum_us: Option<u64>,
    /// The longest of them, in microseconds.
    pub latency_longest_us: Option<u64>,
    /// Requests that the kernel has just now.
    pub in_kernel: Option<u64>,
}

/// Whether a device can be taken over exactly: nothing lost, nothing done twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The device.
    pub device: String,
    /// After the death of its back-end.
    pub recovery: Exactness,
    /// When its back-end is replaced while it works.
    pub swap: Exactness,
}

/// Whether something is exact, and why or why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Exactness {
    /// Whether it is.
    pub exact: bool,
    /// Why, or why not.
    pub why: String,
}

/// What could not be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Error {
    /// Why, and what to do.
    pub error: String,
    /// Of a swap: at which step it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<SwapStep>,
    /// Of a swap that had stopped the former: how long nobody served the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<GapTimes>,
}

/// A line of the event stream. A stream begins with one line for the VM and one for
/// each device, which say where they are; then comes one for each change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// When it happened: milliseconds since the beginning of 1970, by the host's clock.
    pub time_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub change: Change,
}

/// What an event tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Change {
    /// The VM is in this state.
    Vm {
        /// Where it is.
        state: VmState,
        /// Why, where there is more to say.
        reason: Option<String>,
    },
    /// A device is in this state.
    Device {
        /// Its id.
        device: String,
        /// Where it is.
        state: DeviceState,
        /// Why, where there is more to say.
        reason: Option<String>,
        /// Process id of its back-end, if Outboard has started one.
        pid: Option<u32>,
        /// How many times its back-end was replaced.
        restarts: u64,
    },
    /// A request was ended in an error, because one back-end after another had died of it.
    Refused {
        /// Id of the device.
        device: String,
        /// The request.
        refused: Refused,
    },
    /// The back-end of a device was replaced while it worked.
    Swapped {
        /// Id of the device.
        device: String,
        /// Who serves it now.
        program: String,
        /// How long nobody did, if the former was there to the end.
        gap: Option<GapTimes>,
    },
    /// The last line: the stream ends here, since this reader was too slow.
    CutOff {
        /// What to do.
        reason: String,
    },
}

impl Change {
    /// Whether both are of the same VM or device.
    pub(crate) fn is_of_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Vm { .. }, Self::Vm { .. }) => true,
            (Self::Device { device, .. }, Self::Device { device: same, .. }) => device == same,
            _ => false,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            queue,
            head,
            request,
            deaths,
        } = self;
        let request = OneLine(request);
        write!(
            f,
            "{request} (queue {queue}, head {head}): ended in an I/O error and not executed, since \
             {deaths} back-ends had died of it"
        )
    }
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl fmt::Display for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}
