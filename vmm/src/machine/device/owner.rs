//! The owner of a device: the thread that owns what the driver set up and the
//! session with the back-end, and does whatever either asks for.
//!
//! ```text
//!                attach                     DRIVER_OK
//!  no session ───────────▶ Serving, idle ─────────────▶ Serving, running
//!     ▲  ▲                   │    ▲                        │       │
//!     │  └────── lost ───────┘    └──── reset, or no ──────┘       │
//!     │                                 bus mastering              │
//!     └────────────────────────── lost ────────────────────────────┘
//! ```
//! What the driver has set up stays noted while there is no session ([`Driver`]), and
//! the next back-end goes on with it, if that can be done exactly (`resume.rs`). What
//! the guest waits for meanwhile is done once nobody has its memory any more
//! ([`Vacancy`]).
//! Whatever is said of a session carries its number. A back-end may wait meanwhile, to
//! serve when that one is lost (`standby.rs`); what becomes of it disturbs nobody.

mod agreed;
mod config;
mod loss;
mod reserve;
mod succession;
mod swap;
mod unserved;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_log::{Rarely, rarely};
use outboard_protocol::Deadline;
use outboard_protocol::launch::FromMachine;

use self::agreed::Agreed;
use self::config::no_longer_fits;
use self::swap::Rest;
use super::driver::Driver;
use super::kinds::blk::{self, Cache};
use super::mastering::Mastering;
use super::seat::Seat;
use super::serving::{Keeping, Serving};
use super::standby::Standby;
use super::vacancy::Vacancy;
use super::watch::Watch;
use crate::machine::frontend::Interruption;
use crate::machine::pci::Clearing;
use crate::machine::post::{Command, Mailbox};
use crate::machine::virtio::{Event, Registers, Ring};

/// Between two calls of poll that fail at once.
const PAUSE: Duration = Duration::from_millis(1);
/// Least time between two looks at a configuration of which the back-end says
/// again and again that it has changed.
const CONFIG_PAUSE: Duration = Duration::from_millis(10);

/// What the thread has.
pub(crate) struct Owner {
    seat: Seat,
    commands: Arc<Mailbox<Command>>,
    events: Arc<Mailbox<FromMachine>>,
    interruption: Arc<Interruption>,
    driver: Driver,
    serving: Option<Serving>,
    /// Its rings were handed back.
    rest: Option<Rest>,
    standby: Standby,
    vacancy: Vacancy,
    mastering: Mastering,
    /// The configuration is to be read again, and not before this.
    config_stale: Option<Deadline>,
    watch: Watch,
    /// That the driver must reset the device; a guest can cause it, so it is
    /// rate-limited: logged at powers of two.
    broken: Rarely,
    agreed: Agreed,
    /// What the first back-end let the driver be offered: of a successor's, no more is. A
    /// driver that acknowledged more after its reset could be served by nobody else.
    offers: Option<u64>,
}

impl Owner {
    /// Before its first attach. It obeys `commands` and tells `events`;
    /// `interruption` ends whatever it waits for; `standby` is without a back-end.
    pub(crate) fn new(
        seat: Seat,
        commands: Arc<Mailbox<Command>>,
        events: Arc<Mailbox<FromMachine>>,
        interruption: Arc<Interruption>,
        standby: Standby,
    ) -> Self {
        Self {
            watch: Watch::new(&seat.spec),
            seat,
            commands,
            events,
            interruption,
            driver: Driver::default(),
            serving: None,
            rest: None,
            standby,
            vacancy: Vacancy::default(),
            mastering: Mastering::Off,
            config_stale: None,
            broken: Rarely::new(),
            agreed: Agreed::default(),
            offers: None,
        }
    }

    /// Serves until it is told to stop.
    pub(crate) fn run(mut self) {
        loop {
            self.wait();
            for command in self.commands.take() {
                if matches!(command, Command::Stop) {
                    self.seat.withdraw_all();
                    return;
                }
                let result = self.obey(command);
                self.lose_on_error(result);
            }
            let result = self.attend();
            self.lose_on_error(result);
            self.attend_standby();
            self.watch();
            self.tell_agreed();
        }
    }

