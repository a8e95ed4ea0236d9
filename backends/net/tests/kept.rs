//! What a driver has set of a card, in a successor: on real taps, in a network of
//! the test's own, a card behaves as the one before did.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "these are tests"
)]

mod support;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use outboard_net::card::{Card, Port, Settings};
use outboard_net::command::Command;
use outboard_net::device::Net;
use outboard_net::features::guest_offloads;
use outboard_net::filter::Mode;
use outboard_net::header::Header;
use outboard_net::peer::{Again, Peer};
use outboard_net::tap::Tap;
use outboard_protocol::kept::{Addresses, CardState, DiskState, Kept};
use outboard_protocol::tap::{self, Mac};
use outboard_runtime::Device;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use support::*;
use virtio_bindings::virtio_net::*;

const OTHER: Mac = [2, 0, 0, 0, 0, 9];
const GROUP: Mac = [1, 0, 0x5e, 0, 0, 1];
const EVERYONE: Mac = [0xff; 6];

const SETTINGS: Settings = Settings {
    mac: Some(GUEST),
    mtu: None,
    queue_size: 256,
};

/// A tap as a supervisor holds it, while back-ends come and go.
struct Lent {
    queues: Vec<OwnedFd>,
    wire: Wire,
}

impl Lent {
    /// So many taps in a network of the test's own; `None` where that cannot be.
    fn taps<const N: usize>(queues: u16) -> Option<[Self; N]> {
        let names = std::array::from_fn(|number| format!("t{number}"));
        own_network().then(|| names.map(|name| Self::new(&name, queues)))
    }

    fn new(name: &str, queues: u16) -> Self {
        make_tap(name, "multi_queue");
        Self {
            queues: tap::open(name, queues).unwrap(),
            wire: Wire::new(name, true),
        }
    }

    /// The card of another process.
    fn card(&self) -> Card {
        let copies = self.queues.iter().map(|queue| queue.try_clone().unwrap());
        let tap = Tap::inherit(copies.collect(), false).unwrap();
        Card::new(Port::Tap(tap), SETTINGS)
    }

    /// A card whose driver is there, and has commanded nothing.
    fn fresh(&self) -> Card {
        let card = self.card();
        begin(&card);
        card
    }

    /// A card that goes on for the driver of another.
    fn successor(&self, kept: &CardState) -> Card {
        let card = self.card();
        card.restore(kept).unwrap();
        card.reset(card.features());
        card.controlled();
        card
    }

    /// The card of a process that waits while another serves the tap, and whose front-end
    /// has acknowledged features and described a control queue.
    fn waiting(&self) -> Arc<Card> {
        let copies = self.queues.iter().map(|queue| queue.try_clone().unwrap());
        let tap = Tap::wait(copies.collect()).unwrap();
        let card = Arc::new(Card::waiting(Port::Tap(tap), SETTINGS));
        card.attend();
        begin(&card);
        card
    }

    fn send(&self, frames: &[Vec<u8>]) {
        for frame in frames {
            self.wire.send(Header::default(), frame);
        }
    }

