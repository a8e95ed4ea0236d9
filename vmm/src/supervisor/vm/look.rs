//! A ring that stands still, and what a look at its back-end has found.

use outboard_protocol::counters::Reading;

/// A ring that stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unserved {
    /// Its queue.
    pub(crate) queue: u16,
    /// It was kicked, and nobody has consumed that, though kicks were consumed before.
    pub(crate) kick: bool,
    /// How often that was told in a row.
    pub(crate) times: u32,
}

/// What a look at a back-end has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Examined {
    /// The process is stopped, by SIGSTOP or the like.
    pub(crate) is_stopped: bool,
    /// What its page says of the queue, if it has one.
    pub(crate) page: Option<Reading>,
}
