//! The page of counters of a back-end: it writes them while it serves, and its
//! supervisor reads them whenever it likes, also after the back-end's death.
//!
//! Words of 64 bits, in the byte order of the machine: first [`QUEUE`] words of the
//! page itself, then as many for each queue. Of the page itself: [`MAGIC`] and the
//! number of queues. Of a queue: the words of [`Counts`] in their order, then from
//! word [`IN_KERNEL`] on what is true just now:
//!
//! | word | of a queue |
//! |---|---|
//! | 16 | requests that the kernel has: I/O that was begun and is not over |
//! | 17 | the [`Pulse`] of its worker, the same in each queue that the worker serves |
//!
//! All others are 0. Each word has one writer and is stored whole. A counter only grows
//! while its back-end lives.
//!
//! Nobody trusts the writer. The page is a memfd, since a read of another file could wait
//! for as long as its owner likes. The reader maps nothing: it copies by pread(2), which a
//! file that was cut answers with fewer bytes.

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::uio::pread;

/// Words of the page itself, and of each queue: a queue has cache lines of its own.
pub const QUEUE: usize = 24;
/// The first word: what a page of this layout begins with.
pub const MAGIC: u64 = u64::from_ne_bytes(*b"obcount2");
/// The word of a queue that says how many requests the kernel has.
pub const IN_KERNEL: usize = 16;
/// The word of a queue that is the [`Pulse`] of its worker.
pub const PULSE: usize = 17;
/// Of so many requests one is timed; a power of two.
pub const TIMED: u64 = 64;
const _: () = assert!(COUNTS <= IN_KERNEL && PULSE < QUEUE && TIMED.is_power_of_two());
/// Bytes of a word.
const WORD: usize = size_of::<u64>();

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident $word:literal,)*) => {
        /// The counters of one queue, and which word each is.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// How many words they are.
        pub const COUNTS: usize = [$($word),*].len();

        impl Counts {
            /// Its words, in order.
            pub fn words(&self) -> [u64; COUNTS] {
                [$(self.$name),*]
            }

            /// Those of these words; what is not there is 0.
            pub fn of(words: &[u64]) -> Self {
                let word = |index: usize| words.get(index).copied().unwrap_or_default();
                Self { $($name: word($word)),* }
            }

            /// Both together: sums, of which one that is too large begins again at 0, and
            /// the longest time.
            #[must_use]
            pub fn with(&self, other: &Self) -> Self {
                Self {
                    longest: self.longest.max(other.longest),
                    ..Self { $($name: self.$name.wrapping_add(other.$name)),* }
                }
            }
        }
    };
}

counts! {
    /// Chains taken: requests.
    chains 0,
    /// Times that the used index moved.
    batches 1,
    /// Calls made.
    calls 2,
    /// Times that its worker went to sleep.
    sleeps 3,
    /// Chains taken over from a predecessor.
    resubmitted 4,
    /// Chains returned unread because they were malformed.
    malformed_chains 5,
    /// Times that the ring was given up.
    broken_rings 6,
    /// Calls not made: the driver wanted none.
    suppressed 7,
    /// Kicks seen. One that comes while the worker is at work is not waited for, and
    /// seen when it next sleeps.
    kicks 8,
    /// Bytes of data that the driver was given: what it read of a disk, frames received.
    bytes_read 9,
    /// Bytes of data that the driver gave: what it wrote to a disk, frames sent.
    bytes_written 10,
    /// Requests that ended in an error, frames that were dropped.
    errors 11,
    /// Requests that were timed, one of [`TIMED`], from where they were taken until they
    /// were returned. Of buffers that wait for something to be received there are none.
    timed 12,
    /// Nanoseconds that those took, together.
    time 13,
    /// Nanoseconds that the longest of those took.
    longest 14,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Doing {
    /// It waits for what there is to be woken by, or has no ring.
    #[default]
    Asleep,
    /// It goes round its rings, or polls them: the number of rounds grows.
    Working,
    /// It is in a system call that takes as long as the storage behind it.
    SystemCall,
}

/// What a worker does, and a number that changes with each round of its rings: a worker
/// that is at work and whose pulse stays the same does not get on. It costs no look at a
/// clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulse {
    /// What it does.
    pub doing: Doing,
    /// How often it has gone round, modulo 2^62.
    pub rounds: u64,
}

impl Pulse {
    /// As a word: both change at once.
    pub fn word(self) -> u64 {
        self.rounds.wrapping_mul(4)
            | match self.doing {
                Doing::Asleep => 0,
                Doing::Working => 1,
                Doing::SystemCall => 2,
            }
    }

