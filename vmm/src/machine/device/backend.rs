//! The back-end of a device, whatever phase its session is in.

use std::os::fd::BorrowedFd;

use anyhow::Result;
use outboard_protocol::launch;

use crate::machine::frontend::{Negotiated, Notices, Session, Started};

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

    /// Passes on what the driver wrote to the configuration.
    ///
    /// # Errors
    /// The back-end has gone.
    pub fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<()> {
        match self {
            Self::Detached => Ok(()),
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
    Ok(session.read_config(len)?.unwrap_or_else(|| vec![0; len]))
}
