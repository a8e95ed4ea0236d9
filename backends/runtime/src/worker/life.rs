//! A worker's thread: from its queues to its end.
//!
//! ```text
//! live ──► queues made ──► serve all rings in turn ──► drained rings handed back ──┐
//!                              ▲                                                   │
//!                              └── life taken again ◄── wait ◄── life put on the desk
//! ```
//! It serves its rings in turn, and while it works their driver need not kick;
//! only when there is nothing left in any it asks for kicks, looks once more, and
//! sleeps. What it has, its life, is the session's to change meanwhile.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use outboard_ring::{Broken, Memory, View};

use super::Handed;
use super::desk::Desk;
use super::service::{Served, Service};
use super::watch::{Bell, Watch};
use crate::device::{Device, Queue};
use crate::page::Page;
use crate::polling::Budget;
use crate::pulse;

/// One of the device's queues, and its ring while one is served.
struct Seat<Q> {
    index: u16,
    queue: Q,
    /// That of its ring.
    bell: Bell,
    served: Option<Served>,
}

/// What a worker has.
pub(super) struct Life<Q> {
    seats: Vec<Seat<Q>>,
    /// That of every ring here, with a counter of its own; without a region while
    /// there is no ring, so that nothing stays mapped for it.
    memory: Arc<Memory>,
    budget: Budget,
}

/// Why a worker puts its life on the desk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// The session wants it.
    Wanted,
    /// There is nothing to do.
    Sleep,
}

/// The thread's whole life: makes the queues, says so, and serves until it is to
/// leave.
pub(super) fn live<D: Device>(
    device: Arc<D>,
    queues: &[u16],
    budget: Budget,
    desk: &Desk<Life<D::Queue>>,
    page: Option<Arc<Page>>,
) {
    if let Some(page) = page {
        pulse::begin(page, queues);
    }
    // Of a list that grows by itself, most would be room that nobody needs.
    let mut seats = Vec::with_capacity(queues.len());
    let made = queues.iter().try_for_each(|index| {
        seats.push(seat(&*device, *index)?);
        Ok(())
    });
    drop(device);
    match made {
        Err(error) => desk.fail(error),
        Ok(()) => run(
            Box::new(Life {
                seats,
                memory: Arc::default(),
                budget,
            }),
            desk,
        ),
    }
}

fn seat<D: Device>(device: &D, index: u16) -> io::Result<Seat<D::Queue>> {
    let queue = device.queue(index).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot make queue {index}: {error}"))
    })?;
    Ok(Seat {
        index,
        queue,
        bell: Bell::new()?,
        served: None,
    })
}

fn run<Q: Queue>(mut life: Box<Life<Q>>, desk: &Desk<Life<Q>>) {
    let mut watch = Watch::new(desk.wake());
    loop {
        let pause = life.work(desk, &mut watch);
        // Whoever has its life meanwhile may take its time.
        pulse::sleep();
        desk.put(life, pause == Pause::Sleep);
        let begin = Instant::now();
        if pause == Pause::Sleep {
            watch.wait();
        }
        let Some(again) = desk.take() else {
            return;
        };
        life = again;
        if pause == Pause::Sleep {
            life.budget.slept(begin.elapsed());
            life.awake(&watch);
        }
    }
}

// What the worker does with it.
impl<Q: Queue> Life<Q> {
    /// Serves the rings until there is nothing to do, or the session wants them.
    fn work(&mut self, desk: &Desk<Life<Q>>, watch: &mut Watch) -> Pause {
        loop {
            let mut turns = self.turns(desk);
            turns.services.iter_mut().for_each(Service::disarm);
            let pause = turns.run(watch);
            self.hand_back(desk);
            if let Some(pause) = pause {
                return pause;
            }
        }
    }

    fn turns<'a>(&'a mut self, desk: &'a Desk<Life<Q>>) -> Turns<'a, Q> {
        let mut services = Vec::with_capacity(self.seats.len());
        let seats = self.seats.iter_mut().enumerate();
        services.extend(seats.filter_map(|(place, seat)| {
            let served = seat.served.as_mut()?;
            let Some(view) = View::new(&self.memory, served.ring.layout()) else {
                // No memory ever comes that does not have it.
                served.lose(Broken::Unreachable);
                return None;
            };
            Some(Service {
                place,
                lines: &mut served.lines,
                memory: &self.memory,
                view,
                ring: &mut served.ring,
                queue: &mut seat.queue,
                bell: &seat.bell,
                state: &mut served.state,
            })
        }));
        Turns {
            services,
            desk,
            budget: self.budget,
        }
    }

