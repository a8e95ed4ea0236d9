//! Whether the cable is in: what STATUS tells the driver (virtio 1.3, section
//! 5.1.4).

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use outboard_runtime::Notifier;

/// The state of the link; any thread may change it.
#[derive(Default)]
pub struct Link {
    up: AtomicBool,
    turn: Mutex<()>,
    notifier: OnceLock<Notifier>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({})", if self.is_up() { "up" } else { "down" })
    }
}

impl Link {
    /// Changes are told to the driver by this from now on.
    pub fn attach(&self, notifier: Notifier) {
        // The runtime does this once.
        let _ = self.notifier.set(notifier);
    }

    /// Whether it is up.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// Sets it to what `up` finds; returns whether that was a change, which the
    /// driver is told. One thread at a time looks and sets: of one that saw a
    /// peer go and one that saw the next one come, none has a stale last word.
    pub fn set(&self, up: impl FnOnce() -> bool) -> bool {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let up = up();
        let changed = self.up.swap(up, Ordering::AcqRel) != up;
        if changed && let Some(notifier) = self.notifier.get() {
            notifier.config_changed();
        }
        changed
    }
}
