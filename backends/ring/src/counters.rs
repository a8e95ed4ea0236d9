//! What happened in a session, in numbers. A guest or a front-end can cause
//! any of these at will, so they are counted and told once, at its end.

use std::fmt;

macro_rules! tally {
    ($($(#[$doc:meta])* $name:ident: $text:literal,)*) => {
        /// Counts of one ring, or of a whole session.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Tally {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Tally {
            /// Counts what was counted there, too.
            pub fn include(&mut self, other: &Self) {
                $(add(&mut self.$name, other.$name);)*
            }
        }

        /// The counts that are not 0, separated by commas.
        impl fmt::Display for Tally {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut comma = "";
                $(if self.$name != 0 {
                    write!(f, concat!("{}{} ", $text), comma, self.$name)?;
                    comma = ", ";
                })*
                if comma.is_empty() {
                    write!(f, "nothing happened")?;
                }
                Ok(())
            }
        }
    };
}

/// Counts so many more.
pub fn add(count: &mut u64, more: u64) {
    *count = count.wrapping_add(more);
}

tally! {
    /// Chains given to the device.
    chains: "chains",
    /// Times the used index moved.
    batches: "batches",
    /// Calls made.
    calls: "calls",
    /// Calls not made, since the driver wanted none.
    suppressed: "calls not wanted",
    /// Times a worker went to sleep.
    sleeps: "sleeps",
    /// Chains taken over from a predecessor.
    resubmitted: "chains taken over",
    /// Chains returned unread because they were malformed.
    malformed_chains: "malformed chains",
    /// Rings given up.
    broken_rings: "broken rings",
    /// Completions of chains that the device did not have: its own bug.
    unknown_completions: "unknown completions",
    /// Errors of what is behind the device.
    io_errors: "I/O errors",
    /// Requests that the session does not know.
    unknown_requests: "unknown requests",
    /// Requests that were refused.
    refused_requests: "refused requests",
}

impl Tally {
    /// Whether a driver or a front-end did something that it should not.
    pub fn is_suspicious(&self) -> bool {
        self.malformed_chains != 0 || self.broken_rings != 0 || self.refused_requests != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_happened_is_told() {
        let mut tally = Tally::default();
        assert_eq!(tally.to_string(), "nothing happened");
        tally.include(&Tally {
            chains: 2,
            broken_rings: 1,
            ..Tally::default()
        });
        tally.chains += 1;
        assert_eq!(tally.to_string(), "3 chains, 1 broken rings");
        assert!(tally.is_suspicious());
    }
}
