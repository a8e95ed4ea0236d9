//! Chains that a predecessor had taken, as [`Replay`] has them executed again.
//!
//! [`Replay`]: crate::replay::Replay

use outboard_protocol::launch::InFlight;

use super::Service;
use crate::device::{Outcome, Queue};

impl<Q: Queue> Service<'_, Q> {
    /// Whether the next chain may be taken now, if there is one; if not, another is to
    /// be returned first, perhaps by another worker.
    pub(super) fn is_admitted(&mut self) -> bool {
        let (replay, queue) = (&self.lines.replay, self.lines.index);
        let next = self.ring.resubmit().next();
        let next = next.map(|(head, counter)| InFlight {
            queue,
            head,
            counter,
        });
        self.state.held = match next {
            // What waits for something from outside stands in nobody's way.
            None if self.queue.is_patient() => false,
            None => !replay.admits(queue),
            Some(next) => !replay.begin(next),
        };
        self.state.again = next.filter(|_| !self.state.held);
        if replay.is_one_by_one() && self.state.again.is_some() {
            self.state.alone = self.state.again;
        }
        !self.state.held
    }

    /// Whether there are chains of a predecessor that may not be taken yet.
    pub(super) fn waits_to_replay(&self) -> bool {
        let is_followed = self.ring.broken().is_none() && !self.state.engine_failed;
        self.state.held && is_followed && self.ring.is_recovering()
    }

    /// Hands the chain that was taken to the device, unless it is to be refused.
    pub(super) fn hand_over(&mut self) -> Outcome {
        let chain = &self.state.chain;
        let again = self.state.again;
        let Some(refused) = again.filter(|again| self.lines.replay.refuses(*again)) else {
            let outcome = self.queue.take(chain);
            if outcome == Outcome::Deferred && again.is_some() && self.queue.is_patient() {
                self.state.alone = None;
                self.lines.replay.end(self.lines.index);
            }
            return outcome;
        };
        let (length, what) = self.queue.refuse(chain);
        self.lines.replay.refused(refused, &what);
        Outcome::Done(length)
    }

    /// After what has completed was returned: whether there is more to do now.
    pub(super) fn end_replay(&mut self) -> bool {
        if self.lines.replay.is_one_by_one() && self.is_drained() {
            self.lines.replay.rest(self.lines.index);
        }
        if !self.state.replays {
            return false;
        }
        let (replay, queue) = (&self.lines.replay, self.lines.index);
        let is_over =
            !self.ring.is_replaying() || self.queue.is_patient() && !self.ring.is_recovering();
        if is_over || self.ring.broken().is_some() {
            self.state.replays = false;
            match is_over {
                true => replay.replayed(queue),
                false => replay.leave(queue),
            }
            return true;
        }
        let ended = self
            .state
            .alone
            .take_if(|alone| !self.ring.replays(alone.head));
        if ended.is_some() {
            replay.end(queue);
        }
        ended.is_some()
    }
}
