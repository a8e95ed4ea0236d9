//! Requests that fail on the host where that pauses the VM: held back, executed again,
//! and what becomes of them when their ring is stopped.

use outboard_protocol::launch::Channel;

use super::*;
use crate::disk::OnIoError;
use crate::hold::tests::{heard, supervised};

/// A disk of this kind, and its supervisor.
fn pausing() -> (Fixture, Channel) {
    let fixture = holding(true);
    let line = supervised(fixture.disk.holds().unwrap());
    (fixture, line)
}

fn holding(writeback: bool) -> Fixture {
    let settings = Settings {
        on_io_error: OnIoError::Pause,
        writeback,
        ..Settings::default()
    };
    Fixture::with(settings, Options::default()).unwrap()
}

fn queue(fixture: &Fixture) -> BlkQueue {
    let mut queue = fixture.staged(true);
    queue.hold_back(3).unwrap();
    queue
}

/// Takes a chain as the driver's `head`th.
fn enter(queue: &mut BlkQueue, chain: &Chain, head: u16) {
    let chain = Chain {
        head,
        readable: chain.readable.clone(),
        writable: chain.writable.clone(),
    };
    assert_eq!(queue.take(&chain), Outcome::Deferred);
}

/// One round of the worker: what is answered.
fn round(queue: &mut BlkQueue) -> Vec<(u16, u32)> {
    let mut answers = Vec::new();
    queue.submit().unwrap();
    queue
        .reap(&mut |head, used| answers.push((head, used)))
        .unwrap();
    answers
}

/// Rounds until nothing more comes.
fn rounds(queue: &mut BlkQueue) -> Vec<(u16, u32)> {
    (0..8).flat_map(|_| round(queue)).collect()
}

fn retry(fixture: &Fixture) {
    fixture.disk.holds().unwrap().retry();
}

#[test]
fn what_fails_is_held_back_told_once_and_executed_again_in_order() {
    let (mut fixture, line) = pausing();
    let mut queue = queue(&fixture);
    let chains = [4, 0, 2].map(|sector| fixture.write(sector, &[1; 1024]));
    for (head, chain) in (1..).zip(&chains) {
        enter(&mut queue, chain, head);
    }
    // The second comes half way.
    fixture.fates([
        Fate::Fails(libc::ENOSPC),
        Fate::Short(512),
        Fate::Fails(libc::EIO),
        Fate::Fails(libc::ENOSPC),
    ]);
    assert_eq!(rounds(&mut queue), []);
    assert_eq!(queue.in_flight(), 3);
    let (index, text) = heard(&line).unwrap();
    assert_eq!(index, 3);
    let words = "cannot write 1024 bytes at offset 2048 of the image: No space left on device";
    assert!(text.starts_with(words), "{text}");
    assert!(text.ends_with("make room where the image is stored"));
    assert_eq!(heard(&line), None);
    for chain in &chains {
        assert_eq!(fixture.guest.answer(chain), 0xee);
    }
    // Others are served meanwhile.
    let other = fixture.write(8, &[2; 512]);
    enter(&mut queue, &other, 4);
    assert_eq!(rounds(&mut queue), [(4, 1)]);
    fixture.log();
    retry(&fixture);
    assert_eq!(rounds(&mut queue), [(1, 1), (2, 1), (3, 1)]);
    assert_eq!(
        fixture.log(),
        [(WRITE, 2048, 1024), (WRITE, 512, 512), (WRITE, 1024, 1024)]
    );
    for chain in &chains {
        assert_eq!(fixture.guest.answer(chain), OK);
    }
    assert_eq!((queue.in_flight(), heard(&line)), (0, None));
    assert_eq!(
        fixture.disk.troubles().take_count(),
        0,
        "the guest saw none"
    );
}

