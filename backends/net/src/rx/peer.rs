//! Frames from a peer: cut out of what its socket has brought, copied into the
//! stock.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::epoll::EpollFlags;

use super::Sink;
use crate::counters::Count;
use crate::header::{HEADER, Header, LEAST_FRAME};
use crate::peer::{Connection, Peer, TooLong};
use crate::waiter::Waiter;

/// Most frames that are delivered before the driver hears of them.
const BATCH: usize = 64;
/// Most times that the peer's socket is read in a batch.
const READS: usize = 8;

#[derive(Debug)]
pub(super) struct PeerSource {
    epoll: Waiter,
    /// The connection that is waited on.
    connection: Option<Arc<Connection>>,
    /// Readable when the peer ends it, for when nothing of it can be delivered.
    ending: Waiter,
    /// The next frame is larger than the stock.
    waiting: bool,
    /// It waits for any buffers at all, and nothing follows it.
    ended: bool,
}

/// What there is to wait for with buffers, and without.
fn waiters(peer: &Peer, connection: Option<&Arc<Connection>>) -> io::Result<(Waiter, Waiter)> {
    let socket = connection.map(|connection| connection.as_fd());
    let nobody = socket.is_none();
    let coming = [Some(peer.arrived().as_fd()), peer.grace()];
    let coming = coming.into_iter().flatten().filter(|_| nobody);
    Ok((
        Waiter::new(socket.into_iter().chain(coming), EpollFlags::EPOLLIN)?,
        Waiter::new(socket, EpollFlags::EPOLLRDHUP)?,
    ))
}

impl PeerSource {
    pub fn new(peer: &Peer) -> io::Result<Self> {
        let connection = peer.connection();
        let (epoll, ending) = waiters(peer, connection.as_ref())?;
        Ok(Self {
            epoll,
            connection,
            ending,
            waiting: false,
            ended: false,
        })
    }

    /// What to wait for of the peer, if anything that it does is worth a look.
    pub fn awaited(&self, stocked: bool) -> Option<BorrowedFd<'_>> {
        match self.connection {
            Some(_) if !stocked => (!self.ended).then_some(self.ending.as_fd()),
            Some(_) if self.waiting => None,
            _ => Some(self.epoll.as_fd()),
        }
    }

    pub fn reap(
        &mut self,
        peer: &Peer,
        sink: &mut Sink,
        done: &mut dyn FnMut(u16, u32),
    ) -> io::Result<()> {
        self.follow(peer, sink)?;
        let Some(connection) = self.connection.clone() else {
            return Ok(());
        };
        self.ended = sink.stock.is_empty() && self.ending.is_readable();
        if let Err(why) = self.read(&connection, sink, done) {
            sink.card.peer_failed(&connection, &why);
            self.follow(peer, sink)?;
        }
        self.ended &= self.waiting;
        Ok(())
    }

    /// Waits on the connection of the moment, a new one if there is one.
    fn follow(&mut self, peer: &Peer, sink: &mut Sink) -> io::Result<()> {
        if self.connection.is_none() {
            peer.arrived().clear();
            sink.card.peer_is_awaited(peer);
        }
        let current = peer.connection();
        let same = match (&current, &self.connection) {
            (Some(current), Some(known)) => Arc::ptr_eq(current, known),
            (None, None) => true,
            _ => false,
        };
        if !same {
            (self.epoll, self.ending) = waiters(peer, current.as_ref())?;
            self.connection = current;
            self.waiting = false;
            self.ended = false;
            sink.patience.end();
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
        // What was read last is looked at too: nothing may follow it.
        for left_to_read in (0..=READS).rev() {
            loop {
                let frame = inbox.frame().map_err(|TooLong(length)| {
                    format!("it announces a frame of {length} bytes: it speaks another protocol")
                })?;
                let Some(frame) = frame else { break };
                let length = frame.len().saturating_add(HEADER);
                let too_long = sink.room() < length;
                self.waiting = too_long && sink.is_worth_a_wait(length);
                if self.waiting && (sink.room() > 0 || self.ended) {
                    self.waiting = !sink.patience.is_over();
                    if !self.waiting && self.ended {
                        return Err("it has closed the connection".into());
                    }
                } else {
                    sink.patience.end();
                }
                if self.waiting || left == 0 {
                    return Ok(());
                }
                if frame.len() < LEAST_FRAME {
                    sink.drop(Count::Unwanted);
                } else if too_long {
                    sink.drop(Count::NoRoom);
                } else {
                    sink.stock.buffers.copy_from(HEADER, frame);
                    sink.deliver(Header::default(), length, done);
                    left = left.saturating_sub(1);
                }
                inbox.consume();
            }
            if left_to_read == 0 {
                break;
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
