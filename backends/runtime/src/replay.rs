//! Requests that a predecessor had taken and not returned: whether they are executed
//! together or one by one, and what the supervisor hears of them.
//!
//! ```text
//! a ring begins with some: found ──► taken again, together ──────────────► replayed
//!                            └─────► begin, executed, end; the next ─…──┘
//! ```
//! One by one is over all queues of the device: while any of them has such a request,
//! no other is executed and nothing new is taken. So a process that dies of a request
//! has named it, and that one alone.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outboard_protocol::launch::{FromBackend, InFlight, MOST_TOLD, Replay as Order};

use crate::supervisor::Supervisor;

/// See the module; one for a device. The default is that of a device which nobody
/// supervises.
#[derive(Debug, Default)]
pub struct Replay {
    supervisor: Arc<Supervisor>,
    /// As ordered; apart, since every request looks at it.
    one_by_one: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// These are to be ended in an error.
    refuse: Vec<InFlight>,
    /// Queues that have such requests.
    queues: BTreeSet<u16>,
    /// The one that is executed alone.
    alone: Option<InFlight>,
    /// Queues whose device may have others, which no predecessor has taken.
    busy: BTreeSet<u16>,
}

impl Replay {
    /// As the supervisor has ordered, which hears of it.
    pub fn ordered(supervisor: Arc<Supervisor>, order: Order) -> Self {
        let replay = Self {
            supervisor,
            ..Self::default()
        };
        replay.orders(order);
        replay
    }

    /// The supervisor orders this, before any ring has begun.
    pub fn orders(&self, order: Order) {
        self.state().refuse = order.refuse;
        self.one_by_one.store(order.one_by_one, Ordering::Release);
    }

    /// The ring of `queue`, which is new, begins with these requests (heads and
    /// counters), if any: to be said before it and those that begin with it are served.
    pub fn found(&self, queue: u16, requests: &[(u16, u64)]) {
        if requests.is_empty() {
            return;
        }
        self.enter(queue);
        for requests in requests.chunks(MOST_TOLD) {
            let requests = requests.to_vec();
            self.supervisor
                .says(&FromBackend::Found { queue, requests });
        }
    }

    /// The ring of `queue`, which has such requests, is to be served.
    pub fn enter(&self, queue: u16) {
        self.state().queues.insert(queue);
    }

    /// It is not served any more, and nothing is known of its requests.
    pub fn leave(&self, queue: u16) {
        self.remove(queue);
        self.state().busy.remove(&queue);
    }

    /// All of its requests have been returned.
    pub fn replayed(&self, queue: u16) {
        if self.remove(queue) {
            self.supervisor.says(&FromBackend::Replayed { queue });
        }
    }

    fn remove(&self, queue: u16) -> bool {
        let mut state = self.state();
        let had = state.queues.remove(&queue);
        state.alone.take_if(|alone| alone.queue == queue);
        had
    }

    /// Whether each is executed alone.
    pub fn is_one_by_one(&self) -> bool {
        self.one_by_one.load(Ordering::Acquire)
    }

    /// Whether `queue` may take a request that no predecessor has taken. One by one, it
    /// says when it has none any more ([`Self::rest`]).
    pub fn admits(&self, queue: u16) -> bool {
        if !self.is_one_by_one() {
            return true;
        }
        let mut state = self.state();
        let admits = state.queues.is_empty();
        if admits {
            state.busy.insert(queue);
        }
        admits
    }

    /// The device has no such request of `queue`.
    pub fn rest(&self, queue: u16) {
        self.state().busy.remove(&queue);
    }

    /// Whether this request may be executed now; one by one, no other may be until its
    /// [end](Self::end), and the supervisor knows of it when this returns.
    pub fn begin(&self, request: InFlight) -> bool {
        if !self.is_one_by_one() {
            return true;
        }
        let mut state = self.state();
        match state.alone {
            Some(alone) => alone == request,
            // One ring may begin after another that has had time for what is new.
            None if !state.busy.is_empty() => false,
            None => {
                state.alone = Some(request);
                if !state.refuse.contains(&request) {
                    self.supervisor.says(&FromBackend::Replays(request));
                }
                true
            }
        }
    }

    /// The request of `queue` that was executed alone has been returned.
    pub fn end(&self, queue: u16) {
        let mut state = self.state();
        state.alone.take_if(|alone| alone.queue == queue);
    }

    /// Whether this one is to be ended in an error.
    pub fn refuses(&self, request: InFlight) -> bool {
        self.state().refuse.contains(&request)
    }

    /// It is ended so, and `what` it asks for. The supervisor knows when this returns.
    pub fn refused(&self, request: InFlight, what: &str) {
        let InFlight {
            queue,
            head,
            counter,
        } = request;
        log::error!(
            "queue {queue}: {what} (head {head}, counter {counter}) is ended in an error and was \
             not executed: one process after another has died of it"
        );
        self.supervisor.refused(request, what);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
