//! A back-end dies between any two of its stores, and its successor goes on from
//! exactly the memory that it left.
//!
//! The code is the product's, from the worker's round down to the instruction that
//! stores. Everything that is not its own choice is tried in every way: when the
//! driver offers a request, what the device says to each (done, later, not now), which
//! it completes and in what order, when the ring is stopped, which requests the device
//! gives back then, and how it goes on: in the same session, in another, or with a
//! fresh region.
//!
//! ```text
//! birth = memory + what the driver has seen
//!   │ recovery ── every store ─► birth
//!   ▼
//! at work ── every choice, every store ─► birth
//! ```
//! States that have been seen before, memory and ring and all, are not looked at again.
//! After each store the driver looks at the used ring: what comes back is a request
//! that it waits for, and it has been executed. From each birth a successor finishes
//! everything, in two ways: none is lost, and the device sees them in the order in
//! which they were taken first.

mod stores;

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashSet, VecDeque};
use std::fmt::Write;
use std::hash::{Hash, Hasher};
use std::io;
use std::sync::{Arc, Mutex};

use outboard_protocol::inflight::{Region, Shape};
use outboard_protocol::shared::Alarm;
use outboard_ring::Layout;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use stores::{Image, Stores};

// Where what lies in the file; up to the region also in the guest's memory.
const DESCRIPTORS: usize = 0;
const AVAILABLE: usize = 0x1000;
const USED: usize = 0x2000;
/// One byte for each request: 1 once it has been executed.
const STATUS: usize = 0x3000;
/// For each request the head that its driver gave it.
const HEADS: usize = 0x3008;
/// One byte for each request: 1 once the device has given it back.
const GIVEN_BACK: usize = 0x3010;
const REGION: usize = 0x4000;
/// Entries of the region: more than the ring has.
const ENTRIES: u16 = 8;

/// What is tried.
#[derive(Clone, Copy)]
struct Plan {
    /// Requests that the driver has, up to 3.
    requests: u16,
    /// Entries of the ring.
    size: u16,
    /// Its indices before the first request.
    start: u16,
    /// The head of each request; `None`: the lowest that is free.
    heads: Option<[u16; 3]>,
    /// Whether the ring is stopped, and started again.
    stops: bool,
    /// In how many generations everything is tried; in the next, only the recovery.
    generations: usize,
}

/// What the driver knows.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Seen {
    /// The used index.
    index: u16,
    /// Requests that have come back, a bit each.
    back: u8,
}

/// Memory that a back-end has left, or begins with.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Birth {
    image: Image,
    seen: Seen,
}

/// What all sides share.
struct World {
    plan: Plan,
    stores: Stores,
    choices: Mutex<Choices>,
    seen: Mutex<Seen>,
}

/// Choices that are made, and how many there were each time.
#[derive(Default)]
struct Choices {
    script: Vec<u8>,
    made: Vec<(u8, u8)>,
}

impl Choices {
    /// The next script that begins with `keep` of these; `None` when all have been.
    fn next(&self, keep: usize) -> Option<Vec<u8>> {
        let mut made = self.made.clone();
        while made.len() > keep {
            let (choice, of) = made.pop()?;
            if choice + 1 < of {
                let mut script: Vec<u8> = made.iter().map(|(choice, _)| *choice).collect();
                script.push(choice + 1);
                return Some(script);
            }
        }
        None
    }
}

impl World {
    /// One of `of` possibilities.
    fn choose(&self, of: usize) -> usize {
        let mut choices = self.choices.lock().unwrap();
        let choice = choices.script.get(choices.made.len()).copied().unwrap_or(0);
        choices.made.push((choice, of as u8));
        assert!(usize::from(choice) < of, "a run is not what it was before");
        choice.into()
    }

    /// Requests that the driver has offered.
    fn offered(&self, image: &Image) -> u16 {
        image.u16(AVAILABLE + 2).wrapping_sub(self.plan.start)
    }

    fn may_offer(&self) -> bool {
        self.offered(&self.stores.read()) < self.plan.requests
    }

