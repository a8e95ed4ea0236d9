//! The inflight region at work: a back-end that dies with requests under way
//! is followed by one that finishes them, none lost and none twice.
//!
//! A predecessor is "dead" here when it is silent: it holds its requests and
//! never returns them, and its successor works on a copy of the region as it
//! was at that moment.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use outboard_contract::client::Ack;
use outboard_contract::memory::{Memory as Guest, sealed};
use outboard_contract::ring::{Ring, wait_event};
use outboard_contract::soon;
use outboard_protocol::inflight::{Region, Shape};
use outboard_protocol::shared::Alarm;
use outboard_ring::{Broken, Layout, Ring as DeviceRing, View, Words};
use outboard_runtime::memory::Table;
use outboard_runtime::{Chain, session::End};
use support::*;
use vhost::vhost_user::message::{FrontendReq, VhostUserInflight};
use vm_memory::GuestAddress;

const SIZE: u16 = 32;

/// A copy of a region, as its file is now.
fn copy(described: &VhostUserInflight, fd: &OwnedFd) -> OwnedFd {
    let mut bytes = vec![0; described.mmap_size as usize];
    let file = File::from(fd.try_clone().unwrap());
    file.read_exact_at(&mut bytes, 0).unwrap();
    let copy = sealed(described.mmap_size).unwrap();
    copy.write_all_at(&bytes, 0).unwrap();
    copy.into()
}

/// A session with a region and one running ring. Its doorbells are its own: a
/// predecessor that is only silent hears nothing of them.
fn start(
    guest: &Guest,
    ring: &mut Ring,
    region: Option<(VhostUserInflight, OwnedFd)>,
    base: u16,
) -> (Session, VhostUserInflight, OwnedFd) {
    ring.renew_events().unwrap();
    let session = Session::ready(2, EVENT_IDX | VERSION_1, guest);
    let client = &session.client;
    let (described, fd) = region.unwrap_or_else(|| client.get_inflight(2, SIZE).unwrap());
    let ack = client.set_inflight(&described, fd.as_fd()).unwrap();
    assert_eq!(ack, Ack::Done);
    client.start_ring(1, ring, base).unwrap();
    (session, described, fd)
}

#[test]
fn a_successor_finishes_what_was_under_way_in_its_order() {
    let guest = guest();
    let mut ring = Ring::new(&guest, LOW, SIZE, true).unwrap();
    let (dead, described, fd) = start(&guest, &mut ring, None, 0);
    // Some complete, out of order with others that stay.
    let mut heads = Vec::new();
    for mark in 0..10 {
        let kind = if mark % 3 == 1 { NOW } else { LATER };
        heads.push((submit(&guest, &mut ring, kind, mark), mark));
    }
    dead.knobs.wait_held(7);
    for mark in [1, 4, 7] {
        expect(&guest, &mut ring, heads[mark].0, mark as u8);
    }
    let copied = copy(&described, &fd);

    // The driver goes on while nobody serves.
    let late = submit(&guest, &mut ring, LATER, 10);
    heads.push((late, 10));
    let base = ring.used_idx().unwrap();
    assert_eq!(base, 3);
    let (next, ..) = start(&guest, &mut ring, Some((described, copied)), base);
    next.knobs.wait_held(8);
    let expected: Vec<u8> = vec![0, 2, 3, 5, 6, 8, 9, 10];
    assert_eq!(*next.knobs.seen.lock().unwrap(), expected);
    next.knobs.open(true);
    let mut back: Vec<_> = (0..8).map(|_| ring.wait_used(soon()).unwrap().0).collect();
    back.sort_unstable();
    let mut waited: Vec<_> = expected
        .iter()
        .map(|mark| heads[usize::from(*mark)].0)
        .collect();
    waited.sort_unstable();
    assert_eq!(back, waited);
    for mark in expected {
        check(&guest, mark);
    }
    // The driver hears of it although the predecessor may have promised so.
    wait_event(&ring.call, soon()).unwrap();
    still_serves(&guest, &mut ring);
    assert_eq!(next.client.stop_ring(1).unwrap(), 12);
    assert_eq!(next.close(), End::Closed);
    drop(dead.close());
}

