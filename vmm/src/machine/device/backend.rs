//! The back-end of a device, whatever phase its session is in.

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, bail};
use outboard_log::Rarely;
use outboard_protocol::launch::{self, Cause, Whose};

use super::{kinds, ring};
use crate::machine::frontend::{Negotiated, Notices, Session, Started, Stopped, because};
use crate::machine::memory::Ram;
use crate::machine::virtio::Ring;

/// The longest configuration space that QEMU's back-ends and many others know
/// (VHOST_USER_MAX_CONFIG_SIZE there; the specification names no limit).
const COMMON_CONFIG: u32 = 256;

/// A session, if there is one.
#[derive(Debug, Default)]
pub enum Backend {
    /// No back-end.
    #[default]
    Detached,
    /// A back-end without rings.
    Idle(Session<Negotiated>),
    /// A back-end that serves rings.
    Running(Session<Started>),
}

impl Backend {
    /// What must be polled for input.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let (main, channel) = match self {
            Self::Detached => return Vec::new(),
            Self::Idle(session) => session.fds(),
            Self::Running(session) => session.fds(),
        };
        std::iter::once(main).chain(channel).collect()
    }

    /// What the back-end says unasked.
    ///
    /// # Errors
    /// It has gone, or broke the specification.
    pub fn listen(&mut self) -> Result<Notices> {
        match self {
            Self::Detached => Ok(Notices::default()),
            Self::Idle(session) => heard(session),
            Self::Running(session) => heard(session),
        }
    }

    /// The configuration as the back-end has it, if there is one.
    ///
    /// # Errors
    /// It has gone, or refuses.
    pub fn read_config(&mut self, spec: &launch::Device) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Detached => Ok(None),
            Self::Idle(session) => read_config(session, spec).map(Some),
            Self::Running(session) => read_config(session, spec).map(Some),
        }
    }

    /// Passes on what the driver wrote to the configuration; answers whether the
    /// back-end took it.
    ///
    /// # Errors
    /// The back-end has gone.
    pub fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<bool> {
        match self {
            Self::Detached => Ok(false),
            Self::Idle(session) => session.write_config(offset, data),
            Self::Running(session) => session.write_config(offset, data),
        }
    }
}

fn heard<P>(session: &mut Session<P>) -> Result<Notices> {
    session.listen()?;
    Ok(session.take_notices())
}

/// Zeroes where the back-end leaves the configuration to us, which is only
/// agreed to where the device can do with that.
fn read_config<P>(session: &mut Session<P>, spec: &launch::Device) -> Result<Vec<u8>> {
    let len = spec.kind.config_len as usize;
    let config = session.read_config(len).with_context(|| wanted(spec))?;
    Ok(config.unwrap_or_else(|| vec![0; len]))
}

/// What was asked for, and what to do if it is not to be had.
fn wanted(spec: &launch::Device) -> String {
    let len = spec.kind.config_len;
    let advice = match spec.kind.is_named() {
        true => "another length means another kind of device",
        false if len > COMMON_CONFIG => {
            "give config-size= the length that its device has; many back-ends, QEMU's among them, \
             take 256 at most"
        }
        false => "give config-size= the length that its device has",
    };
    format!("reading {len} bytes of configuration ({advice})")
}

/// What becomes of a card's back-end that keeps what it has taken to receive into
/// after it has stopped the ring, or of one of a kind that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// It must not touch that any more (vhost-user, "Suspended device state"), so
    /// it is said and believed.
    Believed,
    /// Its session is over: nobody else may have the memory before.
    Refused,
}

/// Waits until the back-end has returned what it had taken of a ring before it
/// stopped that. Ours have when they say so; others may be late. A disk's goes no
/// further before that, since it would write into what the guest uses for other
/// things by then.
///
/// # Errors
/// It does not finish, or has gone.
pub fn wait_drained<P>(
    session: &mut Session<P>,
    (spec, whose): (&launch::Device, Whose),
    stopped: &Stopped,
    (ring, ram): (&Ring, &Ram),
    keeping: Keeping,
) -> Result<()> {
    let Whose::Foreign { .. } = whose else {
        return Ok(());
    };
    let may_hold = kinds::may_hold(&spec.kind);
    let under_way = || ring::is_under_way(ring, stopped.base, ram);
    if session.wait_drained(stopped, may_hold, under_way)? {
        return Ok(());
    }
    let queue = stopped.queue;
    if kinds::must_finish(&spec.kind) || keeping == Keeping::Refused {
        let text =
            format!("the back-end stopped queue {queue} and did not finish its requests in time");
        bail!(because(Cause::Silent, text));
    }
    static KEPT: Rarely = Rarely::new();
    if let Some(times) = KEPT.again() {
        let id = &spec.id;
        log::warn!("{id}: its back-end stopped queue {queue} and kept what it had taken{times}");
    }
    Ok(())
}
