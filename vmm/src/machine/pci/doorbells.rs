//! The doorbells of one function: where the driver kicks its queues, and which
//! eventfd a kick signals.
//!
//! A doorbell is registered in KVM while two things hold: the driver has turned
//! decoding on, and a session has been lent a kick eventfd for the queue, which a
//! device's owner does when it starts the ring. At any other time a kick exits to
//! us, and is dropped: a fresh kick eventfd has count 1. While rings rest (bus
//! mastering is off, or has just been turned on) it is passed to the owner.
//!
//! To compare, a kick can also be signalled by us ([`KickPath`]): then nothing is
//! registered, and every kick exits.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;
use outboard_log::Rarely;
use outboard_protocol::launch::KickPath;
use vmm_sys_util::eventfd::EventFd;

use super::interrupts::owing_eventfd;
use super::ringer::Ringer;
use crate::machine::kvm::doorbell::{Address, Doorbell};

/// Bytes between the notify addresses of two queues (notify_off_multiplier).
pub(crate) const STRIDE: u16 = 4;

/// The doorbells of one function.
#[derive(Debug)]
pub struct Doorbells {
    /// The device's.
    id: String,
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
    /// The doorbells that KVM has refused; rate-limited: logged at powers of two.
    refused: Rarely,
}

#[derive(Debug, Default)]
struct Queue {
    kick: Option<Arc<EventFd>>,
    doorbell: Option<Doorbell>,
    /// The ring was taken back and goes on with the next kick.
    rests: bool,
}

impl Doorbells {
    /// For `queues` queues of the device `id`, 64 at most, nowhere yet.
    ///
    /// # Errors
    /// Those of starting a thread, for [`KickPath::Worker`].
    pub fn new(id: &str, vm: Arc<VmFd>, queues: u16, path: KickPath) -> io::Result<Self> {
        let state = Arc::new(Mutex::new(State {
            base: None,
            queues: (0..queues).map(|_| Queue::default()).collect(),
            refused: Rarely::new(),
        }));
        let way = match path {
            KickPath::Kvm => Way::Kvm,
            KickPath::Exit => Way::Exit,
            KickPath::Worker => {
                let state = Arc::clone(&state);
                Way::Worker(Ringer::new(move |queue| signal(&state, queue))?)
            }
        };
        let id = id.to_owned();
        Ok(Self { id, vm, way, state })
    }

    /// Puts the doorbells where the driver has put their BAR, or nowhere. On
    /// the vCPU thread that moved it: from its next instruction on they ring
    /// there. Returns the queues of a live session, if the doorbells are
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
        for index in 0..state.queues.len() {
            self.register(&mut state, index);
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
        let index = usize::from(queue);
        let entry = state.queues.get_mut(index).ok_or(io::ErrorKind::NotFound)?;
        *entry = Queue::default();
        entry.kick = Some(Arc::clone(&kick));
        self.register(&mut state, index);
        Ok(kick)
    }

    /// A queue's kick eventfd, if one is lent. It may be asked, and not read.
    pub(crate) fn lent(&self, queue: u16) -> Option<Arc<EventFd>> {
        let state = self.state();
        state.queues.get(usize::from(queue))?.kick.clone()
    }

    /// Takes a queue's kick eventfd out of use: a kick now exits to us.
    pub fn withdraw(&self, queue: u16) {
        if let Some(entry) = self.state().queues.get_mut(usize::from(queue)) {
            *entry = Queue::default();
        }
    }

    /// Takes a queue's kick eventfd out of use for a while: a kick now exits to
    /// us, and is passed on.
    pub(crate) fn rest(&self, queue: u16) {
        if let Some(entry) = self.state().queues.get_mut(usize::from(queue)) {
            *entry = Queue {
                rests: true,
                ..Queue::default()
            };
        }
    }