    /// The driver offers its next request, if it has a descriptor for it.
    fn offer(&self) {
        let image = self.look();
        let request = self.offered(&image);
        let seen = *self.seen.lock().unwrap();
        let waits =
            |head| (0..request).any(|of| seen.back & 1 << of == 0 && image.u16(place(of)) == head);
        let head = match self.plan.heads {
            Some(heads) => heads[usize::from(request)],
            None => match (0..self.plan.size).find(|head| !waits(*head)) {
                Some(free) => free,
                None => return,
            },
        };
        let address = (STATUS as u64 + u64::from(request)).to_le_bytes();
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&address);
        // One byte, for the device to write.
        (descriptor[8], descriptor[12]) = (1, 2);
        self.stores
            .write(DESCRIPTORS + 16 * usize::from(head), &descriptor);
        self.stores.write(place(request), &head.to_le_bytes());
        let index = self.plan.start.wrapping_add(request);
        let slot = usize::from(index & (self.plan.size - 1));
        self.stores
            .write(AVAILABLE + 4 + 2 * slot, &head.to_le_bytes());
        self.stores
            .write(AVAILABLE + 2, &index.wrapping_add(1).to_le_bytes());
        self.stores.note();
    }

    /// The driver looks at what has come back.
    fn look(&self) -> Image {
        let image = self.stores.read();
        self.seen.lock().unwrap().look(&self.plan, &image);
        image
    }
}

fn place(request: u16) -> usize {
    HEADS + 2 * usize::from(request)
}

impl Seen {
    fn look(&mut self, plan: &Plan, image: &Image) {
        let moved = image.u16(USED + 2).wrapping_sub(self.index);
        assert!(
            moved <= plan.requests,
            "the used index has moved by {moved}"
        );
        let offered = image.u16(AVAILABLE + 2).wrapping_sub(plan.start);
        for _ in 0..moved {
            let slot = USED + 4 + 8 * usize::from(self.index & (plan.size - 1));
            let [head, length] = [slot, slot + 4].map(|at| u32::from_le_bytes(image.bytes(at)));
            let waits = |request: &u16| {
                self.back & 1 << *request == 0 && u32::from(image.u16(place(*request))) == head
            };
            let Some(request) = (0..offered).find(waits) else {
                panic!("head {head} has come back, and the driver does not wait for it");
            };
            let at = usize::from(request);
            match length {
                1 => assert_eq!(image.bytes(STATUS + at), [1], "{request} was not executed"),
                _ => assert_eq!(image.bytes(GIVEN_BACK + at), [1], "{request} is cut"),
            }
            self.back |= 1 << request;
            self.index = self.index.wrapping_add(1);
        }
    }
}

/// How a device behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// In every way.
    Any,
    /// Everything is done at once.
    Prompt,
    /// Everything is done one by one, the last first.
    Late,
}

/// A device's queue.
struct Scripted {
    world: Arc<World>,
    memory: Arc<Memory>,
    manner: Manner,
    /// What it has, by request and head.
    has: Vec<(u16, u16)>,
    /// What it has answered or given back in this round, a bit each.
    answered: u8,
    /// It has put a request off once: each time is a number more, without an end.
    refused: bool,
}

impl Scripted {
    fn execute(&self, request: u16) {
        let status = GuestAddress(STATUS as u64 + u64::from(request));
        self.memory
            .store(1u8, status, std::sync::atomic::Ordering::Relaxed)
            .unwrap();
    }

    /// It comes in its order, and not while the device has it already.
    fn check(&self, request: u16) {
        let is_back = self.world.seen.lock().unwrap().back | self.answered;
        let has = |of: u16| self.has.iter().any(|(other, _)| *other == of);
        let is_over = |of: u16| is_back & 1 << of != 0;
        assert!(!has(request) && !is_over(request), "{request} comes twice");
        let first = (0..request).find(|of| !has(*of) && !is_over(*of));
        assert_eq!(first, None, "this is taken after {request}");
    }
}

impl Queue for Scripted {
    fn map(&mut self, _: Arc<Memory>) {}

    fn take(&mut self, chain: &Chain) -> Outcome {
        let world = self.world.clone();
        world.look();
        let request = (chain.writable[0].address.0 - STATUS as u64) as u16;
        self.check(request);
        if self.manner == Manner::Any && world.may_offer() && world.choose(2) == 1 {
            world.offer();
        }
        let outcome = match self.manner {
            Manner::Any => world.choose(3 - usize::from(self.refused)),
            Manner::Prompt => 0,
            Manner::Late => 1,
        };
        match outcome {
            0 => {
                self.execute(request);
                self.answered |= 1 << request;
                Outcome::Done(1)
            }
            1 => {
                self.has.push((request, chain.head));
                Outcome::Deferred
            }
            _ => {
                self.refused = true;
                Outcome::NotNow
            }
        }
    }

