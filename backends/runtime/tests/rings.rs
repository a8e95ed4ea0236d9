//! Rings that a hostile driver fills: every chain comes back, or the ring is
//! given up with its error eventfd; the other rings never notice.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_contract::memory::Memory as Guest;
use outboard_contract::ring::{Buffer, Descriptor, INDIRECT as F_INDIRECT, NEXT, Ring, WRITE};
use outboard_contract::ring::{drain, wait_event};
use outboard_contract::soon;
use outboard_runtime::session::End;
use proptest::prelude::*;
use support::*;

const SIZE: u16 = 16;
const TABLE: u64 = DATA + 0x8_0000;

/// A ring with these descriptors, whose head 0 is made available, and another
/// ring that must go on.
fn with_descriptors(
    features: u64,
    table: &[(u16, Descriptor)],
    indirect: &[(u16, Descriptor)],
) -> (u16, u32) {
    let guest = guest();
    let session = Session::ready(2, features | VERSION_1, &guest);
    let mut ring = Ring::new(&guest, LOW, SIZE, false).unwrap();
    for (index, descriptor) in table {
        ring.set_descriptor(*index, *descriptor).unwrap();
    }
    for (index, descriptor) in indirect {
        ring.write_descriptor(TABLE, *index, *descriptor).unwrap();
    }
    let mut other = Ring::new(&guest, LOW + 0x1000, SIZE, false).unwrap();
    session.client.start_ring(0, &ring, 0).unwrap();
    session.client.start_ring(1, &other, 0).unwrap();
    ring.offer_head(0).unwrap();
    ring.kick().unwrap();
    let used = ring.wait_used(soon()).unwrap();
    still_serves(&guest, &mut other);
    // The ring itself goes on too.
    ring.set_descriptor(5, (DATA, 8, 0, 0)).unwrap();
    ring.offer_head(5).unwrap();
    ring.kick().unwrap();
    assert_eq!(ring.wait_used(soon()).unwrap().0, 5);
    assert_eq!(drain(&ring.err), 0);
    assert_eq!(session.close(), End::Closed);
    used
}

fn direct(table: &[(u16, Descriptor)]) {
    assert_eq!(with_descriptors(INDIRECT, table, &[]), (0, 0));
}

fn indirect(length: u32, flags: u16, table: &[(u16, Descriptor)]) {
    let head = (0, (TABLE, length, F_INDIRECT | flags, 1));
    let next = (1, (DATA, 8, WRITE, 0));
    assert_eq!(with_descriptors(INDIRECT, &[head, next], table), (0, 0));
}

#[test]
fn loops_come_back_empty_also_those_of_no_length() {
    for length in [0, 8] {
        direct(&[(0, (DATA, length, NEXT, 0))]);
        direct(&[
            (0, (DATA, length, NEXT | WRITE, 1)),
            (1, (DATA, length, NEXT | WRITE, 0)),
        ]);
    }
}

#[test]
fn a_next_beyond_the_table_comes_back_empty() {
    for next in [SIZE, SIZE + 1, 0x7fff, 0xffff] {
        direct(&[(0, (DATA, 8, NEXT, next))]);
    }
}

#[test]
fn a_readable_buffer_after_a_writable_one_comes_back_empty() {
    direct(&[(0, (DATA, 8, NEXT | WRITE, 1)), (1, (DATA, 8, 0, 0))]);
}

#[test]
fn lengths_that_sum_past_32_bits_come_back_empty() {
    direct(&[
        (0, (DATA, u32::MAX, NEXT | WRITE, 1)),
        (1, (DATA, 1, WRITE, 0)),
    ]);
    let half = 0x8000_0000;
    direct(&[(0, (DATA, half, NEXT, 1)), (1, (DATA, half, WRITE, 0))]);
}

#[test]
fn broken_indirect_tables_come_back_empty() {
    let good = [(0, (DATA, 8, NEXT, 1)), (1, (DATA, 8, WRITE, 0))];
    // Empty, not a multiple of 16, with NEXT, too long, in no memory.
    indirect(0, 0, &good);
    for length in [1, 15, 17, 31, 33] {
        indirect(length, 0, &good);
    }
    indirect(32, NEXT, &good);
    indirect(1025 * 16, 0, &good);
    indirect(u32::MAX - 15, 0, &good);
    // Nested.
    indirect(32, 0, &[(0, (TABLE, 32, F_INDIRECT, 0))]);
    indirect(
        32,
        0,
        &[
            (0, (DATA, 8, NEXT, 1)),
            (1, (TABLE + 32, 16, F_INDIRECT, 0)),
        ],
    );
    // Next beyond the table, a loop in it.
    indirect(32, 0, &[(0, (DATA, 8, NEXT, 2))]);
    indirect(16, 0, &good);
    indirect(32, 0, &[(0, (DATA, 8, NEXT, 1)), (1, (DATA, 8, NEXT, 0))]);
    // Outside memory, and across the end of a region.
    for at in [u64::MAX - 8, LOW + REGION, LOW + REGION - 16, HIGH - 16] {
        direct(&[(0, (at, 32, F_INDIRECT, 0))]);
    }
}