#[test]
fn what_fails_again_is_held_and_told_again_as_often_as_it_does() {
    let (mut fixture, line) = pausing();
    let mut queue = queue(&fixture);
    let data = fixture.guest.allocate(512, 1);
    let chain = fixture.guest.chain(IN, 0, &[], &[data]);
    enter(&mut queue, &chain, 1);
    // Also where the image was cut short.
    for fate in [Fate::Short(0), Fate::Fails(libc::EIO), Fate::Short(0)] {
        fixture.fates([fate]);
        assert_eq!(rounds(&mut queue), []);
        let (_, text) = heard(&line).unwrap();
        assert!(
            text.starts_with("cannot read 512 bytes at offset 0"),
            "{text}"
        );
        retry(&fixture);
    }
    assert_eq!(rounds(&mut queue), [(1, 513)]);
    assert_eq!(fixture.guest.answer(&chain), OK);
}

#[test]
fn what_the_guest_has_done_wrong_and_what_is_no_error_is_not_held_back() {
    let (mut fixture, line) = pausing();
    let mut queue = queue(&fixture);
    let chain = fixture.write(1 << 30, &[1; 512]);
    assert_eq!(fixture.run(&mut queue, &chain), (IOERR, 1));
    let chain = fixture.write(0, &[1; 512]);
    fixture.fates([Fate::Fails(libc::EFAULT)]);
    assert_eq!(fixture.run(&mut queue, &chain), (IOERR, 1));
    fixture.fates([Fate::Fails(libc::EINTR), Fate::Fails(libc::EAGAIN)]);
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
    // Ways that the file system does not have.
    let discard = fixture.segments(DISCARD, &[segment(0, 8, 0)]);
    for errno in [libc::EINVAL, libc::EOPNOTSUPP] {
        fixture.fates([Fate::Fails(errno)]);
        assert_eq!(fixture.run(&mut queue, &discard), (OK, 1));
    }
    assert_eq!(heard(&line), None);
}

#[test]
fn a_discard_and_zeroes_go_on_with_the_segment_that_failed() {
    let (mut fixture, line) = pausing();
    let mut queue = queue(&fixture);
    let chain = fixture.segments(WRITE_ZEROES, &[segment(0, 8, 0), segment(16, 8, 0)]);
    let zero = |offset| {
        let mode = Clear::Zero;
        (Op::Clear { mode, length: 4096 }, offset, 4096)
    };
    enter(&mut queue, &chain, 1);
    fixture.fates([Fate::Short(0), Fate::Fails(libc::ENOSPC)]);
    assert_eq!(rounds(&mut queue), []);
    assert!(heard(&line).unwrap().1.starts_with("cannot clear 4096"));
    retry(&fixture);
    assert_eq!(rounds(&mut queue), [(1, 1)]);
    assert_eq!(fixture.log(), [zero(0), zero(8192), zero(8192)]);
}

#[test]
fn a_sync_that_fails_is_reported_and_never_executed_again() {
    let (mut fixture, line) = pausing();
    let mut queue = queue(&fixture);
    fixture.fates([Fate::Fails(libc::ENOSPC)]);
    let flush = fixture.flush();
    assert_eq!(fixture.run(&mut queue, &flush), (IOERR, 1));
    retry(&fixture);
    assert_eq!(fixture.run(&mut queue, &flush), (IOERR, 1));
    assert_eq!(fixture.log(), [(Op::Sync, 0, 0)]);
    assert_eq!(heard(&line), None);
}

/// The kernel may have told this write of a sync that failed for others.
#[test]
fn a_durable_write_that_fails_is_held_back_and_what_it_may_have_told_is_not_forgotten() {
    let mut fixture = holding(false);
    let line = supervised(fixture.disk.holds().unwrap());
    let mut queue = queue(&fixture);
    let chain = fixture.write(0, &[1; 512]);
    enter(&mut queue, &chain, 1);
    fixture.fates([Fate::Fails(libc::EIO)]);
    assert_eq!(rounds(&mut queue), []);
    assert!(heard(&line).is_some());
    retry(&fixture);
    assert_eq!(rounds(&mut queue), [(1, 1)]);
    assert_eq!(fixture.log(), [(DURABLE, 0, 512), (DURABLE, 0, 512)]);
    let flush = fixture.flush();
    assert_eq!(fixture.run(&mut queue, &flush), (IOERR, 1));
}