    fn reap(&mut self, done: &mut dyn FnMut(u16, u32)) -> io::Result<()> {
        let mut most = self.has.len();
        while most > 0 {
            let which = match self.manner {
                Manner::Any => self.world.choose(self.has.len() + 1),
                _ => self.has.len(),
            };
            let Some(which) = which.checked_sub(1) else {
                break;
            };
            let (request, head) = self.has.remove(which);
            self.execute(request);
            self.answered |= 1 << request;
            done(head, 1);
            most = match self.manner {
                Manner::Any => self.has.len(),
                _ => 0,
            };
        }
        Ok(())
    }

    fn give_back(&mut self, back: &mut dyn FnMut(u16)) {
        for at in (0..self.has.len()).rev() {
            if self.world.choose(2) == 1 {
                let (request, head) = self.has.remove(at);
                self.world
                    .stores
                    .write(GIVEN_BACK + usize::from(request), &[1]);
                self.world.stores.note();
                self.answered |= 1 << request;
                back(head);
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.has.len()
    }
}

/// A back-end at work on the ring.
struct Process<'m> {
    world: Arc<World>,
    memory: &'m Arc<Memory>,
    layout: Layout,
    lines: Lines,
    bell: Bell,
    ring: Ring,
    state: State,
    queue: Scripted,
    /// It was stopped before; once is enough.
    stopped: bool,
}

/// What has become of a back-end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goes {
    On,
    /// It has handed the ring back, and ends.
    Away,
}

impl<'m> Process<'m> {
    fn new(case: &'m Case, manner: Manner) -> Self {
        let (world, memory) = (case.world.clone(), &case.memory);
        let lines = Lines {
            index: 0,
            kick: Kick::Polled,
            call: Arc::default(),
            err: Arc::default(),
            part: None,
            replay: Arc::default(),
        };
        let view = View::new(memory, &case.layout).unwrap();
        let base = world.stores.read().u16(USED + 2);
        let block = case.region.queue(0);
        Self {
            ring: Ring::new(case.layout, EVENT_IDX, base, block, &view).unwrap(),
            queue: Scripted {
                world: world.clone(),
                memory: memory.clone(),
                manner,
                has: Vec::new(),
                answered: 0,
                refused: false,
            },
            layout: case.layout,
            bell: Bell::new().unwrap(),
            state: State::default(),
            stopped: false,
            world,
            memory,
            lines,
        }
    }

    /// One round of its worker. Whether there was anything to do.
    fn turn(&mut self) -> bool {
        let mut service = Service {
            place: 0,
            lines: &mut self.lines,
            memory: self.memory,
            view: View::new(self.memory, &self.layout).unwrap(),
            ring: &mut self.ring,
            queue: &mut self.queue,
            bell: &self.bell,
            state: &mut self.state,
        };
        let worked = service.round();
        if !worked {
            service.settle();
        }
        assert_eq!(self.ring.broken(), None);
        self.world.look();
        self.queue.answered = 0;
        worked
    }

    /// Something happens.
    fn step(&mut self) -> Goes {
        if self.state.drained {
            return self.go_on();
        }
        let mut ways: Vec<fn(&mut Self)> = vec![|this| {
            this.turn();
        }];
        if self.world.may_offer() {
            ways.push(|this| this.world.offer());
        }
        if self.world.plan.stops && !self.stopped {
            ways.push(|this| {
                this.stopped = true;
                this.state.stopping = true;
            });
        }
        let way = self.world.choose(ways.len());
        ways[way](self);
        self.world.look();
        Goes::On
    }

    /// The ring has been handed back.
    fn go_on(&mut self) -> Goes {
        let image = self.world.look();
        let (base, used) = (self.ring.next_avail(), image.u16(USED + 2));
        assert_eq!(base, used, "it was handed back before all was done");
        match self.world.choose(3) {
            0 => {
                self.state = State::default();
                return Goes::On;
            }
            1 => {}
            _ => {
                // Another back-end has made it.
                let mut fresh = [0; 192];
                (fresh[8], fresh[10]) = (1, ENTRIES as u8);
                self.world.stores.write(REGION, &fresh);
                self.world.stores.note();
            }
        }
        Goes::Away
    }

    /// All that there is to know of it, as a number.
    fn fingerprint(&mut self) -> u64 {
        self.ring.tally = outboard_ring::Tally::default();
        let mut text = String::new();
        write!(text, "{:?}", self.ring).unwrap();
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let State {
            blocked,
            stopping,
            drained,
            ..
        } = self.state;
        (blocked, stopping, drained, self.stopped).hash(&mut hasher);
        (&self.queue.has, self.queue.refused).hash(&mut hasher);
        (self.world.stores.read(), *self.world.seen.lock().unwrap()).hash(&mut hasher);
        hasher.finish()
    }
}

