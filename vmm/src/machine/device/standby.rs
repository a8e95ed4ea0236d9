//! A back-end that waits: it is negotiated with, fits and has guest memory, and has no
//! ring. When the one that serves is lost, and nothing is left of that, it serves at
//! once.
//!
//! ```text
//!            prepare              it fits                 promote
//!  nobody ───────────▶ introduced ───────▶ waits ───────────────────▶ it is the device's
//!     ▲                    │                 │
//!     └────── lost ────────┴─────────────────┘
//! ```
//! It is introduced on a thread of its own: one that is silent must not make the owner deaf
//! for the session that lives, or a reset of the guest wait.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use anyhow::{Context, Result};
use outboard_protocol::launch::{FromMachine, Replaces, SessionNumber, Whose};

use super::introduce::{Offer, introduce};
use super::seat::Seat;
use super::serving::Serving;
use crate::machine::frontend::Interruption;
use crate::machine::post::{Mailbox, Newcomer};

/// A back-end that waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// Its session, which has no ring.
    pub(crate) serving: Serving,
    /// Whose it is.
    pub(crate) whose: Whose,
    /// What it offered when it was introduced.
    pub(crate) offer: Offer,
    /// It is to replace one that works, if it can.
    pub(crate) replaces: Option<Replaces>,
}

/// What became of the introduction of one.
#[derive(Debug)]
struct Prepared {
    number: SessionNumber,
    result: Result<Waiting>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Standby {
    /// What became of an introduction.
    prepared: Arc<Mailbox<Prepared>>,
    interruption: Arc<Interruption>,
    state: State,
}

#[derive(Debug)]
enum State {
    Nobody,
    Introduced(SessionNumber),
    Waits(Box<Waiting>),
}

impl Standby {
    /// Without a back-end. `interruption` ends whatever an introduction waits for.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub(crate) fn new(interruption: Arc<Interruption>) -> io::Result<Self> {
        Ok(Self {
            prepared: Arc::new(Mailbox::new()?),
            interruption,
            state: State::Nobody,
        })
    }

    /// The session of the back-end, if there is one.
    pub(crate) fn number(&self) -> Option<SessionNumber> {
        match &self.state {
            State::Nobody => None,
            State::Introduced(number) => Some(*number),
            State::Waits(waiting) => Some(waiting.serving.number()),
        }
    }

    /// What must be polled for input.
    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = vec![self.prepared.as_fd()];
        if let State::Waits(waiting) = &self.state {
            fds.extend(waiting.serving.fds());
        }
        fds
    }

    /// Begins with a newcomer, in place of any other; [`Self::attend`] tells what becomes
    /// of it, and `events` hears later that it owes an answer.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(crate) fn begin(
        &mut self,
        seat: &Seat,
        newcomer: Newcomer,
        events: &Arc<Mailbox<FromMachine>>,
    ) -> Result<()> {
        self.leave();
        let (spec, ram) = (seat.spec.clone(), Arc::clone(&seat.ram));
        let interruption = Arc::clone(&self.interruption);
        let prepared = Arc::clone(&self.prepared);
        let events = Arc::clone(events);
        let Newcomer {
            number,
            session,
            replaces,
            ..
        } = newcomer;
        let introduced = move || {
            let whose = session.whose();
            let (mut serving, offer) = introduce(&spec, number, session, &interruption, &events)?;
            serving.prepare(&spec, &ram)?;
            Ok(Waiting {
                serving,
                whose,
                offer,
                replaces,
            })
        };
        let thread = std::thread::Builder::new().name("standby".into());
        let thread = thread.spawn(move || {
            let result = introduced();
            prepared.post(Prepared { number, result });
        });
        thread.context("starting a thread that introduces a standby")?;
        self.state = State::Introduced(number);
        Ok(())
    }

    /// What has become of it: it waits from now on, or is lost, and nobody waits then.
    pub(crate) fn attend(&mut self) -> Vec<(SessionNumber, Result<()>)> {
        let mut news = Vec::new();
        for Prepared { number, result } in self.prepared.take() {
            // Of another, that has been left, nobody needs to know.
            if self.number() == Some(number) {
                let result = result.map(|waiting| self.state = State::Waits(Box::new(waiting)));
                news.push((number, result));
            }
        }
        if let State::Waits(waiting) = &mut self.state {
            // Its configuration is read again before it serves.
            let heard = waiting.serving.listen().map(drop);
            let number = waiting.serving.number();
            news.extend(heard.err().map(|error| (number, Err(error))));
        }
        if news.iter().any(|(_, result)| result.is_err()) {
            self.leave();
        }
        news
    }

    /// Who waits.
    pub(crate) fn waiting(&mut self) -> Option<&mut Waiting> {
        match &mut self.state {
            State::Waits(waiting) => Some(waiting),
            State::Nobody | State::Introduced(_) => None,
        }
    }

    /// Nobody waits any more.
    pub(crate) fn leave(&mut self) {
        self.state = State::Nobody;
        self.interruption.end_session();
    }

    /// Takes it, if it waits and has this number. `interruption`, which was that of the
    /// device's last session, changes places with its own.
    pub(crate) fn take(
        &mut self,
        number: SessionNumber,
        interruption: &mut Arc<Interruption>,
    ) -> Option<Waiting> {
        if !matches!(&self.state, State::Waits(it) if it.serving.number() == number) {
            return None;
        }
        match std::mem::replace(&mut self.state, State::Nobody) {
            State::Waits(waiting) => {
                std::mem::swap(&mut self.interruption, interruption);
                Some(*waiting)
            }
            State::Nobody | State::Introduced(_) => None,
        }
    }

    /// Who was taken cannot serve: `interruption` is as it was before.
    pub(crate) fn return_to(&mut self, interruption: &mut Arc<Interruption>) {
        std::mem::swap(&mut self.interruption, interruption);
        self.leave();
    }
}
