//! The messages of a walk, and whether each is answered as it should be.

use anyhow::{Result, bail, ensure};
use outboard_protocol::wire::Header;
use vhost::vhost_user::message::{
    FrontendReq as R, VhostUserConfig, VhostUserConfigFlags, VhostUserProtocolFeatures as Protocol,
    VhostUserVringState,
};
use vm_memory::ByteValued;

use super::{CONFIG, SIZE, Walk};
use crate::client::Ack;
use crate::memory::Region;
use crate::model::{Dice, Step};
use crate::ring::fresh_event;
use crate::traffic::Traffic;

impl<T: Traffic> Walk<'_, T> {
    /// Every message about one ring.
    pub(super) fn describe(&mut self, step: Step) -> Result<()> {
        let state = |index: u16, num: u16| VhostUserVringState::new(index.into(), num.into());
        match step {
            Step::SetVringNum(index) => self.tell(R::SET_VRING_NUM, state(index, SIZE).as_slice()),
            Step::SetVringBase(index) => {
                // All that was taken has been returned.
                let base = self.queue(index)?.ring.used_idx()?;
                self.tell(R::SET_VRING_BASE, state(index, base).as_slice())
            }
            Step::SetVringEnable(index, on) => {
                self.tell(R::SET_VRING_ENABLE, state(index, on.into()).as_slice())
            }
            Step::SetVringAddr(index) => {
                self.be_asked_or_not();
                let ring = &self.queues[usize::from(index)].ring;
                let ack = self.client.vring_addr(index.into(), ring)?;
                ensure!(ack == Ack::Done, "SET_VRING_ADDR: {ack:?}");
                Ok(())
            }
            Step::SetVringKick(index, fd) => self.lend_event(R::SET_VRING_KICK, index, fd),
            Step::SetVringCall(index, fd) => self.lend_event(R::SET_VRING_CALL, index, fd),
            Step::SetVringErr(index, fd) => self.lend_event(R::SET_VRING_ERR, index, fd),
            Step::GetVringBase(index) => self.stop(index),
            _ => bail!("{step:?} is not about a ring"),
        }
    }

    fn stop(&mut self, index: u16) -> Result<()> {
        let base = self.client.stop_ring(index as u8)?;
        let used = self.queue(index)?.ring.used_idx()?;
        // Ours returns what it took before it answers.
        let known = self.model.rings[usize::from(index)].base;
        ensure!(!known || base == used, "base {base} with used index {used}");
        Ok(())
    }

    fn lend_event(&mut self, request: R, index: u16, with_fd: bool) -> Result<()> {
        self.be_asked_or_not();
        if !with_fd {
            let payload = u64::from(index) | 1 << 8;
            return self.tell(request, &payload.to_ne_bytes());
        }
        let ring = &mut self.queues[usize::from(index)].ring;
        let place = match request {
            R::SET_VRING_KICK => &mut ring.kick,
            R::SET_VRING_CALL => &mut ring.call,
            _ => &mut ring.err,
        };
        let event = std::mem::replace(place, fresh_event()?);
        let ack = self.client.vring_fd(request, index.into(), place)?;
        ensure!(ack == Ack::Done, "{request:?}: {ack:?}");
        // The old one may be rung until the new one is known.
        self.sync()?;
        drop(event);
        Ok(())
    }

    pub(super) fn lend(&mut self, step: Step) -> Result<()> {
        self.be_asked_or_not();
        let regions = &self.memory.regions;
        let ack = match step {
            Step::SetMemTable(bits) => {
                let chosen = (0..).zip(regions).filter(|(at, _)| bits & 1 << at != 0);
                let chosen: Vec<&Region> = chosen.map(|(_, region)| region).collect();
                self.client.set_mem_regions(&chosen)?
            }
            Step::AddMemReg(index) => self.client.add_mem_reg(&regions[usize::from(index)])?,
            Step::RemMemReg(index) => self.client.rem_mem_reg(&regions[usize::from(index)])?,
            _ => Ack::Done,
        };
        ensure!(ack == Ack::Done, "{step:?}: {ack:?}");
        Ok(())
    }

    pub(super) fn read_config(&mut self) -> Result<()> {
        let size = 1 + self.dice.below(CONFIG.into()) as u32;
        let offset = self.dice.below(u64::from(CONFIG - size) + 1) as u32;
        let head = VhostUserConfig::new(offset, size, VhostUserConfigFlags::empty());
        let mut payload = head.as_slice().to_vec();
        payload.resize(payload.len() + size as usize, 0);
        let reply = self.ask(R::GET_CONFIG, &payload)?;
        ensure!(
            reply.len() == payload.len(),
            "{} bytes of configuration",
            reply.len()
        );
        ensure!(reply[..12] == payload[..12], "another place");
        Ok(())
    }

    /// Acknowledgements, if agreed on, are asked for now and then.
    pub(super) fn be_asked_or_not(&mut self) {
        let agreed = self.model.has(Protocol::REPLY_ACK);
        self.client.acknowledged = agreed && self.dice.below(2) == 0;
        self.unsure |= !self.client.acknowledged;
    }

    pub(super) fn tell(&mut self, request: R, payload: &[u8]) -> Result<()> {
        self.be_asked_or_not();
        let ack = self.client.tell(request, payload, &[])?;
        ensure!(ack == Ack::Done, "{request:?}: {ack:?}");
        Ok(())
    }

    /// Asks; "need_reply" changes nothing where there is a reply anyway.
    fn ask(&mut self, request: R, payload: &[u8]) -> Result<Vec<u8>> {
        let agreed = self.model.has(Protocol::REPLY_ACK);
        let mut header = Header::request(request.into());
        if agreed && self.dice.below(2) == 0 {
            header = header.with_need_reply();
        }
        self.client.send(header, payload, &[])?;
        let reply = self.client.receive()?;
        ensure!(
            reply.header == Header::reply_to(request.into()),
            "{reply:?}"
        );
        Ok(reply.payload)
    }

    pub(super) fn number(&mut self, request: R) -> Result<u64> {
        let reply = self.ask(request, &[])?;
        Ok(u64::from_ne_bytes(reply.as_slice().try_into()?))
    }

    /// Everything said so far has been obeyed when this is answered.
    pub(super) fn sync(&mut self) -> Result<()> {
        self.number(R::GET_FEATURES)?;
        self.unsure = false;
        Ok(())
    }
}
