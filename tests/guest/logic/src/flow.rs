//! What became of the numbered datagrams of one stream: received, lost, late, twice. This file has no
//! dependencies, so that a test on the host can include it by `#[path]`.

/// How far behind the highest number a late datagram is still told from one that came twice.
pub const WINDOW: u64 = 65_536;
const WORDS: usize = (WINDOW / 64) as usize;

/// Follows one stream.
#[derive(Clone)]
pub struct Flow {
    seen: [u64; WORDS],
    /// One more than the highest number seen: how many there must have been at least.
    pub next: u64,
    /// Different datagrams.
    pub received: u64,
    /// Of these, the ones that came after one with a higher number.
    pub reordered: u64,
    /// Datagrams that had come before.
    pub duplicates: u64,
}

impl Default for Flow {
    fn default() -> Self {
        Self::new()
    }
}

impl Flow {
    /// Nothing was received yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            seen: [0; WORDS],
            next: 0,
            received: 0,
            reordered: 0,
            duplicates: 0,
        }
    }

    /// Notes a datagram with this number.
    pub fn note(&mut self, number: u64) {
        if number >= self.next {
            if number - self.next >= WINDOW {
                self.seen.fill(0);
            } else {
                (self.next..number).for_each(|skipped| self.mark(skipped, false));
            }
            self.next = number.saturating_add(1);
            self.received += 1;
        } else if self.next - number <= WINDOW && self.is_marked(number) {
            self.duplicates += 1;
            return;
        } else {
            self.received += 1;
            self.reordered += 1;
        }
        self.mark(number, true);
    }

    fn mark(&mut self, number: u64, seen: bool) {
        let (word, bit) = ((number % WINDOW / 64) as usize, 1 << (number % 64));
        if seen {
            self.seen[word] |= bit;
        } else {
            self.seen[word] &= !bit;
        }
    }

    fn is_marked(&self, number: u64) -> bool {
        self.seen[(number % WINDOW / 64) as usize] >> (number % 64) & 1 == 1
    }

    /// How many of `sent` datagrams did not come.
    #[must_use]
    pub fn lost(&self, sent: u64) -> u64 {
        sent.saturating_sub(self.received)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(numbers: impl IntoIterator<Item = u64>) -> [u64; 4] {
        let mut flow = Box::new(Flow::new());
        numbers.into_iter().for_each(|number| flow.note(number));
        [flow.next, flow.received, flow.reordered, flow.duplicates]
    }

    #[test]
    fn in_order_nothing_is_remarkable() {
        assert_eq!(after(0..200_000), [200_000, 200_000, 0, 0]);
    }

    #[test]
    fn gaps_late_ones_and_duplicates_are_told_apart() {
        assert_eq!(after([0, 1, 3, 2]), [4, 4, 1, 0]);
        assert_eq!(after([0, 1, 1, 0]), [2, 2, 0, 2]);
        assert_eq!(after([5]), [6, 1, 0, 0]);
        assert_eq!(after([0, 9, 4, 4]), [10, 3, 1, 1]);
    }

    #[test]
    fn a_window_later_the_same_bit_is_another_datagram() {
        assert_eq!(
            after((0..WINDOW).chain([WINDOW])),
            [WINDOW + 1, WINDOW + 1, 0, 0]
        );
        assert_eq!(after([3, 3 + WINDOW, 4]), [4 + WINDOW, 3, 1, 0]);
        assert_eq!(
            after([3, 3 + 3 * WINDOW, 3 + 2 * WINDOW]),
            [4 + 3 * WINDOW, 3, 1, 0]
        );
    }

    #[test]
    fn what_did_not_come_was_lost() {
        let mut flow = Box::new(Flow::new());
        [0, 1, 4].into_iter().for_each(|number| flow.note(number));
        assert_eq!(flow.lost(10), 7);
    }
}
