//! The doorbells of one function: where the driver kicks its queues, and which
//! eventfd a kick signals.
//!
//! A doorbell is registered in KVM while three things hold: the driver has
//! turned decoding on, the queue is enabled, and a session has been lent a kick
//! eventfd. At any other time a kick exits to us. Before the session that is
//! only to be noted: a fresh kick eventfd has count 1.
//!
//! To compare, a kick can also be signalled by us ([`Ring`]): then nothing is
//! registered, and every kick exits.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;
use outboard_protocol::launch::Ring;
use vmm_sys_util::eventfd::EventFd;

use super::interrupts::owing_eventfd;
use super::ringer::Ringer;
use crate::machine::kvm::doorbell::{Address, Doorbell};

/// Bytes between the notify addresses of two queues (notify_off_multiplier).
pub const STRIDE: u16 = 4;

/// The doorbells of one function.
#[derive(Debug)]
pub struct Doorbells {
    vm: Arc<VmFd>,
    way: Way,
    state: Arc<Mutex<State>>,
}

/// How a kick gets from the guest to the kick eventfd.
#[derive(Debug)]
enum Way {
    Kvm,
    Exit,
    Worker(Ringer),
}

#[derive(Debug)]
struct State {
    base: Option<Address>,
    queues: Vec<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    kick: Option<Arc<EventFd>>,
    doorbell: Option<Doorbell>,
}

impl Doorbells {
    /// For `queues` queues, 64 at most, nowhere yet.
    ///
    /// # Errors
    /// Those of starting a thread, for [`Ring::Worker`].
    pub fn new(vm: Arc<VmFd>, queues: u16, ring: Ring) -> io::Result<Self> {
        let state = Arc::new(Mutex::new(State {
            base: None,
            queues: (0..queues).map(|_| Queue::default()).collect(),
        }));
        let way = match ring {
            Ring::Kvm => Way::Kvm,
            Ring::Exit => Way::Exit,
            Ring::Worker => {
                let state = Arc::clone(&state);
                Way::Worker(Ringer::new(move |queue| signal(&state, queue))?)
            }
        };
        Ok(Self { vm, way, state })
    }

    /// Puts the doorbells where the driver has put their BAR, or nowhere. On
    /// the vCPU thread that moved it: from its next instruction on they ring
    /// there. Answers the queues of a live session, if the doorbells are
    /// somewhere new: a kick that another vCPU made meanwhile must be made good.
    pub fn place(&self, base: Option<Address>) -> Vec<u16> {
        let mut state = self.state();
        if state.base == base {
            return Vec::new();
        }
        state.base = base;
        for queue in &mut state.queues {
            queue.doorbell = None;
        }
        for (index, queue) in (0..).zip(&mut state.queues) {
            self.register(queue, base, index);
        }
        let queues = (0..).zip(&state.queues);
        let lent = queues.filter(|(_, queue)| base.is_some() && queue.kick.is_some());
        lent.map(|(index, _)| index).collect()
    }

    /// A fresh kick eventfd for a queue, count 1, that its doorbell rings from
    /// now on instead of the former one.
    ///
    /// # Errors
    /// Those of eventfd(2); `NotFound` for a queue that does not exist.
    pub fn lend(&self, queue: u16) -> io::Result<Arc<EventFd>> {
        let kick = owing_eventfd()?;
        let mut state = self.state();
        let base = state.base;
        let entry = state
            .queues
            .get_mut(usize::from(queue))
            .ok_or(io::ErrorKind::NotFound)?;
        entry.doorbell = None;
        entry.kick = Some(Arc::clone(&kick));
        self.register(entry, base, queue);
        Ok(kick)
    }

    /// Takes a queue's kick eventfd out of use: a kick now exits to us.
    pub fn withdraw(&self, queue: u16) {
        if let Some(entry) = self.state().queues.get_mut(usize::from(queue)) {
            *entry = Queue::default();
        }
    }

    /// A kick has exited to us. Answers whether it must be passed on, since
    /// there is a session that waits for it and it is not ours to ring. One at
    /// the address of a registered doorbell (`at_doorbell`) exited before that
    /// was registered, and so before the back-end was lent an eventfd of count 1.
    pub fn exited(&self, queue: u16, at_doorbell: bool) -> bool {
        match &self.way {
            Way::Kvm => {
                let state = lock(&self.state);
                let entry = state.queues.get(usize::from(queue));
                let waits = |entry: &Queue| {
                    entry.kick.is_some() && !(at_doorbell && entry.doorbell.is_some())
                };
                return entry.is_some_and(waits);
            }
            Way::Exit => signal(&self.state, queue),
            Way::Worker(ringer) => ringer.ring(queue),
        }
        false
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn register(&self, queue: &mut Queue, base: Option<Address>, index: u16) {
        let (Way::Kvm, Some(base), Some(kick)) = (&self.way, base, &queue.kick) else {
            return;
        };
        let offset = index.saturating_mul(STRIDE);
        let address = match base {
            Address::Memory(base) => Address::Memory(base.saturating_add(offset.into())),
            Address::Port(base) => Address::Port(base.saturating_add(offset)),
        };
        // Without it a kick exits to us and is passed on, slowly.
        match Doorbell::register(&self.vm, address, kick) {
            Ok(doorbell) => queue.doorbell = Some(doorbell),
            Err(error) => log::warn!("queue {index}: {error:#}; it will be slow"),
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Signals a queue's kick eventfd, if a session has one: the one place where
/// user space writes an eventfd that it has lent. Before a session there is
/// nothing to do, its eventfd will have count 1.
fn signal(state: &Mutex<State>, queue: u16) {
    let kick = lock(state)
        .queues
        .get(usize::from(queue))
        .and_then(|entry| entry.kick.clone());
    // An error means that the counter is full, so the back-end has yet to see
    // earlier kicks.
    let _ = kick.map(|kick| kick.write(1));
}
