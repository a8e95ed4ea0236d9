//! A virtio entropy device (virtio 1.3, section 5.4) on the stock
//! `vhost-user-backend` daemon, one session after another. Whatever a guest
//! writes is answered or left alone: an error from the device would end the
//! daemon's worker, and nobody would serve the queue any more.
#![deny(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{ExitCode, exit};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use clap::{Parser, value_parser};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use outboard_protocol::{Deadline, kept::Kept};
use outboard_runtime::Supervisor;
use outboard_runtime::device::OTHER_KIND;
use outboard_runtime::event::Signal;
use outboard_runtime::listen::{self, Source};
use outboard_runtime::manual::after_help;
use outboard_runtime::program::{self, Capabilities, FrontEnd, Opening};
use outboard_runtime::signals::Stop;
use rustix::rand::{GetRandomFlags, getrandom};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Features;
use vhost::vhost_user::{Error as Protocol, Listener};
use vhost_user_backend::{Error, VhostUserBackend, VhostUserDaemon};
use vhost_user_backend::{VringState, VringT};
use virtio_queue::{QueueT, desc::split::Descriptor};
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{self, EventConsumer, EventFlag, EventNotifier};

mod lent;
mod ring;

use lent::Lent;
use ring::{Ring, Session};

/// Guest memory as the daemon shares it.
type Memory = vm_memory::GuestMemoryAtomic<GuestMemoryMmap>;
/// How many bytes a guest gets in a period, which begins with the first.
type Rate = (u64, Duration);
/// What the daemon's epoll calls the timer: 0 is the queue, 1 its own affair.
const TIMER: u64 = 2;
/// And the event by which a ring that stops waits for the worker.
const HALT: u64 = 3;
/// And the event that tells that guest memory is not there any more.
const LOST: u64 = 4;
/// How long it waits: the worker has a chain in hand at most.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a worker that is waited for is looked after.
const AGAIN: Duration = Duration::from_millis(10);
/// VERSION_1, PROTOCOL_FEATURES, EVENT_IDX, INDIRECT_DESC.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28;
/// Largest queue, and most descriptors taken of a chain or an indirect table.
const QUEUE_SIZE: usize = 1024;
/// Most bytes in one answer: a driver takes what it gets.
const MAX_ANSWER: u64 = 64 << 10;
/// getrandom(2) gives this much whole and uninterrupted, or nothing.
const PIECE: usize = 256;

const EXAMPLES: &str = "\
Examples:
  Serve entropy to QEMU, Outboard or any other vhost-user front-end:
    outboard-rng --socket-path=/tmp/rng.sock
  At most 1 KiB in each second:
    outboard-rng --socket-path=/tmp/rng.sock \\
        --max-bytes=1024 --period=1000";

/// Serve the kernel's random numbers as a virtio entropy device over vhost-user
#[derive(Debug, Parser)]
#[command(
    name = "outboard-rng",
    version = outboard_version::VERSION,
    override_usage = "outboard-rng [--socket-path PATH | --fd FDNUM] [OPTIONS]",
    after_help = EXAMPLES,
    after_long_help = after_help(EXAMPLES),
)]
pub struct Cli {
    #[command(flatten)]
    front_end: FrontEnd,

    /// Most bytes that the guest gets in a period
    #[arg(long, value_name = "N", default_value_t = 1 << 20, value_parser = value_parser!(u64).range(1..))]
    max_bytes: u64,

    /// Length of a period
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 1000, value_parser = value_parser!(u32).range(1..))]
    period: u32,
}

impl Cli {
    /// Serves as the command line asks. Call it first of all.
    pub fn serve(self) -> ExitCode {
        let rate = (self.max_bytes, Duration::from_millis(self.period.into()));
        let (kind, features) = ("rng", &[][..]);
        let capabilities = Capabilities { kind, features };
        let serve = move |open, stop, line| serve(open, stop, &line, rate);
        program::start(&self.front_end, capabilities, serve)
    }
}

fn serve(open: Opening, stop: Stop, line: &Supervisor, rate: Rate) -> anyhow::Result<()> {
    ensure!(*line.kept() == Kept::Nothing, OTHER_KIND);
    ensure!(drawn(&mut [0]), "getrandom(2) fails");
    let Source::Listening(listening) = open()? else {
        bail!("cannot serve a connected socket: give one that listens, or --socket-path");
    };
    let listener = listening.blocking().context("cannot share the socket")?;
    line.ready(Kept::Nothing, None);
    std::thread::spawn(move || {
        stop.wait();
        // Its file goes with the socket.
        drop(listening);
        exit(0);
    });
    serve_all(Listener::from(listener), rate)
}

