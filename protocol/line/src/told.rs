//! What a back-end says of requests that a predecessor had taken.

use outboard_protocol::launch::{FromBackend, InFlight};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A ring of it begins with these in flight; further ones of the same queue may
    /// follow.
    Found(Vec<InFlight>),
    /// It executes one of them, and nothing else meanwhile.
    Replays(InFlight),
    /// It ends one of them in an error, as it was told to; in words, what that asked for.
    Refused(InFlight, String),
    /// It has none of them in this queue any more.
    Replayed(u16),
}

impl Told {
    /// What this message says of them; `None`: nothing.
    pub(crate) fn of(message: FromBackend) -> Option<Self> {
        match message {
            FromBackend::Found { queue, requests } => {
                let request = |(head, counter)| InFlight {
                    queue,
                    head,
                    counter,
                };
                Some(Self::Found(requests.into_iter().map(request).collect()))
            }
            FromBackend::Replays(request) => Some(Self::Replays(request)),
            FromBackend::Refused {
                queue,
                head,
                counter,
                text,
            } => {
                let request = InFlight {
                    queue,
                    head,
                    counter,
                };
                Some(Self::Refused(request, text))
            }
            FromBackend::Replayed { queue } => Some(Self::Replayed(queue)),
            FromBackend::Ready { .. }
            | FromBackend::Keeps { .. }
            | FromBackend::IoError { .. }
            | FromBackend::Resized { .. }
            | FromBackend::WantsPeer => None,
        }
    }
}
