//! Which frames the driver wants to receive (virtio 1.3, section 5.1.6.5.1 and
//! 5.1.6.5.2): its modes and addresses, and what becomes of them in a tap.

use outboard_protocol::kept::{Addresses, CardState, Modes};
use outboard_protocol::tap::Mac;

/// Every station.
const BROADCAST: Mac = [0xff; 6];
/// No station has this address; it stands for an empty list, which to the
/// kernel would mean that there is no filter.
const NOBODY: Mac = [0; 6];

/// A mode of the CTRL_RX class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All frames.
    Promiscuous,
    /// All multicast frames.
    AllMulticast,
    /// All unicast frames.
    AllUnicast,
    /// No multicast frames.
    NoMulticast,
    /// No unicast frames.
    NoUnicast,
    /// No broadcast frames.
    NoBroadcast,
}

impl Mode {
    /// Turns it on or off.
    pub fn turn(self, modes: &mut Modes, on: bool) {
        let place = match self {
            Self::Promiscuous => &mut modes.promiscuous,
            Self::AllMulticast => &mut modes.all_multicast,
            Self::AllUnicast => &mut modes.all_unicast,
            Self::NoMulticast => &mut modes.no_multicast,
            Self::NoUnicast => &mut modes.no_unicast,
            Self::NoBroadcast => &mut modes.no_broadcast,
        };
        *place = on;
    }
}

/// A filter as a tap takes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapFilter {
    /// The stations to let through; empty for all.
    pub addresses: Vec<Mac>,
    /// Whether all multicast frames are let through besides.
    pub multicast: bool,
}

/// What a tap is to let through to a card whose driver has set this, and which
/// was made with the address `made`. A filter may let through more than was asked
/// for, never less; a card whose address is not known gets everything.
pub fn for_tap(state: &CardState, made: Option<Mac>) -> TapFilter {
    let modes = state.modes;
    let any_station = !modes.no_unicast && state.unicast == Addresses::TooMany;
    let everything = modes.promiscuous || modes.all_unicast || any_station;
    let Some(own) = state.mac.or(made).filter(|_| !everything) else {
        return TapFilter::default();
    };
    let mut addresses = Vec::new();
    if !modes.no_unicast {
        addresses.push(own);
        addresses.extend(listed(&state.unicast));
    }
    if !modes.no_broadcast {
        addresses.push(BROADCAST);
    }
    if !modes.no_multicast {
        addresses.extend(listed(&state.multicast));
    }
    if addresses.is_empty() {
        addresses.push(NOBODY);
    }
    let any_group = modes.all_multicast || state.multicast == Addresses::TooMany;
    TapFilter {
        addresses,
        multicast: any_group && !modes.no_multicast,
    }
}

fn listed(table: &Addresses) -> &[Mac] {
    match table {
        Addresses::Listed(addresses) => addresses,
        Addresses::TooMany => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];
    const GROUP: Mac = [1, 0, 0x5e, 0, 0, 1];

    fn set(state: &mut CardState, mode: Mode, on: bool) {
        mode.turn(&mut state.modes, on);
    }

    #[test]
    fn everything_passes_until_the_driver_says_otherwise() {
        let mut state = CardState::default();
        assert_eq!(for_tap(&state, Some(OWN)), TapFilter::default());
        set(&mut state, Mode::Promiscuous, false);
        assert_eq!(for_tap(&state, None), TapFilter::default());
        assert_eq!(for_tap(&state, Some(OWN)).addresses, [OWN, BROADCAST]);
        state.mac = Some(OTHER);
        assert_eq!(for_tap(&state, Some(OWN)).addresses, [OTHER, BROADCAST]);
    }

    #[test]
    fn a_table_adds_and_modes_take_away() {
        let mut state = CardState {
            unicast: vec![OTHER].into(),
            multicast: vec![GROUP].into(),
            ..CardState::default()
        };
        set(&mut state, Mode::Promiscuous, false);
        let all = for_tap(&state, Some(OWN));
        assert_eq!(all.addresses, [OWN, OTHER, BROADCAST, GROUP]);
        set(&mut state, Mode::AllMulticast, true);
        assert!(for_tap(&state, Some(OWN)).multicast);
        for (mode, left) in [
            (Mode::NoMulticast, &[OWN, OTHER, BROADCAST][..]),
            (Mode::NoBroadcast, &[OWN, OTHER]),
            (Mode::NoUnicast, &[NOBODY]),
        ] {
            set(&mut state, mode, true);
            let found = for_tap(&state, Some(OWN));
            assert_eq!((&*found.addresses, found.multicast), (left, false));
        }
        set(&mut state, Mode::AllUnicast, true);
        assert_eq!(for_tap(&state, Some(OWN)), TapFilter::default());
    }

    #[test]
    fn a_table_that_is_too_long_lets_all_of_its_kind_through() {
        let mut state = CardState {
            multicast: Addresses::TooMany,
            ..CardState::default()
        };
        set(&mut state, Mode::Promiscuous, false);
        let groups = TapFilter {
            addresses: vec![OWN, BROADCAST],
            multicast: true,
        };
        assert_eq!(for_tap(&state, Some(OWN)), groups);
        state.unicast = Addresses::TooMany;
        assert_eq!(for_tap(&state, Some(OWN)), TapFilter::default());
        // But no kind that is not wanted at all.
        set(&mut state, Mode::NoUnicast, true);
        set(&mut state, Mode::NoMulticast, true);
        let left = for_tap(&state, Some(OWN));
        assert_eq!(
            (&*left.addresses, left.multicast),
            (&[BROADCAST][..], false)
        );
    }
}
