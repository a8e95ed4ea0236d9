//! The page of counters of a back-end: it writes them while it serves, and its
//! supervisor reads them whenever it likes, also after the back-end's death.
//!
//! Words of 64 bits, in the byte order of the machine: first [`QUEUE`] words of the
//! page itself, then as many for each queue. Each counter has one writer, is stored
//! whole, and only grows while its back-end lives.
//!
//! | word | of the page | of a queue |
//! |---|---|---|
//! | 0 | [`MAGIC`] | chains taken |
//! | 1 | number of queues | times that the used index moved |
//! | 2 | | calls made |
//! | 3 | | times that its worker went to sleep |
//! | 4 | | chains taken over from a predecessor |
//! | 5 | | chains returned unread because they were malformed |
//! | 6 | | times that the ring was given up |
//! | others | 0 | 0 |
//!
//! Nobody trusts the writer. The page is a memfd, since a read of another file could wait
//! for as long as its owner likes. The reader maps nothing: it copies by pread(2), which a
//! file that was cut answers with fewer bytes.

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::uio::pread;

/// Words of the page itself, and of each queue: a queue has cache lines of its own.
pub const QUEUE: usize = 16;
/// The first word: what a page of this layout begins with.
pub const MAGIC: u64 = u64::from_ne_bytes(*b"obcount1");
/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// The counters of one queue; see the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Chains taken.
    pub chains: u64,
    /// Times that the used index moved.
    pub batches: u64,
    /// Calls made.
    pub calls: u64,
    /// Times that its worker went to sleep.
    pub sleeps: u64,
    /// Chains taken over from a predecessor.
    pub resubmitted: u64,
    /// Chains returned unread because they were malformed.
    pub malformed_chains: u64,
    /// Times that the ring was given up.
    pub broken_rings: u64,
}

impl Counts {
    /// Its words, in order.
    pub fn words(&self) -> [u64; 7] {
        [
            self.chains,
            self.batches,
            self.calls,
            self.sleeps,
            self.resubmitted,
            self.malformed_chains,
            self.broken_rings,
        ]
    }

    fn of(words: &[u64]) -> Self {
        let word = |index: usize| words.get(index).copied().unwrap_or_default();
        Self {
            chains: word(0),
            batches: word(1),
            calls: word(2),
            sleeps: word(3),
            resubmitted: word(4),
            malformed_chains: word(5),
            broken_rings: word(6),
        }
    }
}

/// Bytes of a page for so many queues.
pub fn bytes(queues: u16) -> usize {
    let parts = usize::from(queues).saturating_add(1);
    parts.saturating_mul(QUEUE).saturating_mul(WORD)
}

/// Reads the counters of `queues` queues, in order.
///
/// # Errors
/// `InvalidData` when the page is none, or of another number of queues, or cut
/// short; those of pread(2).
pub fn read(page: impl AsFd, queues: u16) -> io::Result<Vec<Counts>> {
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
    Ok(parts.map(Counts::of).collect())
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
        let counts = Counts {
            chains: 1,
            batches: 2,
            calls: 3,
            sleeps: 4,
            resubmitted: 5,
            malformed_chains: 6,
            broken_rings: 7,
        };
        let mut words = vec![0; bytes(2) / WORD];
        words[..2].copy_from_slice(&[MAGIC, 2]);
        words[QUEUE * 2..][..7].copy_from_slice(&counts.words());
        let read = read(page(&words), 2).unwrap();
        assert_eq!(read, [Counts::default(), counts]);
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
