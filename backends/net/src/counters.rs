//! What happened to frames, in numbers. A guest or a network can cause any of
//! these at will, so they are counted and told once, when a driver has gone.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use outboard_log::Rarely;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $text:literal,)*) => {
        /// One count each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Count {
            $($(#[$doc])* $name,)*
        }

        const TEXTS: &[&str] = &[$($text,)*];
    };
}

counters! {
    /// Frames that the driver has sent.
    Sent: "frames sent",
    /// Frames that the driver has received.
    Received: "frames received",
    /// Transmit chains no longer than their header, or shorter than an
    /// Ethernet header.
    Short: "sent too short",
    /// Transmit chains longer than any frame.
    Long: "sent too long",
    /// Chains with buffers outside memory.
    Unmapped: "chains outside memory",
    /// Frames whose header asks for what is not possible.
    BadHeader: "bad headers",
    /// Frames that the host did not take.
    Refused: "refused by the host",
    /// Frames sent while the link was down.
    LinkDown: "sent with the link down",
    /// Receive chains too small for a header.
    TinyBuffer: "receive buffers too small for a header",
    /// Received frames larger than the buffer.
    NoRoom: "received and too large for the buffer",
    /// Times that a received frame had to wait for further buffers.
    Waited: "waits for receive buffers",
    /// Received frames that were for a former driver, or no frames.
    Unwanted: "received and not for this driver",
    /// Commands that were refused.
    BadCommand: "bad commands",
}

const COUNTS: usize = TEXTS.len();

/// The counts of a card.
#[derive(Debug, Default)]
pub struct Counters {
    counts: [AtomicU64; COUNTS],
    /// The drivers that have gone, which a guest can make them do as often as
    /// it likes: those of which something is to be told, and the others.
    bad: Rarely,
    good: Rarely,
}

impl Counters {
    /// Adds to one of them.
    pub fn add(&self, count: Count, number: u64) {
        if let Some(counter) = self.counts.get(count as usize) {
            counter.fetch_add(number, Ordering::Relaxed);
        }
    }

    /// What one of them stands at.
    pub fn get(&self, count: Count) -> u64 {
        let counter = self.counts.get(count as usize);
        counter.map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// A driver has gone: tells them, or lets them grow till the next one has.
    pub fn tell_rarely(&self) {
        let kind = if self.are_bad() {
            &self.bad
        } else {
            &self.good
        };
        if kind.again().is_some() {
            self.tell();
        }
    }

    /// Tells them, and begins again at 0.
    pub fn tell(&self) {
        let (text, bad) = (self.to_string(), self.are_bad());
        for counter in &self.counts {
            counter.store(0, Ordering::Relaxed);
        }
        if bad {
            log::info!("network card: {text}");
        } else if !text.is_empty() {
            log::debug!("network card: {text}");
        }
    }

    /// All but the first two are of what should not be.
    fn are_bad(&self) -> bool {
        let mut bad = self.counts.iter().skip(2);
        bad.any(|counter| counter.load(Ordering::Relaxed) != 0)
    }
}

/// The counts that are not 0, separated by commas.
impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (counter, text) in self.counts.iter().zip(TEXTS) {
            let count = counter.load(Ordering::Relaxed);
            if count != 0 {
                write!(f, "{comma}{count} {text}")?;
                comma = ", ";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_happened_is_told_and_once() {
        let counters = Counters::default();
        counters.add(Count::Sent, 2);
        counters.add(Count::BadCommand, 1);
        assert_eq!(counters.to_string(), "2 frames sent, 1 bad commands");
        counters.tell();
        assert_eq!(counters.to_string(), "");
        assert_eq!(counters.get(Count::Sent), 0);
    }

    #[test]
    fn a_driver_that_goes_again_and_again_does_not_fill_a_log() {
        let counters = Counters::default();
        for _ in 0..3 {
            // Nothing is wrong: what is must not have to wait for it.
            counters.tell_rarely();
        }
        for told in [true, true, false, true, false] {
            counters.add(Count::BadCommand, 1);
            counters.tell_rarely();
            assert_eq!(counters.get(Count::BadCommand) == 0, told);
        }
        counters.tell();
        assert_eq!(counters.get(Count::BadCommand), 0);
    }
}
