use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_protocol::Deadline;
use outboard_protocol::kept::Kept;
use outboard_protocol::launch::{Channel, FromBackend, Link, ToBackend};

use super::*;

/// Of a disk that has a supervisor, and the supervisor's end of the line.
pub(crate) fn supervised(holds: &Holds) -> Channel {
    let (supervisor, line) = supervisor(false);
    holds.supervised(&supervisor);
    line
}

/// Both ends of a line, of a process that `waits` or serves.
pub(crate) fn supervisor(waits: bool) -> (Arc<Supervisor>, Channel) {
    let soon = || Deadline::after(Duration::from_secs(60));
    let (line, theirs) = Channel::pair().unwrap();
    let start = ToBackend::Start {
        version: 2,
        kept: Kept::Nothing,
        link: Link::Up,
        replay: Default::default(),
        waits,
    };
    line.send(&start, &[], soon()).unwrap();
    let supervisor = Supervisor::meet(theirs.into(), soon()).unwrap();
    (Arc::new(supervisor), line)
}

/// What has been said by now: of which queue, and why.
pub(crate) fn heard(line: &Channel) -> Option<(u16, String)> {
    let heard = line.recv::<FromBackend>(Deadline::after(Duration::ZERO));
    match heard.ok().flatten()?.0 {
        FromBackend::IoError { queue, text } => Some((queue, text)),
        other => panic!("{other:?}"),
    }
}

fn hold(holds: &Arc<Holds>, index: u16) -> Hold<char> {
    Hold::new(holds, index, None).unwrap()
}

fn is_ready(hold: &Hold<char>) -> bool {
    let mut fds = [PollFd::new(hold.ready(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO) == Ok(1)
}

/// Attempts something, which fails, and holds it.
fn fails(hold: &mut Hold<char>, number: u64, value: char) {
    let attempt = hold.now();
    assert_eq!(hold.judge(attempt, || "it is full".into()), Fate::Held);
    hold.put(number, attempt, value);
}

#[test]
fn the_supervisor_is_told_once_between_two_retries_whatever_fails_on_which_queue() {
    let holds = Arc::new(Holds::default());
    let line = supervised(&holds);
    let (mut first, mut second) = (hold(&holds, 0), hold(&holds, 1));
    for round in 0..3 {
        fails(&mut second, round, 'a');
        assert_eq!(heard(&line), Some((1, "it is full".into())));
        fails(&mut first, round, 'b');
        assert_eq!(heard(&line), None);
        assert!(!is_ready(&first) && !is_ready(&second));
        assert!(first.take().is_empty() && second.take().is_empty());
        holds.retry();
        assert!(is_ready(&first) && is_ready(&second));
        assert_eq!((first.take(), second.take()), (vec!['b'], vec!['a']));
        assert!(!is_ready(&first) && !is_ready(&second));
    }
}

#[test]
fn what_is_taken_is_in_the_order_in_which_it_was_asked_for() {
    let holds = Arc::new(Holds::default());
    let _line = supervised(&holds);
    let mut hold = hold(&holds, 0);
    for (number, request) in [(5, 'c'), (1, 'a'), (9, 'd'), (3, 'b')] {
        fails(&mut hold, number, request);
    }
    assert_eq!(hold.take_all(), ['a', 'b', 'c', 'd']);
    assert_eq!(hold.take_all(), []);
}

#[test]
fn without_a_supervisor_that_hears_nothing_is_held() {
    let holds = Arc::new(Holds::default());
    let mut hold = hold(&holds, 0);
    let judged = |hold: &Hold<char>| hold.judge(hold.now(), || "it is full".into());
    assert_eq!(judged(&hold), Fate::Over);
    let line = supervised(&holds);
    fails(&mut hold, 0, 'a');
    holds.retry();
    drop(line);
    assert_eq!(judged(&hold), Fate::Over);
    assert_eq!(judged(&hold), Fate::Over, "it was told of no other");
}

/// A retry that comes before the failure is not missed and tells of nothing, one that
/// comes with nothing held leaves no ring behind.
#[test]
fn a_retry_at_any_moment_is_seen_and_seen_once() {
    let holds = Arc::new(Holds::default());
    let line = supervised(&holds);
    let mut hold = hold(&holds, 0);
    holds.retry();
    assert!(!is_ready(&hold));
    // It comes while something is attempted.
    let attempt = hold.now();
    holds.retry();
    let never = || -> String { panic!("it is not told") };
    assert_eq!(hold.judge(attempt, never), Fate::Again);
    // It comes before what has failed is held.
    let attempt = hold.now();
    assert_eq!(hold.judge(attempt, || "it is full".into()), Fate::Held);
    holds.retry();
    hold.put(1, attempt, 'a');
    fails(&mut hold, 2, 'b');
    assert_eq!(hold.take(), ['a'], "the other was attempted since");
    assert!(heard(&line).is_some() && heard(&line).is_some());
    assert!(heard(&line).is_none());
    // Somebody takes all of it while its waker is being rung.
    assert!(hold.waker.is_wanted.swap(false, Ordering::SeqCst));
    assert_eq!(hold.take_all(), ['b']);
    hold.waker.event.write(1).unwrap();
    assert!(is_ready(&hold));
    assert!(hold.take().is_empty());
    assert!(!is_ready(&hold), "it would be ready for ever");
}

#[test]
fn it_is_ready_when_its_engine_is() {
    let holds = Arc::new(Holds::default());
    let engine = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let hold = Hold::new(&holds, 0, Some(engine.as_fd())).unwrap();
    assert!(!is_ready(&hold));
    engine.write(1).unwrap();
    assert!(is_ready(&hold));
    drop(engine);
    assert!(!is_ready(&hold));
    let another = EventFd::from_value_and_flags(1, EfdFlags::EFD_NONBLOCK).unwrap();
    hold.follow(Some(another.as_fd())).unwrap();
    assert!(is_ready(&hold));
}

/// Queues that hold what they like, and somebody who asks for retries: everything that
/// is held is taken again, and the supervisor knows of whatever is held.
#[test]
fn no_retry_is_lost_between_threads() {
    const ROUNDS: u64 = 2000;
    let holds = Arc::new(Holds::default());
    let line = supervised(&holds);
    let queues = [0, 1].map(|index| {
        let holds = holds.clone();
        std::thread::spawn(move || {
            let mut hold = hold(&holds, index);
            for round in 0..ROUNDS {
                let attempt = hold.now();
                match hold.judge(attempt, || "it is full".into()) {
                    Fate::Again => continue,
                    Fate::Held => hold.put(round, attempt, 'x'),
                    Fate::Over => panic!("there is a supervisor"),
                }
                let minute = Duration::from_secs(60);
                let deadline = Deadline::after(minute);
                while hold.take().is_empty() {
                    deadline
                        .wait_for(hold.ready(), PollFlags::POLLIN)
                        .expect("a retry was lost");
                }
            }
        })
    });
    let mut retries = 0;
    while queues.iter().any(|queue| !queue.is_finished()) {
        // It answers what it hears, as a supervisor does.
        if heard(&line).is_some() {
            holds.retry();
            retries += 1;
        } else {
            std::thread::yield_now();
        }
    }
    for queue in queues {
        queue.join().unwrap();
    }
    assert!(
        retries > 0 && heard(&line).is_none(),
        "told, and nothing held"
    );
}
