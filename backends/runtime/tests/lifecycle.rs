//! Sessions in legal orders: negotiation, rings, configuration, changes while
//! rings run, and every way to end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use outboard_contract::client::{Ack, Client};
use outboard_contract::memory::Memory as Guest;
use outboard_contract::ring::{Buffer, Ring, drain, wait_event};
use outboard_contract::soon;
use outboard_protocol::wire::Header;
use outboard_runtime::event::Event;
use outboard_runtime::session::{End, Limits};
use support::*;
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};

#[test]
fn what_is_offered_is_what_the_project_promises() {
    let session = Session::new(3);
    let client = &session.client;
    let number = |request| client.ask(request, &[]).unwrap().body::<u64>().unwrap();
    let features = number(FrontendReq::GET_FEATURES);
    assert_eq!(features, 1 | EVENT_IDX | INDIRECT | VERSION_1 | (1 << 30));
    type P = VhostUserProtocolFeatures;
    let protocol = P::MQ
        | P::REPLY_ACK
        | P::BACKEND_REQ
        | P::CONFIG
        | P::INFLIGHT_SHMFD
        | P::RESET_DEVICE
        | P::CONFIGURE_MEM_SLOTS;
    assert_eq!(number(FrontendReq::GET_PROTOCOL_FEATURES), protocol.bits());
    assert_eq!(number(FrontendReq::GET_QUEUE_NUM), 3);
    assert_eq!(number(FrontendReq::GET_MAX_MEM_SLOTS), 509);
    assert_eq!(session.close(), End::Closed);
}

#[test]
fn echoes_come_back_on_every_queue_with_every_ring_feature() {
    for features in [0, EVENT_IDX, INDIRECT, EVENT_IDX | INDIRECT] {
        let guest = guest();
        let session = Session::ready(2, features | VERSION_1, &guest);
        let event_idx = features & EVENT_IDX != 0;
        for index in 0..2 {
            let base = LOW + 0x1000 * u64::from(index);
            let mut ring = Ring::new(&guest, base, 16, event_idx).unwrap();
            session.client.start_ring(index, &ring, 0).unwrap();
            for mark in 0..100 {
                let head = submit(&guest, &mut ring, NOW, mark);
                expect(&guest, &mut ring, head, mark);
            }
            assert_eq!(session.client.stop_ring(index).unwrap(), 100);
        }
        assert_eq!(session.close(), End::Closed);
    }
}

#[test]
fn an_indirect_table_and_many_direct_descriptors_carry_the_same() {
    let guest = guest();
    let session = Session::ready(1, INDIRECT | VERSION_1, &guest);
    let mut ring = Ring::new(&guest, LOW, 64, false).unwrap();
    session.client.start_ring(0, &ring, 0).unwrap();
    let bytes = fill(&guest, DATA, NOW, 7, 0x300);
    for indirect in [false, true] {
        let answer = DATA + 0x1_0000 + if indirect { 0x1000 } else { 0 };
        let mut buffers: Vec<_> = (0..24)
            .map(|at| Buffer::readable(DATA + at * 32, 32))
            .collect();
        // Across the end of a region of the answer's own.
        buffers.extend((0..30).map(|at| Buffer::writable(answer + at * 20, 20)));
        buffers.push(Buffer::writable(answer + 600, 1000));
        let head = if indirect {
            ring.add_indirect(DATA + 0x2_0000, &buffers).unwrap()
        } else {
            ring.add(&buffers).unwrap()
        };
        ring.announce(ring.next_avail.wrapping_sub(1)).unwrap();
        assert_eq!(ring.wait_used(soon()).unwrap(), (head, 0x300));
        assert_eq!(guest.get(answer, 0x300), bytes);
    }
    session.close();
}

