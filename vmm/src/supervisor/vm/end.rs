//! The end of a VM: why it ends, and how much patience is left with those that
//! do not.
//!
//! ```text
//!  Alive ── a verdict, or somebody asks ──▶ Ending ── nothing is left ──▶ Over
//!    ▲                                        │
//!    └── the guest was reset, which starts it again, and nobody has asked
//! ```
//! The machine ends first, with it every session, and with its session a
//! back-end, once its I/O is over: a slow disk may take long, and what was
//! written is not to be lost. Who asks twice waits for none of it.

use std::time::{Duration, Instant};

use outboard_protocol::launch::Ending;

use super::verdict::Verdict;

/// Signals that come closer together ask once: timeout(1), for one, sends its
/// own to the process and to its group.
const ONE_ASKING: Duration = Duration::from_millis(500);

/// How much patience there is with those that do not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Each has its time.
    Whole,
    /// Somebody has asked for the end twice.
    Lost,
    /// The VM could not be started: nothing of it has anything to finish.
    Needless,
}

/// What bears on the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// There is a reason.
    Verdict(Verdict),
    /// A part of the VM could not be started, and what to do.
    CannotStart(String),
    /// Somebody asks for it.
    Asked,
    /// Every process has ended.
    NothingLeft,
}

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The VM is to end, with this patience.
    VmEnds(Patience),
    /// There is no patience left.
    Hurry,
    /// It is to be started again.
    Again,
}

/// How far the end has come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// There is no reason yet. Of several that come, the first counts.
    Alive,
    /// The VM ends for this reason.
    Ending(Verdict),
    /// It has ended.
    Over(Verdict),
}

/// The end of a VM.
#[derive(Debug)]
pub(crate) struct End {
    state: State,
    restarts: bool,
    asked: u32,
    last_asked: Option<Instant>,
    /// Not all of the VM was started.
    cut_short: bool,
}

impl End {
    /// None yet; `restarts`: a guest's reset starts the VM again.
    pub(crate) fn new(restarts: bool) -> Self {
        Self {
            state: State::Alive,
            restarts,
            asked: 0,
            last_asked: None,
            cut_short: false,
        }
    }

    /// How far it has come.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// How many times somebody has asked for it.
    pub(crate) fn asked(&self) -> u32 {
        self.asked
    }

    /// How much patience there is.
    pub(crate) fn patience(&self) -> Patience {
        match (self.asked, self.cut_short) {
            (2.., _) => Patience::Lost,
            (_, true) => Patience::Needless,
            (_, false) => Patience::Whole,
        }
    }

    /// Takes an event; returns what becomes of it.
    pub(crate) fn step(&mut self, event: Event, now: Instant) -> Option<Outcome> {
        let state = std::mem::replace(&mut self.state, State::Alive);
        let (state, outcome) = match (state, event) {
            (State::Alive, Event::Verdict(verdict)) => self.begins(verdict),
            (State::Alive, Event::CannotStart(error)) => {
                self.cut_short = true;
                let running = false;
                self.begins(Verdict::Failed { error, running })
            }
            (State::Alive, Event::Asked) => {
                self.count(now);
                self.begins(Verdict::Interrupted)
            }
            (State::Ending(verdict), Event::Asked) => {
                self.count(now);
                let lost = self.patience() == Patience::Lost;
                (State::Ending(verdict), lost.then_some(Outcome::Hurry))
            }
            (State::Ending(Verdict::Ended(Ending::Reset)), Event::NothingLeft)
                if self.restarts && self.asked == 0 =>
            {
                (State::Alive, Some(Outcome::Again))
            }
            (State::Ending(verdict), Event::NothingLeft) => (State::Over(verdict), None),
            (state, _) => (state, None),
        };
        self.state = state;
        outcome
    }

    fn begins(&self, verdict: Verdict) -> (State, Option<Outcome>) {
        let outcome = Outcome::VmEnds(self.patience());
        (State::Ending(verdict), Some(outcome))
    }

    fn count(&mut self, now: Instant) {
        let apart = |last| now.saturating_duration_since(last) >= ONE_ASKING;
        if self.last_asked.is_none_or(apart) {
            self.asked += 1;
            self.last_asked = Some(now);
        }
    }
}
