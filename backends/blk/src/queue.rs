//! One queue of a disk: chains in, requests through the engine, answers out.
//!
//! Its engine is made once, on its worker's thread, and serves one ring after
//! another; one that has failed is made anew for the next ring.
//!
//! ```text
//! take ──► Done at once (refused, identify, a disk that is not there)
//!   └────► Deferred: pending[id], its job in the engine ⟲ ──reap──► answer
//!                    or waiting for a bounce buffer
//!                    or failed and held back ([`crate::hold`])
//! ```

mod failed;
mod job;

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use outboard_log::rarely;
use outboard_runtime::chain::Chain;
use outboard_runtime::device::{Done, Memory, Outcome, Queue};
use outboard_runtime::guest_buffers::GuestBuffers;
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;

use self::failed::Held;
use crate::capacity::Reach;
use crate::data::{BOUNCE, Bounce};
use crate::disk::Disk;
use crate::engine::{Completion, Engine};
use crate::hold::{Attempt, Fate, Hold};
use crate::request::{self, Operation, Refusal, Reply, Request, Status};
use crate::task::{Rules, Step, Task};

/// Bounce buffers of a queue. Requests beyond wait for one.
const BOUNCES: usize = 2;
/// Lists of buffers kept for reuse.
const SPARE: usize = 64;

/// See the module.
pub struct BlkQueue {
    disk: Arc<Disk>,
    engine: Box<dyn Engine>,
    /// It has failed, and is not used for another ring.
    engine_failed: bool,
    /// Where the chains lie.
    memory: Arc<Memory>,
    /// The driver has negotiated FLUSH.
    flushes: bool,
    /// Requests under way, by the id of their job.
    pending: Vec<Option<Pending>>,
    /// Ids that are free.
    free: Vec<usize>,
    /// Requests that wait for a bounce buffer, in order.
    waiting: VecDeque<usize>,
    bounces: Vec<Bounce>,
    bounces_made: usize,
    spare: Vec<GuestBuffers>,
    completions: Vec<Completion>,
    /// How far the jobs reach that the engine has.
    reach: Reach,
    /// What has not been counted yet.
    done: Done,
    /// Those that have failed, where they are held back.
    hold: Option<Hold<Held>>,
    /// How many requests there were.
    requests: u64,
    /// The ring is to be handed back.
    stopping: bool,
}

#[derive(Debug)]
struct Pending {
    reply: Reply,
    task: Task,
    /// Which request of its queue it is.
    number: u64,
    /// Of its job.
    attempt: Attempt,
}

impl std::fmt::Debug for BlkQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("BlkQueue");
        debug.field("in_flight", &self.in_flight());
        debug.finish_non_exhaustive()
    }
}

impl BlkQueue {
    /// A queue of `disk`, by way of `engine`.
    pub fn new(disk: Arc<Disk>, engine: Box<dyn Engine>) -> Self {
        let reach = Reach::new(disk.capacity(), disk.queue_size());
        Self {
            disk,
            engine,
            engine_failed: false,
            memory: Arc::default(),
            flushes: false,
            pending: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            bounces: Vec::new(),
            bounces_made: 0,
            spare: Vec::new(),
            completions: Vec::new(),
            reach,
            done: Done::default(),
            hold: None,
            requests: 0,
            stopping: false,
        }
    }

