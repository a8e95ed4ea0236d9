//! One VM while it lives: the only loop of the supervisor.
//!
//! ```text
//!      ┌── events: the machine's words, deaths, signals, somebody found, time ◀──┐
//!      ▼                                                                        │
//!  [`life`] ([`machine`], [`device`] each, [`end`]: pure) ── actions ──▶ [`actions`]
//! ```
//! Nothing waits but the loop itself: every patience is a deadline in a state.

pub mod action;
pub mod actions;
pub mod device;
pub mod end;
pub mod event;
pub mod life;
pub mod line;
pub mod machine;
pub mod verdict;

use std::collections::VecDeque;
use std::time::Instant;

use self::actions::Hands;
use self::event::Event;
use self::life::Life;
use self::verdict::Verdict;

/// Lives a VM to its end; every process of it has ended then, but for one that
/// hangs in the kernel.
pub fn live(mut life: Life, mut hands: Hands<'_>) -> Verdict {
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
