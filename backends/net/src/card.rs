//! A network card as the driver sees it: its configuration space (virtio 1.3,
//! section 5.1), and what becomes of the tap or the peer behind it. What the
//! driver sets of it is in `driver`.

mod driver;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use log::Level::{Debug, Error};
use nix::errno::Errno;
use outboard_log::{Rarely, rarely};
use outboard_protocol::devices::NetConfig;
use outboard_protocol::kept::Kept;
use outboard_protocol::launch;
use outboard_runtime::{News, Supervisor};

use crate::counters::{Count, Counters};
use crate::features;
pub use crate::features::Settings;
use crate::link::Link;
use crate::peer::{Connection, Peer};
use crate::tap::Tap;
pub use driver::Service;
use driver::State;

/// What is behind a card.
#[derive(Debug)]
pub enum Port {
    /// A tap.
    Tap(Tap),
    /// A stream socket.
    Peer(Peer),
}

/// What all queues of a card share.
#[derive(Debug)]
pub struct Card {
    port: Port,
    settings: Settings,
    state: Mutex<State>,
    link: Link,
    /// Another process serves the card, and nothing behind it is to be touched.
    waits: AtomicBool,
    /// The tap cannot be used any more.
    tap_gone: AtomicBool,
    /// What the host has made of the tap's interface.
    host: Mutex<launch::Link>,
    supervisor: OnceLock<Arc<Supervisor>>,
    /// The user was told that the link is down.
    outage: AtomicBool,
    counters: Counters,
}

impl Card {
    /// Puts a card together.
    pub fn new(port: Port, settings: Settings) -> Self {
        Self::make(port, settings, false)
    }

    /// A card that another process serves until [`Self::takes_over`]; so its port was made
    /// to wait, too.
    pub fn waiting(port: Port, settings: Settings) -> Self {
        Self::make(port, settings, true)
    }

    fn make(port: Port, settings: Settings, waits: bool) -> Self {
        let card = Self {
            waits: AtomicBool::new(waits),
            port,
            settings,
            state: Mutex::default(),
            link: Link::default(),
            tap_gone: AtomicBool::new(false),
            host: Mutex::default(),
            supervisor: OnceLock::new(),
            outage: AtomicBool::new(false),
            counters: Counters::default(),
        };
        card.link.set(|| match &card.port {
            Port::Tap(_) => true,
            Port::Peer(peer) => peer.is_up(),
        });
        card.attend();
        card
    }

    /// What is behind it.
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// Its counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether its link is up.
    pub fn is_up(&self) -> bool {
        self.link.is_up()
    }

