//! The capacity of a disk, which may change while requests are under way, and the jobs
//! that the kernel has meanwhile.
//!
//! ```text
//! settled ── shrink, grow, refusal ──► owed: who asked has not been answered
//!    ▲                                   │
//!    └── Resized: no job that reaches ◄──┘
//!        beyond the capacity is with the kernel
//! ```
//! Who shrinks a disk cuts its image after the answer, and a write that came later would
//! make the image longer again. So each job says how far it reaches before it looks at
//! the capacity, and whoever changes the capacity does so before it looks at the jobs:
//! of two at once, one sees the other. What has not been handed to the kernel by then
//! (the rest of a request, what waits for a buffer, what is held back) is not handed to
//! it any more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use outboard_runtime::Supervisor;

/// No job reaches beyond this: nobody is owed an answer.
const SETTLED: u64 = u64::MAX;

/// What the queues of a disk share.
#[derive(Debug)]
pub struct Capacity {
    /// In bytes.
    now: AtomicU64,
    /// What the supervisor has said last that it may be: an image that is still longer
    /// is to be cut.
    bound: AtomicU64,
    /// Whether an answer is owed: the capacity that it tells of, or [`SETTLED`].
    owed: AtomicU64,
    supervisor: OnceLock<Arc<Supervisor>>,
    /// Also what keeps two changes, or two answers, from being made at once.
    queues: Mutex<Vec<Arc<Ends>>>,
}

/// How far the jobs of one queue reach that the kernel has.
#[derive(Debug)]
struct Ends {
    /// By the id of the job: the first byte behind it, 0 for none.
    jobs: Box<[AtomicU64]>,
    /// Of jobs of which nobody knows whether the kernel still has them.
    lost: AtomicU64,
}

impl Ends {
    fn furthest(&self) -> u64 {
        let jobs = self.jobs.iter().chain([&self.lost]);
        let ends = jobs.map(|end| end.load(Ordering::SeqCst));
        ends.max().unwrap_or(0)
    }
}

impl Capacity {
    /// Of a disk of so many bytes.
    pub fn new(bytes: u64) -> Self {
        Self {
            now: AtomicU64::new(bytes),
            bound: AtomicU64::new(u64::MAX),
            owed: AtomicU64::new(SETTLED),
            supervisor: OnceLock::new(),
            queues: Mutex::default(),
        }
    }

    /// In bytes.
    pub fn get(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }

    /// Answers this supervisor from now on.
    pub fn supervised(&self, supervisor: &Arc<Supervisor>) {
        // The runtime does this once.
        let _ = self.supervisor.set(supervisor.clone());
    }

    /// Whether another process serves the disk.
    pub fn waits(&self) -> bool {
        let supervisor = self.supervisor.get();
        supervisor.is_some_and(|supervisor| supervisor.waits())
    }

    /// The image was found to have so many bytes, and nothing is under way. Returns the
    /// capacity before, and now: no more than the supervisor has said.
    pub fn found(&self, bytes: u64) -> (u64, u64) {
        let now = bytes.min(self.bound.load(Ordering::SeqCst));
        (self.now.swap(now, Ordering::SeqCst), now)
    }

    /// Makes it this, or leaves it as it is, and owes the supervisor an answer. Returns
    /// the capacity before.
    pub fn change(&self, bytes: Option<u64>) -> u64 {
        let queues = self.queues();
        let before = self.get();
        let now = bytes.unwrap_or(before);
        if bytes.is_some() {
            self.bound.store(now, Ordering::SeqCst);
        }
        self.now.store(now, Ordering::SeqCst);
        self.owed.store(now, Ordering::SeqCst);
        self.answer(&queues);
        before
    }

    /// Answers if that is owed and nothing is beyond the end any more.
    fn answer(&self, queues: &[Arc<Ends>]) {
        let owed = self.owed.load(Ordering::SeqCst);
        if owed == SETTLED || queues.iter().any(|ends| ends.furthest() > owed) {
            return;
        }
        self.owed.store(SETTLED, Ordering::SeqCst);
        if let Some(supervisor) = self.supervisor.get() {
            supervisor.resized(owed);
        }
    }

    fn queues(&self) -> MutexGuard<'_, Vec<Arc<Ends>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The jobs of one queue, by its worker alone.
#[derive(Debug)]
pub struct Reach {
    capacity: Arc<Capacity>,
    ends: Arc<Ends>,
}

impl Reach {
    /// Of a queue that has fewer than so many jobs at once.
    pub fn new(capacity: &Arc<Capacity>, jobs: u16) -> Self {
        let ends = Arc::new(Ends {
            jobs: (0..jobs).map(|_| AtomicU64::new(0)).collect(),
            lost: AtomicU64::new(0),
        });
        capacity.queues().push(ends.clone());
        Self {
            capacity: capacity.clone(),
            ends,
        }
    }

    /// A job is about to be handed to the kernel that reaches to byte `end`. Whether it
    /// may be: it lies within the disk.
    pub fn enter(&self, id: usize, end: u64) -> bool {
        let Some(place) = self.ends.jobs.get(id) else {
            return false;
        };
        place.store(end, Ordering::SeqCst);
        if cfg!(test) {
            // The tests see what comes in between.
            std::thread::yield_now();
        }
        let may = end <= self.capacity.get();
        if !may {
            self.leave(id);
        }
        may
    }

    /// The kernel is done with a job, or never had it.
    pub fn leave(&self, id: usize) {
        let place = self.ends.jobs.get(id);
        let end = place.map_or(0, |place| place.swap(0, Ordering::SeqCst));
        if end > self.capacity.owed.load(Ordering::SeqCst) {
            self.capacity.answer(&self.capacity.queues());
        }
    }

    /// Nobody knows whether the kernel has the jobs still: no answer that would have to
    /// wait for them is ever given.
    pub fn lose(&self) {
        let furthest = self.ends.furthest();
        self.ends.lost.store(furthest, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests;
