//! A card as the runtime takes it: a `Device` with three kinds of queue.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use outboard_protocol::kept::Kept;
use outboard_runtime::Notifier;
use outboard_runtime::chain::Chain;
use outboard_runtime::device::{Change, Device, Memory, OTHER_KIND, Outcome, Queue};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};

use crate::card::Card;
use crate::control::ControlQueue;
use crate::header::has;
use crate::rx::RxQueue;
use crate::tx::TxQueue;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Receive(u16),
    Transmit(u16),
    Control,
    Unused,
}

impl Role {
    /// Which queue `index` is to a driver that has negotiated `features`
    /// (section 5.1.2).
    fn of(card: &Card, index: u16, features: u64) -> Self {
        let pairs = if has(features, VIRTIO_NET_F_MQ) {
            card.pairs()
        } else {
            1
        };
        let control = pairs.saturating_mul(2);
        // A front-end may keep the control queue to itself, and then QEMU does
        // not acknowledge this, and cloud-hypervisor does (see `card::driver`).
        if has(features, VIRTIO_NET_F_CTRL_VQ) && index == control {
            return Self::Control;
        }
        match (index / 2, index % 2) {
            (pair, _) if pair >= card.pairs() => Self::Unused,
            (pair, 0) => Self::Receive(pair),
            (pair, _) => Self::Transmit(pair),
        }
    }
}

/// A card as the runtime takes it.
#[derive(Clone, Debug)]
pub struct Net(Arc<Card>);

impl Net {
    /// The device of a card.
    pub fn new(card: Card) -> Self {
        Self(Arc::new(card))
    }
}

impl Device for Net {
    type Queue = NetQueue;

    fn virtio_id(&self) -> u16 {
        VIRTIO_ID_NET as u16
    }

    fn attach(&self, notifier: Notifier) {
        self.0.link().attach(notifier);
    }

    fn news(&self) -> Option<BorrowedFd<'_>> {
        self.0.news()
    }

    fn attend(&self) {
        self.0.attend();
    }

    fn features(&self) -> u64 {
        self.0.features()
    }

    /// Two for each pair, and the control queue.
    fn queues(&self) -> u16 {
        self.0.pairs().saturating_mul(2).saturating_add(1)
    }

    fn max_queue_size(&self) -> u16 {
        self.0.settings().queue_size
    }

    fn config(&self) -> Vec<u8> {
        self.0.config().to_bytes().to_vec()
    }

    fn write_config(&self, _offset: u32, _data: &[u8]) -> io::Result<Change> {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "nothing in a network card's configuration can be written",
        ))
    }

    fn reset(&self, features: u64) {
        self.0.reset(features);
    }

    fn kept(&self) -> Kept {
        Kept::Card(self.0.kept())
    }

    fn restore(&self, kept: &Kept) -> Result<(), String> {
        match kept {
            Kept::Card(kept) => self.0.restore(kept),
            _ => Err(OTHER_KIND.into()),
        }
    }

    fn described(&self, index: u16, size: u16, features: u64) {
        match Role::of(&self.0, index, features) {
            Role::Control => self.0.controlled(),
            Role::Receive(pair) => self.0.set_ring_size(pair, size),
            Role::Transmit(_) | Role::Unused => {}
        }
    }

    /// One for each pair, and one for commands, whose work may take a while.
    fn worker(&self, index: u16, features: u64) -> u16 {
        match Role::of(&self.0, index, features) {
            Role::Receive(pair) | Role::Transmit(pair) => pair,
            Role::Control | Role::Unused => self.0.pairs(),
        }
    }

    fn queue(&self, index: u16, features: u64) -> io::Result<NetQueue> {
        let card = self.0.clone();
        match Role::of(&card, index, features) {
            Role::Receive(pair) => RxQueue::new(card, pair, features).map(NetQueue::Receive),
            Role::Transmit(pair) => TxQueue::new(card, pair, features).map(NetQueue::Transmit),
            Role::Control => Ok(NetQueue::Control(ControlQueue::new(card, features))),
            Role::Unused => Ok(NetQueue::Unused(Unused)),
        }
    }
}

/// A queue of a card.
#[derive(Debug)]
pub enum NetQueue {
    /// From the network to the driver.
    Receive(RxQueue),
    /// From the driver to the network.
    Transmit(TxQueue),
    /// From the driver to the card.
    Control(ControlQueue),
    /// The place of the control queue, for a driver that did not negotiate one.
    Unused(Unused),
}

/// A queue that a driver should not have enabled: whatever it gives comes back
/// untouched. It is the driver's fault, so it is no error.
#[derive(Debug)]
pub struct Unused;

impl Queue for Unused {
    fn take(&mut self, _memory: &Arc<Memory>, _chain: &Chain) -> Outcome {
        Outcome::Done(0)
    }
}

impl NetQueue {
    fn inner(&self) -> &dyn Queue {
        match self {
            Self::Receive(queue) => queue,
            Self::Transmit(queue) => queue,
            Self::Control(queue) => queue,
            Self::Unused(queue) => queue,
        }
    }

    fn inner_mut(&mut self) -> &mut dyn Queue {
        match self {
            Self::Receive(queue) => queue,
            Self::Transmit(queue) => queue,
            Self::Control(queue) => queue,
            Self::Unused(queue) => queue,
        }
    }
}

impl Queue for NetQueue {
    fn take(&mut self, memory: &Arc<Memory>, chain: &Chain) -> Outcome {
        self.inner_mut().take(memory, chain)
    }

    fn submit(&mut self) -> io::Result<()> {
        self.inner_mut().submit()
    }

    fn ready(&self) -> Option<BorrowedFd<'_>> {
        self.inner().ready()
    }

    fn reap(&mut self, done: &mut dyn FnMut(u16, u32)) -> io::Result<()> {
        self.inner_mut().reap(done)
    }

    fn give_back(&mut self, back: &mut dyn FnMut(u16)) {
        self.inner_mut().give_back(back);
    }

    fn in_flight(&self) -> usize {
        self.inner().in_flight()
    }
}
