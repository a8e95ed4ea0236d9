//! What must survive a back-end because the driver will not say it again: the
//! one room that lists it, for each kind of device.
//!
//! A driver sets its device up once. When another process goes on with the
//! device, the front-end tells it the driver's features, the rings and their
//! bases, and hands it the inflight region. What the driver has changed inside
//! the device is this:
//!
//! | kind | what | how it was set | who knows it |
//! |---|---|---|---|
//! | disk | its cache byte | the driver wrote the configuration space | the back-end; and the machine, which passed the write on and answers reads |
//! | | "a sync has failed" | the kernel said so | the back-end alone |
//! | card | all of [`CardState`] | commands on the control queue | the back-end alone |
//! | other | nothing | | |
//!
//! ```text
//! predecessor ── kept ──► Kept ── check ──► restore ──► successor's first ring
//! ```
//! A successor restores it before its first ring starts: a request or a frame
//! that was served before could not be called back. Likewise whoever keeps it
//! must hear of a change before the driver does: what was answered is not asked
//! again. A reset by the guest undoes it, as the specification demands; but a
//! sync that has failed stays failed until the VM ends: what the kernel has dropped
//! then, no driver has reset.
//!
//! It comes from a process that is not trusted and may be passed on by others:
//! each checks it ([`Kept::check`]), and a device refuses what it does not have
//! itself. A field that is not known is refused too, rather than lost.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::tap::{Mac, is_station};

/// Most addresses that are kept of one table. A card's filter may let more
/// through than was asked for, and the kernel's does long before: it compares
/// eight addresses and hashes the rest to 64 bits, of which so many leave one
/// unset.
pub const MOST_ADDRESSES: usize = 256;
/// Most pairs that a driver can command (VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MAX).
pub const MOST_PAIRS: u16 = 0x8000;
/// Number of VLAN ids.
pub const VLANS: u16 = 4096;

/// What a back-end leaves to its successor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// Nothing: a device whose driver says all that there is to say each time.
    #[default]
    Nothing,
    /// Of a disk.
    Disk(DiskState),
    /// Of a network card.
    Card(CardState),
}

/// What is kept of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskState {
    /// The write cache is on: the byte `writeback` as the driver sees it (virtio
    /// 1.3, sections 5.2.5 and 5.2.6.2), whether it or the command line has set
    /// it. A driver that sees 0 sends no flush.
    pub writeback: bool,
    /// A sync of the image has failed: no flush may succeed any more, since the
    /// kernel tells of the failure once, and of success from then on.
    pub sync_failed: bool,
}

/// What is kept of a network card: what its driver has commanded on the control
/// queue (virtio 1.3, section 5.1.6.5). The default is a card after a reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardState {
    /// The card's own address (section 5.1.6.5.2, VIRTIO_NET_CTRL_MAC_ADDR_SET);
    /// `None`: the one that the card was made with, if any.
    pub mac: Option<Mac>,
    /// What it receives besides, or does not (section 5.1.6.5.1).
    pub modes: Modes,
    /// Further stations whose frames it receives (section 5.1.6.5.2,
    /// VIRTIO_NET_CTRL_MAC_TABLE_SET).
    pub unicast: Addresses,
    /// Groups whose frames it receives (the same).
    pub multicast: Addresses,
    /// Ids of the VLANs whose frames it receives (section 5.1.6.5.3), each below
    /// [`VLANS`]; `None`: there is no such table, and all VLANs pass. No card of
    /// ours offers CTRL_VLAN.
    pub vlans: Option<BTreeSet<u16>>,
    /// Pairs of queues in use, the first ones, 1 to [`MOST_PAIRS`] (section
    /// 5.1.6.5.5); `None`: the back-end has no control queue, and those pairs are
    /// used whose rings are enabled.
    pub pairs: Option<u16>,
    /// The GUEST_* offloads in use, as feature bits (section 5.1.6.5.6); `None`:
    /// all that were negotiated.
    pub offloads: Option<u64>,
}

/// The receive modes (virtio 1.3, section 5.1.6.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Modes {
    /// All frames.
    pub promiscuous: bool,
    /// All multicast frames.
    pub all_multicast: bool,
    /// All unicast frames.
    pub all_unicast: bool,
    /// No multicast frames.
    pub no_multicast: bool,
    /// No unicast frames.
    pub no_unicast: bool,
    /// No broadcast frames.
    pub no_broadcast: bool,
}

impl Default for Modes {
    /// Everything, until the driver says otherwise.
    fn default() -> Self {
        Self {
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
        }
    }
}

/// One table of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Addresses {
    /// These, [`MOST_ADDRESSES`] at most.
    Listed(Vec<Mac>),
    /// More than that: every address counts as one of the table.
    TooMany,
}

impl Default for Addresses {
    fn default() -> Self {
        Self::Listed(Vec::new())
    }
}

impl From<Vec<Mac>> for Addresses {
    fn from(table: Vec<Mac>) -> Self {
        match table.len() {
            0..=MOST_ADDRESSES => Self::Listed(table),
            _ => Self::TooMany,
        }
    }
}

impl Kept {
    /// Checks what can be checked without the device; see the module.
    ///
    /// # Errors
    /// A message that says what is out of bounds, and the bounds.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Nothing | Self::Disk(_) => Ok(()),
            Self::Card(card) => card.check(),
        }
    }
}