    /// Most pairs of queues.
    pub fn pairs(&self) -> u16 {
        match &self.port {
            Port::Tap(tap) => tap.pairs(),
            Port::Peer(_) => 1,
        }
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Its link.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// The feature bits that it offers.
    pub fn features(&self) -> u64 {
        let tap = match &self.port {
            Port::Tap(tap) => Some(tap),
            Port::Peer(_) => None,
        };
        features::offered(&self.settings, self.pairs(), tap)
    }

    /// Its configuration space as it is now.
    pub fn config(&self) -> NetConfig {
        NetConfig {
            mac: self.address().unwrap_or_default(),
            status: if self.is_up() { NetConfig::LINK_UP } else { 0 },
            max_virtqueue_pairs: self.pairs(),
            mtu: self.settings.mtu.unwrap_or(0),
        }
    }

    /// Whether an ioctl has succeeded; one that found no tap any more is told.
    pub fn check(&self, result: nix::Result<()>) -> bool {
        match result {
            Ok(()) => true,
            Err(errno @ (Errno::EBADFD | Errno::ENODEV)) => {
                self.tap_failed(&errno.into());
                false
            }
            Err(errno) => {
                // One that the driver may command again and again.
                rarely!(debug, "the tap refuses a setting: {errno}");
                false
            }
        }
    }

    /// Tells this supervisor from now on what it must know.
    pub fn supervised(&self, supervisor: &Arc<Supervisor>) {
        // The runtime does this once.
        let _ = self.supervisor.set(supervisor.clone());
        self.want_peer();
    }

    fn want_peer(&self) {
        if let (Port::Peer(peer), Some(supervisor)) = (&self.port, self.supervisor.get())
            && peer.is_wanted()
            && !self.waits()
        {
            supervisor.wants_peer();
        }
    }

    fn waits(&self) -> bool {
        self.waits.load(Ordering::Acquire)
    }

    /// The process that served the card is gone, and this one serves it. A tap is set up
    /// when the first ring begins, and a peer is wanted now.
    pub fn takes_over(&self) {
        self.waits.store(false, Ordering::Release);
        self.want_peer();
        if let Port::Peer(peer) = &self.port {
            peer.hurry();
        }
    }

    /// Tells the supervisor what a successor must know, before the driver is answered.
    pub fn tell_kept(&self) {
        if let Some(supervisor) = self.supervisor.get() {
            supervisor.keeps(|| Kept::Card(self.kept()));
        }
    }

    /// Sees to what has happened to what is behind it.
    pub fn hear(&self, news: News) {
        match (&self.port, news) {
            (Port::Tap(tap), News::Link(link)) => {
                *self.host.lock().unwrap_or_else(PoisonError::into_inner) = link;
                self.look(tap);
            }
            (Port::Peer(peer), News::Peer(socket)) => {
                if peer.meet(socket) && self.link.set(|| peer.is_up()) {
                    self.peer_came(peer);
                }
            }
            (_, news) => news.pass_over(),
        }
    }

    /// Makes the link what is behind it.
    pub fn attend(&self) {
        if let Port::Tap(tap) = &self.port {
            self.look(tap);
        }
    }

    fn look(&self, tap: &Tap) {
        let host = *self.host.lock().unwrap_or_else(PoisonError::into_inner);
        match (host, tap.is_there()) {
            (_, false) => self.tap_failed(&Errno::ENODEV.into()),
            // In another namespace: nobody says whether it is up.
            (launch::Link::Gone, true) => self.tap_is(tap, launch::Link::Up),
            (host, true) => self.tap_is(tap, host),
        }
    }

    /// It may come and go without end; but who was told that it is gone is told
    /// that it is there again.
    fn peer_came(&self, peer: &Peer) {
        static CAME: Rarely = Rarely::new();
        let (name, times) = (peer.name(), CAME.again());
        if self.outage.swap(false, Ordering::AcqRel) {
            log::warn!("peer {name}: connected again, the guest sees its link up");
        } else if let Some(times) = times {
            log::info!("peer {name}: connected, the guest sees its link up{times}");
        }
    }

    fn tap_is(&self, tap: &Tap, host: launch::Link) {
        use launch::Link as Host;
        let (up, name) = (host == Host::Up, tap.name());
        let is_gone = || self.tap_gone.load(Ordering::Acquire);
        if !self.link.set(|| up && !is_gone()) || is_gone() {
            return;
        }
        // Who was told that it is down is told that it is up again.
        let before = self.outage.swap(!up, Ordering::AcqRel);
        match host {
            // The process that serves it says so.
            _ if self.waits() => {}
            Host::Up if before => {
                log::warn!("tap {name}: it is up again, the guest sees its link up")
            }
            Host::Up => log::info!("tap {name}: it is up, the guest sees its link up"),
            Host::NoCarrier => log::warn!(
                "tap {name}: it has no carrier, the guest sees its link down; `ip link set {name} \
                 carrier on` gives it one"
            ),
            Host::Down | Host::Gone => log::warn!(
                "tap {name}: it is down, the guest sees its link down; `ip link set {name} up` \
                 turns it on"
            ),
        }
    }

    /// The tap is gone, or broken: told to the driver as a link that is down,
    /// and to the user, once.
    pub fn tap_failed(&self, error: &io::Error) {
        if let Port::Tap(tap) = &self.port
            && !self.tap_gone.swap(true, Ordering::AcqRel)
        {
            self.link.set(|| false);
            // While this process waits, the one that serves says so.
            let level = if self.waits() { Debug } else { Error };
            log::log!(
                level,
                "tap {}: {error}: it was deleted, or cannot be used any more; the guest sees its \
                 link down: make the tap again, then start again what uses it",
                tap.name()
            );
        }
    }

    /// The peer is gone.
    pub fn peer_failed(&self, connection: &Arc<Connection>, why: &dyn std::fmt::Display) {
        let Port::Peer(peer) = &self.port else {
            return;
        };
        if peer.disconnect(connection) {
            self.peer_is_missing(peer, why);
            self.want_peer();
        }
    }

    /// There is no peer; one that was expected may be overdue.
    pub fn peer_is_awaited(&self, peer: &Peer) {
        if peer.is_overdue() {
            self.peer_is_missing(peer, &"none has come since this process has taken over");
        }
    }

    fn peer_is_missing(&self, peer: &Peer, why: &dyn std::fmt::Display) {
        if self.link.set(|| peer.is_up()) {
            static GONE: Rarely = Rarely::new();
            if let Some(times) = GONE.again() {
                self.outage.store(true, Ordering::Release);
                log::warn!(
                    "peer {}: {why}; the guest sees its link down: {}{times}",
                    peer.name(),
                    peer.prospect()
                );
            }
        }
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        self.counters.tell();
    }
}

/// Adds a queue's own counts when it ends.
#[derive(Debug, Default)]
pub(crate) struct Passed(pub u64);

impl Passed {
    pub(crate) fn tell(&self, card: &Card, count: Count) {
        card.counters.add(count, self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::peer::Again;

    #[test]
    fn a_peer_that_goes_while_the_next_comes_leaves_the_link_as_it_is() {
        let socket = || UnixStream::pair().unwrap();
        let (ours, _first) = socket();
        let peer = Peer::new("it".into(), Again::ItListens, Some(ours)).unwrap();
        let settings = Settings {
            mac: None,
            mtu: None,
            queue_size: 256,
        };
        let card = Card::new(Port::Peer(peer), settings);
        let Port::Peer(peer) = card.port() else {
            panic!("it has a peer");
        };
        for turn in 0..500 {
            let connection = peer.connection().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| card.peer_failed(&connection, &"it goes"));
                while peer
                    .connection()
                    .is_none_or(|now| Arc::ptr_eq(&now, &connection))
                {
                    card.hear(News::Peer(socket().0));
                }
            });
            assert!(card.is_up(), "turn {turn}: there is a peer");
        }
    }
}
