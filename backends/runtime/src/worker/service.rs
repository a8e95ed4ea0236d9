//! One ring at work: chains from the driver to the device and back.
//!
//! It takes a batch, hands it to the device, collects what has completed,
//! returns that to the driver with one move of the used index, and calls at
//! most once. A ring that breaks is not followed any more, but what the device
//! has of it is still waited for.

mod kicks;
mod replaying;

use std::os::fd::{AsFd, BorrowedFd};

use outboard_protocol::launch::InFlight;
use outboard_ring::counters::add;
use outboard_ring::{Broken, Chain, Memory, Ring, Taken, View};

use super::watch::{Bell, Found};
use super::{Kick, Lines};
use crate::device::{Outcome, Queue};

/// A ring that a worker has.
pub(super) struct Served {
    pub lines: Lines,
    pub ring: Ring,
    pub state: State,
}

#[derive(Default)]
pub(super) struct State {
    /// The bell stands for its kick.
    hangs: bool,
    /// The driver is to kick; there was no chain when it was asked to.
    asleep: bool,
    chain: Chain,
    /// The device does not want the chain at the head of the ring yet.
    blocked: bool,
    /// Nothing more can be expected of the device.
    engine_failed: bool,
    /// How many chains there had been at the last kick, and how many single kicks
    /// had announced none.
    kicks: (u64, u32),
    /// It is to be handed back, and takes no more chains.
    stopping: bool,
    /// It can be handed back.
    drained: bool,
    /// It has chains of a predecessor that were not returned yet.
    replays: bool,
    /// Which of them the chain is that is to be taken next.
    again: Option<InFlight>,
    /// The one that is executed alone.
    alone: Option<InFlight>,
    /// The chain at its head waits until others have been returned.
    held: bool,
}

impl Served {
    pub fn new((lines, ring): (Lines, Ring)) -> Self {
        let state = State {
            replays: ring.is_replaying(),
            ..State::default()
        };
        if state.replays {
            lines.replay.enter(lines.index);
        }
        Self { lines, ring, state }
    }

    pub fn ask_to_stop(&mut self) {
        self.state.stopping = true;
    }

    /// Whether it was to stop and the device has nothing of it any more.
    pub fn is_drained(&self) -> bool {
        self.state.drained
    }

    /// It is handed back.
    pub fn leave(&mut self, bell: &Bell) {
        if self.state.replays {
            self.lines.replay.leave(self.lines.index);
        }
        if let (true, Kick::Event(kick)) = (self.state.hangs, &self.lines.kick) {
            bell.take_down(kick);
        }
    }

    /// Whether it waits for its driver alone, unless the device has something of it.
    pub fn is_asleep(&self) -> bool {
        self.state.asleep && !self.ring.is_recovering()
    }

    /// Notes what has woken its worker.
    pub fn awake(&mut self, found: Found) {
        if found.kick {
            self.take_kick();
        }
        if found.look {
            // The chain at the head of the ring is worth another look.
            self.state.blocked = false;
        }
    }

    /// It cannot be served at all any more.
    pub fn lose(&mut self, why: Broken) {
        if self.ring.broken().is_none() {
            self.lines.tell_error();
        }
        self.ring.break_off(why);
        if std::mem::take(&mut self.state.replays) {
            self.lines.replay.leave(self.lines.index);
        }
        self.state.drained = self.state.stopping;
    }
}

/// A ring at work, between two sleeps.
pub(super) struct Service<'a, Q> {
    /// Of its seat.
    pub place: usize,
    pub lines: &'a mut Lines,
    pub memory: &'a Memory,
    /// The ring as it lies in `memory`.
    pub view: View<'a>,
    pub ring: &'a mut Ring,
    pub queue: &'a mut Q,
    pub bell: &'a Bell,
    pub state: &'a mut State,
}

