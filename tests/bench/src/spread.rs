//! What many runs of one thing came to.

use std::fmt;
use std::time::Duration;

/// A sorted sample of one quantity.
pub struct Spread(Vec<f64>);

impl Spread {
    /// Sorts a sample; an empty one has no quantiles.
    pub fn new(mut sample: Vec<f64>) -> Self {
        sample.sort_by(f64::total_cmp);
        Self(sample)
    }

    /// A sample of times, in milliseconds.
    pub fn millis(sample: &[Duration]) -> Self {
        Self::new(sample.iter().map(|time| time.as_secs_f64() * 1e3).collect())
    }

    /// The value below which `share` (0 to 1) of the sample lies.
    pub fn quantile(&self, share: f64) -> f64 {
        let last = self.0.len().saturating_sub(1) as f64;
        let index = (last * share).round() as usize;
        self.0.get(index).copied().unwrap_or(f64::NAN)
    }

    /// The median and, in brackets, p10 and p90, with so many places behind the point.
    pub fn brief(&self, places: usize) -> String {
        let [low, median, high] = [0.1, 0.5, 0.9].map(|share| self.quantile(share));
        format!("{median:.places$} ({low:.places$}–{high:.places$})")
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is at least one value, and none is infinite or no number.
    pub fn is_finite(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|value| value.is_finite())
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One place behind the point, or as many as are asked for.
        let places = f.precision().unwrap_or(1);
        write!(
            f,
            "median {:.places$} (p10 {:.places$}, p90 {:.places$}, {} runs)",
            self.quantile(0.5),
            self.quantile(0.1),
            self.quantile(0.9),
            self.0.len()
        )
    }
}
