//! What is known of a device's back-end by its line to us (PROTOCOL.md, section 1).
//!
//! ```text
//!            Ready           HungUp             LAG, and it lives
//!  Silent ───────────▶ Ready ───────▶ HungUp ────────────────────▶ Deaf
//!    │ └───────────────────┴─────────── Nonsense ───────────────────▲
//!    └───── it is attached: it keeps version 1 of the contract ─────┘
//! ```
//! Each process begins as `Silent`.

use std::time::Instant;

use log::Level;
use outboard_protocol::deadline::limits;
use outboard_protocol::launch::Whose;

use super::{Device, Event, Outcome, State};
use crate::supervisor::vm::action::Action;

/// How far a line has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Nothing was said yet.
    Silent,
    /// The back-end is ready, and says what its successor must know.
    Ready,
    /// It has closed the line.
    HungUp {
        /// Until then its death explains that.
        until: Instant,
    },
    /// It is not heard any more, and serves on.
    Deaf,
}

impl Device {
    /// Takes what was heard on the line; gives anything else back.
    pub(super) fn hear(
        &mut self,
        event: Event,
        now: Instant,
        out: &mut Vec<Outcome>,
    ) -> Option<Event> {
        match event {
            Event::Ready(session)
            | Event::Keeps(session, _)
            | Event::IoError(session, ..)
            | Event::InFlight(session, _)
            | Event::Nonsense(session, _)
            | Event::HungUp(session)
                if session != self.session || !self.lives => {}
            Event::Ready(_) if self.line == Line::Silent => self.line = Line::Ready,
            Event::Keeps(_, kept) if self.line == Line::Ready => self.keep(kept),
            Event::IoError(_, queue, why) if self.line == Line::Ready => {
                self.io_error(queue, &why, out);
            }
            Event::InFlight(_, told) if self.line == Line::Ready => {
                self.hear_of_requests(told, out);
            }
            Event::Nonsense(_, why) if self.line != Line::Deaf => {
                self.deafen(&format!("says what no back-end says ({why})"), out);
            }
            Event::HungUp(_) if self.line == Line::Ready => {
                let until = now + limits::LAG;
                self.line = Line::HungUp { until };
            }
            Event::Ready(_)
            | Event::Keeps(..)
            | Event::IoError(..)
            | Event::InFlight(..)
            | Event::Nonsense(..)
            | Event::HungUp(_) => {}
            Event::Resume => {
                if std::mem::take(&mut self.holds) {
                    out.push(Outcome::Do(Action::Retry(self.place)));
                }
                return Some(Event::Resume);
            }
            Event::Tick => {
                if self.line_due().is_some_and(|until| now >= until) {
                    self.deafen("has closed its line to outboard", out);
                }
                return Some(Event::Tick);
            }
            other => return Some(other),
        }
        None
    }

    /// A request has failed on the host, and its back-end holds it back. It says so once,
    /// and is not heard of it again before it is told to try again. None but ours is
    /// asked to, and another cannot pause the VM.
    fn io_error(&mut self, queue: u16, why: &str, out: &mut Vec<Outcome>) {
        if self.server.program != Some(Whose::Own) {
            return self.deafen("holds back what nobody has asked it to", out);
        }
        if std::mem::replace(&mut self.holds, true) {
            return;
        }
        let id = &self.id;
        let text = format!(
            "{id}: {why} (queue {queue}); the guest is not told: the VM is paused, and this is \
             tried again when it is resumed"
        );
        out.push(Outcome::Do(Action::Say(text)));
        out.push(Outcome::IoError);
    }

    /// When it is known that the process lives on without its line.
    pub(super) fn line_due(&self) -> Option<Instant> {
        match self.line {
            Line::HungUp { until } => Some(until),
            Line::Silent | Line::Ready | Line::Deaf => None,
        }
    }

    /// The machine has attached it: tells the user if it keeps version 1, and that
    /// once, however often it is started.
    pub(super) fn check_version(&mut self, out: &mut Vec<Outcome>) {
        if self.line != Line::Silent || !self.lives {
            return;
        }
        (self.line, self.kept) = (Line::Deaf, None);
        self.shares = self.server.has_image;
        if std::mem::replace(&mut self.told_version, true) {
            return;
        }
        let (level, advice) = match self.server.program {
            Some(Whose::Own) => (Level::Warn, "; it is older than outboard: use one release"),
            // Most programs of others do, and there is nothing wrong with them.
            Some(Whose::Foreign { .. }) | None => (Level::Info, ""),
        };
        let (id, name) = (&self.id, &self.server.name);
        let text = format!(
            "{id}: {name} keeps version 1 of the launch contract: it serves, but is not told \
             what changes on the host, and what the guest has set in the device is lost when it \
             ends{advice}"
        );
        out.push(Outcome::Do(Action::Log(level, text)));
    }

    /// Nobody knows any more what a successor would have to be told. One whose session
    /// is over needs no line.
    fn deafen(&mut self, why: &str, out: &mut Vec<Outcome>) {
        self.line = Line::Deaf;
        self.kept = None;
        if !matches!(self.state, State::Attaching | State::Serving) {
            return;
        }
        let (id, name) = (&self.id, &self.server.name);
        let text = format!(
            "{id}: {name} {why}: it serves on, but what the guest has set in the device is lost \
             when it ends"
        );
        out.push(Outcome::Do(Action::Log(Level::Warn, text)));
    }
}
