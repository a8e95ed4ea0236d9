//! What a program serves, to one front-end after another: the device, and all that
//! is made for it once; what it hears of its supervisor and tells it meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use outboard_protocol::deadline::limits;
use outboard_protocol::kept::Kept;
use outboard_protocol::launch::{Link, Replay as Order};
use outboard_protocol::shared::Alarm;

use super::change::Busy;
use crate::device::Device;
use crate::notifier::Notifier;
use crate::page::Page;
use crate::replay::Replay;
use crate::supervisor::{News, Supervisor};
use crate::worker::Workers;

/// How long a session waits, and for what.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A worker that has been busy, and a session that has had a message, poll for this
    /// long at most before they sleep; zero is not at all.
    pub poll: Duration,
    /// A message begun must be complete within this, and an answer be read.
    pub message: Duration,
    /// A device's I/O must be over within this: it has returned every chain when
    /// its ring is stopped, or has done what must come before a change of its
    /// configuration. A request to a slow disk may well take seconds.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            poll: Duration::from_micros(50),
            message: limits::MESSAGE,
            drain: limits::IO,
        }
    }
}

/// A device, and what serves its queues.
pub struct Host<D: Device> {
    pub(super) base: Base<D>,
    pub(super) workers: Workers<D::Queue>,
}

impl<D: Device> std::fmt::Debug for Host<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}

/// What a session uses of it besides the workers.
#[derive(Debug)]
pub(super) struct Base<D> {
    pub device: Arc<D>,
    pub notifier: Notifier,
    pub limits: Limits,
    /// Rings when something that the front-end lent is not there any more.
    pub alarm: Arc<Alarm>,
    pub preparing: Busy,
    pub supervisor: Arc<Supervisor>,
    pub page: Option<Arc<Page>>,
    pub replay: Arc<Replay>,
    /// The device is as a predecessor has left it, and no session has begun.
    is_restored: AtomicBool,
}

impl<D: Device> Host<D> {
    /// Serves `device` within `limits`, for nobody who supervises it. Every thread and
    /// every queue that its sessions will need is there when this returns.
    ///
    /// # Errors
    /// Those of eventfd(2); there is no thread to be had, or one of the device's
    /// queues is not.
    pub fn new(device: D, limits: Limits) -> std::io::Result<Self> {
        Self::with_page(device, limits, None)
    }

    fn with_page(device: D, limits: Limits, page: Option<Page>) -> std::io::Result<Self> {
        let page = page.map(Arc::new);
        let notifier = Notifier::new()?;
        device.attach(notifier.clone());
        let device = Arc::new(device);
        let workers = Workers::new(&device, limits.poll, page.as_ref())?;
        let base = Base {
            device,
            notifier,
            limits,
            alarm: Arc::new(Alarm::new()?),
            preparing: Busy::default(),
            supervisor: Arc::default(),
            page,
            replay: Arc::default(),
            is_restored: AtomicBool::new(false),
        };
        Ok(Self { base, workers })
    }

    /// Serves `device` for a supervisor: restores what was kept, if anything was, and
    /// says that it is ready.
    ///
    /// # Errors
    /// The device does not take what was kept; those of [`Host::new`] and
    /// [`Page::new`].
    pub fn supervised(device: D, limits: Limits, supervisor: Supervisor) -> anyhow::Result<Self> {
        let page = Page::new(device.queues()).context("cannot make the page of counters")?;
        let host = Self::with_page(device, limits, Some(page));
        let mut host = host.context("cannot make the device's queues")?;
        let base = &mut host.base;
        let is_successor = *supervisor.kept() != Kept::Nothing;
        if is_successor {
            let restored = base.device.restore(supervisor.kept());
            restored.map_err(|why| {
                anyhow!("cannot go on as the back-end before did: what it has left: {why}")
            })?;
        }
        let page = base.page.as_ref().and_then(|page| page.file());
        supervisor.ready(base.device.kept(), page);
        let (link, supervisor) = (supervisor.link(), Arc::new(supervisor));
        base.device.supervised(&supervisor);
        if link != Link::Up {
            base.device.hear(News::Link(link));
        }
        base.replay = Arc::new(Replay::ordered(
            supervisor.clone(),
            supervisor.replay().clone(),
        ));
        base.supervisor = supervisor;
        base.is_restored = AtomicBool::new(is_successor);
        Ok(host)
    }
}

impl<D: Device> Base<D> {
    /// The beginning of a session: a device as it was made, or as it was restored.
    pub(super) fn begin(&self) {
        self.hear();
        self.device.attend();
        self.notifier.clear();
        if !self.is_restored.swap(false, Ordering::AcqRel) {
            self.device.reset(0);
        }
        self.tell();
    }

    /// Hands on what the supervisor has said.
    pub(super) fn hear(&self) {
        while let Some(news) = self.supervisor.hear() {
            match news {
                News::TakeOver(kept, order) if self.supervisor.waits() => {
                    self.take_over(kept, order);
                }
                news => self.device.hear(news),
            }
        }
    }

    /// The predecessor is gone: the device goes on where that one was. If it cannot, this
    /// process waits on, and serves no ring.
    fn take_over(&self, kept: Kept, order: Order) {
        self.replay.orders(order);
        // What is behind it may have changed.
        self.device.attend();
        let restored = match kept {
            Kept::Nothing => Ok(()),
            _ => self.device.restore(&kept),
        };
        match restored {
            Ok(()) => {
                self.supervisor.has_taken_over(self.device.kept());
                self.device.takes_over();
            }
            Err(why) => {
                log::error!("cannot go on as the back-end before did: what it has left: {why}")
            }
        }
    }

    /// Tells what has changed, to be called before a front-end is answered that may
    /// have changed it.
    pub(super) fn tell(&self) {
        self.supervisor.keeps(|| self.device.kept());
    }
}