#[test]
fn a_front_end_without_protocol_features_has_its_rings_enabled_at_once() {
    let guest = guest();
    let session = Session::new(1);
    let client = &session.client;
    let offered: u64 = client
        .ask(FrontendReq::GET_FEATURES, &[])
        .unwrap()
        .body()
        .unwrap();
    let features = (offered & !(1 << 30)).to_ne_bytes();
    client.tell(FrontendReq::SET_OWNER, &[], &[]).unwrap();
    client
        .tell(FrontendReq::SET_FEATURES, &features, &[])
        .unwrap();
    client.set_mem_table(&guest).unwrap();
    let mut ring = Ring::new(&guest, LOW, 16, true).unwrap();
    client
        .vring_state(FrontendReq::SET_VRING_NUM, 0, 16)
        .unwrap();
    client
        .vring_state(FrontendReq::SET_VRING_BASE, 0, 0)
        .unwrap();
    client.vring_addr(0, &ring).unwrap();
    client
        .vring_fd(FrontendReq::SET_VRING_KICK, 0, &ring.kick)
        .unwrap();
    // The call comes last, as QEMU sends it to a running ring.
    client
        .vring_fd(FrontendReq::SET_VRING_CALL, 0, &ring.call)
        .unwrap();
    still_serves(&guest, &mut ring);
    assert_eq!(session.close(), End::Closed);
}

#[test]
fn a_ring_described_in_any_order_runs_once_all_is_said() {
    use FrontendReq as R;
    let guest = guest();
    type Step = fn(&Client, &Ring) -> Ack;
    let steps: [Step; 5] = [
        |client, ring| {
            client
                .vring_state(R::SET_VRING_NUM, 0, ring.size.into())
                .unwrap()
        },
        |client, ring| client.vring_addr(0, ring).unwrap(),
        |client, ring| client.vring_fd(R::SET_VRING_KICK, 0, &ring.kick).unwrap(),
        |client, ring| client.vring_fd(R::SET_VRING_CALL, 0, &ring.call).unwrap(),
        |client, _| client.vring_state(R::SET_VRING_ENABLE, 0, 1).unwrap(),
    ];
    for first in 0..steps.len() {
        for step in [1, 2, 3, 4] {
            let session = Session::ready(1, VERSION_1, &guest);
            let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
            let head = submit(&guest, &mut ring, NOW, 1);
            for at in 0..steps.len() {
                let act = steps[(first + at * step) % steps.len()];
                assert_eq!(act(&session.client, &ring), Ack::Done);
            }
            expect(&guest, &mut ring, head, 1);
            assert_eq!(session.close(), End::Closed);
        }
    }
}

#[test]
fn what_waits_in_the_ring_is_served_without_a_kick() {
    let guest = guest();
    let session = Session::ready(1, VERSION_1, &guest);
    let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
    let head = submit(&guest, &mut ring, NOW, 1);
    drain(&ring.kick);
    session.client.start_ring(0, &ring, 0).unwrap();
    expect(&guest, &mut ring, head, 1);
    session.close();
}

#[test]
fn a_ring_without_a_kick_descriptor_is_polled() {
    let guest = guest();
    let session = Session::ready(1, VERSION_1, &guest);
    let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
    session.client.start_ring(0, &ring, 0).unwrap();
    let no_fd = 0x100u64.to_ne_bytes();
    let kick = FrontendReq::SET_VRING_KICK;
    session.client.order(kick, &no_fd, &[]).unwrap();
    for mark in 0..10 {
        let head = submit(&guest, &mut ring, NOW, mark);
        expect(&guest, &mut ring, head, mark);
    }
    session.close();
}

#[test]
fn stopping_waits_for_deferred_requests_and_tells_the_true_base() {
    let guest = guest();
    let session = Session::ready(1, EVENT_IDX | VERSION_1, &guest);
    let mut ring = Ring::new(&guest, LOW, 16, true).unwrap();
    session.client.start_ring(0, &ring, 0).unwrap();
    for mark in 0..5 {
        submit(&guest, &mut ring, LATER, mark);
    }
    session.knobs.wait_held(5);
    let knobs = session.knobs.clone();
    let opener = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        knobs.open(true);
    });
    assert_eq!(session.client.stop_ring(0).unwrap(), 5);
    // By the time of the answer everything is in the used ring.
    assert_eq!(ring.used_idx().unwrap(), 5);
    opener.join().unwrap();
    // And the ring goes on from there.
    for mark in 0..5 {
        ring.take_used().unwrap().unwrap();
        check(&guest, mark);
    }
    session.client.start_ring(0, &ring, 5).unwrap();
    still_serves(&guest, &mut ring);
    session.close();
}