/// What passes by itself is waited out: a lack of descriptors, say.
fn serve_all(mut listener: Listener, rate: Rate) -> anyhow::Result<()> {
    loop {
        let passing = match serve_one(&mut listener, rate) {
            Ok(()) | Err(Error::HandleRequest(Protocol::Disconnected)) => continue,
            Err(error @ Error::HandleRequest(_)) => {
                program::cut_off(&error);
                continue;
            }
            Err(Error::CreateBackendListener(Protocol::SocketError(error))) => match error.kind() {
                // The socket is shut down: no other front-end will come.
                ErrorKind::InvalidInput => return Ok(()),
                _ if listen::passes(&error) => error,
                _ => return Err(error).context("cannot accept a front-end"),
            },
            Err(Error::StartDaemon(error)) => error,
            Err(error @ Error::NewVhostUserHandler(_)) => io::Error::other(error.to_string()),
            Err(error) => return Err(anyhow!("the daemon failed: {error}")),
        };
        listen::say_that_it_passes(passing);
        std::thread::sleep(Duration::from_millis(listen::PAUSE_MILLIS.into()));
    }
}

/// Each session has a daemon of its own, since one forgets nothing.
fn serve_one(listener: &mut Listener, rate: Rate) -> Result<(), Error> {
    let failed = |errno: nix::Error| Error::StartDaemon(errno.into());
    let memory = Memory::new(GuestMemoryMmap::new());
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let session = Session::begin();
    let rng = Arc::new(Rng {
        memory: memory.clone(),
        lent: Lent::new().map_err(Error::StartDaemon)?,
        rate,
        budget: Mutex::new((0, Instant::now())),
        timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(failed)?,
        halt: Halt::new().map_err(failed)?,
        exit: AtomicI32::new(-1),
        session: session.clone(),
    });
    let mut daemon = VhostUserDaemon::new("session".into(), rng.clone(), memory)?;
    let timer = rng.timer.as_fd().as_raw_fd();
    let halt = rng.halt.event.as_raw_fd();
    let lost = rng.lent.as_fd().as_raw_fd();
    for worker in daemon.get_epoll_handlers() {
        let listen = |event, data| worker.register_listener(event, EventSet::IN, data);
        listen(timer, TIMER).map_err(Error::StartDaemon)?;
        listen(halt, HALT).map_err(Error::StartDaemon)?;
        listen(lost, LOST).map_err(Error::StartDaemon)?;
    }
    daemon.start(listener)?;
    session.connected(daemon.shutdown_handle());
    let ended = daemon.wait();
    // The worker ends with the daemon, and must not be held any more.
    let _ = session.call.set(None, Deadline::after(PATIENCE));
    if let Some(lost) = rng.lent.lost() {
        session.cut_off(lost.to_string());
    }
    if let Some(why) = session.why() {
        program::cut_off(&why);
        return Ok(());
    }
    ended
}

/// The device of one session.
#[derive(Debug)]
struct Rng {
    memory: Memory,
    lent: Lent,
    rate: Rate,
    /// Bytes left, and until when.
    budget: Mutex<(u64, Instant)>,
    timer: TimerFd,
    halt: Halt,
    exit: AtomicI32,
    session: Arc<Session>,
}

impl Drop for Rng {
    /// The end of its exit event that the daemon forgets to close.
    fn drop(&mut self) {
        let _ = nix::unistd::close(self.exit.load(Ordering::Relaxed));
    }
}

/// Where a ring that stops meets the worker. What epoll has told the worker of a
/// kick it still has in hand when the ring is taken off, and it may owe the driver a
/// call: both belong to before the stop.
#[derive(Debug)]
struct Halt {
    event: EventFd,
    met: Mutex<bool>,
    meeting: Condvar,
}

impl Halt {
    fn new() -> nix::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self {
            event: EventFd::from_flags(flags)?,
            met: Mutex::new(false),
            meeting: Condvar::new(),
        })
    }

    fn met(&self) -> MutexGuard<'_, bool> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the worker has asked epoll again, and gets it out of `call` if
    /// that holds it.
    fn wait(&self, call: &Signal) -> io::Result<()> {
        let mut met = self.met();
        *met = false;
        self.event.write(1)?;
        let deadline = Deadline::after(PATIENCE);
        while !*met {
            if deadline.passed() {
                let silent = "the thread that serves the queue does not answer";
                return Err(io::Error::new(ErrorKind::TimedOut, silent));
            }
            let waited = self.meeting.wait_timeout(met, AGAIN);
            met = waited.unwrap_or_else(PoisonError::into_inner).0;
            call.interrupt();
        }
        Ok(())
    }

    /// The worker has come.
    fn meet(&self) {
        let _ = self.event.read();
        *self.met() = true;
        self.meeting.notify_one();
    }
}

