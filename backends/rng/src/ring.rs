//! The ring as the daemon keeps it, but for its descriptors: whatever a front-end
//! lends and does to them afterwards, the threads of the daemon go on.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outboard_protocol::Deadline;
use outboard_runtime::event::{Event, Signal};
use vhost_user_backend::{
    ShutdownHandle, VringRwLock, VringStateGuard, VringStateMutGuard, VringT,
};
use virtio_queue::{Error, QueueT};

use crate::Memory;

/// A call that is being made must be over within this to be replaced.
const REPLACED: Duration = Duration::from_secs(10);
/// After as many kicks by one it is asked whether there is an end of them.
const SINGLE_KICKS: u32 = 64;

const NO_EVENTFD: &str = "it lent a descriptor that is no eventfd as a kick, a call or an error";
const NO_ROOM: &str = "there is no room for a descriptor: raise the limit (`ulimit -n`)";
const ENDLESS: &str = "its kick eventfd stays readable however often it is read: lend one without \
    EFD_SEMAPHORE";
const HELD: &str = "its call eventfd held the device up: its counter was full, and O_NONBLOCK \
    cleared after it had been lent";

/// One front-end's connection, as its ring sees it.
#[derive(Default)]
pub struct Session {
    /// Tells the driver of answers.
    pub call: Signal,
    end: Mutex<End>,
}

/// How a session is ended from here: the daemon can be told of nothing else.
#[derive(Default)]
struct End {
    handle: Option<ShutdownHandle>,
    why: Option<String>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

thread_local! {
    /// The session whose daemon this thread makes: a ring is told nothing else of
    /// its own.
    static MADE: RefCell<Arc<Session>> = RefCell::default();
}

impl Session {
    /// Begins a session: the rings that this thread makes from now on are its.
    pub fn begin() -> Arc<Self> {
        let session = Arc::<Self>::default();
        MADE.set(session.clone());
        session
    }

    fn end(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is a connection, which can be cut off by this.
    pub fn connected(&self, handle: Option<ShutdownHandle>) {
        let mut end = self.end();
        if end.why.is_some()
            && let Some(handle) = &handle
        {
            handle.shutdown();
        }
        end.handle = handle;
    }

    /// Why the front-end was cut off, if it was.
    pub fn why(&self) -> Option<String> {
        self.end().why.clone()
    }

    /// Cuts the front-end off, now or when it is connected. The first reason
    /// counts.
    pub fn cut_off(&self, why: impl Into<String>) {
        let mut end = self.end();
        end.why.get_or_insert_with(|| why.into());
        if let Some(handle) = &end.handle {
            handle.shutdown();
        }
    }

    /// A descriptor that was lent, and what can be done with it; nothing if it is
    /// no eventfd.
    fn adopt(&self, file: Option<File>) -> Option<(File, Event)> {
        let file = file?;
        let Ok(copy) = file.try_clone() else {
            self.cut_off(NO_ROOM);
            return None;
        };
        let event = Event::lent(copy.into());
        if event.is_none() {
            self.cut_off(NO_EVENTFD);
        }
        Some((file, event?))
    }
}

/// See the module.
#[derive(Clone)]
pub struct Ring {
    ring: VringRwLock<Memory>,
    session: Arc<Session>,
    kick: Arc<Mutex<Kick>>,
}

#[derive(Default)]
struct Kick {
    event: Option<Event>,
    /// How often it came by one.
    single: u32,
}

impl Ring {
    fn kick(&self) -> MutexGuard<'_, Kick> {
        self.kick.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> VringStateGuard<'a, Memory> for Ring {
    type G = <VringRwLock<Memory> as VringStateGuard<'a, Memory>>::G;
}

impl<'a> VringStateMutGuard<'a, Memory> for Ring {
    type G = <VringRwLock<Memory> as VringStateMutGuard<'a, Memory>>::G;
}

/// What has to do with descriptors is done here, the rest is the daemon's.
impl VringT<Memory> for Ring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, Error> {
        Ok(Self {
            ring: VringRwLock::new(memory, max_queue_size)?,
            session: MADE.with_borrow(Arc::clone),
            kick: Arc::default(),
        })
    }

    fn set_kick(&self, file: Option<File>) {
        let adopted = self.session.adopt(file);
        let (file, event) = adopted.unzip();
        let mut kick = self.kick();
        // The daemon goes on to wait for the first, and must be able to forget it.
        if file.is_some() && kick.event.is_some() && self.get_ref().get_queue().ready() {
            return;
        }
        *kick = Kick { event, single: 0 };
        self.ring.set_kick(file);
    }
    /// Never waits, and never fails: an error would end the daemon's thread.
    fn read_kick(&self) -> io::Result<bool> {
        let mut kick = self.kick();
        if let Some(event) = &kick.event
            && event.clear() == 1
        {
            let ends = !kick.single.is_multiple_of(SINGLE_KICKS) || !event.is_endless();
            kick.single = kick.single.wrapping_add(1);
            if !ends {
                self.session.cut_off(ENDLESS);
            }
        }
        Ok(self.get_ref().is_enabled())
    }
    fn set_call(&self, file: Option<File>) {
        let event = self.session.adopt(file).map(|(_, event)| event);
        let set = self.session.call.set(event, Deadline::after(REPLACED));
        if set.is_err() {
            self.session.cut_off(HELD);
        }
    }
    /// Not while the ring is locked: its owner may hold whoever signals it.
    fn signal_used_queue(&self) -> io::Result<()> {
        if self.session.call.signal().is_err() {
            self.session.cut_off(HELD);
        }
        Ok(())
    }
    fn set_err(&self, file: Option<File>) {
        let adopted = self.session.adopt(file);
        self.ring.set_err(adopted.map(|(file, _)| file));
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.ring.get_ref()
    }
    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.ring.get_mut()
    }
    fn add_used(&self, head: u16, length: u32) -> Result<(), Error> {
        self.ring.add_used(head, length)
    }
    fn enable_notification(&self) -> Result<bool, Error> {
        self.ring.enable_notification()
    }
    fn disable_notification(&self) -> Result<(), Error> {
        self.ring.disable_notification()
    }
    fn needs_notification(&self) -> Result<bool, Error> {
        self.ring.needs_notification()
    }
    fn set_enabled(&self, enabled: bool) {
        self.ring.set_enabled(enabled);
    }
    fn set_queue_info(&self, descriptors: u64, available: u64, used: u64) -> Result<(), Error> {
        self.ring.set_queue_info(descriptors, available, used)
    }
    fn queue_next_avail(&self) -> u16 {
        self.ring.queue_next_avail()
    }
    fn set_queue_next_avail(&self, base: u16) {
        self.ring.set_queue_next_avail(base);
    }
    fn set_queue_next_used(&self, index: u16) {
        self.ring.set_queue_next_used(index);
    }
    fn queue_used_idx(&self) -> Result<u16, Error> {
        self.ring.queue_used_idx()
    }
    fn set_queue_size(&self, size: u16) {
        self.ring.set_queue_size(size);
    }
    fn set_queue_event_idx(&self, enabled: bool) {
        self.ring.set_queue_event_idx(enabled);
    }
    fn set_queue_ready(&self, ready: bool) {
        self.ring.set_queue_ready(ready);
    }
}
