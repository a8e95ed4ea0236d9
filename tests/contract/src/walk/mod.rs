//! A walk through the legal states: messages in random legal orders, each reply
//! checked, and after each message every ring looked at.

mod messages;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context, Result, ensure};
use outboard_protocol::wire::Connection;
use vhost::vhost_user::message::{FrontendReq as R, VhostUserInflight};

use crate::client::{Ack, Client};
use crate::memory::Memory;
use crate::model::{Dice, Duty, Model, REGIONS, Step};
use crate::program::Program;
use crate::ring::{Ring, drain, wait_event};
use crate::soon;
use crate::traffic::{Traffic, WINDOW, page};

/// Number of entries of each ring.
const SIZE: u16 = 32;
/// Where rings are, a page each, and requests behind them: over the border of
/// the first two regions.
const RINGS: u64 = 0x1000;
const PAGES: u64 = 0x2_0000;
const TABLES: u64 = 0x8_0000;
const BORDER: u64 = 0x2_4000;
/// Bytes of configuration that every device has.
const CONFIG: u32 = 8;

/// Numbers that a seed determines (splitmix64).
#[derive(Clone, Debug)]
pub struct Seed(pub u64);

impl Dice for Seed {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % bound
    }
}

/// A queue as its driver has it.
struct Queue {
    ring: Ring,
    /// Requests on their way, with their heads.
    pending: VecDeque<(u16, u64)>,
    next: u64,
    /// The used index since which the ring has rested.
    rested: Option<u16>,
}

/// A walk under way.
struct Walk<'a, T> {
    program: &'a Program,
    client: Client,
    /// Kept open: a back-end may write to it.
    channel: Option<Connection>,
    memory: Memory,
    queues: Vec<Queue>,
    traffic: T,
    model: Model,
    dice: Seed,
    inflight: Option<(VhostUserInflight, OwnedFd)>,
    /// The last message was not acknowledged.
    unsure: bool,
    /// Requests that came back.
    served: u64,
}

/// Walks `steps` legal steps with the back-end and its traffic; returns how many
/// requests were served on the way.
///
/// # Errors
/// What the back-end did wrong, and every step that led there.
pub fn walk<T: Traffic>(program: &Program, traffic: T, seed: u64, steps: usize) -> Result<u64> {
    let mut walk = Walk::new(program, traffic, seed)?;
    let mut trace = Vec::new();
    for _ in 0..steps {
        let step = walk.model.choose(&mut walk.dice);
        trace.push(step);
        walk.take(step)
            .and_then(|()| walk.look())
            .with_context(|| format!("seed {seed}, after {trace:?}"))?;
    }
    walk.finish()
        .with_context(|| format!("seed {seed}, the end of {trace:?}"))
}

impl<'a, T: Traffic> Walk<'a, T> {
    fn new(program: &'a Program, traffic: T, seed: u64) -> Result<Self> {
        let memory = Memory::new(&[
            (0, BORDER),
            (BORDER, 0x10_0000 - BORDER),
            (0x100_0000, 0x1000),
            (0x200_0000, 0x4000),
        ])?;
        let queue = |index: u16| {
            Ok(Queue {
                ring: Ring::new(&memory, RINGS * (1 + u64::from(index)), SIZE, false)?,
                pending: VecDeque::new(),
                next: 0,
                rested: None,
            })
        };
        Ok(Self {
            client: program.client()?,
            queues: (0..traffic.queues()).map(queue).collect::<Result<_>>()?,
            model: Model::new(traffic.daemon(), traffic.queues(), traffic.needs()),
            program,
            channel: None,
            memory,
            traffic,
            dice: Seed(seed),
            inflight: None,
            unsure: false,
            served: 0,
        })
    }

