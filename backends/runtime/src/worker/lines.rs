//! A queue's lines to its driver, and what is said of one that does not work.

use std::sync::Arc;

use outboard_log::Rarely;
use outboard_ring::Tally;

use crate::event::{Event, Held, Signal};
use crate::page::Part;
use crate::replay::Replay;

/// How the driver announces chains.
#[derive(Clone, Debug)]
pub enum Kick {
    /// By this descriptor.
    Event(Arc<Event>),
    /// Not at all: the ring is looked at from time to time (vhost-user,
    /// SET_VRING_KICK, "invalid FD flag").
    Polled,
}

/// A queue's number and its lines to the driver.
#[derive(Debug)]
pub struct Lines {
    /// Which of the device's queues this is.
    pub index: u16,
    /// The driver's side of notifications.
    pub kick: Kick,
    /// Signalled when the driver wants to hear of used chains.
    pub call: Arc<Signal>,
    /// Signalled when the ring breaks.
    pub err: Arc<Signal>,
    /// Where its counters are shown, if anywhere.
    pub part: Option<Part>,
    /// How chains that a predecessor had taken are executed again.
    pub replay: Arc<Replay>,
}

impl Lines {
    /// The descriptors in which whoever serves the queue may be held.
    pub(super) fn signals(&self) -> [Arc<Signal>; 2] {
        [self.call.clone(), self.err.clone()]
    }

    /// Shows what has happened on its ring, and how many of its requests the kernel has.
    pub(crate) fn show(&mut self, tally: &Tally, in_kernel: usize) {
        if let Some(part) = &mut self.part {
            part.show(tally, in_kernel);
        }
    }

    /// The device is done with this chain.
    pub(super) fn returned(&mut self, head: u16) {
        if let Some(part) = &mut self.part {
            part.returned(head);
        }
    }

    /// The device is without this chain, and has done nothing with it.
    pub(super) fn untimed(&mut self, head: u16) {
        if let Some(part) = &mut self.part {
            let _ = part.untimed(head);
        }
    }

    /// Tells the driver of used chains.
    pub(super) fn call(&self) {
        if let Err(held) = self.call.signal() {
            self.say_held("call", held);
        }
    }

    /// Tells the front-end that the ring is broken.
    pub(super) fn tell_error(&self) {
        if let Err(held) = self.err.signal() {
            self.say_held("error", held);
        }
    }

    fn say_held(&self, which: &str, held: Held) {
        static HELD: Rarely = Rarely::new();
        if let Some(times) = HELD.again() {
            let index = self.index;
            log::warn!("queue {index}: its {which} eventfd held this device up: {held}{times}");
        }
    }

    /// Says that the ring is given up for its kick.
    pub(super) fn say_endless(&self) {
        static ENDLESS: Rarely = Rarely::new();
        if let Some(times) = ENDLESS.again() {
            log::warn!(
                "queue {} is given up: its kick eventfd stays readable however often it is read; \
                 the front-end must lend one without EFD_SEMAPHORE{times}",
                self.index
            );
        }
    }
}
