//! Requests that have failed on the host and are held back (`--on-io-error=pause`):
//! the supervisor pauses the VM, and has them executed again when it is resumed.
//!
//! ```text
//!           fails, and the supervisor is told          Retry
//! under way ─────────────────────────────────▶ held ─────────▶ under way
//!    │                                          │
//!    │ fails, and it cannot be told             ├─ its ring is stopped ─▶ ends in its error
//!    └──────────────▶ ends in its error         └─ the session is over ─▶ left in flight
//! ```
//! What is held is in flight for the ring and for the inflight region, and the job is
//! the one that failed: what had been done of its request is not done again. The
//! supervisor is told once between two retries, whatever fails meanwhile; what was
//! attempted before a retry and fails after it is executed again untold. A request
//! whose ring is stopped, by a driver that resets the device or turns its bus mastering
//! off, ends in its error, as that driver waits for its ring and no more for its data.
//! Where the session just ends, nobody is to hear of it any more, and a successor finds
//! it in the inflight region and executes it.
//!
//! A failed sync is never held back: see [`crate::durability`]. What the kernel could
//! not write it has dropped, so a second sync would succeed and say what is not true.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use outboard_runtime::Supervisor;

/// What the queues of a disk share.
#[derive(Debug, Default)]
pub struct Holds {
    supervisor: OnceLock<Arc<Supervisor>>,
    /// How often a retry was asked for; changed under the lock.
    retries: AtomicU64,
    /// Whether the supervisor has been told since the last retry.
    told: Mutex<bool>,
    /// The session is over, and nobody has asked for its rings.
    leaving: AtomicBool,
    queues: Mutex<Vec<Arc<Waker>>>,
}

/// Wakes the worker of a queue that holds something.
#[derive(Debug)]
struct Waker {
    is_wanted: AtomicBool,
    event: EventFd,
}

/// How many retries there had been when something was attempted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempt(u64);

/// What becomes of an attempt that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A retry was asked for since it began: it is made again at once.
    Again,
    /// It is held: the supervisor knows.
    Held,
    /// It cannot be held: the supervisor does not know.
    Over,
}

/// What one queue holds: values of type `T`, in the order of their numbers.
#[derive(Debug)]
pub struct Hold<T> {
    holds: Arc<Holds>,
    /// Of the queue.
    index: u16,
    waker: Arc<Waker>,
    /// Stands for the engine and the waker.
    epoll: Epoll,
    held: Vec<Held<T>>,
    /// Something was taken before its waker rang, which it will yet.
    owed: bool,
}

#[derive(Debug)]
struct Held<T> {
    number: u64,
    attempt: Attempt,
    value: T,
}

impl Holds {
    /// Tells this supervisor from now on; without one nothing is held.
    pub fn supervised(&self, supervisor: &Arc<Supervisor>) {
        // The runtime does this once.
        let _ = self.supervisor.set(supervisor.clone());
    }

    /// What is held is to be executed again.
    pub fn retry(&self) {
        let mut told = self.told();
        *told = false;
        self.retries.fetch_add(1, Ordering::SeqCst);
        drop(told);
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        for queue in queues.iter() {
            if queue.is_wanted.swap(false, Ordering::SeqCst) {
                // The counter is small: a write to it cannot fail or wait.
                let _ = queue.event.write(1);
            }
        }
    }

    /// A session begins, in which nothing is held yet.
    pub fn begin(&self) {
        *self.told() = false;
        self.leaving.store(false, Ordering::SeqCst);
    }