    /// Does one thing.
    fn take(&mut self, step: Step) -> Result<()> {
        let duties = self.duties();
        match step {
            Step::GetFeatures => {
                let features = self.number(R::GET_FEATURES)?;
                self.model.learn_features(features);
            }
            Step::GetProtocolFeatures => {
                let protocol = self.number(R::GET_PROTOCOL_FEATURES)?;
                self.model.learn_protocol(protocol);
            }
            Step::SetFeatures(bits) => self.tell(R::SET_FEATURES, &bits.to_ne_bytes())?,
            Step::SetProtocolFeatures(bits) => {
                self.tell(R::SET_PROTOCOL_FEATURES, &bits.to_ne_bytes())?;
            }
            Step::SetOwner => self.tell(R::SET_OWNER, &[])?,
            Step::GetQueueNum => {
                let queues = self.number(R::GET_QUEUE_NUM)?;
                ensure!(queues >= self.queues.len() as u64, "{queues} queues");
            }
            Step::GetMaxMemSlots => {
                let slots = self.number(R::GET_MAX_MEM_SLOTS)?;
                ensure!(slots >= u64::from(REGIONS), "{slots} memory slots");
            }
            Step::SetMemTable(_) | Step::AddMemReg(_) | Step::RemMemReg(_) => self.lend(step)?,
            Step::GetConfig => self.read_config()?,
            Step::SetBackendReqFd => {
                self.be_asked_or_not();
                self.channel = Some(self.client.backend_requests()?);
            }
            Step::GetInflightFd => {
                let queues = self.queues.len() as u16;
                self.inflight = Some(self.client.get_inflight(queues, SIZE)?);
            }
            Step::SetInflightFd => {
                self.be_asked_or_not();
                let (described, fd) = self.inflight.as_ref().context("a region")?;
                let ack = self
                    .client
                    .set_inflight(described, std::os::fd::AsFd::as_fd(fd))?;
                ensure!(ack == Ack::Done, "SET_INFLIGHT_FD: {ack:?}");
            }
            Step::ResetDevice => {
                self.tell(R::RESET_DEVICE, &[])?;
                self.sync()?;
                self.renew_rings()?;
            }
            Step::NewDriver => self.renew_rings()?,
            Step::Reconnect => self.reconnect()?,
            Step::Submit(index) => self.submit(index)?,
            step => self.describe(step)?,
        }
        self.model = self.model.after(step);
        let (event_idx, _) = self.model.ring_features();
        for queue in &mut self.queues {
            queue.ring.event_idx = event_idx;
        }
        self.owe_kicks(step, &duties)
    }

    /// A new connection once the old session has come to its end.
    fn reconnect(&mut self) -> Result<()> {
        self.channel = None;
        let (closed, _) = std::os::unix::net::UnixStream::pair()?;
        self.client = Client::new(closed);
        self.client = self.program.client()?;
        self.number(R::GET_FEATURES)?;
        Ok(())
    }

    /// A driver begins with its rings, which are stopped; what it finds done is
    /// done.
    fn renew_rings(&mut self) -> Result<()> {
        for index in 0..self.queues.len() {
            self.collect(index)?;
            let queue = &mut self.queues[index];
            let at = RINGS * (1 + index as u64);
            let fresh = Ring::new(&self.memory, at, SIZE, false)?;
            let old = std::mem::replace(&mut queue.ring, fresh);
            // What is lent stays lent.
            (queue.ring.kick, queue.ring.call, queue.ring.err) = (old.kick, old.call, old.err);
            queue.pending.clear();
            queue.rested = None;
            self.traffic.forget(index as u16);
        }
        Ok(())
    }

    fn submit(&mut self, index: u16) -> Result<()> {
        let (_, indirect) = self.model.ring_features();
        let indirect = indirect && self.dice.below(2) == 0;
        let at = usize::from(index);
        let number = self.queues[at].next;
        let oldest = self.queues[at]
            .pending
            .iter()
            .map(|(_, number)| *number)
            .min();
        if oldest.is_some_and(|oldest| number - oldest >= WINDOW - 1) {
            return Ok(());
        }
        let place = page(PAGES, index, number);
        let buffers = self.traffic.prepare(&self.memory, place, index, number)?;
        let polled = self.model.rings[at].polled;
        let queue = &mut self.queues[at];
        let old = queue.ring.next_avail;
        let head = match indirect {
            true => queue
                .ring
                .add_indirect(page(TABLES, index, number), &buffers)?,
            false => queue.ring.add(&buffers)?,
        };
        queue.next += 1;
        queue.pending.push_back((head, number));
        if !polled {
            queue.ring.announce(old)?;
        }
        Ok(())
    }

