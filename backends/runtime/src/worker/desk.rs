//! Where a worker leaves its life while it waits, for the session to change.
//!
//! ```text
//! worker: works ──put──► asleep, its life on the desk ──take──► works
//!                           life          ▲
//! session:                   └─────give────┘  hands rings in and out, and the memory
//! ```
//! Of a worker that sleeps nobody waits for anything: the session takes its life from the
//! desk and gives it back, and wakes it only when there is a ring to look at. One that works is
//! asked to put its life there between two rounds, and has it back when the session is done. A
//! ring whose device has something of it yet is drained by the worker, which leaves it on the
//! desk afterwards.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Handed;
use crate::event::Event;

/// See the module; a life is an `L`.
pub(super) struct Desk<L> {
    place: Mutex<Place<L>>,
    /// Of `place`, for the one who waits.
    changed: Condvar,
    /// The session waits for the worker's life.
    wanted: AtomicBool,
    /// Wakes the worker.
    wake: Event,
    /// Chains of rings that are to be handed back, when they were last counted.
    in_flight: AtomicUsize,
}

/// What lies there.
pub(super) struct Place<L> {
    life: Option<Box<L>>,
    /// Rings that are handed back.
    stopped: Vec<Handed>,
    /// Why there is no worker.
    failed: Option<io::Error>,
    /// The worker waits for its wake, not for its life.
    asleep: bool,
    /// The worker is to end.
    leave: bool,
    /// Somebody waits for a change, or did so.
    awaited: bool,
}

impl<L> Place<L> {
    /// The worker's life, if it is here: to be given back.
    pub fn life(&mut self) -> Option<Box<L>> {
        self.life.take()
    }

    /// Whether the worker has come to be, or why it has not.
    pub fn made(&mut self) -> Option<io::Result<()>> {
        let failed = self.failed.take().map(Err);
        failed.or_else(|| self.life.is_some().then_some(Ok(())))
    }

    /// This queue's ring, once it is drained.
    pub fn stopped(&mut self, index: u16) -> Option<Handed> {
        let found = self.stopped.iter();
        let found = found.enumerate().find(|(_, ring)| ring.0.index == index);
        let place = found.map(|(place, _)| place)?;
        Some(self.stopped.swap_remove(place))
    }
}

impl<L> Desk<L> {
    /// An empty one.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            place: Mutex::new(Place {
                life: None,
                stopped: Vec::new(),
                failed: None,
                asleep: false,
                leave: false,
                awaited: false,
            }),
            changed: Condvar::new(),
            wanted: AtomicBool::new(false),
            wake: Event::new()?,
            in_flight: AtomicUsize::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Place<L>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what lies there, and tells whoever waits for it.
    fn change<T>(&self, change: impl FnOnce(&mut Place<L>) -> T) -> T {
        let mut place = self.lock();
        let value = change(&mut place);
        let awaited = std::mem::take(&mut place.awaited);
        drop(place);
        if awaited {
            self.changed.notify_one();
        }
        value
    }

    // What the session does.

    /// Has the worker put its life here as soon as it can, and leave it here until it is
    /// given: one that sleeps has put it, and may wake at any moment.
    pub fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// Gives the worker its life again; `wake`: it is to look at once at what has changed.
    pub fn give(&self, life: Box<L>, wake: bool) {
        self.wanted.store(false, Ordering::Relaxed);
        let asleep = self.change(|place| {
            place.life = Some(life);
            place.asleep
        });
        if asleep && wake {
            self.wake.signal();
        }
    }

    /// Waits for `find` to find something there, at most for `time`.
    pub fn wait<T>(
        &self,
        time: Duration,
        mut find: impl FnMut(&mut Place<L>) -> Option<T>,
    ) -> Option<T> {
        let mut place = self.lock();
        if let Some(found) = find(&mut place) {
            return Some(found);
        }
        place.awaited = true;
        let (mut place, _) = self
            .changed
            .wait_timeout(place, time)
            .unwrap_or_else(PoisonError::into_inner);
        find(&mut place)
    }

    /// Has the worker end.
    pub fn leave(&self) {
        self.wanted.store(true, Ordering::Relaxed);
        self.change(|place| place.leave = true);
        self.wake.signal();
    }

    /// See [`Self::count`].
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    // What the worker does.

    /// There will be no worker.
    pub fn fail(&self, why: io::Error) {
        self.change(|place| place.failed = Some(why));
    }

    /// Whether the worker is to put its life here.
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// What a sleeping worker is woken by.
    pub fn wake(&self) -> &Event {
        &self.wake
    }

    /// Puts the worker's life here; `asleep`: until the wake comes, or something that it
    /// waits for besides.
    pub fn put(&self, life: Box<L>, asleep: bool) {
        self.change(|place| {
            place.life = Some(life);
            place.asleep = asleep;
        });
    }

    /// Takes the worker's life again, as soon as the session does without it; `None`: it is
    /// to end. Its life ends here then, not with whoever leaves the desk last.
    pub fn take(&self) -> Option<Box<L>> {
        let mut place = self.lock();
        place.asleep = false;
        loop {
            if place.leave {
                let life = place.life();
                drop(place);
                drop(life);
                return None;
            }
            if !self.is_wanted()
                && let Some(life) = place.life.take()
            {
                return Some(life);
            }
            place.awaited = true;
            let waited = self.changed.wait(place);
            place = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Hands a ring back.
    pub fn hand_back(&self, ring: Handed) {
        self.change(|place| place.stopped.push(ring));
    }

    /// Notes how many chains a stop waits for.
    pub fn count(&self, in_flight: usize) {
        self.in_flight.store(in_flight, Ordering::Relaxed);
    }
}
