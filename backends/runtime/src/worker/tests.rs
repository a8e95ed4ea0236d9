use outboard_protocol::inflight::{Region, Shape};
use outboard_ring::{Chain, Layout, View};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::device::{Change, Outcome};

const USED: GuestAddress = GuestAddress(0x3000);

/// A device that is done with everything at once, after it has refused this
/// many times.
#[derive(Clone, Copy)]
struct Instant(u32);

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
    fn queue(&self, _: u16, _: u64) -> io::Result<Self> {
        Ok(*self)
    }
}

impl Queue for Instant {
    fn take(&mut self, _: &Arc<Memory>, _: &Chain) -> Outcome {
        match self.0.checked_sub(1) {
            Some(left) => self.0 = left,
            None => return Outcome::Done(0),
        }
        Outcome::NotNow
    }
}

#[test]
fn a_chain_that_was_refused_is_offered_again_without_a_kick() {
    let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap());
    let (descriptors, available) = (GuestAddress(0x1000), GuestAddress(0x2000));
    let layout = Layout::new(8, descriptors, available, USED).unwrap();
    memory.write_obj(1u16, GuestAddress(0x2002)).unwrap();
    let kick = Arc::new(Event::new().unwrap());
    let lines = Lines {
        index: 0,
        kick: Kick::Event(kick),
        call: Arc::default(),
        err: Arc::default(),
    };
    let setup = Setup {
        device: Arc::new(Instant(2)),
        features: 0,
        memory: memory.clone(),
        poll: Duration::ZERO,
    };
    let view = View::new(&memory, &layout).unwrap();
    let ring = Ring::new(layout, 0, 0, None, &view).unwrap();
    let deadline = Deadline::after(Duration::from_secs(30));
    let Ok(worker) = Worker::start(setup, vec![(lines, ring)], deadline) else {
        panic!("no worker");
    };
    let used = || memory.read_obj::<u16>(GuestAddress(USED.0 + 2)).unwrap();
    while used() == 0 && !deadline.left().is_zero() {
        std::thread::yield_now();
    }
    assert_eq!(used(), 1, "used index");
    worker.finish(deadline).unwrap();
}

#[test]
fn a_stop_that_comes_first_still_waits_for_what_was_taken_over() {
    let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap());
    let (descriptors, available) = (GuestAddress(0x1000), GuestAddress(0x2000));
    let layout = Layout::new(8, descriptors, available, USED).unwrap();
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

    let setup = Setup {
        device: Arc::new(Instant(0)),
        features: 0,
        memory: memory.clone(),
        poll: Duration::ZERO,
    };
    let lines = Lines {
        index: 0,
        kick: Kick::Polled,
        call: Arc::default(),
        err: Arc::default(),
    };
    let control = Control {
        stop: AtomicBool::new(true),
        wake: Event::new().unwrap(),
        asked: OnceLock::new(),
        in_flight: AtomicUsize::new(0),
    };
    let view = View::new(&memory, &layout).unwrap();
    let ring = Ring::new(layout, 0, 0, Some(queue.clone()), &view).unwrap();
    let (report, _started) = sync_channel(1);
    let mut rings = vec![(lines, ring)];
    serve(&setup, &mut rings, &control, &report);
    let [(_, ring)] = &rings[..] else {
        panic!("the ring is still there");
    };

    let used: u16 = memory.read_obj(GuestAddress(USED.0 + 2)).unwrap();
    assert_eq!((used, ring.next_avail()), (2, 2), "base and used index");
    let left = queue.recover(used, 8).unwrap();
    assert!(left.heads.is_empty(), "{left:?}");
}
