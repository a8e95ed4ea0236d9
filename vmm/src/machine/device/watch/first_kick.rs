//! The first kick of each ring since it was asked for, also one that the back-end has
//! consumed before we look: poll(2) would look again then, find nothing, and sleep on.
//! The kernel's asynchronous poll does not. It is over with the first kick, so that those
//! that follow wake nobody.

use std::io;
use std::os::fd::BorrowedFd;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::machine::aio::{Context, Request};
use crate::machine::kvm::irq::descriptor;

/// See the module.
#[derive(Debug)]
pub(super) struct FirstKick {
    context: Context,
    /// Signalled with every first kick; nobody else has it.
    rung: EventFd,
    /// By queue. They do not move.
    places: Box<[Place]>,
}

#[derive(Debug, Default)]
struct Place {
    request: Request,
    /// How often a kick was asked for: a request that was cancelled is reaped later.
    times: u64,
    is_armed: bool,
}

impl FirstKick {
    /// For the queues of a device, of which any may come to be watched.
    ///
    /// # Errors
    /// Those of eventfd(2), and of [`Context::new`].
    pub(super) fn new(queues: u16) -> io::Result<Self> {
        let places = (0..queues).map(|_| Place::default());
        Ok(Self {
            // Those that were cancelled may not be over when the next are submitted.
            context: Context::new(2 * u32::from(queues))?,
            rung: EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            places: places.collect(),
        })
    }

    /// Readable when there has been a first kick.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        descriptor(&self.rung)
    }

    /// Waits for the first kick of a queue, unless it is waited for already. One that was
    /// not consumed yet is the first.
    ///
    /// # Errors
    /// The kernel has no room for it.
    pub(super) fn arm(&mut self, queue: u16, kick: &EventFd) -> io::Result<()> {
        let place = self.places.get_mut(usize::from(queue));
        let place = place.ok_or(io::ErrorKind::NotFound)?;
        if place.is_armed {
            return Ok(());
        }
        place.times = place.times.wrapping_add(1);
        place.request = Request::poll(kick, &self.rung, data(queue, place.times))?;
        self.context.submit(&mut place.request)?;
        place.is_armed = true;
        Ok(())
    }

    /// Waits for none any more.
    pub(super) fn disarm(&mut self) {
        for place in self.places.iter_mut().filter(|place| place.is_armed) {
            place.is_armed = false;
            self.context.cancel(&mut place.request);
        }
    }

    /// Whether there was a first kick since this was asked last.
    pub(super) fn take(&mut self) -> bool {
        if self.rung.read().is_err() {
            return false;
        }
        let mut any = false;
        while let Ok(Some(done)) = self.context.reap() {
            let queues = (0..).zip(&mut self.places);
            let mut queues =
                queues.filter(|(queue, place)| place.is_armed && data(*queue, place.times) == done);
            if let Some((_, place)) = queues.next() {
                place.is_armed = false;
                any = true;
            }
        }
        any
    }
}

/// By which a request is known again.
fn data(queue: u16, times: u64) -> u64 {
    times.wrapping_mul(1 << 16) | u64::from(queue)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use nix::poll::PollFlags;
    use outboard_protocol::Deadline;

    use super::*;

    fn kick() -> EventFd {
        EventFd::new(EFD_NONBLOCK).unwrap()
    }

    fn comes(first: &mut FirstKick) -> bool {
        let soon = Deadline::after(Duration::from_secs(60));
        soon.wait_for(first.fd(), PollFlags::POLLIN).unwrap();
        first.take()
    }

    #[test]
    fn a_kick_that_was_consumed_at_once_is_seen_and_the_next_is_not() {
        let mut first = FirstKick::new(2).unwrap();
        let kick = kick();
        for _ in 0..100 {
            first.arm(1, &kick).unwrap();
            first.arm(1, &kick).unwrap();
            assert!(!first.take());
            kick.write(1).unwrap();
            kick.read().unwrap();
            assert!(comes(&mut first));
            kick.write(1).unwrap();
            kick.read().unwrap();
            let brief = Deadline::after(Duration::from_millis(1));
            assert!(brief.wait_for(first.fd(), PollFlags::POLLIN).is_err());
        }
    }

    #[test]
    fn one_that_waits_already_is_the_first() {
        let mut first = FirstKick::new(1).unwrap();
        let kick = kick();
        kick.write(1).unwrap();
        first.arm(0, &kick).unwrap();
        assert!(comes(&mut first));
        assert_eq!(kick.read().unwrap(), 1, "what is lent is not read");
    }

    #[test]
    fn what_is_disarmed_is_let_go_and_tells_nothing() {
        let mut first = FirstKick::new(1).unwrap();
        for _ in 0..1000 {
            let former = Arc::new(kick());
            first.arm(0, &former).unwrap();
            first.disarm();
            former.write(1).unwrap();
            // Of one that was cancelled no more than a wake remains.
            assert!(!comes(&mut first));
        }
        let kick = kick();
        first.arm(0, &kick).unwrap();
        kick.write(1).unwrap();
        assert!(comes(&mut first));
    }

    #[test]
    fn a_queue_that_is_not_there_is_refused() {
        let mut first = FirstKick::new(2).unwrap();
        assert!(first.arm(2, &kick()).is_err());
    }
}
