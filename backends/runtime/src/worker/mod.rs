//! The thread that serves one ring, or several that belong together.
//!
//! ```text
//! start(rings) ──► taking ◄──► polling ◄──► asleep ──ask_to_stop──► draining ──► finish() = rings
//! ```
//! A worker owns its rings from start to finish; nobody else touches them. It
//! serves them in turn, and while it works their driver need not kick; only
//! when there is nothing left in any it asks for kicks, looks once more, and
//! sleeps. What happens with one ring is in `service`.

mod lines;
mod service;

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_protocol::Deadline;
use outboard_ring::Ring;

use crate::device::{Device, Memory, Queue};
use crate::event::{Event, Signal, Stuck};
use crate::polling::Budget;
use service::Service;

pub use lines::{Kick, Lines};

/// Stack of a worker. Only what is touched is resident.
const STACK: usize = 256 * 1024;
/// How often a worker that is waited for is looked after: whether a lent descriptor
/// holds it.
const AGAIN: Duration = Duration::from_millis(10);
/// How often a ring is looked at whose front-end lent no kick, and an engine
/// that has no descriptor to wait for.
const TICK: Duration = Duration::from_millis(1);

/// What a worker needs besides its rings.
#[derive(Debug)]
pub struct Setup<D> {
    /// The device.
    pub device: Arc<D>,
    /// The features acknowledged.
    pub features: u64,
    /// Guest memory, the same until the worker is stopped.
    pub memory: Arc<Memory>,
    /// How long to poll at most before sleeping; zero for not at all.
    pub poll: Duration,
}

#[derive(Debug)]
struct Control {
    stop: AtomicBool,
    wake: Event,
    /// When it was asked to stop.
    asked: OnceLock<Instant>,
    /// Chains that the device still had when it was last looked at since.
    in_flight: AtomicUsize,
}

/// Rings, each with its queue's lines.
pub type Rings = Vec<(Lines, Ring)>;

/// A running worker. Only a process that ends may drop it unfinished.
#[derive(Debug)]
pub struct Worker {
    control: Arc<Control>,
    back: Receiver<Rings>,
    thread: JoinHandle<()>,
    /// In which it may be held.
    signals: Vec<Arc<Signal>>,
}

/// Why a worker did not start.
#[derive(Debug)]
pub enum NotStarted {
    /// The rings are as they were.
    Refused(Rings, io::Error),
    /// See [`Stuck`].
    Stuck,
}

impl Worker {
    /// Hands `rings` to a new thread; returns when their device's queues exist.
    ///
    /// # Errors
    /// [`NotStarted::Refused`] when there is no thread to be had, or one of
    /// the queues is not.
    pub fn start<D: Device>(
        setup: Setup<D>,
        rings: Rings,
        deadline: Deadline,
    ) -> Result<Self, NotStarted> {
        let control = match Event::new() {
            Ok(wake) => Arc::new(Control {
                stop: AtomicBool::new(false),
                wake,
                asked: OnceLock::new(),
                in_flight: AtomicUsize::new(0),
            }),
            Err(error) => return Err(NotStarted::Refused(rings, error)),
        };
        let (give, take) = sync_channel::<Rings>(1);
        let (give_back, back) = sync_channel(1);
        let (report, started) = sync_channel(1);
        let theirs = control.clone();
        let first = rings.first().map_or(0, |(lines, _)| lines.index);
        let signals = rings.iter().map(|(lines, _)| lines.signals());
        let signals = signals.flatten().collect();
        let thread = std::thread::Builder::new()
            .name(format!("queue {first}"))
            .stack_size(STACK)
            .spawn(move || {
                if let Ok(mut rings) = take.recv() {
                    serve(&setup, &mut rings, &theirs, &report);
                    let _ = give_back.send(rings);
                }
            });
        let thread = match thread {
            Ok(thread) => thread,
            Err(error) => return Err(NotStarted::Refused(rings, error)),
        };
        if give.send(rings).is_err() {
            return Err(NotStarted::Stuck);
        }
        let worker = Self {
            control,
            back,
            thread,
            signals,
        };
        match worker.wait_for(&started, deadline) {
            Ok(Ok(())) => Ok(worker),
            Ok(Err(error)) => match worker.finish(deadline) {
                Ok(rings) => Err(NotStarted::Refused(rings, error)),
                Err(Stuck) => Err(NotStarted::Stuck),
            },
            Err(Stuck) => Err(NotStarted::Stuck),
        }
    }

    /// Waits for what the thread sends, and gets it out of every lent descriptor
    /// that holds it meanwhile.
    fn wait_for<T>(&self, from: &Receiver<T>, deadline: Deadline) -> Result<T, Stuck> {
        loop {
            match from.recv_timeout(deadline.left().min(AGAIN)) {
                Ok(value) => return Ok(value),
                Err(RecvTimeoutError::Timeout) if !deadline.passed() => {
                    self.signals.iter().for_each(|signal| signal.interrupt());
                }
                Err(_) => return Err(Stuck),
            }
        }
    }

