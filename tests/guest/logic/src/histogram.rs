//! A histogram of durations with a fixed size: 32 buckets for each power of two, so that a percentile is
//! off by at most 3 %.

const BITS: u32 = 5;
const PER_POWER: usize = 1 << BITS;
const BUCKETS: usize = (64 - BITS as usize + 1) * PER_POWER;

/// Counts of durations, in whatever unit they were recorded in.
#[derive(Clone)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    total: u64,
    highest: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            counts: [0; BUCKETS],
            total: 0,
            highest: 0,
        }
    }

    /// Records one duration.
    pub fn record(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.total += 1;
        self.highest = self.highest.max(value);
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.highest = self.highest.max(other.highest);
    }

    /// The number of durations.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The longest duration, exactly; 0 if there was none.
    #[must_use]
    pub fn highest(&self) -> u64 {
        self.highest
    }

    /// The duration that `part` in 1,000 do not exceed (up to the bucket's width); 0 if there was none.
    #[must_use]
    pub fn per_mille(&self, part: u64) -> u64 {
        let wanted = (u128::from(self.total) * u128::from(part))
            .div_ceil(1000)
            .max(1) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return upper_bound(index).min(self.highest);
            }
        }
        self.highest
    }
}

fn bucket(value: u64) -> usize {
    let power = (64 - value.leading_zeros()).saturating_sub(BITS + 1);
    // For small values the power is 0 and the value is its own bucket.
    power as usize * PER_POWER + (value >> power) as usize
}

fn upper_bound(index: usize) -> u64 {
    if index < 2 * PER_POWER {
        return index as u64;
    }
    let power = (index / PER_POWER - 1) as u32;
    let mantissa = (index % PER_POWER + PER_POWER) as u128;
    (((mantissa + 1) << power) - 1).min(u128::from(u64::MAX)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_lies_in_a_bucket_that_ends_within_3_percent_above_it() {
        let mut value = 0u64;
        while value < u64::MAX / 3 {
            let end = upper_bound(bucket(value));
            assert!(end >= value && end - value <= value / 32, "{value} {end}");
            value = value + value / 7 + 1;
        }
        assert!(bucket(u64::MAX) < BUCKETS);
        assert_eq!(upper_bound(bucket(u64::MAX)), u64::MAX);
    }

    #[test]
    fn percentiles_of_a_known_set() {
        let mut histogram = Histogram::new();
        (1..=1000).for_each(|value| histogram.record(value * 1000));
        assert_eq!(histogram.total(), 1000);
        assert_eq!(histogram.highest(), 1_000_000);
        for (part, exact) in [(500, 500_000), (990, 990_000), (999, 999_000)] {
            let found = histogram.per_mille(part);
            assert!(
                found >= exact && found <= exact + exact / 32,
                "{part} {found}"
            );
        }
        assert_eq!(histogram.per_mille(1000), 1_000_000);
    }

    #[test]
    fn sums_are_as_if_recorded_together() {
        let (mut a, mut b) = (Histogram::new(), Histogram::new());
        a.record(5);
        b.record(500);
        a.add(&b);
        assert_eq!((a.total(), a.highest(), a.per_mille(500)), (2, 500, 5));
        assert_eq!(Histogram::new().per_mille(500), 0);
    }
}
