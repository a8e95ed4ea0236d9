//! A back-end that works is replaced: it hands back its rings, and a successor that has
//! waited is started with them, or it goes on.
//!
//! ```text
//!          hand_back                     promote(a successor)
//!  served ──────────▶ at rest ([`Rest`]) ────────────────────▶ served by that one, from the
//!    ▲                 │  │                                     first ring that it is let have
//!    │  not in time    │  │ promote(the same), or the successor fails before that
//!    └─────────────────┘◀─┘
//! ```
//! Whoever had the rings stays connected until its successor has one of them, so it can be
//! put back. What the guest does meanwhile is done with the one that rests.

use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result};
use outboard_protocol::launch::{Cause, FromMachine, Gap, Replaces, SessionNumber};

use super::Owner;
use super::reserve::successor;
use crate::machine::device::serving::Serving;
use crate::machine::frontend::{Inflight, Limits, because};

/// Rings that were handed back, and are served by nobody.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    /// By whom.
    session: SessionNumber,
    gap: Gap,
    since: Instant,
}

/// A successor that does not serve.
struct Failed {
    error: Error,
    /// It had one of the rings, perhaps.
    has_begun: bool,
}

impl Owner {
    /// The back-end of this session hands back its rings. Of one that is lost the end has
    /// been told.
    ///
    /// # Errors
    /// It does not, or has gone.
    pub(super) fn hand_back(&mut self, number: SessionNumber) -> Result<()> {
        let is_it = |serving: &&mut Serving| serving.number() == number;
        let Some(serving) = self.serving.as_mut().filter(is_it) else {
            return Ok(());
        };
        if self.rest.is_none() {
            let handed = serving.hand_back(&self.seat, &mut self.driver)?;
            if handed.has_broken {
                self.needs_reset();
            }
            let rest = Rest {
                session: number,
                gap: Gap {
                    stop_us: micros(handed.stop),
                    drain_us: micros(handed.drain),
                    ..Gap::default()
                },
                since: Instant::now(),
            };
            if let Some(queue) = handed.busy {
                let text = format!(
                    "the back-end stopped queue {queue} and did not finish its requests in time"
                );
                self.go_on(rest, Some(text));
                return Ok(());
            }
            self.rest = Some(rest);
        }
        self.post(FromMachine::HandedBack {
            device: self.seat.spec.id.clone(),
            session: number,
        });
        // KVM takes its time, and so does the supervisor meanwhile. Not before the stop: a kick
        // would be lost on a back-end that sleeps, for as long as a busy guest keeps KVM waiting.
        self.seat.rest(&self.driver);
        Ok(())
    }

    /// The rings that were handed back are served again: by the session of this number, or
    /// if that is not possible, by the one that had them.
    pub(super) fn follow(&mut self, mut rest: Rest, number: SessionNumber, replaces: Replaces) {
        rest.gap.rest_us = micros(rest.since.elapsed());
        rest.since = Instant::now();
        if number == rest.session {
            return self.go_on(rest, None);
        }
        let Some(former) = self.serving.take() else {
            return;
        };
        let region = self.driver.inflight().take();
        match self.succeed(number, replaces) {
            Ok(()) => self.has_followed(former, rest, number),
            Err(failed) if failed.has_begun => {
                self.has_followed(former, rest, number);
                self.lose(Some(number), &failed.error);
            }
            Err(failed) => self.put_back(former, region, rest, &failed.error),
        }
    }

    /// The successor that waits is started, with a region of its own: nothing is in flight.
    fn succeed(&mut self, number: SessionNumber, replaces: Replaces) -> Result<(), Failed> {
        let Some(mut waiting) = self.standby.take(number, &mut self.interruption) else {
            let error = because(Cause::Gone, "there is no back-end that waits");
            let has_begun = false;
            return Err(Failed { error, has_begun });
        };
        waiting.serving.set_limits(Limits::OF_A_SUCCESSOR);
        let successor = successor(waiting.whose, replaces);
        let result = self.employ_waiting(waiting, successor);
        match (result, &mut self.serving) {
            (Ok(()), serving) => {
                let limits = |serving: &mut Serving| serving.set_limits(Limits::default());
                serving.iter_mut().for_each(limits);
                Ok(())
            }
            (Err(error), serving) => {
                let has_begun = serving.as_ref().is_some_and(Serving::has_begun);
                if !has_begun {
                    self.serving = None;
                    self.standby.return_to(&mut self.interruption);
                }
                Err(Failed { error, has_begun })
            }
        }
    }

    /// The successor has the rings, and whoever had them is told to go.
    fn has_followed(&mut self, former: Serving, rest: Rest, number: SessionNumber) {
        drop(former);
        self.standby.leave();
        self.config_stale = None;
        self.tell_gap(rest, number, None);
    }

    /// Nothing has come of the successor, for this reason, and whoever had the rings goes on.
    fn put_back(&mut self, former: Serving, region: Option<Inflight>, rest: Rest, error: &Error) {
        *self.driver.inflight() = region;
        self.agreed.is_served_by(&former);
        self.serving = Some(former);
        self.go_on(rest, Some(format!("{error:#}")));
    }

    /// Whoever had the rings goes on; `why` it is not a successor. If it cannot, it is that
    /// one that is lost, and whoever was to succeed it is none any more.
    fn go_on(&mut self, rest: Rest, why: Option<String>) {
        self.driver.is_served();
        let started = self.start();
        let failed = started.with_context(|| match &why {
            Some(why) => format!("going on with the rings, after this: {why}"),
            None => "going on with the rings".into(),
        });
        if failed.is_ok() || why.is_some() {
            self.tell_gap(rest, rest.session, why);
        }
        if let Err(error) = failed {
            self.lose(Some(rest.session), &error);
        }
    }

    fn tell_gap(&mut self, mut rest: Rest, session: SessionNumber, why: Option<String>) {
        rest.gap.start_us = micros(rest.since.elapsed());
        self.post(FromMachine::GoesOn {
            device: self.seat.spec.id.clone(),
            session,
            gap: rest.gap,
            why,
        });
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
