//! One ring at work: chains from the driver to the device and back.
//!
//! It takes a batch, hands it to the device, collects what has completed,
//! returns that to the driver with one move of the used index, and calls at
//! most once. A ring that breaks is not followed any more, but what the device
//! has of it is still waited for.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use outboard_ring::{Broken, Chain, Ring, View};

use super::{Kick, Lines, Setup};
use crate::device::{Device, Memory, Outcome, Queue};
use crate::event::Event;

/// See the module.
pub(super) struct Service<'a, Q> {
    lines: &'a Lines,
    memory: &'a Arc<Memory>,
    view: View<'a>,
    ring: &'a mut Ring,
    queue: Q,
    chain: Chain,
    /// The device does not want the chain at the head of the ring yet.
    blocked: bool,
    /// Nothing more can be expected of the device.
    engine_failed: bool,
    /// How many chains there had been at the last kick, and how many single kicks
    /// had announced none.
    kicks: (u64, u32),
}

/// After as many single kicks without a chain it is asked whether there is an end
/// of them. A driver, too, kicks now and then for what has been seen already.
const IDLE_KICKS: u32 = 64;

impl<'a, Q: Queue> Service<'a, Q> {
    /// Makes the device's queue for a ring.
    ///
    /// # Errors
    /// When there is none to be had; the ring's error eventfd tells.
    pub fn new<D: Device<Queue = Q>>(
        setup: &'a Setup<D>,
        lines: &'a Lines,
        ring: &'a mut Ring,
    ) -> io::Result<Self> {
        let layout = *ring.layout();
        let Some(view) = View::new(&setup.memory, &layout) else {
            ring.break_off(Broken::Unreachable);
            lines.tell_error();
            return Err(io::Error::other("the ring is not in guest memory"));
        };
        let queue = setup.device.queue(lines.index, setup.features);
        let queue = queue.inspect_err(|_| lines.tell_error())?;
        Ok(Self {
            lines,
            memory: &setup.memory,
            view,
            ring,
            queue,
            chain: Chain::default(),
            blocked: false,
            engine_failed: false,
            kicks: (0, 0),
        })
    }

    /// Takes, submits, collects, returns. Whether there was anything to do.
    pub fn round(&mut self, stopping: bool) -> bool {
        if stopping && !self.engine_failed {
            self.give_back();
        }
        let mut busy = false;
        if !self.blocked && self.ring.broken().is_none() {
            let taken = self.attempt(|service| service.take_batch(stopping));
            busy |= taken.unwrap_or(false);
        }
        busy |= self.collect();
        if self.blocked && self.queue.ready().is_none() && self.queue.in_flight() == 0 {
            // What stood in the way has gone since: nothing else will tell.
            self.blocked = false;
            busy = true;
        }
        let call = self.attempt(|service| service.ring.publish(&service.view));
        if call.unwrap_or(false) {
            self.lines.call();
        }
        busy
    }

    /// Number of chains of this ring that the device has and may yet answer.
    pub fn in_flight(&self) -> usize {
        match self.engine_failed {
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
    fn take_batch(&mut self, stopping: bool) -> Result<bool, Broken> {
        let (mut taken, mut deferred) = (false, false);
        let end = loop {
            if stopping && !self.ring.is_recovering() {
                break Ok(());
            }
            match self.ring.take(&self.view, self.memory, &mut self.chain) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(why) => break Err(why),
            }
            match self.queue.take(self.memory, &self.chain) {
                Outcome::Done(length) => self.ring.complete(self.chain.head, length),
                Outcome::Deferred => deferred = true,
                Outcome::NotNow => {
                    self.blocked = true;
                    break self.ring.put_back(self.chain.head);
                }
            }
            taken = true;
        };
        // Also when the ring broke on the way: what was deferred must end.
        if deferred && self.queue.submit().is_err() {
            self.engine_failed = true;
            return Err(Broken::Engine);
        }
        end.map(|()| taken)
    }

    /// Lets the device give up what it has not touched.
    fn give_back(&mut self) {
        let (ring, view) = (&mut *self.ring, &self.view);
        let mut result = Ok(());
        self.queue.give_back(&mut |head| {
            if let Err(why) = ring.give_back(view, head) {
                result = Err(why);
            }
        });
        self.attempt(|_| result);
    }

    /// Collects what the device has completed. Whether there was any.
    fn collect(&mut self) -> bool {
        if self.engine_failed {
            return false;
        }
        let mut any = false;
        let ring = &mut *self.ring;
        let reaped = self.queue.reap(&mut |head, length| {
            any = true;
            ring.complete(head, length);
        });
        if reaped.is_err() {
            self.engine_failed = true;
            self.break_off(Broken::Engine);
        }
        self.blocked &= !any;
        any
    }

    /// Whether there is something to do that no round has seen yet.
    pub fn look(&mut self) -> bool {
        let followed = self.ring.broken().is_none();
        if followed && self.attempt(|service| service.ring.look(&service.view)) != Some(false) {
            self.blocked = false;
            return true;
        }
        self.queue.in_flight() > 0 && self.collect()
    }

    /// Asks for kicks, before a sleep. Whether there is something to do first.
    pub fn arm(&mut self) -> bool {
        if self.ring.broken().is_some() {
            return false;
        }
        let new = self.attempt(|service| service.ring.arm(&service.view));
        if new == Some(false) {
            return false;
        }
        self.blocked = false;
        true
    }

    /// Asks for no kicks, after a sleep.
    pub fn disarm(&mut self) {
        if self.ring.broken().is_none() {
            self.attempt(|service| service.ring.disarm(&service.view));
        }
    }

    /// Notes a sleep.
    pub fn slept(&mut self) {
        self.ring.tally.sleeps += 1;
    }

    /// What announces chains, if they are still asked for.
    pub fn kick(&self, stopping: bool) -> Option<&'a Event> {
        match &self.lines.kick {
            Kick::Event(event) if self.is_followed(stopping) => Some(event),
            _ => None,
        }
    }

    /// Forgets a kick that has come. One whose descriptor stays readable however
    /// often it is read would keep this thread busy for ever: its ring breaks.
    pub fn take_kick(&mut self, stopping: bool) {
        let Some(event) = self.kick(stopping) else {
            return;
        };
        let chains = self.ring.tally.chains;
        let (before, idle) = &mut self.kicks;
        let single = event.clear() == 1;
        if single && std::mem::replace(before, chains) == chains {
            *idle = idle.wrapping_add(1);
            if idle.is_multiple_of(IDLE_KICKS) && event.is_endless() {
                self.lines.say_endless();
                self.break_off(Broken::Kick);
            }
        }
    }

    /// What tells that the device has completed something.
    pub fn ready(&self) -> Option<BorrowedFd<'_>> {
        (!self.engine_failed).then(|| self.queue.ready()).flatten()
    }

    /// Whether something can happen that no descriptor tells.
    pub fn is_blind(&self, stopping: bool) -> bool {
        let kick = self.is_followed(stopping) && matches!(self.lines.kick, Kick::Polled);
        kick || (!self.engine_failed && self.queue.in_flight() > 0 && self.queue.ready().is_none())
    }

    /// The chain at the head of the ring is worth another look.
    pub fn unblock(&mut self) {
        self.blocked = false;
    }

    fn is_followed(&self, stopping: bool) -> bool {
        !stopping && self.ring.broken().is_none()
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
