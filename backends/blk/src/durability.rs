//! The write cache of a disk, and what a failed sync means.
//!
//! After fdatasync(2) has failed, the kernel may have dropped the pages that
//! it could not write and marked them clean: the next fdatasync succeeds, and
//! the data is gone all the same. It also tells an error only once for an open
//! file, and all queues of a disk share one. So a failure is remembered here,
//! for all queues, and by the supervisor for this process's successor: a flush after
//! it fails, and is not answered before the supervisor knows. And a flush that ran at
//! the same time as others does not believe its own success before theirs are known,
//! since the one error may have gone to one of them.
//!
//! ```text
//!          begin              end(ok)
//! flush ──────────► Ticket ──────────► no others at the time: durable
//!                     │                 others not yet ended: sync again, ask again
//!                     └── end(failed), or dropped: lost, for everyone, and kept
//! ```

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use outboard_protocol::kept::{DiskState, Kept};
use outboard_runtime::Supervisor;

/// One disk's write cache, shared by its queues.
#[derive(Debug)]
pub struct Durability {
    initially: bool,
    writeback: AtomicBool,
    /// It is on, and writes are durable all the same: it is being turned off.
    turning_off: AtomicUsize,
    syncs: Mutex<Syncs>,
    supervisor: OnceLock<Arc<Supervisor>>,
}

#[derive(Debug, Default)]
struct Syncs {
    lost: bool,
    next: u64,
    /// Numbers of those that have begun and not ended.
    running: BTreeSet<u64>,
}

/// What is known when a sync has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All that was written before it is on stable storage.
    Durable,
    /// Something was not written, then or earlier.
    Lost,
    /// An earlier one has not told its result; sync again and ask by
    /// [`Durability::judge`] with this number.
    Unsure(u64),
}

/// A sync that is under way. Dropped without an end, it counts as failed.
#[derive(Debug)]
pub struct Ticket {
    durability: Arc<Durability>,
    number: u64,
    ended: bool,
}

impl Syncs {
    fn lose(&mut self) {
        if !std::mem::replace(&mut self.lost, true) {
            log::error!(
                "data that was written to the image may be lost: from now on every flush of the \
                 guest fails, until the VM has ended (a reset of the guest does not help), or \
                 this program where it was started by hand, since the kernel tells of a failed \
                 sync once and of success from then on; look at the host's kernel log, and check \
                 the guest's file systems"
            );
        }
    }
}

impl Durability {
    /// A disk whose cache is write-back, or write-through, until the driver
    /// says otherwise.
    pub fn new(writeback: bool) -> Arc<Self> {
        Arc::new(Self {
            initially: writeback,
            writeback: AtomicBool::new(writeback),
            turning_off: AtomicUsize::new(0),
            syncs: Mutex::default(),
            supervisor: OnceLock::new(),
        })
    }

    /// Tells this supervisor from now on when data was lost.
    pub fn supervised(&self, supervisor: &Arc<Supervisor>) {
        // The runtime does this once.
        let _ = self.supervisor.set(supervisor.clone());
    }

    /// Whoever answers the guest that data was lost calls this before, with no lock
    /// held.
    fn tell(&self) {
        if let Some(supervisor) = self.supervisor.get() {
            supervisor.keeps(|| Kept::Disk(self.kept()));
        }
    }

    /// Whether the cache is on, as the driver is shown it.
    pub fn writeback(&self) -> bool {
        self.writeback.load(Ordering::SeqCst)
    }

    /// Whether a write must be durable when it completes. It is asked when the
    /// write is with the kernel, so a sync that begins after the answer has
    /// become yes covers every write that was told no.
    pub fn write_through(&self) -> bool {
        // In this order: none under way, when asked first, means that its sync is
        // still to begin, or that the cache has been off since, or is on again.
        self.turning_off.load(Ordering::SeqCst) != 0 || !self.writeback()
    }

    /// Says that the cache is about to be turned off.
    pub fn begin_turning_off(&self) {
        self.turning_off.fetch_add(1, Ordering::SeqCst);
    }

    /// As often, that it is not any more. One that was given up may end when the
    /// next has begun.
    pub fn end_turning_off(&self) {
        self.turning_off.fetch_sub(1, Ordering::SeqCst);
    }

    /// Turns the cache on or off, for requests taken from now on.
    pub fn set_writeback(&self, writeback: bool) {
        self.writeback.store(writeback, Ordering::SeqCst);
    }

    /// As it was when the device was made.
    pub fn reset(&self) {
        self.set_writeback(self.initially);
    }

    /// What a successor must know.
    pub fn kept(&self) -> DiskState {
        DiskState {
            writeback: self.writeback(),
            sync_failed: self.lock().lost,
        }
    }

    /// Goes on as whoever this was kept by: call it before the first request.
    pub fn restore(&self, kept: DiskState) {
        self.set_writeback(kept.writeback);
        if kept.sync_failed && !std::mem::replace(&mut self.lock().lost, true) {
            log::error!(
                "data that was written to the image may be lost: a sync failed before this \
                 program was started, and every flush of the guest fails; look at the host's \
                 kernel log, and check the guest's file systems"
            );
        }
    }

