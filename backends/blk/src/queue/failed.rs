//! What becomes of a request of a queue that has failed on the host: see
//! [`crate::hold`].

use std::io;

use super::{BlkQueue, Pending};
use crate::hold::{Attempt, Fate, Hold};
use crate::task::{Failed, Rules, Step};

/// A request that has failed and is held back, with its id.
#[derive(Debug)]
pub(super) struct Held {
    id: usize,
    pending: Pending,
    failed: Failed,
}

impl BlkQueue {
    /// Holds back what fails from now on, if its disk does: it is queue `index`.
    ///
    /// # Errors
    /// Those of [`Hold::new`].
    pub fn hold_back(&mut self, index: u16) -> io::Result<()> {
        let ready = self.engine.ready();
        let hold = self.disk.holds();
        let hold = hold.map(|holds| Hold::new(holds, index, ready));
        self.hold = hold.transpose()?;
        Ok(())
    }

    /// What becomes of what has failed; nothing is held back of a ring that is to be
    /// handed back.
    pub(super) fn fate(&self, attempt: Attempt, failed: &Failed) -> Fate {
        match self.hold.as_ref().filter(|_| !self.stopping) {
            Some(hold) => hold.judge(attempt, || failed.why()),
            None => Fate::Over,
        }
    }

    pub(super) fn keep_back(&mut self, id: usize, pending: Pending, failed: Failed) {
        let (number, attempt) = (pending.number, pending.attempt);
        if let Some(hold) = &mut self.hold {
            let held = Held {
                id,
                pending,
                failed,
            };
            hold.put(number, attempt, held);
        }
    }

    /// Whether what has failed is left in flight: its ring is to be handed back, and
    /// nobody has asked for it.
    pub(super) fn is_leaving(&self) -> bool {
        self.stopping && self.hold.as_ref().is_some_and(Hold::is_leaving)
    }

    /// Goes on with a request whose job has failed, after all: it is over.
    pub(super) fn report(&self, pending: &mut Pending, failed: Failed) -> Step {
        let rules = Rules {
            holds: false,
            ..self.rules()
        };
        pending.task.complete(failed.job, failed.result, rules)
    }

    /// Leaves a request in flight: nobody is told of it, and what it has is free.
    pub(super) fn leave(&mut self, id: usize, mut pending: Pending, failed: Failed) {
        let _ = self.report(&mut pending, failed);
        self.free.push(id);
        let (data, bounce) = pending.task.dismantle();
        data.into_iter().for_each(|data| self.keep(data));
        self.bounces.extend(bounce);
    }

    /// Goes on with what is held back: executes it again if that was asked for, or gives
    /// it up if its ring is to be handed back.
    pub(super) fn release(&mut self, done: &mut dyn FnMut(u16, u32)) {
        let Some(hold) = &mut self.hold else { return };
        let held = match self.stopping {
            true => hold.take_all(),
            false => hold.take(),
        };
        for Held {
            id,
            pending,
            failed,
        } in held
        {
            let step = match self.stopping {
                true => Step::Held(failed),
                false => Step::Next(failed.job),
            };
            if let Some((head, used)) = self.drive(id, pending, step) {
                done(head, used);
            }
            self.feed(done);
        }
    }
}
