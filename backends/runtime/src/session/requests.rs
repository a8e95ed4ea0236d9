//! What each request of the front-end means (vhost-user, "Front-end message
//! types").

use std::os::fd::AsFd;
use std::sync::Arc;

use outboard_protocol::Deadline;
use outboard_protocol::inflight::{Region, Shape};
use outboard_protocol::wire::Message;
use outboard_ring::counters::add;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserInflight, VhostUserMemory, VhostUserMemoryRegion,
    VhostUserProtocolFeatures, VhostUserSingleMemoryRegion, VhostUserVringAddr,
    VhostUserVringState,
};
use vm_memory::ByteValued;

use super::channel::Channel;
use super::payload::{brings_fds, config, decode, empty, inflight, split, trimmed, vring_fd};
use super::rings::{Context, Slot};
use super::{Answer, Fault, PROTOCOL_FEATURES, Session, change};
use crate::device::{Change, Device};
use crate::event::Signal;
use crate::memory::{MAX_REGIONS, Table, keeps};
use crate::worker::Kick;

/// What is offered by GET_PROTOCOL_FEATURES.
const OFFERED: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::BACKEND_REQ)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);

/// VHOST_SET_CONFIG_TYPE_FRONTEND and _MIGRATION, as numbers in `flags`.
const CONFIG_WRITABLE: u32 = 0;
const CONFIG_MIGRATION: u32 = 1;

