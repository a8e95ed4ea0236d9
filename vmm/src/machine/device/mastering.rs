//! The bus master bit as a device's owner obeys it.
//!
//! ```text
//!           bit cleared
//!  Off ◀───────────────────────────────────────────────────────── On
//!   │ rings stopped and drained, then the guest's write returns    ▲ ▲
//!   │                                                              │ │
//!   ├── bit set, no driver ────────────────────────────────────────┘ │
//!   └── bit set, a driver ──▶ Resting ── a kick, a reset, a second ──┘
//! ```
//! The bit is cleared from Resting, too.
//!
//! Rings do not go on with the bit itself: a kernel that was entered by kexec
//! sets it first and resets the device then, and where the rings were is its own
//! memory by now.

use std::time::Duration;

use outboard_protocol::Deadline;

/// A driver that has set the bit and neither kicks nor resets within this only
/// wants to go on.
const NO_RESET: Duration = Duration::from_secs(1);

/// Whether the device may touch guest memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mastering {
    /// It may not.
    Off,
    /// It may, and its rings rest until a kick or this.
    Resting(Deadline),
    /// It may.
    On,
}

impl Mastering {
    /// The guest has set the bit; whether a driver uses the device by then.
    pub(crate) fn allowed(is_used: bool) -> Self {
        match is_used {
            true => Self::Resting(Deadline::after(NO_RESET)),
            false => Self::On,
        }
    }

    /// Whether rings may be started now.
    pub(crate) fn is_on(self) -> bool {
        matches!(self, Self::On)
    }

    /// The rest is over: by a kick, by time, or because the driver has gone.
    /// Returns whether there was any.
    pub(crate) fn rested(&mut self) -> bool {
        let rested = matches!(self, Self::Resting(_));
        if rested {
            *self = Self::On;
        }
        rested
    }

    /// When rings that rest go on by themselves.
    pub(crate) fn resumes_at(self) -> Option<Deadline> {
        match self {
            Self::Resting(deadline) => Some(deadline),
            Self::Off | Self::On => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_rest_after_the_bit_only_where_there_are_some() {
        assert!(Mastering::allowed(false).is_on());
        let mut mastering = Mastering::allowed(true);
        assert!(!mastering.is_on() && mastering.resumes_at().is_some());
        assert!(mastering.rested());
        assert!(mastering.is_on() && mastering.resumes_at().is_none());
        assert!(!mastering.rested(), "there was none any more");
        let mut off = Mastering::Off;
        assert!(!off.rested() && !off.is_on() && off.resumes_at().is_none());
    }
}
