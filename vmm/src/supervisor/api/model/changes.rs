//! What is asked for, and answered, where something of a device is changed while it works.

use std::path::PathBuf;

use outboard_protocol::launch::Gap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who is to serve a device in place of its back-end. What is left out stays as it is; of a
/// device that is served at a socket, as it was before that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SwapRequest {
    /// Another program: `outboard-blk` and the like by name, any other by its path.
    pub backend: Option<PathBuf>,
    /// Whoever listens at this socket, by vhost-user.
    pub socket: Option<PathBuf>,
    /// How long they may take to listen and to answer, in milliseconds: 60,000 at
    /// most; 2000 if not said.
    pub wait_ms: Option<u64>,
    /// Another image of the disk, which is taken as it is.
    pub path: Option<PathBuf>,
    /// Another tap behind the card.
    pub tap: Option<String>,
    /// Another peer of the card, which listens at this path.
    pub peer: Option<PathBuf>,
    /// That peer is to connect there.
    pub listen: bool,
    /// The disk may have another size, of which the guest is told.
    pub resize: bool,
    /// Find out whether it could be done, and touch nothing.
    pub dry_run: bool,
}

/// How large a disk is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResizeRequest {
    /// In bytes; `null`: as large as its image is by now.
    pub size: Option<u64>,
}

/// How large a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resized {
    /// In bytes, as the guest is told.
    pub size: u64,
}

/// Whether the link of a card is to be up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkRequest {
    /// False: it is down, whatever is behind the card. True: it is what that is.
    pub up: bool,
}

/// A back-end that has taken the place of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Swapped {
    /// The device.
    pub device: String,
    /// Who served it.
    pub from: Served,
    /// Who serves it now; or would, if that was only tried (`dry_run`).
    pub to: Served,
    /// How long nobody did; `null` if it was only tried, or the former was lost meanwhile.
    pub gap: Option<GapTimes>,
}

/// Who serves a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Served {
    /// The program, or the path of the socket.
    pub program: String,
    /// Its release, if it has said so.
    pub version: Option<String>,
}

/// How long a device was not served, in microseconds: the whole, and the parts that follow one
/// another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GapTimes {
    /// All of it.
    pub total_us: u64,
    /// Until the former had stopped.
    pub stop_us: u64,
    /// Until what it had taken was over.
    pub drain_us: u64,
    /// Until the successor was told that it is to serve.
    pub rest_us: u64,
    /// Until the successor had all queues.
    pub start_us: u64,
}

/// The steps of a swap, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SwapStep {
    /// The successor is started, asked what it is, and compared with what the guest knows;
    /// the former serves.
    Prepare,
    /// The former hands back its queues, and finishes what it has taken.
    Stop,
    /// The successor is given the queues.
    Start,
}

impl From<Gap> for GapTimes {
    fn from(gap: Gap) -> Self {
        Self {
            total_us: gap.total_us(),
            stop_us: gap.stop_us,
            drain_us: gap.drain_us,
            rest_us: gap.rest_us,
            start_us: gap.start_us,
        }
    }
}
