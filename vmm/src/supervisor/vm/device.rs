//! The life of one device, as its supervisor sees it. Nothing here waits or
//! touches a process: an event comes in, what is to be done comes out, and every
//! patience is a deadline in a state.
//!
//! ```text
//!       Begin          Found        Go             Attached
//!  Down ─────▶ Seeking ─────▶ Found ───▶ Attaching ────────▶ Serving
//!   ▲             │                          │                  │
//!   │             │                          └──┬───────────────┤ the process ended in order:
//!   │             │       the session is lost:  ▼               ▼ was it cut off, and why?
//!   │             │       has the process died? Lost           Left
//!   │             │                             └─────┬─────────┘ LAG
//!   │             └───────────▶ Over ◀────────────────┘  (a fault is told, or the VM ends)
//!   │                            │ Leave: the machine is gone
//!   │                            ▼
//!   └─────────── Killed ◀──── Leaving (until it ends; TELL: SIGTERM; END)
//! ```
//! Where the VM lives on, what is lost is recovered (`recovery.rs`):
//!
//! ```text
//!                Recover                 Clear                      the back-off is over
//!  Over ────────────────────▶ Clearing ──────▶ Resting ──────────────▶ Seeking, or Found
//!  Serving ── Restart ──▶ Stopping ─▲ │                                        ▲
//!                                     ├─ nobody can go on exactly ─▶ Out ─ Free ─┤
//!                                     └─ on-failure=pause ─▶ Held ─ Resume ──────┘
//! ```
//! A disk of a VM that an operator has paused comes to `Held`, too, where it would begin.
//! A process is started in one place, from `Found`, and every way there leads
//! through `Clear`: a predecessor and its successor never live side by side, and the
//! I/O of one is over before the other begins. A standby is no exception: it touches
//! nothing before it takes over, which it does where a process would be started
//! (`standby.rs`).

mod blame;
mod ending;
mod event;
mod hang;
mod health;
mod keeping;
mod line;
mod recovery;
mod resize;
mod server;
mod serving;
mod standby;
mod state;
mod suspects;
mod swap;

use std::time::Instant;

use outboard_protocol::deadline::limits;
use outboard_protocol::kept::Kept;
use outboard_protocol::launch::SessionNumber;

pub(crate) use self::event::{Event, Fault, Outcome};
use self::hang::Suspicion;
use self::health::Health;
use self::line::Line;
use self::resize::Resize;
pub(crate) use self::server::Server;
use self::standby::Standby;
pub(crate) use self::state::State;
use self::suspects::Suspects;
use self::swap::Swap;
pub(crate) use self::swap::{Noise, NotDone};
use super::action::Action;
use super::answer::Agreed;
use crate::supervisor::api::model::Refused;
use crate::supervisor::device::plan::OnFailure;
use crate::supervisor::process::child::Death;

/// One device.
#[derive(Debug)]
pub(crate) struct Device {
    place: usize,
    id: String,
    server: Server,
    /// It is a disk: what an operator pauses is to leave its image alone.
    is_disk: bool,
    /// An operator has paused the VM: nobody is to have its rings.
    is_to_rest: bool,
    /// Whether that lives.
    lives: bool,
    session: SessionNumber,
    /// The last number that was given to a session: this one's, or a standby's.
    numbered: SessionNumber,
    standby: Standby,
    swap: Swap,
    resize: Resize,
    line: Line,
    suspicion: Suspicion,
    /// Its back-end holds back what has failed.
    holds: bool,
    /// The user knows that its back-end keeps version 1 of the launch contract.
    told_version: bool,
    /// What must survive its back-end, and its driver will not say again; `None`:
    /// nobody knows that.
    kept: Option<Kept>,
    agreed: Agreed,
    suspects: Suspects,
    /// How many requests were refused, and the last of them.
    refused: (u64, Option<Refused>),
    /// A sync of its image has failed: what the kernel has lost no reset brings back, and
    /// the next sync would succeed.
    sync_failed: bool,
    /// Why nobody can go on where its back-end was lost, if that is so.
    beyond: Option<String>,
    /// The last back-end keeps version 1 of the launch contract, and works with our
    /// description of the image: nobody sees when its I/O is over, unless it has ended
    /// with status 0, which it does then.
    shares: bool,
    /// The next back-end is not started before the VM is resumed, as `on_failure` wants it.
    held: bool,
    health: Health,
    on_failure: OnFailure,
    state: State,
}

impl Device {
    /// The device at `place`, called `id`, and who serves it.
    pub(crate) fn served_by(place: usize, id: &str, server: Server) -> Self {
        Self {
            place,
            id: id.to_owned(),
            server,
            is_disk: false,
            is_to_rest: false,
            lives: false,
            session: 0,
            numbered: 0,
            standby: Standby::default(),
            swap: Swap::default(),
            resize: Resize::default(),
            line: Line::Silent,
            suspicion: Suspicion::default(),
            holds: false,
            told_version: false,
            kept: Some(Kept::Nothing),
            agreed: Agreed::default(),
            suspects: Suspects::default(),
            refused: (0, None),
            sync_failed: false,
            beyond: None,
            shares: false,
            held: false,
            health: Health::default(),
            on_failure: OnFailure::default(),
            state: State::Down,
        }
    }

    /// With this policy.
    pub(crate) fn on_failure(mut self, policy: OnFailure) -> Self {
        self.on_failure = policy;
        self
    }

    /// Of a disk, if `is_disk`.
    pub(crate) fn for_a_disk(mut self, is_disk: bool) -> Self {
        self.is_disk = is_disk;
        self
    }