#[test]
fn without_a_supervisor_what_fails_is_reported() {
    let mut fixture = holding(true);
    let mut queue = queue(&fixture);
    let chain = fixture.write(0, &[1; 512]);
    fixture.fates([Fate::Fails(libc::ENOSPC)]);
    assert_eq!(fixture.run(&mut queue, &chain), (IOERR, 1));
    // Nor is it held back once there is nobody any more.
    let line = supervised(fixture.disk.holds().unwrap());
    enter(&mut queue, &chain, 1);
    fixture.fates([Fate::Fails(libc::ENOSPC), Fate::Fails(libc::ENOSPC)]);
    assert_eq!(rounds(&mut queue), []);
    drop(line);
    retry(&fixture);
    assert_eq!(rounds(&mut queue), [(1, 1)]);
    assert_eq!(fixture.guest.answer(&chain), IOERR);
    assert_eq!(fixture.disk.troubles().take_count(), 2);
}

/// The worker stops the ring: what was held when it is asked to, and what fails after.
fn stop(queue: &mut BlkQueue) -> Vec<(u16, u32)> {
    let mut answers = Vec::new();
    for _ in 0..8 {
        queue.give_back(&mut |head| panic!("{head} is given back"));
        answers.extend(round(queue));
    }
    assert_eq!(queue.in_flight(), 0, "the stop would wait for its deadline");
    answers
}

#[test]
fn a_ring_that_is_stopped_ends_what_is_held_in_its_error() {
    let (mut fixture, line) = pausing();
    let mut queue = queue(&fixture);
    let chains = [0, 8].map(|sector| fixture.write(sector, &[1; 512]));
    enter(&mut queue, &chains[0], 1);
    fixture.fates([Fate::Fails(libc::ENOSPC), Fate::Fails(libc::ENOSPC)]);
    assert_eq!(round(&mut queue), []);
    enter(&mut queue, &chains[1], 2);
    let mut answers = stop(&mut queue);
    answers.sort_unstable();
    assert_eq!(answers, [(1, 1), (2, 1)]);
    for chain in &chains {
        assert_eq!(fixture.guest.answer(chain), IOERR);
    }
    assert!(heard(&line).is_some() && heard(&line).is_none());
    // The next ring holds again.
    queue.end();
    retry(&fixture);
    start(&mut queue, true, &fixture.guest);
    enter(&mut queue, &chains[0], 1);
    fixture.fates([Fate::Fails(libc::ENOSPC)]);
    assert_eq!(rounds(&mut queue), []);
    assert!(heard(&line).is_some());
}

#[test]
fn a_session_that_ends_leaves_what_is_held_in_flight() {
    let settings = Settings {
        on_io_error: OnIoError::Pause,
        ..Settings::default()
    };
    let options = Options {
        direct: true,
        ..Options::default()
    };
    let Ok(mut fixture) = Fixture::with(settings, options) else {
        return eprintln!("SKIP: no direct I/O here");
    };
    let _line = supervised(fixture.disk.holds().unwrap());
    let mut queue = queue(&fixture);
    // All of them go through a bounce buffer, of which there are fewer.
    let chains: Vec<_> = (0..5).map(|at| fixture.write(at * 8, &[1; 4096])).collect();
    fixture.fates((0..5).map(|_| Fate::Fails(libc::ENOSPC)));
    for (head, chain) in (1..).zip(&chains) {
        enter(&mut queue, chain, head);
    }
    assert_eq!(rounds(&mut queue), []);
    assert_eq!(queue.in_flight(), 5);
    fixture.disk.holds().unwrap().leave();
    assert_eq!(stop(&mut queue), []);
    for chain in &chains {
        assert_eq!(fixture.guest.answer(chain), 0xee);
    }
    assert_eq!(fixture.disk.troubles().take_count(), 5);
}

#[test]
fn a_ring_that_just_ends_forgets_what_is_held() {
    let (mut fixture, _line) = pausing();
    let mut queue = queue(&fixture);
    let chain = fixture.write(0, &[1; 512]);
    enter(&mut queue, &chain, 1);
    fixture.fates([Fate::Fails(libc::ENOSPC)]);
    assert_eq!(rounds(&mut queue), []);
    queue.end();
    start(&mut queue, true, &fixture.guest);
    retry(&fixture);
    assert_eq!(rounds(&mut queue), []);
    assert_eq!((queue.in_flight(), fixture.guest.answer(&chain)), (0, 0xee));
}
