//! What is waited for on a connection: an answer, what the back-end does without saying so,
//! what it says unasked.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use outboard_protocol::Deadline;
use outboard_protocol::launch::Cause;
use outboard_protocol::wire::{Message, WireError};
use vhost::vhost_user::message::FrontendReq;

use super::super::cause::{because, cause_on_the_wire};
use super::super::limits::Wait;
use super::super::patience::Patience;
use super::{Link, spoke};

/// Between two looks at a ring whose back-end says nothing when it is done.
const LOOK: Duration = Duration::from_millis(1);

impl Link {
    /// Looks at what has come while nothing was asked.
    pub(crate) fn listen(&mut self) -> Result<()> {
        let (main, channel) = self.readable(Deadline::after(Duration::ZERO))?;
        if channel {
            self.hear()?;
        }
        if main {
            let message = self.connection.recv(self.within_a_message());
            let message = message.map_err(|error| {
                let text = match &error {
                    WireError::Closed => "the back-end closed its connection".into(),
                    WireError::Io(error) => {
                        format!("the connection to the back-end failed: {error}")
                    }
                    error => format!("the back-end broke its connection: {error}"),
                };
                because(cause_on_the_wire(&error), text)
            })?;
            bail!(
                "the back-end sent a message that nobody asked for (request {})",
                message.header.request
            );
        }
        Ok(())
    }

    /// Waits a moment for what the back-end does without saying so, and listens
    /// meanwhile; returns false when `wait` is over.
    pub(crate) fn pause(&mut self, wait: &mut Wait) -> Result<bool> {
        let moment = Deadline::after(LOOK);
        self.readable(moment.min(wait.end()))?;
        self.listen()?;
        self.mention(wait);
        self.patience.iter_mut().for_each(Patience::attend);
        Ok(!wait.end().passed())
    }

    /// Waits for the reply to `request`; serves the back-end's own requests
    /// meanwhile, since it may wait for our answer before it gives its own.
    pub(super) fn reply(&mut self, request: FrontendReq, wait: Wait) -> Result<Message> {
        let unanswered = self.unanswered.take();
        let mut wait = unanswered.map_or(wait, |other| wait.or_longer(other));
        self.patience.iter_mut().for_each(Patience::begin);
        loop {
            let told = self.patience.as_ref().map(Patience::due);
            let next = told.map_or(wait.next(), |told| told.min(wait.next()));
            let (main, channel) = self.readable(next)?;
            if channel {
                self.hear()?;
            }
            if main {
                break;
            }
            if wait.end().passed() {
                let within = wait.limit().as_secs();
                let text = format!(
                    "the back-end was silent: {request:?} was not answered within {within} s"
                );
                bail!(because(Cause::Silent, text));
            }
            self.mention(&mut wait);
            self.patience.iter_mut().for_each(Patience::attend);
        }
        let reply = self.connection.recv(self.within_a_message());
        let reply = reply.map_err(|error| match error {
            WireError::TimedOut => {
                let text = format!(
                    "the back-end was silent: its answer to {request:?} was not complete {} s \
                     after it had begun",
                    self.limits.message.as_secs()
                );
                because(Cause::Silent, text)
            }
            error => spoke(request, &error),
        })?;
        let header = reply.header;
        if !header.reply || header.need_reply || header.request != u32::from(request) {
            bail!("the back-end answered {request:?} with something else: {header:?}");
        }
        Ok(reply)
    }

    /// The end of a message that begins now.
    pub(super) fn within_a_message(&self) -> Deadline {
        Deadline::after(self.limits.message)
    }

    pub(super) fn mention(&self, wait: &mut Wait) {
        if wait.has_grown_long()
            && let Some(times) = self.long.again()
        {
            let id = &self.id;
            log::warn!("{id}: waiting for its back-end to finish its I/O{times}");
        }
    }

    pub(super) fn hear(&mut self) -> Result<()> {
        let Some(channel) = &mut self.channel else {
            return Ok(());
        };
        let end = Deadline::after(self.limits.message);
        let open = channel.serve(&mut self.notices, end);
        if !open.context("a request of the back-end's")? {
            self.channel = None;
        }
        Ok(())
    }

    /// Waits until the connection, the channel, or neither, is readable.
    pub(super) fn readable(&self, deadline: Deadline) -> Result<(bool, bool)> {
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
