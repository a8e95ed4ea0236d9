//! The thread that serves one ring.
//!
//! ```text
//! start(ring) ──► taking ◄──► polling ◄──► asleep ──ask_to_stop──► draining ──► finish() = ring
//! ```
//! A worker owns its ring from start to finish; nobody else touches it. It
//! takes a batch, hands it to the device, collects what has completed, returns
//! that to the driver with one move of the used index, and calls at most once.
//! While it works the driver need not kick; only when there is nothing left it
//! asks for kicks, looks once more, and sleeps. A ring that breaks is not
//! followed any more, but what the device has of it is still waited for.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_protocol::Deadline;

use crate::chain::Chain;
use crate::device::{Device, Memory, Outcome, Queue};
use crate::event::{Event, Signal};
use crate::polling::Budget;
use crate::ring::{Broken, Ring, View};

/// Stack of a worker. Only what is touched is resident.
const STACK: usize = 256 * 1024;
/// How often a ring is looked at whose front-end lent no kick, and an engine
/// that has no descriptor to wait for.
const TICK: Duration = Duration::from_millis(1);

/// How the driver announces chains.
#[derive(Clone, Debug)]
pub enum Kick {
    /// By this descriptor.
    Event(Arc<Event>),
    /// Not at all: the ring is looked at from time to time (vhost-user,
    /// SET_VRING_KICK, "invalid FD flag").
    Polled,
}

/// What a worker needs besides its ring.
#[derive(Debug)]
pub struct Setup<D> {
    /// The device.
    pub device: Arc<D>,
    /// Which of its queues this is.
    pub index: u16,
    /// The features acknowledged.
    pub features: u64,
    /// Guest memory, the same until the worker is stopped.
    pub memory: Arc<Memory>,
    /// The driver's side of notifications.
    pub kick: Kick,
    /// Signalled when the driver wants to hear of used chains.
    pub call: Arc<Signal>,
    /// Signalled when the ring breaks.
    pub err: Arc<Signal>,
    /// How long to poll at most before sleeping; zero for not at all.
    pub poll: Duration,
}

#[derive(Debug)]
struct Control {
    stop: AtomicBool,
    wake: Event,
}

/// A worker did not come to an end before its deadline, or died: its ring is
/// lost, and so is this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck;

/// A running worker. Only a process that ends may drop it unfinished.
#[derive(Debug)]
pub struct Worker {
    control: Arc<Control>,
    back: Receiver<Ring>,
    thread: JoinHandle<()>,
}

/// Why a worker did not start.
#[derive(Debug)]
pub enum NotStarted {
    /// The ring is as it was.
    Refused(Box<Ring>, io::Error),
    /// See [`Stuck`].
    Stuck,
}

impl Worker {
    /// Hands `ring` to a new thread; returns when its device's queue exists.
    ///
    /// # Errors
    /// [`NotStarted::Refused`] when there is no thread or no queue to be had.
    pub fn start<D: Device>(
        setup: Setup<D>,
        ring: Ring,
        deadline: Deadline,
    ) -> Result<Self, NotStarted> {
        let control = match Event::new() {
            Ok(wake) => Arc::new(Control {
                stop: AtomicBool::new(false),
                wake,
            }),
            Err(error) => return Err(NotStarted::Refused(Box::new(ring), error)),
        };
        let (give, take) = sync_channel::<Ring>(1);
        let (give_back, back) = sync_channel(1);
        let (report, started) = sync_channel(1);
        let theirs = control.clone();
        let name = format!("queue {}", setup.index);
        let thread = std::thread::Builder::new()
            .name(name)
            .stack_size(STACK)
            .spawn(move || {
                if let Ok(ring) = take.recv() {
                    let ring = serve(&setup, ring, &theirs, &report);
                    let _ = give_back.send(ring);
                }
            });
        let thread = match thread {
            Ok(thread) => thread,
            Err(error) => return Err(NotStarted::Refused(Box::new(ring), error)),
        };
        if give.send(ring).is_err() {
            return Err(NotStarted::Stuck);
        }
        let worker = Self {
            control,
            back,
            thread,
        };
        match started.recv_timeout(deadline.left()) {
            Ok(Ok(())) => Ok(worker),
            Ok(Err(error)) => match worker.finish(deadline) {
                Ok(ring) => Err(NotStarted::Refused(Box::new(ring), error)),
                Err(Stuck) => Err(NotStarted::Stuck),
            },
            Err(_) => Err(NotStarted::Stuck),
        }
    }

    /// Asks it to take no more chains and to hand the ring back once the
    /// device has none left.
    pub fn ask_to_stop(&self) {
        self.control.stop.store(true, Ordering::Release);
        self.control.wake.signal();
    }

    /// Stops it and takes the ring back.
    ///
    /// # Errors
    /// [`Stuck`] when the device still has chains of it at `deadline`.
    pub fn finish(self, deadline: Deadline) -> Result<Ring, Stuck> {
        self.ask_to_stop();
        let ring = self.back.recv_timeout(deadline.left()).map_err(|_| Stuck)?;
        self.thread.join().map_err(|_| Stuck)?;
        Ok(ring)
    }
}

