//! A disk of a VM that an operator has paused: nobody has its rings, so its image does not
//! change, until the VM goes on.
//!
//! ```text
//!              Rest(true), once nothing else is under way         HandedBack
//!  served ────────────────────────────────────────────▶ Pausing ─────────────▶ rests with the VM
//!    ▲  ▲                                                  │ it does not finish      │
//!    │  └──────────────────────────────────────────────────┘                         │
//!    └───────────────────────────── GoesOn ◀─ Resuming ◀──────── Rest(false) ────────┘
//! ```
//! It is what a pause of the device alone is (`swap.rs`), but that nobody is answered by the
//! device: the VM looks at its [`Noise`]. A successor of a swap hands them back as well, as
//! soon as it has them. One who is lost is followed by nobody meanwhile
//! ([`State::Held`]): he would execute what was in flight.

use super::super::{Device, Event, Outcome, State};
use super::{Noise, Step};
use crate::supervisor::vm::action::Action;

/// Why a disk is not made to rest.
const HOLDS: &str = "it holds back a request that has failed, which would be reported to the \
                     guest: see to what is wrong, and resume the VM";

/// Whether the rings of a device were handed back, and rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Rest {
    /// They are served.
    #[default]
    No,
    /// They are served: whoever has them was to rest with the VM and did not finish.
    Refused(String),
    /// They rest until the device is resumed, or swapped.
    Alone,
    /// They rest until the VM is resumed.
    WithVm,
}

impl Device {
    /// Whether the VM has it rest otherwise than it `is_to`.
    pub(crate) fn must_hear(&self, is_to: bool) -> bool {
        self.is_disk && self.is_to_rest != is_to
    }

    /// Why it is at rest, or is to be, and what to do, if that is so.
    pub(crate) fn why_at_rest(&self) -> Option<&'static str> {
        match self.is_to_rest {
            true => Some("the VM is paused, and it rests with that: resume the VM first"),
            false => self.rests().then_some("it is paused: resume it first"),
        }
    }

    /// Whether it is to rest with the VM.
    pub(crate) fn is_to_rest(&self) -> bool {
        self.is_to_rest
    }

    /// Whether it is swapped meanwhile: nobody serves it before that is over.
    pub(crate) fn is_swapped_at_rest(&self) -> bool {
        let has_swap = !matches!(self.swap.step, Step::Idle | Step::Resuming(..));
        has_swap && self.swap.rest == Rest::WithVm
    }

    /// Whether its rings are with nobody because the VM is paused, or was.
    pub(crate) fn rests_with_vm(&self) -> bool {
        let is_asked = matches!(
            self.swap.step,
            Step::Pausing(None) | Step::Resuming(None, _)
        );
        is_asked || self.swap.rest == Rest::WithVm
    }

    /// Why its image may still change, if it may.
    pub(crate) fn noise(&self) -> Option<Noise> {
        if !self.is_disk {
            return None;
        }
        let (why, passes) = match &self.state {
            State::Serving => match (&self.swap.rest, &self.swap.step) {
                (Rest::Refused(why), _) => (why.as_str(), false),
                (_, Step::Pausing(_)) => ("its back-end finishes what it has taken", true),
                (Rest::Alone | Rest::WithVm, Step::Idle) => return None,
                _ if self.holds => (HOLDS, false),
                _ => (self.is_being_swapped().unwrap_or("it is served"), true),
            },
            State::Attaching => ("its back-end is being started", true),
            State::Lost { .. }
            | State::Left { .. }
            | State::Over
            | State::Clearing { .. }
            | State::Stopping { .. } => (
                "its back-end was lost or told to end, and its I/O is not over yet",
                true,
            ),
            // Nobody has the rings.
            _ => return None,
        };
        let why = why.to_owned();
        Some(Noise { why, passes })
    }

    /// It is to rest with the VM, or no more.
    pub(super) fn hear_rest(&mut self, event: Event) -> Option<Event> {
        if let Event::Rest(is_to_rest) = event {
            self.is_to_rest = is_to_rest;
            if let Rest::Refused(_) = self.swap.rest {
                self.swap.rest = Rest::No;
            }
        }
        Some(event)
    }

    /// After an event: the rings are where the VM wants them, or are asked for.
    pub(in super::super) fn settle_rest(&mut self, out: &mut Vec<Outcome>) {
        if self.state != State::Serving || self.is_being_swapped().is_some() {
            return;
        }
        match (self.is_to_rest, &self.swap.rest) {
            (true, Rest::No) if !self.holds => {
                out.push(Outcome::Do(Action::HandBack(self.place, self.session)));
                self.swap.step = Step::Pausing(None);
            }
            (false, Rest::WithVm) => self.let_go_on(None, None, out),
            _ => {}
        }
    }
}