const EVENT_IDX: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

/// A plan under way.
struct Case {
    world: Arc<World>,
    memory: Arc<Memory>,
    region: Region,
    layout: Layout,
    births: HashSet<Birth>,
    /// Births that nobody has looked at, and their generation.
    left: VecDeque<(Birth, usize)>,
    /// Back-ends at work that have been looked at.
    known: HashSet<u64>,
    /// Moments of back-ends at work, choices made there, stores.
    counts: [usize; 3],
}

impl Case {
    fn new(plan: Plan) -> Self {
        let stores = Stores::new();
        let range = (GuestAddress(0), REGION, Some(stores.file().clone()));
        let memory = Memory::from_ranges_with_files([range]).unwrap();
        let shape = Shape::new(1, ENTRIES).unwrap();
        let fd = stores.file().file().try_clone().unwrap();
        let alarm = Arc::new(Alarm::new().unwrap());
        let region = Region::open(fd.into(), REGION as u64, shape, &alarm).unwrap();
        stores.watch();
        for index in [USED + 2, AVAILABLE + 2] {
            stores.write(index, &plan.start.to_le_bytes());
        }
        let [descriptors, available, used] =
            [DESCRIPTORS, AVAILABLE, USED].map(|place| GuestAddress(place as u64));
        let seen = Seen {
            index: plan.start,
            back: 0,
        };
        let birth = Birth {
            image: stores.read(),
            seen,
        };
        let world = World {
            plan,
            stores,
            choices: Mutex::default(),
            seen: Mutex::new(seen),
        };
        Self {
            world: Arc::new(world),
            memory: Arc::new(memory),
            region,
            layout: Layout::new(plan.size, descriptors, available, used).unwrap(),
            births: HashSet::from([birth]),
            left: VecDeque::from([(birth, 0)]),
            known: HashSet::new(),
            counts: [0; 3],
        }
    }

    fn begin(&self, birth: &Birth, script: &[u8]) {
        self.world.stores.restore(&birth.image);
        *self.world.seen.lock().unwrap() = birth.seen;
        *self.world.choices.lock().unwrap() = Choices {
            script: script.to_vec(),
            made: Vec::new(),
        };
    }

    /// A back-end may have died at each of these moments.
    fn died(&mut self, mut seen: Seen, images: Vec<Image>, generation: usize) {
        self.counts[2] += images.len();
        for image in images {
            seen.look(&self.world.plan, &image);
            let birth = Birth { image, seen };
            if self.births.insert(birth) {
                self.left.push_back((birth, generation + 1));
            }
        }
    }

    fn run(&mut self) {
        while let Some((birth, generation)) = self.left.pop_front() {
            self.recover(&birth, generation);
            for manner in [Manner::Prompt, Manner::Late] {
                self.finish(&birth, manner);
            }
            if generation < self.world.plan.generations {
                self.explore(&birth, generation);
            }
        }
    }

    fn tell(&self) -> String {
        let [moments, choices, stores] = self.counts;
        let births = self.births.len();
        format!("{births} deaths, {moments} moments at work, {choices} choices, {stores} stores")
    }

    fn recover(&mut self, birth: &Birth, generation: usize) {
        self.begin(birth, &[]);
        let world = self.world.clone();
        let (_, images) = world.stores.noted(|| drop(Process::new(self, Manner::Any)));
        self.died(birth.seen, images, generation);
    }

    /// A successor finishes everything.
    fn finish(&self, birth: &Birth, manner: Manner) {
        self.begin(birth, &[]);
        let mut process = Process::new(self, manner);
        while process.turn() || self.world.may_offer() {
            self.world.look();
            if self.world.may_offer() {
                self.world.offer();
            }
        }
        self.world.look();
        let seen = *self.world.seen.lock().unwrap();
        assert_eq!(
            seen.back,
            (1 << self.world.plan.requests) - 1,
            "a request is lost"
        );
        let end = self.world.plan.start.wrapping_add(self.world.plan.requests);
        assert_eq!((process.ring.next_avail(), seen.index), (end, end));
        let left = self
            .region
            .queue(0)
            .unwrap()
            .recover(end, self.world.plan.size);
        assert!(left.unwrap().heads().is_empty());
    }