#[test]
fn a_second_death_during_recovery_loses_nothing() {
    let guest = guest();
    let mut ring = Ring::new(&guest, LOW, SIZE, true).unwrap();
    let (first, described, fd) = start(&guest, &mut ring, None, 0);
    for mark in 0..4 {
        submit(&guest, &mut ring, LATER, mark);
    }
    first.knobs.wait_held(4);
    let copied = copy(&described, &fd);
    let (second, described, fd) = start(&guest, &mut ring, Some((described, copied)), 0);
    second.knobs.wait_held(4);
    for mark in 4..7 {
        submit(&guest, &mut ring, LATER, mark);
    }
    second.knobs.wait_held(7);
    let copied = copy(&described, &fd);
    let (third, ..) = start(&guest, &mut ring, Some((described, copied)), 0);
    third.knobs.wait_held(7);
    assert_eq!(*third.knobs.seen.lock().unwrap(), [0, 1, 2, 3, 4, 5, 6]);
    third.knobs.open(true);
    for _ in 0..7 {
        ring.wait_used(soon()).unwrap();
    }
    (0..7).for_each(|mark| check(&guest, mark));
    still_serves(&guest, &mut ring);
    third.close();
    drop((first.close(), second.close()));
}

#[test]
fn a_reset_forgets_what_was_under_way() {
    let guest = guest();
    let mut ring = Ring::new(&guest, LOW, SIZE, true).unwrap();
    let (mut session, ..) = start(&guest, &mut ring, None, 0);
    session.knobs.break_engine.store(true, Ordering::SeqCst);
    for mark in 0..3 {
        submit(&guest, &mut ring, LATER, mark);
    }
    ring.kick().unwrap();
    wait_event(&ring.err, soon()).unwrap();
    let reset = FrontendReq::RESET_DEVICE;
    session.client.order(reset, &[], &[]).unwrap();
    session.knobs.break_engine.store(false, Ordering::SeqCst);
    session.knobs.seen.lock().unwrap().clear();

    // The next driver, with a ring of its own and the region as it was.
    let mut ring = Ring::new(&guest, HIGH, SIZE, true).unwrap();
    session.client.negotiate(EVENT_IDX | VERSION_1).unwrap();
    session.client.start_ring(1, &ring, 0).unwrap();
    still_serves(&guest, &mut ring);
    assert_eq!(*session.knobs.seen.lock().unwrap(), [255]);
    assert_eq!(session.client.stop_ring(1).unwrap(), 1);
    session.close();
}

#[test]
fn a_planned_stop_leaves_nothing_to_take_over() {
    let guest = guest();
    let mut ring = Ring::new(&guest, LOW, SIZE, true).unwrap();
    let (session, described, fd) = start(&guest, &mut ring, None, 0);
    for mark in 0..30 {
        let head = submit(&guest, &mut ring, NOW, mark);
        expect(&guest, &mut ring, head, mark);
    }
    assert_eq!(session.client.stop_ring(1).unwrap(), 30);
    session.close();
    let (next, ..) = start(&guest, &mut ring, Some((described, fd)), 30);
    assert!(next.knobs.seen.lock().unwrap().is_empty());
    still_serves(&guest, &mut ring);
    next.close();
}

#[test]
fn a_swap_with_a_fresh_region_goes_on_in_a_ring_long_used() {
    let guest = guest();
    let mut ring = Ring::new(&guest, LOW, SIZE, true).unwrap();
    let (session, ..) = start(&guest, &mut ring, None, 0);
    for mark in 0..100 {
        let head = submit(&guest, &mut ring, NOW, mark);
        expect(&guest, &mut ring, head, mark);
    }
    session.client.stop_ring(1).unwrap();
    session.close();
    let (next, described, fd) = start(&guest, &mut ring, None, 100);
    submit(&guest, &mut ring, LATER, 5);
    next.knobs.wait_held(1);
    // The used index was stored before the first request was taken.
    let copied = copy(&described, &fd);
    let (last, ..) = start(&guest, &mut ring, Some((described, copied)), 100);
    last.knobs.wait_held(1);
    assert_eq!(*last.knobs.seen.lock().unwrap(), [5]);
    last.knobs.open(true);
    ring.wait_used(soon()).unwrap();
    check(&guest, 5);
    last.close();
    drop(next.close());
}

