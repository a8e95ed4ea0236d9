//! The machine process and the line to it: the supervisor's end of their socket.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::poll::PollFlags;
use outboard_protocol::Deadline;
use outboard_protocol::launch::{Channel, FromMachine, ToMachine};

use super::event::Event;
use super::machine;
use crate::supervisor::process::child::Child;
use crate::supervisor::say::say;

/// The machine process and the socket to it.
#[derive(Debug)]
pub struct Machine {
    /// Its process.
    pub child: Child,
    /// Until it is closed, or brings what no machine says.
    channel: Option<Channel>,
    /// What the socket has not taken yet: a machine that is being built reads nothing.
    unsent: VecDeque<(ToMachine, Vec<OwnedFd>)>,
}

impl Machine {
    /// A process that has just been started, and our end of its socket.
    pub fn new(child: Child, channel: Channel) -> Self {
        Self {
            child,
            channel: Some(channel),
            unsent: VecDeque::new(),
        }
    }

    /// What is polled of its socket.
    pub fn watched(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let flags = match self.unsent.is_empty() {
            true => PollFlags::POLLIN,
            false => PollFlags::POLLIN | PollFlags::POLLOUT,
        };
        let channel = self.channel.as_ref()?;
        Some((channel.as_fd(), flags))
    }

    /// Sends this, now or when the machine reads. One that is gone is found by its
    /// pidfd, with how it ended; so a failure to send says nothing more.
    pub fn send(&mut self, message: ToMachine, fds: Vec<OwnedFd>) {
        self.unsent.push_back((message, fds));
        self.flush();
    }

    /// Sends what the socket takes.
    fn flush(&mut self) {
        let Some(channel) = &self.channel else {
            self.unsent.clear();
            return;
        };
        while let Some((message, fds)) = self.unsent.front() {
            let fds: Vec<_> = fds.iter().map(OwnedFd::as_fd).collect();
            let sent = channel.send(message, &fds, Deadline::after(Duration::ZERO));
            if matches!(&sent, Err(error) if error.kind() == io::ErrorKind::TimedOut) {
                return;
            }
            self.unsent.pop_front();
        }
    }

    /// All that it has sent, after what it had no room for before.
    pub fn listen(&mut self) -> Vec<Event> {
        self.flush();
        let mut events = Vec::new();
        while let Some(channel) = &self.channel {
            match channel.recv::<FromMachine>(Deadline::after(Duration::ZERO)) {
                Ok(Some((message, _))) => events.push(Event::Said(message)),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => break,
                closed_or_nonsense => {
                    if let Err(error) = closed_or_nonsense {
                        say(&format!("the machine process sent nonsense: {error}"));
                    }
                    self.channel = None;
                    events.push(Event::Machine(machine::Event::HungUp));
                }
            }
        }
        events
    }
}