    /// Waits until there is something to do.
    fn wait(&self) {
        let mut fds: Vec<BorrowedFd<'_>> = vec![self.commands.as_fd()];
        fds.extend(self.serving.iter().flat_map(Serving::fds));
        fds.extend(self.standby.fds());
        fds.extend(self.watch.fd());
        let mut fds: Vec<_> = fds
            .into_iter()
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let due = [
            self.config_stale,
            self.mastering.resumes_at(),
            self.watch.due(),
        ];
        let due = due.into_iter().flatten().min();
        let timeout = due.map_or(PollTimeout::NONE, Deadline::poll_timeout);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                rarely!(error, "{}: poll failed: {errno}", self.seat.spec.id);
                std::thread::sleep(PAUSE);
            }
        }
    }

    fn obey(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Attach(newcomer) => {
                self.attach(newcomer);
                Ok(())
            }
            Command::Prepare(newcomer) => {
                self.prepare(newcomer);
                Ok(())
            }
            Command::Promote(number, replaces) => {
                self.promote(number, replaces);
                Ok(())
            }
            Command::HandBack(number) => self.hand_back(number),
            Command::Vacant(number) => {
                self.is_vacant(number);
                Ok(())
            }
            Command::Kick(queue) => self.kick(queue),
            Command::MayMaster => {
                self.seat.function.interrupts.set_master(true);
                self.mastering = Mastering::allowed(self.driver.uses_the_device());
                Ok(())
            }
            Command::MustNotMaster(clearing) => self.must_not_master(clearing),
            Command::Guest(Event::DriverOk { features, rings }) => {
                self.driver.is_ready_with(features, rings);
                self.start()
            }
            Command::Guest(Event::RingEnabled(ring)) => self.start_one_more(ring),
            Command::Guest(Event::Reset) => {
                let result = self.reset_backend();
                self.lose_on_error(result);
                self.driver.is_gone();
                // While its rings rest it is not known who serves it next.
                if self.serving.is_some() && self.rest.is_none() {
                    self.driver.is_served();
                }
                self.mastering.rested();
                self.vacancy.resets();
                self.settle();
                Ok(())
            }
            Command::Guest(Event::ConfigWrite { offset, data }) => self.write_config(offset, &data),
            // The function has seen to those itself.
            Command::Guest(Event::Vector { .. } | Event::VectorsCleared) | Command::Stop => Ok(()),
        }
    }

    /// Starts the rings of the driver, if it is ready, there is a back-end, and
    /// they may be started.
    fn start(&mut self) -> Result<()> {
        if self.rest.is_some() {
            return Ok(());
        }
        let idle = self.serving.as_mut().filter(|serving| serving.is_idle());
        let (Some(serving), Some(features)) = (idle, self.driver.features()) else {
            return Ok(());
        };
        if !self.mastering.is_on() {
            self.seat.rest(&self.driver);
            return Ok(());
        }
        if !serving.can_serve(&self.driver, &self.seat.ram) {
            self.needs_reset();
            return Ok(());
        }
        let spec = &self.seat.spec;
        if !blk::flushes(features) {
            let cache = serving.settle_cache(spec, false)?;
            if cache != Cache::Fixed {
                self.config_stale = Some(Deadline::after(Duration::ZERO));
            }
            if cache == Cache::Set {
                self.driver.has_configured();
            }
        }
        serving.start(&self.seat, &mut self.driver)
    }

    fn start_one_more(&mut self, ring: Ring) -> Result<()> {
        let is_ready = self.driver.adds(ring);
        let has = |serving: &&mut Serving| serving.serves(ring.index);
        let Some(serving) = self.serving.as_mut().filter(has).filter(|_| is_ready) else {
            return Ok(());
        };
        if !serving.can_serve(&self.driver, &self.seat.ram) {
            self.needs_reset();
            return Ok(());
        }
        serving.start_ring(&self.seat, ring, 0)
    }

    /// A kick that KVM could not deliver: for a ring that runs, or for all of
    /// them while they rest.
    fn kick(&mut self, queue: u16) -> Result<()> {
        match &mut self.serving {
            Some(serving) if serving.is_running() => {
                serving.restart(&self.seat, &mut self.driver, queue)
            }
            _ => self.resume(),
        }
    }

    /// Rings that rest go on.
    fn resume(&mut self) -> Result<()> {
        match self.mastering.rested() {
            true => self.start(),
            false => Ok(()),
        }
    }

    /// The guest turned bus mastering off, and a vCPU waits: takes the rings back,
    /// and lets it go on when nothing is written any more.
    ///
    /// # Errors
    /// That cannot be had: the session is over, and the vCPU waits until whoever
    /// served it is gone.
    fn must_not_master(&mut self, clearing: Clearing) -> Result<()> {
        self.mastering = Mastering::Off;
        self.vacancy.clears(clearing);
        if let Some(serving) = &mut self.serving
            && serving.take_back(&self.seat, &mut self.driver, Keeping::Refused)?
        {
            self.needs_reset();
        }
        self.settle();
        Ok(())
    }

    /// Takes the rings back from the back-end, and tells it that the driver has
    /// gone, whose rings may have been taken back before. It may go back to a
    /// write cache of its own then, so that is set anew; the driver sees the
    /// device only afterwards.
    fn reset_backend(&mut self) -> Result<()> {
        let has_marks = self.driver.has_left_marks();
        let concerned = |serving: &&mut Serving| serving.is_running() || has_marks;
        let Some(serving) = self.serving.as_mut().filter(concerned) else {
            return Ok(());
        };
        let Seat { spec, function, .. } = &self.seat;
        serving.take_back(&self.seat, &mut self.driver, Keeping::Believed)?;
        self.seat.withdraw_all();
        serving.reset_device()?;
        let cache = serving.settle_cache(spec, true)?;
        if cache != Cache::Fixed {
            let config = serving.read_config(spec).map_err(no_longer_fits)?;
            function.with_registers(|registers| {
                registers.offer(cache.usable(registers.offered()));
                registers.set_config(&config);
            });
        }
        Ok(())
    }

    /// What the back-end has to say, and what is due.
    fn attend(&mut self) -> Result<()> {
        let notices = match &mut self.serving {
            Some(serving) => serving.listen()?,
            None => Default::default(),
        };
        if notices.unread {
            log::warn!(
                "{}: its back-end asks and does not read our answers, so it is not listened to any \
                 more: a change of its configuration will not be seen",
                self.seat.spec.id
            );
        }
        if notices.config_changed && self.config_stale.is_none() {
            self.config_stale = Some(Deadline::after(CONFIG_PAUSE));
        }
        if notices.ring_broken {
            self.needs_reset();
        }
        let resumes_at = self.mastering.resumes_at();
        if resumes_at.is_some_and(Deadline::passed) {
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
            let id = &self.seat.spec.id;
            log::warn!("{id}: it needs a reset by its driver{times}");
        }
        let function = &self.seat.function;
        if function.with_registers(Registers::needs_reset) {
            function.interrupts.config_changed();
        }
    }
}