    /// What a word says; one that is none of ours is of a worker at work.
    pub fn of(word: u64) -> Self {
        Self {
            rounds: word / 4,
            doing: match word % 4 {
                0 => Doing::Asleep,
                2 => Doing::SystemCall,
                _ => Doing::Working,
            },
        }
    }
}

/// What there is on a page of one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// What was counted.
    pub counts: Counts,
    /// Requests that the kernel has.
    pub in_kernel: u64,
    /// That of its worker.
    pub pulse: Pulse,
}

impl Reading {
    fn of(words: &[u64]) -> Self {
        let word = |index: usize| words.get(index).copied().unwrap_or_default();
        Self {
            counts: Counts::of(words),
            in_kernel: word(IN_KERNEL),
            pulse: Pulse::of(word(PULSE)),
        }
    }
}

/// Bytes of a page for so many queues.
pub fn bytes(queues: u16) -> usize {
    let parts = usize::from(queues).saturating_add(1);
    parts.saturating_mul(QUEUE).saturating_mul(WORD)
}

/// Reads what there is of `queues` queues, in order.
///
/// # Errors
/// `InvalidData` when the page is none, or of another number of queues, or cut
/// short; those of pread(2).
pub fn read(page: impl AsFd, queues: u16) -> io::Result<Vec<Reading>> {
    let mut read = vec![0; bytes(queues)];
    let count = loop {
        match pread(page.as_fd(), &mut read, 0) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let (words, _) = read.as_chunks::<WORD>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
    let mut parts = words.chunks_exact(QUEUE);
    let head = parts.next().and_then(|head| head.first_chunk());
    if count != read.len() || head != Some(&[MAGIC, queues.into()]) {
        let text = format!("it is no page of counters of {queues} queues");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(parts.map(Reading::of).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn page(words: &[u64]) -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        for word in words {
            file.write_all(&word.to_ne_bytes()).unwrap();
        }
        file
    }

    #[test]
    fn a_page_is_read_as_it_was_written() {
        let counts = Counts::of(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!((counts.chains, counts.errors, counts.longest), (1, 12, 15));
        let pulse = Pulse {
            doing: Doing::SystemCall,
            rounds: 9,
        };
        let mut words = vec![0; bytes(2) / WORD];
        words[..2].copy_from_slice(&[MAGIC, 2]);
        let queue = &mut words[QUEUE * 2..];
        queue[..COUNTS].copy_from_slice(&counts.words());
        (queue[IN_KERNEL], queue[PULSE]) = (3, pulse.word());
        let in_kernel = 3;
        let expected = Reading {
            counts,
            in_kernel,
            pulse,
        };
        let read = read(page(&words), 2).unwrap();
        assert_eq!(read, [Reading::default(), expected]);
    }

    #[test]
    fn a_pulse_is_one_word_and_any_word_is_a_pulse() {
        for doing in [Doing::Asleep, Doing::Working, Doing::SystemCall] {
            for rounds in [0, 1, u64::MAX / 4] {
                let pulse = Pulse { doing, rounds };
                assert_eq!(Pulse::of(pulse.word()), pulse);
            }
        }
        let wrapped = Pulse {
            doing: Doing::Working,
            rounds: u64::MAX / 4 + 1,
        };
        assert_eq!(Pulse::of(wrapped.word()).rounds, 0);
        assert_eq!(Pulse::of(7).doing, Doing::Working);
    }

    #[test]
    fn counts_are_added_and_the_longest_time_stays() {
        let one = Counts::of(&[1, u64::MAX, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 30, 20]);
        let other = Counts::of(&[2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 25, 25]);
        let both = Counts::of(&[3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 55, 25]);
        assert_eq!(one.with(&other), both);
        assert_eq!(other.with(&one), both);
    }

    #[test]
    fn what_is_no_page_is_refused() {
        let words = |magic, queues| {
            let mut words = vec![0; bytes(2) / WORD];
            words[..2].copy_from_slice(&[magic, queues]);
            words
        };
        assert!(read(page(&words(MAGIC, 2)), 2).is_ok());
        assert!(read(page(&words(MAGIC, 3)), 2).is_err());
        assert!(read(page(&words(MAGIC, 2)), 1).is_err());
        assert!(read(page(&words(0, 2)), 2).is_err());
        assert!(read(page(&words(MAGIC, 2)[1..]), 2).is_err());
        assert!(read(page(&[]), 2).is_err());
        let (pipe, _writer) = nix::unistd::pipe().unwrap();
        assert!(read(pipe, 2).is_err());
    }
}
