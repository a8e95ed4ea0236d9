//! The interrupts of one function: its MSI-X table, the eventfds that raise
//! them, and what binds the two in KVM.
//!
//! ```text
//!  source (queue or configuration) ── its eventfd ── irqfd ── route of its vector
//!                                                     └ only while the vector has
//!                                                       a message and no mask, and
//!                                                       the function is bus master
//! ```
//! While it is not bound, an eventfd that has been signalled is the pending bit
//! of its vector: it is asked by poll(2), never read, because it is lent.
//! KVM injects the waiting count when it is bound again.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outboard_log::rarely;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::msix;
use crate::machine::kvm::irq::{Irqfd, Route, Routes, is_signalled};
use crate::machine::virtio::{NO_VECTOR, Source};

/// An eventfd with count 1: the one kick, or call, that every start owes.
///
/// # Errors
/// Those of eventfd(2).
pub(crate) fn owing_eventfd() -> io::Result<Arc<EventFd>> {
    let event = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
    // Before it is lent, so nobody can make this block.
    event.write(1)?;
    Ok(Arc::new(event))
}

/// The interrupts of one function.
#[derive(Debug)]
pub(crate) struct Interrupts {
    /// Our own, never lent: raises the configuration interrupt.
    config: Arc<EventFd>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    table: msix::Table,
    /// A message is a write to memory.
    is_master: bool,
    // Before the routes they are bound to, so that they are dropped first.
    queues: Vec<Line>,
    config: Line,
    routes: Vec<Route>,
}

/// One source of interrupts.
#[derive(Debug)]
struct Line {
    /// The device's id.
    id: Arc<str>,
    vector: u16,
    event: Option<Arc<EventFd>>,
    bound: Option<(u16, Irqfd)>,
}

impl Line {
    fn new(id: &Arc<str>, event: Option<Arc<EventFd>>) -> Self {
        Self {
            id: Arc::clone(id),
            vector: NO_VECTOR,
            event,
            bound: None,
        }
    }

    /// Binds or unbinds the eventfd as the table has it now; `None`: nothing is
    /// to be delivered at all.
    fn refresh(&mut self, table: Option<&msix::Table>, routes: &[Route]) {
        let message = table.and_then(|table| table.deliverable(self.vector));
        let route = routes.get(usize::from(self.vector));
        let (Some(event), Some(message), Some(route)) = (&self.event, message, route) else {
            self.bound = None;
            return;
        };
        if let Err(error) = route.set(message) {
            // A message that the guest made up: as undeliverable as masked.
            rarely!(debug, "{}: vector {}: {error:#}", self.id, self.vector);
            self.bound = None;
            return;
        }
        if matches!(&self.bound, Some((vector, _)) if *vector == self.vector) {
            return;
        }
        self.bound = None;
        match route.bind(event) {
            Ok(irqfd) => self.bound = Some((self.vector, irqfd)),
            // A guest can cause it again and again, so it is rate-limited: logged
            // at powers of two.
            Err(error) => {
                rarely!(error, "{}: vector {}: {error:#}", self.id, self.vector);
            }
        }
    }

    fn pending(&self, vector: u16) -> bool {
        let waits = self.event.as_ref().is_some_and(|event| is_signalled(event));
        self.vector == vector && self.bound.is_none() && waits
    }
}

impl State {
    fn refresh(&mut self, which: impl Fn(&Line) -> bool) {
        let lines = self.queues.iter_mut().chain([&mut self.config]);
        let table = self.is_master.then_some(&self.table);
        for line in lines.filter(|line| which(line)) {
            line.refresh(table, &self.routes);
        }
    }

    fn line(&mut self, source: Source) -> Option<&mut Line> {
        match source {
            Source::Config => Some(&mut self.config),
            Source::Queue(index) => self.queues.get_mut(usize::from(index)),
        }
    }
}

