//! Requests and replies on one connection: what is asked, by when it must be
//! answered, and whether the answer belongs to the question.

mod waiting;

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Result, anyhow, bail};
use outboard_log::Rarely;
use outboard_protocol::descriptors::NoRoom;
use outboard_protocol::launch::Cause;
use outboard_protocol::wire::{Connection, Header, Message, WireError};
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures, VhostUserVringState};
use vm_memory::ByteValued;
use vmm_sys_util::eventfd::EventFd;

use super::cause::{because, cause_on_the_wire};
use super::channel::{Channel, Notices};
use super::limits::{Limits, Wait, may_need_io};
use super::patience::Patience;
use crate::machine::kvm::irq::descriptor;

/// Something that the back-end is to do: the request, its payload and its descriptors.
pub(super) type Command<'a> = (FrontendReq, &'a [u8], &'a [BorrowedFd<'a>]);

/// The first of several commands that a back-end does not obey.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal {
    /// Its place among them.
    pub(super) at: usize,
    /// What it is.
    pub(super) request: FrontendReq,
    code: u64,
}

impl Refusal {
    /// What is said of it.
    pub(super) fn error(self) -> anyhow::Error {
        refused(self.request, self.code)
    }
}

/// A connection, and what both sides agreed to use on it.
#[derive(Debug)]
pub(crate) struct Link {
    connection: Connection,
    channel: Option<Channel>,
    protocol: VhostUserProtocolFeatures,
    notices: Notices,
    /// What the device is called in messages.
    id: String,
    limits: Limits,
    /// What was sent without asking for an answer may need I/O, and a back-end
    /// obeys in order: the next answer may have to wait for it.
    unanswered: Option<Wait>,
    /// Who is told that an answer, or what follows it, is waited for.
    patience: Option<Patience>,
    /// What a back-end signals that has answered that a ring is stopped, and then completes
    /// what it had taken; `None`: it does not.
    late_calls: Option<EventFd>,
    /// That a wait for I/O has grown long; a guest can cause it, so it is
    /// rate-limited: logged at powers of two.
    long: Rarely,
}

impl Link {
    /// Nothing is agreed yet.
    pub(crate) fn new(connection: Connection) -> Self {
        Self {
            connection,
            channel: None,
            protocol: VhostUserProtocolFeatures::empty(),
            notices: Notices::default(),
            id: String::new(),
            limits: Limits::default(),
            unanswered: None,
            patience: None,
            late_calls: None,
            long: Rarely::new(),
        }
    }

