//! One client's requests and their responses, one at a time. Pure: bytes and the time
//! come in, bytes come out.
//!
//! ```text
//!            a whole request            reply()            it was sent
//!  Reading ──────────────────▶ Asked ───────────▶ Replying ───────────▶ Reading, or
//!    │  nonsense, too large, MESSAGE ────────────────▲                  Draining ─▶ Over
//!    └── nothing was asked within MESSAGE, or the client has gone ─────────────────▲
//! ```
//! While a request is answered nothing is read, so a client that sends several at once
//! waits in its socket. Whoever was sent an error in the middle of a request may still
//! be sending: that is read and thrown away for a while (`Draining`), since a
//! connection that is closed before would look broken, and nobody read the error.

use std::time::Instant;

use outboard_protocol::deadline::limits;

use super::http::{self, CONTINUE, Parsed, Request, Response};

/// Where a conversation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Of a request there is nothing or a part.
    Reading {
        /// When it must be whole.
        until: Instant,
    },
    /// A request is whole, and is being answered.
    Asked,
    /// A response is being sent.
    Replying {
        /// When it must have been taken.
        until: Instant,
        /// What comes then.
        then: Then,
    },
    /// What comes in is thrown away.
    Draining {
        /// How long.
        until: Instant,
    },
    /// The connection is to be closed.
    Over,
}

/// What follows a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Another request may come.
    Next,
    /// The connection is closed.
    Close,
    /// The same, once the client has sent what it was sending.
    Drain,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Conversation {
    state: State,
    /// What has come in and is not part of an earlier request.
    inbox: Vec<u8>,
    /// How many bytes must be there before it is worth looking.
    look_at: usize,
    /// The client was asked for the body of this request.
    continued: bool,
    /// A whole request that nobody has taken yet.
    request: Option<Request>,
    /// The connection is kept when that is answered.
    keep: bool,
    outbox: Vec<u8>,
}

impl Conversation {
    /// With a client that has just connected.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: State::Reading {
                until: now + limits::MESSAGE,
            },
            inbox: Vec::new(),
            look_at: 0,
            continued: false,
            request: None,
            keep: false,
            outbox: Vec::new(),
        }
    }

    /// Whether something is to be read.
    pub(super) fn reads(&self) -> bool {
        matches!(self.state, State::Reading { .. } | State::Draining { .. })
    }

    /// Whether the connection is to be closed.
    pub(super) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// When time itself is the next event.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Reading { until }
            | State::Replying { until, .. }
            | State::Draining { until } => Some(until),
            State::Asked | State::Over => None,
        }
    }

    /// This has come in.
    pub(super) fn hear(&mut self, bytes: &[u8], now: Instant) {
        if matches!(self.state, State::Reading { .. }) {
            self.inbox.extend(bytes);
            self.look(now);
        }
    }

    /// The client sends nothing more.
    pub(super) fn hear_end(&mut self) {
        if self.reads() {
            self.state = State::Over;
        }
    }

    /// A request to be answered by [`Self::reply`], once.
    pub(super) fn request(&mut self) -> Option<Request> {
        self.request.take()
    }

    /// Answers the request.
    pub(super) fn reply(&mut self, response: &Response, now: Instant) {
        let then = if self.keep { Then::Next } else { Then::Close };
        self.respond(response, then, now);
    }

    /// Tells the client that it will not be served.
    pub(super) fn refuse(&mut self, response: &Response, now: Instant) {
        self.respond(response, Then::Drain, now);
    }

    fn respond(&mut self, response: &Response, then: Then, now: Instant) {
        self.outbox.extend(response.bytes(then == Then::Next));
        let until = now + limits::MESSAGE;
        self.state = State::Replying { until, then };
    }

    /// What is to be sent.
    pub(super) fn outgoing(&self) -> &[u8] {
        &self.outbox
    }

    /// So many bytes of it were sent. Returns whether all that this client is ever to
    /// be told has been.
    pub(super) fn sent(&mut self, count: usize, now: Instant) -> bool {
        self.outbox.drain(..count.min(self.outbox.len()));
        let State::Replying { then, .. } = self.state else {
            return false;
        };
        if !self.outbox.is_empty() {
            return false;
        }
        // One status of a large VM is no reason to keep its room.
        self.outbox = Vec::new();
        self.state = match then {
            Then::Next => State::Reading {
                until: now + limits::MESSAGE,
            },
            Then::Close => State::Over,
            Then::Drain => State::Draining {
                until: now + limits::LAG,
            },
        };
        if then == Then::Next {
            self.look(now);
        }
        then == Then::Drain
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.due().is_none_or(|until| now < until) {
            return;
        }
        match self.state {
            State::Reading { .. } if !self.inbox.is_empty() => {
                let seconds = limits::MESSAGE.as_secs();
                let text = format!("the request was not complete within {seconds} s");
                self.refuse(&Response::error(408, text), now);
            }
            _ => self.state = State::Over,
        }
    }

    /// Whether a request is whole now.
    fn look(&mut self, now: Instant) {
        if self.inbox.len() < self.look_at {
            return;
        }
        match http::parse(&self.inbox) {
            Parsed::More { until, asks } => {
                self.look_at = until;
                if asks && !self.continued {
                    self.continued = true;
                    self.outbox.extend(CONTINUE);
                }
            }
            Parsed::Whole(request, length) => {
                self.inbox.drain(..length.min(self.inbox.len()));
                self.inbox.shrink_to_fit();
                (self.look_at, self.continued) = (0, false);
                self.keep = request.keep;
                self.request = Some(request);
                self.state = State::Asked;
            }
            Parsed::Wrong(response) => {
                self.inbox = Vec::new();
                self.refuse(&response, now);
            }
        }
    }
}
