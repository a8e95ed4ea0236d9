//! What the API asks of the VM, and what the VM answers.

use super::model::{Explanation, GapTimes, Resized, SwapRequest, SwapStep, Swapped, Vm};

/// The number of a call, which its answer bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

impl Ticket {
    /// That of the first call.
    pub(crate) const FIRST: Self = Self(0);

    /// That of the next.
    pub(crate) fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// What somebody asks of the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// How it is.
    Status,
    /// To replace the back-end of this device.
    Restart(String),
    /// To stop the guest.
    Pause,
    /// To let it go on.
    Resume,
    /// To end the VM, as a signal would.
    Shutdown,
    /// To stop the back-end of this device from taking anything.
    PauseDevice(String),
    /// To let it go on.
    ResumeDevice(String),
    /// To put another in its place while it works.
    Swap(String, SwapRequest),
    /// To give this disk so many bytes, or as many as its image has.
    Resize(String, Option<u64>),
    /// To let the link of this card be what is behind it; or, if not, to hold it down.
    Link(String, bool),
    /// Whether this device can be taken over exactly.
    Explain(String),
}

/// What the VM answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// How it is.
    Status(Box<Vm>),
    /// What was asked for.
    Explanation(Explanation),
    /// Another serves, or would.
    Swapped(Swapped),
    /// The disk has this size.
    Resized(Resized),
    /// It is done, or has begun.
    Done,
    /// It is not.
    Refused(Refusal),
}

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is no device of this name; those that there are.
    NoSuchDevice(String, Vec<String>),
    /// It does not fit what the VM or the device does now: why, and what to do.
    NotNow(String),
    /// It was tried, and nothing was changed by it: why, at which step, and how long nobody
    /// served the device for it.
    NotSwapped(String, SwapStep, Option<GapTimes>),
}