#[test]
fn what_a_device_gives_back_is_served_after_the_next_start() {
    let guest = guest();
    let session = Session::ready(1, EVENT_IDX | VERSION_1, &guest);
    session.knobs.gives_back.store(true, Ordering::SeqCst);
    let mut ring = Ring::new(&guest, LOW, 16, true).unwrap();
    session.client.start_ring(0, &ring, 0).unwrap();
    let heads: Vec<_> = (0..5)
        .map(|mark| submit(&guest, &mut ring, LATER, mark))
        .collect();
    session.knobs.wait_held(5);
    assert_eq!(session.client.stop_ring(0).unwrap(), 0);
    assert_eq!(ring.used_idx().unwrap(), 0);
    session.knobs.open(true);
    session.client.start_ring(0, &ring, 0).unwrap();
    let mut used: Vec<_> = (0..5).map(|_| ring.wait_used(soon()).unwrap().0).collect();
    used.sort_unstable();
    let mut heads = heads;
    heads.sort_unstable();
    assert_eq!(used, heads);
    still_serves(&guest, &mut ring);
    session.close();
}

#[test]
fn a_disabled_ring_rests_and_goes_on_where_it_was() {
    use FrontendReq as R;
    let guest = guest();
    let session = Session::ready(1, VERSION_1, &guest);
    let client = &session.client;
    let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
    client.start_ring(0, &ring, 0).unwrap();
    still_serves(&guest, &mut ring);
    let enable = |on| client.vring_state(R::SET_VRING_ENABLE, 0, on).unwrap();
    assert_eq!(enable(0), Ack::Done);
    assert_eq!(enable(0), Ack::Done);
    let head = submit(&guest, &mut ring, NOW, 9);
    ring.kick().unwrap();
    // A round trip on the socket: time for a worker that should not be.
    client.config(0, 4).unwrap();
    assert!(ring.take_used().unwrap().is_none());
    assert_eq!(enable(1), Ack::Done);
    expect(&guest, &mut ring, head, 9);
    assert_eq!(client.stop_ring(0).unwrap(), 2);
    session.close();
}

#[test]
fn a_chain_that_is_not_wanted_now_stays_at_the_head() {
    for event_idx in [false, true] {
        let guest = guest();
        let features = VERSION_1 | if event_idx { EVENT_IDX } else { 0 };
        let session = Session::ready(1, features, &guest);
        let mut ring = Ring::new(&guest, LOW, 16, event_idx).unwrap();
        session.client.start_ring(0, &ring, 0).unwrap();
        let first = submit(&guest, &mut ring, NOT_NOW, 1);
        let second = submit(&guest, &mut ring, NOW, 2);
        session.client.config(0, 4).unwrap();
        assert!(ring.take_used().unwrap().is_none());
        // Stopped like this, it has not been taken.
        assert_eq!(session.client.stop_ring(0).unwrap(), 0);
        session.client.start_ring(0, &ring, 0).unwrap();
        session.knobs.open(true);
        expect(&guest, &mut ring, first, 1);
        expect(&guest, &mut ring, second, 2);
        session.close();
    }
}

#[test]
fn the_memory_changes_under_running_rings() {
    let guest = guest();
    let session = Session::ready(2, VERSION_1, &guest);
    let client = &session.client;
    let mut rings = [LOW, HIGH].map(|base| Ring::new(&guest, base, 16, false).unwrap());
    client.start_ring(0, &rings[0], 0).unwrap();
    client.start_ring(1, &rings[1], 0).unwrap();
    let more = Guest::new(&[(HIGH * 2, REGION)]).unwrap();
    let region = &more.regions[0];
    let single = region.single();
    let bytes = vm_memory::ByteValued::as_slice(&single);
    for mark in 0..20 {
        let heads: Vec<_> = (0..2)
            .map(|at| submit(&guest, &mut rings[at], LATER, mark * 2 + at as u8))
            .collect();
        session.knobs.open(true);
        match mark % 3 {
            0 => client.set_mem_table(&guest).unwrap(),
            1 => client
                .order(FrontendReq::ADD_MEM_REG, bytes, &[region.as_fd()])
                .unwrap(),
            _ => client.order(FrontendReq::REM_MEM_REG, bytes, &[]).unwrap(),
        }
        for at in 0..2 {
            expect(&guest, &mut rings[at], heads[at], mark * 2 + at as u8);
        }
        session.knobs.open(false);
    }
    session.close();
}

