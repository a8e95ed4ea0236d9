//! What is heard on a line.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use outboard_protocol::kept::Kept;

use crate::told::Told;

/// What a back-end has said.
#[derive(Debug)]
pub enum Heard {
    /// It is ready. This comes first, and once.
    Ready {
        /// Which parts of its sandbox are on.
        sandbox: BTreeMap<String, bool>,
        /// Which release of its program it is; empty if it has not said so.
        release: String,
        /// Its page of counters (`outboard_protocol::counters`), not looked at.
        counters: Option<OwnedFd>,
    },
    /// Its successor must know this, which has been checked.
    Keeps(Kept),
    /// It holds requests back until it is told to execute them again.
    IoError {
        /// Of which queue of the device the first of them is.
        queue: u16,
        /// What was attempted and what went wrong; it may hold anything, but not more
        /// than its bound.
        text: String,
    },
    /// Its disk has so many bytes, and nothing beyond them is in flight: the answer to
    /// [`Line::resize`](crate::Line::resize). It may be any number.
    Resized(u64),
    /// This of requests in flight, which has been checked.
    InFlight(Told),
    /// It has said what no back-end says, and is not heard any more. Of what it has
    /// said this has not much.
    Nonsense(String),
    /// It has closed the line.
    HungUp,
}
