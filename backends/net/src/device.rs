//! A card as the runtime takes it: a `Device` with three kinds of queue.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use outboard_protocol::kept::Kept;
use outboard_runtime::chain::Chain;
use outboard_runtime::device::{Change, Device, Done, Memory, OTHER_KIND, Outcome, Queue};
use outboard_runtime::{News, Notifier, Supervisor};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};

use crate::card::{Card, Service};
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

    fn supervised(&self, supervisor: &Arc<Supervisor>) {
        self.0.supervised(supervisor);
    }

    fn hear(&self, news: News) {
        self.0.hear(news);
    }

    fn takes_over(&self) {
        self.0.takes_over();
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

    /// One for each pair, and one for commands, whose work may take a while: that
    /// of the last queue or, for a driver without MQ, of the second pair, which has
    /// nothing else to do then.
    fn worker(&self, index: u16) -> u16 {
        index / 2
    }

    fn queue(&self, index: u16) -> io::Result<NetQueue> {
        let card = self.0.clone();
        Ok(NetQueue {
            card,
            index,
            role: Box::new(Unused),
            service: None,
        })
    }
}

/// A queue of a card: what it is depends on what the driver of its ring has
/// negotiated.
#[derive(Debug)]
pub struct NetQueue {
    card: Arc<Card>,
    index: u16,
    /// [`Unused`] without a ring.
    role: Box<dyn Served>,
    /// While there is a ring; let go after the role, which still has the tap.
    service: Option<Service>,
}

/// What a queue of a card can be.
trait Served: Queue + std::fmt::Debug {}

impl<Q: Queue + std::fmt::Debug> Served for Q {}

/// A queue that a driver should not have enabled, as the place of the control queue
/// if it did not negotiate one: whatever it gives comes back untouched. It is the
/// driver's fault, so it is no error.
#[derive(Debug)]
struct Unused;

impl Queue for Unused {
    fn map(&mut self, _memory: Arc<Memory>) {}

    fn take(&mut self, _chain: &Chain) -> Outcome {
        Outcome::Done(0)
    }
}

impl Queue for NetQueue {
    fn begin(&mut self, features: u64) -> io::Result<()> {
        let card = self.card.clone();
        // Before anything is taken from the tap, or given to it.
        let service = card.begin(features);
        self.role = match Role::of(&card, self.index, features) {
            Role::Receive(pair) => Box::new(RxQueue::new(card, pair, features)?),
            Role::Transmit(pair) => Box::new(TxQueue::new(card, pair, features)?),
            Role::Control => Box::new(ControlQueue::new(card, features)),
            Role::Unused => Box::new(Unused),
        };
        self.service = Some(service);
        Ok(())
    }

    fn map(&mut self, memory: Arc<Memory>) {
        self.role.map(memory);
    }

    fn take(&mut self, chain: &Chain) -> Outcome {
        self.role.take(chain)
    }

    fn refuse(&mut self, chain: &Chain) -> (u32, String) {
        self.role.refuse(chain)
    }

    fn is_patient(&self) -> bool {
        self.role.is_patient()
    }

    fn submit(&mut self) -> io::Result<()> {
        self.role.submit()
    }

    fn ready(&self) -> Option<BorrowedFd<'_>> {
        self.role.ready()
    }

    fn reap(&mut self, done: &mut dyn FnMut(u16, u32)) -> io::Result<()> {
        self.role.reap(done)
    }

    fn give_back(&mut self, back: &mut dyn FnMut(u16)) {
        self.role.give_back(back);
    }

    fn in_flight(&self) -> usize {
        self.role.in_flight()
    }

    fn done(&mut self) -> Done {
        self.role.done()
    }

    fn is_timed(&self) -> bool {
        self.role.is_timed()
    }

    fn end(&mut self) {
        self.role = Box::new(Unused);
        self.service = None;
    }
}
