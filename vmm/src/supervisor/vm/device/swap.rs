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
//! them back. It may be swapped meanwhile, and is resumed with that.

use std::time::Instant;

use outboard_protocol::deadline::limits;
use outboard_protocol::kept::Kept;
use outboard_protocol::launch::{Cause, Gap, SessionNumber, Whose};

use super::line::Line;
use super::{Device, Event, Outcome, State};
use crate::supervisor::api::model::{Change, SwapRequest, SwapStep};
use crate::supervisor::process::child::Death;
use crate::supervisor::vm::action::{Action, Heir};

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

/// Who serves a device, or is to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    /// What it is called: a program's name, or a socket's path.
    pub(crate) name: String,
    /// Whether somebody must be found before it can begin.
    pub(crate) seeks: bool,
    /// Whose program is started for it, if one is.
    pub(crate) program: Option<Whose>,
    /// Whose it is, as the machine is told.
    pub(crate) whose: Whose,
    /// It is lent an image.
    pub(crate) has_image: bool,
    /// It can be told to wait only by its line: it sets up, as it starts, what is behind the
    /// device.
    pub(crate) must_wait: bool,
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
    Pausing(u64),
    /// If there was to be a successor, for this reason there is none.
    Resuming(u64, Option<String>),
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
    name: String,
    seeks: bool,
    program: Option<Whose>,
    has_image: bool,
    shares: bool,
    told_version: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Swap {
    step: Step,
    /// Its rings were handed back, and rest.
    rests: bool,
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
                State::Seeking if self.program.is_none() => {
                    format!("start the back-end at {} again", self.name)
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
        self.swap.rests
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
                self.swap.step = Step::Pausing(number);
            }
            Event::ResumeDevice(number) => self.let_go_on(number, None, out),
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
        self.swap.rests = false;
        let why = "its back-end was lost meanwhile, or the VM ends";
        let (number, step) = match std::mem::take(&mut self.swap.step) {
            Step::Idle => return,
            Step::Clearing(asked) | Step::Preparing(asked, _) => (asked.number, SwapStep::Prepare),
            Step::Mending(number, ..) => (number, SwapStep::Prepare),
            Step::Stopping(asked, _) => (asked.number, SwapStep::Stop),
            Step::CalledOff(number, _) | Step::Pausing(number) | Step::Resuming(number, _) => {
                (number, SwapStep::Stop)
            }
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

    /// The session of the successor that is made ready.
    fn candidate(&self) -> Option<SessionNumber> {
        self.candidate_in_hand().map(|candidate| candidate.session)
    }

    fn open_candidate(&mut self, out: &mut Vec<Outcome>) {
        let Step::Clearing(asked) = std::mem::take(&mut self.swap.step) else {
            return;
        };
        let session = self.next_session();
        let request = Box::new(asked.request.clone());
        out.push(Outcome::Do(Action::Open(self.place, session, request)));
        self.give_place_to(session, false);
        let candidate = Candidate {
            session,
            server: None,
            is_introduced: false,
            is_ready: false,
            ended: None,
        };
        self.swap.step = Step::Preparing(asked, candidate);
    }

    /// Something has happened to the process of the successor, or to who is looked for.
    fn candidate_hears(&mut self, event: Event, now: Instant, out: &mut Vec<Outcome>) {
        match event {
            Event::Opened(server) => self.is_opened(*server, now, out),
            Event::Found => self.introduce(out),
            Event::CannotBegin(text) => self.candidate_is_gone(text, now, out),
            Event::Ready(_) => {
                if let Step::Preparing(_, candidate) = &mut self.swap.step {
                    candidate.is_ready = true;
                }
            }
            Event::Nonsense(_, why) => {
                let text = format!("it says what nobody says who waits ({why})");
                self.lose_candidate(text, now, out);
            }
            // One of version 1 knows of none.
            Event::HungUp(_) if self.candidate_in_hand().is_some_and(|it| it.is_ready) => {
                self.candidate_ends(By::Line, "it has closed its line".into(), now);
            }
            Event::Died(death) => {
                let name = self.candidate_name();
                let ended = self.candidate_in_hand().and_then(|it| it.ended.as_ref());
                let lost = ended.filter(|ended| ended.by == By::Machine);
                let why = match lost {
                    Some(Ended { why, .. }) => format!("{name} {death} ({why})"),
                    None => format!("{name} {death}"),
                };
                // As one does whose connection the machine has closed, and will say why.
                if death != Death::Exited(0) || lost.is_some() {
                    return self.candidate_is_gone(why, now, out);
                }
                if let Some(session) = self.candidate() {
                    self.give_place_to(session, false);
                }
                self.candidate_ends(By::Death, why, now);
            }
            _ => {}
        }
    }

    /// It serves no longer than until it is known why.
    fn candidate_ends(&mut self, by: By, why: String, now: Instant) {
        if let Step::Preparing(_, candidate) | Step::Stopping(_, candidate) = &mut self.swap.step {
            let until = candidate.ended.as_ref().map(|ended| ended.until);
            let until = until.unwrap_or(now + limits::LAG);
            candidate.ended = Some(Ended { by, why, until });
        }
    }

    /// When it is told that the successor has ended, if nobody says why.
    pub(super) fn swap_due(&self) -> Option<Instant> {
        let ended = self.candidate_in_hand()?.ended.as_ref();
        ended.map(|ended| ended.until)
    }

    /// Loses a successor that has ended, once nobody will say why.
    fn candidate_waits(&mut self, now: Instant, out: &mut Vec<Outcome>) {
        if self.swap_due().is_some_and(|until| now >= until)
            && let Some(why) = self.why_no_successor()
        {
            self.lose_candidate(why, now, out);
        }
    }

    /// Why the successor can serve no more, or must not, if that is so.
    fn why_no_successor(&self) -> Option<String> {
        let ended = self.candidate_in_hand()?.ended.as_ref();
        let ended = ended.map(|ended| ended.why.clone());
        ended.or_else(|| self.would_forget().map(str::to_owned))
    }

    /// Whether it has a process whose death has not been heard of.
    fn candidate_may_die(&self) -> bool {
        self.candidate_in_hand().is_some_and(|candidate| {
            let server = candidate.server.as_ref();
            let is_dead = candidate
                .ended
                .as_ref()
                .is_some_and(|it| it.by == By::Death);
            server.is_some_and(|it| it.program.is_some()) && !is_dead
        })
    }

    /// The successor that is made ready.
    fn candidate_in_hand(&self) -> Option<&Candidate> {
        match &self.swap.step {
            Step::Preparing(_, candidate) | Step::Stopping(_, candidate) => Some(candidate),
            _ => None,
        }
    }

    /// It is known who it is: what would be in its way whatever it says.
    fn is_opened(&mut self, server: Server, now: Instant, out: &mut Vec<Outcome>) {
        let Step::Preparing(_, candidate) = &mut self.swap.step else {
            return;
        };
        let seeks = server.seeks;
        candidate.server = Some(server);
        if let Some(why) = self.would_forget() {
            return self.lose_candidate(why.into(), now, out);
        }
        if !seeks {
            self.introduce(out);
        }
    }

    /// Why the successor would not keep what the guest must go on hearing, if that is so.
    fn would_forget(&self) -> Option<&'static str> {
        let candidate = self.candidate_in_hand()?;
        let server = candidate.server.as_ref();
        let is_own = server.is_some_and(|server| server.whose == Whose::Own);
        // One of version 1 that is introduced will not say that it is ready.
        let hears = candidate.is_ready || !candidate.is_introduced;
        (self.sync_failed && !(is_own && hears)).then_some(
            "a sync of its image has failed, and only a back-end of Outboard's, of version 2 of \
             the launch contract, would go on saying so to the guest",
        )
    }

    fn introduce(&mut self, out: &mut Vec<Outcome>) {
        let Step::Preparing(asked, candidate) = &mut self.swap.step else {
            return;
        };
        candidate.is_introduced = true;
        let (session, resizes) = (candidate.session, asked.request.resize);
        let lives = candidate
            .server
            .as_ref()
            .is_some_and(|it| it.program.is_some());
        let heir = Heir {
            kept: self.kept_for_a_swap(),
            resizes,
        };
        self.give_place_to(session, lives);
        out.push(Outcome::Do(Action::Prepare(
            self.place,
            session,
            Some(heir),
        )));
    }

    /// The machine has it, and it fits.
    fn is_prepared(&mut self, now: Instant, out: &mut Vec<Outcome>) {
        if let Some(why) = self.why_no_successor() {
            return self.lose_candidate(why, now, out);
        }
        let (asked, candidate) = match std::mem::take(&mut self.swap.step) {
            Step::Preparing(asked, candidate) if candidate.is_introduced => (asked, candidate),
            other => return self.swap.step = other,
        };
        let number = asked.number;
        if candidate.may_have_meddled() {
            self.swap.step = Step::Preparing(asked, candidate);
            let text = "it does not say that it waits (version 1 of the launch contract), so it \
                        may have set up the interface already that its predecessor uses";
            self.lose_candidate(text.into(), now, out);
        } else if asked.request.dry_run {
            self.dismiss(now, out);
            self.swap.report = Some((number, Ok(None)));
        } else if let Some(why) = self
            .holds
            .then_some("a request has failed and is held back")
        {
            self.dismiss(now, out);
            let text = format!("{why}: resume the VM first");
            self.fail(number, SwapStep::Prepare, text, None);
        } else if self.swap.rests {
            self.start_candidate(asked, candidate, out);
        } else {
            out.push(Outcome::Do(Action::HandBack(self.place, self.session)));
            self.swap.step = Step::Stopping(asked, candidate);
        }
    }

    /// It cannot serve, for this reason.
    fn lose_candidate(&mut self, why: String, now: Instant, out: &mut Vec<Outcome>) {
        match std::mem::take(&mut self.swap.step) {
            Step::Preparing(asked, candidate)
                if candidate.may_have_meddled() && !self.swap.rests =>
            {
                self.swap.step = Step::Mending(asked.number, why, false);
            }
            Step::Preparing(asked, _) => {
                self.fail(asked.number, SwapStep::Prepare, why, None);
            }
            Step::Stopping(asked, _) => self.swap.step = Step::CalledOff(asked.number, why),
            other => self.swap.step = other,
        }
        self.dismiss(now, out);
    }

    /// It has no process, or none any more.
    fn candidate_is_gone(&mut self, why: String, now: Instant, out: &mut Vec<Outcome>) {
        if let Some(session) = self.candidate() {
            self.give_place_to(session, false);
        }
        self.lose_candidate(why, now, out);
    }

    fn candidate_name(&self) -> &str {
        let server = self.candidate_in_hand().and_then(|it| it.server.as_ref());
        server.map_or("", |it| &it.name)
    }

    /// The back-end has handed back its rings.
    fn handed_back(&mut self, now: Instant, out: &mut Vec<Outcome>) {
        if let Some(why) = self.why_no_successor() {
            self.lose_candidate(why, now, out);
        }
        match std::mem::take(&mut self.swap.step) {
            Step::Stopping(asked, candidate) => self.start_candidate(asked, candidate, out),
            Step::CalledOff(number, why) => self.let_go_on(number, Some(why), out),
            Step::Mending(number, why, true) => {
                out.push(Outcome::Do(Action::GoOn(self.place, self.session)));
                self.swap.step = Step::Mending(number, why, true);
            }
            Step::Pausing(number) => {
                self.swap.rests = true;
                self.swap.report = Some((number, Ok(None)));
            }
            other => self.swap.step = other,
        }
    }

    fn let_go_on(&mut self, number: u64, why: Option<String>, out: &mut Vec<Outcome>) {
        out.push(Outcome::Do(Action::GoOn(self.place, self.session)));
        self.swap.step = Step::Resuming(number, why);
    }

    /// The successor is given the rings. From now on it has the device's place, and the
    /// former that of who waits.
    fn start_candidate(&mut self, asked: Asked, candidate: Candidate, out: &mut Vec<Outcome>) {
        let Some(server) = candidate.server else {
            return;
        };
        let kept = self.kept_for_a_swap();
        let session = candidate.session;
        let take_over = Action::TakeOver(self.place, session, kept.clone(), asked.request.resize);
        let lives = server.program.is_some();
        let former = Former {
            session: self.session,
            identity: self.is_served_by(server),
            is_lost: false,
            line: self.line,
            kept: std::mem::replace(&mut self.kept, kept),
            lives: self.lives,
            died: None,
        };
        self.give_place_to(former.session, former.lives);
        self.suspects_nothing(session);
        // What the former held back has ended in its error when its rings were stopped.
        (self.lives, self.holds) = (lives, false);
        self.line = match candidate.is_ready {
            true => Line::Ready,
            false => Line::Silent,
        };
        out.push(Outcome::Do(take_over));
        self.swap.step = Step::Starting(Starting {
            number: asked.number,
            died: None,
            lost: None,
            former,
        });
    }

    /// What happens to either while the machine gives the rings to the successor: it says
    /// what comes of that.
    fn while_starting(
        &mut self,
        event: Event,
        now: Instant,
        out: &mut Vec<Outcome>,
    ) -> Option<Event> {
        let Step::Starting(starting) = &mut self.swap.step else {
            return Some(event);
        };
        match event {
            Event::Died(death) => starting.died = Some(death),
            Event::Standby(number, event) if number == starting.former.session => {
                if let Event::Died(death) = *event {
                    starting.former.died = Some(death);
                    self.give_place_to(number, false);
                }
            }
            Event::Unserved(..) | Event::Examined(..) | Event::Hangs(..) | Event::Restart => {}
            Event::CannotBegin(why) => {
                let number = starting.number;
                self.undo(now, out);
                self.let_go_on(number, Some(why), out);
            }
            // The former is gone, and the successor serves, or is gone as well.
            Event::Attached(session) | Event::Lost(session, ..)
                if session == self.session
                    && (matches!(event, Event::Attached(_)) || starting.former.is_lost) =>
            {
                let Step::Starting(starting) = std::mem::take(&mut self.swap.step) else {
                    return Some(event);
                };
                self.succeed(starting, None, now, out);
                return Some(event);
            }
            Event::VmEnds => {
                if let Step::Starting(starting) = std::mem::take(&mut self.swap.step) {
                    let number = starting.number;
                    self.succeed(starting, None, now, out);
                    self.fail(number, SwapStep::Start, "the VM ends".into(), None);
                }
                return Some(event);
            }
            // The machine will not find it when it is to, and lets the former go on.
            Event::Lost(session, _, why) if session == self.session => starting.lost = Some(why),
            Event::Lost(session, ..) if session == starting.former.session => {
                starting.former.is_lost = true;
            }
            Event::Lost(..) => {}
            other => return Some(other),
        }
        None
    }

    /// The rings are served again, by this session.
    fn goes_on(
        &mut self,
        session: SessionNumber,
        gap: Gap,
        why: Option<String>,
        now: Instant,
        out: &mut Vec<Outcome>,
    ) {
        let late = || why.clone().unwrap_or_else(|| "it goes on".into());
        match std::mem::take(&mut self.swap.step) {
            Step::Starting(starting) if session == self.session => {
                self.succeed(starting, Some(gap), now, out);
            }
            Step::Starting(starting) if session == starting.former.session => {
                let number = starting.number;
                let why = starting.lost.clone().unwrap_or_else(late);
                self.swap.step = Step::Starting(starting);
                self.undo(now, out);
                self.swap.rests = false;
                self.fail(number, SwapStep::Start, why, Some(gap));
            }
            Step::Stopping(asked, _) if session == self.session => {
                self.dismiss(now, out);
                self.fail(asked.number, SwapStep::Stop, late(), Some(gap));
            }
            Step::Mending(number, why, true) if session == self.session => {
                self.fail(number, SwapStep::Prepare, why, Some(gap));
            }
            Step::CalledOff(number, why) if session == self.session => {
                self.fail(number, SwapStep::Stop, why, Some(gap));
            }
            Step::Pausing(number) if session == self.session => {
                self.fail(number, SwapStep::Stop, late(), Some(gap));
            }
            Step::Resuming(number, why) if session == self.session => {
                self.swap.rests = false;
                match why {
                    Some(why) => self.fail(number, SwapStep::Stop, why, Some(gap)),
                    None => self.swap.report = Some((number, Ok(Some(gap)))),
                }
            }
            other => self.swap.step = other,
        }
    }

    /// The successor is the device's back-end, and the former is told to go.
    fn succeed(
        &mut self,
        starting: Starting,
        gap: Option<Gap>,
        now: Instant,
        out: &mut Vec<Outcome>,
    ) {
        let Starting { number, died, .. } = starting;
        self.swap.rests = false;
        out.push(Outcome::Do(Action::Tell(Change::Swapped {
            device: self.id.clone(),
            program: self.name.clone(),
            gap: gap.map(Into::into),
        })));
        self.forget_requests();
        self.health.is_swapped(now);
        self.check_version(out);
        self.leaves(now, out);
        self.swap.report = Some((number, Ok(gap)));
        self.hear_death(died, now, out);
    }

    /// The former has its place again, and the successor is killed.
    fn undo(&mut self, now: Instant, out: &mut Vec<Outcome>) {
        let Step::Starting(starting) = std::mem::take(&mut self.swap.step) else {
            return;
        };
        let Former {
            session,
            identity,
            line,
            kept,
            lives,
            died,
            ..
        } = starting.former;
        let candidate_lives = self.lives && starting.died.is_none();
        out.push(Outcome::Do(Action::Undo(self.place)));
        self.give_place_to(self.session, candidate_lives);
        self.suspects_nothing(session);
        self.become_as(identity);
        (self.line, self.kept, self.lives) = (line, kept, lives);
        self.dismiss(now, out);
        self.hear_death(died, now, out);
    }

    /// What was heard of a death while it was not known whose place that was.
    fn hear_death(&mut self, died: Option<Death>, now: Instant, out: &mut Vec<Outcome>) {
        if let Some(death) = died {
            self.take(Event::Died(death), now, out);
        }
    }

    /// This one serves it from now on. Returns what was so by the former.
    fn is_served_by(&mut self, server: Server) -> Identity {
        self.become_as(Identity {
            name: server.name,
            seeks: server.seeks,
            program: server.program,
            has_image: server.has_image,
            shares: false,
            told_version: false,
        })
    }

    fn become_as(&mut self, identity: Identity) -> Identity {
        let Identity {
            name,
            seeks,
            program,
            has_image,
            shares,
            told_version,
        } = identity;
        Identity {
            name: std::mem::replace(&mut self.name, name),
            seeks: std::mem::replace(&mut self.seeks, seeks),
            program: std::mem::replace(&mut self.program, program),
            has_image: std::mem::replace(&mut self.has_image, has_image),
            shares: std::mem::replace(&mut self.shares, shares),
            told_version: std::mem::replace(&mut self.told_version, told_version),
        }
    }

    fn fail(&mut self, number: u64, step: SwapStep, why: String, gap: Option<Gap>) {
        self.swap.report = Some((number, Err(NotDone { step, why, gap })));
    }

    /// What a successor is told of what its predecessor, which works, has kept. Where nobody
    /// knows what a disk's was it has no state but its cache, which the machine sets.
    fn kept_for_a_swap(&self) -> Option<Kept> {
        let anyway = || self.has_image.then(|| self.kept_anyway());
        self.kept.clone().or_else(anyway)
    }
}
