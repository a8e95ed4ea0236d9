use super::*;

const EVERY: Duration = Duration::from_millis(250);

/// A card's or a disk's ring, looked at by a clock of the test's.
struct Bench {
    looks: Looks,
    now: Instant,
}

/// All is served, and a kick is asked for.
const QUIET: Seen = Seen {
    queue: 0,
    kick: false,
    kicks_wanted: true,
    outstanding: false,
    used: 7,
};
const KICKED: Seen = Seen {
    kick: true,
    outstanding: true,
    ..QUIET
};
/// Taken, and not returned yet.
const UNDER_WAY: Seen = Seen {
    outstanding: true,
    ..QUIET
};
/// No kick is asked for: the back-end looks by itself.
const SUPPRESSED: Seen = Seen {
    kicks_wanted: false,
    ..UNDER_WAY
};

const OWN: Nature = Nature {
    is_own: true,
    may_hold: false,
};
const CARD: Nature = Nature {
    may_hold: true,
    ..OWN
};
const FOREIGN: Nature = Nature {
    is_own: false,
    may_hold: false,
};

impl Bench {
    /// Watches a ring whose first kick was consumed.
    fn busy(nature: Nature) -> Self {
        let (mut looks, now) = (Looks::new(EVERY, nature), Instant::now());
        looks.are_busy(&[QUIET], now);
        assert_eq!(looks.due(), Some(now + EVERY));
        Self { looks, now }
    }

    fn look(&mut self, seen: Seen) -> Vec<Unserved> {
        self.now += EVERY;
        self.looks.look(&[seen], self.now)
    }

    /// As many looks as there are in so many timeouts: which of them told something.
    fn told(&mut self, seen: Seen, timeouts: u32) -> Vec<(u32, Unserved)> {
        let looks = 1..=timeouts * LOOKS;
        let told = looks.flat_map(|number| self.look(seen).into_iter().map(move |u| (number, u)));
        told.collect()
    }

    fn is_quiet(&self) -> bool {
        self.looks.due().is_none()
    }
}

fn unserved(kick: bool, times: u32) -> Unserved {
    Unserved {
        queue: 0,
        kick,
        times,
    }
}

#[test]
fn what_stands_still_is_told_twice_in_a_timeout_and_again() {
    for (nature, seen) in [
        (OWN, KICKED),
        (OWN, UNDER_WAY),
        (OWN, SUPPRESSED),
        (CARD, KICKED),
        (CARD, SUPPRESSED),
        (FOREIGN, KICKED),
    ] {
        let mut bench = Bench::busy(nature);
        let told = bench.told(seen, 2);
        let times = [2, 4, 6, 8].map(|look| (look, unserved(seen.kick, look / TELL)));
        assert_eq!(told, times, "{nature:?} {seen:?}");
        assert!(!bench.is_quiet());
    }
}

#[test]
fn all_that_needs_no_look_is_quiet() {
    for (nature, seen) in [
        (OWN, QUIET),
        (CARD, QUIET),
        // It waits for frames.
        (CARD, UNDER_WAY),
        // Nothing is known of it but kicks.
        (FOREIGN, QUIET),
        (FOREIGN, UNDER_WAY),
        (FOREIGN, SUPPRESSED),
    ] {
        let mut bench = Bench::busy(nature);
        assert_eq!(bench.told(seen, 2), [], "{nature:?} {seen:?}");
        assert!(bench.is_quiet(), "{nature:?} {seen:?}");
    }
}

#[test]
fn a_used_index_that_moves_is_progress() {
    let mut bench = Bench::busy(OWN);
    for round in 0..20 {
        for (still, used) in [(0, 2 * round), (1, 2 * round), (0, 2 * round + 1)] {
            let seen = Seen { used, ..KICKED };
            assert_eq!(bench.look(seen), [], "{round} {still}");
            assert!(!bench.is_quiet(), "the kick is still to be consumed");
        }
    }
}

#[test]
fn what_was_quiet_or_has_moved_begins_anew() {
    for between in [QUIET, Seen { used: 8, ..KICKED }] {
        let mut bench = Bench::busy(OWN);
        assert_eq!(bench.told(KICKED, 1).len(), 2);
        assert_eq!(bench.look(between), []);
        if bench.is_quiet() {
            bench.looks.are_busy(&[between], bench.now);
        }
        let used = between.used;
        let told = bench.told(Seen { used, ..KICKED }, 1);
        assert_eq!(told, [(2, unserved(true, 1)), (4, unserved(true, 2))]);
    }
}

/// The start of a ring kicks it; a back-end that polls never reads that.
#[test]
fn a_back_end_of_others_that_consumes_no_kick_is_not_waited_for() {
    let now = Instant::now();
    let mut looks = Looks::new(EVERY, FOREIGN);
    looks.are_busy(&[KICKED], now);
    assert!(!looks.heeds(0));
    assert_eq!(looks.look(&[KICKED], now + EVERY), []);
    assert_eq!(looks.due(), None);
    assert!(!looks.heeds(0));
    // One that has read it once is known to.
    looks.are_busy(&[UNDER_WAY], now);
    assert!(looks.heeds(0));
    looks.are_busy(&[KICKED], now);
    assert!(looks.heeds(0));
    // Our own always does.
    let mut looks = Looks::new(EVERY, OWN);
    looks.are_busy(&[KICKED], now);
    assert_eq!(looks.look(&[KICKED], now + EVERY), []);
    assert_eq!(looks.look(&[KICKED], now + EVERY), [unserved(true, 1)]);
}

#[test]
fn one_ring_that_stands_still_is_told_beside_others_that_do_not() {
    let now = Instant::now();
    let mut looks = Looks::new(EVERY, OWN);
    let other = |used| Seen {
        queue: 1,
        used,
        ..UNDER_WAY
    };
    looks.are_busy(&[KICKED, other(0)], now);
    for used in 1..=TELL as u16 {
        let told = looks.look(&[KICKED, other(used)], now);
        assert_eq!(told.len(), usize::from(used == TELL as u16));
    }
}

#[test]
fn a_look_between_counts_for_nothing() {
    let mut bench = Bench::busy(OWN);
    assert_eq!(bench.look(QUIET), []);
    assert!(bench.is_quiet());
    bench.looks.look_again(&[KICKED], bench.now);
    assert!(!bench.is_quiet());
    let told = bench.told(KICKED, 1);
    assert_eq!(told, [(2, unserved(true, 1)), (4, unserved(true, 2))]);
}

#[test]
fn where_no_kick_can_be_waited_for_there_is_always_another_look() {
    let mut bench = Bench::busy(OWN);
    bench.looks.are_never_quiet();
    for _ in 0..3 {
        assert_eq!(bench.look(QUIET), []);
        assert_eq!(bench.looks.due(), Some(bench.now + EVERY));
    }
    let mut none = Looks::new(EVERY, OWN);
    none.are_busy(&[], bench.now);
    assert_eq!(none.due(), None, "there is no ring");
}
