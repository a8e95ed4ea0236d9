//! One device, opened: its program, and what that is lent. Whatever its kind, there
//! are descriptors from here on, and no path but those of sockets to connect to.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use outboard_line::Line;
use outboard_line::bound::{self, SocketFile};
use outboard_line::rendezvous::Way;
use outboard_protocol::launch::{self, SessionNumber, Whose};

use super::connect::Whom;
use super::fence::{Fence, Image};
use super::image::Images;
use super::program::Program;
use super::tap::TapQueues;
use crate::supervisor::api::model::SwapRequest;
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
    /// A second process waits beside the one that serves.
    pub(crate) standby: bool,
    /// By which it was opened.
    pub(crate) plan: Plan,
    /// The last program that was started for it, and what that is lent: both stay while it
    /// is served at a socket.
    pub(crate) home: Option<(Plan, Rc<Lent>)>,
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
        lent: Rc<Lent>,
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

impl Server {
    /// What it is called: the program's name, or the socket's path.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Program { program, .. } => program.name().to_owned(),
            Self::Socket { path, .. } => path.display().to_string(),
        }
    }

    /// Whether it is a program that is lent an image.
    pub(crate) fn lends_image(&self) -> bool {
        self.image().is_some()
    }

    /// The image that it is lent.
    pub(crate) fn image(&self) -> Option<&Image> {
        let Self::Program { lent, .. } = self else {
            return None;
        };
        match &**lent {
            Lent::Image(image) => Some(image),
            _ => None,
        }
    }

    /// Whether it must be told to wait: as it starts it sets up what it is lent, or has a
    /// peer that serves one.
    pub(crate) fn must_wait(&self) -> bool {
        let Self::Program { lent, .. } = self else {
            return false;
        };
        matches!(
            **lent,
            Lent::Tap(_) | Lent::Listening { .. } | Lent::Peer { .. }
        )
    }

    /// Whether its process is ours.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Self::Program { .. })
    }

    /// Who must be there before it can begin, where, and how long to wait for them.
    pub(crate) fn sought(&self) -> Option<(Whom, &Path, Wait)> {
        match self {
            Self::Socket { path, wait } => Some((Whom::BackEnd, path, *wait)),
            Self::Program { lent, .. } => match &**lent {
                Lent::Peer { path, wait } => Some((Whom::Peer, path, *wait)),
                _ => None,
            },
        }
    }
}

impl Lent {
    /// What a back-end is given; `peer` is the connection to its peer. One that waits has
    /// none yet, and is given a socket in its place that is not connected.
    ///
    /// # Errors
    /// Those of fcntl(2) and socket(2).
    pub(crate) fn give(&self, peer: Option<OwnedFd>) -> io::Result<Vec<OwnedFd>> {
        match self {
            Self::Nothing => Ok(Vec::new()),
            Self::Image(image) => Ok(vec![image.share()?]),
            Self::Tap(tap) => tap.copies(),
            Self::Listening { socket, .. } => Ok(vec![socket.try_clone()?.into()]),
            Self::Peer { .. } => Ok(vec![peer.map_or_else(unconnected, Ok)?]),
        }
    }

    /// The image once more, as a description that is the back-end's of this session
    /// alone, and its fence, if there must be one; `None`: there is no image.
    ///
    /// # Errors
    /// Those of [`Image::lend`].
    pub(crate) fn apart(
        &self,
        session: SessionNumber,
        whose: Whose,
    ) -> io::Result<Option<(OwnedFd, Option<Fence>)>> {
        match self {
            Self::Image(image) => image.lend(session, whose == Whose::Own).map(Some),
            _ => Ok(None),
        }
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

/// A stream socket that nobody has connected.
fn unconnected() -> io::Result<OwnedFd> {
    let (family, flags) = (AddressFamily::Unix, SockFlag::SOCK_CLOEXEC);
    Ok(socket(family, SockType::Stream, flags, None)?)
}

/// Opens what a device needs; `images` are those of its VM.
///
/// # Errors
/// A message that names the option, the device and the thing, and says what to do.
pub(crate) fn open(plan: Plan, images: &mut Images) -> Result<Opened> {
    with(plan, None, images)
}

/// The same device, served as is wanted instead; what it was lent is kept where that does
/// not change.
///
/// # Errors
/// A message that says what cannot be had, and what to do.
pub(crate) fn instead(
    former: &Opened,
    wanted: &SwapRequest,
    images: &mut Images,
) -> Result<Opened> {
    let home = former.home.as_ref();
    let plan = former.plan.with(home.map(|(plan, _)| plan), wanted);
    with(plan.map_err(anyhow::Error::msg)?, home, images)
}

fn with(plan: Plan, home: Option<&(Plan, Rc<Lent>)>, images: &mut Images) -> Result<Opened> {
    let option = plan.option;
    let id = &plan.spec.id;
    let (server, home) = match &plan.served_by {
        ServedBy::Socket { path, wait } => {
            let (path, wait) = (path.clone(), *wait);
            (Server::Socket { path, wait }, home.cloned())
        }
        ServedBy::Program {
            executable,
            lend,
            args,
        } => {
            let named = || format!("--{option} {id}");
            let program = program(executable).with_context(named)?;
            let same = home.filter(|(home, _)| home.lends() == Some(lend));
            let lent = match same {
                Some((_, lent)) => Rc::clone(lent),
                None => Rc::new(lent(lend.clone(), id, images).with_context(named)?),
            };
            let server = Server::Program {
                program,
                args: args.clone(),
                lent: Rc::clone(&lent),
            };
            (server, Some((plan.clone(), lent)))
        }
    };
    Ok(Opened {
        spec: plan.spec.clone(),
        whose: plan.served_by.whose(),
        server,
        on_failure: plan.on_failure,
        standby: plan.standby,
        plan,
        home,
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
        Lend::Image { path, usage } => Lent::Image(Image::claimed(images.open(id, &path, usage)?)),
        Lend::Tap { name, pairs } => Lent::Tap(TapQueues::open(&name, pairs)?),
        Lend::Connect { path, wait } => Lent::Peer { path, wait },
        Lend::Listen { path } => {
            let (socket, _file) = bound::listen_at(&path)?;
            Lent::Listening { socket, _file }
        }
    })
}

#[cfg(test)]
impl Opened {
    /// A device of ours whose program was opened by the caller.
    pub(crate) fn served_by(
        spec: launch::Device,
        program: Program,
        args: Vec<String>,
        lent: Lent,
    ) -> Rc<Self> {
        let executable = Executable::Own {
            name: "outboard-blk",
            threads: false,
        };
        let plan = Plan {
            option: "disk",
            spec: spec.clone(),
            served_by: ServedBy::Program {
                executable,
                lend: Lend::Nothing,
                args: args.clone(),
            },
            on_failure: OnFailure::default(),
            standby: false,
        };
        let lent = Rc::new(lent);
        Rc::new(Self {
            spec,
            whose: Whose::Own,
            on_failure: plan.on_failure,
            standby: plan.standby,
            home: Some((plan.clone(), Rc::clone(&lent))),
            plan,
            server: Server::Program {
                program,
                args,
                lent,
            },
        })
    }
}
