//! The machine's main loop: what the supervisor says, what the devices tell,
//! and the end of the run.
//!
//! ```text
//! start ──> built ──(every device attached once)──> running ──> ended
//!             │                                     ▲ │  │
//!             │                              resume │ ▼  │
//!             │                                  paused ──────> ended
//!             │                                          │
//!             └────── stop, or the supervisor gone ──────┴────> ended
//! ```
//! A pause that comes before the guest runs holds its first instruction back. One
//! that is not over yet is called off by a resume; each is answered again though
//! there is nothing left to do. What the guest was doing itself, and a stop, end a
//! run that is paused as any other.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_protocol::Deadline;
use outboard_protocol::deadline::limits;
use outboard_protocol::launch::{
    self, Channel, Ending, FromMachine, Replaces, Restored, ToMachine,
};

use super::frontend::{Connected, Session as Frontend};
use super::heap;
use super::post::Newcomer;
use super::threads::{KICK_AGAIN, Threads};
use super::vm::Machine;

/// Runs a machine for the supervisor at the other end of `socket`, and tells
/// it how that ended.
pub fn run(socket: OwnedFd) -> ExitCode {
    heap::share();
    let channel = Channel::new(socket);
    let Err(error) = serve(&channel) else {
        return ExitCode::SUCCESS;
    };
    let failed = FromMachine::Failed {
        error: format!("{error:#}"),
    };
    if send(&channel, &failed, limits::LAG).is_err() {
        // Nobody is left to send it to.
        log::error!("{error:#}");
    }
    ExitCode::FAILURE
}

fn serve(channel: &Channel) -> Result<()> {
    let Some(((spec, devices), fds)) = receive_start(channel)? else {
        return Ok(());
    };
    let machine = Machine::build(&spec, &devices, fds)?;
    let mut session = Session {
        channel,
        awaited: machine.devices().ids().map(str::to_owned).collect(),
        machine,
        threads: None,
        gone: false,
    };
    let result = session.until_the_end();
    session.finish(result)
}

type Start = (
    (launch::Machine, Vec<launch::Device>),
    BTreeMap<launch::StartFd, OwnedFd>,
);

/// The first message; `None` when the supervisor has gone.
fn receive_start(channel: &Channel) -> Result<Option<Start>> {
    let received = channel
        .recv::<ToMachine>(Deadline::after(limits::MESSAGE))
        .context("receiving the start message")?;
    let Some((message, descriptors)) = received else {
        return Ok(None);
    };
    let ToMachine::Start {
        version,
        machine,
        devices,
        fds,
    } = message
    else {
        bail!("the first message was not the start message");
    };
    if version != launch::MESSAGES_VERSION {
        bail!(
            "the supervisor speaks version {version} of the messages, this machine \
             version {}: install both from one release",
            launch::MESSAGES_VERSION
        );
    }
    let fds = launch::sort_fds(&fds, descriptors).context("the start message")?;
    Ok(Some(((machine, devices), fds)))
}

fn send(channel: &Channel, message: &FromMachine, wait: Duration) -> std::io::Result<()> {
    channel.send(message, &[], Deadline::after(wait))
}

/// A machine and whom it talks to.
struct Session<'a> {
    channel: &'a Channel,
    machine: Machine,
    /// The devices that have never been attached.
    awaited: BTreeSet<String>,
    /// Once it runs.
    threads: Option<Threads>,
    /// The supervisor has gone.
    gone: bool,
}