    /// Begins a sync; `None` when one has failed before.
    pub fn begin(self: &Arc<Self>) -> Option<Ticket> {
        let mut syncs = self.lock();
        if syncs.lost {
            drop(syncs);
            self.tell();
            return None;
        }
        let number = syncs.next;
        syncs.next = number.saturating_add(1);
        syncs.running.insert(number);
        Some(Ticket {
            durability: self.clone(),
            number,
            ended: false,
        })
    }

    /// Notes that data was lost: every flush from now on fails.
    pub fn lose(&self) {
        self.lock().lose();
        self.tell();
    }

    /// What is known of a sync that succeeded when `before` syncs had begun.
    pub fn judge(&self, before: u64) -> Verdict {
        let syncs = self.lock();
        if syncs.lost {
            drop(syncs);
            self.tell();
            Verdict::Lost
        } else if syncs.running.range(..before).next().is_some() {
            Verdict::Unsure(before)
        } else {
            Verdict::Durable
        }
    }

    fn lock(&self) -> MutexGuard<'_, Syncs> {
        self.syncs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Ends a sync that succeeded.
    pub fn end(mut self) -> Verdict {
        self.ended = true;
        let before = {
            let mut syncs = self.durability.lock();
            syncs.running.remove(&self.number);
            syncs.next
        };
        self.durability.judge(before)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.ended {
            let mut syncs = self.durability.lock();
            syncs.running.remove(&self.number);
            syncs.lose();
            drop(syncs);
            self.durability.tell();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_alone_is_believed() {
        let durability = Durability::new(true);
        for _ in 0..3 {
            assert_eq!(durability.begin().unwrap().end(), Verdict::Durable);
        }
    }

    #[test]
    fn a_failed_sync_fails_all_that_follow() {
        let durability = Durability::new(true);
        drop(durability.begin().unwrap());
        assert!(durability.begin().is_none());
        durability.reset();
        assert!(durability.begin().is_none(), "a reset mends nothing");
    }

    #[test]
    fn a_success_beside_a_failure_is_not_believed() {
        let durability = Durability::new(true);
        let (mine, other) = (durability.begin().unwrap(), durability.begin().unwrap());
        let Verdict::Unsure(before) = mine.end() else {
            panic!("the other has not told");
        };
        assert_eq!(durability.judge(before), Verdict::Unsure(before));
        drop(other);
        assert_eq!(durability.judge(before), Verdict::Lost);
    }

    #[test]
    fn a_success_waits_for_no_sync_that_began_after_it() {
        let durability = Durability::new(true);
        let (mine, other) = (durability.begin().unwrap(), durability.begin().unwrap());
        let Verdict::Unsure(before) = mine.end() else {
            panic!("the other has not told");
        };
        let later = durability.begin().unwrap();
        assert!(matches!(other.end(), Verdict::Unsure(_)));
        assert_eq!(durability.judge(before), Verdict::Durable);
        assert_eq!(later.end(), Verdict::Durable);
    }

    #[test]
    fn a_reset_restores_the_cache_that_was_configured() {
        for initially in [false, true] {
            let durability = Durability::new(initially);
            durability.set_writeback(!initially);
            assert_eq!(durability.writeback(), !initially);
            durability.reset();
            assert_eq!(durability.writeback(), initially);
        }
    }

    #[test]
    fn a_supervisor_knows_of_a_loss_before_anybody_is_told() {
        use outboard_protocol::Deadline;
        use outboard_protocol::launch::{Channel, FromBackend, Link, ToBackend};
        use std::time::Duration;
        let soon = || Deadline::after(Duration::from_secs(60));
        let (line, theirs) = Channel::pair().unwrap();
        let kept = Kept::Nothing;
        let start = ToBackend::Start {
            version: 2,
            kept,
            link: Link::Up,
            replay: Default::default(),
            waits: false,
        };
        line.send(&start, &[], soon()).unwrap();
        let supervisor = Arc::new(Supervisor::meet(theirs.into(), soon()).unwrap());
        let lost = FromBackend::Keeps {
            kept: Kept::Disk(DiskState {
                writeback: true,
                sync_failed: true,
            }),
        };
        let now = || line.recv(Deadline::after(Duration::ZERO)).ok().flatten();
        let ways: [fn(&Arc<Durability>); 2] = [
            |durability| drop(durability.begin()),
            |durability| durability.lose(),
        ];
        for way in ways {
            let durability = Durability::new(true);
            supervisor.ready(Kept::Disk(durability.kept()), None);
            assert!(now().is_some());
            durability.supervised(&supervisor);
            way(&durability);
            assert_eq!(
                now().map(|heard: (FromBackend, _)| heard.0),
                Some(lost.clone())
            );
            assert!(durability.begin().is_none());
            assert!(now().is_none(), "it is known");
        }
    }
}
