//! A device that copies what it reads, and a session that serves it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    unused_imports,
    reason = "tests; each uses a part of this"
)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use outboard_contract::client::{Ack, Client};
pub use outboard_contract::driver::{EVENT_IDX, INDIRECT, VERSION_1};
use outboard_contract::memory::Memory as Guest;
use outboard_contract::ring::{Buffer, Ring};
use outboard_contract::soon;
use outboard_protocol::kept::{DiskState, Kept};
use outboard_runtime::device::OTHER_KIND;
use outboard_runtime::event::{Event, Stuck};
use outboard_runtime::session::{End, Host, Limits, serve};
use outboard_runtime::{
    Chain, Change, Device, Memory, News, Notifier, Outcome, Preparation, Queue,
};
use vhost::vhost_user::message::FrontendReq;
use vm_memory::{Bytes, GuestMemoryBackend};

/// Guest memory of the tests: two regions with a hole between them.
pub const LOW: u64 = 0x10_0000;
pub const HIGH: u64 = 0x100_0000;
pub const REGION: u64 = 0x20_0000;

/// Where tests put data: outside every ring.
pub const DATA: u64 = LOW + 0x10_0000;

/// What the first byte of a chain asks of the device.
pub const NOW: u8 = 0;
pub const LATER: u8 = b'L';
pub const NOT_NOW: u8 = b'N';

/// The byte of the configuration that takes its time to be written.
pub const SLOW: u32 = 2;

/// What a test sees of the device, and does to it.
#[derive(Default)]
pub struct Knobs {
    /// Whether LATER chains complete and NOT_NOW chains are taken.
    open: AtomicBool,
    wakes: Mutex<Vec<Weak<Event>>>,
    /// Chains held back now.
    pub held: AtomicUsize,
    /// The second byte of every chain taken, in order.
    pub seen: Mutex<Vec<u8>>,
    pub resets: Mutex<Vec<u64>>,
    pub config: Mutex<Vec<u8>>,
    /// The configuration when it took over, each time.
    pub took_over: Mutex<Vec<Vec<u8>>>,
    pub notifier: Mutex<Option<Notifier>>,
    /// What the supervisor has said, in order.
    pub heard: Mutex<Vec<News>>,
    /// Makes every queue fail to begin with a ring.
    pub no_queues: AtomicBool,
    /// Chains held back are given up when their ring is stopped.
    pub gives_back: AtomicBool,
    /// The thread that serves each queue, by the queue's number.
    pub threads: Mutex<BTreeMap<u16, ThreadId>>,
    /// Makes the engine fail at the next submission.
    pub break_engine: AtomicBool,
    /// How often a queue was given memory while a ring of it was served.
    pub maps: AtomicUsize,
    /// How often a queue was asked what it gives back: only of a ring that is
    /// being drained.
    pub asked_back: AtomicUsize,
    /// How often a ring of a queue was handed back.
    pub ends: AtomicUsize,
    /// Whether writes to [`SLOW`] may be done.
    pub gate: AtomicBool,
    /// Writes to [`SLOW`] that have begun, and that are over.
    pub preparing: AtomicUsize,
    pub over: AtomicUsize,
}

impl std::fmt::Debug for Knobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Knobs").finish_non_exhaustive()
    }
}

impl Knobs {
    pub fn open(&self, open: bool) {
        self.open.store(open, Ordering::SeqCst);
        for wake in self.wakes.lock().unwrap().iter() {
            if let Some(wake) = wake.upgrade() {
                wake.signal();
            }
        }
    }

    pub fn wait_held(&self, count: usize) {
        wait(|| self.held.load(Ordering::SeqCst) == count);
    }
}