#[test]
fn a_region_that_is_added_drains_nothing_and_one_added_again_reaches_no_worker() {
    let guest = guest();
    let session = Session::ready(1, VERSION_1, &guest);
    let (client, knobs) = (&session.client, &session.knobs);
    let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
    client.start_ring(0, &ring, 0).unwrap();
    let later = submit(&guest, &mut ring, LATER, 1);
    knobs.wait_held(1);
    let more = Guest::new(&[(HIGH * 2, REGION)]).unwrap();
    let region = &more.regions[0];
    let single = region.single();
    let bytes = vm_memory::ByteValued::as_slice(&single);
    for _ in 0..2 {
        let add = FrontendReq::ADD_MEM_REG;
        client.order(add, bytes, &[region.as_fd()]).unwrap();
        // What is in flight still is.
        let [held, ends] = [&knobs.held, &knobs.ends].map(|count| count.load(Ordering::SeqCst));
        assert_eq!((held, ends), (1, 0));
        assert_eq!(knobs.maps.load(Ordering::SeqCst), 1);
    }
    // The worker has the new region by the time of the answer.
    let data = fill(&more, HIGH * 2, NOW, 2, 64);
    let old = ring.next_avail;
    let buffers = [
        Buffer::readable(HIGH * 2, 64),
        Buffer::writable(HIGH * 2 + 0x100, 64),
    ];
    let head = ring.add(&buffers).unwrap();
    ring.announce(old).unwrap();
    assert_eq!(ring.wait_used(soon()).unwrap(), (head, 64));
    assert_eq!(more.get(HIGH * 2 + 0x100, 64), data);
    // Removed as often as added; the last time, all is drained first.
    client.order(FrontendReq::REM_MEM_REG, bytes, &[]).unwrap();
    assert_eq!(knobs.ends.load(Ordering::SeqCst), 0);
    knobs.open(true);
    expect(&guest, &mut ring, later, 1);
    client.order(FrontendReq::REM_MEM_REG, bytes, &[]).unwrap();
    assert_eq!(knobs.ends.load(Ordering::SeqCst), 1);
    still_serves(&guest, &mut ring);
    session.close();
}

#[test]
fn events_are_replaced_on_a_running_ring() {
    use FrontendReq as R;
    let guest = guest();
    let session = Session::ready(1, VERSION_1, &guest);
    let client = &session.client;
    let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
    client.start_ring(0, &ring, 0).unwrap();
    still_serves(&guest, &mut ring);
    ring.renew_events().unwrap();
    for (request, event) in [
        (R::SET_VRING_CALL, &ring.call),
        (R::SET_VRING_ERR, &ring.err),
        (R::SET_VRING_KICK, &ring.kick),
    ] {
        assert_eq!(client.vring_fd(request, 0, event).unwrap(), Ack::Done);
    }
    drain(&ring.call);
    still_serves(&guest, &mut ring);
    wait_event(&ring.call, soon()).unwrap();
    session.close();
}

#[test]
fn calls_are_made_when_the_driver_wants_them_and_only_then() {
    // Without EVENT_IDX: by the flag.
    let guest = guest();
    let session = Session::ready(2, VERSION_1, &guest);
    let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
    session.client.start_ring(0, &ring, 0).unwrap();
    still_serves(&guest, &mut ring);
    wait_event(&ring.call, soon()).unwrap();
    ring.suppress_calls(true).unwrap();
    for _ in 0..3 {
        still_serves(&guest, &mut ring);
    }
    session.client.stop_ring(0).unwrap();
    assert_eq!(drain(&ring.call), 0);
    session.close();

    // With EVENT_IDX: when the index passes the one asked for.
    let session = Session::ready(1, EVENT_IDX | VERSION_1, &guest);
    let mut ring = Ring::new(&guest, LOW, 16, true).unwrap();
    session.client.start_ring(0, &ring, 0).unwrap();
    still_serves(&guest, &mut ring);
    wait_event(&ring.call, soon()).unwrap();
    ring.set_used_event(3).unwrap();
    still_serves(&guest, &mut ring);
    still_serves(&guest, &mut ring);
    session.client.stop_ring(0).unwrap();
    assert_eq!(drain(&ring.call), 0);
    session.client.start_ring(0, &ring, 3).unwrap();
    still_serves(&guest, &mut ring);
    wait_event(&ring.call, soon()).unwrap();
    session.close();
}