    /// What has come through, with the kind of segments: sorted, since the order
    /// of queues says nothing. And how many queues it came by.
    fn received(&self) -> (Vec<(u8, Vec<u8>)>, usize) {
        let mut found = Vec::new();
        let mut used = vec![false; self.queues.len()];
        loop {
            let readable = |queue: &OwnedFd| {
                let mut fds = [PollFd::new(queue.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, 2u16).unwrap() > 0
            };
            let before = found.len();
            for (queue, used) in self.queues.iter().zip(&mut used) {
                // Of one that is detached, poll(2) tells an error.
                while readable(queue) {
                    let mut bytes = vec![0; 70_000];
                    let Ok(length) = nix::unistd::read(queue, &mut bytes) else {
                        break;
                    };
                    found.push((bytes[1], bytes[12..length].to_vec()));
                    *used = true;
                }
            }
            if found.len() == before {
                found.sort();
                return (found, used.into_iter().filter(|used| *used).count());
            }
        }
    }
}

/// What a session and its front-end do at first.
fn begin(card: &Card) {
    card.reset(0);
    card.reset(card.features());
    card.controlled();
}

fn obey(card: &Card, commands: &[Command]) {
    for command in commands {
        card.obey(command, card.features());
    }
}

/// What is kept of a card, as another process reads it.
fn kept(card: &Card) -> CardState {
    let text = serde_json::to_string(&card.kept()).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn station() -> impl Strategy<Value = Mac> {
    select(vec![GUEST, HOST, OTHER, [2, 0, 0, 0, 0, 10]])
}

fn group() -> impl Strategy<Value = Mac> {
    (0..6u8).prop_map(|last| [1, 0, 0x5e, 0, 0, last])
}

/// A table, now and then one that is too long.
fn table(of: impl Strategy<Value = Mac>) -> impl Strategy<Value = Vec<Mac>> {
    let length = prop_oneof![8 => 0..12usize, 1 => Just(300)];
    (vec(of, 12), length).prop_map(|(pool, length)| pool.into_iter().cycle().take(length).collect())
}

fn command() -> impl Strategy<Value = Command> {
    let modes = vec![
        Mode::Promiscuous,
        Mode::AllMulticast,
        Mode::AllUnicast,
        Mode::NoMulticast,
        Mode::NoUnicast,
        Mode::NoBroadcast,
    ];
    prop_oneof![
        4 => (select(modes), any::<bool>()).prop_map(|(mode, on)| Command::Mode(mode, on)),
        2 => Just(Command::Mode(Mode::Promiscuous, false)),
        1 => station().prop_map(Command::Address),
        2 => (table(station()), table(group())).prop_map(|(one, all)| Command::Table(one, all)),
        2 => (0..6u16).prop_map(Command::Pairs),
        2 => any::<u64>().prop_map(|bits| Command::Offloads(bits & guest_offloads())),
        1 => Just(Command::Offloads(u64::MAX)),
    ]
}

/// Frames to everyone that the commands know, and to some that they do not: plain,
/// in a VLAN, in many flows, and to be cut up.
fn probe(lent: &Lent) {
    let stations = (0..16).map(|last| [2, 0, 0, 0, 0, last]);
    let groups = (0..16).map(|last| [1, 0, 0x5e, 0, 0, last]);
    let all = stations.chain(groups).chain([HOST, EVERYONE]);
    for (mark, to) in (0..).zip(all) {
        lent.send(&[frame(to, 100, mark)]);
        let mut tagged = frame(to, 100, mark);
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        lent.send(&[tagged]);
    }
    for to in [GUEST, OTHER, EVERYONE] {
        for port in 0..24 {
            let (_, mut flow) = tcp(to, 100, 0);
            flow[35] = port;
            lent.send(&[flow]);
        }
        let (header, segments) = tcp(to, 5000, 1000);
        lent.wire.send(header, &segments);
    }
}

#[test]
fn a_successor_receives_what_the_card_before_it_would_whatever_was_commanded() {
    let Some([first, second]) = Lent::taps(4) else {
        return;
    };
    let cases = ProptestConfig::with_cases(48);
    proptest!(cases, |(commands in vec(command(), 0..12))| {
        let card = first.fresh();
        obey(&card, &commands);
        // Whoever had the second tap before has left it otherwise.
        obey(&second.fresh(), &[Command::Mode(Mode::Promiscuous, false), Command::Pairs(3)]);
        let kept = kept(&card);
        let successor = second.successor(&kept);
        prop_assert_eq!(&successor.kept(), &kept);
        prop_assert_eq!(successor.config(), card.config());
        probe(&first);
        probe(&second);
        prop_assert_eq!(first.received(), second.received());
    });
}

/// What two cards have set, of which the driver is the same: whatever comes to one comes
/// to the other.
fn are_alike(first: &Lent, second: &Lent) -> bool {
    probe(first);
    probe(second);
    first.received() == second.received()
}

const COMMANDS: [Command; 4] = [
    Command::Mode(Mode::Promiscuous, false),
    Command::Address(OTHER),
    Command::Pairs(2),
    Command::Offloads(0),
];

#[test]
fn a_card_that_waits_leaves_the_tap_as_it_is_and_sets_all_of_it_before_its_first_ring() {
    let Some([first, second]) = Lent::taps(4) else {
        return;
    };
    let (card, predecessor) = (first.fresh(), second.fresh());
    obey(&card, &COMMANDS);
    obey(&predecessor, &COMMANDS);
    let kept = kept(&predecessor);
    let successor = second.waiting();
    assert_eq!(successor.features(), predecessor.features());
    assert!(are_alike(&first, &second));
    // Nobody serves it, and whoever had it has left it otherwise.
    drop(predecessor);
    obey(&second.fresh(), &[Command::Pairs(3)]);
    assert!(!are_alike(&first, &second));
    successor.restore(&kept).unwrap();
    successor.takes_over();
    let ring = successor.begin(successor.features());
    assert!(are_alike(&first, &second));
    assert_eq!(successor.config(), card.config());
    drop(ring);
}

/// The tap is as it was made, and then as one that is served.
#[test]
fn a_card_that_waits_sets_neither_header_nor_flags() {
    let Some([lent]) = Lent::taps(1) else {
        return;
    };
    let is_blocking = || {
        let flags = fcntl(&lent.queues[0], FcntlArg::F_GETFL).unwrap();
        !OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK)
    };
    fcntl(&lent.queues[0], FcntlArg::F_SETFL(OFlag::O_RDWR)).unwrap();
    let length = || {
        lent.send(&[frame(GUEST, 100, 1)]);
        nix::unistd::read(&lent.queues[0], &mut [0; 4096]).unwrap()
    };
    assert_eq!((length(), is_blocking()), (tap::FRESH_HEADER + 100, true));
    let card = lent.waiting();
    assert_eq!((length(), is_blocking()), (tap::FRESH_HEADER + 100, true));
    // A predecessor that had nothing to keep.
    card.takes_over();
    let _ring = card.begin(card.features());
    assert_eq!((length(), is_blocking()), (HEADER + 100, false));
}

#[test]
fn the_first_ring_after_the_last_sets_the_tap_again_as_its_driver_has_it() {
    let Some([first, second]) = Lent::taps(4) else {
        return;
    };
    let (card, other) = (first.fresh(), Arc::new(second.fresh()));
    obey(&card, &COMMANDS);
    obey(&other, &COMMANDS);
    let features = other.features();
    let rings = [other.begin(features), other.begin(features)];
    assert!(are_alike(&first, &second));
    // A swap that has failed: its candidate has served.
    drop(rings);
    drop(second.fresh());
    tap::make_as_new(&second.queues).unwrap();
    assert!(!are_alike(&first, &second));
    let rings = [other.begin(features), other.begin(features)];
    assert!(are_alike(&first, &second));
    drop(rings);
}

#[test]
fn nothing_comes_in_that_the_driver_does_not_want_while_a_successor_takes_over_and_nothing_is_lost()
{
    let Some([lent]) = Lent::taps(2) else {
        return;
    };
    let card = lent.fresh();
    obey(
        &card,
        &[Command::Mode(Mode::Promiscuous, false), Command::Pairs(2)],
    );
    let mut wanted = Vec::new();
    // Several flows, so that both queues have something to lose.
    let mut arrive = || {
        for _ in 0..16 {
            let (_, mut flow) = tcp(GUEST, 100, 0);
            flow[35] = wanted.len() as u8;
            lent.send(&[flow.clone(), frame(OTHER, 100, 1), frame(GROUP, 100, 2)]);
            wanted.push((0, flow));
        }
    };
    arrive();
    let kept = kept(&card);
    drop(card);
    arrive();
    let successor = lent.card();
    arrive();
    successor.restore(&kept).unwrap();
    arrive();
    successor.reset(successor.features());
    arrive();
    successor.controlled();
    arrive();
    wanted.sort();
    assert_eq!(lent.received(), (wanted, 2));
}

#[test]
fn a_reset_undoes_what_was_restored_and_so_does_a_driver_with_other_features() {
    let Some([lent]) = Lent::taps(2) else {
        return;
    };
    let commands = [
        Command::Mode(Mode::Promiscuous, false),
        Command::Address(OTHER),
        Command::Pairs(2),
        Command::Offloads(0),
    ];
    let card = lent.fresh();
    let initial = card.kept();
    obey(&card, &commands);
    let kept = kept(&card);
    assert_eq!(card.config().mac, OTHER);
    let resets: [fn(&Card); 2] = [begin, |card| {
        card.reset(card.features() & !bit(VIRTIO_NET_F_GUEST_ECN));
        card.controlled();
    }];
    for reset in resets {
        let successor = lent.successor(&kept);
        assert_eq!(successor.config().mac, OTHER);
        reset(&successor);
        assert_eq!(successor.kept(), initial);
        assert_eq!(successor.config().mac, GUEST);
        let (header, segments) = tcp([2, 0, 0, 0, 0, 5], 5000, 1000);
        lent.wire.send(header, &segments);
        assert_eq!(lent.received(), (vec![(1, segments)], 1));
    }
}

#[test]
fn a_card_restores_only_what_it_could_have_been_commanded() {
    let Some([lent]) = Lent::taps(2) else {
        return;
    };
    let peer = Peer::new("it".into(), Again::Never, None).unwrap();
    let peer = Card::new(Port::Peer(peer), SETTINGS);
    let card = lent.card();
    let refused = |card: &Card, change: &dyn Fn(&mut CardState), words: &str| {
        let mut kept = CardState::default();
        change(&mut kept);
        let before = card.kept();
        let error = card.restore(&kept).unwrap_err();
        assert!(error.contains(words), "{error}");
        assert_eq!(card.kept(), before);
    };
    refused(&card, &|kept| kept.pairs = Some(3), "the card has 2");
    refused(&peer, &|kept| kept.pairs = Some(2), "the card has 1");
    let offloads = bit(VIRTIO_NET_F_GUEST_CSUM) | bit(VIRTIO_NET_F_MAC);
    refused(
        &card,
        &|kept| kept.offloads = Some(offloads),
        "offloads 0x20 were used",
    );
    refused(
        &peer,
        &|kept| kept.offloads = Some(offloads),
        "offloads 0x22 were used",
    );
    for card in [&card, &peer] {
        // What cannot be read within bounds, by whoever it was passed on.
        refused(card, &|kept| kept.mac = Some(GROUP), "one station");
        let long = Addresses::Listed(vec![OTHER; 300]);
        refused(card, &|kept| kept.unicast = long.clone(), "256 at most");
        refused(card, &|kept| kept.vlans = Some([7].into()), "VLANs");
    }
    // A peer's card has a driver with a control queue, too.
    let commands = [
        Command::Mode(Mode::Promiscuous, false),
        Command::Address(OTHER),
    ];
    begin(&peer);
    obey(&peer, &commands);
    let before = kept(&peer);
    peer.reset(0);
    peer.restore(&before).unwrap();
    assert_eq!((peer.kept(), peer.config().mac), (before, OTHER));

    let device = Net::new(card);
    let disk = DiskState {
        writeback: true,
        sync_failed: false,
    };
    for other in [Kept::Nothing, Kept::Disk(disk)] {
        assert!(device.restore(&other).unwrap_err().contains("another kind"));
    }
    device.restore(&device.kept()).unwrap();
}

/// Whoever offers one of these has something more to keep.
#[test]
fn nothing_is_offered_that_a_driver_sets_by_commands_and_that_is_not_kept() {
    let Some([lent]) = Lent::taps(2) else {
        return;
    };
    let card = lent.card();
    for feature in [
        VIRTIO_NET_F_CTRL_VLAN,
        VIRTIO_NET_F_GUEST_ANNOUNCE,
        VIRTIO_NET_F_VQ_NOTF_COAL,
        VIRTIO_NET_F_NOTF_COAL,
        VIRTIO_NET_F_HASH_REPORT,
        VIRTIO_NET_F_RSS,
    ] {
        assert_eq!(card.features() & bit(feature), 0, "{feature}");
    }
}
