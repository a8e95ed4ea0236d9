//! The thread that owns one device's session.
//!
//! ```text
//!              attach                     DRIVER_OK
//!  Detached ───────────▶ Idle(Negotiated) ─────────▶ Running(Started)
//!     ▲ ▲                 │    ▲                        │      │
//!     │ └──── lost ───────┘    └───────── reset ────────┘      │
//!     └─────────────────────── lost ───────────────────────────┘
//! ```
//! What the driver has set up stays noted while no back-end is attached
//! ([`Driver`]): a successor will start from it.

mod cache;
mod config;
mod mastering;
mod rings;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_log::Rarely;
use outboard_protocol::Deadline;
use outboard_protocol::descriptors::explain;
use outboard_protocol::launch::{self, Cause, SessionNumber, Whose};

use self::mastering::Mastering;
use super::backend::{Backend, Keeping, wait_drained};
use super::driver::Driver;
use super::errors::RingErrors;
use super::kinds;
use crate::machine::frontend::{Connected, Interruption, RingStart, Session, cause_of};
use crate::machine::memory::Ram;
use crate::machine::pci::Function;
use crate::machine::post::{Command, DeviceEvent, Mailbox};
use crate::machine::virtio::{Event, Registers, Ring};

/// Between two waits that fail at once.
const PAUSE: Duration = Duration::from_millis(1);
/// Between two answers to a back-end that says again and again that its
/// configuration has changed.
const CONFIG_PAUSE: Duration = Duration::from_millis(10);

/// The thread's own.
pub struct Worker {
    spec: launch::Device,
    ram: Arc<Ram>,
    function: Arc<Function>,
    commands: Arc<Mailbox<Command>>,
    interruption: Arc<Interruption>,
    events: Arc<Mailbox<DeviceEvent>>,
    backend: Backend,
    whose: Whose,
    /// That of the session which is attached, from before anything is said of it.
    session: Option<SessionNumber>,
    /// How many queues it serves; any other that a driver enables stays unserved.
    served: u16,
    driver: Driver,
    mastering: Mastering,
    errors: RingErrors,
    /// The configuration is to be read again, and not before this.
    config_stale: Option<Deadline>,
    /// What a guest can cause: that it must be reset.
    broken: Rarely,
}

impl Worker {
    /// A thread's state before its first attach.
    pub fn new(
        spec: launch::Device,
        ram: Arc<Ram>,
        function: Arc<Function>,
        commands: Arc<Mailbox<Command>>,
        interruption: Arc<Interruption>,
        events: Arc<Mailbox<DeviceEvent>>,
    ) -> Self {
        Self {
            spec,
            ram,
            function,
            commands,
            interruption,
            events,
            backend: Backend::Detached,
            whose: Whose::default(),
            session: None,
            served: 0,
            driver: Driver::default(),
            mastering: Mastering::Off,
            errors: RingErrors::default(),
            config_stale: None,
            broken: Rarely::new(),
        }
    }

    /// Serves until it is told to stop.
    pub fn run(mut self) {
        loop {
            self.wait();
            for command in self.commands.take() {
                if matches!(command, Command::Stop) {
                    self.withdraw_all();
                    return;
                }
                let result = self.obey(command);
                self.lose_on_error(result);
            }
            let result = self.attend();
            self.lose_on_error(result);
        }
    }

