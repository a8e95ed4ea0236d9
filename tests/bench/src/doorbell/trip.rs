//! The round trip: the guest rings, the back-end answers and calls, and the
//! guest has seen it. A disk that is not there, one request at a time.

use super::report::{Kind, What};

/// Who waits how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trip {
    /// The back-end spins on its ring; else it sleeps until it is kicked.
    pub back_end_polls: bool,
    /// The guest spins on the used ring; else it halts until its interrupt
    /// handler has run.
    pub guest_polls: bool,
}

impl Trip {
    fn name(self) -> String {
        let way = |polls| if polls { "polling" } else { "asleep" };
        format!(
            "round trip, back-end {}, guest {}",
            way(self.back_end_polls),
            way(self.guest_polls)
        )
    }
}

/// All of them, beside that in which both sleep.
pub fn kinds() -> Vec<Kind> {
    let trip = |back_end_polls, guest_polls| Trip {
        back_end_polls,
        guest_polls,
    };
    let trips = [(false, false), (false, true), (true, false), (true, true)];
    trips
        .map(|(back_end, guest)| Kind {
            what: What::Trip(trip(back_end, guest)),
            name: trip(back_end, guest).name(),
            reference: trip(false, false).name(),
            text: None,
        })
        .into()
}
