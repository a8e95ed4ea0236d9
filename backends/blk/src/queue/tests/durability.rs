//! The write cache and what a flush promises, by the operations submitted:
//! with the sync deleted these fail.

use super::*;

#[test]
fn a_write_is_durable_unless_the_driver_can_flush_and_the_cache_is_on() {
    for (flushes, writeback, expected) in [
        (true, true, WRITE),
        (true, false, DURABLE),
        (false, true, DURABLE),
        (false, false, DURABLE),
    ] {
        let settings = Settings {
            writeback,
            ..Settings::default()
        };
        let mut fixture = Fixture::with(settings, Options::default()).unwrap();
        let mut queue = fixture.staged(flushes);
        let chain = fixture.write(0, &[1; 512]);
        assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
        assert_eq!(fixture.log(), [(expected, 0, 512)], "{flushes} {writeback}");
    }
}

#[test]
fn zeroes_are_durable_likewise() {
    let mut fixture = Fixture::new();
    let chain = fixture.segments(WRITE_ZEROES, &[segment(0, 8, 0)]);
    let zero = Op::Clear {
        mode: Clear::Zero,
        length: 4096,
    };
    let mut queue = fixture.staged(false);
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
    assert_eq!(fixture.log(), [(zero, 0, 4096), (Op::Sync, 0, 0)]);
    let mut queue = fixture.staged(true);
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
    assert_eq!(fixture.log(), [(zero, 0, 4096)]);
}

#[test]
fn every_flush_is_one_sync_and_waits_for_it() {
    let mut fixture = Fixture::new();
    let mut queue = fixture.staged(true);
    for _ in 0..3 {
        let chain = fixture.flush();
        let outcome = queue.take(&chain);
        assert_eq!(outcome, Outcome::Deferred);
        assert_eq!(fixture.guest.answer(&chain), 0xee, "not before the sync");
        assert_eq!(reap(&mut queue, 1), [(chain.head, 1)]);
        assert_eq!(fixture.guest.answer(&chain), OK);
        assert_eq!(fixture.log(), [(Op::Sync, 0, 0)]);
    }
}

#[test]
fn a_failed_sync_fails_its_flush_and_all_that_follow_on_every_queue() {
    let mut fixture = Fixture::new();
    let mut queue = fixture.staged(true);
    let mut other = fixture.staged(true);
    fixture.fates([Fate::Fails(libc::EIO)]);
    let chain = fixture.flush();
    assert_eq!(fixture.run(&mut queue, &chain), (IOERR, 1));
    assert_eq!(fixture.run(&mut queue, &chain), (IOERR, 1));
    assert_eq!(fixture.run(&mut other, &chain), (IOERR, 1));
    let mut later = fixture.staged(true);
    assert_eq!(fixture.run(&mut later, &chain), (IOERR, 1));
    assert_eq!(fixture.log().len(), 1, "the kernel would only say success");
    // Reading and writing go on.
    let chain = fixture.write(0, &[1; 512]);
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
}

#[test]
fn a_successor_serves_its_first_request_as_the_one_before_would() {
    let mut predecessor = Fixture::new();
    let mut queue = predecessor.staged(true);
    predecessor.set_writeback(false);
    predecessor.fates([Fate::Fails(libc::EIO)]);
    let chain = predecessor.flush();
    assert_eq!(predecessor.run(&mut queue, &chain), (IOERR, 1));
    let kept = predecessor.disk.durability().kept();

    let mut successor = Fixture::new();
    successor.disk.durability().restore(kept);
    let mut queue = successor.staged(true);
    let chain = successor.write(0, &[1; 512]);
    assert_eq!(successor.run(&mut queue, &chain), (OK, 1));
    assert_eq!(successor.log(), [(DURABLE, 0, 512)]);
    let chain = successor.flush();
    assert_eq!(successor.run(&mut queue, &chain), (IOERR, 1));
    assert_eq!(successor.log(), [], "the kernel would only say success");
}

#[test]
fn a_flush_beside_one_that_fails_fails_too() {
    let mut fixture = Fixture::new();
    let (mut queue, mut other) = (fixture.staged(true), fixture.staged(true));
    let (mine, others) = (fixture.flush(), fixture.flush());
    assert_eq!(queue.take(&mine), Outcome::Deferred);
    assert_eq!(other.take(&others), Outcome::Deferred);
    // Mine succeeds, as the kernel has told the other of the error.
    queue
        .reap(&mut |_, _| panic!("it cannot be sure yet"))
        .unwrap();
    fixture.fates([Fate::Fails(libc::EIO)]);
    reap(&mut other, 1);
    assert_eq!(fixture.guest.answer(&others), IOERR);
    reap(&mut queue, 1);
    assert_eq!(fixture.guest.answer(&mine), IOERR);
}

