//! Requests that a back-end had taken and not returned when it died, and how its
//! successor is to deal with them.
//!
//! A request may be what kills: then a successor that executes it again dies of it,
//! too. So what is found is told, and if that happens again and again it is found
//! out which of them it is, one at a time, and that one is ended in an error.

use serde::{Deserialize, Serialize};

use crate::inflight::MAX_QUEUE_SIZE;

/// Most requests that one message tells of, so that it fits a packet.
pub const MOST_TOLD: usize = 1024;

/// A request in flight, as the inflight region knows it. The counter of a region is
/// never given twice, so it is no other request, however often it was taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InFlight {
    /// Number of its queue.
    pub queue: u16,
    /// Its first descriptor.
    pub head: u16,
    /// As the how manyth it was taken.
    pub counter: u64,
}

/// How a successor deals with what it finds in flight.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replay {
    /// Each is executed alone: no other of the device, of whatever queue, and nothing
    /// new before all of them were returned.
    pub one_by_one: bool,
    /// These are ended in an error and not executed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refuse: Vec<InFlight>,
}

impl Replay {
    /// Whether everything is executed at once, as it was first.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// Checks the requests of one message.
///
/// # Errors
/// A message that says what is out of bounds.
pub(super) fn check(requests: &[(u16, u64)]) -> Result<(), String> {
    match requests {
        [] => Err("it has found nothing".into()),
        all if all.len() > MOST_TOLD => Err(format!("over {MOST_TOLD} requests in a message")),
        all if all.iter().any(|(head, _)| *head >= MAX_QUEUE_SIZE) => {
            Err("a request that no queue has".into())
        }
        _ => Ok(()),
    }
}
