//! What a back-end and its supervisor say to each other, from version 2 of the
//! launch contract on.
//!
//! ```text
//!  supervisor  ── start ─────────────────────────────▶  back-end
//!              ◀─ ready ──────────────────────────────    serves from here on
//!              ── take_over ──────────────────────────▶   or from here, if it waits
//!              ── link, peer, resize, retry ──────────▶   at any time
//!              ◀─ keeps, wants_peer, io_error, resized
//!              ◀─ found ─ replays, refused … ─ replayed   each queue with requests in flight
//! ```
//! The back-end is given its end as the descriptor that [`super::LINE_ENV`] names.
//! A program that does not look there keeps version 1: it says nothing, and is
//! told nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::replay::{self, InFlight, Replay};
use crate::kept::Kept;

/// Most parts that a sandbox can be told to have, and most bytes of a name.
const MOST_PARTS: usize = 64;
/// Most bytes of a release's name.
const LONGEST_RELEASE: usize = 64;
/// Most bytes of what is said of an error.
pub const LONGEST_TEXT: usize = 512;

/// What the host has made of the interface behind a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// It is up, and has its carrier; or nobody can tell, and nothing is known to
    /// be wrong with it.
    #[default]
    Up,
    /// It is up, and has no carrier.
    NoCarrier,
    /// It is down.
    Down,
    /// It is not there any more.
    Gone,
}

/// From the supervisor to a back-end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "message", deny_unknown_fields)]
pub enum ToBackend {
    /// The first message, once: there before the program is.
    Start {
        /// [`super::VERSION`]; a back-end refuses one that it does not know.
        version: u32,
        /// What a predecessor has left, to be set before the first ring.
        kept: Kept,
        /// What the interface behind a card is at first.
        link: Link,
        /// How to deal with requests that a predecessor had taken. Said where it is
        /// not as usual, and that only to a successor of one that has said `found`:
        /// a program that does not know it is never told.
        #[serde(default, skip_serializing_if = "Replay::is_plain")]
        replay: Replay,
        /// It is a standby: another serves the device, and it touches nothing of what
        /// is behind that, and starts no ring, before [`Self::TakeOver`]. Not said if it
        /// does not wait, which every program of version 2 understands.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        waits: bool,
    },
    /// Whoever served the device is gone, and its I/O over: one that waits is to serve
    /// it. Said before the front-end starts a ring.
    TakeOver {
        /// What that one has left, to be set before the first ring.
        kept: Kept,
        /// As in [`Self::Start`].
        #[serde(default, skip_serializing_if = "Replay::is_plain")]
        replay: Replay,
    },
    /// The interface behind a card has become this.
    Link {
        /// What.
        link: Link,
    },
    /// A peer for a card that wants one. Brings one descriptor: a stream socket,
    /// connected and never used.
    Peer,
    /// A disk is to have another size, of which it takes whole blocks: its image is that
    /// long already, or will be cut to it once [`FromBackend::Resized`] is the answer.
    Resize {
        /// In bytes.
        size: u64,
    },
    /// What has failed is to be executed again: the answer to
    /// [`FromBackend::IoError`], when somebody has seen to it.
    Retry,
}

/// From a back-end to its supervisor. None of it is believed without a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "message", deny_unknown_fields)]
pub enum FromBackend {
    /// The first message, once: it has all that it needs, what was kept has been
    /// looked at, and whoever is connected will be served. Brings at most one
    /// descriptor, its page of counters.
    Ready {
        /// The version that it keeps: that of its start.
        version: u32,
        /// Which parts of its sandbox are on, by name; a part that is false could
        /// not be had here. Empty: it has none.
        sandbox: BTreeMap<String, bool>,
        /// Which release of its program it is, to be shown: at most 64 printable
        /// characters of ASCII. Empty, or left out: it does not say.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        release: String,
        /// It waits, as its start says.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        waits: bool,
    },
    /// What a successor must know has become this. Said before the driver is
    /// answered whose command or request has changed it.
    Keeps {
        /// What.
        kept: Kept,
    },
    /// A card is without its peer, and wants another.
    WantsPeer,
    /// A request has failed on the host, and is held back until [`ToBackend::Retry`],
    /// as are those that fail after it: said for the first of them, and again only
    /// after that answer. By whom it was asked to (`--on-io-error=pause`) alone.
    IoError {
        /// Of which queue of the device.
        queue: u16,
        /// What was attempted, where, what went wrong, what to do: [`LONGEST_TEXT`]
        /// bytes at most.
        text: String,
    },
    /// A disk has this capacity, and no request beyond it is in flight any more: the answer
    /// to [`ToBackend::Resize`], also where that was refused and the capacity is what it
    /// was. Of several that are not answered yet, the last is. A program of version 2 that
    /// does not know that message, and one that waits, never says this.
    Resized {
        /// In bytes.
        size: u64,
    },
    /// A ring begins with these requests in flight, which a predecessor had taken. Said
    /// before any of them is executed; more messages of the same queue tell of more.
    Found {
        /// Number of the queue.
        queue: u16,
        /// Heads and counters, 1 to [`super::MOST_TOLD`].
        requests: Vec<(u16, u64)>,
    },
    /// One of them is executed now, and alone. Said before.
    Replays(InFlight),
    /// One of them was to be refused, and is ended in an error. Said before it is
    /// returned to the driver.
    Refused {
        /// Number of its queue.
        queue: u16,
        /// Its first descriptor.
        head: u16,
        /// Its counter in the inflight region.
        counter: u64,
        /// What it asked for, in words that can be told to a user; [`LONGEST_TEXT`] bytes
        /// at most.
        text: String,
    },
    /// None of them is in flight any more.
    Replayed {
        /// Number of the queue.
        queue: u16,
    },
}

