//! The back-end of a device, whatever phase its session is in.

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};
use outboard_protocol::launch::{self, Whose};

use super::ring;
use crate::machine::frontend::{Negotiated, Notices, Session, Started, Stopped};
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

/// Waits until the back-end has returned what it had taken of a ring before it
/// stopped that. Ours have when they say so; others may be late.
///
/// # Errors
/// It does not finish, or has gone.
pub fn wait_drained<P>(
    session: &mut Session<P>,
    whose: Whose,
    stopped: &Stopped,
    rings: &[Ring],
    ram: &Ram,
) -> Result<()> {
    match rings.iter().find(|ring| ring.index == stopped.queue) {
        Some(ring) if whose != Whose::Own => {
            session.wait_drained(stopped, || ring::is_under_way(ring, stopped.base, ram))
        }
        _ => Ok(()),
    }
}
