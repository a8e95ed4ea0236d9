//! Bus mastering: whether a function may touch guest memory (PCI 3.0, section
//! 6.2.2, command register bit 2).
//!
//! A kernel that hands over to another (kexec) turns it off first, and then
//! gives the memory that it had lent away. So the write that clears the bit
//! returns when nothing will be written any more, and a vCPU waits for a
//! back-end here and nowhere else. The device's owner ends the wait; where it
//! cannot, because the back-end does not stop, the VM ends instead. A pause finds
//! this vCPU away from the guest and waits for nobody; the wait itself goes on.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::machine::gate::Gate;

/// How often a vCPU that waits looks whether the run has ended.
const LOOK: Duration = Duration::from_millis(10);

/// The wait of the vCPUs of one function.
#[derive(Debug)]
pub(crate) struct Mastering {
    gate: Arc<Gate>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    asked: u64,
    done: u64,
}

/// Names one clearing of the bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Clearing(u64);

impl Mastering {
    /// Nobody waits yet; whoever does is away from the guest of `gate`.
    pub(crate) fn new(gate: Arc<Gate>) -> Self {
        Self {
            gate,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// The bit has been cleared.
    pub(crate) fn cleared(&self) -> Clearing {
        let mut state = self.state();
        state.asked = state.asked.wrapping_add(1);
        Clearing(state.asked)
    }

    /// Waits until nothing is written any more, or until the run has ended: this
    /// vCPU then does not run again.
    pub(crate) fn wait(&self, clearing: Clearing) {
        self.gate.aside(|| {
            let mut state = self.state();
            while state.done < clearing.0 && self.gate.end().get().is_none() {
                let waited = self.changed.wait_timeout(state, LOOK);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        });
    }

    /// Nothing is written any more.
    pub(crate) fn is_quiet(&self, clearing: Clearing) {
        let mut state = self.state();
        state.done = state.done.max(clearing.0);
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
