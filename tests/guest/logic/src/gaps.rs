//! How long nothing happened: the longest of the times between one event and the next.

use alloc::vec::Vec;

/// A time in which nothing happened, in the unit of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// When the last event before it was.
    pub since: u64,
    /// How long it was.
    pub length: u64,
}

/// Follows events, and keeps the longest gaps.
#[derive(Clone, Debug)]
pub struct Gaps {
    last: Option<u64>,
    // The longest first.
    longest: Vec<Gap>,
    keep: usize,
}

impl Gaps {
    /// Keeps so many; no event was seen yet.
    #[must_use]
    pub fn new(keep: usize) -> Gaps {
        Gaps {
            last: None,
            longest: Vec::with_capacity(keep + 1),
            keep,
        }
    }

    /// Something happened now. Returns the gap before it. Clocks of two processors may be a little apart:
    /// time never goes back here.
    pub fn note(&mut self, now: u64) -> Option<Gap> {
        let since = self.last.replace(now.max(self.last.unwrap_or(0)))?;
        let gap = Gap {
            since,
            length: now.saturating_sub(since),
        };
        let shortest = self.longest.last().map_or(0, |gap| gap.length);
        if self.longest.len() < self.keep || gap.length > shortest {
            let place = self
                .longest
                .partition_point(|other| other.length >= gap.length);
            self.longest.insert(place, gap);
            self.longest.truncate(self.keep);
        }
        Some(gap)
    }

    /// What follows is no gap: events are not expected for now.
    pub fn rest(&mut self) {
        self.last = None;
    }

    /// The longest ones, the longest first.
    #[must_use]
    pub fn longest(&self) -> &[Gap] {
        &self.longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_are_kept_with_their_beginnings() {
        let mut gaps = Gaps::new(2);
        [10, 11, 20, 22, 122, 125]
            .into_iter()
            .for_each(|now| _ = gaps.note(now));
        let gap = |since, length| Gap { since, length };
        assert_eq!(gaps.longest(), [gap(22, 100), gap(11, 9)]);
    }

    #[test]
    fn a_rest_is_no_gap_and_time_does_not_go_back() {
        let mut gaps = Gaps::new(4);
        assert_eq!(gaps.note(10), None);
        gaps.rest();
        assert_eq!(gaps.note(500), None);
        assert_eq!(gaps.note(499).unwrap().length, 0);
        assert_eq!(gaps.note(503).unwrap().length, 3);
        assert_eq!(gaps.longest().len(), 2);
        assert_eq!(Gaps::new(0).longest(), []);
    }

    #[test]
    fn nothing_is_kept_where_nothing_is_to_be_kept() {
        let mut gaps = Gaps::new(0);
        gaps.note(1);
        gaps.note(100);
        assert_eq!(gaps.longest(), []);
    }
}