    /// Everything that can happen to a back-end that is born here.
    fn explore(&mut self, birth: &Birth, generation: usize) {
        let mut paths = vec![Vec::new()];
        while let Some(path) = paths.pop() {
            let mut next = Some(path.clone());
            while let Some(script) = next {
                self.begin(birth, &script);
                let world = self.world.clone();
                let mut process = Process::new(self, Manner::Any);
                while world.choices.lock().unwrap().made.len() < path.len() {
                    process.step();
                }
                let seen = *world.seen.lock().unwrap();
                let (goes, images) = world.stores.noted(|| process.step());
                let is_new = goes == Goes::On;
                let fingerprint = process.fingerprint();
                drop(process);
                let is_new = is_new && self.known.insert(fingerprint);
                if is_new {
                    let made = world.choices.lock().unwrap().made.clone();
                    paths.push(made.into_iter().map(|(choice, _)| choice).collect());
                    self.counts[0] += 1;
                }
                self.counts[1] += 1;
                self.died(seen, images, generation);
                next = world.choices.lock().unwrap().next(path.len());
            }
        }
    }
}

/// A plan of three requests on a ring of four entries.
const PLAN: Plan = Plan {
    requests: 3,
    size: 4,
    start: 0,
    heads: Some([0, 1, 2]),
    stops: false,
    generations: 1,
};

#[test]
fn a_back_end_may_die_between_any_two_stores() {
    let _alone = stores::alone();
    let stops = true;
    for (what, plan) in [
        ("the first begins with descriptor 0", PLAN),
        (
            "a fresh region, used indices that wrap, stops",
            Plan {
                start: 65534,
                heads: Some([2, 0, 1]),
                stops,
                ..PLAN
            },
        ),
        (
            "heads that are used again",
            Plan {
                size: 2,
                start: 65535,
                heads: None,
                ..PLAN
            },
        ),
        (
            "two requests, each of two back-ends in every way",
            Plan {
                requests: 2,
                size: 2,
                start: 65535,
                generations: 2,
                ..PLAN
            },
        ),
    ] {
        let mut case = Case::new(plan);
        case.run();
        println!("{what}: {}", case.tell());
    }
}

/// The predecessor is a program on libvhost-user (QEMU 10, `vu_queue_pop` and
/// `vu_queue_push`): it returns one at a time, and links no batch. Its region is fresh,
/// or has gone with the ring for long.
#[test]
fn a_region_may_come_from_a_back_end_of_qemu() {
    let _alone = stores::alone();
    for start in [0, 65534] {
        let mut case = Case::new(Plan { start, ..PLAN });
        let mut birth = case.left.pop_front().unwrap().0;
        case.begin(&birth, &[]);
        case.world.stores.write(REGION + 14, &start.to_le_bytes());
        birth.image = case.world.stores.read();
        let mut next = Some(Vec::new());
        while let Some(script) = next {
            case.begin(&birth, &script);
            let world = case.world.clone();
            let ((), images) = world.stores.noted(|| libvhost_user(&world));
            case.died(birth.seen, images, 0);
            next = world.choices.lock().unwrap().next(0);
        }
        case.run();
        println!("from {start} on: {}", case.tell());
    }
}

fn libvhost_user(world: &World) {
    let entry = |head: u16| REGION + 16 + 16 * usize::from(head);
    let store = |place: usize, bytes: &[u8]| {
        world.stores.write(place, bytes);
        world.stores.note();
    };
    let (mut taken, mut used) = (0, world.plan.start);
    let mut has = Vec::new();
    loop {
        let offered = world.offered(&world.stores.read());
        let mut ways = Vec::new();
        ways.extend((offered < world.plan.requests).then_some(0));
        ways.extend((taken < offered).then_some(1));
        ways.extend(2..2 + has.len());
        if ways.is_empty() {
            return;
        }
        match ways[world.choose(ways.len())] {
            0 => world.offer(),
            1 => {
                let head = world.stores.read().u16(place(taken));
                store(entry(head) + 8, &u64::from(taken).to_le_bytes());
                store(entry(head), &[1]);
                has.push((taken, head));
                taken += 1;
            }
            which => {
                let (request, head): (u16, u16) = has.remove(which - 2);
                let element = USED + 4 + 8 * usize::from(used & (world.plan.size - 1));
                used = used.wrapping_add(1);
                store(STATUS + usize::from(request), &[1]);
                store(REGION + 12, &head.to_le_bytes());
                store(element, &u32::from(head).to_le_bytes());
                store(element + 4, &1u32.to_le_bytes());
                store(USED + 2, &used.to_le_bytes());
                store(entry(head), &[0]);
                store(REGION + 14, &used.to_le_bytes());
            }
        }
    }
}