    /// The session is over: what is held is left in flight when its ring is stopped.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
    }

    fn now(&self) -> Attempt {
        Attempt(self.retries.load(Ordering::SeqCst))
    }

    /// Tells the supervisor of an attempt that has failed, unless it knows, or has
    /// asked for another one since.
    fn judge(&self, attempt: Attempt, queue: u16, why: impl FnOnce() -> String) -> Fate {
        let mut told = self.told();
        if attempt != self.now() {
            return Fate::Again;
        }
        if !*told {
            // A retry waits meanwhile: it would be the answer to this.
            let supervisor = self.supervisor.get();
            *told = supervisor.is_some_and(|supervisor| supervisor.io_error(queue, &why()));
        }
        match *told {
            true => Fate::Held,
            false => Fate::Over,
        }
    }

    fn told(&self) -> MutexGuard<'_, bool> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Hold<T> {
    /// What queue `index` holds, which is nothing yet. It is ready when `engine` is, or
    /// when there is something to [`Self::take`].
    ///
    /// # Errors
    /// Those of eventfd(2) and epoll_create1(2).
    pub fn new(holds: &Arc<Holds>, index: u16, engine: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let waker = Arc::new(Waker {
            is_wanted: AtomicBool::new(false),
            event: EventFd::from_flags(flags)?,
        });
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&waker.event, readable())?;
        let hold = Self {
            holds: holds.clone(),
            index,
            waker,
            epoll,
            held: Vec::new(),
            owed: false,
        };
        hold.follow(engine)?;
        let mut queues = holds.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.push(hold.waker.clone());
        drop(queues);
        Ok(hold)
    }

    /// Is ready when this engine is, too; one that is no more is forgotten with its
    /// descriptor.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn follow(&self, engine: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let Some(engine) = engine else {
            return Ok(());
        };
        Ok(self.epoll.add(engine, readable())?)
    }

    /// Readable when the engine is ready, or something is to be taken.
    pub fn ready(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// An attempt that begins now.
    pub fn now(&self) -> Attempt {
        self.holds.now()
    }

    /// What becomes of an attempt that has failed for this reason. One that is
    /// [`Fate::Held`] is to be [`Self::put`].
    pub fn judge(&self, attempt: Attempt, why: impl FnOnce() -> String) -> Fate {
        self.holds.judge(attempt, self.index, why)
    }

    /// Holds the `number`th request of its queue, of which this attempt has failed.
    pub fn put(&mut self, number: u64, attempt: Attempt, value: T) {
        self.held.push(Held {
            number,
            attempt,
            value,
        });
        // Who asks for a retry from here on wakes this queue; who has asked before is
        // seen by `take`.
        self.waker.is_wanted.store(true, Ordering::SeqCst);
    }

    /// What is to be executed again, the oldest first: a retry was asked for since it
    /// was attempted.
    pub fn take(&mut self) -> Vec<T> {
        if self.owed {
            self.owed = self.waker.event.read().is_err();
        }
        if self.held.is_empty() {
            return Vec::new();
        }
        let now = self.holds.now();
        if self.held.iter().all(|held| held.attempt == now) {
            return Vec::new();
        }
        let held = std::mem::take(&mut self.held);
        let (later, due): (Vec<_>, Vec<_>) = held.into_iter().partition(|held| held.attempt == now);
        self.rest();
        for held in later {
            self.put(held.number, held.attempt, held.value);
        }
        in_order(due)
    }

    /// All that is held, the oldest first.
    pub fn take_all(&mut self) -> Vec<T> {
        if self.held.is_empty() {
            return Vec::new();
        }
        self.rest();
        in_order(std::mem::take(&mut self.held))
    }

    /// Whether what is held when the ring is stopped is left in flight.
    pub fn is_leaving(&self) -> bool {
        self.holds.leaving.load(Ordering::SeqCst)
    }

    /// Need not be woken any more.
    fn rest(&mut self) {
        if !self.waker.is_wanted.swap(false, Ordering::SeqCst) {
            self.owed = self.waker.event.read().is_err();
        }
    }
}

fn in_order<T>(mut held: Vec<Held<T>>) -> Vec<T> {
    held.sort_by_key(|held| held.number);
    held.into_iter().map(|held| held.value).collect()
}

fn readable() -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN, 0)
}

#[cfg(test)]
pub(crate) mod tests;
