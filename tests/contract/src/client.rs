//! A vhost-user front-end that a test drives by hand.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use nix::sys::eventfd::EventFd;
use outboard_protocol::wire::{Connection, Header, Message, WireError};
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserConfigFlags, VhostUserInflight, VhostUserMemory,
    VhostUserVringAddr, VhostUserVringAddrFlags, VhostUserVringState,
};
use vm_memory::ByteValued;

use crate::memory::{Memory, Region, USER_OFFSET};
use crate::ring::Ring;
use crate::soon;

/// VHOST_USER_F_PROTOCOL_FEATURES.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// A connection to a back-end.
#[derive(Debug)]
pub struct Client {
    /// For what the methods here do not do.
    pub connection: Connection,
    /// Whether requests ask for their acknowledgement; legal once REPLY_ACK is
    /// negotiated, and so by [`Self::negotiate`].
    pub acknowledged: bool,
}

/// What a request without a reply of its own was answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// 0.
    Done,
    /// Another number.
    Refused,
    /// The back-end closed the connection.
    CutOff,
}

impl Client {
    /// Takes a connected socket.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            connection: Connection::new(stream),
            acknowledged: false,
        }
    }

    /// Connects to a listening back-end; waits for its socket to be there.
    ///
    /// # Errors
    /// When it is not there in time.
    pub fn connect(path: &Path) -> anyhow::Result<Self> {
        let deadline = soon();
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => return Ok(Self::new(stream)),
                Err(error) if deadline.passed() => return Err(error.into()),
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        }
    }

    /// Sends a request as it is, with or without asking for an answer.
    ///
    /// # Errors
    /// When the back-end has gone or does not read.
    pub fn send(
        &self,
        header: Header,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        self.connection.send(header, payload, fds, soon())
    }

    /// The next message from the back-end.
    ///
    /// # Errors
    /// When it has gone or is silent.
    pub fn receive(&self) -> Result<Message, WireError> {
        self.connection.recv(soon())
    }

    /// Sends a request that has a reply, and receives that.
    ///
    /// # Errors
    /// When the reply is of another request, or does not come.
    pub fn ask(&self, request: FrontendReq, payload: &[u8]) -> anyhow::Result<Message> {
        let number = request.into();
        self.send(Header::request(number), payload, &[])?;
        let reply = self.receive()?;
        ensure!(reply.header == Header::reply_to(number), "{reply:?}");
        Ok(reply)
    }

    /// Sends a request that has no reply; receives its acknowledgement, if
    /// those are negotiated.
    ///
    /// # Errors
    /// When the back-end is silent or answers something else.
    pub fn tell(
        &self,
        request: FrontendReq,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> anyhow::Result<Ack> {
        let number = request.into();
        let header = Header::request(number);
        if !self.acknowledged {
            self.send(header, payload, fds)?;
            return Ok(Ack::Done);
        }
        match self.send(header.with_need_reply(), payload, fds) {
            Ok(()) => self.acknowledgement(number),
            Err(WireError::Closed) => Ok(Ack::CutOff),
            Err(error) => Err(error.into()),
        }
    }

    /// Receives the acknowledgement of a request.
    ///
    /// # Errors
    /// When it is something else, or does not come.
    pub fn acknowledgement(&self, request: u32) -> anyhow::Result<Ack> {
        match self.receive() {
            Ok(reply) => {
                ensure!(reply.header == Header::reply_to(request), "{reply:?}");
                let zero = reply.body::<u64>()? == 0;
                Ok(if zero { Ack::Done } else { Ack::Refused })
            }
            Err(WireError::Closed) => Ok(Ack::CutOff),
            Err(error) => Err(error.into()),
        }
    }

    /// [`Self::tell`], where only success will do.
    ///
    /// # Errors
    /// When the request was refused.
    pub fn order(
        &self,
        request: FrontendReq,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> anyhow::Result<()> {
        match self.tell(request, payload, fds)? {
            Ack::Done => Ok(()),
            ack => bail!("{request:?}: {ack:?}"),
        }
    }

    /// Negotiates every protocol feature that is offered, and those of
    /// `features` that are; answers what was acknowledged.
    ///
    /// # Errors
    /// When the back-end does not play along.
    pub fn negotiate(&mut self, features: u64) -> anyhow::Result<u64> {
        let offered: u64 = self.ask(FrontendReq::GET_FEATURES, &[])?.body()?;
        ensure!(offered & PROTOCOL_FEATURES != 0, "no protocol features");
        let protocol: u64 = self.ask(FrontendReq::GET_PROTOCOL_FEATURES, &[])?.body()?;
        let set = FrontendReq::SET_PROTOCOL_FEATURES;
        self.order(set, &protocol.to_ne_bytes(), &[])?;
        self.acknowledged = protocol & (1 << 3) != 0;
        self.order(FrontendReq::SET_OWNER, &[], &[])?;
        let features = (features | PROTOCOL_FEATURES) & offered;
        self.order(FrontendReq::SET_FEATURES, &features.to_ne_bytes(), &[])?;
        Ok(features)
    }

    /// Sends the whole memory (SET_MEM_TABLE, 8 regions at most).
    ///
    /// # Errors
    /// When it is refused.
    pub fn set_mem_table(&self, memory: &Memory) -> anyhow::Result<()> {
        let regions: Vec<_> = memory.regions.iter().collect();
        match self.set_mem_regions(&regions)? {
            Ack::Done => Ok(()),
            ack => bail!("SET_MEM_TABLE: {ack:?}"),
        }
    }

    /// Sends a table of these regions (SET_MEM_TABLE).
    ///
    /// # Errors
    /// When the back-end is silent.
    pub fn set_mem_regions(&self, regions: &[&Region]) -> anyhow::Result<Ack> {
        let count = u32::try_from(regions.len())?;
        let mut payload = VhostUserMemory::new(count).as_slice().to_vec();
        for region in regions {
            payload.extend(region.described().as_slice());
        }
        let fds: Vec<_> = regions.iter().map(|region| region.as_fd()).collect();
        self.tell(FrontendReq::SET_MEM_TABLE, &payload, &fds)
    }

    /// Sends one region more (ADD_MEM_REG).
    ///
    /// # Errors
    /// When the back-end is silent.
    pub fn add_mem_reg(&self, region: &Region) -> anyhow::Result<Ack> {
        let (single, fd) = (region.single(), region.as_fd());
        self.tell(FrontendReq::ADD_MEM_REG, single.as_slice(), &[fd])
    }

    /// Takes a region away (REM_MEM_REG).
    ///
    /// # Errors
    /// When the back-end is silent.
    pub fn rem_mem_reg(&self, region: &Region) -> anyhow::Result<Ack> {
        let single = region.single();
        self.tell(FrontendReq::REM_MEM_REG, single.as_slice(), &[])
    }

    /// Sends a vring state (NUM, BASE, ENABLE).
    ///
    /// # Errors
    /// When the back-end is silent.
    pub fn vring_state(&self, request: FrontendReq, index: u32, num: u32) -> anyhow::Result<Ack> {
        let state = VhostUserVringState::new(index, num);
        self.tell(request, state.as_slice(), &[])
    }

    /// Sends the addresses of a ring.
    ///
    /// # Errors
    /// When the back-end is silent.
    pub fn vring_addr(&self, index: u32, ring: &Ring) -> anyhow::Result<Ack> {
        let [descriptors, available, used] =
            [ring.descriptors, ring.available, ring.used].map(|at| at + USER_OFFSET);
        let flags = VhostUserVringAddrFlags::empty();
        let address = VhostUserVringAddr::new(index, flags, descriptors, used, available, 0);
        self.tell(FrontendReq::SET_VRING_ADDR, address.as_slice(), &[])
    }

    /// Sends an event descriptor (KICK, CALL, ERR).
    ///
    /// # Errors
    /// When the back-end is silent.
    pub fn vring_fd(
        &self,
        request: FrontendReq,
        index: u64,
        event: &EventFd,
    ) -> anyhow::Result<Ack> {
        self.tell(request, &index.to_ne_bytes(), &[event.as_fd()])
    }

    /// Does something while the back-end does not look at a ring: that is disabled
    /// meanwhile. What becomes of enabling it again is not asked.
    ///
    /// # Errors
    /// It is not disabled.
    pub fn unseen(&self, index: u8, act: impl FnOnce()) -> anyhow::Result<()> {
        let enable = |on| self.vring_state(FrontendReq::SET_VRING_ENABLE, index.into(), on);
        ensure!(enable(0)? == Ack::Done, "queue {index} is not disabled");
        act();
        let _ = enable(1);
        Ok(())
    }

    /// Describes a ring and enables it, in the order that QEMU does it.
    ///
    /// # Errors
    /// When any part of it is refused.
    pub fn start_ring(&self, index: u8, ring: &Ring, base: u16) -> anyhow::Result<()> {
        self.describe_ring(index, ring, base)?;
        let ack = self.vring_state(FrontendReq::SET_VRING_ENABLE, index.into(), 1)?;
        ensure!(ack == Ack::Done, "queue {index}: {ack:?}");
        Ok(())
    }

    /// The same without the last step.
    ///
    /// # Errors
    /// When any part of it is refused.
    pub fn describe_ring(&self, index: u8, ring: &Ring, base: u16) -> anyhow::Result<()> {
        use FrontendReq as R;
        let number = u32::from(index);
        let steps = [
            self.vring_state(R::SET_VRING_NUM, number, ring.size.into())?,
            self.vring_state(R::SET_VRING_BASE, number, base.into())?,
            self.vring_addr(number, ring)?,
            self.vring_fd(R::SET_VRING_ERR, index.into(), &ring.err)?,
            self.vring_fd(R::SET_VRING_CALL, index.into(), &ring.call)?,
            self.vring_fd(R::SET_VRING_KICK, index.into(), &ring.kick)?,
        ];
        ensure!(steps == [Ack::Done; 6], "queue {index}: {steps:?}");
        Ok(())
    }

    /// Stops a ring; returns its base.
    ///
    /// # Errors
    /// When the reply does not come or is not one.
    pub fn stop_ring(&self, index: u8) -> anyhow::Result<u16> {
        let state = VhostUserVringState::new(index.into(), 0);
        let reply = self.ask(FrontendReq::GET_VRING_BASE, state.as_slice())?;
        let reply: VhostUserVringState = reply.body()?;
        ensure!({ reply.index } == u32::from(index), "another queue");
        Ok(u16::try_from(reply.num)?)
    }

    /// Reads `size` bytes of the configuration space.
    ///
    /// # Errors
    /// When the back-end answers with fewer or more.
    pub fn config(&self, offset: u32, size: u32) -> anyhow::Result<Vec<u8>> {
        let head = VhostUserConfig::new(offset, size, VhostUserConfigFlags::empty());
        let mut payload = head.as_slice().to_vec();
        payload.resize(payload.len() + usize::try_from(size)?, 0);
        let reply = self.ask(FrontendReq::GET_CONFIG, &payload)?;
        ensure!(reply.payload.len() == payload.len(), "{reply:?}");
        Ok(reply.payload[size_of::<VhostUserConfig>()..].to_vec())
    }

    /// Writes to the configuration space.
    ///
    /// # Errors
    /// When the back-end is silent.
    pub fn set_config(&self, offset: u32, bytes: &[u8]) -> anyhow::Result<Ack> {
        let size = u32::try_from(bytes.len())?;
        let head = VhostUserConfig::new(offset, size, VhostUserConfigFlags::empty());
        let payload = [head.as_slice(), bytes].concat();
        self.tell(FrontendReq::SET_CONFIG, &payload, &[])
    }

    /// Asks for a fresh inflight region.
    ///
    /// # Errors
    /// When there is none.
    pub fn get_inflight(
        &self,
        queues: u16,
        size: u16,
    ) -> anyhow::Result<(VhostUserInflight, OwnedFd)> {
        let asked = VhostUserInflight::new(0, 0, queues, size);
        let mut reply = self.ask(FrontendReq::GET_INFLIGHT_FD, asked.as_slice())?;
        let fd = reply.fds.pop().context("no inflight region")?;
        Ok((reply.body()?, fd))
    }

    /// Sends an inflight region back.
    ///
    /// # Errors
    /// When the back-end is silent.
    pub fn set_inflight(
        &self,
        described: &VhostUserInflight,
        fd: BorrowedFd<'_>,
    ) -> anyhow::Result<Ack> {
        self.tell(FrontendReq::SET_INFLIGHT_FD, described.as_slice(), &[fd])
    }

    /// Hands the back-end a socket for its own requests; returns the other end.
    ///
    /// # Errors
    /// When it is refused.
    pub fn backend_requests(&self) -> anyhow::Result<Connection> {
        let (ours, theirs) = UnixStream::pair()?;
        self.order(FrontendReq::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])?;
        Ok(Connection::new(ours))
    }
}
