//! A receive queue: frames of the tap or the peer into the driver's buffers.
//!
//! ```text
//! take ──► stock ◄── give_back
//!            │ reap: as many frames as there are, a batch at most
//!            ▼
//!   read ──► delivered
//!      ├───► waiting: larger than the stock, until there is more (MRG_RXBUF),
//!      │         or for so long that there will never be
//!      └───► dropped, counted: at once, if it is larger than all that the ring
//!                can ever hold
//! ```
//! From a tap, the kernel copies each frame into the guest's buffers, and
//! nothing copies it again, unless it is larger than everything in stock.

mod patience;
mod peer;
mod tap;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use outboard_runtime::chain::Chain;
use outboard_runtime::device::{Done, Memory, Outcome, Queue};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use crate::card::{Card, Passed, Port};
use crate::counters::Count;
use crate::header::{HEADER, Header, has};
use crate::stock::{Added, Stock};
use patience::Patience;
use peer::PeerSource;
use tap::TapSource;

/// See the module.
#[derive(Debug)]
pub struct RxQueue {
    /// Where the chains lie.
    memory: Arc<Memory>,
    sink: Sink,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Tap(TapSource),
    Peer(PeerSource),
}

impl RxQueue {
    /// The receive queue of a pair.
    ///
    /// # Errors
    /// Those of timerfd and epoll; `NotFound` when there is no such pair.
    pub fn new(card: Arc<Card>, pair: u16, features: u64) -> io::Result<Self> {
        let source = match card.port() {
            Port::Tap(tap) if tap.queue(pair).is_none() => {
                return Err(io::ErrorKind::NotFound.into());
            }
            Port::Tap(_) => Source::Tap(TapSource::new(pair)),
            Port::Peer(_) if pair > 0 => return Err(io::ErrorKind::NotFound.into()),
            Port::Peer(peer) => Source::Peer(PeerSource::new(peer)?),
        };
        let patience = Patience::new()?;
        card.serve(pair, true);
        Ok(Self {
            memory: Arc::default(),
            sink: Sink {
                entries: card.ring_size(pair),
                card,
                pair,
                features,
                mergeable: has(features, VIRTIO_NET_F_MRG_RXBUF),
                stock: Stock::default(),
                patience,
                received: Passed::default(),
                done: Done::default(),
            },
            source,
        })
    }
}

impl Queue for RxQueue {
    fn map(&mut self, memory: Arc<Memory>) {
        self.memory = memory;
    }

    fn take(&mut self, chain: &Chain) -> Outcome {
        let counters = self.sink.card.counters();
        match self.sink.stock.add(&self.memory, chain) {
            Added::Full => return Outcome::NotNow,
            Added::Tiny => counters.add(Count::TinyBuffer, 1),
            Added::Unmapped => counters.add(Count::Unmapped, 1),
            Added::Usable => {}
        }
        Outcome::Deferred
    }

    fn is_patient(&self) -> bool {
        true
    }

    fn ready(&self) -> Option<BorrowedFd<'_>> {
        let stocked = !self.sink.stock.is_empty();
        match (&self.source, self.sink.card.port()) {
            (Source::Tap(_), _) if !stocked => None,
            (Source::Tap(source), Port::Tap(tap)) if !source.is_stuck() => tap.queue(source.pair),
            (Source::Peer(source), _) => {
                source.awaited(stocked).or(Some(self.sink.patience.as_fd()))
            }
            // Only the driver can help.
            _ => Some(self.sink.patience.as_fd()),
        }
    }

    fn reap(&mut self, done: &mut dyn FnMut(u16, u32)) -> io::Result<()> {
        if self.sink.stock.room() == 0 {
            // Nothing here can be used; it need not wait for a frame.
            self.sink.stock.complete(0, done);
        }
        let card = self.sink.card.clone();
        match (&mut self.source, card.port()) {
            (Source::Tap(source), Port::Tap(tap)) => {
                source.reap(tap, &mut self.sink, done);
                Ok(())
            }
            (Source::Peer(source), Port::Peer(peer)) => source.reap(peer, &mut self.sink, done),
            _ => Ok(()),
        }
    }

    fn give_back(&mut self, back: &mut dyn FnMut(u16)) {
        if let Source::Tap(source) = &mut self.source {
            source.give_up(&mut self.sink);
        }
        self.sink.stock.give_back(back);
    }

    fn done(&mut self) -> Done {
        std::mem::take(&mut self.sink.done)
    }

    fn is_timed(&self) -> bool {
        false
    }

    fn in_flight(&self) -> usize {
        self.sink.stock.len()
    }
}

impl Drop for RxQueue {
    fn drop(&mut self) {
        // The kernel must not steer frames to a queue that nobody serves.
        self.sink.card.serve(self.sink.pair, false);
        self.sink.received.tell(&self.sink.card, Count::Received);
    }
}

/// Where frames go.
#[derive(Debug)]
struct Sink {
    card: Arc<Card>,
    pair: u16,
    /// Entries of the ring.
    entries: u16,
    features: u64,
    mergeable: bool,
    stock: Stock,
    patience: Patience,
    received: Passed,
    /// What has not been counted yet.
    done: Done,
}

impl Sink {
    /// Room for a header and one frame.
    fn room(&self) -> usize {
        if self.mergeable {
            self.stock.room()
        } else {
            self.stock.first_room()
        }
    }

    /// Whether there may be room for a header and a frame some time, `length`
    /// bytes in all, that there is none for now.
    fn is_worth_a_wait(&self, length: usize) -> bool {
        if !self.mergeable {
            // It has one chain and no other chance.
            return self.stock.first_room() == 0;
        }
        // Of a driver that has posted nothing yet nothing is known.
        let reach = self.stock.reach(self.entries);
        reach == 0 || length <= reach
    }

    /// A frame is in the stock, after the place of its header, `length` bytes
    /// with that: writes the header and gives it to the driver.
    fn deliver(&mut self, header: Header, length: usize, done: &mut dyn FnMut(u16, u32)) {
        let chains = if self.mergeable {
            self.stock.count(length)
        } else {
            1
        };
        let header = Header {
            num_buffers: u16::try_from(chains).unwrap_or(u16::MAX),
            ..header
        };
        self.stock.buffers.copy_from(0, &header.to_bytes());
        self.stock.complete(length, done);
        let bytes = length.saturating_sub(HEADER) as u64;
        self.done.read = self.done.read.wrapping_add(bytes);
        self.received.0 = self.received.0.wrapping_add(1);
    }

    fn drop(&mut self, why: Count) {
        self.done.errors = self.done.errors.wrapping_add(1);
        self.card.counters().add(why, 1);
    }
}