#[test]
fn a_batch_moves_the_used_index_once_and_calls_once() {
    let guest = guest();
    let session = Session::ready(1, VERSION_1, &guest);
    let mut ring = Ring::new(&guest, LOW, 32, false).unwrap();
    session.client.start_ring(0, &ring, 0).unwrap();
    still_serves(&guest, &mut ring);
    wait_event(&ring.call, soon()).unwrap();
    let heads: Vec<_> = (0..10)
        .map(|mark| submit(&guest, &mut ring, LATER, mark))
        .collect();
    session.knobs.wait_held(10);
    session.knobs.open(true);
    let mut back: Vec<_> = (0..10).map(|_| ring.wait_used(soon()).unwrap().0).collect();
    back.reverse();
    assert_eq!(back, heads);
    session.client.stop_ring(0).unwrap();
    assert_eq!(drain(&ring.call), 1);
    session.close();
}

#[test]
fn kicks_are_not_wanted_while_the_worker_works_and_wanted_when_it_sleeps() {
    let guest = guest();
    for event_idx in [false, true] {
        let features = VERSION_1 | if event_idx { EVENT_IDX } else { 0 };
        let session = Session::ready(1, features, &guest);
        let mut ring = Ring::new(&guest, LOW, 16, event_idx).unwrap();
        session.client.start_ring(0, &ring, 0).unwrap();
        for _ in 0..3 {
            // Asleep: it asks for the next.
            let next = ring.next_avail;
            wait(|| match event_idx {
                true => ring.avail_event().unwrap() == next,
                false => ring.used_flags().unwrap() == 0,
            });
            assert!(ring.announce(next.wrapping_sub(1)).is_ok());
            still_serves(&guest, &mut ring);
        }
        session.close();
    }
}

#[test]
fn a_polling_worker_serves_the_same_and_sleeps_in_the_end() {
    let guest = guest();
    let mut session = Session::within(
        1,
        Limits {
            poll: Duration::from_millis(5),
            ..Limits::default()
        },
    );
    session.client.negotiate(EVENT_IDX | VERSION_1).unwrap();
    session.client.set_mem_table(&guest).unwrap();
    let mut ring = Ring::new(&guest, LOW, 16, true).unwrap();
    session.client.start_ring(0, &ring, 0).unwrap();
    for mark in 0..200 {
        let kind = if mark % 2 == 0 { NOW } else { LATER };
        let head = submit(&guest, &mut ring, kind, mark);
        session.knobs.open(true);
        expect(&guest, &mut ring, head, mark);
    }
    let next = ring.next_avail;
    wait(|| ring.avail_event().unwrap() == next);
    session.close();
}

#[test]
fn the_configuration_is_read_written_and_announced() {
    let guest = guest();
    let session = Session::ready(1, VERSION_1, &guest);
    let client = &session.client;
    assert_eq!(client.config(0, 4).unwrap(), [1, 2, 3, 4]);
    assert_eq!(client.config(2, 2).unwrap(), [3, 4]);
    // Fields that this device does not have.
    assert_eq!(client.config(3, 3).unwrap(), [4, 0, 0]);
    assert_eq!(client.set_config(1, &[9]).unwrap(), Ack::Done);
    assert_eq!(client.config(0, 4).unwrap(), [1, 9, 3, 4]);
    assert_eq!(client.set_config(0, &[9]).unwrap(), Ack::Refused);

    let notifier = session.knobs.notifier.lock().unwrap().clone().unwrap();
    // Nobody listens yet.
    notifier.config_changed();
    client.config(0, 4).unwrap();
    let requests = client.backend_requests().unwrap();
    *session.knobs.config.lock().unwrap() = vec![5; 4];
    notifier.config_changed();
    let message = requests.recv(soon()).unwrap();
    assert_eq!(message.header, Header::request(2));
    assert!(message.payload.is_empty());
    assert_eq!(client.config(0, 4).unwrap(), [5; 4]);
    // A listener that has gone harms nobody.
    drop(requests);
    for _ in 0..3 {
        notifier.config_changed();
        client.config(0, 4).unwrap();
    }
    assert_eq!(session.close(), End::Closed);
}

