//! What a device is to the runtime, and what a queue of it is to the ring loop.
//!
//! A device never sees a socket, a ring or an index: it is asked what it
//! offers, and one [`Queue`] of it is handed chains and answers what became of
//! each. Whatever a guest writes is an outcome, never an error.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use outboard_protocol::kept::Kept;

use outboard_ring::Chain;
pub use outboard_ring::Memory;

use crate::notifier::Notifier;
use crate::supervisor::{News, Supervisor};

/// Why a device cannot restore what was kept of a device of another kind.
pub const OTHER_KIND: &str = "what was kept is of another kind of device";

/// A device: one value in a process, shared by its session and its workers.
pub trait Device: Send + Sync + 'static {
    /// What serves one of its queues.
    type Queue: Queue;

    /// Virtio device id (virtio 1.3, section 5).
    fn virtio_id(&self) -> u16;
    /// Called once, before the first session: a device whose configuration can
    /// change by itself keeps the notifier.
    fn attach(&self, notifier: Notifier) {
        let _ = notifier;
    }
    /// Called once, before the first session, and after [`Self::restore`]: a device
    /// that has something to tell its supervisor by itself keeps it.
    fn supervised(&self, supervisor: &Arc<Supervisor>) {
        let _ = supervisor;
    }
    /// Something has happened behind the device that is no queue's affair. Called on
    /// the session's thread, during sessions and before each.
    fn hear(&self, news: News) {
        news.pass_over();
    }
    /// This process has waited ([`Supervisor::waits`]) and serves the device from now on:
    /// called once, after [`Self::restore`] where anything was kept, and before any ring.
    fn takes_over(&self) {}
    /// A session begins: what is behind the device may have changed.
    fn attend(&self) {}
    /// The session is over, and its rings are stopped though nobody has asked for them:
    /// what cannot be completed now may be left in the inflight region, for a successor
    /// of this process.
    fn leave(&self) {}
    /// Device-specific feature bits offered; the runtime adds those of rings
    /// and transport (VERSION_1, INDIRECT_DESC, EVENT_IDX).
    fn features(&self) -> u64;
    /// Number of queues.
    fn queues(&self) -> u16;
    /// Largest queue size accepted, a power of two.
    fn max_queue_size(&self) -> u16 {
        1024
    }
    /// The configuration space as it is now, whole.
    fn config(&self) -> Vec<u8>;
    /// The driver wrote `data` at `offset` of the configuration space. Called on
    /// the session's thread: what may take long is [`Change::After`].
    ///
    /// # Errors
    /// `InvalidInput` when nothing there is writable.
    fn write_config(&self, offset: u32, data: &[u8]) -> io::Result<Change>;
    /// The device was reset (`features` 0): state that a driver may have changed
    /// is initial again. Or a driver has acknowledged `features`: what it wrote
    /// to the configuration before (virtio 1.3, section 3.1.1, step 7) holds, and
    /// so does what was restored.
    fn reset(&self, features: u64);
    /// What a driver has set of the device and would not say again to another
    /// process that goes on with it. What a message to the session changes of it is
    /// told to the supervisor by the runtime; of what a queue changes the device
    /// tells ([`Supervisor::keeps`]). Called on any thread.
    fn kept(&self) -> Kept {
        Kept::Nothing
    }
    /// Sets what was kept of a predecessor: in place of the reset that a session
    /// begins with, before features are acknowledged and any queue is made. A
    /// reset undoes it as it undoes what a driver sets here.
    ///
    /// # Errors
    /// A message that says what is out of bounds, or not of this device; nothing
    /// has changed.
    fn restore(&self, kept: &Kept) -> Result<(), String> {
        match kept {
            Kept::Nothing => Ok(()),
            _ => Err(OTHER_KIND.into()),
        }
    }
    /// How many errors of what is behind the device there were since this was
    /// last asked: told at the end of a session. Each kind has been said by then.
    fn io_errors(&self) -> u64 {
        0
    }
    /// The front-end has described queue `index`, of `size` entries, and lent its
    /// kick: it is to be served, though perhaps not enabled yet. Said before any
    /// queue is made, of each that is so, and again and again.
    fn described(&self, index: u16, size: u16, features: u64) {
        let _ = (index, size, features);
    }
    /// Which worker serves queue `index`: one thread serves all queues of the
    /// same number, in turn. By default each has a worker of its own. Asked once,
    /// before the first session.
    fn worker(&self, index: u16) -> u16 {
        index
    }
    /// Makes the server of queue `index`: once, before the first session, on the
    /// worker's own thread. What needs a thread or an `io_uring` has it from here
    /// on, since neither may be had later.
    ///
    /// # Errors
    /// Those of the resources it needs: the program does not start.
    fn queue(&self, index: u16) -> io::Result<Self::Queue>;
}

/// What a write to the configuration space comes to.
#[derive(Debug)]
pub enum Change {
    /// It is done.
    Done,
    /// It is done when something else, which may take long, has succeeded.
    After(Box<dyn Preparation>),
}

