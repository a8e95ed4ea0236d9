//! What a guest, a peer or a front-end can cause again and again is said the
//! first time, the second, the fourth, the eighth…: it fills no log, and the
//! last line tells how often it was.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts one kind of event and picks those that are said. It lives as long
/// as the kind of event can happen; for as long as the process does, [`rarely!`](crate::rarely!)
/// has one.
#[derive(Debug, Default)]
pub struct Rarely(AtomicU64);

impl Rarely {
    /// Nothing has happened yet.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// It has happened once more; how often, if that is to be said.
    pub fn again(&self) -> Option<Times> {
        let times = self.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        times.is_power_of_two().then_some(Times(times))
    }
}

/// Logs a line, and with it how often it was to be logged: each such place counts by
/// itself.
///
/// ```text
/// rarely!(warn, "cut a front-end off: it sent nonsense");
/// ```
#[macro_export]
macro_rules! rarely {
    ($level:ident, $($text:tt)+) => {{
        static HAPPENED: $crate::Rarely = $crate::Rarely::new();
        if let Some(times) = HAPPENED.again() {
            log::$level!("{}{times}", format_args!($($text)+));
        }
    }};
}

/// How often something has happened: the end of its line, empty for the first
/// time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times(u64);

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => Ok(()),
            times => write!(f, " ({times} times so far)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_ten_thousand_events_fourteen_are_said_and_the_last_tells_the_count() {
        let rarely = Rarely::new();
        let said: Vec<_> = (0..10_000).filter_map(|_| rarely.again()).collect();
        assert_eq!(said.len(), 14);
        let first: Vec<_> = said.iter().take(4).map(|times| times.0).collect();
        assert_eq!(first, [1, 2, 4, 8]);
        assert_eq!(said[0].to_string(), "");
        assert!(said[13].to_string().contains("8192 times so far"));
    }

    #[test]
    fn one_kind_of_event_does_not_silence_another() {
        let (loud, other) = (Rarely::new(), Rarely::new());
        assert_eq!((0..1000).filter_map(|_| loud.again()).count(), 10);
        assert!(other.again().is_some());
    }
}
