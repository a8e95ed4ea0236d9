//! The vhost-user front-end: the only code of the machine that speaks it.
//!
//! A [`Session`] is one connection to one back-end. Its type says how far it
//! has come, so that an order which the specification forbids does not compile:
//!
//! ```text
//!  Session<Connected> ──negotiate──▶ Session<Negotiated> ──start──▶ Session<Started>
//!                                            ▲                            │
//!                                            └────────────stop────────────┘
//! ```
//!
//! Any error ends a session: it is dropped, which closes the connection. The
//! back-end is trusted with guest memory and with nothing else: each reply is
//! checked for its request, flags, size and descriptors, and waited for no
//! longer than [`PATIENCE`].

mod channel;
mod kinds;
mod link;
mod memory;
mod negotiate;
mod rings;

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use outboard_protocol::wire::Connection;
use vhost::vhost_user::message::{FrontendReq, VhostUserConfig, VhostUserConfigFlags};
use vm_memory::ByteValued;

pub use self::channel::Notices;
use self::link::Link;
pub use self::negotiate::Agreement;
pub use self::rings::{Inflight, RingStart, Stopped};

/// The longest that any one message may take: to be read by the back-end, and
/// to be answered.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of configuration in one message; QEMU and its back-ends know no
/// larger one.
const CONFIG_CHUNK: usize = 256;

/// Nothing has been heard yet.
#[derive(Debug)]
pub struct Connected {
    /// GET_FEATURES has been sent, and not been answered yet.
    asked: bool,
}

/// Features are agreed on; no ring is known to the back-end.
#[derive(Debug)]
pub struct Negotiated {
    agreement: Agreement,
    memory_lent: bool,
}

/// Rings have been started.
#[derive(Debug)]
pub struct Started {
    agreement: Agreement,
    rings: Vec<u16>,
    inflight: Option<Inflight>,
}

/// One connection to one back-end, in phase `P`.
#[derive(Debug)]
pub struct Session<P> {
    link: Link,
    phase: P,
}

impl<P> Session<P> {
    /// What must be polled for input: the connection and, if there is one, the
    /// channel on which the back-end asks.
    pub fn fds(&self) -> (BorrowedFd<'_>, Option<BorrowedFd<'_>>) {
        self.link.fds()
    }

    /// Looks at what has become readable while nothing was asked: the end of
    /// the connection, or a notice of the back-end's.
    ///
    /// # Errors
    /// The back-end has gone, or broke the specification.
    pub fn listen(&mut self) -> Result<()> {
        self.link.listen()
    }

    /// The notices that have come since the last call.
    pub fn take_notices(&mut self) -> Notices {
        self.link.take_notices()
    }

    /// Reads `len` bytes of device configuration from its start (GET_CONFIG);
    /// `None` when the back-end leaves the configuration to the front-end.
    ///
    /// # Errors
    /// The back-end refuses, or answers something else than it was asked.
    pub fn read_config(&mut self, len: usize) -> Result<Option<Vec<u8>>> {
        if !self.link.has_config() || len == 0 {
            return Ok(None);
        }
        let mut config = Vec::with_capacity(len);
        while config.len() < len {
            let count = CONFIG_CHUNK.min(len - config.len());
            let offset = config.len();
            let chunk = self
                .read_config_chunk(offset, count)
                .with_context(|| format!("reading {len} bytes of configuration"))?;
            config.extend(chunk);
        }
        Ok(Some(config))
    }

    fn read_config_chunk(&mut self, offset: usize, count: usize) -> Result<Vec<u8>> {
        let head = config_head(offset, count)?;
        let mut payload = head.as_slice().to_vec();
        payload.resize(payload.len() + count, 0);
        let reply = self.link.query(FrontendReq::GET_CONFIG, &payload)?;
        let Some((answered, bytes)) = reply.payload.split_at_checked(head.as_slice().len()) else {
            bail!(
                "the back-end refused GET_CONFIG: it has no configuration of that length; it may \
                 serve another kind of device"
            );
        };
        let mut echo = VhostUserConfig::default();
        echo.as_mut_slice().copy_from_slice(answered);
        let (got_offset, got_size) = (echo.offset as usize, echo.size as usize);
        if (got_offset, got_size) != (offset, count) || bytes.len() != count {
            bail!(
                "the back-end answered GET_CONFIG with {} bytes (said to be {got_size} at \
                 {got_offset}) instead of {count} at {offset}",
                bytes.len()
            );
        }
        Ok(bytes.to_vec())
    }

    /// Writes to the device configuration (SET_CONFIG). A back-end without
    /// configuration is not asked, and one may refuse: the driver then reads
    /// what it had before.
    ///
    /// # Errors
    /// The back-end has gone.
    pub fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<()> {
        if self.link.has_config() {
            let head = config_head(offset as usize, data.len())?;
            let payload = [head.as_slice(), data].concat();
            let request = FrontendReq::SET_CONFIG;
            self.link.attempt(request, &payload, &[])?;
        }
        Ok(())
    }
}

/// Flags 0: the driver reads, or writes what it may write.
fn config_head(offset: usize, len: usize) -> Result<VhostUserConfig> {
    Ok(VhostUserConfig::new(
        u32::try_from(offset)?,
        u32::try_from(len)?,
        VhostUserConfigFlags::empty(),
    ))
}

impl Session<Connected> {
    /// Begins on a connected socket.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            link: Link::new(Connection::new(stream)),
            phase: Connected { asked: false },
        }
    }

    /// Begins on one on which somebody has sent GET_FEATURES: its answer is the
    /// first thing to be read.
    pub fn asked(stream: UnixStream) -> Self {
        Self {
            link: Link::new(Connection::new(stream)),
            phase: Connected { asked: true },
        }
    }

    /// A copy of the socket, to end the connection by.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn stream(&self) -> io::Result<UnixStream> {
        let (main, _) = self.fds();
        Ok(main.try_clone_to_owned()?.into())
    }
}

#[cfg(test)]
pub mod fake;
#[cfg(test)]
mod tests;