/// What must be done before a change of the configuration is. The session runs
/// it on a thread made for it, at most for [`limits::IO`], and then makes the
/// change or refuses it. Dropped without [`Self::commit`], it leaves everything
/// as it was.
///
/// [`limits::IO`]: outboard_protocol::deadline::limits::IO
pub trait Preparation: Send + fmt::Debug {
    /// What cannot be done if this fails, and what is being waited for, for a
    /// sentence: "cannot WHAT: it has not ended within 60 s".
    fn what(&self) -> &'static str;
    /// Does it, and takes its time. Nobody may wait for it any more when it is
    /// done.
    ///
    /// # Errors
    /// The change is refused for these.
    fn prepare(&mut self) -> io::Result<()>;
    /// Makes the change, on the session's thread.
    fn commit(self: Box<Self>);
}

/// What became of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Complete: return it with this many bytes written to its writable part.
    Done(u32),
    /// Under way: [`Queue::reap`] will answer it, or [`Queue::give_back`] will
    /// give it up.
    Deferred,
    /// Not now: leave it at the head of the ring until the queue's descriptor
    /// is readable or the driver kicks again.
    NotNow,
}

/// What a device has done for the requests of one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Bytes of data that the driver was given.
    pub read: u64,
    /// Bytes of data that the driver gave.
    pub written: u64,
    /// Requests that ended in an error, frames that were dropped.
    pub errors: u64,
}

/// The server of one queue. It lives as long as the program, and is given one
/// ring after another.
///
/// ```text
/// made ──► without a ring ──begin, map──► take, submit, reap ─┐
///               ▲                          ▲ └──── map ───────┘
///               └── map(no memory) ◄── end ┘ nothing in flight
/// ```
pub trait Queue: Send + 'static {
    /// A ring is about to be handed to it, whose driver has acknowledged
    /// `features`.
    ///
    /// # Errors
    /// What it needs is not to be had: the ring is not started, and its error
    /// eventfd tells.
    fn begin(&mut self, features: u64) -> io::Result<()> {
        let _ = features;
        Ok(())
    }
    /// Chains lie in this memory from now on: said after [`Self::begin`], again
    /// whenever regions are added, and without a region after [`Self::end`]. It
    /// has every mapping that the former one had while anything is in flight,
    /// and each stays mapped for as long as any clone of it is held. The counter of
    /// these clones is this worker's alone.
    fn map(&mut self, memory: Arc<Memory>);
    /// Takes one chain.
    fn take(&mut self, chain: &Chain) -> Outcome;
    /// The chain has killed one process after another: answers it as failed and does
    /// nothing with it. Returns the bytes written, and what it is, for the log.
    fn refuse(&mut self, chain: &Chain) -> (u32, String) {
        let _ = chain;
        (0, "a request".into())
    }
    /// Its chains wait for what comes from outside, and for as long as that takes:
    /// nothing is done with one when it is taken.
    fn is_patient(&self) -> bool {
        false
    }
    /// The batch is over: hand what was taken to the kernel.
    ///
    /// # Errors
    /// The engine is broken; the ring stops and its error eventfd tells.
    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }
    /// Readable when something deferred has completed, or when a chain that
    /// was answered [`Outcome::NotNow`] is worth another look. `None`, with
    /// nothing in flight: it is so at once.
    fn ready(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Answers every deferred chain that has completed: its head and the bytes
    /// written to its writable part. Consumes the readiness of [`Self::ready`].
    /// Also called when nothing has completed, and then cheap.
    ///
    /// # Errors
    /// The engine is broken; the ring stops and its error eventfd tells.
    fn reap(&mut self, done: &mut dyn FnMut(u16, u32)) -> io::Result<()> {
        let _ = done;
        Ok(())
    }
    /// The ring is to be handed back, which is said again and again until it is: gives up
    /// every deferred chain that
    /// nothing has been done with, the one taken last first. Those at the end
    /// of what was taken are available again, as if they had never been seen;
    /// one with a later chain answered already is answered with length 0.
    fn give_back(&mut self, back: &mut dyn FnMut(u16)) {
        let _ = back;
    }
    /// Number of chains deferred and not yet answered or given back. A ring is
    /// handed back when this is 0.
    fn in_flight(&self) -> usize {
        0
    }
    /// What it has done since this was last asked, to be counted.
    fn done(&mut self) -> Done {
        Done::default()
    }
    /// Number of requests that the kernel has just now: I/O that was begun by
    /// [`Self::submit`] and is not over. What the worker's own thread may have to wait
    /// for is in a [`system_call`](crate::pulse::system_call) instead.
    fn in_kernel(&self) -> usize {
        0
    }
    /// Whether the time that a chain is with the device says anything: not so for a
    /// buffer that waits for something to be received.
    fn is_timed(&self) -> bool {
        true
    }
    /// The ring is being handed back. Whatever is left of it, as in an engine that
    /// has failed, is over when this returns: the kernel is done with the guest's
    /// memory, or that stays mapped for good.
    fn end(&mut self) {}
}