    /// Begins a request: its answer, or `None` when it is under way.
    fn enter(&mut self, request: Request<'_>) -> Option<(u16, u32)> {
        let mut data = self.spare.pop().unwrap_or_default();
        if data.extend(&self.memory, request.data()).is_err() {
            self.keep(data);
            self.count(Status::IoErr, 0, 0);
            return Some(request.reply.finish(&self.memory, Status::IoErr, 0));
        }
        let (reply, aligned) = (request.reply, self.disk.takes(&data));
        let task = match request.operation {
            Operation::Read(range) => Task::read(range.offset, data),
            Operation::Write(range) => Task::write(range.offset, data),
            Operation::Discard(segments) => Task::discard(segments),
            Operation::WriteZeroes(segments) => Task::write_zeroes(segments),
            // Nothing is ever changed through a read-only descriptor.
            Operation::Flush if self.disk.limits().read_only => {
                return Some(reply.finish(&self.memory, Status::Ok, 0));
            }
            Operation::Flush => Task::flush(),
            Operation::Identify(length) => {
                data.copy_from(0, self.disk.serial().get(..length).unwrap_or_default());
                return Some(reply.finish(&self.memory, Status::Ok, length as u64));
            }
        };
        self.requests = self.requests.wrapping_add(1);
        let number = self.requests;
        let mut pending = Pending {
            reply,
            task,
            number,
            attempt: Attempt::default(),
        };
        let id = self.id();
        if !aligned {
            let Some(bounce) = self.bounce() else {
                self.put(id, pending);
                self.waiting.push_back(id);
                return None;
            };
            pending.task.give(bounce);
        }
        self.start(id, pending)
    }

    fn start(&mut self, id: usize, mut pending: Pending) -> Option<(u16, u32)> {
        let step = pending.task.start(self.rules());
        self.drive(id, pending, step)
    }

    /// Goes on until the engine has a job or the request is answered.
    fn drive(&mut self, id: usize, mut pending: Pending, mut step: Step) -> Option<(u16, u32)> {
        loop {
            match step {
                Step::Done(status) => {
                    self.free.push(id);
                    let written = pending.task.written();
                    self.count(status, written, pending.task.gave());
                    let (data, bounce) = pending.task.dismantle();
                    data.into_iter().for_each(|data| self.keep(data));
                    self.bounces.extend(bounce);
                    return Some(pending.reply.finish(&self.memory, status, written));
                }
                Step::Next(job) => match self.attempt(id, &mut pending, job) {
                    Some(next) => step = next,
                    None => {
                        self.put(id, pending);
                        return None;
                    }
                },
                Step::Held(failed) => match self.fate(pending.attempt, &failed) {
                    Fate::Again => step = Step::Next(failed.job),
                    Fate::Held => {
                        self.keep_back(id, pending, failed);
                        return None;
                    }
                    Fate::Over if self.is_leaving() => {
                        self.leave(id, pending, failed);
                        return None;
                    }
                    Fate::Over => step = self.report(&mut pending, failed),
                },
            }
        }
    }

    /// Counts a request that has ended.
    fn count(&mut self, status: Status, read: u64, written: u64) {
        let Done {
            read: reads,
            written: writes,
            errors,
        } = &mut self.done;
        *reads = reads.wrapping_add(read);
        match status {
            Status::Ok => *writes = writes.wrapping_add(written),
            Status::IoErr | Status::Unsupported => *errors = errors.wrapping_add(1),
        }
    }

    fn rules(&self) -> Rules<'_> {
        self.disk.rules(self.flushes)
    }

    /// A free id, below the number of requests under way.
    fn id(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.pending.push(None);
            self.pending.len().saturating_sub(1)
        })
    }

    fn put(&mut self, id: usize, pending: Pending) {
        if let Some(place) = self.pending.get_mut(id) {
            *place = Some(pending);
        }
    }

    fn keep(&mut self, mut data: GuestBuffers) {
        // It keeps hold of the memory, which the next one needs.
        data.clear();
        if self.spare.len() < SPARE {
            self.spare.push(data);
        }
    }

    fn bounce(&mut self) -> Option<Bounce> {
        if self.bounces.is_empty() && self.bounces_made < BOUNCES {
            self.bounces_made = self.bounces_made.saturating_add(1);
            return Some(Bounce::new(BOUNCE));
        }
        self.bounces.pop()
    }

    /// Notes and says that the engine has failed; the driver sees its ring stand
    /// still.
    fn note(&mut self, result: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &result {
            self.engine_failed = true;
            // A guest can start its queues as often as it likes.
            rarely!(
                error,
                "a queue of the disk is not served any more until its driver resets it, its \
                 engine failed: {error}"
            );
        }
        result
    }

    /// Gives bounce buffers that have come back to those who wait.
    fn feed(&mut self, done: &mut dyn FnMut(u16, u32)) {
        while !self.waiting.is_empty() {
            let Some(bounce) = self.bounces.pop() else {
                return;
            };
            let next = self.waiting.pop_front();
            let pending = next.and_then(|id| Some((id, self.pending.get_mut(id)?.take()?)));
            let Some((id, mut pending)) = pending else {
                self.bounces.push(bounce);
                continue;
            };
            pending.task.give(bounce);
            if let Some((head, used)) = self.start(id, pending) {
                done(head, used);
            }
        }
    }
}