    /// Asks it to take no more chains and to hand the rings back once the
    /// device has none left.
    pub fn ask_to_stop(&self) {
        self.control.asked.get_or_init(Instant::now);
        self.control.stop.store(true, Ordering::Release);
        self.control.wake.signal();
    }

    /// Stops it and takes the rings back.
    ///
    /// # Errors
    /// [`Stuck`] when the device still has chains of them at `deadline`; how many,
    /// is said.
    pub fn finish(self, deadline: Deadline) -> Result<Rings, Stuck> {
        self.ask_to_stop();
        let rings = self.wait_for(&self.back, deadline);
        let rings = rings.map_err(|_| self.tell_stuck())?;
        self.thread.join().map_err(|_| Stuck)?;
        Ok(rings)
    }
}

impl Worker {
    /// Said once in a process, which ends then.
    fn tell_stuck(&self) -> Stuck {
        let count = self.control.in_flight.load(Ordering::Acquire);
        let thread = self.thread.thread().name().unwrap_or_default();
        let asked = self
            .control
            .asked
            .get()
            .map_or(Duration::ZERO, Instant::elapsed);
        let seconds = asked.as_secs_f32();
        log::error!("{thread}: {count} requests have not ended within {seconds:.1} s");
        Stuck
    }
}

/// The thread's whole life.
fn serve<D: Device>(
    setup: &Setup<D>,
    rings: &mut Rings,
    control: &Control,
    report: &SyncSender<io::Result<()>>,
) {
    let services = rings
        .iter_mut()
        .map(|(lines, ring)| Service::new(setup, lines, ring));
    match services.collect() {
        Ok(services) => {
            let _ = report.send(Ok(()));
            let mut turns = Turns {
                services,
                control,
                budget: Budget::new(setup.poll),
            };
            turns.run();
        }
        Err(error) => {
            let _ = report.send(Err(error));
        }
    }
}

/// Rings that are served in turn.
struct Turns<'a, Q> {
    services: Vec<Service<'a, Q>>,
    control: &'a Control,
    budget: Budget,
}

impl<Q: Queue> Turns<'_, Q> {
    fn run(&mut self) {
        self.services.iter_mut().for_each(Service::disarm);
        loop {
            let stopping = self.control.stop.load(Ordering::Acquire);
            let turns = self.services.iter_mut();
            if turns.fold(false, |busy, service| service.round(stopping) | busy) {
                continue;
            }
            if stopping {
                let left = self.services.iter().map(Service::in_flight).sum();
                self.control.in_flight.store(left, Ordering::Release);
                if left == 0 {
                    break;
                }
            }
            if stopping || !self.poll_for_work() {
                self.sleep(stopping);
            }
        }
        // Whoever has the rings next may never run: leave kicks wanted.
        self.arm();
    }

    /// Asks for kicks. Whether there is something to do first.
    fn arm(&mut self) -> bool {
        let services = self.services.iter_mut();
        services.fold(false, |new, service| service.arm() | new)
    }

    /// Spins for as long as that has paid off lately. Whether there is work.
    fn poll_for_work(&mut self) -> bool {
        let budget = self.budget.current();
        if budget.is_zero() {
            return false;
        }
        let begin = Instant::now();
        while begin.elapsed() < budget {
            if self.services.iter_mut().any(Service::look) {
                return true;
            }
            if self.control.stop.load(Ordering::Relaxed) {
                return true;
            }
            if self.services.iter().all(Service::is_drained) {
                std::hint::spin_loop();
            } else {
                // The kernel may do the device's work on this processor, by
                // a thread of its own.
                std::thread::yield_now();
            }
        }
        false
    }

    /// Waits for a kick, the device, or the session.
    fn sleep(&mut self, stopping: bool) {
        if stopping || !self.arm() {
            if let Some(first) = self.services.first_mut() {
                first.slept();
            }
            let begin = Instant::now();
            self.wait(stopping);
            self.budget.slept(begin.elapsed());
        }
        if !stopping {
            self.services.iter_mut().for_each(Service::disarm);
        }
    }

    fn wait(&mut self, stopping: bool) {
        let wake = self.control.wake.as_fd();
        // A place that reports nothing. Once the session has been heard, its
        // descriptor stays readable, so it gets such a place too.
        let idle = || PollFd::new(wake, PollFlags::empty());
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![if stopping { idle() } else { readable(wake) }];
        for service in &self.services {
            let kick = service.kick(stopping);
            fds.push(kick.map_or_else(idle, |event| readable(event.as_fd())));
            fds.push(service.ready().map_or_else(idle, readable));
        }
        let mut services = self.services.iter();
        let timeout = if services.any(|service| service.is_blind(stopping)) {
            PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO)
        } else {
            PollTimeout::NONE
        };
        let result = poll(&mut fds, timeout);
        let woken: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        let (_, woken) = woken.split_first().unwrap_or((&false, &[]));
        for (service, woken) in self.services.iter_mut().zip(woken.chunks_exact(2)) {
            if woken.first() == Some(&true) {
                service.take_kick(stopping);
            }
            if woken.contains(&true) || service.is_blind(stopping) || result.is_err() {
                service.unblock();
            }
        }
    }
}

#[cfg(test)]
mod tests;