#[test]
fn an_indirect_table_that_was_not_negotiated_comes_back_empty() {
    let head = [(0, (TABLE, 32, F_INDIRECT, 0))];
    let table = [(0, (DATA, 8, NEXT, 1)), (1, (DATA + 128, 8, WRITE, 0))];
    assert_eq!(with_descriptors(INDIRECT, &head, &table), (0, 8));
    assert_eq!(with_descriptors(0, &head, &table), (0, 0));
}

#[test]
fn direct_descriptors_before_an_indirect_one_and_its_write_flag_are_legal() {
    let guest = guest();
    let bytes = fill(&guest, DATA, b'X', 1, 16);
    drop((guest, bytes));
    // Writable 8 + 8: the device says it wrote more, the driver is told 16.
    let table = [
        (0, (DATA, 8, NEXT, 1)),
        (1, (TABLE, 32, F_INDIRECT | WRITE, 0)),
    ];
    let more = [
        (0, (DATA + 64, 8, NEXT | WRITE, 1)),
        (1, (DATA + 128, 8, WRITE, 0)),
    ];
    assert_eq!(with_descriptors(INDIRECT, &table, &more), (0, 8));
}

#[test]
fn a_used_length_is_never_more_than_the_driver_gave_room_for() {
    let guest = guest();
    let session = Session::ready(1, VERSION_1, &guest);
    let mut ring = Ring::new(&guest, LOW, SIZE, false).unwrap();
    session.client.start_ring(0, &ring, 0).unwrap();
    // This kind of request makes the device claim to have written 4 GiB.
    let (data, answer) = place(1);
    fill(&guest, data, b'?', 1, 64);
    for room in [0, 1, 100] {
        ring.add(&[Buffer::readable(data, 64), Buffer::writable(answer, room)])
            .unwrap();
        ring.kick().unwrap();
        assert_eq!(ring.wait_used(soon()).unwrap().1, room);
    }
    session.close();
}

#[test]
fn buffers_outside_memory_harm_nobody() {
    for (address, length) in [
        (0, 0),
        (0, 8),
        (u64::MAX, 1),
        (u64::MAX - 3, 16),
        (LOW + REGION - 4, 8),
        (HIGH - 4, 8),
        (HIGH + REGION, 1),
    ] {
        for flags in [0, WRITE] {
            let used = with_descriptors(0, &[(0, (address, length, flags, 0))], &[]);
            assert_eq!(used, (0, 0));
        }
    }
}

/// The ring is given up: its error eventfd says so, nothing comes back, no CPU
/// is burnt on it, and it works again once it was stopped and set up anew.
fn breaks(damage: impl FnOnce(&Guest, &Session, &mut Ring)) {
    let guest = guest();
    let session = Session::ready(2, VERSION_1, &guest);
    let mut ring = Ring::new(&guest, LOW, SIZE, false).unwrap();
    let mut other = Ring::new(&guest, LOW + 0x1000, SIZE, false).unwrap();
    session.client.start_ring(0, &ring, 0).unwrap();
    session.client.start_ring(1, &other, 0).unwrap();
    still_serves(&guest, &mut ring);
    damage(&guest, &session, &mut ring);
    ring.kick().unwrap();
    wait_event(&ring.err, soon()).unwrap();
    let used = ring.used_idx().unwrap();
    for _ in 0..10 {
        ring.kick().unwrap();
        still_serves(&guest, &mut other);
    }
    assert_eq!(ring.used_idx().unwrap(), used);
    // Told once, however often it is kicked.
    assert_eq!(drain(&ring.err), 0);
    session.knobs.open(true);
    session.client.stop_ring(0).unwrap();
    let mut ring = Ring::new(&guest, LOW, SIZE, false).unwrap();
    session.client.start_ring(0, &ring, 0).unwrap();
    still_serves(&guest, &mut ring);
    assert_eq!(session.close(), End::Closed);
}

#[test]
fn an_available_index_that_jumps_or_goes_back_breaks_the_ring() {
    for index in [0, SIZE + 2, 0x8000, 0xffff] {
        breaks(|_, _, ring| ring.set_avail_idx(index).unwrap());
    }
}

#[test]
fn a_head_beyond_the_ring_breaks_it() {
    for head in [SIZE, 0xffff] {
        breaks(|_, _, ring| ring.offer_head(head).unwrap());
    }
}

#[test]
fn a_head_given_twice_while_in_flight_breaks_the_ring() {
    breaks(|guest, session, ring| {
        let head = submit(guest, ring, LATER, 1);
        session.knobs.wait_held(1);
        ring.offer_head(head).unwrap();
    });
    // Both in one batch.
    breaks(|guest, _, ring| {
        fill(guest, DATA, LATER, 2, 64);
        ring.set_descriptor(3, (DATA, 64, 0, 0)).unwrap();
        ring.set_avail_idx(ring.next_avail).unwrap();
        let next = ring.next_avail;
        ring.offer_head(3).unwrap();
        ring.offer_head(3).unwrap();
        assert_eq!(ring.next_avail, next.wrapping_add(2));
    });
}