impl Rng {
    /// What is left now; with nothing left, the timer is set.
    fn budget(&self) -> MutexGuard<'_, (u64, Instant)> {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, (bytes, period)) = (Instant::now(), self.rate);
        let rest = budget.1.saturating_duration_since(now);
        if rest.is_zero() {
            *budget = (bytes, now + period);
        } else if budget.0 == 0 {
            self.look_in(rest);
        }
        budget
    }

    /// Lets the worker look at the ring after so long.
    fn look_in(&self, rest: Duration) {
        let once = Expiration::OneShot(rest.into());
        let _ = self.timer.set(once, TimerSetTimeFlags::empty());
    }

    /// Answers the chain at the ring's head, unless there is none or no budget;
    /// whether the driver wants to be called.
    fn answer(&self, ring: &mut VringState<Memory>) -> Option<bool> {
        let (mut budget, memory) = (self.budget(), self.memory.memory());
        if budget.0 == 0 || self.lent.lost().is_some() {
            return None;
        }
        let mut chain = ring.get_queue_mut().pop_descriptor_chain(memory.clone())?;
        // Each descriptor is read once. The iterator ends at an end and at
        // nonsense alike; then there is a next one, or none at all.
        let buffers: Vec<_> = chain.by_ref().take(QUEUE_SIZE).collect();
        let mut written = 0;
        if buffers.last().is_some_and(|last| !last.has_next()) {
            written = fill(&memory, &buffers, budget.0.min(MAX_ANSWER));
        }
        budget.0 -= written;
        if self.lent.lost().is_some() {
            // What was read or written may be a page in place of the guest's.
            return None;
        }
        // Refused if there is no such head: nobody could look for it.
        let _ = ring.add_used(chain.head_index(), written as u32);
        Some(ring.needs_notification().unwrap_or(true))
    }

    /// Answers one chain of a ring that runs; whether there was one.
    fn serve(&self, ring: &Ring) -> bool {
        // Locked for one chain at a time and looked at again under the lock: of a
        // stopped ring nothing is touched.
        let answered = {
            let state = &mut *ring.get_mut();
            let runs = state.is_enabled() && state.get_queue().ready();
            // Tells from where on to kick, and whether something is there.
            let any = runs && state.enable_notification().unwrap_or(false);
            any.then(|| self.answer(state)).flatten()
        };
        if answered == Some(true) {
            let _ = ring.signal_used_queue();
        }
        answered.is_some()
    }
}

/// Whether a piece has been filled.
fn drawn(piece: &mut [u8]) -> bool {
    getrandom(&mut *piece, GetRandomFlags::empty()) == Ok(piece.len())
}

/// Writes at most `most` random bytes; returns how many.
fn fill(memory: &GuestMemoryMmap, buffers: &[Descriptor], most: u64) -> u64 {
    let buffers = buffers.iter().filter(|buffer| buffer.is_write_only());
    let room: u64 = buffers.clone().map(|buffer| u64::from(buffer.len())).sum();
    let mut random = vec![0; room.min(most) as usize];
    if !random.chunks_mut(PIECE).all(drawn) {
        return 0;
    }
    let mut left = &random[..];
    for buffer in buffers {
        let (part, rest) = left.split_at(left.len().min(buffer.len() as usize));
        if memory.write_slice(part, buffer.addr()).is_err() {
            break;
        }
        left = rest;
    }
    (random.len() - left.len()) as u64
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
    /// The daemon enables a ring before it tells it this: a worker that looked in
    /// between has not told the driver when to kick.
    fn set_event_idx(&self, _enabled: bool) {
        self.look_in(Duration::from_nanos(1));
    }
    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        self.lent.watch(&memory.memory())
    }
    /// Without one the daemon would wait for its worker for ever.
    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let flags = EventFlag::NONBLOCK | EventFlag::CLOEXEC;
        let ends = event::new_event_consumer_and_notifier(flags).ok()?;
        self.exit.store(ends.0.as_raw_fd(), Ordering::Relaxed);
        Some(ends)
    }
    /// The ring's kick is off the worker's list, and not yet forgotten.
    fn stop_vring(&self, _index: u32) -> io::Result<()> {
        self.halt.wait(&self.session.call)
    }
    fn handle_event(&self, event: u16, _: EventSet, rings: &[Ring], _: usize) -> io::Result<()> {
        if u64::from(event) == HALT {
            self.halt.meet();
            return Ok(());
        }
        if u64::from(event) == LOST {
            self.lent.silence();
            if let Some(lost) = self.lent.lost() {
                self.session.cut_off(lost.to_string());
            }
            return Ok(());
        }
        // If it is what rang.
        let _ = self.timer.wait();
        while rings.first().is_some_and(|ring| self.serve(ring)) {}
        Ok(())
    }
}
