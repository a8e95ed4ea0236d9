//! Front-ends that break the specification, by accident or on purpose: each
//! message is refused or ends the session, and nothing else happens.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags};
use outboard_contract::client::Ack;
use outboard_contract::memory::{USER_OFFSET, sealed};
use outboard_contract::ring::Ring;
use outboard_protocol::wire::{Header, WireError};
use outboard_runtime::session::End;
use support::*;
use vhost::vhost_user::message::{
    FrontendReq as R, VhostUserInflight, VhostUserMemory, VhostUserMemoryRegion,
    VhostUserSingleMemoryRegion, VhostUserVringAddr, VhostUserVringAddrFlags, VhostUserVringState,
};
use vm_memory::{ByteValued, Bytes, GuestAddress};

/// Counts of this process's descriptors and mappings are compared by one test
/// at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Requests that have a reply of their own, and that number.
const REPLIED: [R; 7] = [
    R::GET_FEATURES,
    R::GET_PROTOCOL_FEATURES,
    R::GET_QUEUE_NUM,
    R::GET_MAX_MEM_SLOTS,
    R::GET_VRING_BASE,
    R::GET_CONFIG,
    R::GET_INFLIGHT_FD,
];

fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

/// A session with two rings that run, and what they run on.
struct Running {
    session: Session,
    guest: outboard_contract::memory::Memory,
    rings: [Ring; 2],
}

impl Running {
    fn new() -> Self {
        let guest = guest();
        let session = Session::ready(2, VERSION_1, &guest);
        let rings = [LOW, HIGH].map(|base| Ring::new(&guest, base, 16, false).unwrap());
        session.client.start_ring(0, &rings[0], 0).unwrap();
        session.client.start_ring(1, &rings[1], 0).unwrap();
        Self {
            session,
            guest,
            rings,
        }
    }