/// The thread's whole life.
fn serve<D: Device>(
    setup: &Setup<D>,
    mut ring: Ring,
    control: &Control,
    report: &SyncSender<io::Result<()>>,
) -> Ring {
    let memory = setup.memory.clone();
    let layout = *ring.layout();
    let Some(view) = View::new(&memory, &layout) else {
        ring.break_off(Broken::Unreachable);
        setup.err.signal();
        let _ = report.send(Err(io::Error::other("the ring is not in guest memory")));
        return ring;
    };
    let queue = match setup.device.queue(setup.index, setup.features) {
        Ok(queue) => queue,
        Err(error) => {
            setup.err.signal();
            let _ = report.send(Err(error));
            return ring;
        }
    };
    let _ = report.send(Ok(()));
    let mut service = Service {
        setup,
        control,
        memory: &memory,
        view,
        ring,
        queue,
        chain: Chain::default(),
        blocked: false,
        engine_failed: false,
        budget: Budget::new(setup.poll),
    };
    service.run();
    service.ring
}

/// A ring at work.
struct Service<'a, D: Device> {
    setup: &'a Setup<D>,
    control: &'a Control,
    memory: &'a Arc<Memory>,
    view: View<'a>,
    ring: Ring,
    queue: D::Queue,
    chain: Chain,
    /// The device does not want the chain at the head of the ring yet.
    blocked: bool,
    /// Nothing more can be expected of the device.
    engine_failed: bool,
    budget: Budget,
}

impl<D: Device> Service<'_, D> {
    fn run(&mut self) {
        self.attempt(|service| service.ring.disarm(&service.view));
        loop {
            let stopping = self.control.stop.load(Ordering::Acquire);
            if stopping && !self.engine_failed {
                self.give_back();
            }
            if self.round(stopping) {
                continue;
            }
            if stopping && (self.engine_failed || self.queue.in_flight() == 0) {
                break;
            }
            if stopping || !self.poll_for_work() {
                self.sleep(stopping);
            }
        }
        // Whoever has the ring next may never run: leave kicks wanted.
        if self.ring.broken().is_none() {
            self.attempt(|service| service.ring.arm(&service.view).map(drop));
        }
    }

    /// Takes, submits, collects, returns. Whether there was anything to do.
    fn round(&mut self, stopping: bool) -> bool {
        let mut busy = false;
        if !self.blocked && self.ring.broken().is_none() {
            let taken = self.attempt(|service| service.take_batch(stopping));
            busy |= taken.unwrap_or(false);
        }
        busy |= self.collect();
        let call = self.attempt(|service| service.ring.publish(&service.view));
        if call.unwrap_or(false) {
            self.setup.call.signal();
        }
        busy
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
        let (ring, view) = (&mut self.ring, &self.view);
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
        let ring = &mut self.ring;
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

    /// Spins for as long as that has paid off lately. Whether there is work.
    fn poll_for_work(&mut self) -> bool {
        let budget = self.budget.current();
        if budget.is_zero() || self.ring.broken().is_some() {
            return false;
        }
        let begin = Instant::now();
        while begin.elapsed() < budget {
            let new = self.attempt(|service| service.ring.look(&service.view));
            if new != Some(false) {
                self.blocked = false;
                return true;
            }
            if self.queue.in_flight() > 0 && self.collect() {
                return true;
            }
            if self.control.stop.load(Ordering::Relaxed) {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// Waits for a kick, the device, or the session.
    fn sleep(&mut self, stopping: bool) {
        let following = !stopping && self.ring.broken().is_none();
        if following {
            let new = self.attempt(|service| service.ring.arm(&service.view));
            if new != Some(false) {
                self.blocked = false;
                self.attempt(|service| service.ring.disarm(&service.view));
                return;
            }
        }
        self.ring.tally.sleeps += 1;
        let begin = Instant::now();
        self.wait(stopping, following);
        self.budget.slept(begin.elapsed());
        if following {
            self.attempt(|service| service.ring.disarm(&service.view));
        }
    }

    fn wait(&mut self, stopping: bool, following: bool) {
        let ready = (!self.engine_failed).then(|| self.queue.ready()).flatten();
        let kick = match &self.setup.kick {
            Kick::Event(event) if following => Some(event),
            _ => None,
        };
        let blind = (following && kick.is_none())
            || (ready.is_none() && !self.engine_failed && self.queue.in_flight() > 0);
        let wake = self.control.wake.as_fd();
        // A place that reports nothing. Once the session has been heard, its
        // descriptor stays readable, so it gets such a place too.
        let idle = || PollFd::new(wake, PollFlags::empty());
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = [
            if stopping { idle() } else { readable(wake) },
            kick.map_or_else(idle, |event| readable(event.as_fd())),
            ready.map_or_else(idle, readable),
        ];
        let tick = PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO);
        let timeout = if blind { tick } else { PollTimeout::NONE };
        let result = poll(&mut fds, timeout);
        let [_, kicked, device] = fds.map(|fd| fd.any().unwrap_or(false));
        if kicked && kick.is_some_and(|event| !event.clear()) {
            // A pipe whose other end is closed. It must not keep this thread busy.
            std::thread::sleep(TICK);
        }
        self.blocked &= !(kicked || device || blind || result.is_err());
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
            self.setup.err.signal();
        }
        self.ring.break_off(why);
    }
}

#[cfg(test)]
mod tests;