impl FromBackend {
    /// Checks what can be checked without knowing the device.
    ///
    /// # Errors
    /// A message that says what is out of bounds.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Ready {
                version,
                sandbox,
                release,
                ..
            } => {
                if *version != super::VERSION {
                    let ours = super::VERSION;
                    return Err(format!(
                        "version {version} of the launch contract, and {ours} was asked for"
                    ));
                }
                let long = |name: &String| name.len() > MOST_PARTS;
                if sandbox.len() > MOST_PARTS || sandbox.keys().any(long) {
                    return Err(format!(
                        "a sandbox of more than {MOST_PARTS} parts, or with longer names"
                    ));
                }
                let is_shown = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
                if release.len() > LONGEST_RELEASE || !release.bytes().all(is_shown) {
                    return Err(format!(
                        "a release that is not at most {LONGEST_RELEASE} printable characters"
                    ));
                }
                Ok(())
            }
            Self::Keeps { kept } => kept.check(),
            Self::IoError { text, .. } if text.len() > LONGEST_TEXT => {
                Err(format!("an error told in more than {LONGEST_TEXT} bytes"))
            }
            Self::Refused { text, .. } if text.len() > LONGEST_TEXT => {
                Err(format!("a request told in more than {LONGEST_TEXT} bytes"))
            }
            Self::IoError { .. } | Self::Refused { .. } => Ok(()),
            Self::Found { requests, .. } => replay::check(requests),
            Self::WantsPeer | Self::Resized { .. } | Self::Replays(_) | Self::Replayed { .. } => {
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kept::CardState;

    #[test]
    fn a_message_has_the_words_that_the_contract_gives_it() {
        let start = ToBackend::Start {
            version: 2,
            kept: Kept::Nothing,
            link: Link::NoCarrier,
            replay: Replay::default(),
            waits: false,
        };
        let text = r#"{"message":"start","version":2,"kept":"nothing","link":"no_carrier"}"#;
        assert_eq!(serde_json::to_string(&start).unwrap(), text);
        let ready = FromBackend::Ready {
            version: 2,
            sandbox: [("seccomp".to_owned(), true)].into(),
            release: String::new(),
            waits: false,
        };
        let text = r#"{"message":"ready","version":2,"sandbox":{"seccomp":true}}"#;
        assert_eq!(serde_json::to_string(&ready).unwrap(), text);
        assert_eq!(serde_json::from_str::<FromBackend>(text).unwrap(), ready);
        let ready = FromBackend::Ready {
            version: 2,
            sandbox: BTreeMap::new(),
            release: "0.2.0 (3f2a9c41d7be 2026-01-31)".into(),
            waits: false,
        };
        let text = r#"{"message":"ready","version":2,"sandbox":{},"release":"0.2.0 (3f2a9c41d7be 2026-01-31)"}"#;
        assert_eq!(serde_json::to_string(&ready).unwrap(), text);
        for (message, text) in [
            (ToBackend::Peer, r#"{"message":"peer"}"#),
            (ToBackend::Retry, r#"{"message":"retry"}"#),
            (
                ToBackend::Resize { size: 512 },
                r#"{"message":"resize","size":512}"#,
            ),
            (
                ToBackend::TakeOver {
                    kept: Kept::Nothing,
                    replay: Replay::default(),
                },
                r#"{"message":"take_over","kept":"nothing"}"#,
            ),
        ] {
            assert_eq!(serde_json::from_str::<ToBackend>(text).unwrap(), message);
        }
        let error = FromBackend::IoError {
            queue: 1,
            text: "full".into(),
        };
        let text = r#"{"message":"io_error","queue":1,"text":"full"}"#;
        assert_eq!(serde_json::to_string(&error).unwrap(), text);
        let third = InFlight {
            queue: 0,
            head: 3,
            counter: 17,
        };
        let text = r#"{"message":"start","version":2,"kept":"nothing","link":"up","replay":{"one_by_one":true,"refuse":[{"queue":0,"head":3,"counter":17}]}}"#;
        let start = ToBackend::Start {
            version: 2,
            kept: Kept::Nothing,
            link: Link::Up,
            replay: Replay {
                one_by_one: true,
                refuse: vec![third],
            },
            waits: false,
        };
        assert_eq!(serde_json::to_string(&start).unwrap(), text);
        for (message, text) in [
            (
                FromBackend::Found {
                    queue: 0,
                    requests: vec![(3, 17), (1, 18)],
                },
                r#"{"message":"found","queue":0,"requests":[[3,17],[1,18]]}"#,
            ),
            (
                FromBackend::Replays(third),
                r#"{"message":"replays","queue":0,"head":3,"counter":17}"#,
            ),
            (
                FromBackend::Refused {
                    queue: 0,
                    head: 3,
                    counter: 17,
                    text: "a flush".into(),
                },
                r#"{"message":"refused","queue":0,"head":3,"counter":17,"text":"a flush"}"#,
            ),
            (
                FromBackend::Resized { size: 512 },
                r#"{"message":"resized","size":512}"#,
            ),
            (
                FromBackend::Replayed { queue: 0 },
                r#"{"message":"replayed","queue":0}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&message).unwrap(), text);
            assert_eq!(serde_json::from_str::<FromBackend>(text).unwrap(), message);
        }
        let waiting = r#"{"message":"ready","version":2,"sandbox":{},"waits":true}"#;
        let ready = serde_json::from_str::<FromBackend>(waiting).unwrap();
        assert!(matches!(ready, FromBackend::Ready { waits: true, .. }));
        let unknown = r#"{"message":"resize","size":512,"colour":1}"#;
        assert!(serde_json::from_str::<ToBackend>(unknown).is_err());
    }

    #[test]
    fn what_no_back_end_says_is_refused() {
        let ready = |version, parts: usize, length| FromBackend::Ready {
            version,
            sandbox: (0..parts)
                .map(|part| (format!("{part:0length$}"), true))
                .collect(),
            release: String::new(),
            waits: false,
        };
        let called = |release: &str| FromBackend::Ready {
            version: 2,
            sandbox: BTreeMap::new(),
            release: release.into(),
            waits: false,
        };
        assert_eq!(called(&"~ ".repeat(32)).check(), Ok(()));
        for release in ["a\nb", "\u{1b}[2J", "\u{e9}", &"x".repeat(65)] {
            assert!(called(release).check().is_err(), "{release:?}");
        }
        assert_eq!(ready(2, 64, 64).check(), Ok(()));
        let error = ready(1, 0, 1).check().unwrap_err();
        assert!(error.starts_with("version 1 of the launch"), "{error}");
        assert!(ready(2, 65, 2).check().is_err());
        assert!(ready(2, 1, 65).check().is_err());
        let told = |length| FromBackend::IoError {
            queue: 0,
            text: "x".repeat(length),
        };
        assert_eq!(told(LONGEST_TEXT).check(), Ok(()));
        assert!(told(LONGEST_TEXT + 1).check().is_err());
        let refused = |length| FromBackend::Refused {
            queue: 0,
            head: 3,
            counter: 17,
            text: "x".repeat(length),
        };
        assert_eq!(refused(LONGEST_TEXT).check(), Ok(()));
        assert!(refused(LONGEST_TEXT + 1).check().is_err());
        let found = |requests| FromBackend::Found { queue: 0, requests }.check();
        let longest = vec![(32767, u64::MAX); super::super::MOST_TOLD];
        assert_eq!(found(longest), Ok(()));
        for wrong in [vec![], vec![(1, 1); 1025], vec![(32768, 1)]] {
            assert!(found(wrong).is_err());
        }
        let pairs = Some(0);
        let kept = Kept::Card(CardState {
            pairs,
            ..CardState::default()
        });
        assert!(FromBackend::Keeps { kept }.check().is_err());
    }
}
