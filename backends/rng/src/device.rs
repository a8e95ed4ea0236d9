//! The device (virtio 1.3, section 5.4), as the stock daemon asks for it.
//! Whatever a guest writes is answered or left alone: an error from here would
//! end the daemon's worker, and nobody would serve the queue any more.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use rustix::rand::{GetRandomFlags, getrandom};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Features;
use vhost_user_backend::{VhostUserBackend, VringRwLock, VringState, VringT};
use virtio_queue::{QueueT, desc::split::Descriptor};
use vm_memory::{Address, Bytes, GuestAddressSpace, GuestMemoryMmap, VolatileSlice};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{self, EventConsumer, EventFlag, EventNotifier};

/// Guest memory as the daemon shares it.
pub type Memory = vm_memory::GuestMemoryAtomic<GuestMemoryMmap>;
/// The one queue.
pub type Ring = VringRwLock;

/// What the daemon's epoll calls the timer: 0 is the queue, 1 its own affair.
pub const PERIOD_OVER: u16 = 2;
/// VERSION_1, PROTOCOL_FEATURES, EVENT_IDX, INDIRECT_DESC.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28;
/// Largest queue, and most descriptors taken of a chain or an indirect table.
const QUEUE_SIZE: usize = 1024;
/// Most bytes in one answer: a driver takes what it gets.
const MAX_ANSWER: u64 = 64 << 10;
/// getrandom(2) gives this much whole and uninterrupted, or nothing.
const PIECE: usize = 256;

/// How many bytes a guest gets in a period, which begins with the first.
#[derive(Clone, Copy, Debug)]
pub struct Rate(pub u64, pub Duration);

/// The device of one session.
#[derive(Debug)]
pub struct Rng {
    memory: Memory,
    rate: Rate,
    /// Bytes left, and until when.
    budget: Mutex<(u64, Instant)>,
    timer: TimerFd,
    exit: AtomicI32,
}

impl Rng {
    /// A device on `memory`, which the daemon fills in.
    ///
    /// # Errors
    /// Those of timerfd_create(2).
    pub fn new(memory: Memory, rate: Rate) -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self {
            memory,
            rate,
            budget: Mutex::new((0, Instant::now())),
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            exit: AtomicI32::new(-1),
        })
    }

    /// Readable when a period is over that was waited for.
    pub fn timer(&self) -> RawFd {
        self.timer.as_fd().as_raw_fd()
    }

    /// Closes the end of [`Self::exit_event`] that a daemon forgets to close.
    pub fn close(&self) {
        let _ = nix::unistd::close(self.exit.load(Ordering::Relaxed));
    }

    /// What is left now; with nothing left, the timer is set.
    fn budget(&self) -> MutexGuard<'_, (u64, Instant)> {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, Rate(bytes, period)) = (Instant::now(), self.rate);
        let rest = budget.1.saturating_duration_since(now);
        if rest.is_zero() {
            *budget = (bytes, now + period);
        } else if budget.0 == 0 {
            let once = Expiration::OneShot(rest.into());
            let _ = self.timer.set(once, TimerSetTimeFlags::empty());
        }
        budget
    }

    /// Answers the chain at the ring's head, unless there is none or no budget.
    fn answer(&self, ring: &mut VringState<Memory>) -> bool {
        let (mut budget, memory) = (self.budget(), self.memory.memory());
        if budget.0 == 0 {
            return false;
        }
        let Some(mut chain) = ring.get_queue_mut().pop_descriptor_chain(memory.clone()) else {
            return false;
        };
        // Each descriptor is read once. The iterator ends at an end and at
        // nonsense alike; then there is a next one, or none at all.
        let buffers: Vec<_> = chain.by_ref().take(QUEUE_SIZE).collect();
        let mut written = 0;
        if buffers.last().is_some_and(|last| !last.has_next()) {
            written = fill(&memory, &buffers, budget.0.min(MAX_ANSWER));
        }
        budget.0 -= written;
        // Refused if there is no such head: nobody could look for it.
        let _ = ring.add_used(chain.head_index(), written as u32);
        if ring.needs_notification().unwrap_or(true) {
            let _ = ring.signal_used_queue();
        }
        true
    }
}

/// Writes at most `most` random bytes; answers how many.
fn fill(memory: &GuestMemoryMmap, buffers: &[Descriptor], most: u64) -> u64 {
    let (mut piece, mut written) = ([0; PIECE], 0);
    'all: for buffer in buffers.iter().filter(|buffer| buffer.is_write_only()) {
        let (mut at, mut left) = (buffer.addr(), u64::from(buffer.len()).min(most - written));
        while left > 0 {
            let part = piece.split_at_mut(left.min(PIECE as u64) as usize).0;
            let random = getrandom(&mut *part, GetRandomFlags::empty());
            if random != Ok(part.len()) || memory.write_slice(part, at).is_err() {
                break 'all;
            }
            let bytes = part.len() as u64;
            (written, left) = (written + bytes, left - bytes);
            at = at.unchecked_add(bytes);
        }
    }
    // Nothing of it is kept; a plain store would be optimized away.
    VolatileSlice::from(&mut piece[..]).copy_from(&[0u8; PIECE]);
    written
}

impl VhostUserBackend for Rng {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        1
    }
    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }
    fn features(&self) -> u64 {
        FEATURES
    }
    fn protocol_features(&self) -> Features {
        Features::MQ | Features::REPLY_ACK | Features::CONFIGURE_MEM_SLOTS
    }
    fn set_event_idx(&self, _enabled: bool) {}
    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        Ok(())
    }
    /// Without one the daemon would wait for its worker for ever.
    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let flags = EventFlag::NONBLOCK | EventFlag::CLOEXEC;
        let ends = event::new_event_consumer_and_notifier(flags).ok()?;
        self.exit.store(ends.0.as_raw_fd(), Ordering::Relaxed);
        Some(ends)
    }
    fn handle_event(&self, event: u16, _: EventSet, rings: &[Ring], _: usize) -> io::Result<()> {
        if event == PERIOD_OVER {
            let _ = self.timer.wait();
        }
        // Locked for one chain at a time and looked at again under the lock:
        // of a stopped ring nothing is touched.
        let answered = |ring: &Ring| {
            let ring = &mut *ring.get_mut();
            let runs = ring.is_enabled() && ring.get_queue().ready();
            // Tells from where on to kick, and whether something is there.
            runs && ring.enable_notification().unwrap_or(false) && self.answer(ring)
        };
        while rings.first().is_some_and(answered) {}
        Ok(())
    }
}
