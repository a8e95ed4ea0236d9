//! Starting and stopping rings (vhost-user, "Ring states").

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use anyhow::{Context, Error, Result, bail};
use vhost::vhost_user::message::{
    FrontendReq, VhostUserProtocolFeatures as Protocol, VhostUserVringAddr,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vm_memory::ByteValued;
use vmm_sys_util::eventfd::EventFd;

use super::inflight::{self, Inflight};
use super::limits::Wait;
use super::link::{Command, Refusal};
use super::negotiate::protocol_bit;
use super::{Agreement, Described, Negotiated, Session, Started, memory};
use crate::machine::kvm::irq::descriptor;
use crate::machine::memory::Ram;
use crate::machine::signal::signal;
use crate::machine::virtio::Ring;

/// Everything a ring needs to be started.
#[derive(Debug)]
pub struct RingStart {
    /// The ring, checked to lie in guest memory.
    pub ring: Ring,
    /// The index of the next available entry to be taken.
    pub base: u16,
    /// The driver signals it: count 1, its doorbell rings it already.
    pub kick: Arc<EventFd>,
    /// The back-end signals it: count 1, bound already.
    pub call: Arc<EventFd>,
    /// The back-end signals it when it gives up on the ring.
    pub error: Arc<EventFd>,
}

/// A ring that the back-end has handed back.
#[derive(Clone, Copy, Debug)]
pub struct Stopped {
    /// Index of the queue.
    pub queue: u16,
    /// The index of the next available entry that it would have taken.
    pub base: u16,
    /// For all that it had taken to be over; it began with the request.
    wait: Wait,
}

#[cfg(test)]
impl Stopped {
    /// A queue, handed back at `base`.
    pub(crate) fn at(queue: u16, base: u16) -> Self {
        let wait = super::Limits::default().for_a_message();
        Self { queue, base, wait }
    }
}

impl Session<Negotiated> {
    /// What was found out about the back-end.
    pub fn agreement(&self) -> Agreement {
        self.phase.agreement
    }

    /// Does what need not be done in a hurry once rings are to be started: lends guest
    /// memory, and asks for an inflight region, if the back-end keeps one. `queues` are how
    /// many there are and the size of the largest.
    ///
    /// # Errors
    /// The back-end refuses or has gone.
    pub(crate) fn prepare(&mut self, ram: &Ram, queues: (u16, u16)) -> Result<()> {
        self.lend_memory(ram)?;
        if self.phase.fresh.is_none() {
            self.phase.fresh = inflight::ask(&mut self.link, queues)?;
        }
        Ok(())
    }

    fn lend_memory(&mut self, ram: &Ram) -> Result<()> {
        if !self.phase.memory_lent {
            memory::lend(&mut self.link, ram).context("lending guest memory")?;
            self.phase.memory_lent = true;
        }
        Ok(())
    }

    /// Describes rings for a driver that acknowledged `features`, and waits once if all is
    /// prepared. `inflight` is lent: the region from before is handed on, or a fresh one is
    /// left there, if the back-end keeps one; it is there also when this fails. One that
    /// keeps none leaves none to a successor: once it may have begun with a ring, what the
    /// region says is not true any more. `queues` as for a fresh one.
    ///
    /// # Errors
    /// The back-end refuses or has gone.
    pub fn describe(
        mut self,
        ram: &Ram,
        features: u64,
        queues: (u16, u16),
        inflight: &mut Option<Inflight>,
        rings: &[RingStart],
    ) -> Result<Session<Described>> {
        let agreement = self.phase.agreement;
        let keeps_region = agreement.protocol.contains(Protocol::INFLIGHT_SHMFD);
        let features = features | agreement.features & protocol_bit();
        let bits = features.to_ne_bytes();
        let mut first: Vec<Command<'_>> = vec![(FrontendReq::SET_FEATURES, &bits, &[])];
        if !keeps_region {
            *inflight = None;
        } else if inflight.is_none() {
            *inflight = self.phase.fresh.take();
        }
        let lacks_region = keeps_region && inflight.is_none();
        if !self.phase.memory_lent || lacks_region {
            self.link.obey(&std::mem::take(&mut first))?;
            self.lend_memory(ram)?;
        }
        if lacks_region {
            *inflight = inflight::ask(&mut self.link, queues)?;
        }
        let region = inflight.as_ref().map(Inflight::described);
        let region = region.as_ref();
        first.extend(
            region.map(|(payload, fd)| -> Command<'_> {
                (FrontendReq::SET_INFLIGHT_FD, payload, fd)
            }),
        );
        let mut session = Session {
            link: self.link,
            phase: Started {
                agreement,
                rings: Vec::new(),
            },
        };
        session.describe_rings(first, rings)?;
        Ok(Session {
            link: session.link,
            phase: Described(session.phase),
        })
    }

    /// Tells a back-end that can be told that the driver reset the device
    /// (RESET_DEVICE).
    ///
    /// # Errors
    /// The back-end refuses or has gone.
    pub fn reset_device(&mut self) -> Result<()> {
        if !self.link.protocol().contains(Protocol::RESET_DEVICE) {
            return Ok(());
        }
        self.link.command(FrontendReq::RESET_DEVICE, &[], &[])
    }
}

