//! The page of counters of a back-end, as its supervisor reads it. What is in it is
//! the back-end's word, and no more: it is shown to people and nothing is decided
//! by it.

use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, fcntl};
use outboard_protocol::counters::{self, Counts, Reading};
use outboard_protocol::descriptors::discard;

/// A page that can be read, also after the death of whoever writes it.
#[derive(Debug)]
pub(crate) struct Page {
    page: OwnedFd,
    queues: u16,
}

impl Page {
    /// Takes the page that the back-end of a device of so many queues has lent.
    ///
    /// # Errors
    /// `InvalidInput` when it is no memfd; those of [`counters::read`], also when it
    /// is a page of another number of queues.
    pub(crate) fn new(page: OwnedFd, queues: u16) -> io::Result<Self> {
        // Any other file may be one whose reader waits, for ever if its owner likes:
        // a FUSE file, a terminal. Only what lies in memory has seals to be asked for.
        if fcntl(&page, FcntlArg::F_GET_SEALS).is_err() {
            discard(vec![page]);
            let text = "it is no memfd";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let page = Self { page, queues };
        page.total()?;
        Ok(page)
    }

    /// What there is of each queue, in order.
    ///
    /// # Errors
    /// Those of [`counters::read`]: its writer may have cut or changed it.
    pub(crate) fn read(&self) -> io::Result<Vec<Reading>> {
        counters::read(&self.page, self.queues)
    }

    /// The counts of all queues together ([`Counts::with`]).
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn total(&self) -> io::Result<Counts> {
        let queues = self.read()?;
        let sum = |sum: Counts, queue: &Reading| sum.with(&queue.counts);
        Ok(queues.iter().fold(Counts::default(), sum))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;
    use outboard_protocol::counters::{MAGIC, QUEUE};

    use super::*;
    use crate::supervisor::vm::tests::lingering;

    /// A page of these queues, each with the words from its first on.
    fn page(queues: &[&[u64]]) -> File {
        let mut words = vec![MAGIC, queues.len() as u64];
        for (index, queue) in queues.iter().enumerate() {
            words.resize((index + 1) * QUEUE, 0);
            words.extend(*queue);
        }
        words.resize((queues.len() + 1) * QUEUE, 0);
        let mut file = File::from(memfd_create("counters", MFdFlags::MFD_CLOEXEC).unwrap());
        for word in words {
            file.write_all(&word.to_ne_bytes()).unwrap();
        }
        file
    }

    fn refused(page: impl Into<OwnedFd>, queues: u16) -> io::ErrorKind {
        Page::new(page.into(), queues).unwrap_err().kind()
    }

    #[test]
    fn the_queues_are_added_and_no_sum_is_too_large() {
        let most = u64::MAX;
        let file = page(&[&[10, 2, 3, 4, 5, 6, 7], &[most, most, 0, 1, 2, 3, most]]);
        let total = Page::new(file.into(), 2).unwrap().total().unwrap();
        assert_eq!(total, Counts::of(&[9, 1, 3, 5, 7, 9, 6]));
    }

    #[test]
    fn a_page_of_another_number_of_queues_or_no_page_at_all_is_refused() {
        let of_two = || page(&[&[], &[]]);
        assert!(Page::new(of_two().into(), 2).is_ok());
        for queues in [0, 1, 3, u16::MAX] {
            assert_eq!(refused(of_two(), queues), io::ErrorKind::InvalidData);
        }
        let empty = memfd_create("empty", MFdFlags::MFD_CLOEXEC).unwrap();
        assert_eq!(refused(empty, 1), io::ErrorKind::InvalidData);
    }

    /// A read of one of these could wait for ever.
    #[test]
    fn what_does_not_lie_in_memory_is_not_read() {
        let (pipe, _writer) = nix::unistd::pipe().unwrap();
        assert_eq!(refused(pipe, 1), io::ErrorKind::InvalidInput);
        let zeros = File::open("/dev/zero").unwrap();
        assert_eq!(refused(zeros, 1), io::ErrorKind::InvalidInput);
        let process = File::open("/proc/self/status").unwrap();
        assert_eq!(refused(process, 1), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_socket_that_lingers_for_an_hour_is_refused_at_once() {
        let kind = lingering::handed_over(|socket| refused(socket, 1));
        assert_eq!(kind, io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_page_that_is_cut_later_is_no_page_any_more() {
        let file = page(&[&[1, 2]]);
        let read = Page::new(file.as_fd().try_clone_to_owned().unwrap(), 1).unwrap();
        assert_eq!(read.total().unwrap(), Counts::of(&[1, 2]));
        ftruncate(&file, 8).unwrap();
        assert!(read.total().is_err());
    }
}