    /// Hands drained rings back. Nothing of the guest's memory is held for them any
    /// more by the time that anybody knows.
    fn hand_back(&mut self, desk: &Desk<Life<Q>>) {
        let mut drained = Vec::new();
        for seat in &mut self.seats {
            if seat.served.as_ref().is_some_and(Served::is_drained) {
                drained.extend(seat.leave());
            }
        }
        self.let_go();
        for ring in drained {
            desk.count(0);
            desk.hand_back(ring);
        }
    }

    /// Notes what has woken the worker.
    fn awake(&mut self, watch: &Watch) {
        for (place, seat) in self.seats.iter_mut().enumerate() {
            if let Some(served) = &mut seat.served {
                served.awake(watch.found(place));
            }
        }
    }
}

// What the session does with it.
impl<Q: Queue> Life<Q> {
    /// Takes a ring in, of a driver with these features.
    ///
    /// # Errors
    /// The ring is as it was, but that it may be broken.
    pub fn serve(
        &mut self,
        mut ring: Handed,
        features: u64,
        memory: &Memory,
    ) -> Result<(), (Handed, io::Error)> {
        if self.is_idle() {
            // Otherwise it is the same: what was added has been told.
            self.memory = Arc::new(memory.clone());
        }
        match self.begin(&mut ring, features) {
            Ok(seat) => {
                seat.served = Some(Served::new(*ring));
                Ok(())
            }
            Err(why) => {
                ring.0.err.signal_aside();
                self.let_go();
                Err((ring, why))
            }
        }
    }

    /// Makes a queue ready for a ring.
    fn begin(&mut self, ring: &mut Handed, features: u64) -> io::Result<&mut Seat<Q>> {
        if View::new(&self.memory, ring.1.layout()).is_none() {
            ring.1.break_off(Broken::Unreachable);
            return Err(io::Error::other("the ring is not in guest memory"));
        }
        let index = ring.0.index;
        let mut seats = self.seats.iter_mut();
        let seat = seats.find(|seat| seat.index == index);
        let seat = seat.ok_or_else(|| io::Error::other("the worker has no such queue"))?;
        seat.queue.begin(features)?;
        seat.queue.map(self.memory.clone());
        Ok(seat)
    }

    /// Hands a queue's ring back, if its device has nothing of it; otherwise the worker does so
    /// once that is so.
    pub fn stop(&mut self, index: u16) -> Option<Handed> {
        let mut seats = self.seats.iter_mut();
        let seat = seats.find(|seat| seat.index == index)?;
        let served = seat.served.as_mut()?;
        if served.is_asleep() && seat.queue.in_flight() == 0 {
            let ring = seat.leave();
            self.let_go();
            return ring;
        }
        served.ask_to_stop();
        None
    }

    /// Goes on in this memory, which keeps every mapping of the former.
    pub fn map(&mut self, memory: &Memory) {
        self.memory = Arc::new(memory.clone());
        for seat in self.seats.iter_mut().filter(|seat| seat.served.is_some()) {
            seat.queue.map(self.memory.clone());
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
}

impl<Q: Queue> Seat<Q> {
    /// Gives up its ring.
    fn leave(&mut self) -> Option<Handed> {
        let mut served = self.served.take()?;
        served.leave(&self.bell);
        self.queue.end();
        self.queue.map(Arc::default());
        Some(Box::new((served.lines, served.ring)))
    }
}

/// Rings that are served in turn.
struct Turns<'a, Q> {
    services: Vec<Service<'a, Q>>,
    desk: &'a Desk<Life<Q>>,
    budget: Budget,
}

impl<Q: Queue> Turns<'_, Q> {
    /// Why this is over; `None` when a ring is drained.
    fn run(&mut self, watch: &mut Watch) -> Option<Pause> {
        while !self.desk.is_wanted() {
            pulse::round();
            let (mut busy, mut drained) = (false, false);
            for service in &mut self.services {
                let worked = service.round();
                busy |= worked;
                drained |= !worked && service.settle();
            }
            let stopping = self.services.iter().filter(|service| service.is_stopping());
            if stopping.clone().count() > 0 {
                self.desk.count(stopping.map(Service::in_flight).sum());
            }
            if drained {
                return None;
            }
            if !busy && !self.poll_for_work() && self.arm(watch) {
                return Some(Pause::Sleep);
            }
        }
        Some(Pause::Wanted)
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
            if self.desk.is_wanted() {
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

    /// Asks for kicks, and what else there is to be woken by; false when there is something to
    /// do at once.
    fn arm(&mut self, watch: &mut Watch) -> bool {
        let services = self.services.iter_mut();
        if services.fold(false, |new, service| service.arm() | new) {
            self.services.iter_mut().for_each(Service::disarm);
            return false;
        }
        if let Some(first) = self.services.first_mut() {
            first.slept();
        }
        watch.clear();
        for service in &self.services {
            let (kick, ready) = (service.bell(), service.ready());
            watch.add(service.place, kick, ready, service.is_blind());
        }
        true
    }
}