    fn tell(&self, request: R, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Ack {
        self.session.client.tell(request, payload, fds).unwrap()
    }

    fn state(&self, request: R, index: u32, num: u32) -> Ack {
        self.session
            .client
            .vring_state(request, index, num)
            .unwrap()
    }

    /// Both rings work and the session ends well.
    fn ends_well(mut self) {
        for ring in &mut self.rings {
            still_serves(&self.guest, ring);
        }
        assert_eq!(self.session.close(), End::Closed);
    }

    fn was_cut_off(self) {
        let end = self.session.end();
        assert!(matches!(end, End::CutOff(_)), "{end:?}");
    }
}

#[test]
fn queue_numbers_beyond_the_device_are_refused() {
    let running = Running::new();
    for index in [2, 255, 256, 257, 65_535, 65_536, 65_537, u32::MAX] {
        for request in [R::SET_VRING_NUM, R::SET_VRING_BASE, R::SET_VRING_ENABLE] {
            assert_eq!(running.state(request, index, 1), Ack::Refused, "{index}");
        }
        let empty = VhostUserVringAddrFlags::empty();
        let address = VhostUserVringAddr::new(index, empty, 0, 0, 0, 0);
        let ack = running.tell(R::SET_VRING_ADDR, address.as_slice(), &[]);
        assert_eq!(ack, Ack::Refused, "{index}");
    }
    for request in [R::SET_VRING_KICK, R::SET_VRING_CALL, R::SET_VRING_ERR] {
        for index in [2u64, 255] {
            let bytes = index.to_ne_bytes();
            assert_eq!(
                running.tell(request, &bytes, &[null().as_fd()]),
                Ack::Refused
            );
        }
    }
    running.ends_well();
}

#[test]
fn bits_beyond_the_queue_number_of_an_event_end_the_session() {
    for payload in [0x200u64, 0x1_0000, 1 << 32, u64::MAX] {
        let running = Running::new();
        let fd = null();
        let ack = running.tell(R::SET_VRING_CALL, &payload.to_ne_bytes(), &[fd.as_fd()]);
        assert_eq!(ack, Ack::CutOff);
        running.was_cut_off();
    }
}

#[test]
fn an_event_with_a_descriptor_too_many_or_too_few_ends_the_session() {
    for (payload, count) in [(0x100u64, 1), (0, 0), (0, 2)] {
        for request in [R::SET_VRING_KICK, R::SET_VRING_CALL, R::SET_VRING_ERR] {
            let running = Running::new();
            let fd = null();
            let fds = vec![fd.as_fd(); count];
            let ack = running.tell(request, &payload.to_ne_bytes(), &fds);
            assert_eq!(ack, Ack::CutOff);
            running.was_cut_off();
        }
    }
}

#[test]
fn events_that_are_no_eventfds_are_refused() {
    let running = Running::new();
    let folder: OwnedFd = File::open("/").unwrap().into();
    let file: OwnedFd = sealed(64).unwrap().into();
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let (socket, _peer) = UnixStream::pair().unwrap();
    let socket = socket.into();
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap().0;
    for request in [R::SET_VRING_KICK, R::SET_VRING_CALL, R::SET_VRING_ERR] {
        for fd in [&null(), &folder, &file, &reader, &writer, &socket, &epoll] {
            let ack = running.tell(request, &0u64.to_ne_bytes(), &[fd.as_fd()]);
            assert_eq!(ack, Ack::Refused);
        }
    }
    running.ends_well();
}

#[test]
fn events_without_a_descriptor_are_served_without() {
    let mut running = Running::new();
    let none = 0x100u64.to_ne_bytes();
    for request in [R::SET_VRING_CALL, R::SET_VRING_ERR, R::SET_VRING_KICK] {
        assert_eq!(running.tell(request, &none, &[]), Ack::Done);
    }
    still_serves(&running.guest, &mut running.rings[0]);
    running.ends_well();
}

#[test]
fn illegal_queue_sizes_and_bases_are_refused() {
    let guest = guest();
    let session = Session::ready(1, VERSION_1, &guest);
    for size in [0, 3, 15, 257, 512, 32_768, 65_535, 65_536, 65_552, u32::MAX] {
        refused(&session.client, R::SET_VRING_NUM, 0, size);
    }
    for base in [65_536, u32::MAX] {
        refused(&session.client, R::SET_VRING_BASE, 0, base);
    }
    for enable in [2, u32::MAX] {
        refused(&session.client, R::SET_VRING_ENABLE, 0, enable);
    }
    assert_eq!(session.close(), End::Closed);
}

#[test]
fn a_running_ring_is_not_resized_and_not_rebased_also_while_disabled() {
    let running = Running::new();
    for enable in [1, 0] {
        assert_eq!(running.state(R::SET_VRING_ENABLE, 0, enable), Ack::Done);
        assert_eq!(running.state(R::SET_VRING_NUM, 0, 8), Ack::Refused);
        assert_eq!(running.state(R::SET_VRING_BASE, 0, 5), Ack::Refused);
    }
    assert_eq!(running.state(R::SET_VRING_ENABLE, 0, 1), Ack::Done);
    running.ends_well();
}

#[test]
fn rings_outside_memory_in_a_hole_misaligned_or_over_one_another_are_refused() {
    let running = Running::new();
    let base = LOW + 0x4000 + USER_OFFSET;
    let address = |flags: u32, parts: [u64; 3]| {
        let [descriptors, used, available] = parts;
        let empty = VhostUserVringAddrFlags::empty();
        let mut address = VhostUserVringAddr::new(0, empty, descriptors, used, available, 0);
        address.flags = flags;
        running.tell(R::SET_VRING_ADDR, address.as_slice(), &[])
    };
    let good = [base, base + 0x1000, base + 0x2000];
    let end = LOW + REGION + USER_OFFSET;
    let bad = [
        // Guest addresses, no addresses, in the hole, over an end.
        good.map(|at| at - USER_OFFSET),
        [0; 3],
        [u64::MAX - 15, base + 0x1000, base + 0x2000],
        [end, base + 0x1000, base + 0x2000],
        [end - 16 * 15, base + 0x1000, base + 0x2000],
        [base, end - 8 * 16, base + 0x2000],
        [base, base + 0x1000, end - 2 * 16],
        // Misaligned.
        [base + 8, base + 0x1000, base + 0x2000],
        [base, base + 0x1002, base + 0x2000],
        [base, base + 0x1000, base + 0x2001],
        // The used ring over the others.
        [base, base, base + 0x2000],
        [base, base + 0xf0, base + 0x2000],
        [base, base + 0x2000, base + 0x2000],
        [base, base + 0x2000 - 64, base + 0x2000],
    ];
    for parts in bad {
        assert_eq!(address(0, parts), Ack::Refused, "{parts:x?}");
    }
    // Logging was not offered.
    assert_eq!(address(1, good), Ack::Refused);
    // Over the other ring, which runs: refused when it is to start.
    let other = running.rings[1].descriptors + USER_OFFSET;
    assert_eq!(
        address(0, [other, other + 0x1000, other + 0x2000]),
        Ack::Done
    );
    assert_eq!(
        address(0, [base, other, base + 0x2000]),
        Ack::Refused,
        "over the descriptors of the other"
    );
    let ring = &running.rings[0];
    let back = [ring.descriptors, ring.used, ring.available].map(|at| at + USER_OFFSET);
    assert_eq!(address(0, back), Ack::Done);
    running.ends_well();
}

#[test]
fn a_ring_moved_while_it_runs_goes_on_in_its_new_place() {
    let mut running = Running::new();
    still_serves(&running.guest, &mut running.rings[0]);
    let mut moved = Ring::new(&running.guest, LOW + 0x4000, 16, false).unwrap();
    moved.next_avail = 1;
    moved.next_used = 1;
    moved.set_avail_idx(1).unwrap();
    let used = GuestAddress(moved.used + 2);
    running.guest.guest.write_obj(1u16.to_le(), used).unwrap();
    let ack = running.session.client.vring_addr(0, &moved).unwrap();
    assert_eq!(ack, Ack::Done);
    moved.kick = Ring::new(&running.guest, LOW + 0x8000, 16, false)
        .unwrap()
        .kick;
    let kick = running
        .session
        .client
        .vring_fd(R::SET_VRING_KICK, 0, &moved.kick);
    assert_eq!(kick.unwrap(), Ack::Done);
    let head = submit(&running.guest, &mut moved, NOW, 3);
    moved.kick().unwrap();
    expect(&running.guest, &mut moved, head, 3);
    assert_eq!(running.session.client.stop_ring(0).unwrap(), 2);
    assert_eq!(running.session.close(), End::Closed);
}

#[test]
fn orders_that_make_no_sense_yet_are_borne() {
    let guest = guest();
    let mut session = Session::new(1);
    session.client.negotiate(VERSION_1).unwrap();
    let ring = Ring::new(&guest, LOW, 16, false).unwrap();
    let client = &session.client;
    // Enable and kick before anything is said, addresses before memory.
    client.vring_state(R::SET_VRING_ENABLE, 0, 1).unwrap();
    client.vring_fd(R::SET_VRING_KICK, 0, &ring.kick).unwrap();
    ring.kick().unwrap();
    client.vring_state(R::SET_VRING_NUM, 0, 16).unwrap();
    assert_eq!(client.vring_addr(0, &ring).unwrap(), Ack::Refused);
    // A ring that was never started has its base.
    assert_eq!(client.stop_ring(0).unwrap(), 0);
    client.vring_state(R::SET_VRING_BASE, 0, 77).unwrap();
    assert_eq!(client.stop_ring(0).unwrap(), 77);
    assert_eq!(client.stop_ring(0).unwrap(), 77);
    client.set_mem_table(&guest).unwrap();
    assert_eq!(session.close(), End::Closed);
}

fn region(guest: u64, size: u64, user: u64, offset: u64) -> VhostUserMemoryRegion {
    VhostUserMemoryRegion::new(guest, size, user, offset)
}

/// Regions that cannot be, each with what its file has.
fn impossible_regions() -> Vec<(VhostUserMemoryRegion, u64)> {
    let top = !0xfff;
    vec![
        (region(0x8000_0000, 0, 0, 0), 0x1000),
        (region(0x8000_0000, 0x2000, 0x1000, 0), 0x1000),
        (region(0x8000_0000, 0x1000, 0x1000, 0x1000), 0x1000),
        (region(0x8000_0000, 0x1000, 0x1000, top), 0x1000),
        (region(top, 0x2000, 0x1000, 0), 0x2000),
        (region(0x8000_0000, 0x2000, top, 0), 0x2000),
        (region(0x8000_0000, u64::MAX, 0x1000, 0), 0x1000),
        (region(0x8000_0000, 1 << 62, 0x1000, 0), 0x1000),
        (region(0x8000_0000, 0x1000, 0x1000, 0x10), 0x2000),
        (region(0x8000_0010, 0x1000, 0x1000, 0), 0x2000),
        // Over another, by either address.
        (region(LOW, 0x1000, 0x1000, 0), 0x1000),
        (region(LOW - 0x1000, 0x2000, 0x1000, 0), 0x2000),
        (region(0x8000_0000, 0x1000, LOW + USER_OFFSET, 0), 0x1000),
        (region(LOW, REGION, LOW + USER_OFFSET, 0), REGION),
    ]
}

#[test]
fn memory_regions_that_cannot_be_are_refused_and_change_nothing() {
    let running = Running::new();
    for (at, (bad, file)) in impossible_regions().into_iter().enumerate() {
        let file = sealed(file).unwrap();
        let single = single(&bad);
        let ack = running.tell(R::ADD_MEM_REG, single.as_slice(), &[file.as_fd()]);
        assert_eq!(ack, Ack::Refused, "region {at} added");
        // The same in a table, after a good one.
        let first = &running.guest.regions[0];
        let mut payload = VhostUserMemory::new(2).as_slice().to_vec();
        payload.extend(first.described().as_slice());
        payload.extend(bad.as_slice());
        let fds = [first.as_fd(), file.as_fd()];
        let ack = running.tell(R::SET_MEM_TABLE, &payload, &fds);
        assert_eq!(ack, Ack::Refused, "region {at} in a table");
    }
    // Descriptors of no file.
    let single = single(&region(0x8000_0000, 0x1000, 0x1000, 0));
    let (reader, _writer) = nix::unistd::pipe().unwrap();
    let socket = UnixStream::pair().unwrap().0;
    let folder = File::open("/").unwrap();
    let read_only = File::open("/proc/self/exe").unwrap();
    for fd in [
        null().as_fd(),
        reader.as_fd(),
        socket.as_fd(),
        folder.as_fd(),
        read_only.as_fd(),
    ] {
        let ack = running.tell(R::ADD_MEM_REG, single.as_slice(), &[fd]);
        assert_eq!(ack, Ack::Refused);
    }
    running.ends_well();
}

fn single(region: &VhostUserMemoryRegion) -> VhostUserSingleMemoryRegion {
    VhostUserSingleMemoryRegion::new(
        region.guest_phys_addr,
        region.memory_size,
        region.user_addr,
        region.mmap_offset,
    )
}

#[test]
fn a_region_is_removed_as_often_as_it_was_added_and_never_from_under_a_ring() {
    let running = Running::new();
    let [low, _] = &running.guest.regions[..] else {
        panic!("two regions");
    };
    let remove =
        |single: &VhostUserSingleMemoryRegion| running.tell(R::REM_MEM_REG, single.as_slice(), &[]);
    assert_eq!(remove(&low.single()), Ack::Refused);
    let near = VhostUserSingleMemoryRegion::new(LOW, REGION - 0x1000, LOW + USER_OFFSET, 0);
    assert_eq!(remove(&near), Ack::Refused);
    let file = sealed(0x1000).unwrap();
    let more = VhostUserSingleMemoryRegion::new(0x8000_0000, 0x1000, 0x1000, 0);
    let fd = [file.as_fd()];
    assert_eq!(
        running.tell(R::ADD_MEM_REG, more.as_slice(), &fd),
        Ack::Done
    );
    // Of another file, or from elsewhere in it, it is another.
    let other = sealed(0x1000).unwrap();
    assert_eq!(
        running.tell(R::ADD_MEM_REG, more.as_slice(), &[other.as_fd()]),
        Ack::Refused
    );
    // QEMU 7.2 adds all regions for each pair of queues, and removes them so.
    assert_eq!(
        running.tell(R::ADD_MEM_REG, more.as_slice(), &fd),
        Ack::Done
    );
    assert_eq!(remove(&more), Ack::Done);
    let over = VhostUserSingleMemoryRegion::new(0x8000_0000, 0x1000, 0x8000, 0);
    assert_eq!(
        running.tell(R::ADD_MEM_REG, over.as_slice(), &fd),
        Ack::Refused,
        "it is still there"
    );
    // With a descriptor, which is to be closed and ignored.
    assert_eq!(
        running.tell(R::REM_MEM_REG, more.as_slice(), &fd),
        Ack::Done
    );
    assert_eq!(remove(&more), Ack::Refused);
    running.ends_well();
}

#[test]
fn memory_that_loses_a_running_ring_stops_it_and_tells() {
    let mut running = Running::new();
    let low = &running.guest.regions[0];
    let mut payload = VhostUserMemory::new(1).as_slice().to_vec();
    payload.extend(low.described().as_slice());
    let ack = running.tell(R::SET_MEM_TABLE, &payload, &[low.as_fd()]);
    assert_eq!(ack, Ack::Refused);
    still_serves(&running.guest, &mut running.rings[0]);
    assert_eq!(running.session.client.stop_ring(1).unwrap(), 0);
    assert_eq!(running.session.close(), End::Closed);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let running = Running::new();
    for features in [1u64 << 33, 1 << 26, u64::MAX] {
        let bytes = features.to_ne_bytes();
        assert_eq!(running.tell(R::SET_FEATURES, &bytes, &[]), Ack::Refused);
    }
    for protocol in [1u64 << 1, 1 << 14, 1 << 63] {
        let bytes = protocol.to_ne_bytes();
        let ack = running.tell(R::SET_PROTOCOL_FEATURES, &bytes, &[]);
        assert_eq!(ack, Ack::Refused);
    }
    running.ends_well();
}

#[test]
fn unknown_requests_are_refused_or_ignored() {
    let running = Running::new();
    let client = &running.session.client;
    for request in [0, 45, 100, 0xffff_ffff] {
        client
            .send(Header::request(request).with_need_reply(), b"abc", &[])
            .unwrap();
        assert_eq!(client.acknowledgement(request).unwrap(), Ack::Refused);
        let fd = null();
        client
            .send(Header::request(request), &[], &[fd.as_fd()])
            .unwrap();
    }
    // Known to the specification, and not offered here.
    for request in [R::SEND_RARP, R::NET_SET_MTU, R::SET_STATUS, R::SET_LOG_BASE] {
        assert_eq!(running.tell(request, &[0; 8], &[]), Ack::Refused);
    }
    running.ends_well();
}

#[test]
fn a_request_that_fails_without_a_way_to_say_so_ends_the_session() {
    let running = Running::new();
    let client = &running.session.client;
    let state = VhostUserVringState::new(0, 3);
    let header = Header::request(R::SET_VRING_NUM.into());
    client.send(header, state.as_slice(), &[]).unwrap();
    assert!(matches!(client.receive(), Err(WireError::Closed)));
    running.was_cut_off();
    // So does a question that has no answer.
    let running = Running::new();
    let state = VhostUserVringState::new(2, 0);
    let header = Header::request(R::GET_VRING_BASE.into());
    running
        .session
        .client
        .send(header, state.as_slice(), &[])
        .unwrap();
    running.was_cut_off();
}

#[test]
fn a_driver_that_writes_to_read_only_configuration_ends_nothing() {
    let running = Running::new();
    let payload = [0u32, 1, 0].map(u32::to_ne_bytes).concat();
    let payload = [&payload[..], &[7]].concat();
    let header = Header::request(R::SET_CONFIG.into());
    running.session.client.send(header, &payload, &[]).unwrap();
    running.ends_well();
}

#[test]
fn configuration_reads_beyond_the_end_are_answered_with_an_error() {
    let running = Running::new();
    for (offset, size) in [(5u32, 1u32), (u32::MAX, 1), (0, 0)] {
        let mut payload = [offset, size, 0].map(u32::to_ne_bytes).concat();
        payload.resize(payload.len() + size as usize, 0);
        let reply = running.session.client.ask(R::GET_CONFIG, &payload).unwrap();
        assert!(reply.payload.is_empty(), "{offset} {size}");
    }
    running.ends_well();
}

/// Every request with every payload length around its own, and with
/// descriptors it does not take: refused, cut off, or (where it fits) obeyed,
/// but always answered in time and never the end of the process.
#[test]
fn payloads_of_any_other_length_are_survived() {
    let fd = null();
    for request in 0..46u32 {
        for length in [0, 1, 4, 7, 8, 9, 12, 16, 20, 24, 32, 40, 41, 264, 4096] {
            for count in [0, 1, 8] {
                let guest = guest();
                let session = Session::ready(1, VERSION_1, &guest);
                let header = Header::request(request).with_need_reply();
                let payload = vec![0; length];
                let fds = vec![fd.as_fd(); count];
                session.client.send(header, &payload, &fds).unwrap();
                if request == u32::from(R::SET_PROTOCOL_FEATURES) && length == 8 && count == 0 {
                    // Legal: this turns acknowledgements off.
                    continue;
                }
                // Whatever it is, the session says so or closes.
                match session.client.receive() {
                    Ok(reply) => assert_eq!(reply.header, Header::reply_to(request)),
                    Err(WireError::Closed) => {}
                    Err(error) => panic!("{request} {length} {count}: {error}"),
                }
                session.close();
            }
        }
    }
}

#[test]
fn frames_that_break_the_rules_end_the_session() {
    let good = |request: R| {
        let mut bytes = Vec::new();
        for word in [u32::from(request), 1, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes
    };
    let with = |at: usize, word: u32| {
        let mut bytes = good(R::GET_FEATURES);
        bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        bytes
    };
    // Versions, reserved flags, the reply flag, a payload that is too long.
    for bytes in [
        with(4, 0),
        with(4, 2),
        with(4, 3),
        with(4, 0x11),
        with(4, 0x8000_0001),
        with(4, 5),
        with(8, 4097),
        with(8, u32::MAX),
    ] {
        let (session, mut raw) = raw_session();
        raw.write_all(&bytes).unwrap();
        let end = session.end();
        assert!(matches!(end, End::CutOff(_)), "{bytes:x?}: {end:?}");
    }
}

/// A session whose client's socket can be written to directly.
fn raw_session() -> (Session, UnixStream) {
    let session = Session::new(1);
    let fd = session.client.connection.as_fd();
    let raw = UnixStream::from(fd.try_clone_to_owned().unwrap());
    (session, raw)
}

#[test]
fn a_front_end_may_go_in_the_middle_of_any_message() {
    let state = VhostUserVringState::new(0, 16);
    let mut whole = Vec::new();
    for word in [u32::from(R::SET_VRING_NUM), 1, 8] {
        whole.extend(word.to_ne_bytes());
    }
    whole.extend(state.as_slice());
    for cut in 0..=whole.len() {
        let (session, mut raw) = raw_session();
        raw.write_all(&whole[..cut]).unwrap();
        drop(raw);
        let end = session.close();
        let boundary = cut == 0 || cut == whole.len();
        assert_eq!(end == End::Closed, boundary, "cut at {cut}: {end:?}");
    }
}

#[test]
fn a_front_end_whose_messages_take_their_time_does_not_keep_a_session_from_its_end() {
    let (session, mut raw) = raw_session();
    let whole = [u32::from(R::GET_FEATURES), 1, 0].map(u32::to_ne_bytes);
    let (first, last) = whole.as_flattened().split_at(6);
    // Whenever one ends, another has begun.
    let next = [last, first].concat();
    raw.write_all(first).unwrap();
    raw.write_all(&next).unwrap();
    let mut answer = [0; 20];
    raw.read_exact(&mut answer).unwrap();
    session.ask_to_stop();
    let slow = Duration::from_millis(20);
    while !session.is_over() && raw.write_all(&next).is_ok() {
        std::thread::sleep(slow);
    }
    assert_eq!(session.end(), End::Stopped);
    let mut answers = Vec::new();
    let _ = raw.read_to_end(&mut answers);
    let count = answers.len() / answer.len();
    assert!(
        count < 16,
        "{count} messages were obeyed after it was to end"
    );
}

#[test]
fn a_front_end_may_go_after_any_message() {
    let guest = guest();
    for after in 0..12 {
        let session = Session::new(1);
        let client = &session.client;
        let ring = Ring::new(&guest, LOW, 16, false).unwrap();
        let bytes = |number: u64| number.to_ne_bytes();
        for step in 0..after {
            match step {
                0 => drop(client.ask(R::GET_FEATURES, &[]).unwrap()),
                1 => drop(client.ask(R::GET_PROTOCOL_FEATURES, &[]).unwrap()),
                2 => drop(client.tell(R::SET_PROTOCOL_FEATURES, &bytes(0x2), &[])),
                3 => drop(client.tell(R::SET_OWNER, &[], &[])),
                4 => drop(client.tell(R::SET_FEATURES, &bytes(VERSION_1 | 1 << 30), &[])),
                5 => drop(client.set_mem_table(&guest)),
                6 => drop(client.vring_state(R::SET_VRING_NUM, 0, 16)),
                7 => drop(client.vring_addr(0, &ring)),
                8 => drop(client.vring_fd(R::SET_VRING_CALL, 0, &ring.call)),
                9 => drop(client.vring_fd(R::SET_VRING_KICK, 0, &ring.kick)),
                _ => drop(client.vring_state(R::SET_VRING_ENABLE, 0, 1)),
            }
        }
        let end = session.close();
        // The protocol feature bit 1 was never offered.
        assert_eq!(end == End::Closed, after < 3, "after {after}: {end:?}");
    }
}

#[test]
fn an_inflight_region_of_another_shape_or_content_is_refused() {
    let guest = guest();
    let session = Session::ready(2, VERSION_1, &guest);
    let client = &session.client;
    // None to be had: no queues, too many, no size, not a power of two.
    for (queues, size) in [(0, 16), (3, 16), (65_535, 16), (1, 0), (1, 17), (1, 65_535)] {
        let asked = VhostUserInflight::new(0, 0, queues, size);
        let reply = client.ask(R::GET_INFLIGHT_FD, asked.as_slice()).unwrap();
        assert!(reply.fds.is_empty());
        assert_eq!(reply.body::<VhostUserInflight>().unwrap().mmap_size, 0);
    }
    let (good, fd) = client.get_inflight(2, 16).unwrap();
    let variants = [
        VhostUserInflight {
            mmap_size: 64,
            ..good
        },
        VhostUserInflight {
            mmap_offset: 4096,
            ..good
        },
        VhostUserInflight {
            mmap_offset: u64::MAX,
            ..good
        },
        VhostUserInflight {
            num_queues: 0,
            ..good
        },
        VhostUserInflight {
            num_queues: 3,
            ..good
        },
        VhostUserInflight {
            queue_size: 0,
            ..good
        },
        VhostUserInflight {
            queue_size: 8,
            ..good
        },
        VhostUserInflight {
            queue_size: 32,
            ..good
        },
        VhostUserInflight {
            queue_size: 17,
            ..good
        },
    ];
    for bad in variants {
        assert_eq!(client.set_inflight(&bad, fd.as_fd()).unwrap(), Ack::Refused);
    }
    for bad in [null(), sealed(64).unwrap().into()] {
        let ack = client.set_inflight(&good, bad.as_fd()).unwrap();
        assert_eq!(ack, Ack::Refused);
    }
    assert_eq!(client.set_inflight(&good, fd.as_fd()).unwrap(), Ack::Done);
    // By the letter of the specification, without padding.
    let short = &good.as_slice()[..20];
    assert_eq!(
        client
            .tell(R::SET_INFLIGHT_FD, short, &[fd.as_fd()])
            .unwrap(),
        Ack::Done
    );
    // A ring larger than the region, and one that names heads beyond it.
    let ring = Ring::new(&guest, LOW, 32, false).unwrap();
    assert!(client.start_ring(0, &ring, 0).is_err());
    outboard_contract::ring::wait_event(&ring.err, outboard_contract::soon()).unwrap();
    let file = File::from(fd);
    use std::os::unix::fs::FileExt;
    // Entry 9 of a ring of 8: in flight.
    file.write_all_at(&[1], 16 + 9 * 16).unwrap();
    let ring = Ring::new(&guest, LOW, 8, false).unwrap();
    assert!(client.start_ring(0, &ring, 0).is_err());
    outboard_contract::ring::wait_event(&ring.err, outboard_contract::soon()).unwrap();
    // While a ring runs the region stays.
    file.write_all_at(&[0], 16 + 9 * 16).unwrap();
    client.stop_ring(0).unwrap();
    let mut ring = Ring::new(&guest, LOW, 8, false).unwrap();
    client.start_ring(0, &ring, 0).unwrap();
    assert_eq!(
        client.set_inflight(&good, file.as_fd()).unwrap(),
        Ack::Refused
    );
    still_serves(&guest, &mut ring);
    assert_eq!(session.close(), End::Closed);
}

/// What this process holds: descriptors, and shared mappings of memfds.
fn holdings() -> (usize, usize) {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = maps.lines().filter(|line| line.contains("memfd:")).count();
    (fds, mapped)
}

/// Runs in a process of its own, so that other tests' descriptors do not
/// count: the test starts itself again.
fn alone(name: &str, test: impl FnOnce()) {
    const ALONE_ENV: &str = "OUTBOARD_TEST_ALONE";
    if std::env::var_os(ALONE_ENV).is_some() {
        return test();
    }
    let _one = ALONE.lock().unwrap();
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--test-threads=1"])
        .env(ALONE_ENV, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn nothing_leaks_however_often_anything_is_said() {
    alone("nothing_leaks_however_often_anything_is_said", || {
        let running = Running::new();
        let client = &running.session.client;
        let file = sealed(0x1000).unwrap();
        let fd = null();
        let once = || {
            let (described, region) = client.get_inflight(2, 16).unwrap();
            client.set_inflight(&described, region.as_fd()).unwrap();
            for request in [R::SET_VRING_CALL, R::SET_VRING_ERR] {
                let event = &running.rings[0].call;
                client.vring_fd(request, 0, event).unwrap();
            }
            client
                .vring_fd(R::SET_VRING_KICK, 0, &running.rings[0].kick)
                .unwrap();
            drop(client.backend_requests().unwrap());
            client.set_mem_table(&running.guest).unwrap();
            let single = VhostUserSingleMemoryRegion::new(0x8000_0000, 0x1000, 0, 0);
            running.tell(R::ADD_MEM_REG, single.as_slice(), &[file.as_fd()]);
            running.tell(R::ADD_MEM_REG, single.as_slice(), &[file.as_fd()]);
            running.tell(R::REM_MEM_REG, single.as_slice(), &[file.as_fd()]);
            running.tell(R::SET_LOG_BASE, &[0; 16], &[fd.as_fd()]);
            running.tell(R::SET_VRING_CALL, &9u64.to_ne_bytes(), &[fd.as_fd()]);
        };
        once();
        let before = holdings();
        for _ in 0..100 {
            once();
        }
        assert_eq!(holdings(), before);
        running.ends_well();
    });
}

#[test]
fn a_session_that_ends_in_any_way_leaves_nothing_behind() {
    alone(
        "a_session_that_ends_in_any_way_leaves_nothing_behind",
        || {
            let before = holdings();
            let fd = null();
            for round in 0..40 {
                let running = Running::new();
                let client = &running.session.client;
                let (described, region) = client.get_inflight(2, 16).unwrap();
                client.set_inflight(&described, region.as_fd()).unwrap();
                match round % 3 {
                    0 => running.ends_well(),
                    1 => {
                        // Descriptors on a request that takes none.
                        let header = Header::request(R::GET_FEATURES.into());
                        client.send(header, &[], &[fd.as_fd(); 8]).unwrap();
                        running.was_cut_off();
                    }
                    _ => {
                        // More of them than any message may have.
                        let header = Header::request(R::SET_MEM_TABLE.into());
                        client.send(header, &[], &[fd.as_fd(); 200]).unwrap();
                        running.was_cut_off();
                    }
                }
            }
            drop(fd);
            assert_eq!(holdings(), before);
        },
    );
}

#[test]
fn every_request_with_a_reply_has_one_also_when_asked_to_acknowledge() {
    let running = Running::new();
    let client = &running.session.client;
    for request in REPLIED {
        let payload = match request {
            R::GET_VRING_BASE => VhostUserVringState::new(1, 0).as_slice().to_vec(),
            R::GET_CONFIG => [&[0u32, 1, 0].map(u32::to_ne_bytes).concat()[..], &[0]].concat(),
            R::GET_INFLIGHT_FD => VhostUserInflight::new(0, 0, 2, 16).as_slice().to_vec(),
            _ => vec![],
        };
        let header = Header::request(request.into()).with_need_reply();
        client.send(header, &payload, &[]).unwrap();
        let reply = client.receive().unwrap();
        assert_eq!(reply.header, Header::reply_to(request.into()));
    }
    // One reply each: the next is that of the next request.
    let number: u64 = client.ask(R::GET_QUEUE_NUM, &[]).unwrap().body().unwrap();
    assert_eq!(number, 2);
    assert_eq!(running.session.close(), End::Closed);
}
