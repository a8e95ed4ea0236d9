//! The launch contract: what a started process receives, and what the machine
//! and its supervisor say to each other.
//!
//! A **back-end** is started with `--fd=3` (its vhost-user socket, connected or
//! listening: [`Handover`]), its resource as a further descriptor, named on its
//! command line by number (`--blk-fd=4`), and one end of a line to its supervisor,
//! named by [`LINE_ENV`]. It inherits standard input (null), output and error, those
//! descriptors, and nothing else. A program that knows version 1 alone, and no line,
//! serves as well ([`VERSION_ENV`]).
//!
//! The **machine** is started with one descriptor, [`MACHINE_FD`]: a
//! `SOCK_SEQPACKET` pair to its supervisor. Each packet is one JSON message
//! with the descriptors that the message names, in that order. The first is
//! [`ToMachine::Start`].

mod channel;
mod handover;
mod line;
mod messages;
mod replay;
mod spec;

pub use self::channel::Channel;
pub use self::handover::Handover;
pub use self::line::{FromBackend, LONGEST_TEXT, Link, ToBackend};
pub use self::messages::{
    Cause, Ending, FromMachine, Gap, MESSAGES_VERSION, Replaces, Restored, SessionNumber, StartFd,
    ToMachine, sort_fds,
};
pub use self::replay::{InFlight, MOST_TOLD, Replay};
pub use self::spec::{Device, Doorbell, KickPath, Machine, Whose};

/// Version of what a back-end is started with.
pub const VERSION: u32 = 2;
/// The oldest version that a program may know to be started.
pub const OLDEST_VERSION: u32 = 1;
/// Environment variable that tells a back-end [`OLDEST_VERSION`]: whatever else it is
/// started with does not stand in the way of that version. A back-end of ours refuses
/// one that it does not know and, started by hand, needs none.
pub const VERSION_ENV: &str = "OUTBOARD_LAUNCH";
/// Environment variable that tells a back-end the descriptor of its line to the
/// supervisor, a `SOCK_SEQPACKET` socket: it is there from version 2 on, and the first
/// message in it, [`ToBackend::Start`], tells which version that is. Each packet is one
/// JSON message with the descriptors that the message names.
pub const LINE_ENV: &str = "OUTBOARD_LINE";
/// Environment variable that tells a back-end of version 2 the descriptor of its image
/// that it is to use: an open file description of its own. The one that its command line
/// names is the supervisor's, whose lock version 1 confirms; it is closed.
pub const IMAGE_ENV: &str = "OUTBOARD_IMAGE";
/// Environment variable that tells a process whose lines it writes to standard
/// error: `VM/DEVICE`, or the one of the two that is known, or nothing. A
/// program of ours begins each line with its own name and that in brackets.
pub const LABEL_ENV: &str = "OUTBOARD_LABEL";
/// The descriptor on which a back-end finds its socket.
pub const BACKEND_FD: i32 = 3;
/// The descriptor on which the machine finds the socket to its supervisor.
pub const MACHINE_FD: i32 = 3;