    fn duties(&self) -> Vec<Duty> {
        (0..self.queues.len() as u16)
            .map(|index| self.model.duty(index))
            .collect()
    }

    /// A ring that begins to run, or whose kick was replaced, is kicked once.
    fn owe_kicks(&mut self, step: Step, before: &[Duty]) -> Result<()> {
        for (index, before) in (0..).zip(before) {
            let begins = *before != Duty::Serve && self.model.duty(index) == Duty::Serve;
            let replaced = step == Step::SetVringKick(index, true);
            let polled = self.model.rings[usize::from(index)].polled;
            if (begins || replaced) && !polled {
                self.queue(index)?.ring.kick()?;
            }
        }
        Ok(())
    }

    /// Looks at every ring: what must be served is waited for, most times; what
    /// must not be served is not.
    fn look(&mut self) -> Result<()> {
        if self.unsure || self.dice.below(4) == 0 {
            self.sync()?;
        }
        for index in 0..self.queues.len() {
            match self.model.duty(index as u16) {
                Duty::Serve if self.dice.below(3) == 0 => {}
                Duty::Serve => self.settle(index)?,
                Duty::Free => {}
                Duty::Rest => {
                    let queue = &mut self.queues[index];
                    let used = queue.ring.used_idx()?;
                    let rested = *queue.rested.get_or_insert(used);
                    ensure!(
                        rested == used,
                        "queue {index} was served while it must rest"
                    );
                    continue;
                }
            }
            self.queues[index].rested = None;
        }
        Ok(())
    }

    /// Waits for every request of a queue, by its calls if it has any.
    fn settle(&mut self, index: usize) -> Result<()> {
        let deadline = soon();
        loop {
            self.collect(index)?;
            let (call, queue) = (self.model.rings[index].call, &mut self.queues[index]);
            if queue.pending.is_empty() {
                return Ok(());
            }
            queue.ring.set_used_event(queue.ring.next_used)?;
            fence(Ordering::SeqCst);
            if queue.ring.used_idx()? != queue.ring.next_used {
                continue;
            }
            let late = || format!("queue {index}: {:?} not returned", queue.pending);
            if call {
                wait_event(&queue.ring.call, deadline).with_context(late)?;
            } else {
                ensure!(!deadline.passed(), late());
                std::thread::sleep(std::time::Duration::from_micros(50));
            }
        }
    }

    /// Takes what has come back and checks it.
    fn collect(&mut self, index: usize) -> Result<()> {
        let queue = &mut self.queues[index];
        drain(&queue.ring.call);
        while let Some((head, length)) = queue.ring.take_used()? {
            let place = queue
                .pending
                .iter()
                .position(|(pending, _)| *pending == head);
            let place = place.with_context(|| format!("head {head} was not given"))?;
            let (_, number) = queue.pending.remove(place).context("the request")?;
            let at = page(PAGES, index as u16, number);
            self.served += 1;
            self.traffic
                .check(&self.memory, at, index as u16, number, length)
                .with_context(|| format!("queue {index}, request {number}"))?;
        }
        Ok(())
    }

    /// In the end everything that runs has done everything, and the program lives.
    fn finish(mut self) -> Result<u64> {
        self.sync()?;
        for index in 0..self.queues.len() {
            if self.model.duty(index as u16) == Duty::Serve {
                self.settle(index)?;
            }
        }
        Ok(self.served)
    }

    fn queue(&mut self, index: u16) -> Result<&mut Queue> {
        self.queues.get_mut(usize::from(index)).context("a queue")
    }
}