#[test]
fn flushes_side_by_side_that_succeed_succeed() {
    let mut fixture = Fixture::new();
    let (mut queue, mut other) = (fixture.staged(true), fixture.staged(true));
    let (mine, others) = (fixture.flush(), fixture.flush());
    assert_eq!(queue.take(&mine), Outcome::Deferred);
    assert_eq!(other.take(&others), Outcome::Deferred);
    queue
        .reap(&mut |_, _| panic!("it cannot be sure yet"))
        .unwrap();
    assert_eq!(reap(&mut other, 1).len(), 1);
    assert_eq!(reap(&mut queue, 1).len(), 1);
    assert_eq!(fixture.guest.answer(&mine), OK);
    assert_eq!(fixture.guest.answer(&others), OK);
}

#[test]
fn an_error_of_a_durable_write_is_remembered_for_flushes() {
    let mut fixture = Fixture::new();
    let mut queue = fixture.staged(false);
    fixture.fates([Fate::Fails(libc::EIO)]);
    let chain = fixture.write(0, &[1; 512]);
    assert_eq!(fixture.run(&mut queue, &chain), (IOERR, 1));
    let chain = fixture.flush();
    assert_eq!(fixture.run(&mut queue, &chain), (IOERR, 1));
}

#[test]
fn a_full_disk_is_an_error_of_that_write_alone() {
    let mut fixture = Fixture::new();
    let mut queue = fixture.staged(false);
    fixture.fates([Fate::Fails(libc::ENOSPC)]);
    let chain = fixture.write(0, &[1; 512]);
    assert_eq!(fixture.run(&mut queue, &chain), (IOERR, 1));
    let chain = fixture.flush();
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
}

#[test]
fn the_cache_can_be_turned_off_and_on_while_running() {
    let mut fixture = Fixture::new();
    let mut queue = fixture.staged(true);
    for (writeback, expected) in [(false, DURABLE), (true, WRITE), (false, DURABLE)] {
        fixture.set_writeback(writeback);
        let chain = fixture.write(0, &[1; 512]);
        assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
        assert_eq!(fixture.log(), [(expected, 0, 512)]);
    }
}

#[test]
fn a_write_that_ends_after_the_cache_was_turned_off_is_synced_first() {
    let mut fixture = Fixture::new();
    let mut queue = fixture.staged(true);
    let chain = fixture.write(0, &[1; 512]);
    let outcome = queue.take(&chain);
    assert_eq!(outcome, Outcome::Deferred);
    fixture.set_writeback(false);
    reap(&mut queue, 1);
    assert_eq!(fixture.guest.answer(&chain), OK);
    assert_eq!(fixture.log(), [(WRITE, 0, 512), (Op::Sync, 0, 0)]);
}

#[test]
fn a_ring_that_ends_in_a_failing_sync_is_remembered_by_the_next() {
    let mut fixture = Fixture::new();
    let mut queue = fixture.staged(true);
    let chain = fixture.flush();
    let outcome = queue.take(&chain);
    assert_eq!(outcome, Outcome::Deferred);
    fixture.fates([Fate::Fails(libc::EIO)]);
    queue.end();
    start(&mut queue, true, &fixture.guest);
    assert_eq!(fixture.run(&mut queue, &chain), (IOERR, 1));
}

#[test]
fn a_ring_that_ends_in_a_good_sync_spoils_nothing() {
    let mut fixture = Fixture::new();
    let mut queue = fixture.staged(true);
    let chain = fixture.flush();
    let outcome = queue.take(&chain);
    assert_eq!(outcome, Outcome::Deferred);
    queue.end();
    start(&mut queue, true, &fixture.guest);
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
}

#[test]
fn a_read_only_disk_has_nothing_to_flush() {
    let options = Options {
        read_only: true,
        ..Options::default()
    };
    let mut fixture = Fixture::with(Settings::default(), options).unwrap();
    let mut queue = fixture.staged(false);
    let chain = fixture.flush();
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
    assert_eq!(fixture.log(), []);
}