    /// Waits no longer than this from now on.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// How long it waits.
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// The back-end may answer that a ring is stopped before it is.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub(crate) fn expect_late_calls(&mut self) -> Result<()> {
        self.late_calls = Some(EventFd::new(nix::libc::EFD_CLOEXEC)?);
        Ok(())
    }

    /// While an answer is waited for, that is told.
    pub(crate) fn set_patience(&mut self, patience: Option<Patience>) {
        self.patience = patience;
    }

    /// It is this device's.
    pub(crate) fn set_id(&mut self, id: &str) {
        id.clone_into(&mut self.id);
    }

    /// From now on these protocol features are used.
    pub(crate) fn agree(&mut self, protocol: VhostUserProtocolFeatures) {
        self.protocol = protocol;
    }

    /// The protocol features in use.
    pub(crate) fn protocol(&self) -> VhostUserProtocolFeatures {
        self.protocol
    }

    /// Whether the back-end serves the configuration space.
    pub(crate) fn has_config(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::CONFIG)
    }

    /// From now on the back-end may ask on this channel.
    pub(crate) fn open(&mut self, channel: Channel) {
        self.channel = Some(channel);
    }

    /// What must be polled for input.
    pub(crate) fn fds(&self) -> (BorrowedFd<'_>, Option<BorrowedFd<'_>>) {
        (
            self.connection.as_fd(),
            self.channel.as_ref().map(|channel| channel.as_fd()),
        )
    }

    /// The notices that have come since the last call.
    pub(crate) fn take_notices(&mut self) -> Notices {
        std::mem::take(&mut self.notices)
    }

    /// Asks for what [`Self::answer_u64`] waits for.
    pub(super) fn ask(&mut self, request: FrontendReq) -> Result<()> {
        self.send(request, Header::request(request.into()), &[], &[])
    }

    /// Asks for something that the back-end answers in any case.
    pub(crate) fn query(&mut self, request: FrontendReq, payload: &[u8]) -> Result<Message> {
        let wait = self.limits.wait_for(request);
        let header = Header::request(request.into());
        self.send(request, header, payload, &[])?;
        let reply = self.reply(request, wait)?;
        without_fds(request, reply)
    }

    /// Stops these rings: all are asked before the first is answered. Returns where each
    /// goes on.
    ///
    /// A back-end may complete requests after its answer. libvhost-user, which closes a
    /// ring's call when it stops that, takes such a call for a fault of its own and ends the
    /// session. So it is given another call at once: its thread reads the next message
    /// before it looks at what it has to complete.
    pub(super) fn stop(&mut self, queues: &[u16]) -> Result<Vec<VhostUserVringState>> {
        let (request, also) = (FrontendReq::GET_VRING_BASE, FrontendReq::SET_VRING_CALL);
        let late = self.late_calls.take();
        for queue in queues {
            let state = VhostUserVringState::new((*queue).into(), 0);
            let header = Header::request(request.into());
            self.send(request, header, state.as_slice(), &[])?;
            if let Some(late) = &late {
                let (header, queue) = (self.acknowledged(also), u64::from(*queue));
                self.send(also, header, &queue.to_ne_bytes(), &[descriptor(late)])?;
            }
        }
        let mut states = Vec::new();
        for _ in queues {
            let answer = self.reply(request, self.limits.wait_for(request))?;
            let answer = without_fds(request, answer)?;
            states.push(answer.body().map_err(|error| spoke(request, &error))?);
            if late.is_some() && self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
                // Nothing depends on whether it can be told.
                self.acknowledgement(also, self.limits.wait_for(also))?;
            }
        }
        self.late_calls = late;
        Ok(states)
    }

    /// As [`Self::query`], for an answer that may bring descriptors.
    pub(crate) fn query_with_fd(
        &mut self,
        request: FrontendReq,
        payload: &[u8],
    ) -> Result<Message> {
        let wait = self.limits.wait_for(request);
        let header = Header::request(request.into());
        self.send(request, header, payload, &[])?;
        self.reply(request, wait)
    }

    /// Asks for a u64.
    pub(crate) fn query_u64(&mut self, request: FrontendReq) -> Result<u64> {
        let reply = self.query(request, &[])?;
        reply.body().map_err(|error| spoke(request, &error))
    }

    /// The u64 that answers `request`, which somebody has sent before.
    pub(crate) fn answer_u64(&mut self, request: FrontendReq) -> Result<u64> {
        let reply = self.reply(request, self.limits.wait_for(request))?;
        let reply = without_fds(request, reply)?;
        reply.body().map_err(|error| spoke(request, &error))
    }

    /// Tells the back-end to do something, and waits until it has if it can
    /// say so (REPLY_ACK).
    pub(crate) fn command(
        &mut self,
        request: FrontendReq,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<()> {
        match self.attempt(request, payload, fds)? {
            0 => Ok(()),
            code => Err(refused(request, code)),
        }
    }

    /// As [`Self::command`] of each, in this order, but waits for the answers together.
    /// What follows one that was refused may have been obeyed.
    pub(super) fn commands(&mut self, commands: &[Command<'_>]) -> Result<Option<Refusal>> {
        // A back-end reads no more while its answers fill the socket.
        const AT_ONCE: usize = 60;
        for (start, commands) in (0..).step_by(AT_ONCE).zip(commands.chunks(AT_ONCE)) {
            self.begin(commands)?;
            if let Some(refusal) = self.acknowledgements(commands)? {
                let at = refusal.at.saturating_add(start);
                return Ok(Some(Refusal { at, ..refusal }));
            }
        }
        Ok(None)
    }

    /// As [`Self::commands`], all of which are to be obeyed.
    pub(super) fn obey(&mut self, commands: &[Command<'_>]) -> Result<()> {
        self.commands(commands)?
            .map_or(Ok(()), |refusal| Err(refusal.error()))
    }

    /// Sends these, and waits for no answer: [`Self::acknowledgements`].
    pub(super) fn begin(&mut self, commands: &[Command<'_>]) -> Result<()> {
        let acknowledged = self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);
        for (request, payload, fds) in commands {
            let header = self.acknowledged(*request);
            self.send(*request, header, payload, fds)?;
            if !acknowledged && may_need_io(*request) {
                self.unanswered = Some(self.limits.wait_for(*request));
            }
        }
        Ok(())
    }

    /// Waits until what was begun is done.
    pub(super) fn acknowledgements(&mut self, commands: &[Command<'_>]) -> Result<Option<Refusal>> {
        let mut refused = None;
        if self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            for (at, (request, ..)) in commands.iter().enumerate() {
                let request = *request;
                let code = self.acknowledgement(request, self.limits.wait_for(request))?;
                if code != 0 {
                    refused = refused.or(Some(Refusal { at, request, code }));
                }
            }
        }
        Ok(refused)
    }

    /// As [`Self::command`], for what may be refused: returns the back-end's
    /// code, 0 for success.
    pub(crate) fn attempt(
        &mut self,
        request: FrontendReq,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<u64> {
        let wait = self.limits.wait_for(request);
        let header = Header::request(request.into());
        if !self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.send(request, header, payload, fds)?;
            if may_need_io(request) {
                self.unanswered = Some(wait);
            }
            return Ok(0);
        }
        self.send(request, header.with_need_reply(), payload, fds)?;
        self.acknowledgement(request, wait)
    }

    /// The header of a request that is to be acknowledged, if the back-end can.
    fn acknowledged(&self, request: FrontendReq) -> Header {
        let header = Header::request(request.into());
        match self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            true => header.with_need_reply(),
            false => header,
        }
    }

    /// The code that answers a `request` that was to be acknowledged.
    fn acknowledgement(&mut self, request: FrontendReq, wait: Wait) -> Result<u64> {
        let reply = self.reply(request, wait)?;
        if !reply.fds.is_empty() {
            bail!("the back-end acknowledged {request:?} with a descriptor");
        }
        reply.body().map_err(|error| spoke(request, &error))
    }

    fn send(
        &mut self,
        request: FrontendReq,
        header: Header,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<()> {
        // A back-end that still waits for its I/O reads nothing meanwhile.
        let mut end = self.within_a_message();
        end = self.unanswered.map_or(end, |wait| wait.end().max(end));
        let sent = self.connection.send(header, payload, fds, end);
        sent.map_err(|error| match error {
            WireError::TimedOut => {
                let within = self.limits.message.as_secs();
                let text = format!(
                    "the back-end was silent: it did not read {request:?} within {within} s"
                );
                because(Cause::Silent, text)
            }
            error => spoke(request, &error),
        })
    }
}

/// What is said of a back-end that does not obey.
fn refused(request: FrontendReq, code: u64) -> anyhow::Error {
    anyhow!("the back-end refused {request:?} (code {code})")
}

fn without_fds(request: FrontendReq, reply: Message) -> Result<Message> {
    if !reply.fds.is_empty() {
        bail!("the back-end answered {request:?} with a descriptor, which has none");
    }
    Ok(reply)
}

/// What became of `request` on the wire.
pub(crate) fn spoke(request: FrontendReq, error: &WireError) -> anyhow::Error {
    if let Some(no_room) = NoRoom::within(error) {
        return anyhow::Error::new(no_room).context(format!("{request:?}"));
    }
    let text = match error {
        WireError::Closed => format!("the back-end closed its connection at {request:?}"),
        error => format!("{request:?}: {error}"),
    };
    because(cause_on_the_wire(error), text)
}