#[test]
fn requests_under_way_on_a_broken_ring_still_come_back() {
    let guest = guest();
    let session = Session::ready(1, VERSION_1, &guest);
    let mut ring = Ring::new(&guest, LOW, SIZE, false).unwrap();
    session.client.start_ring(0, &ring, 0).unwrap();
    let head = submit(&guest, &mut ring, LATER, 1);
    session.knobs.wait_held(1);
    ring.offer_head(0xffff).unwrap();
    ring.kick().unwrap();
    wait_event(&ring.err, soon()).unwrap();
    session.knobs.open(true);
    expect(&guest, &mut ring, head, 1);
    session.close();
}

#[test]
fn a_full_ring_that_nobody_empties_is_held_and_then_all_comes_back() {
    let guest = guest();
    let session = Session::ready(1, EVENT_IDX | VERSION_1, &guest);
    let mut ring = Ring::new(&guest, LOW, 256, true).unwrap();
    session.client.start_ring(0, &ring, 0).unwrap();
    for round in 0..10 {
        session.knobs.open(false);
        for mark in 0..128 {
            submit(&guest, &mut ring, LATER, mark);
        }
        session.knobs.wait_held(128);
        assert!(ring.add(&[Buffer::readable(DATA, 8)]).is_err());
        session.knobs.open(true);
        for _ in 0..128 {
            ring.wait_used(soon()).unwrap();
        }
        for mark in 0..128 {
            check(&guest, mark);
        }
        assert_eq!(ring.used_idx().unwrap(), (round + 1) * 128);
    }
    session.close();
}

#[test]
fn indices_wrap_around_at_65536() {
    let guest = guest();
    let session = Session::ready(1, EVENT_IDX | VERSION_1, &guest);
    let mut ring = Ring::new(&guest, LOW, SIZE, true).unwrap();
    let start = 65_530;
    ring.next_avail = start;
    ring.next_used = start;
    ring.set_avail_idx(start).unwrap();
    use vm_memory::{Bytes, GuestAddress};
    let used = GuestAddress(ring.used + 2);
    guest.guest.write_obj(start.to_le(), used).unwrap();
    session.client.start_ring(0, &ring, start).unwrap();
    for mark in 0..12 {
        let head = submit(&guest, &mut ring, NOW, mark);
        ring.set_used_event(ring.next_used).unwrap();
        expect(&guest, &mut ring, head, mark);
    }
    assert_eq!(session.client.stop_ring(0).unwrap(), 6);
    session.close();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is in the descriptors and in the available ring, either all
    /// heads come back or the ring breaks, and the session lives.
    #[test]
    fn no_ring_content_hangs_or_kills_the_back_end(
        descriptors in proptest::collection::vec(
            (prop_oneof![Just(DATA), Just(TABLE), any::<u64>()],
             prop_oneof![0u32..64, any::<u32>()],
             prop_oneof![0u16..8, any::<u16>()],
             prop_oneof![0u16..SIZE, any::<u16>()]), SIZE as usize),
        inner in proptest::collection::vec(
            (Just(DATA), 0u32..64, 0u16..8, 0u16..6), 4),
        heads in proptest::collection::vec(
            prop_oneof![20 => 0u16..SIZE, 1 => any::<u16>()], 1..10),
        event_idx in any::<bool>(),
    ) {
        let guest = guest();
        let features = INDIRECT | VERSION_1 | if event_idx { EVENT_IDX } else { 0 };
        let session = Session::ready(2, features, &guest);
        let mut ring = Ring::new(&guest, LOW, SIZE, event_idx).unwrap();
        for (index, descriptor) in (0..).zip(&descriptors) {
            ring.set_descriptor(index, *descriptor).unwrap();
        }
        for (index, descriptor) in (0..).zip(&inner) {
            ring.write_descriptor(TABLE, index, *descriptor).unwrap();
        }
        for head in &heads {
            ring.offer_head(*head).unwrap();
        }
        session.client.start_ring(0, &ring, 0).unwrap();
        let all = heads.len() as u16;
        wait(|| {
            let mut err = [PollFd::new(ring.err.as_fd(), PollFlags::POLLIN)];
            let broken = poll(&mut err, PollTimeout::ZERO) == Ok(1);
            broken || ring.used_idx().unwrap() == all
        });
        session.client.stop_ring(0).unwrap();
        let mut fresh = Ring::new(&guest, LOW, SIZE, event_idx).unwrap();
        session.client.start_ring(0, &fresh, 0).unwrap();
        still_serves(&guest, &mut fresh);
        prop_assert_eq!(session.close(), End::Closed);
    }
}
