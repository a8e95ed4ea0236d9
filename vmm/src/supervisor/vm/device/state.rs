//! Where a device can be.

use std::time::{Duration, Instant};

use crate::supervisor::process::child::Death;

/// Where a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing of a back-end is left.
    Down,
    /// Somebody else's back-end, or the peer of its own, is looked for.
    Seeking,
    /// All that it needs is there but the machine.
    Found,
    /// Its back-end was handed to the machine, which has not answered yet.
    Attaching,
    /// Its back-end serves it.
    Serving,
    /// The machine has lost the session; it is not known yet whether because the
    /// process died.
    Lost {
        /// What the machine said.
        text: String,
        /// Until then a death explains it.
        until: Instant,
    },
    /// The process ended in order, as it does when it was cut off.
    Left {
        /// How.
        death: Death,
        /// What the machine said, if it did.
        text: Option<String>,
        /// Until then the machine may say more.
        until: Instant,
    },
    /// There was a fault, or the VM ends; the machine may still hold the session.
    Over,
    /// Nothing is to be left of its back-end, which was told to go, or killed.
    Clearing {
        /// When that was.
        since: Instant,
        /// How long after that the user hears of it.
        mention: Duration,
    },
    /// Nothing is; the next one is started then.
    Resting {
        /// When.
        until: Instant,
    },
    /// Nothing is; the next one is started when the VM, which is paused for that, or, of a
    /// disk, by an operator, is resumed.
    Held,
    /// Nobody can go on where the last one was lost, for this reason: its driver must
    /// reset it.
    Out(String),
    /// Its back-end was told to end, to be started anew.
    Stopping {
        /// When it is killed.
        until: Instant,
    },
    /// The session is over, and the process is to end, once its I/O is over.
    Leaving {
        /// When the session was over.
        since: Instant,
        /// Whether it was told to end.
        told: bool,
        /// How long after that the user hears of it next.
        mention: Duration,
    },
    /// It was killed.
    Killed {
        /// The user hears nothing of it.
        quietly: bool,
        /// When it is left alone: it hangs in the kernel.
        until: Instant,
    },
}
