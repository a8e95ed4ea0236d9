//! The event stream to one reader, who may be slow. Pure: lines come in, bytes come out.
//!
//! At most [`ROOM`] bytes wait for a reader. One that lets more come together is cut
//! off: the line that it has a part of is completed, what waits behind that is dropped,
//! and the last line says so. There is always room for that in its socket, since
//! poll(2) calls a Unix socket writable while three quarters of its room are free, and
//! [`MOST_AT_ONCE`] is less.

/// The content type of the stream.
pub(super) const CONTENT: &str = "application/x-ndjson";
/// Most bytes that wait for a reader.
pub(super) const ROOM: usize = 64 << 10;
/// Most bytes that are sent when poll(2) has said that a socket is writable.
pub(super) const MOST_AT_ONCE: usize = 4 << 10;

/// See the module.
#[derive(Debug)]
pub(super) struct Stream {
    outbox: Vec<u8>,
    /// Bytes at the front of it that go together with what was sent.
    unfinished: usize,
    cut: bool,
}

impl Stream {
    /// A stream that begins with this, of which nothing can be left out.
    pub(super) fn new(beginning: Vec<u8>) -> Self {
        Self {
            unfinished: beginning.len(),
            outbox: beginning,
            cut: false,
        }
    }

    /// Tells a line, or, if there is no room for it, `last`; both with their ends.
    pub(super) fn tell(&mut self, line: &[u8], last: &[u8]) {
        if self.cut {
            return;
        }
        if self.outbox.len().saturating_add(line.len()) <= ROOM.max(self.unfinished) {
            return self.outbox.extend(line);
        }
        self.outbox.truncate(self.unfinished);
        self.outbox.extend(last);
        self.cut = true;
    }

    /// What is to be sent now.
    pub(super) fn outgoing(&self) -> &[u8] {
        let most = match self.cut {
            true => self.outbox.len(),
            false => self.outbox.len().min(MOST_AT_ONCE),
        };
        self.outbox.get(..most).unwrap_or_default()
    }

    /// Whether it has ended but for what is to be sent: that is tried once, and at
    /// once.
    pub(super) fn is_cut(&self) -> bool {
        self.cut
    }

    /// So many bytes were sent.
    pub(super) fn sent(&mut self, count: usize) {
        let count = count.min(self.outbox.len());
        let last = count.checked_sub(1).and_then(|last| self.outbox.get(last));
        let mid_line = last.is_some_and(|byte| *byte != b'\n');
        self.outbox.drain(..count);
        self.unfinished = match self.unfinished.checked_sub(count) {
            Some(rest) if rest > 0 => rest,
            _ if mid_line => {
                let end = self.outbox.iter().position(|byte| *byte == b'\n');
                end.map_or(self.outbox.len(), |end| end.saturating_add(1))
            }
            _ => 0,
        };
        if self.outbox.is_empty() {
            self.outbox = Vec::new();
        }
    }
}
