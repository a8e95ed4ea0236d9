//! The successor while it is made ready: it is opened, looked for if it listens somewhere,
//! started, and given to the machine, which says whether it fits.
//!
//! What is heard first of its end may not be the reason: who is cut off closes its line and
//! ends, and the machine says why; and of one that the machine has lost its death tells more.
//! So there is a while for the other half.

use std::time::Instant;

use outboard_protocol::deadline::limits;
use outboard_protocol::launch::{SessionNumber, Whose};

use super::super::{Device, Event, Outcome};
use super::{By, Candidate, Ended, Server, Step};
use crate::supervisor::api::model::SwapStep;
use crate::supervisor::process::child::Death;
use crate::supervisor::vm::action::{Action, Heir};

impl Device {
    /// The session of the successor that is made ready.
    pub(super) fn candidate(&self) -> Option<SessionNumber> {
        self.candidate_in_hand().map(|candidate| candidate.session)
    }

    pub(super) fn open_candidate(&mut self, out: &mut Vec<Outcome>) {
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
    pub(super) fn candidate_hears(&mut self, event: Event, now: Instant, out: &mut Vec<Outcome>) {
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
    pub(super) fn candidate_ends(&mut self, by: By, why: String, now: Instant) {
        if let Step::Preparing(_, candidate) | Step::Stopping(_, candidate) = &mut self.swap.step {
            let until = candidate.ended.as_ref().map(|ended| ended.until);
            let until = until.unwrap_or(now + limits::LAG);
            candidate.ended = Some(Ended { by, why, until });
        }
    }

    /// When it is told that the successor has ended, if nobody says why.
    pub(in super::super) fn swap_due(&self) -> Option<Instant> {
        let ended = self.candidate_in_hand()?.ended.as_ref();
        ended.map(|ended| ended.until)
    }

    /// Loses a successor that has ended, once nobody will say why.
    pub(super) fn candidate_waits(&mut self, now: Instant, out: &mut Vec<Outcome>) {
        if self.swap_due().is_some_and(|until| now >= until)
            && let Some(why) = self.why_no_successor()
        {
            self.lose_candidate(why, now, out);
        }
    }

    /// Why the successor can serve no more, or must not, if that is so.
    pub(super) fn why_no_successor(&self) -> Option<String> {
        let ended = self.candidate_in_hand()?.ended.as_ref();
        let ended = ended.map(|ended| ended.why.clone());
        ended.or_else(|| self.would_forget().map(str::to_owned))
    }

    /// Whether it has a process whose death has not been heard of.
    pub(super) fn candidate_may_die(&self) -> bool {
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
    pub(super) fn candidate_in_hand(&self) -> Option<&Candidate> {
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
    pub(super) fn is_prepared(&mut self, now: Instant, out: &mut Vec<Outcome>) {
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
        } else if self.rests() {
            self.start_candidate(asked, candidate, out);
        } else {
            out.push(Outcome::Do(Action::HandBack(self.place, self.session)));
            self.swap.step = Step::Stopping(asked, candidate);
        }
    }

    /// It cannot serve, for this reason.
    pub(super) fn lose_candidate(&mut self, why: String, now: Instant, out: &mut Vec<Outcome>) {
        match std::mem::take(&mut self.swap.step) {
            Step::Preparing(asked, candidate) if candidate.may_have_meddled() && !self.rests() => {
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
}
