//! A worker's thread: from its queues to its end.
//!
//! ```text
//! live ──► queues made ──► serve all rings in turn ◄──────────────┐
//!                            │ a command, a ring drained          │
//!                            └──► hand back, obey (begin, map) ───┘
//! ```
//! It serves its rings in turn, and while it works their driver need not kick;
//! only when there is nothing left in any it asks for kicks, looks once more, and
//! sleeps.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_ring::{Broken, Memory, View};

use super::mail::{Answer, Command, Handed, Inbox};
use super::service::{Served, Service};
use crate::device::{Device, Queue};
use crate::polling::Budget;

/// How often a ring is looked at whose front-end lent no kick, and an engine
/// that has no descriptor to wait for.
const TICK: Duration = Duration::from_millis(1);

/// One of the device's queues, and its ring while one is served.
struct Seat<Q> {
    index: u16,
    queue: Q,
    served: Option<Served>,
}

/// What a worker has.
struct Life<Q> {
    seats: Vec<Seat<Q>>,
    /// That of every ring here, with a counter of its own; without a region while
    /// there is no ring, so that nothing stays mapped for it.
    memory: Arc<Memory>,
    inbox: Inbox,
    budget: Budget,
}

/// The thread's whole life: makes the queues, says so, and serves until it is to
/// leave.
pub(super) fn live<D: Device>(device: Arc<D>, queues: &[u16], poll: Duration, inbox: Inbox) {
    // Of a list that grows by itself, most would be room that nobody needs.
    let mut seats = Vec::with_capacity(queues.len());
    let made = queues.iter().try_for_each(|index| {
        seats.push(seat(&*device, *index)?);
        Ok(())
    });
    drop(device);
    match made {
        Err(error) => inbox.answer(Answer::Made(Err(error))),
        Ok(()) => {
            inbox.answer(Answer::Made(Ok(())));
            let life = Life {
                seats,
                memory: Arc::default(),
                inbox,
                budget: Budget::new(poll),
            };
            life.run();
        }
    }
}

fn seat<D: Device>(device: &D, index: u16) -> io::Result<Seat<D::Queue>> {
    let queue = device.queue(index).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot make queue {index}: {error}"))
    })?;
    Ok(Seat {
        index,
        queue,
        served: None,
    })
}

impl<Q: Queue> Life<Q> {
    fn run(mut self) {
        loop {
            self.take_turns();
            self.hand_back();
            let commands: Vec<_> = self.inbox.open().collect();
            for command in commands {
                match command {
                    Command::Serve(ring, features, memory) => self.serve(ring, features, &memory),
                    Command::Stop(index) => self.stop(index),
                    Command::Map(memory) => self.map(&memory),
                    Command::Leave => return,
                }
            }
        }
    }

    /// Serves the rings until there is a command, or one of them is drained.
    fn take_turns(&mut self) {
        let mut services = Vec::with_capacity(self.seats.len());
        let seats = self.seats.iter_mut();
        services.extend(seats.filter_map(|seat| {
            let served = seat.served.as_mut()?;
            let Some(view) = View::new(&self.memory, served.ring.layout()) else {
                // No memory ever comes that does not have it.
                served.lose(Broken::Unreachable);
                return None;
            };
            Some(Service::new(served, view, &self.memory, &mut seat.queue))
        }));
        let mut turns = Turns {
            services,
            inbox: &self.inbox,
            budget: &mut self.budget,
        };
        turns.run();
    }

    /// Hands drained rings back. Nothing of the guest's memory is held for them any
    /// more by the time that anybody knows.
    fn hand_back(&mut self) {
        let mut drained = Vec::new();
        for seat in &mut self.seats {
            if let Some(served) = seat.served.take_if(|served| served.is_drained()) {
                seat.queue.end();
                seat.queue.map(Arc::default());
                drained.push(served);
            }
        }
        self.let_go();
        for served in drained {
            self.inbox.count(0);
            let ring = Box::new((served.lines, served.ring));
            self.inbox.answer(Answer::Stopped(ring));
        }
    }

    fn is_idle(&self) -> bool {
        self.seats.iter().all(|seat| seat.served.is_none())
    }

    /// Without a ring, no memory is held.
    fn let_go(&mut self) {
        if self.is_idle() {
            self.memory = Arc::default();
        }
    }