/// A front-end whose VM is paused may hear of a change and forget it.
#[test]
fn a_change_while_no_ring_is_served_is_told_again_once_one_is() {
    let guest = guest();
    let session = Session::ready(2, VERSION_1, &guest);
    let client = &session.client;
    let notifier = session.knobs.notifier.lock().unwrap().clone().unwrap();
    let requests = client.backend_requests().unwrap();
    let told = || {
        let message = requests.recv(soon()).unwrap();
        assert_eq!(message.header, Header::request(2));
    };
    let nothing_more = || {
        client.config(0, 4).unwrap();
        let mut fds = [PollFd::new(requests.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::ZERO).unwrap(), 0);
    };
    let ring = Ring::new(&guest, LOW, 16, false).unwrap();
    for base in [0, 0] {
        // Before any ring has been started, and after all have been stopped.
        notifier.config_changed();
        told();
        nothing_more();
        client.start_ring(0, &ring, base).unwrap();
        told();
        nothing_more();
        // While one is served it is told once.
        notifier.config_changed();
        told();
        client.stop_ring(0).unwrap();
        client.start_ring(0, &ring, base).unwrap();
        nothing_more();
        client.stop_ring(0).unwrap();
    }
    assert_eq!(session.close(), End::Closed);
}

/// What QEMU 7.2 sends while its VM is paused and the back-end comes back: the
/// inflight region it has kept and its rings, and nothing of its memory.
#[test]
fn a_front_end_that_describes_no_memory_learns_what_is_wrong() {
    let guest = guest();
    let before = Session::ready(1, VERSION_1, &guest);
    let (described, region) = before.client.get_inflight(1, 16).unwrap();
    before.close();
    let session = Session::new(1);
    let client = &session.client;
    let features = (VERSION_1 | 1 << 30).to_ne_bytes();
    let ring = Ring::new(&guest, LOW, 16, false).unwrap();
    client
        .tell(FrontendReq::SET_FEATURES, &features, &[])
        .unwrap();
    client.set_inflight(&described, region.as_fd()).unwrap();
    client
        .vring_state(FrontendReq::SET_VRING_NUM, 0, 16)
        .unwrap();
    client
        .vring_state(FrontendReq::SET_VRING_BASE, 0, 0)
        .unwrap();
    client.vring_addr(0, &ring).unwrap();
    client.receive().unwrap_err();
    let End::CutOff(why) = session.end() else {
        panic!("it was not cut off");
    };
    for words in ["SET_VRING_ADDR", "described no memory", "paused", "(cont)"] {
        assert!(why.contains(words), "{why:?} without {words:?}");
    }
}

#[test]
fn a_reset_device_is_as_new_and_can_be_driven_again() {
    let guest = guest();
    let mut session = Session::ready(1, EVENT_IDX | VERSION_1, &guest);
    for round in 0..3 {
        let mut ring = Ring::new(&guest, LOW, 16, true).unwrap();
        session.client.start_ring(0, &ring, 0).unwrap();
        for mark in 0..5 {
            submit(&guest, &mut ring, LATER, mark);
        }
        session.knobs.wait_held(5);
        session.knobs.open(true);
        let reset = FrontendReq::RESET_DEVICE;
        session.client.order(reset, &[], &[]).unwrap();
        session.knobs.open(false);
        assert_eq!(ring.used_idx().unwrap(), 5, "round {round}");
        // Its ring is off, whatever the driver does.
        submit(&guest, &mut ring, NOW, 9);
        ring.kick().unwrap();
        session.client.negotiate(EVENT_IDX | VERSION_1).unwrap();
        assert_eq!(ring.used_idx().unwrap(), 5);
    }
    let features = EVENT_IDX | VERSION_1;
    let resets = session.knobs.resets.lock().unwrap().clone();
    assert_eq!(resets, [0, features, 0, features, 0, features, 0, features]);
    session.close();
}

#[test]
fn a_queue_that_cannot_be_had_is_an_answer_and_a_signal() {
    let guest = guest();
    let session = Session::ready(1, VERSION_1, &guest);
    session.knobs.no_queues.store(true, Ordering::SeqCst);
    let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
    assert!(session.client.start_ring(0, &ring, 0).is_err());
    wait_event(&ring.err, soon()).unwrap();
    session.knobs.no_queues.store(false, Ordering::SeqCst);
    session.client.start_ring(0, &ring, 0).unwrap_err();
    session.client.stop_ring(0).unwrap();
    session.client.start_ring(0, &ring, 0).unwrap();
    still_serves(&guest, &mut ring);
    session.close();
}