impl CardState {
    /// See [`Kept::check`].
    ///
    /// # Errors
    /// The same.
    pub fn check(&self) -> Result<(), String> {
        if let Some(mac) = self.mac.filter(|mac| !is_station(mac)) {
            return Err(format!("{mac:02x?} is not the address of one station"));
        }
        for table in [&self.unicast, &self.multicast] {
            if let Addresses::Listed(table) = table
                && table.len() > MOST_ADDRESSES
            {
                let count = table.len();
                return Err(format!(
                    "a table of {count} addresses, {MOST_ADDRESSES} at most"
                ));
            }
        }
        let last = self.vlans.as_ref().and_then(BTreeSet::last);
        if let Some(id) = last.filter(|id| **id >= VLANS) {
            return Err(format!("VLAN {id}, ids are below {VLANS}"));
        }
        if let Some(pairs) = self.pairs.filter(|pairs| !(1..=MOST_PAIRS).contains(pairs)) {
            return Err(format!(
                "{pairs} pairs of queues, 1 to {MOST_PAIRS} are possible"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_set, vec};
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn addresses() -> impl Strategy<Value = Addresses> {
        vec(any::<Mac>(), 0..MOST_ADDRESSES + 3).prop_map(Addresses::from)
    }

    fn modes() -> impl Strategy<Value = Modes> {
        any::<[bool; 6]>().prop_map(|on| Modes {
            promiscuous: on[0],
            all_multicast: on[1],
            all_unicast: on[2],
            no_multicast: on[3],
            no_unicast: on[4],
            no_broadcast: on[5],
        })
    }

    fn card() -> impl Strategy<Value = Kept> {
        let tables = (addresses(), addresses());
        let vlans = option::of(btree_set(0..VLANS, 0..5));
        let rest = (option::of(1..=MOST_PAIRS), any::<Option<u64>>());
        let mac = option::of(any::<Mac>().prop_filter("a station", is_station));
        (mac, modes(), tables, vlans, rest).prop_map(|(mac, modes, tables, vlans, rest)| {
            Kept::Card(CardState {
                mac,
                modes,
                unicast: tables.0,
                multicast: tables.1,
                vlans,
                pairs: rest.0,
                offloads: rest.1,
            })
        })
    }

    fn disk() -> impl Strategy<Value = Kept> {
        any::<(bool, bool)>().prop_map(|(writeback, sync_failed)| {
            Kept::Disk(DiskState {
                writeback,
                sync_failed,
            })
        })
    }

    proptest! {
        #[test]
        fn what_is_kept_is_read_as_it_was_written(
            kept in prop_oneof![Just(Kept::Nothing), disk(), card()]
        ) {
            let text = serde_json::to_string(&kept).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Kept>(&text).unwrap(), &kept);
            prop_assert_eq!(kept.check(), Ok(()));
        }
    }

    fn refused(change: impl FnOnce(&mut CardState), words: &str) {
        let mut card = CardState::default();
        change(&mut card);
        let error = Kept::Card(card).check().unwrap_err();
        assert!(error.contains(words), "{error}");
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        for mac in [[0; 6], [1, 0, 0x5e, 0, 0, 1], [0xff; 6]] {
            refused(
                |card| card.mac = Some(mac),
                "not the address of one station",
            );
        }
        let table = || Addresses::Listed(vec![[2; 6]; MOST_ADDRESSES + 1]);
        refused(|card| card.unicast = table(), "257 addresses, 256 at most");
        refused(
            |card| card.multicast = table(),
            "257 addresses, 256 at most",
        );
        refused(|card| card.vlans = Some([1, 4096].into()), "VLAN 4096");
        refused(|card| card.pairs = Some(0), "0 pairs of queues, 1 to 32768");
        refused(|card| card.pairs = Some(32769), "32769 pairs of queues");
    }

    #[test]
    fn a_table_that_is_too_long_is_every_address_and_none_is_cut_short() {
        let table = |length| Addresses::from(vec![[2; 6]; length]);
        assert_eq!(table(256), Addresses::Listed(vec![[2; 6]; 256]));
        assert_eq!(table(257), Addresses::TooMany);
    }

    #[test]
    fn what_cannot_be_read_is_refused_and_not_lost() {
        for text in [
            r#"{"disk":{"writeback":true}}"#,
            r#"{"disk":{"writeback":true,"sync_failed":false,"colour":1}}"#,
            r#"{"card":{}}"#,
            r#"{"drum":{}}"#,
            "{}",
        ] {
            assert!(serde_json::from_str::<Kept>(text).is_err(), "{text}");
        }
    }

    /// A guest decides how long it is; the packets between our processes have 64
    /// KiB.
    #[test]
    fn the_longest_is_no_longer_than_a_packet() {
        let table = Addresses::Listed(vec![[254; 6]; MOST_ADDRESSES]);
        let card = CardState {
            mac: Some([254; 6]),
            unicast: table.clone(),
            multicast: table,
            vlans: Some((0..VLANS).collect()),
            pairs: Some(MOST_PAIRS),
            offloads: Some(u64::MAX),
            ..CardState::default()
        };
        assert_eq!(card.check(), Ok(()));
        let text = serde_json::to_string(&Kept::Card(card)).unwrap();
        assert!(text.len() < 48 * 1024, "{} bytes", text.len());
    }
}
