//! Requests and replies on one connection: what is asked, by when it must be
//! answered, and that the answer is one to what was asked.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use outboard_protocol::Deadline;
use outboard_protocol::descriptors::NoRoom;
use outboard_protocol::wire::{Connection, Header, Message, WireError};
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};

use super::PATIENCE;
use super::channel::{Channel, Notices};

/// A connection, and what both sides agreed to use on it.
#[derive(Debug)]
pub struct Link {
    connection: Connection,
    channel: Option<Channel>,
    protocol: VhostUserProtocolFeatures,
    notices: Notices,
}

impl Link {
    /// Nothing is agreed yet.
    pub fn new(connection: Connection) -> Self {
        Self {
            connection,
            channel: None,
            protocol: VhostUserProtocolFeatures::empty(),
            notices: Notices::default(),
        }
    }

    /// From now on these protocol features are used.
    pub fn agree(&mut self, protocol: VhostUserProtocolFeatures) {
        self.protocol = protocol;
    }

    /// The protocol features in use.
    pub fn protocol(&self) -> VhostUserProtocolFeatures {
        self.protocol
    }

    /// Whether the back-end serves the configuration space.
    pub fn has_config(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::CONFIG)
    }

    /// From now on the back-end may ask on this channel.
    pub fn open(&mut self, channel: Channel) {
        self.channel = Some(channel);
    }

    /// What must be polled for input.
    pub fn fds(&self) -> (BorrowedFd<'_>, Option<BorrowedFd<'_>>) {
        (
            self.connection.as_fd(),
            self.channel.as_ref().map(|channel| channel.as_fd()),
        )
    }

    /// The notices that have come since the last call.
    pub fn take_notices(&mut self) -> Notices {
        std::mem::take(&mut self.notices)
    }

    /// Asks for something that the back-end answers in any case.
    pub fn query(&mut self, request: FrontendReq, payload: &[u8]) -> Result<Message> {
        let reply = self.query_with_fd(request, payload)?;
        without_fds(request, reply)
    }

    /// As [`Self::query`], for an answer that may bring descriptors.
    pub fn query_with_fd(&mut self, request: FrontendReq, payload: &[u8]) -> Result<Message> {
        let deadline = Deadline::after(PATIENCE);
        let header = Header::request(request.into());
        self.send(request, header, payload, &[], deadline)?;
        self.reply(request, deadline)
    }

    /// Asks for a u64.
    pub fn query_u64(&mut self, request: FrontendReq) -> Result<u64> {
        let reply = self.query(request, &[])?;
        reply.body().map_err(|error| spoke(request, &error))
    }

    /// The u64 that answers `request`, which somebody has sent before.
    pub fn answer_u64(&mut self, request: FrontendReq) -> Result<u64> {
        let reply = self.reply(request, Deadline::after(PATIENCE))?;
        let reply = without_fds(request, reply)?;
        reply.body().map_err(|error| spoke(request, &error))
    }

    /// Tells the back-end to do something, and waits until it has if it can
    /// say so (REPLY_ACK).
    pub fn command(
        &mut self,
        request: FrontendReq,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<()> {
        match self.attempt(request, payload, fds)? {
            0 => Ok(()),
            code => bail!("the back-end refused {request:?} (code {code})"),
        }
    }

    /// As [`Self::command`], for what may be refused: answers the back-end's
    /// code, 0 for success.
    pub fn attempt(
        &mut self,
        request: FrontendReq,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<u64> {
        let deadline = Deadline::after(PATIENCE);
        let header = Header::request(request.into());
        if !self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.send(request, header, payload, fds, deadline)?;
            return Ok(0);
        }
        self.send(request, header.with_need_reply(), payload, fds, deadline)?;
        let reply = self.reply(request, deadline)?;
        if !reply.fds.is_empty() {
            bail!("the back-end acknowledged {request:?} with a descriptor");
        }
        reply.body().map_err(|error| spoke(request, &error))
    }

    /// Looks at what has come while nothing was asked.
    pub fn listen(&mut self) -> Result<()> {
        let (main, channel) = self.readable(Deadline::after(std::time::Duration::ZERO))?;
        if channel {
            self.hear()?;
        }
        if main {
            let message = self.connection.recv(Deadline::after(PATIENCE));
            match message {
                Err(WireError::Closed) => bail!("the back-end closed its connection"),
                Err(WireError::Io(error)) => {
                    bail!("the connection to the back-end failed: {error}")
                }
                Err(error) => bail!("the back-end broke its connection: {error}"),
                Ok(message) => bail!(
                    "the back-end sent a message that nobody asked for (request {})",
                    message.header.request
                ),
            }
        }
        Ok(())
    }

    fn send(
        &mut self,
        request: FrontendReq,
        header: Header,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<()> {
        self.connection
            .send(header, payload, fds, deadline)
            .map_err(|error| spoke(request, &error))
    }

    /// Waits for the reply to `request`; serves the back-end's own requests
    /// meanwhile, since it may wait for our answer before it gives its own.
    fn reply(&mut self, request: FrontendReq, deadline: Deadline) -> Result<Message> {
        loop {
            let (main, channel) = self.readable(deadline)?;
            if channel {
                self.hear()?;
            }
            if main || deadline.passed() {
                break;
            }
        }
        let reply = self.connection.recv(deadline);
        let reply = reply.map_err(|error| spoke(request, &error))?;
        let header = reply.header;
        if !header.reply || header.need_reply || header.request != u32::from(request) {
            bail!("the back-end answered {request:?} with something else: {header:?}");
        }
        Ok(reply)
    }

    fn hear(&mut self) -> Result<()> {
        let Some(channel) = &mut self.channel else {
            return Ok(());
        };
        let open = channel.serve(&mut self.notices, Deadline::after(PATIENCE));
        if !open.context("a request of the back-end's")? {
            self.channel = None;
        }
        Ok(())
    }

    /// Waits until the connection, the channel, or neither, is readable.
    fn readable(&self, deadline: Deadline) -> Result<(bool, bool)> {
        let (main, channel) = self.fds();
        let mut fds = vec![PollFd::new(main, PollFlags::POLLIN)];
        fds.extend(channel.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut fds, deadline.poll_timeout()) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("waiting for the back-end"),
        }
        let is_set = |index: usize| fds.get(index).is_some_and(|fd| fd.any() == Some(true));
        Ok((is_set(0), is_set(1)))
    }
}

fn without_fds(request: FrontendReq, reply: Message) -> Result<Message> {
    if !reply.fds.is_empty() {
        bail!("the back-end answered {request:?} with a descriptor, which has none");
    }
    Ok(reply)
}

/// What became of `request` on the wire.
pub fn spoke(request: FrontendReq, error: &WireError) -> anyhow::Error {
    match error {
        WireError::Closed => {
            anyhow::anyhow!("the back-end closed its connection at {request:?}")
        }
        WireError::TimedOut => anyhow::anyhow!(
            "the back-end was silent: {request:?} was not answered within {} s",
            PATIENCE.as_secs()
        ),
        error => match NoRoom::within(error) {
            Some(no_room) => anyhow::Error::new(no_room).context(format!("{request:?}")),
            None => anyhow::anyhow!("{request:?}: {error}"),
        },
    }
}
