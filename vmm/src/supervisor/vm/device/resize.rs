//! A disk of another size, on command.
//!
//! ```text
//!        Resize         the image is as large, or larger         Resized
//!  Idle ───────▶ Asked ─────────────────────────────────▶ Told ────────▶ Idle
//!   ▲              │ it cannot be                           │ another size, ANSWER, or
//!   └──────────────┴────────────────────────────────────────┘ its back-end is lost
//! ```
//! An image grows before its back-end is told, and shrinks after that has said that nothing
//! beyond the new end is in flight: what is written there would make it grow again.

use std::time::Instant;

use outboard_protocol::deadline::limits;

use super::{Device, Event, Outcome, State};
use crate::supervisor::vm::action::Action;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Resize {
    step: Step,
    report: Option<(u64, Result<u64, String>)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Idle,
    Asked {
        number: u64,
    },
    Told {
        number: u64,
        size: u64,
        until: Instant,
    },
}

impl Device {
    /// What has become of a resize of this number: the size that the disk has.
    pub(crate) fn resized(&self, number: u64) -> Option<&Result<u64, String>> {
        let (known, report) = self.resize.report.as_ref()?;
        (*known == number).then_some(report)
    }

    /// Whether one is under way.
    pub(super) fn is_being_resized(&self) -> bool {
        self.resize.step != Step::Idle
    }

    /// When the answer to it must be there.
    pub(super) fn resize_due(&self) -> Option<Instant> {
        match self.resize.step {
            Step::Told { until, .. } => Some(until),
            Step::Idle | Step::Asked { .. } => None,
        }
    }

    /// Takes what concerns a resize; gives anything else back.
    pub(super) fn size(
        &mut self,
        event: Event,
        now: Instant,
        out: &mut Vec<Outcome>,
    ) -> Option<Event> {
        match (self.resize.step, event) {
            (_, Event::Resize(number, size)) => {
                self.resize.step = Step::Asked { number };
                out.push(Outcome::Do(Action::Resize(self.place, size)));
            }
            (Step::Asked { number }, Event::ToldSize(Ok(size))) => {
                let until = now + limits::ANSWER;
                self.resize.step = Step::Told {
                    number,
                    size,
                    until,
                };
            }
            (Step::Asked { number }, Event::ToldSize(Err(why))) => {
                self.end_resize(number, Err(why))
            }
            (Step::Told { number, size, .. }, Event::Resized(session, has))
                if session == self.session =>
            {
                self.end_resize(number, self.judge_size(size, has));
                out.push(Outcome::Do(Action::Truncate(self.place, has)));
            }
            (_, Event::ToldSize(_) | Event::Resized(..)) => {}
            (Step::Told { number, until, .. }, Event::Tick) if now >= until => {
                let seconds = limits::ANSWER.as_secs();
                let text = format!("{} has not answered within {seconds} s", self.server.name);
                self.end_resize(number, Err(text));
                return Some(Event::Tick);
            }
            (_, other) => return Some(other),
        }
        None
    }

    /// After an event: whoever was told is lost, perhaps.
    pub(super) fn settle_size(&mut self) {
        let (Step::Asked { number } | Step::Told { number, .. }) = self.resize.step else {
            return;
        };
        if self.state != State::Serving {
            let text = "its back-end was lost meanwhile, or the VM ends: the next one takes the \
                        size from the image";
            self.end_resize(number, Err(text.into()));
        }
    }

    fn end_resize(&mut self, number: u64, report: Result<u64, String>) {
        self.resize = Resize {
            step: Step::Idle,
            report: Some((number, report)),
        };
    }

    fn judge_size(&self, wanted: u64, has: u64) -> Result<u64, String> {
        match wanted == has {
            true => Ok(has),
            false => Err(format!(
                "{} has {has} bytes, and {wanted} were asked for; its log says why",
                self.server.name
            )),
        }
    }
}
