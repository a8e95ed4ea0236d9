//! Which frames the driver wants to receive (virtio 1.3, section 5.1.6.5.1 and
//! 5.1.6.5.2): its modes and addresses, and what becomes of them in a tap.

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

const MODES: usize = 6;

/// What the driver has asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    modes: [bool; MODES],
    unicast: Vec<Mac>,
    multicast: Vec<Mac>,
}

impl Default for Filter {
    /// Everything, until the driver says otherwise.
    fn default() -> Self {
        let mut filter = Self {
            modes: [false; MODES],
            unicast: Vec::new(),
            multicast: Vec::new(),
        };
        filter.set(Mode::Promiscuous, true);
        filter
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

impl Filter {
    /// Turns a mode on or off.
    pub fn set(&mut self, mode: Mode, on: bool) {
        if let Some(place) = self.modes.get_mut(mode as usize) {
            *place = on;
        }
    }

    fn is(&self, mode: Mode) -> bool {
        self.modes.get(mode as usize).copied().unwrap_or(false)
    }

    /// Replaces the addresses besides the card's own (MAC_TABLE_SET).
    pub fn set_table(&mut self, unicast: Vec<Mac>, multicast: Vec<Mac>) {
        self.unicast = unicast;
        self.multicast = multicast;
    }

    /// What a tap is to let through to the card with the address `own`. A
    /// filter may let through more than was asked for, never less; a card
    /// whose address is not known gets everything.
    pub fn for_tap(&self, own: Option<Mac>) -> TapFilter {
        let everything = self.is(Mode::Promiscuous) || self.is(Mode::AllUnicast);
        let Some(own) = own.filter(|_| !everything) else {
            return TapFilter::default();
        };
        let mut addresses = Vec::new();
        if !self.is(Mode::NoUnicast) {
            addresses.push(own);
            addresses.extend(&self.unicast);
        }
        if !self.is(Mode::NoBroadcast) {
            addresses.push(BROADCAST);
        }
        let multicast = !self.is(Mode::NoMulticast);
        if multicast {
            addresses.extend(&self.multicast);
        }
        if addresses.is_empty() {
            addresses.push(NOBODY);
        }
        TapFilter {
            addresses,
            multicast: multicast && self.is(Mode::AllMulticast),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];
    const GROUP: Mac = [1, 0, 0x5e, 0, 0, 1];

    #[test]
    fn everything_passes_until_the_driver_says_otherwise() {
        let mut filter = Filter::default();
        assert_eq!(filter.for_tap(Some(OWN)), TapFilter::default());
        filter.set(Mode::Promiscuous, false);
        assert_eq!(filter.for_tap(None), TapFilter::default());
        assert_eq!(filter.for_tap(Some(OWN)).addresses, [OWN, BROADCAST]);
    }

    #[test]
    fn a_table_adds_and_modes_take_away() {
        let mut filter = Filter::default();
        filter.set(Mode::Promiscuous, false);
        filter.set_table(vec![OTHER], vec![GROUP]);
        let all = filter.for_tap(Some(OWN));
        assert_eq!(all.addresses, [OWN, OTHER, BROADCAST, GROUP]);
        filter.set(Mode::AllMulticast, true);
        assert!(filter.for_tap(Some(OWN)).multicast);
        for (mode, left) in [
            (Mode::NoMulticast, &[OWN, OTHER, BROADCAST][..]),
            (Mode::NoBroadcast, &[OWN, OTHER]),
            (Mode::NoUnicast, &[NOBODY]),
        ] {
            filter.set(mode, true);
            let found = filter.for_tap(Some(OWN));
            assert_eq!((&*found.addresses, found.multicast), (left, false));
        }
        filter.set(Mode::AllUnicast, true);
        assert_eq!(filter.for_tap(Some(OWN)), TapFilter::default());
    }
}