#[test]
fn a_broken_engine_stops_the_ring_and_not_the_session() {
    let guest = guest();
    let session = Session::ready(2, VERSION_1, &guest);
    let mut broken = Ring::new(&guest, LOW, 16, false).unwrap();
    let mut whole = Ring::new(&guest, LOW + 0x1000, 16, false).unwrap();
    session.client.start_ring(0, &broken, 0).unwrap();
    session.client.start_ring(1, &whole, 0).unwrap();
    session.knobs.break_engine.store(true, Ordering::SeqCst);
    submit(&guest, &mut broken, LATER, 1);
    wait_event(&broken.err, soon()).unwrap();
    still_serves(&guest, &mut whole);
    // What its engine had is not waited for.
    session.client.stop_ring(0).unwrap();
    session.close();
}

#[test]
fn ending_the_program_drains_the_rings() {
    let guest = guest();
    let session = Session::ready(1, VERSION_1, &guest);
    let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
    session.client.start_ring(0, &ring, 0).unwrap();
    submit(&guest, &mut ring, LATER, 1);
    session.knobs.wait_held(1);
    let knobs = session.knobs.clone();
    let opener = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        knobs.open(true);
    });
    assert_eq!(session.stop(), End::Stopped);
    opener.join().unwrap();
    ring.take_used().unwrap().unwrap();
    check(&guest, 1);
}

#[test]
fn a_front_end_that_goes_leaves_its_requests_completed() {
    let guest = guest();
    let session = Session::ready(1, VERSION_1, &guest);
    let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
    session.client.start_ring(0, &ring, 0).unwrap();
    submit(&guest, &mut ring, LATER, 1);
    session.knobs.wait_held(1);
    assert_eq!(session.close(), End::Closed);
    ring.take_used().unwrap().unwrap();
    check(&guest, 1);
}

#[test]
fn a_silent_front_end_is_waited_for() {
    let session = Session::new(1);
    std::thread::sleep(Duration::from_millis(300));
    assert!(!session.is_over());
    assert_eq!(session.stop(), End::Stopped);
}

#[test]
fn a_blocking_kick_that_another_process_reads_does_not_hold_the_worker() {
    let guest = guest();
    let session = Session::ready(1, VERSION_1, &guest);
    let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
    ring.kick = EventFd::from_value_and_flags(0, EfdFlags::empty()).unwrap();
    session.client.start_ring(0, &ring, 0).unwrap();
    let thief = Event::lent(ring.kick.as_fd().try_clone_to_owned().unwrap()).unwrap();
    for _ in 0..500 {
        ring.kick().unwrap();
        thief.clear();
    }
    still_serves(&guest, &mut ring);
    session.close();
}

#[test]
fn a_device_that_does_not_return_its_requests_is_given_up_and_not_waited_for() {
    let drain = Duration::from_millis(100);
    let guest = guest();
    for by_request in [true, false] {
        let mut session = Session::within(
            2,
            Limits {
                drain,
                ..Limits::default()
            },
        );
        session.client.negotiate(VERSION_1).unwrap();
        session.client.set_mem_table(&guest).unwrap();
        let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
        session.client.start_ring(0, &ring, 0).unwrap();
        submit(&guest, &mut ring, LATER, 1);
        session.knobs.wait_held(1);
        if by_request {
            session.client.stop_ring(0).unwrap_err();
        } else {
            session.ask_to_stop();
        }
        let knobs = session.knobs.clone();
        session.wait_stuck();
        // The request was neither returned nor invented.
        assert_eq!(ring.used_idx().unwrap(), 0);
        knobs.open(true);
    }
}

#[test]
fn a_message_that_is_never_finished_ends_the_session() {
    let message = Duration::from_millis(100);
    let session = Session::within(
        1,
        Limits {
            message,
            ..Limits::default()
        },
    );
    let fd = session.client.connection.as_fd();
    nix::unistd::write(fd, &[1, 0, 0, 0, 1]).unwrap();
    assert!(matches!(session.end(), End::CutOff(_)));
}
