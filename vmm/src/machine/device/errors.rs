//! The error eventfds of a device's rings (vhost-user, SET_VRING_ERR). Those of
//! rings that are started and not broken are listened to.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::machine::kvm::irq::{descriptor, is_signalled};

/// What is listened to, by queue, and which rings have broken.
#[derive(Debug, Default)]
pub(crate) struct RingErrors {
    rings: Vec<(u16, Arc<EventFd>)>,
    broken: Vec<u16>,
}

impl RingErrors {
    /// A fresh one, to be lent.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub(crate) fn eventfd() -> io::Result<Arc<EventFd>> {
        Ok(Arc::new(EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?))
    }

    /// From now on this queue's is this one, and no other.
    pub(crate) fn watch(&mut self, queue: u16, error: Arc<EventFd>) {
        self.broken.retain(|other| *other != queue);
        self.rings.retain(|(other, _)| *other != queue);
        self.rings.push((queue, error));
    }

    /// Listens to none.
    pub(crate) fn clear(&mut self) {
        self.rings.clear();
        self.broken.clear();
    }

    /// What must be polled for input.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.rings.iter().map(|(_, error)| descriptor(error))
    }

    /// Whether any ring has broken since it was asked last.
    pub(crate) fn take_broken(&mut self) -> bool {
        let broken = self.rings.extract_if(.., |(_, error)| is_signalled(error));
        let before = self.broken.len();
        self.broken.extend(broken.map(|(queue, _)| queue));
        self.broken.len() != before
    }

    /// Whether this queue's ring has broken since it was started.
    pub(crate) fn is_broken(&self, queue: u16) -> bool {
        let mut rings = self.rings.iter();
        self.broken.contains(&queue)
            || rings.any(|(other, error)| *other == queue && is_signalled(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_ring_is_told_once_and_a_predecessors_not_at_all() {
        let mut errors = RingErrors::default();
        let [former, now, other] = [(); 3].map(|()| RingErrors::eventfd().unwrap());
        errors.watch(0, Arc::clone(&former));
        errors.watch(0, Arc::clone(&now));
        errors.watch(1, other);
        assert_eq!(errors.fds().count(), 2);
        former.write(1).unwrap();
        assert!(!errors.take_broken());
        now.write(1).unwrap();
        assert!(errors.is_broken(0) && !errors.is_broken(1));
        assert!(errors.take_broken());
        assert!(!errors.take_broken());
        assert!(errors.is_broken(0));
        assert_eq!(now.read().unwrap(), 1, "what is lent is not read");
        assert_eq!(errors.fds().count(), 1);
    }
}
