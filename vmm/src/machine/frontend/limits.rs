//! How long a back-end is waited for (PROTOCOL.md, section 5).

use std::time::Duration;

use outboard_protocol::Deadline;
use outboard_protocol::deadline::limits;
use vhost::vhost_user::message::FrontendReq;

/// The limits of one session; the default is what is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// For a message to be read, or to be complete once it has begun, and for
    /// whatever needs no I/O to be answered.
    pub(crate) message: Duration,
    /// For what may wait for the back-end's I/O.
    pub(crate) answer: Duration,
}

impl Limits {
    /// Those of a successor that is started while the rings of another rest: that one
    /// goes on if it is not faster, so nothing is lost by it.
    pub(crate) const OF_A_SUCCESSOR: Self = Self {
        message: Duration::from_secs(2),
        answer: Duration::from_secs(2),
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message: limits::MESSAGE,
            answer: limits::ANSWER,
        }
    }
}

impl Limits {
    /// The wait for the answer to `request`, from now on.
    pub(super) fn wait_for(self, request: FrontendReq) -> Wait {
        if may_need_io(request) {
            Wait::new(self.answer, Some(self.message))
        } else {
            self.for_a_message()
        }
    }

    /// A wait for what needs no I/O.
    pub(super) fn for_a_message(self) -> Wait {
        Wait::new(self.message, None)
    }
}

/// Whether a back-end may finish I/O before it obeys: the requests of a ring that
/// stops, those of its neighbours when a ring joins them, what a cache holds.
pub(super) fn may_need_io(request: FrontendReq) -> bool {
    matches!(
        request,
        FrontendReq::GET_VRING_BASE
            | FrontendReq::SET_VRING_ENABLE
            | FrontendReq::SET_CONFIG
            | FrontendReq::RESET_DEVICE
            | FrontendReq::SET_FEATURES
    )
}

/// One wait for a back-end: it ends, and is mentioned once if it grows long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    limit: Duration,
    end: Deadline,
    mention: Option<Deadline>,
}

impl Wait {
    fn new(limit: Duration, mention: Option<Duration>) -> Self {
        Self {
            limit,
            end: Deadline::after(limit),
            mention: mention.map(Deadline::after),
        }
    }

    /// Whichever ends later.
    pub(super) fn or_longer(self, other: Self) -> Self {
        if other.end > self.end { other } else { self }
    }

    /// The end of the wait.
    pub(super) fn end(&self) -> Deadline {
        self.end
    }

    /// How long it was to be at most.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// When there is something to be done if nothing has come.
    pub(super) fn next(&self) -> Deadline {
        self.mention
            .map_or(self.end, |mention| mention.min(self.end))
    }

    /// Whether it is to be mentioned now; true once.
    pub(super) fn has_grown_long(&mut self) -> bool {
        let long = self.mention.is_some_and(Deadline::passed) && !self.end.passed();
        if long {
            self.mention = None;
        }
        long
    }
}