#[test]
fn requests_taken_over_can_be_put_off_and_can_be_malformed() {
    let guest = guest();
    let mut ring = Ring::new(&guest, LOW, SIZE, true).unwrap();
    let (dead, described, fd) = start(&guest, &mut ring, None, 0);
    for mark in 0..3 {
        submit(&guest, &mut ring, LATER, mark);
    }
    dead.knobs.wait_held(3);
    let copied = copy(&described, &fd);
    // Since then the driver has turned its first chain into a loop, and its
    // second into one that the device does not want yet.
    ring.set_descriptor(0, (DATA, 8, 1, 0)).unwrap();
    fill(&guest, place(1).0, NOT_NOW, 1, 64);
    let (next, ..) = start(&guest, &mut ring, Some((described, copied)), 0);
    assert_eq!(ring.wait_used(soon()).unwrap(), (0, 0));
    assert!(ring.take_used().unwrap().is_none());
    next.knobs.open(true);
    ring.wait_used(soon()).unwrap();
    ring.wait_used(soon()).unwrap();
    (1..3).for_each(|mark| check(&guest, mark));
    next.close();
    drop(dead.close());
}

/// What front-ends send as base with the region of a predecessor: the used index
/// (QEMU, and ours), that plus what is in flight, the available index
/// (cloud-hypervisor), and what none should.
#[test]
fn whatever_base_comes_with_a_region_nothing_is_lost_and_nothing_done_twice() {
    for base in [2, 6, 9, 0, 40_000] {
        let guest = guest();
        let mut ring = Ring::new(&guest, LOW, SIZE, true).unwrap();
        let (dead, described, fd) = start(&guest, &mut ring, None, 0);
        for mark in [0, 1] {
            let head = submit(&guest, &mut ring, NOW, mark);
            expect(&guest, &mut ring, head, mark);
        }
        let mut heads: Vec<_> = (2..6)
            .map(|mark| submit(&guest, &mut ring, LATER, mark))
            .collect();
        dead.knobs.wait_held(4);
        let copied = copy(&described, &fd);
        // Nobody takes these: the predecessor hears nothing of them.
        ring.renew_events().unwrap();
        heads.extend((6..9).map(|mark| submit(&guest, &mut ring, LATER, mark)));
        assert_eq!((ring.used_idx().unwrap(), ring.next_avail), (2, 9));

        let (next, ..) = start(&guest, &mut ring, Some((described, copied)), base);
        next.knobs.wait_held(7);
        let seen = next.knobs.seen.lock().unwrap().clone();
        assert_eq!(seen, [2, 3, 4, 5, 6, 7, 8], "base {base}");
        next.knobs.open(true);
        let mut back: Vec<_> = (0..7).map(|_| ring.wait_used(soon()).unwrap().0).collect();
        back.sort_unstable();
        heads.sort_unstable();
        assert_eq!(back, heads, "base {base}");
        (2..9).for_each(|mark| check(&guest, mark));
        still_serves(&guest, &mut ring);
        assert_eq!(next.client.stop_ring(1).unwrap(), 10);
        assert_eq!(ring.used_idx().unwrap(), 10);
        assert_eq!(next.close(), End::Closed);
        drop(dead.close());
    }
}

/// A device's ring by itself: the last moment of a process is any moment.
mod by_itself {
    use super::*;

    struct Bench {
        guest: Guest,
        lent: Table,
        driver: Ring,
        region: Region,
        layout: Layout,
    }

    impl Bench {
        fn new() -> Self {
            let guest = guest();
            let driver = Ring::new(&guest, LOW, SIZE, true).unwrap();
            let [d, a, u] = [driver.descriptors, driver.available, driver.used].map(GuestAddress);
            let described = guest.regions.iter().map(|region| {
                let fd = region.as_fd().try_clone_to_owned().unwrap();
                (region.described(), fd)
            });
            let lent = Table::empty(Arc::new(Alarm::new().unwrap()));
            Self {
                lent: lent.replaced(described).unwrap(),
                layout: Layout::new(SIZE, d, a, u).unwrap(),
                region: Region::create(Shape::new(1, SIZE).unwrap()).unwrap(),
                guest,
                driver,
            }
        }

        fn view(&self) -> View<'_> {
            View::new(self.lent.memory(), &self.layout).unwrap()
        }

        fn ring(&self, base: u16) -> Result<DeviceRing, Broken> {
            let block = self.region.queue(0);
            DeviceRing::new(self.layout, EVENT_IDX, base, block, &self.view())
        }

