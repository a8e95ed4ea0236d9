//! One VM while it lives: the only loop of the supervisor.
//!
//! ```text
//!      ┌── events: a back-end's words, the machine's, deaths, signals, calls, time ◀─┐
//!      ▼                                                                             │
//!  [`life`] ([`machine`], [`device`] each, [`end`]: pure) ──── actions ─────▶ [`actions`]
//! ```
//! Nothing waits but the loop itself: every patience is a deadline in a state.

pub(crate) mod action;
pub(crate) mod actions;
pub(crate) mod answer;
pub(crate) mod backend;
pub(crate) mod counters;
pub(crate) mod device;
pub(crate) mod end;
pub(crate) mod event;
pub(crate) mod explain;
pub(crate) mod life;
pub(crate) mod look;
pub(crate) mod machine;
pub(crate) mod machine_line;
pub(crate) mod pause;
pub(crate) mod verdict;

use std::collections::VecDeque;
use std::time::Instant;

use self::actions::Hands;
use self::event::Event;
use self::life::Life;
use self::verdict::Verdict;

/// Lives a VM to its end; every process of it has ended then, but for one that
/// hangs in the kernel.
pub(crate) fn live(mut life: Life, mut hands: Hands<'_>) -> Verdict {
    let mut events = VecDeque::from([Event::Begin]);
    loop {
        while let Some(event) = events.pop_front() {
            for action in life.step(event, Instant::now()) {
                events.extend(hands.perform(action));
            }
        }
        if let Some(verdict) = life.verdict() {
            return verdict.clone();
        }
        events.extend(hands.wait(life.due()));
    }
}

#[cfg(test)]
mod tests;
