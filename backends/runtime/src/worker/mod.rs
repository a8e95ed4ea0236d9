//! The threads that serve rings, each one ring or several that belong together.
//!
//! ```text
//! Workers::new: every thread, and on it the device's queues, once
//!
//!          serve(ring)                           last ring handed back
//! idle ───────────────► taking ◄──► polling ◄──► asleep ──────────────► idle
//!                          stop(queue): draining that ring, the others go on
//! ```
//! They live as long as the program: a ring that starts finds a thread that waits,
//! and its queue's engine made. A ring is handed to its worker by value and handed
//! back by value when it is stopped; nobody else touches it meanwhile. A worker
//! without a ring waits for nothing but the session.
//!
//! What session and worker say to one another is in `mail`, the thread's life in
//! `life`, what happens with one ring in `service`.

mod life;
mod lines;
mod mail;
mod service;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use outboard_protocol::Deadline;
use outboard_ring::Memory;

use crate::device::Device;
use crate::event::{Signal, Stuck};
use mail::{Answer, Command, Outbox};

pub use lines::{Kick, Lines};
pub use mail::Handed;

/// Stack of a worker. Only what is touched is resident.
const STACK: usize = 256 * 1024;
/// How often a worker that is waited for is looked after: whether a lent descriptor
/// holds it.
const AGAIN: Duration = Duration::from_millis(10);
/// A device's queue must be there within this.
const START: Duration = Duration::from_secs(10);

/// All workers of a device. Only a process that ends may drop them while they have
/// rings.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Worker>,
    /// Which of them serves each queue.
    of: Vec<usize>,
}

#[derive(Debug)]
struct Worker {
    outbox: Outbox,
    /// `None` when it is not waited for at its end.
    thread: Option<JoinHandle<()>>,
    name: String,
    /// In which it may be held, by the queue.
    signals: Vec<(u16, [Arc<Signal>; 2])>,
}

/// A wait for workers, one after another.
struct Wait {
    begin: Instant,
    deadline: Deadline,
    /// What each of them has not done yet, for a sentence.
    awaited: &'static str,
}

impl Wait {
    fn until(deadline: Deadline, awaited: &'static str) -> Self {
        Self {
            begin: Instant::now(),
            deadline,
            awaited,
        }
    }
}

