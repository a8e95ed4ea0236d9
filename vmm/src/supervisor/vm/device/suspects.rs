//! Which request kills one back-end after another, if one does.
//!
//! ```text
//!               dies              dies, with requests      dies, alone with one
//!  the original ────▶ together ──────────────────────▶ one by one ──▶ without that one
//!       ▲                │ │                              │                │
//!       └────────────────┴─┴── it dies with none of what it found
//! ```
//! A request is known by its queue, its head, and its counter in the inflight region,
//! which is never given twice: it is the same however many back-ends have had it.
//!
//! Only a death of the process's own doing counts (a signal of its own, an error, a hang
//! that it is killed for), and it speaks against a request only if that was executed
//! alone. One that merely is in flight while its back-ends are killed from outside, be
//! it again and again, is never refused. So neither counts a SIGKILL of somebody else's,
//! although the kernel sends that, too, to who takes too much memory: what is short on the
//! host must not become an error of the guest's disk. Such a request is tried on.

use std::collections::{BTreeMap, BTreeSet};

use outboard_line::Told;
use outboard_protocol::launch::{InFlight, Replay};

/// Most requests that are remembered. A back-end is not believed to have more.
const MOST: usize = 1 << 16;
/// Most that a successor is told to refuse; the next is told of the others.
const MOST_REFUSED: usize = 64;

/// Whose doing a death is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    /// The process's own: it crashed, or hung and was killed for that.
    Own,
    /// Somebody else's: the user restarts it, or whoever sends signals.
    Outside,
}

/// What is known of a request that processes have died of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Guilt {
    /// How many: in all of them but the last it was not alone.
    deaths: u32,
    /// A process has said that it refuses it.
    is_refused: bool,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Suspects {
    /// Deaths in a row, each but the first of a process that still had some of what it
    /// had found.
    deaths: u32,
    /// What the living process has found and not returned, as far as is known.
    found: BTreeSet<InFlight>,
    /// Which of them it executes alone.
    alone: Option<InFlight>,
    /// What a process has died of.
    guilty: BTreeMap<InFlight, Guilt>,
    /// By whose doing the living process hangs, which it is killed for.
    hang: Option<Doing>,
}

impl Suspects {
    /// How the next process is to deal with what it finds.
    pub(crate) fn order(&self) -> Replay {
        Replay {
            one_by_one: self.deaths >= 2,
            refuse: self.guilty.keys().take(MOST_REFUSED).copied().collect(),
        }
    }

    /// The process has said this. Returns what it refuses, as it was told to, and how many
    /// have died of that; each such request once.
    pub(crate) fn hear(&mut self, told: Told) -> Option<(InFlight, u32, String)> {
        match told {
            Told::Refused(request, text) => {
                let guilt = self.guilty.get_mut(&request)?;
                let is_new = !std::mem::replace(&mut guilt.is_refused, true);
                return is_new.then_some((request, guilt.deaths, text));
            }
            Told::Found(requests) => {
                let room = MOST.saturating_sub(self.found.len());
                self.found.extend(requests.into_iter().take(room));
            }
            Told::Replays(request) => {
                // The one before was returned.
                if let Some(before) = self.alone.take_if(|alone| *alone != request) {
                    self.acquit(|of| *of == before);
                }
                let asked = self.order().one_by_one && self.found.contains(&request);
                self.alone = asked.then_some(request);
            }
            Told::Replayed(queue) => {
                self.alone.take_if(|alone| alone.queue == queue);
                self.acquit(|of| of.queue == queue);
            }
        }
        None
    }

    /// These were returned.
    fn acquit(&mut self, which: impl Fn(&InFlight) -> bool) {
        self.found.retain(|of| !which(of));
        self.guilty.retain(|of, _| !which(of));
    }

    /// The process hangs, and is killed for that.
    pub(crate) fn hangs(&mut self, doing: Doing) {
        self.hang = Some(doing);
    }

    /// The process has died, by whose doing if it was not for a hang. Returns the request
    /// that it died of, if that is known now, and how many have.
    pub(crate) fn died(&mut self, doing: Doing) -> Option<(InFlight, u32)> {
        let doing = self.hang.take().unwrap_or(doing);
        let found = std::mem::take(&mut self.found);
        let alone = self.alone.take();
        if doing == Doing::Outside {
            return None;
        }
        if found.is_empty() {
            // Whatever it died of, it was nothing that it had found.
            *self = Self {
                deaths: 1,
                ..Self::default()
            };
            return None;
        }
        self.deaths = self.deaths.saturating_add(1);
        self.guilty.retain(|of, _| found.contains(of));
        let alone = alone.filter(|alone| !self.guilty.contains_key(alone))?;
        let guilt = Guilt {
            deaths: self.deaths,
            is_refused: false,
        };
        self.guilty.insert(alone, guilt);
        Some((alone, self.deaths))
    }
}

#[cfg(test)]
mod tests;
