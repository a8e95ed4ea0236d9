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
//! Where session and worker meet is `desk`, the thread's life `life`; what happens with
//! one ring is in `service`, what a sleeping worker waits for in `watch`.

mod desk;
mod life;
mod lines;
mod service;
mod watch;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use outboard_protocol::Deadline;
use outboard_ring::{Memory, Ring};

use crate::device::{Device, Queue};
use crate::event::{Signal, Stuck};
use crate::page::Page;
use crate::polling::Budget;
use desk::{Desk, Place};
use life::Life;

pub use lines::{Kick, Lines};

/// A ring with its queue's lines, on its way to a worker or back.
pub type Handed = Box<(Lines, Ring)>;

/// Stack of a worker. Only what is touched is resident.
const STACK: usize = 256 * 1024;
/// How often a worker that is waited for is looked after: whether a lent descriptor
/// holds it.
const AGAIN: Duration = Duration::from_millis(10);
/// A device's queue must be there within this.
const START: Duration = Duration::from_secs(10);

/// All workers of a device, whose queues are `Q`. Only a process that ends may drop them
/// while they have rings.
pub struct Workers<Q> {
    workers: Vec<Worker<Q>>,
    /// Which of them serves each queue.
    of: Vec<usize>,
}

struct Worker<Q> {
    desk: Arc<Desk<Life<Q>>>,
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

impl<Q: Queue> Workers<Q> {
    /// Makes the threads and on each its queues; returns when all are there.
    /// `poll`: how long a worker polls at most before it sleeps; zero for not at
    /// all. `page`: where each worker shows its pulse.
    ///
    /// # Errors
    /// There is no thread to be had, or one of the queues is not.
    pub fn new<D: Device<Queue = Q>>(
        device: &Arc<D>,
        poll: Duration,
        page: Option<&Arc<Page>>,
    ) -> io::Result<Self> {
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
            this.workers
                .push(Worker::start(device, queues, poll, page.cloned())?);
        }
        let wait = Wait::until(Deadline::after(START), "made its queues");
        for worker in &this.workers {
            let made = worker.wait(&wait, Place::made);
            made.map_err(|Stuck| io::Error::from(io::ErrorKind::TimedOut))??;
        }
        Ok(this)
    }

