//! A back-end that works is replaced by another on command, or only told to rest.
//!
//! ```text
//!       Swap     the standby is gone      it is ready, and fits              HandedBack
//!  Idle ───▶ Clearing ─────────▶ Preparing ───────────▶ Stopping ───────────▶ Starting
//!   ▲ ▲                             │ it does not           │ it is lost, meanwhile   │
//!   │ └─────── the former serves ───┘                       ▼                         │
//!   │ ◀───────────────────────── Resuming ◀─ HandedBack ─ CalledOff                   │
//!   │ ◀───────── GoesOn: the former, since this is late, or cannot be done ───────────┤
//!   └─ GoesOn: the successor, and the former is told to go ───────────────────────────┘
//!
//!  Preparing ─ it does not fit, and may have meddled ─▶ Mending ─ GoesOn: the former ─▶ Idle
//! ```
//! The successor is a process that waits, as a standby does (`standby.rs`), whose place it
//! takes meanwhile. Until the machine says that it has the rings, the former is there and
//! can be put back. From then on it is the device's back-end, and what happens to it is a
//! fault of that.
//!
//! A successor that must be told to wait, and has not said that it does, may have set up as it
//! started what its predecessor uses: a tap, say, whose filter is the guest's. Nobody can know
//! that before it is started. Once it is gone, the former hands back its rings and goes on
//! with them (`Mending`), by which it sets up everything again.
//!
//! A device that is to rest (`Pausing`) hands back its rings, too, and `Resuming` gives
//! them back. It may be swapped meanwhile, and is resumed with that. With the VM it rests
//! likewise (`quiet.rs`).

mod candidate;
mod quiet;
mod starting;

use std::time::Instant;

use outboard_protocol::kept::Kept;
use outboard_protocol::launch::{Cause, Gap, SessionNumber};

use self::quiet::Rest;
use super::line::Line;
use super::server::Server;
use super::{Device, Event, Outcome, State};
use crate::supervisor::api::model::{SwapRequest, SwapStep};
use crate::supervisor::process::child::Death;
use crate::supervisor::vm::action::Action;

/// What has become of a swap, or of a pause or resume of a device.
pub(crate) type Report = Result<Option<Gap>, NotDone>;

/// Why nothing has come of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotDone {
    /// How far it had come.
    pub(crate) step: SwapStep,
    /// What went wrong, and what to do.
    pub(crate) why: String,
    /// How long the device was not served, if it was not.
    pub(crate) gap: Option<Gap>,
}

/// Why the image of a disk may still change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Noise {
    /// See there.
    pub(crate) why: String,
    /// That ends by itself, perhaps.
    pub(crate) passes: bool,
}

/// What somebody has asked of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    /// Which of what was asked of it.
    number: u64,
    request: SwapRequest,
}

/// Where a swap is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Idle,
    Clearing(Asked),
    Preparing(Asked, Candidate),
    /// What came of the successor, and whether the rings have been asked for since it is gone.
    Mending(u64, String, bool),
    Stopping(Asked, Candidate),
    /// For this reason.
    CalledOff(u64, String),
    Starting(Starting),
    /// For who has asked that of the device, or with the VM.
    Pausing(Option<u64>),
    /// Likewise; if there was to be a successor, for this reason there is none.
    Resuming(Option<u64>, Option<String>),
}

/// A successor that is made ready.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    session: SessionNumber,
    server: Option<Server>,
    /// The machine was given it.
    is_introduced: bool,
    /// It has said on its line that it waits.
    is_ready: bool,
    /// It has closed its line, or ended in order: that is told then, unless the machine or
    /// its death says why before.
    ended: Option<Ended>,
}

/// What was heard first of the end of a successor, and until when more is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ended {
    by: By,
    why: String,
    until: Instant,
}

/// Who has told of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Line,
    Machine,
    Death,
}

impl Candidate {
    /// Whether it may have changed what is behind the device, which its predecessor serves.
    fn may_have_meddled(&self) -> bool {
        let must_wait = self.server.as_ref().is_some_and(|it| it.must_wait);
        must_wait && self.is_introduced && !self.is_ready
    }
}

/// A successor that is being given the rings.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Starting {
    number: u64,
    /// Its process has ended meanwhile.
    died: Option<Death>,
    /// The machine has lost it, for this reason, before it was to give it the rings.
    lost: Option<String>,
    former: Former,
}

/// What there was before.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Former {
    session: SessionNumber,
    identity: Identity,
    /// The machine has lost it, so it cannot go on.
    is_lost: bool,
    line: Line,
    kept: Option<Kept>,
    lives: bool,
    /// Its process has ended since.
    died: Option<Death>,
}

/// What of a device is so by who serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    server: Server,
    shares: bool,
    told_version: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Swap {
    step: Step,
    rest: Rest,
    report: Option<(u64, Report)>,
}

impl Device {
    /// What has become of what was asked of it under this number.
    pub(crate) fn report(&self, number: u64) -> Option<&Report> {
        let (known, report) = self.swap.report.as_ref()?;
        (*known == number).then_some(report)
    }

    /// Why nothing of the kind can be begun just now, if that is so.
    pub(crate) fn why_not_now(&self) -> Option<String> {
        if self.state != State::Serving {
            let advice = match &self.state {
                State::Out(why) => format!("it is down: {why}"),
                State::Seeking if self.server.program.is_none() => {
                    format!("start the back-end at {} again", self.server.name)
                }
                _ => "it is being recovered or started".into(),
            };
            let text = format!("it is not served just now: {advice}; try again when it is running");
            return Some(text);
        }
        if let Some(why) = self.is_being_swapped() {
            return Some(why.into());
        }
        self.holds.then(|| {
            "it holds back a request that has failed, which would be reported to the guest then: \
             resume the VM first"
                .into()
        })
    }