    /// A kick has exited to us. Returns whether it must be passed on, since
    /// there is a session that waits for it and it is not ours to ring. One at
    /// the address of a registered doorbell (`at_doorbell`) exited before that
    /// was registered, and so before the back-end was lent an eventfd of count 1.
    pub fn exited(&self, queue: u16, at_doorbell: bool) -> bool {
        let state = lock(&self.state);
        let Some(entry) = state.queues.get(usize::from(queue)) else {
            return false;
        };
        if entry.rests {
            return true;
        }
        let waits = entry.kick.is_some() && !(at_doorbell && entry.doorbell.is_some());
        drop(state);
        match &self.way {
            Way::Kvm => return waits,
            Way::Exit => signal(&self.state, queue),
            Way::Worker(ringer) => ringer.ring(queue),
        }
        false
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn register(&self, state: &mut State, index: usize) {
        let Some(queue) = state.queues.get_mut(index) else {
            return;
        };
        let (Way::Kvm, Some(base), Some(kick)) = (&self.way, state.base, &queue.kick) else {
            return;
        };
        match Doorbell::register(&self.vm, at(base, index), kick) {
            Ok(doorbell) => queue.doorbell = Some(doorbell),
            // Then a kick exits to us and is passed on, slowly. A guest can cause
            // it again and again, by putting one BAR over another.
            Err(error) => {
                if let Some(times) = state.refused.again() {
                    let id = &self.id;
                    log::warn!("{id}: queue {index} will be slow: {error:#}{times}");
                }
            }
        }
    }
}

/// Where the doorbell of a queue is, 0 to 63.
fn at(base: Address, queue: usize) -> Address {
    let offset = (queue as u16).saturating_mul(STRIDE);
    match base {
        Address::Memory(base) => Address::Memory(base.saturating_add(offset.into())),
        Address::Port(base) => Address::Port(base.saturating_add(offset)),
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

#[cfg(test)]
mod tests {
    use kvm_ioctls::Kvm;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    const BASES: [Address; 2] = [Address::Memory(0xc000_3000), Address::Port(0xc000)];

    fn vm() -> Option<Arc<VmFd>> {
        match Kvm::new().and_then(|kvm| kvm.create_vm()) {
            Ok(vm) => Some(Arc::new(vm)),
            Err(error) => {
                eprintln!("SKIP: no usable /dev/kvm: {error}");
                None
            }
        }
    }

    /// Whether KVM has a doorbell there.
    fn rings(vm: &Arc<VmFd>, address: Address) -> bool {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        Doorbell::register(vm, address, &event).is_err()
    }

    #[test]
    fn a_doorbell_rings_while_it_is_placed_and_a_session_has_its_eventfd() {
        let Some(vm) = vm() else { return };
        for base in BASES {
            let doorbells = Doorbells::new("disk0", Arc::clone(&vm), 2, KickPath::Kvm).unwrap();
            let there = || [0, 1].map(|queue| rings(&vm, at(base, queue)));
            assert!(doorbells.place(Some(base)).is_empty());
            assert_eq!(there(), [false, false], "no session");
            let kick = doorbells.lend(1).unwrap();
            assert_eq!(kick.read().unwrap(), 1, "it owes a kick");
            assert_eq!(there(), [false, true]);
            assert!(doorbells.place(None).is_empty());
            assert_eq!(there(), [false, false], "nowhere");
            assert_eq!(doorbells.place(Some(base)), [1], "to be made good");
            assert!(doorbells.place(Some(base)).is_empty(), "not moved");
            assert_eq!(there(), [false, true]);
            doorbells.lend(1).unwrap();
            assert_eq!(there(), [false, true], "the next one's");
            assert!(!doorbells.exited(1, true), "and it is known");
            doorbells.withdraw(1);
            assert_eq!(there(), [false, false], "the session is over");
            assert!(doorbells.lend(2).is_err(), "there is no such queue");
        }
    }

    #[test]
    fn a_kick_that_exits_is_passed_on_where_nothing_else_makes_it_good() {
        let Some(vm) = vm() else { return };
        let doorbells = Doorbells::new("disk0", vm, 1, KickPath::Kvm).unwrap();
        let exited = || [true, false].map(|at_doorbell| doorbells.exited(0, at_doorbell));
        doorbells.place(Some(BASES[0]));
        assert_eq!(exited(), [false, false], "the next session's has count 1");
        let kick = doorbells.lend(0).unwrap();
        assert_eq!(exited(), [false, true], "this session's had count 1");
        doorbells.place(None);
        assert_eq!(exited(), [true, true], "nobody rings it");
        assert_eq!(kick.read().unwrap(), 1, "what is lent is never written");
        doorbells.withdraw(0);
        assert_eq!(exited(), [false, false]);
        assert!(!doorbells.exited(1, true), "there is no such queue");
    }

    #[test]
    fn a_refused_doorbell_leaves_the_kicks_to_us_until_there_is_room() {
        let Some(vm) = vm() else { return };
        for base in BASES {
            let [first, second] =
                [0, 1].map(|_| Doorbells::new("disk0", Arc::clone(&vm), 1, KickPath::Kvm).unwrap());
            for doorbells in [&first, &second] {
                doorbells.place(Some(base));
                doorbells.lend(0).unwrap();
            }
            assert!(!first.exited(0, true));
            assert!(second.exited(0, true), "KVM rings the other one's");
            drop(first);
            second.lend(0).unwrap();
            assert!(!second.exited(0, true));
            assert!(rings(&vm, base));
        }
    }
}