    /// Hands rings to their workers. Returns those that are not served, and why; the
    /// others are.
    ///
    /// # Errors
    /// [`Stuck`] when a worker that is at work does not take its ring in time.
    pub fn serve(
        &mut self,
        rings: Vec<Handed>,
        features: u64,
        memory: &Memory,
    ) -> Result<Vec<(Handed, io::Error)>, Stuck> {
        let mut refused = Vec::new();
        let wait = Wait::until(Deadline::after(START), "taken its ring");
        for ring in rings {
            let (index, signals) = (ring.0.index, ring.0.signals());
            let worker = self.of(index)?;
            let serve = |life: &mut Life<Q>| life.serve(ring, features, memory);
            match worker.change(&wait, serve, Result::is_ok)? {
                Ok(()) => worker.signals.push((index, signals)),
                Err(why) => refused.push(why),
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
            self.of(*index)?.desk.want();
        }
        let wait = Wait::until(deadline, "handed its ring back");
        let (mut stopped, mut draining) = (Vec::new(), Vec::new());
        for index in queues {
            let stop = |life: &mut Life<Q>| life.stop(*index);
            match self.of(*index)?.change(&wait, stop, Option::is_none)? {
                Some(ring) => stopped.push(ring),
                None => draining.push(*index),
            }
        }
        for index in draining {
            let drained = |place: &mut Place<Life<Q>>| place.stopped(index);
            stopped.push(self.of(index)?.wait(&wait, drained)?);
        }
        for index in queues {
            self.of(*index)?.forget(*index);
        }
        Ok(stopped)
    }

    /// Gives every worker that has a ring the memory it goes on in, which keeps
    /// every mapping of the former; all of them use it when this returns.
    ///
    /// # Errors
    /// [`Stuck`] when one does not until `deadline`.
    pub fn map(&mut self, memory: &Memory, deadline: Deadline) -> Result<(), Stuck> {
        let wait = Wait::until(deadline, "taken the memory");
        let busy = self.workers.iter();
        let busy = busy.filter(|worker| !worker.signals.is_empty());
        busy.clone().for_each(|worker| worker.desk.want());
        for worker in busy {
            worker.change(&wait, |life| life.map(memory), |()| false)?;
        }
        Ok(())
    }

    /// Nobody waits for them any more: the process ends.
    pub fn abandon(&mut self) {
        self.workers
            .iter_mut()
            .for_each(|worker| worker.thread = None);
    }

    fn of(&mut self, index: u16) -> Result<&mut Worker<Q>, Stuck> {
        let worker = self.of.get(usize::from(index));
        worker.and_then(|at| self.workers.get_mut(*at)).ok_or(Stuck)
    }
}

impl<Q> Drop for Workers<Q> {
    fn drop(&mut self) {
        for worker in &self.workers {
            worker.desk.leave();
        }
        for worker in &mut self.workers {
            let _ = worker.thread.take().map(JoinHandle::join);
        }
    }
}

impl<Q: Queue> Worker<Q> {
    fn start<D>(
        device: &Arc<D>,
        queues: Vec<u16>,
        poll: Duration,
        page: Option<Arc<Page>>,
    ) -> io::Result<Self>
    where
        D: Device<Queue = Q>,
    {
        let desk = Arc::new(Desk::new()?);
        let name = format!("queue {}", queues.first().unwrap_or(&0));
        let (device, theirs) = (device.clone(), desk.clone());
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .stack_size(STACK)
            .spawn(move || life::live(device, &queues, Budget::new(poll), &theirs, page));
        let thread = thread.map_err(|error| {
            let why = format!(
                "no thread for {name} ({error}): allow more tasks (ulimit -u, TasksMax= of a \
                 service, pids.max of a control group)"
            );
            io::Error::new(error.kind(), why)
        })?;
        Ok(Self {
            desk,
            thread: Some(thread),
            name,
            signals: Vec::new(),
        })
    }

    /// Changes something of its life, as soon as it does without it; `wakes` says whether
    /// there is something new to look at for a worker that sleeps.
    fn change<T>(
        &self,
        wait: &Wait,
        change: impl FnOnce(&mut Life<Q>) -> T,
        wakes: impl FnOnce(&T) -> bool,
    ) -> Result<T, Stuck> {
        self.desk.want();
        let mut life = self.wait(wait, Place::life)?;
        let changed = change(&mut life);
        self.desk.give(life, wakes(&changed));
        Ok(changed)
    }

    /// Waits for something on its desk, and gets the thread out of every lent descriptor
    /// that holds it meanwhile. That it does not come is said, once in a process, which
    /// ends then.
    fn wait<T>(
        &self,
        wait: &Wait,
        mut find: impl FnMut(&mut Place<Life<Q>>) -> Option<T>,
    ) -> Result<T, Stuck> {
        let (name, awaited) = (&self.name, wait.awaited);
        loop {
            let left = wait.deadline.left();
            // What it leaves at its end is on the desk by then.
            let is_over = self.thread.as_ref().is_some_and(JoinHandle::is_finished);
            if let Some(found) = self.desk.wait(left.min(AGAIN), &mut find) {
                return Ok(found);
            }
            if is_over {
                log::error!("{name}: its thread has died before it has {awaited}");
                return Err(Stuck);
            }
            if wait.deadline.passed() {
                let seconds = wait.begin.elapsed().as_secs_f32();
                match self.desk.in_flight() {
                    0 => log::error!("{name}: it has not {awaited} within {seconds:.1} s"),
                    count => {
                        log::error!(
                            "{name}: {count} requests have not ended within {seconds:.1} s"
                        );
                    }
                }
                return Err(Stuck);
            }
            let signals = self.signals.iter().flat_map(|(_, signals)| signals);
            signals.for_each(|signal| signal.interrupt());
        }
    }

    /// It is not held in the lines of a queue any more.
    fn forget(&mut self, queue: u16) {
        self.signals.retain(|(index, _)| *index != queue);
    }
}

#[cfg(test)]
mod tests;
