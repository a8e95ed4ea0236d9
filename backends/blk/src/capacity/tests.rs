use std::sync::atomic::AtomicBool;
use std::time::Duration;

use outboard_protocol::Deadline;
use outboard_protocol::launch::{Channel, FromBackend};

use super::*;
use crate::hold::tests::supervisor;

const LARGE: u64 = 1 << 20;
const SMALL: u64 = 1 << 19;
/// How often the disk shrinks and grows among many workers.
const ROUNDS: usize = 100;

/// Of a large disk with a supervisor.
fn capacity() -> (Arc<Capacity>, Channel) {
    let (supervisor, line) = supervisor(false);
    let capacity = Arc::new(Capacity::new(LARGE));
    capacity.supervised(&supervisor);
    (capacity, line)
}

/// What has been answered within this time.
fn within(line: &Channel, time: Duration) -> Option<u64> {
    let heard = line.recv::<FromBackend>(Deadline::after(time));
    match heard.ok().flatten()?.0 {
        FromBackend::Resized { size } => Some(size),
        other => panic!("{other:?}"),
    }
}

/// What has been answered by now.
fn answer(line: &Channel) -> Option<u64> {
    within(line, Duration::ZERO)
}

#[test]
fn an_answer_waits_for_every_job_beyond_the_end_and_for_no_other() {
    let (capacity, line) = capacity();
    let [first, second] = [(); 2].map(|()| Reach::new(&capacity, 4));
    assert!(first.enter(0, SMALL) && first.enter(3, SMALL + 1));
    assert!(second.enter(0, LARGE) && second.enter(1, 0));
    assert_eq!(capacity.change(Some(SMALL)), LARGE);
    assert_eq!(answer(&line), None);
    second.leave(0);
    assert_eq!(answer(&line), None);
    first.leave(3);
    assert_eq!(answer(&line), Some(SMALL));
    first.leave(0);
    second.leave(1);
    assert_eq!(answer(&line), None, "it has been given");
}

#[test]
fn nothing_beyond_the_end_begins_after_a_shrink() {
    let (capacity, line) = capacity();
    let reach = Reach::new(&capacity, 4);
    assert!(reach.enter(0, LARGE));
    capacity.change(Some(SMALL));
    for _ in 0..2 {
        assert!(!reach.enter(1, SMALL + 1));
        assert!(reach.enter(1, SMALL));
        reach.leave(1);
        assert_eq!(answer(&line), None);
    }
    reach.leave(0);
    assert_eq!(answer(&line), Some(SMALL));
    assert!(!reach.enter(0, LARGE));
    assert!(!reach.enter(4, 0), "an id that no job has");
}

#[test]
fn a_larger_disk_the_same_one_and_a_refusal_are_answered_at_once() {
    let (capacity, line) = capacity();
    let reach = Reach::new(&capacity, 4);
    assert!(reach.enter(0, LARGE));
    for (asked, before, now) in [
        (Some(LARGE), LARGE, LARGE),
        (Some(2 * LARGE), LARGE, 2 * LARGE),
        (None, 2 * LARGE, 2 * LARGE),
    ] {
        assert_eq!(capacity.change(asked), before);
        assert_eq!(answer(&line), Some(now));
        assert_eq!(capacity.get(), now);
    }
    assert!(reach.enter(1, 2 * LARGE));
}

#[test]
fn of_several_the_last_is_answered() {
    let (capacity, line) = capacity();
    let reach = Reach::new(&capacity, 4);
    assert!(reach.enter(0, LARGE) && reach.enter(1, SMALL));
    capacity.change(Some(SMALL));
    capacity.change(Some(SMALL / 2));
    capacity.change(None);
    reach.leave(0);
    assert_eq!(answer(&line), None, "the other is beyond that");
    capacity.change(Some(SMALL));
    assert_eq!(answer(&line), Some(SMALL));
    reach.leave(1);
    assert_eq!(answer(&line), None);
}

#[test]
fn what_may_still_be_written_is_never_said_to_be_over() {
    let (capacity, line) = capacity();
    let reach = Reach::new(&capacity, 4);
    assert!(reach.enter(2, LARGE));
    reach.lose();
    // The next ring begins, and knows nothing of it.
    assert!(reach.enter(2, 512));
    capacity.change(Some(SMALL));
    reach.leave(2);
    assert_eq!(answer(&line), None);
    capacity.change(Some(LARGE));
    assert_eq!(answer(&line), Some(LARGE));
}

#[test]
fn an_image_that_is_yet_to_be_cut_makes_no_disk_larger() {
    let (capacity, _line) = capacity();
    assert_eq!(capacity.found(2 * LARGE), (LARGE, 2 * LARGE));
    capacity.change(Some(SMALL));
    assert_eq!(capacity.found(LARGE), (SMALL, SMALL));
    assert_eq!(capacity.found(SMALL / 2), (SMALL, SMALL / 2));
    capacity.change(Some(LARGE));
    assert_eq!(capacity.found(2 * LARGE), (LARGE, LARGE));
}

/// Workers begin and end jobs as fast as they can while the disk shrinks and grows: none
/// has one beyond the end when that has been said.
#[test]
fn no_job_beyond_the_end_is_left_when_it_is_said_however_it_comes() {
    let (capacity, line) = capacity();
    let is_over = AtomicBool::new(false);
    // From an answer until the disk grows again.
    let is_small = AtomicBool::new(false);
    let left = AtomicU64::new(0);
    let begun = AtomicU64::new(0);
    let work = |reach: Reach| {
        for end in [SMALL, LARGE].into_iter().cycle() {
            if reach.enter(0, end) {
                if end == LARGE {
                    begun.fetch_add(1, Ordering::Relaxed);
                    let is_wrong = is_small.load(Ordering::SeqCst);
                    left.fetch_add(is_wrong.into(), Ordering::Relaxed);
                }
                reach.leave(0);
            }
            if is_over.load(Ordering::Relaxed) {
                return;
            }
        }
    };
    let answered = std::thread::scope(|scope| {
        for _ in 0..3 {
            let reach = Reach::new(&capacity, 1);
            let work = &work;
            scope.spawn(move || work(reach));
        }
        let answered = (0..ROUNDS).all(|_| {
            capacity.change(Some(SMALL));
            let shrunk = within(&line, Duration::from_secs(60)) == Some(SMALL);
            is_small.store(true, Ordering::SeqCst);
            std::thread::yield_now();
            is_small.store(false, Ordering::SeqCst);
            capacity.change(Some(LARGE));
            shrunk && within(&line, Duration::from_secs(60)) == Some(LARGE)
        });
        is_over.store(true, Ordering::Relaxed);
        answered
    });
    assert!(answered, "there is no answer");
    assert_eq!(left.into_inner(), 0, "jobs beyond the end");
    assert!(begun.into_inner() > 0, "nothing was under way");
}
