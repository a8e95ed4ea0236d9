//! Frames from a tap: read into the stock, and what does not fit beside it.

use std::io;

use outboard_runtime::guest_buffers::is_fault;

use super::Sink;
use crate::counters::Count;
use crate::header::{HEADER, Header, LEAST_FRAME, MOST_FRAME};
use crate::tap::Tap;

/// Most frames that are delivered before the driver hears of them.
const BATCH: usize = 64;

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
pub(super) struct TapSource {
    pub pair: u16,
    /// The end of a frame that is larger than the stock.
    rest: Box<[u8]>,
    waiting: Option<Waiting>,
    failed: bool,
}

impl TapSource {
    pub fn new(pair: u16) -> Self {
        Self {
            pair,
            rest: vec![0; MOST_FRAME].into_boxed_slice(),
            waiting: None,
            failed: false,
        }
    }

    /// Drops the frame that waits, if there is one.
    pub fn give_up(&mut self, sink: &mut Sink) {
        if self.waiting.take().is_some() {
            sink.patience.end();
            sink.drop(Count::NoRoom);
        }
    }

    /// Whether nothing that the tap does could help.
    pub fn is_stuck(&self) -> bool {
        self.failed || self.waiting.is_some()
    }

    pub fn reap(&mut self, tap: &Tap, sink: &mut Sink, done: &mut dyn FnMut(u16, u32)) {
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
                .buffers
                .read_between(fd, &mut header, most, &mut self.rest);
            match result {
                Ok((length, room)) => {
                    let header = Header::from_bytes(&header);
                    self.received(header, length, room, sink, done);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The frame is gone, and so is the session.
                Err(error) if is_fault(&error) => {
                    sink.drop(Count::Unmapped);
                    return;
                }
                // A frame of a kind that the header has no word for; the kernel
                // has dropped it, and the tap is as good as before.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    sink.drop(Count::Unwanted);
                }
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
            Some(header) if (stocked..whole).contains(&length) && sink.is_worth_a_wait(length) => {
                sink.card.counters().add(Count::Waited, 1);
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

    /// Delivers the frame that waits, if there is one, or drops it when it has
    /// waited too long; false when it must still wait.
    fn finish_waiting(&mut self, sink: &mut Sink, done: &mut dyn FnMut(u16, u32)) -> bool {
        let Some(waiting) = self.waiting else {
            return true;
        };
        if sink.room() < waiting.length {
            if !sink.is_worth_a_wait(waiting.length) || sink.patience.is_over() {
                self.give_up(sink);
            }
            return self.waiting.is_none();
        }
        let rest = waiting.length.saturating_sub(waiting.stocked);
        let rest = self.rest.get(..rest).unwrap_or_default();
        sink.stock.buffers.copy_from(waiting.stocked, rest);
        sink.deliver(waiting.header, waiting.length, done);
        sink.patience.end();
        self.waiting = None;
        true
    }
}