    /// That something of the kind is under way, if it is.
    pub(crate) fn is_being_swapped(&self) -> Option<&'static str> {
        let is_idle = self.swap.step == Step::Idle && !self.is_being_resized();
        (!is_idle).then_some("another swap, pause, resume or resize of it is under way")
    }

    /// Whether its back-end has handed back its rings, and nobody serves them.
    pub(crate) fn rests(&self) -> bool {
        matches!(self.swap.rest, Rest::Alone | Rest::WithVm)
    }

    /// Takes what concerns a swap; gives anything else back.
    pub(super) fn exchange(
        &mut self,
        event: Event,
        now: Instant,
        out: &mut Vec<Outcome>,
    ) -> Option<Event> {
        let session = self.candidate();
        match event {
            Event::Swap(number, request) => {
                self.dismiss(now, out);
                self.swap.step = Step::Clearing(Asked { number, request });
            }
            Event::PauseDevice(number) => {
                out.push(Outcome::Do(Action::HandBack(self.place, self.session)));
                self.swap.step = Step::Pausing(Some(number));
            }
            Event::ResumeDevice(number) => self.let_go_on(Some(number), None, out),
            Event::Rest(_) => return self.hear_rest(event),
            Event::HandedBack(number) if number == self.session => self.handed_back(now, out),
            Event::GoesOn(number, gap, why) => self.goes_on(number, gap, why, now, out),
            Event::HandedBack(_) => {}
            Event::Prepared(number) if session == Some(number) => self.is_prepared(now, out),
            // Its death tells more, if it comes.
            Event::Lost(number, Cause::Gone, why)
                if session == Some(number) && self.candidate_may_die() =>
            {
                self.candidate_ends(By::Machine, why, now);
            }
            Event::Lost(number, _, why) if session == Some(number) => {
                self.lose_candidate(why, now, out);
            }
            Event::Standby(number, event) if session == Some(number) => {
                self.candidate_hears(*event, now, out);
            }
            Event::Tick => {
                self.candidate_waits(now, out);
                return Some(Event::Tick);
            }
            other => return self.while_starting(other, now, out),
        }
        None
    }

    /// After an event: what follows from where everything is now.
    pub(super) fn settle_swap(&mut self, now: Instant, out: &mut Vec<Outcome>) {
        if matches!(self.state, State::Serving) {
            if matches!(self.swap.step, Step::Clearing(_)) && self.has_no_standby() {
                self.open_candidate(out);
            }
            self.mend(out);
            return;
        }
        self.swap.rest = Rest::No;
        let why = "its back-end was lost meanwhile, or the VM ends";
        let (number, step) = match std::mem::take(&mut self.swap.step) {
            Step::Idle => return,
            Step::Clearing(asked) | Step::Preparing(asked, _) => (asked.number, SwapStep::Prepare),
            Step::Mending(number, ..) => (number, SwapStep::Prepare),
            Step::Stopping(asked, _) => (asked.number, SwapStep::Stop),
            Step::Pausing(None) | Step::Resuming(None, _) => return,
            Step::CalledOff(number, _)
            | Step::Pausing(Some(number))
            | Step::Resuming(Some(number), _) => (number, SwapStep::Stop),
            // What ends that has been heard there.
            Step::Starting(starting) => (starting.number, SwapStep::Start),
        };
        self.dismiss(now, out);
        self.fail(number, step, why.into(), None);
    }

    /// Once nothing is left of a successor that may have meddled.
    fn mend(&mut self, out: &mut Vec<Outcome>) {
        let is_gone = self.has_no_standby();
        if let Step::Mending(_, _, is_asked @ false) = &mut self.swap.step
            && is_gone
        {
            *is_asked = true;
            out.push(Outcome::Do(Action::HandBack(self.place, self.session)));
        }
    }

    /// The back-end has handed back its rings.
    fn handed_back(&mut self, now: Instant, out: &mut Vec<Outcome>) {
        if let Some(why) = self.why_no_successor() {
            self.lose_candidate(why, now, out);
        }
        match std::mem::take(&mut self.swap.step) {
            Step::Stopping(asked, candidate) => self.start_candidate(asked, candidate, out),
            Step::CalledOff(number, why) => self.let_go_on(Some(number), Some(why), out),
            Step::Mending(number, why, true) => {
                out.push(Outcome::Do(Action::GoOn(self.place, self.session)));
                self.swap.step = Step::Mending(number, why, true);
            }
            Step::Pausing(None) => self.swap.rest = Rest::WithVm,
            Step::Pausing(Some(number)) => {
                self.swap.rest = Rest::Alone;
                self.swap.report = Some((number, Ok(None)));
            }
            other => self.swap.step = other,
        }
    }

    fn let_go_on(&mut self, number: Option<u64>, why: Option<String>, out: &mut Vec<Outcome>) {
        out.push(Outcome::Do(Action::GoOn(self.place, self.session)));
        self.swap.step = Step::Resuming(number, why);
    }

    fn fail(&mut self, number: u64, step: SwapStep, why: String, gap: Option<Gap>) {
        self.swap.report = Some((number, Err(NotDone { step, why, gap })));
    }

    /// What a successor is told of what its predecessor, which works, has kept. Where nobody
    /// knows what a disk's was it has no state but its cache, which the machine sets.
    fn kept_for_a_swap(&self) -> Option<Kept> {
        let anyway = || self.server.has_image.then(|| self.kept_anyway());
        self.kept.clone().or_else(anyway)
    }
}
