//! What a back-end has counted, and those before it.

use outboard_protocol::counters::{Counts, Reading};

use super::Backend;
use crate::supervisor::process::child::Child;
use crate::supervisor::vm::counters::Page;
use crate::supervisor::vm::look::Examined;

impl Backend {
    /// What each queue of its process has done, living or dead, and of those before it;
    /// nothing if none of them has counted.
    pub(crate) fn sums(&self) -> Vec<Reading> {
        let mut queues = self.counts();
        queues.resize(queues.len().max(self.past.len()), Reading::default());
        for (queue, past) in queues.iter_mut().zip(&self.past) {
            queue.counts = queue.counts.with(past);
        }
        queues
    }

    /// It follows this one, which serves nothing any more, and counts on from there.
    pub(crate) fn follow(&mut self, predecessor: &Self) {
        self.past = predecessor
            .sums()
            .iter()
            .map(|queue| queue.counts)
            .collect();
    }

    /// The sums; from now on there are none.
    pub(super) fn close_page(&mut self) -> Vec<Counts> {
        let sums = self.sums().iter().map(|queue| queue.counts).collect();
        (self.counters, self.past) = (None, Vec::new());
        sums
    }

    /// What each queue of its process has done, living or dead; nothing if it does not
    /// count.
    fn counts(&self) -> Vec<Reading> {
        let read = |page: &Page| self.readable(page.read());
        self.counters.as_ref().and_then(read).unwrap_or_default()
    }

    /// What its process does just now, and what its page says of this queue.
    pub(crate) fn examine(&self, queue: u16) -> Examined {
        Examined {
            is_stopped: self.child.as_ref().is_some_and(Child::is_stopped),
            page: self.counts().get(usize::from(queue)).copied(),
        }
    }

    /// Logs what its process has served, living or dead, if it counts.
    pub(crate) fn tell_counts(&self) {
        let total = self.counters.as_ref().map(Page::total);
        if let Some(total) = total.and_then(|total| self.readable(total)) {
            let (chains, batches, calls) = (total.chains, total.batches, total.calls);
            let (id, name) = (&self.opened.spec.id, self.opened.server.name());
            log::info!(
                "{id}: {name} had taken {chains} chains, moved used indices {batches} times and \
                 made {calls} calls"
            );
        }
    }
}
