use std::sync::atomic::{AtomicU32, Ordering};

use outboard_protocol::inflight::{Region, Shape};
use outboard_ring::{Chain, Layout, Ring, View};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::device::{Change, Outcome, Queue};
use crate::event::Event;

const USED: GuestAddress = GuestAddress(0x3000);

/// A device that is done with everything at once, after it has refused this
/// many times.
#[derive(Clone)]
struct Instant(Arc<AtomicU32>);

fn instant(refusals: u32) -> Arc<Instant> {
    Arc::new(Instant(Arc::new(AtomicU32::new(refusals))))
}

impl Device for Instant {
    type Queue = Self;

    fn virtio_id(&self) -> u16 {
        63
    }
    fn features(&self) -> u64 {
        0
    }
    fn queues(&self) -> u16 {
        1
    }
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }
    fn write_config(&self, _: u32, _: &[u8]) -> io::Result<Change> {
        Ok(Change::Done)
    }
    fn reset(&self, _: u64) {}
    fn queue(&self, _: u16) -> io::Result<Self> {
        Ok(self.clone())
    }
}

impl Queue for Instant {
    fn map(&mut self, _: Arc<Memory>) {}
    fn take(&mut self, _: &Chain) -> Outcome {
        let one_less = |left: u32| left.checked_sub(1);
        let refused = (self.0).fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
        refused.map_or(Outcome::Done(0), |_| Outcome::NotNow)
    }
}

fn deadline() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

/// Memory in which a ring lies at [`layout`].
fn memory() -> Arc<Memory> {
    Arc::new(Memory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap())
}

fn layout() -> Layout {
    let (descriptors, available) = (GuestAddress(0x1000), GuestAddress(0x2000));
    Layout::new(8, descriptors, available, USED).unwrap()
}

fn lines(kick: Kick) -> Lines {
    Lines {
        index: 0,
        kick,
        call: Arc::default(),
        err: Arc::default(),
        part: None,
        replay: Arc::default(),
    }
}

#[test]
fn a_chain_that_was_refused_is_offered_again_without_a_kick() {
    let memory = memory();
    memory.write_obj(1u16, GuestAddress(0x2002)).unwrap();
    let view = View::new(&memory, &layout()).unwrap();
    let ring = Ring::new(layout(), 0, 0, None, &view).unwrap();
    let mut workers = Workers::new(&instant(2), Duration::ZERO, None).unwrap();
    let lines = lines(Kick::Event(Arc::new(Event::new().unwrap())));
    let refused = workers.serve(vec![Box::new((lines, ring))], 0, &memory);
    assert!(refused.unwrap().is_empty());
    let used = || memory.read_obj::<u16>(GuestAddress(USED.0 + 2)).unwrap();
    let end = deadline();
    while used() == 0 && !end.passed() {
        std::thread::yield_now();
    }
    assert_eq!(used(), 1, "used index");
    workers.stop(&[0], deadline()).unwrap();
}

#[test]
fn a_stop_that_comes_first_still_waits_for_what_was_taken_over() {
    let memory = memory();
    // A predecessor had taken heads 5 and 2; head 1 came later.
    for (place, head) in [5u16, 2, 1].into_iter().enumerate() {
        let element = GuestAddress(0x2004 + 2 * place as u64);
        memory.write_obj(head, element).unwrap();
    }
    memory.write_obj(3u16, GuestAddress(0x2002)).unwrap();
    let region = Region::create(Shape::new(1, 8).unwrap()).unwrap();
    let queue = region.queue(0).unwrap();
    queue.take(5, 0).unwrap();
    queue.take(2, 1).unwrap();
    let view = View::new(&memory, &layout()).unwrap();
    let ring = Ring::new(layout(), 0, 0, Some(queue.clone()), &view).unwrap();

    // Both are said before the worker looks.
    let mut workers = Workers::new(&instant(0), Duration::ZERO, None).unwrap();
    let handed = Box::new((lines(Kick::Polled), ring));
    let worker = workers.of(0).unwrap();
    let wait = Wait::until(deadline(), "handed its ring back");
    let serve_and_stop = |life: &mut Life<Instant>| {
        assert!(life.serve(handed, 0, &memory).is_ok());
        life.stop(0)
    };
    let stopped = worker.change(&wait, serve_and_stop, |_| true).unwrap();
    assert!(stopped.is_none(), "it is not drained yet");
    let ring = worker.wait(&wait, |place| place.stopped(0)).unwrap();

    let used: u16 = memory.read_obj(GuestAddress(USED.0 + 2)).unwrap();
    assert_eq!((used, ring.1.next_avail()), (2, 2), "base and used index");
    let left = queue.recover(used, 8).unwrap();
    assert!(left.heads().is_empty(), "{left:?}");
}

/// Whoever wants a worker's life gets it, and the worker has it back: also where it wakes
/// meanwhile, and has so much to do that it does not sleep again by itself.
#[test]
fn a_worker_that_wakes_while_it_is_wanted_lets_go_and_goes_on() {
    let memory = memory();
    let view = View::new(&memory, &layout()).unwrap();
    let ring = Ring::new(layout(), 0, 0, None, &view).unwrap();
    let device = instant(0);
    let mut workers = Workers::new(&device, Duration::ZERO, None).unwrap();
    let kick = Arc::new(Event::new().unwrap());
    let handed = Box::new((lines(Kick::Event(kick.clone())), ring));
    assert!(workers.serve(vec![handed], 0, &memory).unwrap().is_empty());
    for round in 1..=32u16 {
        let worker = workers.of(0).unwrap();
        let wait = Wait::until(deadline(), "let go");
        device.0.store(u32::MAX, Ordering::SeqCst);
        let announced = memory.store(round, GuestAddress(0x2002), Ordering::SeqCst);
        announced.unwrap();
        // It sleeps when it is wanted, and wakes, or it works already.
        let sleeps = round % 2 == 1;
        if sleeps {
            worker.desk.want();
        }
        kick.signal();
        std::thread::sleep(Duration::from_millis(10));
        if !sleeps {
            worker.desk.want();
        }
        let life = worker.wait(&wait, Place::life);
        worker.desk.give(life.unwrap(), false);
        device.0.store(0, Ordering::SeqCst);
        let used = || memory.load::<u16>(GuestAddress(USED.0 + 2), Ordering::SeqCst);
        while used().unwrap() != round {
            assert!(!wait.deadline.passed(), "round {round}: it does not go on");
            std::thread::yield_now();
        }
    }
    workers.stop(&[0], deadline()).unwrap();
}

/// What its device has not returned may keep it for ever: that is for no thread that is waited for.
#[test]
fn a_worker_that_nobody_waits_for_takes_its_queues_along() {
    let device = instant(0);
    let mut workers = Workers::new(&device, Duration::ZERO, None).unwrap();
    let desk = workers.of(0).unwrap().desk.clone();
    workers.abandon();
    drop(workers);
    let end = deadline();
    while Arc::strong_count(&desk) > 1 {
        assert!(!end.passed(), "its thread does not end");
        std::thread::yield_now();
    }
    assert_eq!(Arc::strong_count(&device.0), 1, "its queue is on the desk");
}
