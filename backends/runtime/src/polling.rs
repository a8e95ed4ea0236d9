//! How long to spin before sleeping.

use std::time::Duration;

const SHORTEST: Duration = Duration::from_micros(4);

/// A spinning time that grows while sleeps turn out short enough to have been
/// spun through, and is zero again after a long one: an idle device costs
/// nothing.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    most: Duration,
    current: Duration,
}

impl Budget {
    /// Never spins longer than `most`; zero is never.
    pub fn new(most: Duration) -> Self {
        Self {
            most,
            current: Duration::ZERO,
        }
    }

    /// How long to spin now.
    pub fn current(&self) -> Duration {
        self.current
    }

    /// Learns from a sleep that took this long.
    pub fn slept(&mut self, time: Duration) {
        self.current = if time > self.most {
            Duration::ZERO
        } else {
            self.current.saturating_mul(2).max(SHORTEST).min(self.most)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_sleeps_make_it_spin_and_a_long_one_ends_it() {
        let most = Duration::from_micros(50);
        let mut budget = Budget::new(most);
        assert!(budget.current().is_zero());
        for _ in 0..10 {
            budget.slept(Duration::from_micros(20));
        }
        assert_eq!(budget.current(), most);
        budget.slept(Duration::from_millis(1));
        assert!(budget.current().is_zero());
    }

    #[test]
    fn zero_is_never() {
        let mut budget = Budget::new(Duration::ZERO);
        budget.slept(Duration::ZERO);
        assert!(budget.current().is_zero());
    }
}