/// Waits until something is so.
pub fn wait(mut done: impl FnMut() -> bool) {
    let deadline = soon();
    while !done() {
        assert!(!deadline.passed(), "it did not come to be in time");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[derive(Debug)]
pub struct Loopback {
    knobs: Arc<Knobs>,
    queues: u16,
    /// How many queues share a worker.
    pub together: u16,
}

pub struct LoopbackQueue {
    knobs: Arc<Knobs>,
    wake: Arc<Event>,
    /// Between begin and end.
    begun: bool,
    memory: Arc<Memory>,
    held: Vec<(u16, u32)>,
}

impl Loopback {
    /// A device and what a test does to it.
    pub fn new(queues: u16) -> (Self, Arc<Knobs>) {
        let knobs = Arc::new(Knobs::default());
        *knobs.config.lock().unwrap() = vec![1, 2, 3, 4];
        let device = Self {
            knobs: knobs.clone(),
            queues,
            together: 1,
        };
        (device, knobs)
    }
}

impl Device for Loopback {
    type Queue = LoopbackQueue;

    fn virtio_id(&self) -> u16 {
        63
    }
    fn attach(&self, notifier: Notifier) {
        *self.knobs.notifier.lock().unwrap() = Some(notifier);
    }
    fn features(&self) -> u64 {
        1
    }
    fn queues(&self) -> u16 {
        self.queues
    }
    fn max_queue_size(&self) -> u16 {
        256
    }
    fn config(&self) -> Vec<u8> {
        self.knobs.config.lock().unwrap().clone()
    }
    fn write_config(&self, offset: u32, data: &[u8]) -> io::Result<Change> {
        let mut config = self.knobs.config.lock().unwrap();
        match (offset, data) {
            (1, [byte]) => config[1] = *byte,
            (SLOW, [byte]) => {
                return Ok(Change::After(Box::new(Slow {
                    knobs: self.knobs.clone(),
                    byte: *byte,
                })));
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        Ok(Change::Done)
    }
    fn hear(&self, news: News) {
        self.knobs.heard.lock().unwrap().push(news);
    }
    /// Its second byte is its cache byte.
    fn kept(&self) -> Kept {
        Kept::Disk(DiskState {
            writeback: self.knobs.config.lock().unwrap()[1] != 0,
            sync_failed: false,
        })
    }
    fn restore(&self, kept: &Kept) -> Result<(), String> {
        let Kept::Disk(kept) = kept else {
            return Err(OTHER_KIND.into());
        };
        self.knobs.config.lock().unwrap()[1] = kept.writeback.into();
        Ok(())
    }
    fn takes_over(&self) {
        let config = self.config();
        self.knobs.took_over.lock().unwrap().push(config);
    }
    fn reset(&self, features: u64) {
        self.knobs.resets.lock().unwrap().push(features);
    }
    fn worker(&self, index: u16) -> u16 {
        index / self.together
    }
    fn queue(&self, index: u16) -> io::Result<LoopbackQueue> {
        let thread = std::thread::current().id();
        let before = self.knobs.threads.lock().unwrap().insert(index, thread);
        assert!(before.is_none(), "queue {index} is made once");
        let wake = Arc::new(Event::new()?);
        let weak = Arc::downgrade(&wake);
        self.knobs.wakes.lock().unwrap().push(weak);
        Ok(LoopbackQueue {
            knobs: self.knobs.clone(),
            wake,
            begun: false,
            memory: Arc::default(),
            held: Vec::new(),
        })
    }
}

/// A write to [`SLOW`]: done when the gate is open, refused if it is 0xff.
#[derive(Debug)]
struct Slow {
    knobs: Arc<Knobs>,
    byte: u8,
}

impl Preparation for Slow {
    fn what(&self) -> &'static str {
        "open the gate: its key"
    }
    fn prepare(&mut self) -> io::Result<()> {
        self.knobs.preparing.fetch_add(1, Ordering::SeqCst);
        wait(|| self.knobs.gate.load(Ordering::SeqCst));
        match self.byte {
            0xff => Err(io::Error::other("no such key")),
            _ => Ok(()),
        }
    }
    fn commit(self: Box<Self>) {
        self.knobs.config.lock().unwrap()[SLOW as usize] = self.byte;
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.knobs.over.fetch_add(1, Ordering::SeqCst);
    }
}

impl LoopbackQueue {
    fn copy(memory: &Memory, chain: &Chain) -> Option<(Vec<u8>, u32)> {
        let mut bytes = Vec::new();
        for buffer in &chain.readable {
            let mut part = vec![0; buffer.length.min(0x1_0000) as usize];
            memory.read_slice(&mut part, buffer.address).ok()?;
            bytes.extend(part);
        }
        let mut rest = bytes.as_slice();
        for buffer in &chain.writable {
            let (part, left) = rest.split_at(rest.len().min(buffer.length as usize));
            memory.write_slice(part, buffer.address).ok()?;
            rest = left;
        }
        let written = bytes.len() - rest.len();
        Some((bytes, written as u32))
    }
}

impl Queue for LoopbackQueue {
    fn begin(&mut self, _: u64) -> io::Result<()> {
        if self.knobs.no_queues.load(Ordering::SeqCst) {
            return Err(io::Error::other("no queues today"));
        }
        assert!(!self.begun && self.memory.num_regions() == 0);
        self.begun = true;
        Ok(())
    }
    fn map(&mut self, memory: Arc<Memory>) {
        assert_eq!(self.begun, memory.num_regions() > 0);
        if self.memory.num_regions() > 0 && self.begun {
            self.knobs.maps.fetch_add(1, Ordering::SeqCst);
        }
        self.memory = memory;
    }
    fn end(&mut self) {
        assert!(std::mem::take(&mut self.begun));
        // What an engine that has failed still had.
        let lost = std::mem::take(&mut self.held).len();
        self.knobs.held.fetch_sub(lost, Ordering::SeqCst);
        self.knobs.ends.fetch_add(1, Ordering::SeqCst);
    }
    fn take(&mut self, chain: &Chain) -> Outcome {
        let memory = &*self.memory;
        let open = self.knobs.open.load(Ordering::SeqCst);
        let mut kind = [0];
        let first = chain.readable.first();
        let readable = first.is_some_and(|buffer| {
            buffer.length > 0 && memory.read_slice(&mut kind, buffer.address).is_ok()
        });
        if readable && kind[0] == NOT_NOW && !open {
            return Outcome::NotNow;
        }
        let Some((bytes, written)) = Self::copy(memory, chain) else {
            return Outcome::Done(0);
        };
        if let Some(mark) = bytes.get(1) {
            self.knobs.seen.lock().unwrap().push(*mark);
        }
        if kind[0] == LATER {
            self.held.push((chain.head, written));
            self.knobs.held.fetch_add(1, Ordering::SeqCst);
            return Outcome::Deferred;
        }
        // More than was written, to see that the driver is not told so.
        Outcome::Done(if kind[0] == NOW { written } else { u32::MAX })
    }
    fn submit(&mut self) -> io::Result<()> {
        if self.knobs.break_engine.load(Ordering::SeqCst) {
            return Err(io::Error::other("the engine is broken"));
        }
        Ok(())
    }
    fn ready(&self) -> Option<BorrowedFd<'_>> {
        Some(self.wake.as_fd())
    }
    fn reap(&mut self, done: &mut dyn FnMut(u16, u32)) -> io::Result<()> {
        self.wake.clear();
        if self.knobs.open.load(Ordering::SeqCst) {
            // Out of order, as disks do it.
            for (head, written) in self.held.drain(..).rev() {
                self.knobs.held.fetch_sub(1, Ordering::SeqCst);
                done(head, written);
            }
        }
        Ok(())
    }
    fn give_back(&mut self, back: &mut dyn FnMut(u16)) {
        self.knobs.asked_back.fetch_add(1, Ordering::SeqCst);
        if self.knobs.gives_back.load(Ordering::SeqCst) {
            for (head, _) in self.held.drain(..).rev() {
                self.knobs.held.fetch_sub(1, Ordering::SeqCst);
                back(head);
            }
        }
    }
    fn in_flight(&self) -> usize {
        self.held.len()
    }
}

/// A session that serves a loopback device, and the other end of it.
pub struct Session {
    pub client: Client,
    pub knobs: Arc<Knobs>,
    stop: Arc<Event>,
    thread: JoinHandle<Result<End, Stuck>>,
}

impl Session {
    pub fn new(queues: u16) -> Self {
        let poll = Duration::ZERO;
        let limits = Limits::default();
        Self::within(queues, Limits { poll, ..limits })
    }

    pub fn within(queues: u16, limits: Limits) -> Self {
        let (device, knobs) = Loopback::new(queues);
        Self::serving(device, knobs, limits)
    }

    pub fn serving(device: Loopback, knobs: Arc<Knobs>, limits: Limits) -> Self {
        let mut host = Host::new(device, limits).unwrap();
        let stop = Arc::new(Event::new().unwrap());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let thread = {
            let stop = stop.clone();
            std::thread::spawn(move || serve(&mut host, theirs, stop.as_fd()))
        };
        Self {
            client: Client::new(ours),
            knobs,
            stop,
            thread,
        }
    }

    /// Negotiated, with memory.
    pub fn ready(queues: u16, features: u64, guest: &Guest) -> Self {
        let mut session = Self::new(queues);
        session.client.negotiate(features).unwrap();
        session.client.set_mem_table(guest).unwrap();
        session
    }

    /// The front-end closes the connection; how the session ends.
    pub fn close(self) -> End {
        self.knobs.open(true);
        drop(self.client);
        join(self.thread)
    }

    pub fn ask_to_stop(&self) {
        self.stop.signal();
    }

    /// The back-end is told to end.
    pub fn stop(self) -> End {
        self.ask_to_stop();
        join(self.thread)
    }

    /// Waits for the end that the back-end itself makes.
    pub fn end(self) -> End {
        self.knobs.open(true);
        join(self.thread)
    }

    /// Waits for a session that cannot end well; its worker is left behind.
    pub fn wait_stuck(self) {
        wait(|| self.thread.is_finished());
        assert_eq!(self.thread.join().unwrap(), Err(Stuck));
    }

    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }
}

fn join(thread: JoinHandle<Result<End, Stuck>>) -> End {
    wait(|| thread.is_finished());
    thread.join().unwrap().unwrap()
}

pub fn guest() -> Guest {
    Guest::new(&[(LOW, REGION), (HIGH, REGION)]).unwrap()
}

/// A request of `length` bytes at `place`: its kind, its mark, and a pattern.
pub fn fill(guest: &Guest, place: u64, kind: u8, mark: u8, length: u32) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..length)
        .map(|at| mark.wrapping_mul(31).wrapping_add(at as u8))
        .collect();
    bytes[0] = kind;
    bytes[1] = mark;
    guest.put(place, &bytes);
    bytes
}