impl Queue for BlkQueue {
    fn begin(&mut self, features: u64) -> io::Result<()> {
        if self.engine_failed {
            self.engine = self.disk.engine()?;
            self.engine_failed = false;
            if let Some(hold) = &self.hold {
                hold.follow(self.engine.ready())?;
            }
        }
        self.stopping = false;
        self.flushes = features & (1 << VIRTIO_BLK_F_FLUSH) != 0;
        Ok(())
    }

    fn map(&mut self, memory: Arc<Memory>) {
        self.memory = memory;
    }

    fn take(&mut self, chain: &Chain) -> Outcome {
        // The ring has no more chains than this; whoever says otherwise waits.
        if self.in_flight() >= usize::from(self.disk.queue_size()) {
            return Outcome::NotNow;
        }
        let answer = match Request::parse(&self.memory, chain, &self.disk.limits()) {
            Ok(request) => self.enter(request),
            Err(Refusal::Status(reply, status)) => {
                self.count(status, 0, 0);
                Some(reply.finish(&self.memory, status, 0))
            }
            Err(Refusal::NoStatus) => Some((chain.head, 0)),
        };
        answer.map_or(Outcome::Deferred, |(_, used)| Outcome::Done(used))
    }

    fn refuse(&mut self, chain: &Chain) -> (u32, String) {
        request::refuse(&self.memory, chain)
    }

    fn submit(&mut self) -> io::Result<()> {
        let result = self.engine.submit();
        self.note(result)
    }

    fn ready(&self) -> Option<BorrowedFd<'_>> {
        let engine = self.engine.ready()?;
        Some(self.hold.as_ref().map_or(engine, Hold::ready))
    }

    fn reap(&mut self, done: &mut dyn FnMut(u16, u32)) -> io::Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        let result = self.engine.reap(&mut completions);
        for Completion { id, job, result } in completions.drain(..) {
            self.reach.leave(id);
            let Some(mut pending) = self.pending.get_mut(id).and_then(Option::take) else {
                continue;
            };
            let step = pending.task.complete(job, result, self.rules());
            if let Some((head, used)) = self.drive(id, pending, step) {
                done(head, used);
                self.feed(done);
            }
        }
        self.completions = completions;
        self.release(done);
        let result = result.and_then(|()| self.engine.submit());
        self.note(result)
    }

    fn done(&mut self) -> Done {
        std::mem::take(&mut self.done)
    }

    fn in_kernel(&self) -> usize {
        self.engine.in_kernel()
    }

    /// Nothing of what it has is untouched; but what is held back is not waited for.
    fn give_back(&mut self, _: &mut dyn FnMut(u16)) {
        self.stopping = true;
    }

    fn in_flight(&self) -> usize {
        self.pending.len().saturating_sub(self.free.len())
    }

    /// Waits until the kernel is done with the guest's memory. What then
    /// remains of a request is not done, and nobody is told; but a sync that
    /// has failed is remembered.
    fn end(&mut self) {
        self.finish_jobs();
        // A queue without a ring takes no room.
        (self.pending, self.free) = (Vec::new(), Vec::new());
        (self.waiting, self.spare) = (VecDeque::new(), Vec::new());
        (self.bounces, self.bounces_made) = (Vec::new(), 0);
        if let Some(hold) = &mut self.hold {
            drop(hold.take_all());
        }
    }
}

impl Drop for BlkQueue {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests;