    fn serve(&mut self, mut ring: Handed, features: u64, memory: &Memory) {
        if self.is_idle() {
            // Otherwise it is the same: what was added has been told.
            self.memory = Arc::new(memory.clone());
        }
        let begun = self.begin(&mut ring, features);
        let answer = match (begun, self.seat(ring.0.index)) {
            (Ok(memory), Some(seat)) => {
                seat.queue.map(memory);
                seat.served = Some(Served::new(*ring));
                Answer::Served
            }
            (begun, _) => {
                ring.0.tell_error();
                let none = || io::Error::other("the worker has no such queue");
                Answer::Refused(ring, begun.err().unwrap_or_else(none))
            }
        };
        self.let_go();
        self.inbox.answer(answer);
    }

    /// Makes a queue ready for a ring; returns the memory for it.
    fn begin(&mut self, ring: &mut Handed, features: u64) -> io::Result<Arc<Memory>> {
        if View::new(&self.memory, ring.1.layout()).is_none() {
            ring.1.break_off(Broken::Unreachable);
            return Err(io::Error::other("the ring is not in guest memory"));
        }
        let memory = self.memory.clone();
        if let Some(seat) = self.seat(ring.0.index) {
            seat.queue.begin(features)?;
        }
        Ok(memory)
    }

    fn stop(&mut self, index: u16) {
        let served = self.seat(index).and_then(|seat| seat.served.as_mut());
        served.into_iter().for_each(Served::ask_to_stop);
    }

    fn map(&mut self, memory: &Memory) {
        self.memory = Arc::new(memory.clone());
        for seat in self.seats.iter_mut().filter(|seat| seat.served.is_some()) {
            seat.queue.map(self.memory.clone());
        }
        self.inbox.answer(Answer::Mapped);
    }

    fn seat(&mut self, index: u16) -> Option<&mut Seat<Q>> {
        self.seats.iter_mut().find(|seat| seat.index == index)
    }
}

/// Rings that are served in turn.
struct Turns<'a, Q> {
    services: Vec<Service<'a, Q>>,
    inbox: &'a Inbox,
    budget: &'a mut Budget,
}

impl<Q: Queue> Turns<'_, Q> {
    fn run(&mut self) {
        self.services.iter_mut().for_each(Service::disarm);
        while !self.inbox.is_waiting() {
            let (mut busy, mut drained) = (false, false);
            for service in &mut self.services {
                let worked = service.round();
                busy |= worked;
                drained |= !worked && service.settle();
            }
            let stopping = self.services.iter().filter(|service| service.is_stopping());
            if stopping.clone().count() > 0 {
                self.inbox.count(stopping.map(Service::in_flight).sum());
            }
            if drained {
                return;
            }
            if !busy && !self.poll_for_work() {
                self.sleep();
            }
        }
    }

    /// Spins for as long as that has paid off lately. Whether there is work.
    fn poll_for_work(&mut self) -> bool {
        let budget = self.budget.current();
        if budget.is_zero() || self.services.iter().all(Service::is_stopping) {
            return false;
        }
        let begin = Instant::now();
        while begin.elapsed() < budget {
            if self.services.iter_mut().any(Service::look) {
                return true;
            }
            if self.inbox.is_waiting() {
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
    fn sleep(&mut self) {
        let services = self.services.iter_mut();
        if !services.fold(false, |new, service| service.arm() | new) {
            if let Some(first) = self.services.first_mut() {
                first.slept();
            }
            let begin = Instant::now();
            self.wait();
            self.budget.slept(begin.elapsed());
        }
        self.services.iter_mut().for_each(Service::disarm);
    }

    fn wait(&mut self) {
        let wake = self.inbox.wake();
        // A place that reports nothing.
        let idle = || PollFd::new(wake.as_fd(), PollFlags::empty());
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![readable(wake.as_fd())];
        for service in &self.services {
            let kick = service.kick();
            fds.push(kick.map_or_else(idle, |event| readable(event.as_fd())));
            fds.push(service.ready().map_or_else(idle, readable));
        }
        let timeout = if self.services.iter().any(Service::is_blind) {
            PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO)
        } else {
            PollTimeout::NONE
        };
        let result = poll(&mut fds, timeout);
        let woken: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        let (told, woken) = woken.split_first().unwrap_or((&false, &[]));
        if *told {
            // Commands are told by their being there.
            wake.clear();
        }
        for (service, woken) in self.services.iter_mut().zip(woken.chunks_exact(2)) {
            if woken.first() == Some(&true) {
                service.take_kick();
            }
            if woken.contains(&true) || service.is_blind() || result.is_err() {
                service.unblock();
            }
        }
    }
}
