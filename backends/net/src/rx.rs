//! A receive queue: frames of the tap or the peer into the driver's buffers.
//!
//! ```text
//! take ──► stock ◄── give_back
//!            │ reap: as many frames as there are, a batch at most
//!            ▼
//!   read ──► delivered
//!      ├───► waiting: larger than the stock, until there is more (MRG_RXBUF)
//!      └───► dropped, counted
//! ```
//! From a tap, the kernel copies each frame into the guest's buffers, and
//! nothing copies it again, unless it is larger than everything in stock.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use outboard_protocol::tap::HEADER;
use outboard_runtime::chain::Chain;
use outboard_runtime::device::{Memory, Outcome, Queue};
use outboard_runtime::event::Event;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use crate::card::{Card, Passed, Port};
use crate::counters::Count;
use crate::header::{Header, LEAST_FRAME, MOST_FRAME, has};
use crate::peer::{Connection, Peer, TooLong};
use crate::stock::{Added, Stock};
use crate::tap::Tap;

/// Most frames that are delivered before the driver hears of them.
const BATCH: usize = 64;
/// Most times that the peer's socket is read in a batch.
const READS: usize = 8;

/// See the module.
#[derive(Debug)]
pub struct RxQueue {
    sink: Sink,
    source: Source,
    /// Never readable: what is waited for when only the driver can help.
    never: Event,
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
    /// Those of eventfd(2) and epoll; `NotFound` when there is no such pair.
    pub fn new(card: Arc<Card>, pair: u16, features: u64) -> io::Result<Self> {
        let source = match card.port() {
            Port::Tap(tap) if tap.queue(pair).is_none() => {
                return Err(io::ErrorKind::NotFound.into());
            }
            Port::Tap(_) => Source::Tap(TapSource {
                pair,
                rest: vec![0; MOST_FRAME].into_boxed_slice(),
                waiting: None,
                failed: false,
            }),
            Port::Peer(_) if pair > 0 => return Err(io::ErrorKind::NotFound.into()),
            Port::Peer(peer) => Source::Peer(PeerSource::new(peer)?),
        };
        Ok(Self {
            sink: Sink {
                card,
                features,
                mergeable: has(features, VIRTIO_NET_F_MRG_RXBUF),
                stock: Stock::default(),
                received: Passed::default(),
            },
            source,
            never: Event::new()?,
        })
    }
}

impl Queue for RxQueue {
    fn take(&mut self, memory: &Arc<Memory>, chain: &Chain) -> Outcome {
        let counters = self.sink.card.counters();
        match self.sink.stock.add(memory, chain) {
            Added::Full => return Outcome::NotNow,
            Added::Tiny => counters.add(Count::TinyBuffer, 1),
            Added::Unmapped => counters.add(Count::Unmapped, 1),
            Added::Usable => {}
        }
        Outcome::Deferred
    }

    fn ready(&self) -> Option<BorrowedFd<'_>> {
        let stocked = !self.sink.stock.is_empty();
        match (&self.source, self.sink.card.port()) {
            (Source::Tap(_), _) if !stocked => None,
            (Source::Tap(source), Port::Tap(tap)) if !source.is_stuck() => tap.queue(source.pair),
            (Source::Peer(source), _) if source.is_open(stocked) => Some(source.epoll.as_fd()),
            _ if !stocked => None,
            _ => Some(self.never.as_fd()),
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
        if let Source::Tap(source) = &mut self.source
            && source.waiting.take().is_some()
        {
            self.sink.drop(Count::NoRoom);
        }
        self.sink.stock.give_back(back);
    }

    fn in_flight(&self) -> usize {
        self.sink.stock.len()
    }
}

impl Drop for RxQueue {
    fn drop(&mut self) {
        self.sink.received.tell(&self.sink.card, Count::Received);
    }
}

/// Where frames go.
#[derive(Debug)]
struct Sink {
    card: Arc<Card>,
    features: u64,
    mergeable: bool,
    stock: Stock,
    received: Passed,
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
        self.stock.iovecs.copy_from(0, &header.to_bytes());
        self.stock.complete(length, done);
        self.received.0 = self.received.0.wrapping_add(1);
    }

    fn drop(&self, why: Count) {
        self.card.counters().add(why, 1);
    }
}

/// A frame that has begun in the stock and ends in `rest`.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    header: Header,
    /// Bytes of header and frame.
    length: usize,
    /// Those of them that are in the stock.
    stocked: usize,
}

#[derive(Debug)]
struct TapSource {
    pair: u16,
    /// The end of a frame that is larger than the stock.
    rest: Box<[u8]>,
    waiting: Option<Waiting>,
    failed: bool,
}

impl TapSource {
    /// Whether nothing that the tap does could help.
    fn is_stuck(&self) -> bool {
        self.failed || self.waiting.is_some()
    }

    fn reap(&mut self, tap: &Tap, sink: &mut Sink, done: &mut dyn FnMut(u16, u32)) {
        let Some(fd) = tap.queue(self.pair) else {
            return;
        };
        for _ in 0..BATCH {
            if !self.finish_waiting(sink, done) || self.failed || sink.room() == 0 {
                return;
            }
            let most = sink.room().saturating_sub(HEADER).min(MOST_FRAME);
            let mut header = [0; HEADER];
            let result = sink
                .stock
                .iovecs
                .read_frame(fd, &mut header, most, &mut self.rest);
            match result {
                Ok((length, room)) => {
                    let header = Header::from_bytes(&header);
                    self.received(header, length, room, sink, done);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.failed = true;
                    sink.card.tap_failed(&error);
                    return;
                }
            }
        }
    }

