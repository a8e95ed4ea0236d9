//! One device, opened: its program, and what that is lent. Whatever its kind, there
//! are descriptors from here on, and no path but those of sockets to connect to.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use outboard_line::Line;
use outboard_line::bound::{self, SocketFile};
use outboard_line::rendezvous::Way;
use outboard_protocol::launch::{self, SessionNumber, Whose};

use super::connect::Whom;
use super::fence::{Fence, Image};
use super::image::Images;
use super::program::Program;
use super::tap::TapQueues;
use crate::supervisor::device::plan::{Executable, Lend, OnFailure, Plan, ServedBy};
use crate::supervisor::text::units::Wait;

/// One device.
#[derive(Debug)]
pub(crate) struct Opened {
    /// What the machine is to build.
    pub(crate) spec: launch::Device,
    /// Whose its back-end is, as the machine is told.
    pub(crate) whose: Whose,
    /// Who serves it.
    pub(crate) server: Server,
    /// What becomes of the VM when its back-end fails.
    pub(crate) on_failure: OnFailure,
}

/// Who serves a device.
#[derive(Debug)]
pub(crate) enum Server {
    /// A program to be started.
    Program {
        /// The program.
        program: Program,
        /// What it is told.
        args: Vec<String>,
        /// What it is lent.
        lent: Lent,
    },
    /// Whoever listens at a socket.
    Socket {
        /// Where.
        path: PathBuf,
        /// How long to wait for it.
        wait: Wait,
    },
}

/// What a program is lent beside its socket, each time it is started.
#[derive(Debug)]
pub(crate) enum Lent {
    /// Nothing.
    Nothing,
    /// A disk image.
    Image(Image),
    /// The queues of a tap.
    Tap(TapQueues),
    /// A socket at which its peer connects.
    Listening {
        /// The socket.
        socket: UnixListener,
        /// Its file, which goes with it.
        _file: SocketFile,
    },
    /// A socket connected to the peer that listens at a path: a new one, since
    /// a predecessor may have read part of a frame.
    Peer {
        /// Where.
        path: PathBuf,
        /// How long to wait for it.
        wait: Wait,
    },
}

/// When the I/O of a back-end is over.
#[derive(Debug)]
pub(crate) enum Io {
    /// With its process: what it was lent is read and written by calls of its own.
    OfProcess,
    /// Once this is lifted.
    Until(Fence),
    /// Nobody can tell, unless it ended in order: it shares the image's description
    /// with us, since it keeps version 1 of the launch contract, and confirms its lock.
    Unknown,
}

impl Server {
    /// What it is called: the program's name, or the socket's path.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Program { program, .. } => program.name().to_owned(),
            Self::Socket { path, .. } => path.display().to_string(),
        }
    }

    /// Whether its process is ours.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Self::Program { .. })
    }

    /// Who must be there before it can begin, where, and how long to wait for them.
    pub(crate) fn sought(&self) -> Option<(Whom, &Path, Wait)> {
        match self {
            Self::Socket { path, wait } => Some((Whom::BackEnd, path, *wait)),
            Self::Program {
                lent: Lent::Peer { path, wait },
                ..
            } => Some((Whom::Peer, path, *wait)),
            Self::Program { .. } => None,
        }
    }
}

impl Lent {
    /// What the back-end of this session is given; `shares`: our description of the
    /// image instead of one of its own; `peer` is the connection to its peer.
    ///
    /// # Errors
    /// Those of fcntl(2), and of [`Image::lend`].
    pub(crate) fn give(
        &self,
        (session, shares): (SessionNumber, bool),
        peer: Option<OwnedFd>,
    ) -> io::Result<(Vec<OwnedFd>, Io)> {
        let fds = match self {
            Self::Nothing => Vec::new(),
            Self::Image(image) => {
                let (file, fence) = match shares {
                    true => (image.share()?, None),
                    false => image
                        .lend(session)
                        .map(|(file, fence)| (file, Some(fence)))?,
                };
                return Ok((vec![file], fence.map_or(Io::Unknown, Io::Until)));
            }
            Self::Tap(tap) => tap.copies()?,
            Self::Listening { socket, .. } => vec![socket.try_clone()?.into()],
            Self::Peer { .. } => peer.into_iter().collect(),
        };
        Ok((fds, Io::OfProcess))
    }

    /// The line to whom it is lent, which looks after its peer or its interface.
    ///
    /// # Errors
    /// Those of [`Line::new`], and of fcntl(2).
    pub(crate) fn line(&self) -> io::Result<Line> {
        match self {
            Self::Nothing | Self::Image(_) => Line::new(None, None),
            Self::Tap(tap) => Line::new(None, Some(tap.name())),
            Self::Listening { socket, .. } => {
                Line::new(Some(Way::Listening(socket.try_clone()?.into())), None)
            }
            Self::Peer { path, .. } => Line::new(Some(Way::Connecting(path.clone())), None),
        }
    }
}

/// Opens what a device needs; `images` are those of its VM.
///
/// # Errors
/// A message that names the option, the device and the thing, and says what to do.
pub(crate) fn open(plan: Plan, images: &mut Images) -> Result<Opened> {
    let Plan {
        option,
        spec,
        served_by,
        on_failure,
    } = plan;
    let whose = served_by.whose();
    let server = match served_by {
        ServedBy::Socket { path, wait } => Server::Socket { path, wait },
        ServedBy::Program {
            executable,
            lend,
            args,
        } => {
            let named = || format!("--{option} {}", spec.id);
            Server::Program {
                program: program(&executable).with_context(named)?,
                args,
                lent: lent(lend, &spec.id, images).with_context(named)?,
            }
        }
    };
    Ok(Opened {
        spec,
        whose,
        server,
        on_failure,
    })
}

fn program(executable: &Executable) -> Result<Program> {
    match executable {
        Executable::Own { name, .. } => Program::own(name),
        Executable::Named { path, .. } => Program::open(path),
    }
}

fn lent(lend: Lend, id: &str, images: &mut Images) -> Result<Lent> {
    Ok(match lend {
        Lend::Nothing => Lent::Nothing,
        Lend::Image { path, usage } => Lent::Image(Image::new(images.open(id, &path, usage)?)),
        Lend::Tap { name, pairs } => Lent::Tap(TapQueues::open(&name, pairs)?),
        Lend::Connect { path, wait } => Lent::Peer { path, wait },
        Lend::Listen { path } => {
            let (socket, _file) = bound::listen_at(&path)?;
            Lent::Listening { socket, _file }
        }
    })
}