impl<P> Session<P> {
    /// The back-end may answer that a ring is stopped before what it has taken is over, as
    /// others do than our own.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn expect_late_calls(&mut self) -> Result<()> {
        let expected = self.link.expect_late_calls();
        expected.context("an eventfd for what a back-end completes late")
    }

    /// Waits until the back-end has returned what it had taken of a ring before it
    /// stopped that: `under_way` says whether there still is any. This wait and the
    /// stop have one deadline together. A back-end that may keep what it has taken
    /// until something comes (`holds`) has only the time of a message. Returns
    /// whether everything was returned.
    ///
    /// # Errors
    /// The back-end has gone.
    pub(crate) fn wait_drained(
        &mut self,
        stopped: &Stopped,
        holds: bool,
        under_way: impl Fn() -> bool,
    ) -> Result<bool> {
        let mut wait = match holds {
            true => self.link.limits().for_a_message(),
            false => stopped.wait,
        };
        while under_way() {
            if !self.link.pause(&mut wait)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Session<Described> {
    /// Lets the back-end begin with these rings, which have been described.
    ///
    /// # Errors
    /// The back-end refuses or has gone.
    pub fn enable(self, rings: &[RingStart]) -> Result<Session<Started>> {
        let mut session = Session {
            link: self.link,
            phase: self.phase.0,
        };
        session.enable_rings(rings)?;
        Ok(session)
    }
}

impl Session<Started> {
    /// Starts rings beside those that run: describes each, and enables them when all are
    /// described.
    ///
    /// # Errors
    /// The back-end refuses or has gone.
    pub fn start_rings(&mut self, rings: &[RingStart]) -> Result<()> {
        self.describe_rings(Vec::new(), rings)?;
        self.enable_rings(rings)
    }

    /// Has the back-end obey what comes `first`, and describes rings to it.
    fn describe_rings<'a>(
        &mut self,
        first: Vec<Command<'a>>,
        rings: &'a [RingStart],
    ) -> Result<()> {
        let descriptions: Vec<_> = rings.iter().map(Description::new).collect();
        let of_rings = descriptions.iter().flat_map(Description::commands);
        let before = first.len();
        let commands: Vec<Command<'_>> = first.into_iter().chain(of_rings).collect();
        if let Some(refusal) = self.link.commands(&commands)? {
            let ring = refusal.at.checked_sub(before);
            let ring = ring.and_then(|at| rings.get(at / DESCRIPTION));
            return Err(match ring {
                Some(start) => refused_ring(refusal, &start.ring),
                None => refusal.error(),
            });
        }
        let indices = rings.iter().map(|start| start.ring.index);
        self.phase.rings.extend(indices);
        Ok(())
    }

    /// Enables rings, and then kicks each once more. The first kick, which is in the
    /// eventfd from the start, is lost on a back-end that reads it before it learns that
    /// the ring is enabled (`vhost-user-backend`, if its thread is faster than our next
    /// message). This one comes when the answer to a query shows that it has learnt that.
    fn enable_rings(&mut self, rings: &[RingStart]) -> Result<()> {
        if rings.is_empty() || !self.phase.agreement.has_protocol() {
            return Ok(());
        }
        let query = FrontendReq::GET_FEATURES;
        let states = enabling(rings.iter().map(|start| start.ring.index), true);
        let commands = enable(&states);
        self.link.begin(&commands)?;
        self.link.ask(query)?;
        if let Some(refusal) = self.link.acknowledgements(&commands)? {
            return Err(refusal.error());
        }
        self.link.answer_u64(query)?;
        for start in rings {
            signal(&start.kick).context("cannot kick a ring that was enabled")?;
        }
        Ok(())
    }

    /// Stops one ring (GET_VRING_BASE). What the back-end has taken may still
    /// complete, unless it is our own: `Session::wait_drained`.
    ///
    /// # Errors
    /// The back-end has gone, or answers for another ring.
    pub fn stop_ring(&mut self, index: u16) -> Result<Stopped> {
        let stopped = self.stop_rings(&[index])?;
        stopped.first().copied().context("no ring was stopped")
    }

    /// Stops these rings; none waits for another to be over.
    fn stop_rings(&mut self, indices: &[u16]) -> Result<Vec<Stopped>> {
        let wait = self.link.limits().wait_for(FrontendReq::GET_VRING_BASE);
        let states = self.link.stop(indices)?;
        let mut stopped = Vec::new();
        for (index, state) in indices.iter().zip(states) {
            let queue = *index;
            let same = state.index == u32::from(queue);
            let Some(base) = u16::try_from(state.num).ok().filter(|_| same) else {
                let (other, base) = (state.index, state.num);
                bail!("the back-end stopped queue {queue} with base {base} of queue {other}");
            };
            stopped.push(Stopped { queue, base, wait });
        }
        if self.phase.agreement.has_protocol() {
            let states = enabling(indices.iter().copied(), false);
            self.link.obey(&enable(&states))?;
        }
        self.phase.rings.retain(|ring| !indices.contains(ring));
        Ok(stopped)
    }

    /// The rings that are started.
    pub(crate) fn rings(&self) -> &[u16] {
        &self.phase.rings
    }

    /// Stops every ring; returns each with its next available index.
    ///
    /// # Errors
    /// As [`Self::stop_ring`].
    pub fn stop(mut self) -> Result<(Session<Negotiated>, Vec<Stopped>)> {
        let bases = self.stop_rings(&self.phase.rings.clone())?;
        let session = Session {
            link: self.link,
            phase: Negotiated {
                agreement: self.phase.agreement,
                memory_lent: true,
                fresh: None,
            },
        };
        Ok((session, bases))
    }
}

/// How many messages describe a ring.
const DESCRIPTION: usize = 6;

/// What is said of a ring before it can be enabled.
struct Description<'a> {
    index: [u8; 8],
    size: VhostUserVringState,
    base: VhostUserVringState,
    address: VhostUserVringAddr,
    /// Error, call, kick.
    fds: [[BorrowedFd<'a>; 1]; 3],
}

impl<'a> Description<'a> {
    fn new(start: &'a RingStart) -> Self {
        let ring = &start.ring;
        let index = u32::from(ring.index);
        let address = VhostUserVringAddr::new(
            index,
            VhostUserVringAddrFlags::empty(),
            ring.descriptors,
            ring.used,
            ring.available,
            0,
        );
        Self {
            index: u64::from(index).to_ne_bytes(),
            size: VhostUserVringState::new(index, ring.size.into()),
            base: VhostUserVringState::new(index, start.base.into()),
            address,
            fds: [&start.error, &start.call, &start.kick].map(|event| [descriptor(event)]),
        }
    }

    fn commands(&self) -> [Command<'_>; DESCRIPTION] {
        let [error, call, kick] = &self.fds;
        [
            (FrontendReq::SET_VRING_NUM, self.size.as_slice(), &[]),
            (FrontendReq::SET_VRING_BASE, self.base.as_slice(), &[]),
            (FrontendReq::SET_VRING_ADDR, self.address.as_slice(), &[]),
            (FrontendReq::SET_VRING_ERR, &self.index, error),
            (FrontendReq::SET_VRING_CALL, &self.index, call),
            (FrontendReq::SET_VRING_KICK, &self.index, kick),
        ]
    }
}

fn refused_ring(refusal: Refusal, ring: &Ring) -> Error {
    let error = match refusal.request {
        FrontendReq::SET_VRING_NUM => refusal.error().context(format!(
            "a queue of {} entries (queue-size= limits what a driver may choose)",
            ring.size
        )),
        _ => refusal.error(),
    };
    error.context(format!("starting queue {}", ring.index))
}

/// That these rings are enabled, or disabled.
fn enabling(indices: impl Iterator<Item = u16>, enable: bool) -> Vec<VhostUserVringState> {
    let states = indices.map(|index| VhostUserVringState::new(index.into(), enable.into()));
    states.collect()
}

fn enable(states: &[VhostUserVringState]) -> Vec<Command<'_>> {
    let commands = states
        .iter()
        .map(|state| -> Command<'_> { (FrontendReq::SET_VRING_ENABLE, state.as_slice(), &[]) });
    commands.collect()
}