        fn take(&self, ring: &mut DeviceRing) -> Option<u16> {
            let mut chain = Chain::default();
            ring.take(&self.view(), self.lent.memory(), &mut chain)
                .unwrap()
                .then_some(chain.head)
        }
    }

    #[test]
    fn a_ring_dropped_in_mid_flight_is_found_again() {
        let mut bench = Bench::new();
        for mark in 0..6 {
            submit(&bench.guest, &mut bench.driver, NOW, mark);
        }
        let mut ring = bench.ring(0).unwrap();
        let heads: Vec<_> = (0..5).map(|_| bench.take(&mut ring).unwrap()).collect();
        ring.complete(heads[1], 64);
        ring.complete(heads[3], 64);
        ring.publish(&bench.view()).unwrap();
        // Completed, but never published: it is done again.
        ring.complete(heads[0], 64);
        drop(ring);

        let mut next = bench.ring(2).unwrap();
        assert_eq!(next.next_avail(), 5);
        let again: Vec<_> = std::iter::from_fn(|| bench.take(&mut next)).collect();
        assert_eq!(again[..3], [heads[0], heads[2], heads[4]]);
        // And the one that nobody had taken.
        assert_eq!(again.len(), 4);
        assert_eq!(next.next_avail(), 6);
        assert_eq!(next.tally.resubmitted, 3);
    }

    #[test]
    fn a_chain_put_back_is_not_in_flight() {
        let mut bench = Bench::new();
        submit(&bench.guest, &mut bench.driver, NOW, 0);
        let mut ring = bench.ring(0).unwrap();
        let head = bench.take(&mut ring).unwrap();
        ring.put_back(head).unwrap();
        drop(ring);
        let mut next = bench.ring(0).unwrap();
        assert_eq!(next.next_avail(), 0);
        assert_eq!(next.tally.resubmitted, 0);
        assert_eq!(bench.take(&mut next), Some(head));
    }

    #[test]
    fn chains_given_back_are_available_again_also_those_of_a_predecessor() {
        let mut bench = Bench::new();
        for mark in 0..6 {
            submit(&bench.guest, &mut bench.driver, NOW, mark);
        }
        let mut ring = bench.ring(0).unwrap();
        let heads: Vec<_> = (0..4).map(|_| bench.take(&mut ring).unwrap()).collect();
        ring.complete(heads[0], 64);
        ring.publish(&bench.view()).unwrap();
        // Three were in flight when it went; the next takes one more.
        drop(ring);
        let mut ring = bench.ring(0).unwrap();
        let again: Vec<_> = (0..4).map(|_| bench.take(&mut ring).unwrap()).collect();
        assert_eq!(again[..3], heads[1..]);
        for head in again.iter().rev() {
            ring.give_back(&bench.view(), *head).unwrap();
        }
        // Not held any more: counted, and nothing else.
        ring.give_back(&bench.view(), again[0]).unwrap();
        ring.give_back(&bench.view(), u16::MAX).unwrap();
        assert_eq!(ring.tally.unknown_completions, 2);
        assert_eq!(ring.next_avail(), 1);
        assert_eq!(bench.take(&mut ring), Some(again[0]));
        ring.give_back(&bench.view(), again[0]).unwrap();
        drop(ring);
        let mut next = bench.ring(0).unwrap();
        assert_eq!((next.next_avail(), next.tally.resubmitted), (1, 0));
        let rest: Vec<_> = std::iter::from_fn(|| bench.take(&mut next)).collect();
        assert_eq!(rest.len(), 5);
        assert_eq!(rest[..4], again);
    }

    #[test]
    fn a_chain_that_cannot_be_given_back_in_order_comes_back_empty() {
        let mut bench = Bench::new();
        for mark in 0..2 {
            submit(&bench.guest, &mut bench.driver, NOW, mark);
        }
        let mut ring = bench.ring(0).unwrap();
        let heads = [(); 2].map(|()| bench.take(&mut ring).unwrap());
        ring.complete(heads[1], 64);
        ring.give_back(&bench.view(), heads[0]).unwrap();
        ring.publish(&bench.view()).unwrap();
        assert_eq!(ring.next_avail(), 2);
        let used = [(); 2].map(|()| bench.driver.take_used().unwrap().unwrap());
        assert_eq!(used, [(heads[1], 64), (heads[0], 0)]);
    }

    /// The predecessor died right before, or right after, it noted in the region
    /// what it had returned: the two used indices are the same, or one apart.
    #[test]
    fn every_base_with_a_region_that_is_up_to_date_or_one_behind_means_the_same() {
        for base in [2, 4, 5, 0, 77, u16::MAX] {
            for behind in [false, true] {
                let mut bench = Bench::new();
                for mark in 0..5 {
                    submit(&bench.guest, &mut bench.driver, NOW, mark);
                }
                let mut ring = bench.ring(0).unwrap();
                let heads: Vec<_> = (0..4).map(|_| bench.take(&mut ring).unwrap()).collect();
                ring.complete(heads[2], 64);
                ring.publish(&bench.view()).unwrap();
                // The second, step by step.
                let (block, view) = (bench.region.queue(0).unwrap(), bench.view());
                block.batch(heads[0]).unwrap();
                view.set_used(1, heads[0], 64).unwrap();
                view.set_used_idx(2).unwrap();
                if !behind {
                    block.commit([heads[0]].into_iter(), 2).unwrap();
                }
                drop((view, ring));

                let mut next = bench.ring(base).unwrap();
                assert_eq!(next.next_avail(), 4, "base {base}");
                let again: Vec<_> = std::iter::from_fn(|| bench.take(&mut next)).collect();
                assert_eq!(again[..2], [heads[1], heads[3]], "base {base}");
                assert_eq!((again.len(), next.next_avail()), (3, 5), "base {base}");
                let used = [(); 2].map(|()| bench.driver.take_used().unwrap().unwrap().0);
                assert_eq!(used, [heads[2], heads[0]]);
            }
        }
    }

    /// Whatever the base: no order of stores leaves such a region.
    #[test]
    fn a_region_that_is_ahead_of_the_ring_is_refused_while_it_has_something_in_flight() {
        for base in [0, 1, 2] {
            let mut bench = Bench::new();
            for mark in 0..2 {
                submit(&bench.guest, &mut bench.driver, NOW, mark);
            }
            let mut ring = bench.ring(0).unwrap();
            let heads = [(); 2].map(|()| bench.take(&mut ring).unwrap());
            drop(ring);
            let block = bench.region.queue(0).unwrap();
            block.commit([heads[0]].into_iter(), 1).unwrap();
            let refused = bench.ring(base).err();
            assert_eq!(refused, Some(Broken::Inflight), "base {base}");
            // With nothing in flight there is nothing to be wrong about.
            block.put_back(heads[1]).unwrap();
            assert_eq!(bench.ring(base).unwrap().next_avail(), 0, "base {base}");
        }
    }

    #[test]
    fn the_base_that_a_front_end_sends_gives_way_to_the_region() {
        let bench = Bench::new();
        assert_eq!(bench.ring(99).unwrap().next_avail(), 0);
    }

    #[test]
    fn a_completion_that_nobody_asked_for_is_counted_and_harmless() {
        let mut bench = Bench::new();
        let head = submit(&bench.guest, &mut bench.driver, NOW, 0);
        let mut ring = bench.ring(0).unwrap();
        bench.take(&mut ring).unwrap();
        ring.complete(head, 1);
        for wrong in [head, 7, SIZE, u16::MAX] {
            ring.complete(wrong, 1);
        }
        ring.publish(&bench.view()).unwrap();
        assert_eq!(ring.tally.unknown_completions, 4);
        assert_eq!(bench.driver.used_idx().unwrap(), 1);
    }

    #[test]
    fn a_call_is_owed_after_a_start_and_then_as_the_driver_wants() {
        let mut bench = Bench::new();
        let mut ring = bench.ring(0).unwrap();
        let mut publish = |mark, event: u16| {
            bench.driver.set_used_event(event).unwrap();
            let head = submit(&bench.guest, &mut bench.driver, NOW, mark);
            bench.take(&mut ring).unwrap();
            ring.complete(head, 64);
            ring.publish(&bench.view()).unwrap()
        };
        assert!(publish(0, 9));
        assert!(!publish(1, 9));
        assert!(publish(2, 2));
        assert!(!publish(3, 2));
        assert!(!publish(4, 0xffff));
    }
}
