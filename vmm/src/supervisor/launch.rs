//! From resources to processes: the machine and one back-end for each device,
//! started side by side, each with the descriptors of the launch contract
//! (PROTOCOL.md).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use outboard_protocol::Deadline;
use outboard_protocol::deadline::limits;
use outboard_protocol::launch::{
    Channel, Handover, MESSAGES_VERSION, StartFd, ToMachine, VERSION, VERSION_ENV, Whose,
};

use super::child::Child;
use super::connect::{Whom, connect_to};
use super::console::Console;
use super::host::lend::{Lent, Opened, Server};
use super::host::resources::Resources;
use super::signals::Signals;

/// The processes of one VM.
#[derive(Debug)]
pub struct Vm {
    /// The machine process.
    pub machine: Child,
    /// The socket to it.
    pub channel: Channel,
    /// Who serves each device.
    pub backends: Vec<Backend>,
}

/// Who serves one device.
#[derive(Debug)]
pub struct Backend {
    /// The device's id.
    pub id: String,
    /// The program's name, or the socket's path.
    pub name: String,
    /// Its process, if we started it.
    pub child: Option<Child>,
}

/// Starts everything. `None`: a signal came while an external back-end was
/// waited for.
///
/// # Errors
/// A message that names what could not be started; nothing is left running.
pub fn launch(
    resources: &mut Resources,
    console: &mut Console,
    signals: &Signals,
) -> Result<Option<Vm>> {
    resources.rewind().context("reading the kernel again")?;
    // External back-ends and peers first: with none there, nothing is started.
    let Some(mut sockets) = connect(resources, signals)? else {
        return Ok(None);
    };
    let mut vm = start_machine(resources, console)?;
    for (opened, socket) in resources.devices.iter().zip(&mut sockets) {
        let device = &opened.spec;
        let asked = matches!(opened.server, Server::Socket { .. });
        let (backend, front) = match &opened.server {
            Server::Socket { path, .. } => {
                let name = path.display().to_string();
                (backend(&device.id, name, None), socket.take())
            }
            Server::Program {
                program,
                args,
                lent,
            } => {
                let (front, back) = Handover::of(&device.kind)
                    .sockets()
                    .with_context(|| format!("{}: making a socket", device.id))?;
                let child = copy(lent, socket.take())
                    .map_err(anyhow::Error::from)
                    .and_then(|lent| {
                        let environment = resources.logging.environment(Some(&device.id));
                        start_backend(program, args, environment, &back, &lent)
                    })
                    .with_context(|| format!("{}: starting {}", device.id, program.name()))?;
                let name = program.name().to_owned();
                (backend(&device.id, name, Some(child)), Some(front.into()))
            }
        };
        vm.backends.push(backend);
        if let Some(front) = front {
            attach(&vm.channel, &device.id, &front, asked, opened.whose);
        }
    }
    Ok(Some(vm))
}

fn backend(id: &str, name: String, child: Option<Child>) -> Backend {
    Backend {
        id: id.to_owned(),
        name,
        child,
    }
}

/// Connects to every external back-end, and to every peer that listens.
fn connect(resources: &Resources, signals: &Signals) -> Result<Option<Vec<Option<OwnedFd>>>> {
    let mut sockets = Vec::new();
    for Opened { spec, server, .. } in &resources.devices {
        let (whom, path, wait) = match server {
            Server::Socket { path, wait } => (Whom::BackEnd, path, wait),
            Server::Program {
                lent: Lent::Peer { path, wait },
                ..
            } => (Whom::Peer, path, wait),
            Server::Program { .. } => {
                sockets.push(None);
                continue;
            }
        };
        match connect_to(&spec.id, whom, path, *wait, signals)? {
            None => return Ok(None),
            connected => sockets.push(connected),
        }
    }
    Ok(Some(sockets))
}

fn start_machine(resources: &Resources, console: &mut Console) -> Result<Vm> {
    let (channel, theirs) = Channel::pair().context("a socket pair")?;
    let args = ["machine".to_owned()];
    let environment = resources.logging.environment(None);
    let machine = Child::start(&resources.program, &args, &environment, &[theirs.as_fd()])
        .context("starting the machine process")?;
    drop(theirs);
    let ends = console.ends().context("the console")?;
    let mut fds = vec![
        (StartFd::Kvm, resources.kvm.as_fd()),
        (StartFd::Kernel, resources.kernel.as_fd()),
        (StartFd::ConsoleOut, ends.output.as_fd()),
    ];
    let initrd = resources.initrd.as_ref().map(File::as_fd);
    fds.extend(initrd.map(|fd| (StartFd::Initrd, fd)));
    let input = ends.input.as_ref().map(OwnedFd::as_fd);
    fds.extend(input.map(|fd| (StartFd::ConsoleIn, fd)));
    let (names, fds): (_, Vec<BorrowedFd<'_>>) = fds.into_iter().unzip();
    let start = ToMachine::Start {
        version: MESSAGES_VERSION,
        machine: resources.machine.clone(),
        devices: resources
            .devices
            .iter()
            .map(|opened| opened.spec.clone())
            .collect(),
        fds: names,
    };
    // A machine that is gone already is found by its descriptor, with how it
    // ended; so a failure to send says nothing more.
    let _ = channel.send(&start, &fds, Deadline::after(limits::MESSAGE));
    Ok(Vm {
        machine,
        channel,
        backends: Vec::new(),
    })
}

/// What a program is lent, to be given away; `peer` is the connection to its.
fn copy(lent: &Lent, peer: Option<OwnedFd>) -> io::Result<Vec<OwnedFd>> {
    match lent {
        Lent::Fds(fds) => fds.iter().map(OwnedFd::try_clone).collect(),
        Lent::Tap(tap) => tap.copies(),
        Lent::Listening(listener) => Ok(vec![listener.copy()?]),
        Lent::Peer { .. } => Ok(peer.into_iter().collect()),
    }
}

fn start_backend(
    program: &super::host::program::Program,
    args: &[String],
    mut environment: Vec<(&str, String)>,
    socket: &OwnedFd,
    lent: &[OwnedFd],
) -> Result<Child> {
    let mut fds = vec![socket.as_fd()];
    fds.extend(lent.iter().map(OwnedFd::as_fd));
    environment.push((VERSION_ENV, VERSION.to_string()));
    Ok(Child::start(program, args, &environment, &fds)?)
}

/// Hands a connection to the machine; `asked`: its back-end has been asked for
/// its features. A failure shows as the machine's end.
fn attach(channel: &Channel, id: &str, socket: &OwnedFd, asked: bool, whose: Whose) {
    let message = ToMachine::Attach {
        device: id.to_owned(),
        session: 1,
        asked,
        whose,
    };
    let _ = channel.send(
        &message,
        &[socket.as_fd()],
        Deadline::after(limits::MESSAGE),
    );
}
