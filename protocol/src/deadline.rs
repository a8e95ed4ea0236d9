//! A point in time after which a wait is given up.

use std::time::{Duration, Instant};

use nix::poll::PollTimeout;

/// The end of a wait. Every blocking call of Outboard takes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// A deadline `wait` from now.
    pub fn after(wait: Duration) -> Self {
        Self(Instant::now() + wait)
    }

    /// The time left, zero once the deadline has passed.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether the deadline has passed.
    pub fn passed(self) -> bool {
        self.left().is_zero()
    }

    /// The time left as poll(2) takes it: milliseconds, rounded up so that a
    /// wait never ends before its deadline.
    pub fn poll_timeout(self) -> PollTimeout {
        let millis = self.left().as_nanos().div_ceil(1_000_000);
        PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
    }
}