impl Session<'_> {
    fn until_the_end(&mut self) -> Result<()> {
        self.start_if_attached()?;
        while self.machine.end().get().is_none() {
            let mut fds = [
                PollFd::new(self.machine.end().as_fd(), PollFlags::POLLIN),
                PollFd::new(self.machine.devices().events().as_fd(), PollFlags::POLLIN),
                PollFd::new(self.channel.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.machine.gate().as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, self.kick()) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno).context("waiting for the supervisor"),
            }
            let [_, events, channel, _] = fds.map(|fd| fd.any() == Some(true));
            if self.machine.gate().all_are_away() {
                self.send(&FromMachine::Paused)?;
            }
            if events {
                self.pass_on()?;
            }
            if channel {
                self.obey()?;
            }
        }
        Ok(())
    }

    /// Kicks vCPUs that are waited for; returns how long to wait before they are
    /// kicked again.
    fn kick(&self) -> PollTimeout {
        match (&self.threads, self.machine.gate().is_awaited()) {
            (Some(threads), true) => {
                threads.kick();
                Deadline::after(KICK_AGAIN).poll_timeout()
            }
            _ => PollTimeout::NONE,
        }
    }

    /// Starts the guest when every device has had its first attach.
    fn start_if_attached(&mut self) -> Result<()> {
        if self.threads.is_none() && self.awaited.is_empty() {
            self.threads = Some(self.machine.start()?);
            self.send(&FromMachine::Running)?;
        }
        Ok(())
    }

    /// Sends the supervisor what the devices tell.
    fn pass_on(&mut self) -> Result<()> {
        for message in self.machine.devices().events().take() {
            match &message {
                FromMachine::Attached { device, .. } => {
                    self.awaited.remove(device);
                }
                FromMachine::Failed { error } => bail!("{error}"),
                _ => {}
            }
            self.send(&message)?;
        }
        self.start_if_attached()
    }

    /// One message from the supervisor, or its end.
    fn obey(&mut self) -> Result<()> {
        let received = self
            .channel
            .recv::<ToMachine>(Deadline::after(Duration::ZERO))
            .context("receiving from the supervisor")?;
        match received {
            None => {
                self.gone = true;
                self.machine.end().set(Ending::Stopped);
            }
            Some((ToMachine::Stop, _)) => self.machine.end().set(Ending::Stopped),
            Some((ToMachine::Pause, _)) => self.machine.gate().close(),
            Some((ToMachine::Resume, _)) => {
                self.machine.gate().open();
                self.send(&FromMachine::Resumed)?;
            }
            Some((ToMachine::Start { .. }, _)) => bail!("a second start message"),
            Some((of_a_device, fds)) => self.see_to_device(of_a_device, fds)?,
        }
        Ok(())
    }

    /// A message about one device.
    fn see_to_device(&self, message: ToMachine, mut fds: Vec<OwnedFd>) -> Result<()> {
        let devices = self.machine.devices();
        match message {
            ToMachine::Attach {
                device,
                session: number,
                asked,
                whose,
                restored,
            } => {
                let stream = connection(&device, &mut fds)?;
                let newcomer = Newcomer {
                    number,
                    session: frontend(stream, asked).of(whose),
                    restored,
                    replaces: None,
                };
                devices.attach(&device, newcomer);
            }
            ToMachine::Prepare {
                device,
                session: number,
                asked,
                whose,
                replaces,
            } => {
                let stream = connection(&device, &mut fds)?;
                let newcomer = Newcomer {
                    number,
                    session: frontend(stream, asked).of(whose),
                    // It is told when it takes over.
                    restored: Restored::Nothing,
                    replaces,
                };
                devices.prepare(&device, newcomer);
            }
            ToMachine::HandBack { device, session } => devices.hand_back(&device, session),
            ToMachine::Promote {
                device,
                session,
                restored,
                resizes,
            } => {
                let replaces = Replaces { restored, resizes };
                devices.promote(&device, session, replaces);
            }
            ToMachine::Vacant { device, session } => devices.is_vacant(&device, session),
            ToMachine::Start { .. } | ToMachine::Pause | ToMachine::Resume | ToMachine::Stop => {}
        }
        Ok(())
    }

    /// Stops everything and tells how the run ended.
    fn finish(mut self, result: Result<()>) -> Result<()> {
        if result.is_err() {
            self.machine.end().set(Ending::Stopped);
        }
        let stopped = match self.threads.take() {
            Some(threads) => threads.stop(),
            None => Ok(()),
        };
        // The end is told before the sessions are: a back-end may be slow.
        let told = result.and_then(|()| {
            let ending = self.machine.end().get().cloned();
            let ending = ending.context("the run is over without a reason")?;
            self.send(&FromMachine::Ended { ending })
        });
        self.machine.stop_devices();
        told.and(stopped)
    }

    /// Sends a message to the supervisor; that it has gone is not an error but an
    /// end.
    fn send(&mut self, message: &FromMachine) -> Result<()> {
        if self.gone {
            return Ok(());
        }
        // The last word waits for less than what waits for our end.
        let wait = match message {
            FromMachine::Ended { .. } => limits::LAG,
            _ => limits::MESSAGE,
        };
        match send(self.channel, message, wait) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                self.gone = true;
                self.machine.end().set(Ending::Stopped);
                Ok(())
            }
            result => result.context("sending to the supervisor"),
        }
    }
}

/// A front-end on a connection; whether its back-end was `asked` for its features.
fn frontend(stream: UnixStream, asked: bool) -> Frontend<Connected> {
    match asked {
        true => Frontend::asked(stream),
        false => Frontend::new(stream),
    }
}

/// The one connection that comes with an attach of this device.
fn connection(device: &str, fds: &mut Vec<OwnedFd>) -> Result<UnixStream> {
    match (fds.pop(), fds.is_empty()) {
        (Some(fd), true) => Ok(UnixStream::from(fd)),
        _ => bail!("an attach of {device} without exactly one connection"),
    }
}
