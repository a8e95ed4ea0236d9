//! What is told while an answer is waited for: who waits for it cannot look at the rings
//! meanwhile, and the back-end may hang.

use std::sync::Arc;
use std::time::Duration;

use outboard_protocol::Deadline;
use outboard_protocol::launch::{Device, FromMachine, SessionNumber};

use crate::machine::post::Mailbox;

/// Who is told, again and again, that the back-end of a device owes an answer.
#[derive(Debug)]
pub(crate) struct Patience {
    every: Duration,
    device: String,
    queues: u16,
    session: SessionNumber,
    events: Arc<Mailbox<FromMachine>>,
    times: u32,
    due: Deadline,
}

impl Patience {
    /// With a session of this device; `None` if it is allowed to hang.
    pub(crate) fn new(
        spec: &Device,
        session: SessionNumber,
        events: &Arc<Mailbox<FromMachine>>,
    ) -> Option<Self> {
        let every = Duration::from_millis(spec.hang_timeout?.into()) / 2;
        Some(Self {
            every,
            device: spec.id.clone(),
            queues: spec.queues,
            session,
            events: Arc::clone(events),
            times: 0,
            due: Deadline::after(every),
        })
    }

    /// An answer is waited for from now on.
    pub(super) fn begin(&mut self) {
        self.times = 0;
        self.due = Deadline::after(self.every);
    }

    /// When it is to be told next that none has come.
    pub(super) fn due(&self) -> Deadline {
        self.due
    }

    /// Tells it, if that is due: any worker may be the one that does not get on.
    pub(super) fn attend(&mut self) {
        if !self.due.passed() {
            return;
        }
        self.due = Deadline::after(self.every);
        self.times = self.times.saturating_add(1);
        for queue in 0..self.queues {
            self.events.post(FromMachine::Unserved {
                device: self.device.clone(),
                session: self.session,
                queue,
                kick: false,
                times: self.times,
            });
        }
    }
}
