//! What a VM answers to whom asks it by the control API, as far as its states tell.

use crate::supervisor::api::call::Reply;
use crate::supervisor::api::model::{DeviceState, GapTimes, Refused, Standby, VmState};

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is as it is sent.
    Reply(Reply),
    /// How everything is: to this, what processes and pages of counters tell is to be
    /// added.
    Status(Standing),
    /// Another serves the device at this place, or would if it was only tried.
    Swapped {
        /// See there.
        place: usize,
        /// How long nobody served it.
        gap: Option<GapTimes>,
        /// It was only tried.
        dry_run: bool,
    },
    /// The link of the card at this place is to be what is behind it, or held down.
    Link {
        /// See there.
        place: usize,
        /// It is not held down.
        up: bool,
    },
    /// Whether the device at this place can be taken over exactly.
    Explain {
        /// See there.
        place: usize,
        /// What a successor of its back-end must be told is known.
        is_known: bool,
        /// What its driver and its back-end have agreed on.
        agreed: Agreed,
    },
}

/// What the driver and a back-end of a device have agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// The features that the driver has acknowledged, if it uses the device.
    pub(crate) features: Option<u64>,
    /// The last back-end notes in an inflight region what it has taken.
    pub(crate) tracked: bool,
}

/// How a VM is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Where it is.
    pub(crate) state: VmState,
    /// Why, where there is more to say.
    pub(crate) reason: Option<String>,
    /// Each device at its place.
    pub(crate) devices: Vec<DeviceStanding>,
}

/// How a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceStanding {
    /// Where it is.
    pub(crate) state: DeviceState,
    /// Why, where there is more to say.
    pub(crate) reason: Option<String>,
    /// The features that the driver has acknowledged, if it uses the device.
    pub(crate) features: Option<u64>,
    /// Whether a second process waits.
    pub(crate) standby: Standby,
    /// How many times its back-end was replaced.
    pub(crate) restarts: u64,
    /// Why the last one was lost.
    pub(crate) last_error: Option<String>,
    /// How long the last loss of one took, in microseconds.
    pub(crate) last_outage_us: Option<u64>,
    /// How many requests were refused, and the last of them.
    pub(crate) refused: (u64, Option<Refused>),
}