    /// What becomes of the VM when its back-end fails.
    pub(crate) fn policy(&self) -> OnFailure {
        self.on_failure
    }

    /// Its id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// What its back-end is called: a program's name, or a socket's path.
    pub(crate) fn name(&self) -> &str {
        &self.server.name
    }

    /// Where it is.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// What its driver and its back-end have agreed on.
    pub(crate) fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// When time itself is the next event, if nothing else comes before.
    pub(crate) fn due(&self) -> Option<Instant> {
        let due = match &self.state {
            State::Lost { until, .. } | State::Left { until, .. } | State::Killed { until, .. } => {
                Some(*until)
            }
            State::Leaving {
                since,
                told,
                mention,
            } => {
                let tell = if *told { limits::END } else { limits::TELL };
                Some(*since + tell.min(*mention).min(limits::END))
            }
            State::Clearing { since, mention } => Some(*since + *mention),
            State::Resting { until } | State::Stopping { until } => Some(*until),
            _ => None,
        };
        let others = [
            self.line_due(),
            self.standby_due(),
            self.swap_due(),
            self.resize_due(),
        ];
        due.into_iter().chain(others.into_iter().flatten()).min()
    }

    /// Takes an event; returns what becomes of it.
    pub(crate) fn step(&mut self, event: Event, now: Instant) -> Vec<Outcome> {
        let mut out = Vec::new();
        self.take(event, now, &mut out);
        self.settle_swap(now, &mut out);
        self.settle_size();
        self.settle_rest(&mut out);
        out
    }

    fn take(&mut self, event: Event, now: Instant, out: &mut Vec<Outcome>) {
        let event = self.exchange(event, now, out);
        let event = event.and_then(|event| self.size(event, now, out));
        let event = event.and_then(|event| self.reserve(event, now, out));
        let event = event.and_then(|event| self.hear(event, now, out));
        let Some(event) = event.and_then(|event| self.suspect(event, out)) else {
            return;
        };
        match &event {
            // A guest that is started anew, or resets the device, has new drivers.
            Event::Begin | Event::Free => {
                self.kept = Some(self.kept_anyway());
                self.forget_requests();
                if event == Event::Begin {
                    self.agreed = Agreed::default();
                    (self.held, self.is_to_rest) = (false, false);
                }
            }
            Event::Agreed(agreed) => {
                self.agreed = *agreed;
                return;
            }
            Event::Died(death) => {
                self.shares &= *death != Death::Exited(0);
                self.blame(death, out);
                self.gone();
            }
            Event::CannotBegin(_) => self.gone(),
            _ => {}
        }
        let state = std::mem::replace(&mut self.state, State::Down);
        self.state = match state {
            State::Down | State::Seeking | State::Found => self.before(state, event, now, out),
            State::Attaching | State::Serving => self.serving(state, event, now, out),
            State::Lost { .. } | State::Left { .. } => self.doubtful(state, event, now, out),
            State::Over => self.over(event, now, out),
            State::Clearing { .. }
            | State::Resting { .. }
            | State::Held
            | State::Out(_)
            | State::Stopping { .. } => self.recovering(state, event, now, out),
            State::Leaving { .. } | State::Killed { .. } => self.ending(state, event, now, out),
        };
    }

    fn next_session(&mut self) -> SessionNumber {
        self.numbered = self.numbered.saturating_add(1);
        self.numbered
    }

    /// It has no process any more.
    fn gone(&mut self) {
        self.lives = false;
        // A successor finds it in flight, and says so if it fails again.
        self.holds = false;
        self.line = Line::Silent;
    }

    /// Before there is a back-end.
    fn before(
        &mut self,
        state: State,
        event: Event,
        now: Instant,
        out: &mut Vec<Outcome>,
    ) -> State {
        match (state, event) {
            // Whoever served it before the guest was started anew.
            (State::Down, Event::Begin) if self.session > 0 => self.clear(now, out),
            (State::Down, Event::Begin) => self.begin(out),
            (State::Seeking, Event::Found) => State::Found,
            (State::Found, Event::Go) => {
                // One that is not ready by now would be no faster.
                self.dismiss(now, out);
                let session = self.next_session();
                self.suspects_nothing(session);
                self.lives = self.server.program.is_some();
                self.shares = false;
                self.order(out);
                let kept = self.kept.clone();
                out.push(Outcome::Do(Action::Attach(self.place, self.session, kept)));
                State::Attaching
            }
            (State::Seeking, Event::CannotBegin(text)) => {
                out.push(Outcome::Fault(Fault::CannotBegin(text)));
                State::Over
            }
            (State::Seeking, Event::VmEnds) => {
                out.push(Outcome::Do(Action::StopSeeking(self.place)));
                State::Over
            }
            (State::Found, Event::VmEnds) => State::Over,
            (state, _) => state,
        }
    }
}

#[cfg(test)]
impl Device {
    /// The same, of a back-end that is called `name`; `seeks` and `program` tell whether
    /// somebody must be found first, and whose program is started for it, if one is.
    pub(crate) fn new(
        place: usize,
        id: &str,
        name: &str,
        seeks: bool,
        program: Option<outboard_protocol::launch::Whose>,
    ) -> Self {
        let server = Server {
            name: name.to_owned(),
            seeks,
            program,
            whose: program.unwrap_or_default(),
            has_image: false,
            must_wait: false,
        };
        Self::served_by(place, id, server).for_a_disk(true)
    }

    /// With an image, which its back-end is lent.
    pub(crate) fn with_image(mut self, has_image: bool) -> Self {
        self.server.has_image = has_image;
        self
    }
}