/// Where request number `mark` has its data and its answer.
pub fn place(mark: u8) -> (u64, u64) {
    let data = DATA + u64::from(mark) * 0x200;
    (data, data + 0x100)
}

/// Adds an echo of 64 bytes and announces it; returns its head.
pub fn submit(guest: &Guest, ring: &mut Ring, kind: u8, mark: u8) -> u16 {
    let (data, answer) = place(mark);
    fill(guest, data, kind, mark, 64);
    let old = ring.next_avail;
    let buffers = [Buffer::readable(data, 64), Buffer::writable(answer, 64)];
    let head = ring.add(&buffers).unwrap();
    ring.announce(old).unwrap();
    head
}

/// Waits for the answer to an echo and checks it.
pub fn expect(guest: &Guest, ring: &mut Ring, head: u16, mark: u8) {
    assert_eq!(ring.wait_used(soon()).unwrap(), (head, 64), "echo {mark}");
    check(guest, mark);
}

/// Checks that an echo has been answered with its own bytes.
pub fn check(guest: &Guest, mark: u8) {
    let (data, answer) = place(mark);
    assert_eq!(guest.get(data, 64), guest.get(answer, 64), "echo {mark}");
}

/// The session still serves: an echo on this ring works.
pub fn still_serves(guest: &Guest, ring: &mut Ring) {
    let head = submit(guest, ring, NOW, 255);
    expect(guest, ring, head, 255);
}

pub fn refused(client: &Client, request: FrontendReq, index: u32, num: u32) {
    let ack = client.vring_state(request, index, num).unwrap();
    assert_eq!(ack, Ack::Refused, "{request:?} {index} {num}");
}
