//! What a program serves, to one front-end after another: the device, and all that
//! is made for it once.

use std::sync::Arc;
use std::time::Duration;

use outboard_protocol::deadline::limits;
use outboard_protocol::shared::Alarm;

use super::change::Busy;
use crate::device::Device;
use crate::notifier::Notifier;
use crate::worker::Workers;

/// How long a session waits, and for what.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A worker that has been busy polls for this long at most before it
    /// sleeps; zero is not at all.
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
#[derive(Debug)]
pub struct Host<D> {
    pub(super) base: Base<D>,
    pub(super) workers: Workers,
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
}

impl<D: Device> Host<D> {
    /// Serves `device` within `limits`. Every thread and every queue that its
    /// sessions will need is there when this returns.
    ///
    /// # Errors
    /// Those of eventfd(2); there is no thread to be had, or one of the device's
    /// queues is not.
    pub fn new(device: D, limits: Limits) -> std::io::Result<Self> {
        let notifier = Notifier::new()?;
        device.attach(notifier.clone());
        let device = Arc::new(device);
        let workers = Workers::new(&device, limits.poll)?;
        let base = Base {
            device,
            notifier,
            limits,
            alarm: Arc::new(Alarm::new()?),
            preparing: Busy::default(),
        };
        Ok(Self { base, workers })
    }
}
