//! The supervisor's end of the line to a back-end, and what is done there for it: a
//! back-end in a sandbox connects to no path and asks for the state of no interface.
//!
//! - [`bound`]: a socket that listens at a path, for a peer or a front-end;
//! - [`Line`]: one device's line, to one back-end after another;
//! - [`rendezvous`]: how the peer of a card comes, and comes again;
//! - [`watch`]: what the host does to the interface behind a card.
//!
//! What is said on the line is `outboard_protocol::launch`'s. Who has a `Line` polls
//! its descriptor: `outboard run` those of all its devices, and a back-end that was
//! started by hand, in a child of it that serves nobody, its own.
#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

pub mod bound;
mod door;
mod heard;
mod line;
pub mod rendezvous;
mod told;
pub mod watch;

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

pub use self::heard::Heard;
pub use self::line::Line;
pub use self::told::Told;

/// Connects to a Unix stream socket at once or not at all; the connection itself
/// waits, as usual.
///
/// # Errors
/// Those of connect(2); EAGAIN when whoever listens does not accept.
pub fn connect_now(path: &Path) -> nix::Result<UnixStream> {
    // Not blocking: a listener whose queue is full would hold us without end.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).map_err(|_| Errno::EIO)?;
    Ok(stream)
}
