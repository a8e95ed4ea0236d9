//! The load as the guest tells of it: how far it is, several times each 100 ms, and in the
//! end when it had to wait. Each second a line of it is printed.

use std::time::{Duration, Instant};

use anyhow::Result;
use outboard_e2e::storm::Gap;
use outboard_e2e::vm::{GuestResult, Vm};

use super::picture::count;

/// How far the guest's clock, whose beginning is when its line was heard, may be from ours,
/// and how long an answer may take from Outboard to us.
const SLACK: Duration = Duration::from_millis(10);

/// How far the guest was.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When, from the beginning of the workload.
    pub at: Duration,
    /// How much it had done.
    pub done: u64,
}

/// Something that was done to a device under load.
#[derive(Debug)]
pub struct Event {
    /// What, for a reader.
    pub title: String,
    /// When it was begun and when it was over, from the beginning of the workload.
    pub asked: Duration,
    pub over: Duration,
    /// For how long nobody served, as Outboard says.
    pub unserved: Option<Duration>,
}

impl Event {
    /// The longest gap of the guest's in it: while nobody served, where that is known, since
    /// before that the former still did.
    pub fn gap(&self, gaps: &[Gap]) -> Option<Gap> {
        let stopped = self.unserved.map(|time| self.over.saturating_sub(time));
        let from = stopped.unwrap_or(self.asked).max(self.asked);
        let lies =
            |gap: &&Gap| gap.since <= self.over + SLACK && gap.since + gap.length + SLACK >= from;
        gaps.iter()
            .filter(lies)
            .max_by_key(|gap| gap.length)
            .copied()
    }
}

/// A workload of the guest's, and what is done under it.
#[derive(Debug)]
pub struct Load {
    scenario: &'static str,
    /// The word of its progress lines that counts, and what that is called.
    word: &'static str,
    pub what: &'static str,
    began: Instant,
    pub samples: Vec<Sample>,
    pub events: Vec<Event>,
    /// The last line that was printed was of this.
    told: Sample,
}

impl Load {
    /// Of a scenario that has begun so long ago.
    pub fn begun(
        scenario: &'static str,
        word: &'static str,
        what: &'static str,
        ago: Duration,
    ) -> Self {
        let now = Instant::now();
        Self {
            scenario,
            word,
            what,
            began: now.checked_sub(ago).unwrap_or(now),
            samples: Vec::new(),
            events: Vec::new(),
            told: Sample {
                at: Duration::ZERO,
                done: 0,
            },
        }
    }

    /// The time since the workload's beginning.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Listens to the guest until it has worked for so long from now on.
    ///
    /// # Errors
    /// It says nothing any more.
    pub fn listen(&mut self, vm: &mut Vm, time: Duration) -> Result<()> {
        let end = self.now() + time;
        let progress = format!("progress scenario={}", self.scenario);
        loop {
            let words = GuestResult::from_words(&vm.console_line(&progress)?);
            let sample = Sample {
                at: Duration::from_millis(words.number("millis")?),
                done: words.number(self.word)?,
            };
            self.samples.push(sample);
            self.tell(sample);
            if sample.at >= end {
                return Ok(());
            }
        }
    }

    /// Prints a line if another second is over.
    fn tell(&mut self, now: Sample) {
        let time = now.at.saturating_sub(self.told.at);
        if time < Duration::from_secs(1) {
            return;
        }
        let done = now.done.saturating_sub(self.told.done) as f64;
        let rate = count((done / time.as_secs_f64()) as u64);
        let (at, what) = (now.at.as_secs_f64(), self.what);
        println!("{at:6.1} s  {rate:>9} {what}/s");
        self.told = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_the_longest_gap_in_it() {
        let millis = Duration::from_millis;
        let gap = |since, length| Gap {
            since: millis(since),
            length: millis(length),
        };
        let mut event = Event {
            title: String::new(),
            asked: millis(1000),
            over: millis(1050),
            unserved: None,
        };
        let before = gap(900, 60);
        let (short, long, after) = (gap(1001, 2), gap(1045, 90), gap(1100, 200));
        assert_eq!(event.gap(&[before, short, long, after]), Some(long));
        assert_eq!(event.gap(&[before, short, after]), Some(short));
        assert_eq!(event.gap(&[before, after]), None);
        // As long as the former served, it was not why the guest waited.
        let lull = gap(980, 40);
        assert_eq!(event.gap(&[lull, short]), Some(lull));
        event.unserved = Some(millis(5));
        assert_eq!(event.gap(&[lull, short]), None);
        assert_eq!(event.gap(&[lull, long]), Some(long));
    }
}
