//! What follows from looks at rings, again and again. Pure: whoever looks says what was
//! seen, and when.
//!
//! Looks are counted, and not the time between them: where a whole VM was stopped, or
//! its host stood still, one look is late, and no more.

use std::time::{Duration, Instant};

/// Looks within a hang timeout.
pub(super) const LOOKS: u32 = 4;
/// As many looks in a row that find a ring standing still are told, and again after as
/// many: two tellings are two chances to look at the back-end, half a timeout apart.
const TELL: u32 = LOOKS / 2;

/// What one look has found of one ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Which.
    pub(super) queue: u16,
    /// A kick waits to be consumed.
    pub(super) kick: bool,
    /// The back-end has asked for a kick with the next chain.
    pub(super) kicks_wanted: bool,
    /// The driver has made chains available that have not been returned.
    pub(super) outstanding: bool,
    /// The used index.
    pub(super) used: u16,
}

/// What is known of a device and its back-end beforehand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Nature {
    /// The back-end is a program of our own: it consumes kicks, and asks for them before
    /// it sleeps.
    pub(crate) is_own: bool,
    /// The device may keep chains for as long as it likes: a card's buffers.
    pub(crate) may_hold: bool,
}

/// A ring that stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unserved {
    /// Which.
    pub(crate) queue: u16,
    /// It was kicked, and nobody has consumed that, though kicks are consumed. If not,
    /// it has chains that are not returned, or its back-end asks for no kicks.
    pub(crate) kick: bool,
    /// How often this was told in a row, this time too.
    pub(crate) times: u32,
}

/// What is remembered of a ring.
#[derive(Debug)]
struct Ring {
    queue: u16,
    used: u16,
    /// Looks in a row that found it standing still.
    still: u32,
    /// A kick of it has been consumed. There are back-ends that poll, and consume none.
    heeds: bool,
}

/// The rings of a device. By default there are none.
#[derive(Debug, Default)]
pub(super) struct Looks {
    every: Duration,
    nature: Nature,
    rings: Vec<Ring>,
    due: Option<Instant>,
    /// They are looked at for ever.
    never_quiet: bool,
}

impl Looks {
    /// At rings of a device of this nature.
    pub(super) fn new(every: Duration, nature: Nature) -> Self {
        Self {
            every,
            nature,
            ..Self::default()
        }
    }

    /// When the next look is due; `None`: when there is a kick, since all is quiet.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Rings have been started, or kicked: from now on they are looked at.
    pub(super) fn are_busy(&mut self, seen: &[Seen], now: Instant) {
        let heeded = |queue: u16| self.heeds(queue);
        let rings = seen.iter().map(|seen| Ring {
            queue: seen.queue,
            used: seen.used,
            still: 0,
            heeds: heeded(seen.queue) || !seen.kick,
        });
        self.rings = rings.collect();
        self.due = (!seen.is_empty()).then(|| now + self.every);
    }

    /// A look: which rings have stood still for long, once for every so many looks.
    pub(super) fn look(&mut self, seen: &[Seen], now: Instant) -> Vec<Unserved> {
        let mut unserved = Vec::new();
        for (ring, seen) in self.rings.iter_mut().zip(seen) {
            ring.heeds |= !seen.kick;
            let moved = std::mem::replace(&mut ring.used, seen.used) != seen.used;
            ring.still = match moved || is_quiet(self.nature, ring.heeds, seen) {
                true => 0,
                false => ring.still.saturating_add(1),
            };
            if ring.still > 0 && ring.still.is_multiple_of(TELL) {
                unserved.push(Unserved {
                    queue: seen.queue,
                    kick: seen.kick,
                    times: ring.still / TELL,
                });
            }
        }
        self.look_again(seen, now);
        unserved
    }

    /// Another look at once, which counts for nothing but whether all is quiet.
    pub(super) fn look_again(&mut self, seen: &[Seen], now: Instant) {
        let nature = self.nature;
        let mut rings = self.rings.iter().zip(seen);
        let is_quiet = rings.all(|(ring, seen)| is_quiet(nature, ring.heeds, seen));
        self.due = (!is_quiet || self.never_quiet).then(|| now + self.every);
    }

    /// Whether kicks of this ring are consumed, as far as it has shown.
    pub(super) fn heeds(&self, queue: u16) -> bool {
        let mut rings = self.rings.iter().filter(|ring| ring.queue == queue);
        rings.any(|ring| ring.heeds)
    }

    /// A kick cannot be waited for.
    pub(super) fn are_never_quiet(&mut self) {
        self.never_quiet = true;
    }
}

/// Whether nothing is expected of the back-end before the next kick. Of one that is not our
/// own nothing is known but what it does with kicks.
fn is_quiet(nature: Nature, heeds: bool, seen: &Seen) -> bool {
    match nature.is_own {
        true => !seen.kick && seen.kicks_wanted && (nature.may_hold || !seen.outstanding),
        false => !seen.kick || !heeds,
    }
}

#[cfg(test)]
mod tests;