impl Interrupts {
    /// For `queues` queues and `vectors` vectors of the device `id`, MSI-X
    /// disabled.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub(crate) fn new(
        id: &str,
        routes: &Arc<Routes>,
        queues: u16,
        vectors: u16,
    ) -> io::Result<Self> {
        let id = Arc::from(id);
        let config = Arc::new(EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let state = State {
            table: msix::Table::new(vectors),
            is_master: false,
            queues: (0..queues).map(|_| Line::new(&id, None)).collect(),
            config: Line::new(&id, Some(Arc::clone(&config))),
            routes: (0..vectors).map(|_| routes.route()).collect(),
        };
        Ok(Self {
            config,
            state: Mutex::new(state),
        })
    }

    /// A fresh call eventfd for a queue, count 1, bound if its vector allows;
    /// the former one raises nothing any more.
    ///
    /// # Errors
    /// Those of eventfd(2); `NotFound` for a queue that does not exist.
    pub(crate) fn lend(&self, queue: u16) -> io::Result<Arc<EventFd>> {
        let event = owing_eventfd()?;
        self.set_event(queue, Some(Arc::clone(&event)))?;
        Ok(event)
    }

    /// Takes a queue's call eventfd out of use.
    pub(crate) fn withdraw(&self, queue: u16) {
        if let Err(error) = self.set_event(queue, None) {
            log::error!("taking a call eventfd back: {error}");
        }
    }

    fn set_event(&self, queue: u16, event: Option<Arc<EventFd>>) -> io::Result<()> {
        let mut state = self.state();
        let State {
            table,
            is_master,
            queues,
            routes,
            ..
        } = &mut *state;
        let line = queues
            .get_mut(usize::from(queue))
            .ok_or(io::ErrorKind::NotFound)?;
        line.bound = None;
        line.event = event;
        line.refresh(is_master.then_some(table), routes);
        Ok(())
    }

    /// Raises the configuration interrupt, now or when it is unmasked.
    pub(crate) fn config_changed(&self) {
        if let Err(error) = self.config.write(1)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            log::error!("raising a configuration interrupt: {error}");
        }
    }

    /// The driver assigned a vector to a source.
    pub(crate) fn assign(&self, source: Source, vector: u16) {
        let mut state = self.state();
        if let Some(line) = state.line(source) {
            line.vector = vector;
        }
        state.refresh(|line| line.vector == vector);
    }

    /// A reset took all vectors away.
    pub(crate) fn clear_vectors(&self) {
        let mut state = self.state();
        for line in state.queues.iter_mut() {
            line.vector = NO_VECTOR;
        }
        state.config.vector = NO_VECTOR;
        state.refresh(|_| true);
        // What waited in it concerned the driver that is gone. An error means
        // that nothing waited.
        let _ = self.config.read();
    }

    /// The driver wrote message control.
    pub(crate) fn set_control(&self, control: u16) {
        let mut state = self.state();
        if state.table.set_control(control) {
            state.refresh(|_| true);
        }
    }

    /// The driver turned bus mastering on or off. What is to be raised while it
    /// is off waits.
    pub(crate) fn set_master(&self, is_master: bool) {
        let mut state = self.state();
        if std::mem::replace(&mut state.is_master, is_master) != is_master {
            state.refresh(|_| true);
        }
    }

    /// The driver reads the table.
    pub(crate) fn read_table(&self, offset: usize, data: &mut [u8]) {
        self.state().table.read(offset, data);
    }

    /// The driver writes the table.
    pub(crate) fn write_table(&self, offset: usize, data: &[u8]) {
        let mut state = self.state();
        if let Some(vector) = state.table.write(offset, data) {
            state.refresh(|line| line.vector == vector);
        }
    }

    /// The driver reads the pending bits: any width, zero beyond their end.
    pub(crate) fn read_pending(&self, offset: usize, data: &mut [u8]) {
        let state = self.state();
        data.fill(0);
        for vector in 0..state.table.vectors() {
            let byte = usize::from(vector / 8).checked_sub(offset);
            let mut lines = state.queues.iter().chain([&state.config]);
            if let Some(byte) = byte.and_then(|index| data.get_mut(index))
                && lines.any(|line| line.pending(vector))
            {
                *byte |= 1 << (vector % 8);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