impl Workers {
    /// Makes the threads and on each its queues; returns when all are there.
    /// `poll`: how long a worker polls at most before it sleeps; zero for not at
    /// all.
    ///
    /// # Errors
    /// There is no thread to be had, or one of the queues is not.
    pub fn new<D: Device>(device: &Arc<D>, poll: Duration) -> io::Result<Self> {
        let mut groups: BTreeMap<u16, Vec<u16>> = BTreeMap::new();
        for index in 0..device.queues() {
            groups.entry(device.worker(index)).or_default().push(index);
        }
        let mut this = Self {
            workers: Vec::new(),
            of: vec![0; usize::from(device.queues())],
        };
        for queues in groups.into_values() {
            for index in &queues {
                if let Some(of) = this.of.get_mut(usize::from(*index)) {
                    *of = this.workers.len();
                }
            }
            this.workers.push(Worker::start(device, queues, poll)?);
        }
        let wait = Wait::until(Deadline::after(START), "made its queues");
        for worker in &this.workers {
            match worker.answer(&wait) {
                Ok(Answer::Made(made)) => made?,
                _ => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        Ok(this)
    }

    /// Hands rings to their workers, and says so to each before it waits for any.
    /// Returns those that are not served, and why; the others are.
    ///
    /// # Errors
    /// [`Stuck`] when a worker has not answered in time.
    pub fn serve(
        &mut self,
        rings: Vec<Handed>,
        features: u64,
        memory: &Arc<Memory>,
    ) -> Result<Vec<(Handed, io::Error)>, Stuck> {
        let mut asked = Vec::new();
        for ring in rings {
            let (index, signals) = (ring.0.index, ring.0.signals());
            let worker = self.of(index)?;
            worker.signals.push((index, signals));
            let serve = Command::Serve(ring, features, memory.clone());
            worker.outbox.post(serve);
            asked.push(index);
        }
        let mut refused = Vec::new();
        let wait = Wait::until(Deadline::after(START), "taken its ring");
        for index in asked {
            let worker = self.of(index)?;
            if let Answer::Refused(ring, error) = worker.answer(&wait)? {
                worker.forget(ring.0.index);
                refused.push((ring, error));
            }
        }
        Ok(refused)
    }

    /// Stops the rings of these queues, which are served, side by side, and takes
    /// them back.
    ///
    /// # Errors
    /// [`Stuck`] when the device still has chains of them at `deadline`; how many,
    /// is said.
    pub fn stop(&mut self, queues: &[u16], deadline: Deadline) -> Result<Vec<Handed>, Stuck> {
        for index in queues {
            self.of(*index)?.outbox.post(Command::Stop(*index));
        }
        let wait = Wait::until(deadline, "handed its ring back");
        let mut stopped = Vec::new();
        for index in queues {
            let worker = self.of(*index)?;
            let Answer::Stopped(ring) = worker.answer(&wait)? else {
                return Err(Stuck);
            };
            worker.forget(ring.0.index);
            stopped.push(ring);
        }
        Ok(stopped)
    }

    /// Gives every worker that has a ring the memory it goes on in, which keeps
    /// every mapping of the former; returns when all of them use it.
    ///
    /// # Errors
    /// [`Stuck`] when one does not until `deadline`.
    pub fn map(&mut self, memory: &Arc<Memory>, deadline: Deadline) -> Result<(), Stuck> {
        let busy = self.workers.iter();
        let busy = busy.filter(|worker| !worker.signals.is_empty());
        for worker in busy.clone() {
            worker.outbox.post(Command::Map(memory.clone()));
        }
        let wait = Wait::until(deadline, "taken the memory");
        for worker in busy {
            worker.answer(&wait)?;
        }
        Ok(())
    }

    /// Nobody waits for them any more: the process ends.
    pub fn abandon(&mut self) {
        self.workers
            .iter_mut()
            .for_each(|worker| worker.thread = None);
    }

    fn of(&mut self, index: u16) -> Result<&mut Worker, Stuck> {
        let worker = self.of.get(usize::from(index));
        worker.and_then(|at| self.workers.get_mut(*at)).ok_or(Stuck)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in &self.workers {
            worker.outbox.post(Command::Leave);
        }
        for worker in &mut self.workers {
            let _ = worker.thread.take().map(JoinHandle::join);
        }
    }
}

impl Worker {
    fn start<D: Device>(device: &Arc<D>, queues: Vec<u16>, poll: Duration) -> io::Result<Self> {
        let (outbox, inbox) = mail::pair(queues.len())?;
        let name = format!("queue {}", queues.first().unwrap_or(&0));
        let device = device.clone();
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .stack_size(STACK)
            .spawn(move || life::live(device, &queues, poll, inbox));
        let thread = thread.map_err(|error| {
            let why = format!(
                "no thread for {name} ({error}): allow more tasks (ulimit -u, TasksMax= of a \
                 service, pids.max of a control group)"
            );
            io::Error::new(error.kind(), why)
        })?;
        Ok(Self {
            outbox,
            thread: Some(thread),
            name,
            signals: Vec::new(),
        })
    }

    /// Waits for an answer, and gets the thread out of every lent descriptor that
    /// holds it meanwhile. That it does not come is said, once in a process, which
    /// ends then.
    fn answer(&self, wait: &Wait) -> Result<Answer, Stuck> {
        loop {
            let (name, awaited) = (&self.name, wait.awaited);
            let left = wait.deadline.left();
            match self.outbox.answers.recv_timeout(left.min(AGAIN)) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => {
                    log::error!("{name}: its thread has died before it has {awaited}");
                    return Err(Stuck);
                }
                Err(RecvTimeoutError::Timeout) if !wait.deadline.passed() => {
                    let signals = self.signals.iter().flat_map(|(_, signals)| signals);
                    signals.for_each(|signal| signal.interrupt());
                }
                Err(RecvTimeoutError::Timeout) => {
                    let seconds = wait.begin.elapsed().as_secs_f32();
                    match self.outbox.in_flight() {
                        0 => log::error!("{name}: it has not {awaited} within {seconds:.1} s"),
                        count => log::error!(
                            "{name}: {count} requests have not ended within {seconds:.1} s"
                        ),
                    }
                    return Err(Stuck);
                }
            }
        }
    }

    /// It is not held in the lines of a queue any more.
    fn forget(&mut self, queue: u16) {
        self.signals.retain(|(index, _)| *index != queue);
    }
}

#[cfg(test)]
mod tests;
