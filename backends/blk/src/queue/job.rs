//! The jobs of a queue, on their way to the kernel and back.

use std::io;

use outboard_log::rarely;

use super::{BlkQueue, Pending};
use crate::engine::{Completion, Job};
use crate::hold::Hold;
use crate::task::{Failed, Step};

impl BlkQueue {
    /// Hands the next job of a request to the engine: what comes after it, if that is
    /// known at once.
    pub(super) fn attempt(&mut self, id: usize, pending: &mut Pending, job: Job) -> Option<Step> {
        pending.attempt = self.hold.as_ref().map(Hold::now).unwrap_or_default();
        if !self.reach.enter(id, job.end()) {
            // The disk has shrunk since the request was taken.
            let result = Err(io::Error::from_raw_os_error(libc::ECANCELED));
            return Some(self.report(pending, Failed { job, result }));
        }
        let done = self.engine.start(id, job)?;
        self.reach.leave(id);
        let rules = self.rules();
        Some(pending.task.complete(done.job, done.result, rules))
    }

    /// Waits until the kernel is done with every job, and forgets them.
    pub(super) fn finish_jobs(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        let drained = self.engine.drain(&mut completions);
        for Completion { id, job, result } in completions {
            self.reach.leave(id);
            if let Some(mut pending) = self.pending.get_mut(id).and_then(Option::take) {
                let _ = pending.task.complete(job, result, self.rules());
            }
        }
        if let Err(error) = drained {
            self.engine_failed = true;
            self.reach.lose();
            // A guest can stop its queues as often as it likes.
            rarely!(error, "cannot drain a queue of the disk: {error}");
        }
    }
}