    /// Waits until there is something to do.
    fn wait(&self) {
        let mut fds: Vec<BorrowedFd<'_>> = vec![self.commands.as_fd()];
        fds.extend(self.backend.fds());
        fds.extend(self.errors.fds());
        let mut fds: Vec<_> = fds
            .into_iter()
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let due = [self.config_stale, self.resumes_at()].into_iter().flatten();
        let timeout = due.min().map_or(PollTimeout::NONE, Deadline::poll_timeout);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                static FAILED: Rarely = Rarely::new();
                if let Some(times) = FAILED.again() {
                    log::error!("{}: waiting: {errno}{times}", self.spec.id);
                }
                std::thread::sleep(PAUSE);
            }
        }
    }

    fn obey(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Attach(number, session) => self.attach(number, session),
            Command::Kick(queue) => self.restart(queue),
            Command::MayMaster => {
                self.may_master();
                Ok(())
            }
            Command::MustNotMaster(clearing) => self.must_not_master(clearing),
            Command::Guest(Event::DriverOk { features, rings }) => {
                self.driver.is_ready_with(features, rings);
                self.start()
            }
            Command::Guest(Event::RingEnabled(ring)) => self.start_one_more(ring),
            Command::Guest(Event::Reset) => {
                let result = self.reset();
                self.driver.is_gone();
                self.mastering.rested();
                self.function.with_registers(Registers::reset_done);
                result
            }
            Command::Guest(Event::ConfigWrite { offset, data }) => self.write_config(offset, &data),
            // The function has seen to those itself.
            Command::Guest(Event::Vector { .. } | Event::VectorsCleared) | Command::Stop => Ok(()),
        }
    }

    /// The first words with a new back-end. One that cannot be taken is told so,
    /// and all else stays as it is.
    fn attach(&mut self, number: SessionNumber, session: Session<Connected>) -> Result<()> {
        if self.session.is_some() {
            let text = "the device has a back-end already";
            self.refuse(number, Cause::DoesNotFit, text);
            return Ok(());
        }
        if self.driver.uses_the_device() {
            let text = "a back-end came back while the guest uses the device: the guest must reset \
                        it first";
            self.refuse(number, Cause::NotRecoverable, text);
            return Ok(());
        }
        self.session = Some(number);
        self.whose = session.whose();
        let session = session.negotiate(&self.spec.id, &self.interruption)?;
        let agreement = session.agreement();
        kinds::fits(&agreement, &self.spec)?;
        self.served = kinds::served(&agreement, &self.spec);
        self.backend = Backend::Idle(session);
        let cache = self.attach_cache()?;
        let config = self.read_config()?.unwrap_or_default();
        let features = cache.usable(kinds::usable(&agreement, &config, &self.spec)?);
        self.function.with_registers(|registers| {
            registers.offer(features);
            registers.set_config(&config);
        });
        self.events.post(DeviceEvent::Attached {
            device: self.spec.id.clone(),
            session: number,
        });
        Ok(())
    }

    /// Tells that a session cannot begin. It is not the one that is attached.
    fn refuse(&self, session: SessionNumber, cause: Cause, text: &str) {
        self.events.post(DeviceEvent::Lost {
            device: self.spec.id.clone(),
            session,
            cause,
            text: text.into(),
        });
    }

    /// The driver is ready: starts its rings, if there is a back-end.
    fn start(&mut self) -> Result<()> {
        let (Backend::Idle(_), Some(features)) = (&self.backend, self.driver.features()) else {
            return Ok(());
        };
        if !self.may_start() {
            return Ok(());
        }
        if !self.rings_are_sound() {
            self.needs_reset();
            return Ok(());
        }
        self.without_flushes(features)?;
        let starts = self.served_rings();
        let starts = starts.map(|(ring, base)| self.lend(ring, base));
        let starts: Vec<_> = starts.collect::<Result<_>>()?;
        let Backend::Idle(session) = std::mem::take(&mut self.backend) else {
            return Ok(());
        };
        let queues = (self.served, self.spec.queue_size);
        let inflight = self.driver.inflight();
        let session = session.start(&self.ram, features, queues, inflight, &starts)?;
        for start in starts {
            self.errors.watch(start.ring.index, start.error);
        }
        self.backend = Backend::Running(session);
        Ok(())
    }

    fn start_one_more(&mut self, ring: Ring) -> Result<()> {
        if !self.driver.adds(ring) || ring.index >= self.served {
            return Ok(());
        }
        if !self.rings_are_sound() {
            self.needs_reset();
            return Ok(());
        }
        if matches!(self.backend, Backend::Running(_)) {
            let start = self.lend(ring, 0)?;
            if let Backend::Running(session) = &mut self.backend {
                session.start_rings(std::slice::from_ref(&start))?;
            }
            self.errors.watch(start.ring.index, start.error);
        }
        Ok(())
    }

    /// A kick that KVM could not deliver. A lent eventfd is never written, so
    /// the ring is taken back and started again, and with that comes the one
    /// kick that every start owes.
    fn restart(&mut self, queue: u16) -> Result<()> {
        let Backend::Running(session) = &mut self.backend else {
            return self.resume();
        };
        let served = session.rings().contains(&queue) && !self.errors.is_broken(queue);
        let Some(ring) = self.driver.ring(queue).filter(|_| served) else {
            return Ok(());
        };
        let stopped = session.stop_ring(queue)?;
        self.driver.rests(&stopped);
        let whose = (&self.spec, self.whose);
        wait_drained(
            session,
            whose,
            &stopped,
            (&ring, &self.ram),
            Keeping::Believed,
        )?;
        let start = self.lend(ring, stopped.base)?;
        if let Backend::Running(session) = &mut self.backend {
            session.start_rings(std::slice::from_ref(&start))?;
        }
        self.errors.watch(start.ring.index, start.error);
        Ok(())
    }

    /// Fresh eventfds for a ring, bound before they are lent.
    fn lend(&self, ring: Ring, base: u16) -> Result<RingStart> {
        let (interrupts, doorbells) = (&self.function.interrupts, &self.function.doorbells);
        let making = || format!("making eventfds for queue {}", ring.index);
        Ok(RingStart {
            ring,
            base,
            call: interrupts
                .lend(ring.index)
                .map_err(explain)
                .with_context(making)?,
            kick: doorbells
                .lend(ring.index)
                .map_err(explain)
                .with_context(making)?,
            error: RingErrors::eventfd()
                .map_err(explain)
                .with_context(making)?,
        })
    }

    /// Takes the rings back from the back-end, and tells it that the driver has
    /// gone, whose rings may have been taken back before.
    fn reset(&mut self) -> Result<()> {
        let mut session = match std::mem::take(&mut self.backend) {
            Backend::Running(session) => {
                let (mut session, stopped) = session.stop()?;
                self.wait_for_drain(&mut session, &stopped, Keeping::Believed)?;
                session
            }
            Backend::Idle(session) if self.driver.uses_the_device() => session,
            other => {
                self.backend = other;
                return Ok(());
            }
        };
        self.errors.clear();
        self.withdraw_all();
        session.reset_device()?;
        self.backend = Backend::Idle(session);
        self.reset_cache()
    }

    /// What the back-end has to say, and what is due.
    fn attend(&mut self) -> Result<()> {
        let notices = self.backend.listen()?;
        if notices.unread {
            log::warn!(
                "{}: its back-end does not read the answers to its own requests, so it gets no \
                 more of them: a change of its configuration will not be seen",
                self.spec.id
            );
        }
        if notices.config_changed && self.config_stale.is_none() {
            self.config_stale = Some(Deadline::after(CONFIG_PAUSE));
        }
        if self.errors.take_broken() || notices.ring_broken {
            self.needs_reset();
        }
        if self.resumes_at().is_some_and(Deadline::passed) {
            self.resume()?;
        }
        if self.config_stale.is_some_and(Deadline::passed) {
            self.config_stale = None;
            self.refresh_config()?;
        }
        Ok(())
    }

    fn needs_reset(&mut self) {
        if let Some(times) = self.broken.again() {
            let id = &self.spec.id;
            log::warn!("{id}: it needs a reset by its driver{times}");
        }
        if self.function.with_registers(Registers::needs_reset) {
            self.function.interrupts.config_changed();
        }
    }

    /// After an error there is no session any more.
    fn lose_on_error(&mut self, result: Result<()>) {
        let Err(error) = result else { return };
        self.backend = Backend::Detached;
        self.errors.clear();
        self.config_stale = None;
        self.withdraw_all();
        self.interruption.end_session();
        let session = self.session.take();
        if self.interruption.is_stopping() {
            return;
        }
        let (device, text) = (self.spec.id.clone(), format!("{error:#}"));
        self.events.post(match (session, cause_of(&error)) {
            (Some(session), Some(cause)) => DeviceEvent::Lost {
                device,
                session,
                cause,
                text,
            },
            // What goes wrong without a back-end is none's fault.
            _ => DeviceEvent::Failed {
                device,
                cause: text,
            },
        });
    }

    /// From now on a kick exits to us, and nothing that was lent raises an
    /// interrupt.
    fn withdraw_all(&self) {
        for queue in 0..self.spec.queues {
            self.function.doorbells.withdraw(queue);
            self.function.interrupts.withdraw(queue);
        }
    }
}