impl<D: Device> Session<'_, D> {
    pub(super) fn dispatch(&mut self, message: Message) -> Result<Answer, Fault> {
        use FrontendReq as R;
        let number = message.header.request;
        let Ok(request) = R::try_from(number) else {
            return self.unknown(number);
        };
        if !message.fds.is_empty() && !brings_fds(request) {
            return Err(Fault::Broken(format!("descriptors with request {number}")));
        }
        let done = |result: Result<(), Fault>| result.map(|()| Answer::Done);
        let number = |message: &Message, value: u64| {
            empty(message).map(|()| Answer::Reply(value.to_ne_bytes().to_vec()))
        };
        let result = match request {
            R::GET_FEATURES => number(&message, self.offered()),
            R::SET_FEATURES => done(self.set_features(&message)),
            R::SET_OWNER | R::RESET_OWNER => done(empty(&message)),
            R::GET_PROTOCOL_FEATURES => number(&message, OFFERED.bits()),
            R::SET_PROTOCOL_FEATURES => done(self.set_protocol_features(&message)),
            R::GET_QUEUE_NUM => number(&message, self.rings.count() as u64),
            R::SET_MEM_TABLE => done(self.set_mem_table(message)),
            R::GET_MAX_MEM_SLOTS => number(&message, MAX_REGIONS as u64),
            R::ADD_MEM_REG => done(self.add_mem_reg(message)),
            R::REM_MEM_REG => done(self.rem_mem_reg(&message)),
            R::SET_VRING_NUM => done(self.set_vring_num(&message)),
            R::SET_VRING_ADDR => done(self.set_vring_addr(&message)),
            R::SET_VRING_BASE => done(self.set_vring_base(&message)),
            R::GET_VRING_BASE => self.get_vring_base(&message),
            R::SET_VRING_KICK => done(self.set_vring_kick(message)),
            R::SET_VRING_CALL => done(self.set_vring_signal(message, |slot| &slot.call)),
            R::SET_VRING_ERR => done(self.set_vring_signal(message, |slot| &slot.err)),
            R::SET_VRING_ENABLE => done(self.set_vring_enable(&message)),
            R::GET_CONFIG => self.get_config(&message),
            R::SET_CONFIG => done(self.set_config(&message)),
            R::SET_BACKEND_REQ_FD => done(self.set_backend_req_fd(message)),
            R::GET_INFLIGHT_FD => self.get_inflight_fd(&message),
            R::SET_INFLIGHT_FD => done(self.set_inflight_fd(message)),
            R::RESET_DEVICE => done(self.reset_device(&message)),
            _ => return self.unknown(request.into()),
        };
        result.map_err(|fault| self.refuse(request, fault))
    }

    /// Counts a refusal, and names the request.
    fn refuse(&mut self, request: FrontendReq, fault: Fault) -> Fault {
        let named = |why: String| format!("{request:?}: {why}");
        let fault = match fault {
            Fault::Refused(why) => Fault::Refused(named(why)),
            Fault::Declined(why) => Fault::Declined(named(why)),
            fault => return fault,
        };
        add(&mut self.rings.tally.refused_requests, 1);
        fault
    }

    fn unknown(&mut self, number: u32) -> Result<Answer, Fault> {
        add(&mut self.rings.tally.unknown_requests, 1);
        Err(Fault::Declined(format!("request {number} is not known")))
    }

    /// Starts what may run by now.
    fn start_rings(&mut self) -> Result<(), Fault> {
        let Some(features) = self.features else {
            return Ok(());
        };
        let context = Context {
            memory: &self.memory,
            features,
            inflight: self.inflight.as_ref(),
            page: self.host.page.as_ref(),
            replay: &self.host.replay,
        };
        self.rings.start_all(&context)
    }

    fn set_features(&mut self, message: &Message) -> Result<(), Fault> {
        let features: u64 = message.body()?;
        let foreign = features & !self.offered();
        if foreign != 0 {
            let offered = self.offered();
            let why = format!("features {foreign:#x} are not among those offered, {offered:#x}");
            return Err(Fault::Refused(why));
        }
        if self.features == Some(features) {
            return Ok(());
        }
        self.rings.park_all()?;
        self.rings.set_features(features);
        self.features = Some(features);
        self.host.device.reset(features & !PROTOCOL_FEATURES);
        self.start_rings()
    }

    fn set_protocol_features(&mut self, message: &Message) -> Result<(), Fault> {
        let bits: u64 = message.body()?;
        let foreign = bits & !OFFERED.bits();
        if foreign != 0 {
            let offered = OFFERED.bits();
            let why = format!("features {foreign:#x} are not among those offered, {offered:#x}");
            return Err(Fault::Refused(why));
        }
        self.protocol = VhostUserProtocolFeatures::from_bits_truncate(bits);
        Ok(())
    }

    fn set_mem_table(&mut self, mut message: Message) -> Result<(), Fault> {
        let fds = std::mem::take(&mut message.fds);
        let (head, described) = split::<VhostUserMemory>(&message)?;
        let size = size_of::<VhostUserMemoryRegion>();
        let count = fds.len();
        let same = usize::try_from(head.num_regions).is_ok_and(|number| number == count);
        if !same || described.len() != count.saturating_mul(size) {
            return Err(Fault::Broken("a memory table of another length".into()));
        }
        if count == 0 {
            return Err(Fault::Refused("a table without a region".into()));
        }
        let regions = described.chunks_exact(size).map(decode);
        let table = self.memory.replaced(regions.zip(fds));
        let table = table.map_err(Fault::Refused)?;
        self.change_memory(table)
    }

    fn add_mem_reg(&mut self, mut message: Message) -> Result<(), Fault> {
        let region: VhostUserSingleMemoryRegion = message.body()?;
        let fd = message.one_fd()?;
        let table = self.memory.with(&region, fd).map_err(Fault::Refused)?;
        self.change_memory(table)
    }

    fn rem_mem_reg(&mut self, message: &Message) -> Result<(), Fault> {
        let region: VhostUserSingleMemoryRegion = message.body()?;
        // The specification lets a descriptor come along, to be ignored.
        if message.fds.len() > 1 {
            return Err(Fault::Broken("descriptors with a removal".into()));
        }
        let table = self.memory.without(&region).map_err(Fault::Refused)?;
        if !self.rings.fit(&table) {
            return Err(Fault::Refused("a ring lies in that memory region".into()));
        }
        self.change_memory(table)
    }

    /// Swaps the memory under the rings: where all of the former stays, they go on
    /// undisturbed, else they stop, and go on in the new one.
    fn change_memory(&mut self, table: Table) -> Result<(), Fault> {
        let (former, memory) = (self.memory.memory(), table.memory());
        if !keeps(memory, former) {
            self.rings.park_all()?;
        } else if !Arc::ptr_eq(memory, former) {
            self.rings.map(&table)?;
        }
        self.memory = table;
        self.start_rings()
    }

    fn set_vring_num(&mut self, message: &Message) -> Result<(), Fault> {
        let state: VhostUserVringState = message.body()?;
        let most = self.host.device.max_queue_size();
        let slot = stopped(self.rings.slot(state.index)?)?;
        let (index, num) = (state.index, state.num);
        if num > u32::from(most) {
            return Err(Fault::Refused(format!(
                "queue {index} with {num} entries, {most} at most: have the front-end use smaller \
                 queues, or start this back-end with a larger --queue-size, if it has one"
            )));
        }
        let size = u16::try_from(num)
            .ok()
            .filter(|size| size.is_power_of_two());
        let Some(size) = size else {
            let why = format!("queue {index} with {num} entries, which is no power of two");
            return Err(Fault::Refused(why));
        };
        slot.size = Some(size);
        self.start_rings()
    }

    fn set_vring_addr(&mut self, message: &Message) -> Result<(), Fault> {
        let address: VhostUserVringAddr = message.body()?;
        if address.flags != 0 {
            let flags = address.flags;
            let why = format!("flags {flags:#x}, none are known: logging is not offered");
            return Err(Fault::Refused(why));
        }
        let slot = self.rings.slot(address.index)?;
        let before = slot.address.replace(address);
        let misplaced = slot.layout(&self.memory).err();
        slot.address = before;
        if let Some(why) = misplaced {
            let index = address.index;
            return Err(Fault::Refused(format!("queue {index}: {why}")));
        }
        self.rings.park(address.index)?.address = Some(address);
        self.start_rings()
    }

    fn set_vring_base(&mut self, message: &Message) -> Result<(), Fault> {
        let state: VhostUserVringState = message.body()?;
        let slot = stopped(self.rings.slot(state.index)?)?;
        let num = state.num;
        slot.base =
            u16::try_from(num).map_err(|_| Fault::Refused(format!("base {num}, 65535 at most")))?;
        Ok(())
    }

    fn get_vring_base(&mut self, message: &Message) -> Result<Answer, Fault> {
        let state: VhostUserVringState = message.body()?;
        let base = match self.rings.stop(state.index) {
            // The reply has no room for an error.
            Err(Fault::Refused(why)) => return Err(Fault::Broken(why)),
            base => base?,
        };
        let reply = VhostUserVringState::new(state.index, base.into());
        Ok(Answer::Reply(reply.as_slice().to_vec()))
    }

    fn set_vring_kick(&mut self, message: Message) -> Result<(), Fault> {
        let (index, event) = vring_fd(message)?;
        let kick = event.map_or(Kick::Polled, |event| Kick::Event(Arc::new(event)));
        self.rings.park(index)?.kick = Some(kick);
        self.start_rings()
    }

    fn set_vring_signal(
        &mut self,
        message: Message,
        which: impl Fn(&Slot) -> &Arc<Signal>,
    ) -> Result<(), Fault> {
        let (index, event) = vring_fd(message)?;
        let deadline = Deadline::after(self.host.limits.message);
        Ok(which(self.rings.slot(index)?).set(event, deadline)?)
    }

    fn set_vring_enable(&mut self, message: &Message) -> Result<(), Fault> {
        let state: VhostUserVringState = message.body()?;
        match state.num {
            0 => self.rings.park(state.index)?.enabled = Some(false),
            1 => self.rings.slot(state.index)?.enabled = Some(true),
            num => return Err(Fault::Refused(format!("with {num}, 0 or 1 are known"))),
        }
        self.start_rings()
    }

    fn get_config(&mut self, message: &Message) -> Result<Answer, Fault> {
        let (head, bytes) = config(message)?;
        let config = self.host.device.config();
        let start = usize::try_from(head.offset).unwrap_or(usize::MAX);
        // What lies beyond is 0, as is every field of a feature not offered: a
        // front-end may know of more fields than this device.
        let mut reply = match config.get(start..) {
            Some(rest) if !bytes.is_empty() => rest.to_vec(),
            _ => return Ok(Answer::Reply(Vec::new())),
        };
        reply.resize(bytes.len(), 0);
        reply.splice(..0, head.as_slice().iter().copied());
        Ok(Answer::Reply(reply))
    }

    fn set_config(&mut self, message: &Message) -> Result<(), Fault> {
        let (head, bytes) = config(message)?;
        if !matches!(head.flags, CONFIG_WRITABLE | CONFIG_MIGRATION) {
            let flags = head.flags;
            return Err(Fault::Declined(format!(
                "flags {flags:#x}, 0 and 1 are known"
            )));
        }
        let change = self.host.device.write_config(head.offset, bytes);
        // The guest can cause this, so nobody is cut off for it.
        let declined = |error| {
            let (at, length) = (head.offset, bytes.len());
            Fault::Declined(format!("{length} bytes at {at}: {error}"))
        };
        match change.map_err(declined)? {
            Change::Done => Ok(()),
            Change::After(preparation) => {
                let ends = change::Ends {
                    stop: self.stop,
                    connection: self.connection.as_fd(),
                    limit: self.host.limits.drain,
                };
                change::run(&self.host.preparing, preparation, &ends)
            }
        }
    }

    fn set_backend_req_fd(&mut self, mut message: Message) -> Result<(), Fault> {
        empty(&message)?;
        let fd = message.one_fd()?;
        self.requests = Some(Channel::adopt(fd, &self.connection)?);
        Ok(())
    }

    fn get_inflight_fd(&mut self, message: &Message) -> Result<Answer, Fault> {
        let asked = inflight(message)?;
        let fits = usize::from(asked.num_queues) <= self.rings.count();
        let shape = Shape::new(asked.num_queues, asked.queue_size).filter(|_| fits);
        // No region, by the size 0, is what libvhost-user answers on failure.
        let none = VhostUserInflight::new(0, 0, asked.num_queues, asked.queue_size);
        let made = shape.and_then(|shape| Region::create(shape).ok());
        let fd = made
            .as_ref()
            .and_then(|region| region.file().try_clone_to_owned().ok());
        // Nothing of it is kept: the front-end sends it back when it is to be
        // used (SET_INFLIGHT_FD).
        match (shape, fd) {
            (Some(shape), Some(fd)) => {
                let reply = VhostUserInflight {
                    mmap_size: shape.size(),
                    ..none
                };
                Ok(Answer::ReplyWithFd(trimmed(&reply, message), fd))
            }
            _ => Ok(Answer::Reply(trimmed(&none, message))),
        }
    }

    fn set_inflight_fd(&mut self, mut message: Message) -> Result<(), Fault> {
        let described = inflight(&message)?;
        let fd = message.one_fd()?;
        if self.rings.any_live() {
            let why = "while rings run: stop them first";
            return Err(Fault::Refused(why.into()));
        }
        let fits = usize::from(described.num_queues) <= self.rings.count();
        let shape = Shape::new(described.num_queues, described.queue_size)
            .filter(|shape| fits && shape.size() <= described.mmap_size)
            .ok_or_else(|| {
                let (queues, size) = (described.num_queues, described.queue_size);
                let (most, bytes) = (self.rings.count(), described.mmap_size);
                Fault::Refused(format!(
                    "{bytes} bytes for {queues} queues of {size} entries: {most} queues at most, of a size that is a power of two, and as many bytes as GET_INFLIGHT_FD answers"
                ))
            })?;
        let region = Region::open(fd, described.mmap_offset, shape, &self.host.alarm)
            .map_err(|error| Fault::Refused(error.to_string()))?;
        self.inflight = Some(region);
        Ok(())
    }

    fn reset_device(&mut self, message: &Message) -> Result<(), Fault> {
        empty(message)?;
        self.rings.reset()?;
        // What an engine lost, or nobody took again, was of the driver before.
        let forgotten = self.inflight.as_ref().map_or(Ok(()), Region::initialise);
        forgotten.map_err(|error| Fault::Refused(error.to_string()))?;
        self.features = None;
        self.host.device.reset(0);
        Ok(())
    }
}

/// The ring, if it is stopped.
fn stopped(slot: &mut Slot) -> Result<&mut Slot, Fault> {
    if slot.is_live() {
        let why = "of a ring that has been started: stop it first (GET_VRING_BASE)";
        return Err(Fault::Refused(why.into()));
    }
    Ok(slot)
}
