//! Which legal steps the daemon under test obeys.

use super::{Model, Step};

/// Whose vhost-user daemon answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// Ours, which obeys the specification.
    Ours,
    /// That of the `vhost-user-backend` crate, 0.24. It must know size, base and
    /// addresses of a ring before its kick, and none of them, nor the kick,
    /// changes until the ring is stopped; it does not poll for kicks; it forgets
    /// a stopped ring's call. `tests/stock_daemon.rs` shows it, and a walk does
    /// without.
    Stock,
}

impl Model {
    /// Whether the daemon does what is asked.
    pub(super) fn is_obeyed(&self, step: Step) -> bool {
        let (Step::SetVringNum(index)
        | Step::SetVringBase(index)
        | Step::SetVringAddr(index)
        | Step::SetVringKick(index, _)) = step
        else {
            return true;
        };
        let Some(ring) = self.rings.get(usize::from(index)) else {
            return true;
        };
        let described = ring.size && ring.base && ring.placed;
        match (self.daemon, step) {
            (Daemon::Ours, _) => true,
            (Daemon::Stock, Step::SetVringKick(_, fd)) => fd && described && !ring.kick,
            (Daemon::Stock, _) => !ring.kick,
        }
    }
}