    /// `length` bytes have been read, with the header; there was `room` for
    /// the frame in the stock.
    fn received(
        &mut self,
        header: Header,
        length: usize,
        room: usize,
        sink: &mut Sink,
        done: &mut dyn FnMut(u16, u32),
    ) {
        let stocked = room.saturating_add(HEADER);
        let whole = stocked.saturating_add(self.rest.len());
        let wanted = header.received(sink.features);
        match wanted {
            Some(header) if (HEADER + LEAST_FRAME..=stocked).contains(&length) => {
                sink.deliver(header, length, done);
            }
            Some(header) if sink.mergeable && (stocked..whole).contains(&length) => {
                sink.drop(Count::Waited);
                self.waiting = Some(Waiting {
                    header,
                    length,
                    stocked,
                });
            }
            Some(_) if length > stocked => sink.drop(Count::NoRoom),
            _ => sink.drop(Count::Unwanted),
        }
    }

    /// Delivers the frame that waits, if there is one; false when it must
    /// still wait.
    fn finish_waiting(&mut self, sink: &mut Sink, done: &mut dyn FnMut(u16, u32)) -> bool {
        let Some(waiting) = self.waiting else {
            return true;
        };
        if sink.room() < waiting.length {
            return false;
        }
        let rest = waiting.length.saturating_sub(waiting.stocked);
        let rest = self.rest.get(..rest).unwrap_or_default();
        sink.stock.iovecs.copy_from(waiting.stocked, rest);
        sink.deliver(waiting.header, waiting.length, done);
        self.waiting = None;
        true
    }
}

#[derive(Debug)]
struct PeerSource {
    epoll: Waiter,
    /// The connection that is waited on.
    connection: Option<Arc<Connection>>,
    /// The next frame is larger than the stock.
    waiting: bool,
}

/// An epoll instance of one socket, in a form that can be shown.
pub(crate) struct Waiter(Epoll);

impl std::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waiter")
    }
}

impl AsFd for Waiter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

impl Waiter {
    /// Readable when `events` come to be true of `socket`.
    pub(crate) fn new(socket: Option<BorrowedFd<'_>>, events: EpollFlags) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        if let Some(socket) = socket {
            epoll.add(socket, EpollEvent::new(events, 0))?;
        }
        Ok(Self(epoll))
    }
}

fn waiter(peer: &Peer, connection: Option<&Arc<Connection>>) -> io::Result<Waiter> {
    let socket = match connection {
        Some(connection) => Some(connection.as_fd()),
        None => peer.listening().map(AsFd::as_fd),
    };
    Waiter::new(socket, EpollFlags::EPOLLIN)
}

impl PeerSource {
    fn new(peer: &Peer) -> io::Result<Self> {
        let connection = peer.connection();
        Ok(Self {
            epoll: waiter(peer, connection.as_ref())?,
            connection,
            waiting: false,
        })
    }

    /// Whether what the peer does is worth a look.
    fn is_open(&self, stocked: bool) -> bool {
        match self.connection {
            Some(_) => stocked && !self.waiting,
            None => true,
        }
    }

    fn reap(
        &mut self,
        peer: &Peer,
        sink: &mut Sink,
        done: &mut dyn FnMut(u16, u32),
    ) -> io::Result<()> {
        self.follow(peer, sink)?;
        let Some(connection) = self.connection.clone() else {
            return Ok(());
        };
        if let Err(why) = self.read(&connection, sink, done) {
            sink.card.peer_failed(&connection, &why);
            self.follow(peer, sink)?;
        }
        Ok(())
    }

    /// Waits on the connection of the moment, a new one if there is one.
    fn follow(&mut self, peer: &Peer, sink: &Sink) -> io::Result<()> {
        let mut current = peer.connection();
        if current.is_none() {
            match peer.accept() {
                Ok(true) => {
                    current = peer.connection();
                    sink.card.peer_connected();
                }
                Ok(false) => {}
                Err(error) => log::warn!("peer {}: cannot accept: {error}", peer.name()),
            }
        }
        let same = match (&current, &self.connection) {
            (Some(current), Some(known)) => Arc::ptr_eq(current, known),
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.epoll = waiter(peer, current.as_ref())?;
            self.connection = current;
            self.waiting = false;
        }
        Ok(())
    }

    /// Delivers what has come; an error ends the connection.
    fn read(
        &mut self,
        connection: &Connection,
        sink: &mut Sink,
        done: &mut dyn FnMut(u16, u32),
    ) -> Result<(), String> {
        let mut inbox = connection.inbox();
        let mut left = BATCH;
        for _ in 0..READS {
            loop {
                let frame = inbox.frame().map_err(|TooLong(length)| {
                    format!("it announces a frame of {length} bytes: it speaks another protocol")
                })?;
                let Some(frame) = frame else { break };
                let length = frame.len().saturating_add(HEADER);
                self.waiting = sink.room() == 0 || (sink.mergeable && sink.room() < length);
                if self.waiting || left == 0 {
                    return Ok(());
                }
                if frame.len() < LEAST_FRAME {
                    sink.drop(Count::Unwanted);
                } else if sink.room() < length {
                    sink.drop(Count::NoRoom);
                } else {
                    sink.stock.iovecs.copy_from(HEADER, frame);
                    sink.deliver(Header::default(), length, done);
                    left = left.saturating_sub(1);
                }
                inbox.consume();
            }
            match connection.receive(&mut inbox) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err("it has closed the connection".into());
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }
}
