//! The vhost-user front-end: the only code of the machine that speaks it.
//!
//! A [`Session`] is one connection to one back-end. Its type says how far it
//! has come, so that an order which the specification forbids does not compile:
//!
//! ```text
//!  Session<Connected> ──negotiate──▶ Session<Negotiated> ──describe──▶ Session<Described>
//!                                            ▲                            │ enable
//!                                            └──────stop── Session<Started> ◀┘
//! ```
//!
//! Any error ends a session: it is dropped, which closes the connection. The
//! back-end is trusted with guest memory and with nothing else: each reply is
//! checked for its request, flags, size and descriptors, and waited for no
//! longer than its limits allow.

mod cause;
mod channel;
mod inflight;
mod interruption;
mod limits;
mod link;
mod memory;
mod negotiate;
mod patience;
mod rings;

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use anyhow::{Result, bail};
use outboard_protocol::launch::{Cause, Whose};
use outboard_protocol::wire::Connection;
use vhost::vhost_user::message::{FrontendReq, VhostUserConfig, VhostUserConfigFlags};
use vm_memory::ByteValued;

pub(crate) use self::cause::{because, cause_of};
pub(crate) use self::channel::Notices;
pub(crate) use self::inflight::Inflight;
pub use self::interruption::Interruption;
pub(crate) use self::limits::Limits;
use self::link::Link;
pub(crate) use self::negotiate::Agreement;
pub(crate) use self::patience::Patience;
pub use self::rings::{RingStart, Stopped};

/// Nothing has been heard yet.
#[derive(Debug)]
pub struct Connected {
    /// GET_FEATURES has been sent, and not been answered yet.
    asked: bool,
    whose: Whose,
}

/// Features are agreed on; no ring is known to the back-end.
#[derive(Debug)]
pub struct Negotiated {
    agreement: Agreement,
    memory_lent: bool,
    /// A region that no ring has used, for a driver that has none.
    fresh: Option<Inflight>,
}

/// Rings are described, and none is enabled: the back-end has not touched any, if it knows
/// protocol features.
#[derive(Debug)]
pub struct Described(Started);

/// Rings have been started.
#[derive(Debug)]
pub struct Started {
    agreement: Agreement,
    rings: Vec<u16>,
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
    pub(crate) fn fds(&self) -> (BorrowedFd<'_>, Option<BorrowedFd<'_>>) {
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

    /// Waits no longer than this from now on.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.link.set_limits(limits);
    }

    /// The notices that have come since the last call.
    pub(crate) fn take_notices(&mut self) -> Notices {
        self.link.take_notices()
    }

    /// Reads the device configuration, all `len` bytes at once (GET_CONFIG);
    /// `None` when the back-end leaves the configuration to the front-end.
    ///
    /// Nothing is put together from pieces: a back-end may answer each with what
    /// lies at its start, as qemu-storage-daemon does, and say otherwise.
    ///
    /// # Errors
    /// The back-end refuses, or answers something else than it was asked.
    pub fn read_config(&mut self, len: usize) -> Result<Option<Vec<u8>>> {
        if !self.link.has_config() || len == 0 {
            return Ok(None);
        }
        let head = config_head(0, len)?;
        let mut payload = head.as_slice().to_vec();
        payload.resize(payload.len() + len, 0);
        let reply = self.link.query(FrontendReq::GET_CONFIG, &payload)?;
        let Some((answered, bytes)) = reply.payload.split_at_checked(head.as_slice().len()) else {
            bail!(because(
                Cause::DoesNotFit,
                "the back-end refused GET_CONFIG: it has no configuration of that length"
            ));
        };
        let mut echo = VhostUserConfig::default();
        echo.as_mut_slice().copy_from_slice(answered);
        let (got_offset, got_size) = (echo.offset as usize, echo.size as usize);
        if (got_offset, got_size) != (0, len) || bytes.len() != len {
            let text = format!(
                "the back-end answered GET_CONFIG with {} bytes (said to be {got_size} at \
                 {got_offset}) instead of {len} at 0",
                bytes.len()
            );
            let another_length = (got_offset, got_size) == (0, bytes.len());
            bail!(because(
                match another_length {
                    true => Cause::DoesNotFit,
                    false => Cause::BrokeProtocol,
                },
                text
            ));
        }
        Ok(Some(bytes.to_vec()))
    }

    /// Writes to the device configuration (SET_CONFIG). A back-end without
    /// configuration is not asked, and one may refuse, as far as it can say so:
    /// the driver then reads what it had before. Returns whether it obeyed.
    ///
    /// # Errors
    /// The back-end has gone.
    pub fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<bool> {
        if !self.link.has_config() {
            return Ok(false);
        }
        let head = config_head(offset as usize, data.len())?;
        let payload = [head.as_slice(), data].concat();
        let request = FrontendReq::SET_CONFIG;
        Ok(self.link.attempt(request, &payload, &[])? == 0)
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
    /// Begins on a connected socket, with a back-end that may be anybody's.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            link: Link::new(Connection::new(stream)),
            phase: Connected {
                asked: false,
                whose: Whose::default(),
            },
        }
    }

    /// Begins on one on which somebody has sent GET_FEATURES: its answer is the
    /// first thing to be read.
    pub(crate) fn asked(stream: UnixStream) -> Self {
        let mut session = Self::new(stream);
        session.phase.asked = true;
        session
    }

    /// The back-end is this one's.
    pub(crate) fn of(mut self, whose: Whose) -> Self {
        self.phase.whose = whose;
        self
    }

    /// While it is waited for, that is told.
    pub(crate) fn with(mut self, patience: Option<Patience>) -> Self {
        self.link.set_patience(patience);
        self
    }

    /// Waits no longer than this.
    #[cfg(test)]
    pub(crate) fn within(mut self, limits: Limits) -> Self {
        self.link.set_limits(limits);
        self
    }

    /// Whose the back-end is.
    pub(crate) fn whose(&self) -> Whose {
        self.phase.whose
    }
}

#[cfg(test)]
mod tests;
