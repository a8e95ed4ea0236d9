//! The pulse of a worker: what it does, for whoever asks whether it hangs
//! (`outboard_protocol::counters`). Each worker's thread has one, and no other thread.
//!
//! ```text
//! asleep ◄──► working ⟲ a round ◄──► in a system call that may take as long as a disk
//! ```
//! A change of it is a store to each of its queues' parts of the page, and no more.

use std::cell::RefCell;
use std::sync::Arc;

use outboard_protocol::counters::{Doing, Pulse};

use crate::page::Page;

/// The pulse of this thread, and where it is shown.
struct Shown {
    page: Arc<Page>,
    queues: Vec<u16>,
    pulse: Pulse,
}

thread_local! {
    static THIS: RefCell<Option<Shown>> = const { RefCell::new(None) };
}

/// From now on this thread is the worker of these queues, which sleeps.
pub(crate) fn begin(page: Arc<Page>, queues: &[u16]) {
    let shown = Shown {
        page,
        queues: queues.to_vec(),
        pulse: Pulse::default(),
    };
    THIS.set(Some(shown));
}

/// The worker begins another round.
pub(crate) fn round() {
    beat(Doing::Working);
}

/// The worker goes to sleep.
pub(crate) fn sleep() {
    beat(Doing::Asleep);
}

/// Makes a system call, or several, that may take as long as the storage behind a device
/// does: a worker that waits in there does not hang. On any other thread it makes no
/// difference.
pub fn system_call<T>(call: impl FnOnce() -> T) -> T {
    beat(Doing::SystemCall);
    let value = call();
    beat(Doing::Working);
    value
}

fn beat(doing: Doing) {
    THIS.with_borrow_mut(|this| {
        if let Some(shown) = this {
            shown.pulse = Pulse {
                doing,
                rounds: shown.pulse.rounds.wrapping_add(1),
            };
            for queue in &shown.queues {
                shown.page.set_pulse(*queue, shown.pulse);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use outboard_protocol::counters;

    use super::*;

    #[test]
    fn a_pulse_is_seen_on_each_of_the_worker_s_queues_and_no_other_thread_has_it() {
        let page = Arc::new(Page::new(3).unwrap());
        let pulses = || {
            let read = counters::read(page.file().unwrap(), 3).unwrap();
            let pulses: Vec<_> = read.iter().map(|queue| queue.pulse).collect();
            assert_eq!(pulses[0], pulses[2]);
            assert_eq!(pulses[1], Pulse::default());
            pulses[0]
        };
        begin(page.clone(), &[0, 2]);
        let asleep = pulses();
        assert_eq!(asleep.doing, Doing::Asleep);
        round();
        let first = pulses();
        assert_eq!(first.doing, Doing::Working);
        std::thread::scope(|scope| {
            scope.spawn(|| system_call(round));
        });
        assert_eq!(pulses(), first);
        let within = system_call(pulses);
        assert_eq!(within.doing, Doing::SystemCall);
        let after = pulses();
        assert_eq!(after.doing, Doing::Working);
        round();
        let second = pulses();
        sleep();
        let rounds = [asleep, first, within, after, second, pulses()];
        let rounds = rounds.map(|pulse| pulse.rounds);
        assert!(rounds.is_sorted_by(|one, next| one < next), "{rounds:?}");
        assert_eq!(pulses().doing, Doing::Asleep);
    }
}