impl<Q: Queue> Service<'_, Q> {
    /// Takes, submits, collects, returns. Whether there was anything to do.
    pub fn round(&mut self) -> bool {
        if self.state.stopping && !self.state.engine_failed {
            self.give_back();
        }
        let mut busy = false;
        if !self.state.blocked && self.ring.broken().is_none() {
            let taken = self.attempt(Self::take_batch);
            busy |= taken.unwrap_or(false);
        }
        busy |= self.collect();
        if self.state.blocked && self.queue.ready().is_none() && self.queue.in_flight() == 0 {
            // What stood in the way has gone since: nothing else will tell.
            self.state.blocked = false;
            busy = true;
        }
        let batches = self.ring.tally.batches;
        let call = self.attempt(|service| service.ring.publish(&service.view));
        if self.ring.tally.batches != batches {
            self.show();
        }
        if call.unwrap_or(false) {
            self.lines.call();
        }
        busy | self.end_replay()
    }

    /// After a round without anything to do: whether the ring was to stop and the
    /// device has nothing of it any more.
    pub fn settle(&mut self) -> bool {
        if self.state.stopping && self.is_drained() && !self.waits_to_replay() {
            self.state.drained = true;
            if self.ring.broken().is_none() {
                // Whoever has it next may never run: leave kicks wanted.
                self.attempt(|service| service.ring.arm(&service.view));
            }
        }
        self.state.drained
    }

    /// Whether it is to be handed back.
    pub fn is_stopping(&self) -> bool {
        self.state.stopping
    }

    /// Number of chains of this ring that the device has and may yet answer.
    pub fn in_flight(&self) -> usize {
        match self.state.engine_failed {
            true => 0,
            false => self.queue.in_flight(),
        }
    }

    /// Whether the device has nothing of this ring any more.
    pub fn is_drained(&self) -> bool {
        self.in_flight() == 0
    }

    /// Gives the device every chain there is. Whether there was any. A stop asks
    /// for those alone that lie below its base: a predecessor had taken them.
    fn take_batch(&mut self) -> Result<bool, Broken> {
        let (mut taken, mut deferred) = (false, false);
        let end = loop {
            if self.state.stopping && !self.ring.is_recovering() {
                break Ok(());
            }
            if !self.is_admitted() {
                break Ok(());
            }
            let chain = &mut self.state.chain;
            match self.ring.take_one(&self.view, self.memory, chain) {
                Ok(Taken::Chain) => {}
                Ok(Taken::Malformed) => {
                    taken = true;
                    continue;
                }
                Ok(Taken::Nothing) => break Ok(()),
                Err(why) => break Err(why),
            }
            let head = chain.head;
            let part = self.lines.part.as_mut();
            if let Some(part) = part.filter(|_| self.queue.is_timed()) {
                part.taken(self.ring.tally.chains, head);
            }
            match self.hand_over() {
                Outcome::Done(length) => {
                    self.ring.complete(head, length);
                    self.lines.returned(head);
                }
                Outcome::Deferred => deferred = true,
                Outcome::NotNow => {
                    self.state.blocked = true;
                    self.lines.untimed(head);
                    break self.ring.put_back(self.state.chain.head);
                }
            }
            taken = true;
        };
        // Also when the ring broke on the way: what was deferred must end.
        if deferred && self.queue.submit().is_err() {
            self.state.engine_failed = true;
            return Err(Broken::Engine);
        }
        end.map(|()| taken)
    }

    /// Lets the device give up what it has not touched.
    fn give_back(&mut self) {
        let (ring, view, lines) = (&mut *self.ring, &self.view, &mut *self.lines);
        let mut result = Ok(());
        self.queue.give_back(&mut |head| {
            lines.untimed(head);
            if let Err(why) = ring.give_back(view, head) {
                result = Err(why);
            }
        });
        self.attempt(|_| result);
    }

    /// Collects what the device has completed. Whether there was any.
    fn collect(&mut self) -> bool {
        if self.state.engine_failed {
            return false;
        }
        let mut any = false;
        let (ring, lines) = (&mut *self.ring, &mut *self.lines);
        let reaped = self.queue.reap(&mut |head, length| {
            any = true;
            ring.complete(head, length);
            lines.returned(head);
        });
        if reaped.is_err() {
            self.state.engine_failed = true;
            self.break_off(Broken::Engine);
        }
        self.state.blocked &= !any;
        any
    }

    /// Whether there is something to do that no round has seen yet.
    pub fn look(&mut self) -> bool {
        if self.is_followed()
            && self.attempt(|service| service.ring.look(&service.view)) != Some(false)
        {
            self.state.blocked = false;
            return true;
        }
        self.queue.in_flight() > 0 && self.collect()
    }

    /// Asks for kicks, before a sleep. Whether there is something to do first.
    pub fn arm(&mut self) -> bool {
        self.show();
        self.hang();
        if !self.is_followed() {
            return false;
        }
        let new = self.attempt(|service| service.ring.arm(&service.view));
        if new == Some(false) {
            self.state.asleep = true;
            return false;
        }
        self.state.blocked = false;
        true
    }

    /// Asks for no kicks, after a sleep.
    pub fn disarm(&mut self) {
        self.state.asleep = false;
        if self.is_followed() {
            self.attempt(|service| service.ring.disarm(&service.view));
        }
    }

    /// Shows what has happened.
    fn show(&mut self) {
        if let Some(part) = &mut self.lines.part {
            part.did(self.queue.done());
            part.show(&self.ring.tally, self.queue.in_kernel());
        }
    }

    /// Notes a sleep.
    pub fn slept(&mut self) {
        add(&mut self.ring.tally.sleeps, 1);
        self.show();
    }

    /// What announces chains, if they are still asked for.
    pub fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.state.hangs.then(|| self.bell.as_fd())
    }

    /// Has the bell stand for the kick for as long as chains are asked for.
    fn hang(&mut self) {
        let is_followed = self.is_followed();
        let Kick::Event(kick) = &self.lines.kick else {
            return;
        };
        if is_followed && !self.state.hangs {
            // What was kicked so far is looked at anyway.
            let kicks = kick.clear();
            self.state.hangs = self.bell.hang(kick);
            if let Some(part) = &mut self.lines.part {
                part.kicked(kicks);
            }
        } else if !is_followed && std::mem::take(&mut self.state.hangs) {
            self.bell.take_down(kick);
        }
    }

    /// What tells that the device has completed something.
    pub fn ready(&self) -> Option<BorrowedFd<'_>> {
        (!self.state.engine_failed)
            .then(|| self.queue.ready())
            .flatten()
    }

    /// Whether something can happen that no descriptor tells.
    pub fn is_blind(&self) -> bool {
        let unkicked = self.is_followed() && !self.state.hangs;
        unkicked
            || self.state.held
            || (!self.state.engine_failed
                && self.queue.in_flight() > 0
                && self.queue.ready().is_none())
    }

    fn is_followed(&self) -> bool {
        !self.state.stopping && self.ring.broken().is_none()
    }

    /// Does something to the ring; if that fails, the ring is broken.
    fn attempt<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, Broken>) -> Option<T> {
        match act(self) {
            Ok(value) => Some(value),
            Err(why) => {
                self.break_off(why);
                None
            }
        }
    }

    fn break_off(&mut self, why: Broken) {
        if self.ring.broken().is_none() {
            self.lines.tell_error();
        }
        self.ring.break_off(why);
    }
}

#[cfg(test)]
mod tests;
