//! How well a device is served: how often its back-end had to be started again, and how
//! long the next start waits for that.

use std::time::{Duration, Instant};

/// How long the second start in a row waits; each after that, twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(10);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// One that has served so long is well: what happens to it then has nothing to do with
/// what has happened before.
const WELL: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// Failures in a row.
    failures: u32,
    /// How long the next start waits.
    wait: Duration,
    /// Since when it is served.
    served: Option<Instant>,
    /// Since when it is not, though it was.
    lost: Option<Instant>,
    /// How long it was not, the last time.
    outage: Option<Duration>,
    /// How often it was served again.
    restarts: u64,
}

impl Health {
    /// It is served from now on.
    pub(super) fn is_served(&mut self, now: Instant) {
        if let Some(lost) = self.lost.take() {
            self.outage = Some(now.saturating_duration_since(lost));
            self.restarts = self.restarts.saturating_add(1);
        }
        self.served = Some(now);
    }

    /// Another serves it, and nothing had failed.
    pub(super) fn is_swapped(&mut self, now: Instant) {
        self.restarts = self.restarts.saturating_add(1);
        self.served = Some(now);
    }

    /// It is not served any more; the next start is at once.
    pub(super) fn is_lost(&mut self, now: Instant) {
        self.wait = Duration::ZERO;
        let served = self.served.take();
        if served.is_some_and(|served| now.saturating_duration_since(served) >= WELL) {
            self.failures = 0;
        }
        self.lost = self.lost.or(Some(now));
    }

    /// It is not served any more, and that is a failure: the next start waits, unless
    /// this is the first in a while.
    pub(super) fn has_failed(&mut self, now: Instant) {
        self.is_lost(now);
        if let Some(doublings) = self.failures.checked_sub(1) {
            let times = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
            self.wait = FIRST_WAIT.saturating_mul(times).min(LONGEST_WAIT);
        }
        self.failures = self.failures.saturating_add(1);
    }

    /// How long the next start waits.
    pub(super) fn wait(&self) -> Duration {
        self.wait
    }

    /// Whether it is not served, though it was.
    pub(crate) fn is_out(&self) -> bool {
        self.lost.is_some()
    }

    /// How long it was not served, the last time.
    pub(crate) fn outage(&self) -> Option<Duration> {
        self.outage
    }

    /// How often it was served again.
    pub(crate) fn restarts(&self) -> u64 {
        self.restarts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_start_is_at_once_and_each_after_it_waits_twice_as_long_up_to_a_limit() {
        let mut health = Health::default();
        let now = Instant::now();
        let mut wait = |failures: Option<u32>| {
            health.failures = failures.unwrap_or(health.failures);
            health.has_failed(now);
            health.wait().as_millis()
        };
        let waits: Vec<_> = (0..12).map(|_| wait(None)).collect();
        assert_eq!(
            waits,
            [0, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000]
        );
        assert_eq!(wait(Some(u32::MAX)), 5000);
        health.is_lost(now);
        assert_eq!(health.wait(), Duration::ZERO, "that was no failure");
    }

    #[test]
    fn a_minute_of_service_makes_good_what_was_before_and_less_does_not() {
        let start = Instant::now();
        let mut health = Health::default();
        for (served, wait) in [(59, 10), (60, 0), (1, 10), (61, 0)] {
            health.is_served(start);
            health.failures = health.failures.clamp(1, 1);
            health.has_failed(start + Duration::from_secs(served));
            assert_eq!(health.wait(), Duration::from_millis(wait), "{served}");
        }
    }

    #[test]
    fn an_outage_lasts_from_the_first_loss_to_the_next_service() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut health = Health::default();
        health.is_served(start);
        assert_eq!((health.restarts(), health.outage()), (0, None));
        health.is_lost(at(10));
        health.is_lost(at(15));
        health.is_served(at(17));
        let outage = Some(Duration::from_millis(7));
        assert_eq!((health.restarts(), health.outage()), (1, outage));
    }
}
