//! A transmit queue: the driver's frames to the tap or the peer.
//!
//! A frame goes from the guest's buffers to the kernel in one call. To a peer
//! whose socket is full, what did not go is copied and sent before anything
//! else; further frames wait in the ring.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::epoll::EpollFlags;
use outboard_runtime::chain::Chain;
use outboard_runtime::device::{Done, Memory, Outcome, Queue};
use outboard_runtime::guest_buffers::{GuestBuffers, MOST_PIECES, is_fault};

use crate::card::{Card, Passed, Port};
use crate::counters::Count;
use crate::header::{HEADER, Header, LEAST_FRAME, MOST_FRAME};
use crate::peer::{Connection, PREFIX, Peer};
use crate::tap::{Tap, is_gone};
use crate::waiter::Waiter;

/// See the module.
#[derive(Debug)]
pub struct TxQueue {
    card: Arc<Card>,
    pair: u16,
    features: u64,
    /// Where the chains lie.
    memory: Arc<Memory>,
    buffers: GuestBuffers,
    sent: Passed,
    /// What has not been counted yet.
    done: Done,
    /// A connection whose outbox is not empty, and what tells that it takes
    /// more.
    full: Option<(Arc<Connection>, Waiter)>,
}

/// What became of a frame.
enum Sent {
    /// It went.
    Yes,
    /// It did not, for this reason.
    No(Count),
    /// It is to be looked at again.
    NotNow,
}

impl TxQueue {
    /// The transmit queue of a pair.
    ///
    /// # Errors
    /// `NotFound` when there is no such pair.
    pub fn new(card: Arc<Card>, pair: u16, features: u64) -> io::Result<Self> {
        if pair >= card.pairs() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self {
            card,
            pair,
            features,
            memory: Arc::default(),
            buffers: GuestBuffers::default(),
            sent: Passed::default(),
            done: Done::default(),
            full: None,
        })
    }

    fn send(&mut self, chain: &Chain) -> Sent {
        self.buffers.clear();
        let buffers = chain.readable.iter().copied();
        let Ok(bytes) = self.buffers.extend(&self.memory, buffers) else {
            return Sent::No(Count::Unmapped);
        };
        let length = bytes.saturating_sub(HEADER);
        if length < LEAST_FRAME {
            return Sent::No(Count::Short);
        }
        if length > MOST_FRAME {
            return Sent::No(Count::Long);
        }
        let mut header = [0; HEADER];
        self.buffers.copy_to(0, &mut header);
        let header = Header::from_bytes(&header).checked(length, self.features);
        let Ok(header) = header else {
            return Sent::No(Count::BadHeader);
        };
        if !self.card.is_up() {
            return Sent::No(Count::LinkDown);
        }
        let card = self.card.clone();
        match card.port() {
            Port::Tap(tap) => self.send_to_tap(tap, header, length),
            Port::Peer(peer) => self.send_to_peer(peer, length),
        }
    }

    fn send_to_tap(&mut self, tap: &Tap, header: Header, length: usize) -> Sent {
        let Some(fd) = tap.queue(self.pair) else {
            return Sent::No(Count::Refused);
        };
        let header = header.to_bytes();
        let result = if self.buffers.len() > MOST_PIECES {
            let mut copy = header.to_vec();
            copy.extend(self.copy(length));
            nix::unistd::write(fd, &copy).map_err(io::Error::from)
        } else {
            self.buffers.write_after(fd, &header, HEADER)
        };
        match result {
            Ok(_) => Sent::Yes,
            Err(error) => {
                if is_gone(&error) {
                    self.card.tap_failed(&error);
                }
                Sent::No(Count::Refused)
            }
        }
    }

    /// The frame, in one piece.
    fn copy(&self, length: usize) -> Vec<u8> {
        let mut copy = vec![0; length];
        self.buffers.copy_to(HEADER, &mut copy);
        copy
    }

    fn send_to_peer(&mut self, peer: &Peer, length: usize) -> Sent {
        if self.is_full() {
            return Sent::NotNow;
        }
        let Some(connection) = peer.connection() else {
            return Sent::No(Count::LinkDown);
        };
        match self.write(&connection, length) {
            Ok(()) => Sent::Yes,
            Err(error) => {
                self.card.peer_failed(&connection, &error);
                Sent::No(Count::LinkDown)
            }
        }
    }

    /// Sends a frame, or keeps what does not go.
    fn write(&mut self, connection: &Arc<Connection>, length: usize) -> io::Result<()> {
        // A former queue may have left something.
        connection.flush()?;
        let mut outbox = connection.outbox();
        // Checked against MOST_FRAME.
        let prefix = u32::try_from(length).unwrap_or(0).to_be_bytes();
        let whole = length.saturating_add(PREFIX);
        let now = outbox.is_empty() && self.buffers.len() <= MOST_PIECES;
        let sent = match now.then(|| self.buffers.send_after(connection.as_fd(), &prefix, HEADER)) {
            Some(Ok(sent)) => sent,
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => 0,
            // Nothing went, and the peer can do nothing about it.
            Some(Err(error)) if is_fault(&error) => return Ok(()),
            Some(Err(error)) => return Err(error),
            None => 0,
        };
        if sent < whole {
            let mut rest = prefix.to_vec();
            rest.extend(self.copy(length));
            outbox.extend(rest.get(sent..).unwrap_or_default());
            drop(outbox);
            let waiter = Waiter::new(Some(connection.as_fd()), EpollFlags::EPOLLOUT)?;
            self.full = Some((connection.clone(), waiter));
            self.flush();
        }
        Ok(())
    }

    /// Sends what was kept, as far as it goes.
    fn flush(&mut self) {
        let Some((connection, _)) = &self.full else {
            return;
        };
        if let Err(error) = connection.flush() {
            connection.outbox().clear();
            self.card.peer_failed(connection, &error);
        }
        if connection.outbox().is_empty() {
            self.full = None;
        }
    }

    fn is_full(&mut self) -> bool {
        self.flush();
        self.full.is_some()
    }
}

impl Queue for TxQueue {
    fn map(&mut self, memory: Arc<Memory>) {
        self.memory = memory;
    }

    fn take(&mut self, chain: &Chain) -> Outcome {
        match self.send(chain) {
            Sent::Yes => {
                let bytes = self.buffers.bytes().saturating_sub(HEADER) as u64;
                self.done.written = self.done.written.wrapping_add(bytes);
                self.sent.0 = self.sent.0.wrapping_add(1);
            }
            Sent::No(why) => {
                self.done.errors = self.done.errors.wrapping_add(1);
                self.card.counters().add(why, 1);
            }
            Sent::NotNow => return Outcome::NotNow,
        }
        Outcome::Done(0)
    }

    fn done(&mut self) -> Done {
        std::mem::take(&mut self.done)
    }

    fn refuse(&mut self, _: &Chain) -> (u32, String) {
        (0, "a frame that is dropped".into())
    }

    fn ready(&self) -> Option<BorrowedFd<'_>> {
        self.full.as_ref().map(|(_, waiter)| waiter.as_fd())
    }

    fn reap(&mut self, _done: &mut dyn FnMut(u16, u32)) -> io::Result<()> {
        self.flush();
        Ok(())
    }
}

impl Drop for TxQueue {
    fn drop(&mut self) {
        self.sent.tell(&self.card, Count::Sent);
    }
}
