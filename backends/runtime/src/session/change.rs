//! A write to the configuration space that takes its time: what must be done
//! first runs on a thread made for it, and the session, which obeys nothing else
//! meanwhile, still hears of its own end.
//!
//! ```text
//! After(preparation) ──thread: prepare──► done in time ──► commit, answer
//!            │                              └ failed ──► refused, nothing changed
//!            └─ too late, stop, connection closed ──► dropped when it ends, nothing changed
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::Builder;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use outboard_log::Rarely;
use outboard_protocol::Deadline;

use super::{End, Fault};
use crate::device::Preparation;
use crate::event::Event;

/// Stack of the thread: it calls nothing deep.
const STACK: usize = 256 * 1024;

/// Whether a preparation is under way; one at a time in a process, over all of
/// its sessions, since one that is given up goes on until the kernel is done.
#[derive(Debug, Default)]
pub(super) struct Busy {
    busy: Arc<AtomicBool>,
    declined: Rarely,
}

impl Busy {
    /// Marks it busy until what is answered is dropped.
    fn begin(&self) -> Option<Begun> {
        let was = self.busy.swap(true, Ordering::AcqRel);
        (!was).then(|| Begun(self.busy.clone()))
    }

    /// The front-end may not have asked for an answer, so it is said here, too.
    fn decline(&self, why: String) -> Fault {
        if let Some(times) = self.declined.again() {
            log::warn!("{why}{times}");
        }
        Fault::Declined(why)
    }
}

#[derive(Debug)]
struct Begun(Arc<AtomicBool>);

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A preparation that is over. Dropped in this order, so that the next one
/// begins when nothing is left of it.
struct Prepared {
    preparation: Box<dyn Preparation>,
    result: io::Result<()>,
    _begun: Begun,
}

/// What ends a wait.
pub(super) struct Ends<'a> {
    /// Readable when the session is to end.
    pub stop: BorrowedFd<'a>,
    /// The session's own.
    pub connection: BorrowedFd<'a>,
    /// How long it may take.
    pub limit: Duration,
}

/// Does what must be done first, and then the change itself.
///
/// # Errors
/// [`Fault::Declined`] when it failed or took too long, [`Fault::Over`] when
/// the session ended meanwhile: nothing has changed.
pub(super) fn run(
    busy: &Busy,
    preparation: Box<dyn Preparation>,
    ends: &Ends<'_>,
) -> Result<(), Fault> {
    let what = preparation.what();
    let failed = |error: io::Error| busy.decline(format!("cannot {what}: {error}"));
    let earlier = || io::Error::other("an earlier attempt is still under way");
    let begun = busy.begin().ok_or_else(|| failed(earlier()))?;
    let done = Arc::new(Event::new().map_err(failed)?);
    let (give, take) = sync_channel(1);
    let theirs = done.clone();
    let thread = Builder::new()
        .name("configuration".into())
        .stack_size(STACK);
    let thread = thread.spawn(move || prepare(preparation, begun, &give, &theirs));
    thread.map_err(failed)?;
    if !wait(&done, ends)? {
        let seconds = ends.limit.as_secs_f32();
        let why = format!("it has not ended within {seconds} s");
        return Err(failed(io::Error::other(why)));
    }
    let prepared = take
        .try_recv()
        .map_err(|_| failed(io::Error::other("it came to no end")))?;
    prepared.result.map_err(failed)?;
    prepared.preparation.commit();
    Ok(())
}

/// The thread's whole life. Whoever waited may have given up.
fn prepare(
    mut preparation: Box<dyn Preparation>,
    begun: Begun,
    give: &SyncSender<Prepared>,
    done: &Event,
) {
    let result = preparation.prepare();
    let _ = give.send(Prepared {
        preparation,
        result,
        _begun: begun,
    });
    done.signal();
}

/// Whether it was done in time.
fn wait(done: &Event, ends: &Ends<'_>) -> Result<bool, Fault> {
    let deadline = Deadline::after(ends.limit);
    loop {
        let mut fds = [
            PollFd::new(done.as_fd(), PollFlags::POLLIN),
            PollFd::new(ends.stop, PollFlags::POLLIN),
            // What the front-end sends meanwhile waits; its end is told unasked.
            PollFd::new(ends.connection, PollFlags::empty()),
        ];
        // An error of poll(2) passes, or the deadline does.
        let _ = poll(&mut fds, deadline.poll_timeout());
        let [done, stop, closed] = fds.map(|fd| fd.any().unwrap_or(false));
        match (done, stop, closed) {
            (true, _, _) => return Ok(true),
            (_, true, _) => return Err(Fault::Over(End::Stopped)),
            (_, _, true) => return Err(Fault::Over(End::Closed)),
            _ if deadline.passed() => return Ok(false),
            _ => {}
        }
    }
}
