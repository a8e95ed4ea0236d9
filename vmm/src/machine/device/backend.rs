//! The back-end of a device, whatever phase its session is in.

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};
use outboard_protocol::launch;

use crate::machine::frontend::{Negotiated, Notices, Session, Started};

/// The longest configuration space that QEMU's back-ends and many others know
/// (VHOST_USER_MAX_CONFIG_SIZE there; the specification names no limit).
const COMMON_CONFIG: u32 = 256;

/// A session, in its phase.
#[derive(Debug, Default)]
pub(crate) enum Backend {
    /// A step from one phase to the other failed, and the session with it.
    #[default]
    Lost,
    /// No ring runs.
    Idle(Session<Negotiated>),
    /// Rings run.
    Running(Session<Started>),
}

impl Backend {
    /// What must be polled for input.
    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let (main, channel) = match self {
            Self::Lost => return Vec::new(),
            Self::Idle(session) => session.fds(),
            Self::Running(session) => session.fds(),
        };
        std::iter::once(main).chain(channel).collect()
    }

    /// What the back-end says unasked.
    ///
    /// # Errors
    /// It has gone, or broke the specification.
    pub(crate) fn listen(&mut self) -> Result<Notices> {
        match self {
            Self::Lost => Ok(Notices::default()),
            Self::Idle(session) => heard(session),
            Self::Running(session) => heard(session),
        }
    }

    /// The configuration as the back-end has it: zeroes where it leaves that to
    /// us, which is only agreed to where the device can do with it.
    ///
    /// # Errors
    /// It has gone, or refuses.
    pub(crate) fn read_config(&mut self, spec: &launch::Device) -> Result<Vec<u8>> {
        let len = spec.kind.config_len as usize;
        let config = match self {
            Self::Lost => Ok(None),
            Self::Idle(session) => session.read_config(len),
            Self::Running(session) => session.read_config(len),
        };
        let config = config.with_context(|| wanted(spec))?;
        Ok(config.unwrap_or_else(|| vec![0; len]))
    }

    /// Passes on what the driver wrote to the configuration. Returns whether the
    /// back-end took it.
    ///
    /// # Errors
    /// The back-end has gone.
    pub(crate) fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<bool> {
        match self {
            Self::Lost => Ok(false),
            Self::Idle(session) => session.write_config(offset, data),
            Self::Running(session) => session.write_config(offset, data),
        }
    }
}

fn heard<P>(session: &mut Session<P>) -> Result<Notices> {
    session.listen()?;
    Ok(session.take_notices())
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
