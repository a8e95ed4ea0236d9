//! The back-end programs against single statements of the vhost-user
//! specification that a walk through legal orders does not check, section by
//! section. What depends on no device is tested in backends/runtime.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use outboard_contract::client::{Ack, Client, PROTOCOL_FEATURES};
use outboard_contract::memory::Memory;
use outboard_contract::ours;
use outboard_contract::program::{Program, command};
use outboard_contract::ring::Ring;
use outboard_contract::soon;
use outboard_contract::traffic::{Card, DISK, Disk, Traffic, page};
use outboard_protocol::devices::{BlkConfig, NetConfig};
use outboard_protocol::image_lock::{self, Access};
use outboard_protocol::wire::{Header, WireError};
use vhost::vhost_user::message::{
    FrontendReq as R, VhostUserConfig, VhostUserConfigFlags, VhostUserInflight,
    VhostUserProtocolFeatures as P, VhostUserVringState,
};
use vm_memory::ByteValued;

const VERSION_1: u64 = 1 << 32;
const SIZE: u16 = 16;
const RING: u64 = 0x1000;
const PAGES: u64 = 0x1_0000;

/// A program, its requests, and how long its configuration is.
struct Served {
    name: &'static str,
    program: Program,
    traffic: Box<dyn Traffic>,
    config: u32,
    /// The queue that requests go to.
    queue: u8,
}

fn disk() -> Served {
    Served {
        name: "outboard-blk",
        program: ours::blk(&[0; DISK], &["--num-queues=2"]).unwrap(),
        traffic: Box::new(Disk::new(2)),
        config: BlkConfig::LEN as u32,
        queue: 0,
    }
}

fn card() -> Served {
    let (program, peer) = ours::net().unwrap();
    Served {
        name: "outboard-net",
        program,
        traffic: Box::new(Card::new(peer)),
        config: NetConfig::LEN as u32,
        queue: 1,
    }
}

/// Does the same to each program.
fn each(test: impl Fn(&mut Served)) {
    for mut served in [disk(), card()] {
        println!("{}", served.name);
        test(&mut served);
        assert!(served.program.is_alive());
    }
}

fn memory() -> Memory {
    Memory::new(&[(0, 0x10_0000)]).unwrap()
}

impl Served {
    fn client(&self) -> Client {
        self.program.client().unwrap()
    }

    /// Negotiated, with memory.
    fn ready(&self, memory: &Memory) -> Client {
        let mut client = self.client();
        let features = self.traffic.needs() | VERSION_1;
        client.negotiate(features).unwrap();
        client.set_mem_table(memory).unwrap();
        client
    }

    /// One request is served.
    fn serves(&mut self, memory: &Memory, ring: &mut Ring) {
        let (queue, number) = (self.queue.into(), u64::from(ring.next_avail));
        let place = page(PAGES, queue, number);
        let buffers = self.traffic.prepare(memory, place, queue, number).unwrap();
        ring.add(&buffers).unwrap();
        ring.kick().unwrap();
        let (_, length) = ring.wait_used(soon()).unwrap();
        let checked = self.traffic.check(memory, place, queue, number, length);
        checked.unwrap();
    }
}

fn ring(memory: &Memory) -> Ring {
    Ring::new(memory, RING, SIZE, false).unwrap()
}

/// Nothing has come since: the next message is the reply to this one.
fn is_silent(client: &Client) -> u64 {
    client.ask(R::GET_FEATURES, &[]).unwrap().body().unwrap()
}

/// "Communication", "REPLY_ACK": most requests have no reply; need_reply changes
/// that once it is negotiated, and not before.
#[test]
fn requests_without_a_reply_have_none_unless_it_was_agreed_and_asked_for() {
    each(|served| {
        let memory = memory();
        let ring = ring(&memory);
        for (agreed, asked) in [(false, false), (false, true), (true, false), (true, true)] {
            let client = served.client();
            let offered = is_silent(&client);
            let protocol: u64 = client
                .ask(R::GET_PROTOCOL_FEATURES, &[])
                .unwrap()
                .body()
                .unwrap();
            let bits = if agreed {
                protocol
            } else {
                protocol & !P::REPLY_ACK.bits()
            };
            client
                .tell(R::SET_PROTOCOL_FEATURES, &bits.to_ne_bytes(), &[])
                .unwrap();
            let features = (offered & (VERSION_1 | PROTOCOL_FEATURES)).to_ne_bytes();
            let state = |num: u32| VhostUserVringState::new(0, num).as_slice().to_vec();
            let region = memory.regions[0].as_fd();
            let events = [ring.kick.as_fd(), ring.call.as_fd(), ring.err.as_fd()];
            let mut table = [1u32, 0].map(u32::to_ne_bytes).concat();
            table.extend(memory.regions[0].described().as_slice());
            let (_theirs, channel) = UnixStream::pair().unwrap();
            let requests: Vec<(R, Vec<u8>, Vec<_>)> = vec![
                (R::SET_OWNER, vec![], vec![]),
                (R::RESET_OWNER, vec![], vec![]),
                (R::SET_FEATURES, features.to_vec(), vec![]),
                (R::SET_MEM_TABLE, table, vec![region]),
                (R::SET_VRING_NUM, state(SIZE.into()), vec![]),
                (R::SET_VRING_BASE, state(0), vec![]),
                (R::SET_VRING_KICK, vec![0; 8], vec![events[0]]),
                (R::SET_VRING_CALL, vec![0; 8], vec![events[1]]),
                (R::SET_VRING_ERR, vec![0; 8], vec![events[2]]),
                (R::SET_VRING_ENABLE, state(0), vec![]),
                (R::SET_BACKEND_REQ_FD, vec![], vec![channel.as_fd()]),
                (R::RESET_DEVICE, vec![], vec![]),
            ];
            for (request, payload, fds) in requests {
                let mut header = Header::request(request.into());
                if asked {
                    header = header.with_need_reply();
                }
                client.send(header, &payload, &fds).unwrap();
                if agreed && asked {
                    let ack = client.acknowledgement(request.into()).unwrap();
                    assert_eq!(ack, Ack::Done, "{request:?}");
                } else {
                    assert_eq!(is_silent(&client), offered, "{request:?}");
                }
            }
        }
    });
}

/// GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES: before SET_FEATURES, and without
/// their bit being acknowledged there.
#[test]
fn what_is_offered_does_not_change_with_what_is_acknowledged() {
    each(|served| {
        let mut client = served.client();
        let ask =
            |client: &Client, request| -> u64 { client.ask(request, &[]).unwrap().body().unwrap() };
        let numbers = [R::GET_FEATURES, R::GET_PROTOCOL_FEATURES, R::GET_QUEUE_NUM];
        let before = numbers.map(|request| ask(&client, request));
        client.negotiate(VERSION_1).unwrap();
        assert_eq!(numbers.map(|request| ask(&client, request)), before);
        // The last acknowledgement is of the message that ends them.
        let none = 0u64.to_ne_bytes();
        client.order(R::SET_PROTOCOL_FEATURES, &none, &[]).unwrap();
        client.acknowledged = false;
        assert_eq!(numbers.map(|request| ask(&client, request)), before);
    });
}

/// "RESET_OWNER": ignored, as is recommended; the rings go on.
#[test]
fn the_deprecated_reset_of_the_owner_changes_nothing() {
    each(|served| {
        let memory = memory();
        let client = served.ready(&memory);
        let mut ring = ring(&memory);
        client.start_ring(served.queue, &ring, 0).unwrap();
        served.serves(&memory, &mut ring);
        client.order(R::RESET_OWNER, &[], &[]).unwrap();
        served.serves(&memory, &mut ring);
        assert_eq!(client.stop_ring(served.queue).unwrap(), 2);
    });
}

/// "GET_CONFIG": the reply has the size of the request, or none for an error.
#[test]
fn the_configuration_is_read_at_every_place_in_every_length() {
    each(|served| {
        let memory = memory();
        let client = served.ready(&memory);
        let whole = client.config(0, served.config).unwrap();
        for offset in 0..served.config {
            for size in 1..=served.config - offset {
                let part = client.config(offset, size).unwrap();
                let range = offset as usize..(offset + size) as usize;
                assert_eq!(part, whole[range], "{size} at {offset}");
            }
        }
        for (offset, size) in [
            (served.config + 1, 1),
            (u32::MAX, 1),
            (u32::MAX - 1, 2),
            (0, 0),
        ] {
            let head = VhostUserConfig::new(offset, size, VhostUserConfigFlags::empty());
            let mut payload = head.as_slice().to_vec();
            payload.resize(payload.len() + size as usize, 0);
            let reply = client.ask(R::GET_CONFIG, &payload).unwrap();
            assert!(reply.payload.is_empty(), "{size} at {offset}");
        }
    });
}

/// "SET_CONFIG": never of a read-only field; the flags are checked.
#[test]
fn read_only_configuration_stays_as_it_is() {
    each(|served| {
        let memory = memory();
        let client = served.ready(&memory);
        let before = client.config(0, served.config).unwrap();
        for at in 0..served.config {
            // A disk's cache, whose field is the only one that a driver writes.
            if served.name == "outboard-blk" && at == 32 {
                continue;
            }
            let new = [!before[at as usize]];
            assert_eq!(client.set_config(at, &new).unwrap(), Ack::Refused, "{at}");
        }
        for (offset, length) in [(served.config, 1), (u32::MAX, 1), (0, 0), (0, 256)] {
            let ack = client.set_config(offset, &vec![0; length]).unwrap();
            assert_eq!(ack, Ack::Refused, "{length} at {offset}");
        }
        for flags in [2u32, 3, u32::MAX] {
            let payload = [&[32u32, 1, flags].map(u32::to_ne_bytes).concat()[..], &[0]].concat();
            let ack = client.tell(R::SET_CONFIG, &payload, &[]).unwrap();
            assert_eq!(ack, Ack::Refused, "flags {flags:#x}");
        }
        assert_eq!(client.config(0, served.config).unwrap(), before);
    });
}

/// "Ring states": a ring of a front-end that does not acknowledge the protocol
/// features' bit is enabled from its start, also after RESET_DEVICE.
#[test]
fn a_reset_ring_is_enabled_if_nobody_will_enable_it() {
    each(|served| {
        let memory = memory();
        let client = served.ready(&memory);
        client.order(R::RESET_DEVICE, &[], &[]).unwrap();
        let features = served.traffic.needs() | VERSION_1;
        let features = features.to_ne_bytes();
        client.order(R::SET_FEATURES, &features, &[]).unwrap();
        let mut ring = ring(&memory);
        let index = u32::from(served.queue);
        let num = u32::from(SIZE);
        client.vring_state(R::SET_VRING_NUM, index, num).unwrap();
        client.vring_state(R::SET_VRING_BASE, index, 0).unwrap();
        client.vring_addr(index, &ring).unwrap();
        let kick = client.vring_fd(R::SET_VRING_KICK, index.into(), &ring.kick);
        assert_eq!(kick.unwrap(), Ack::Done);
        served.serves(&memory, &mut ring);
    });
}

/// "Ring states": a ring that was stopped is not processed; not either where it
/// was, when the front-end lends the next kick before it says where the ring is.
#[test]
fn a_stopped_ring_does_not_begin_again_where_it_was() {
    each(|served| {
        let memory = memory();
        let client = served.ready(&memory);
        let mut old = ring(&memory);
        client.start_ring(served.queue, &old, 0).unwrap();
        served.serves(&memory, &mut old);
        assert_eq!(client.stop_ring(served.queue).unwrap(), 1);
        // Its memory is something else by now.
        let used = old.used_idx().unwrap();
        old.set_avail_idx(0x7777).unwrap();
        let index = u32::from(served.queue);
        let mut new = Ring::new(&memory, 0x4000, SIZE, false).unwrap();
        let kick = client.vring_fd(R::SET_VRING_KICK, index.into(), &new.kick);
        assert_eq!(kick.unwrap(), Ack::Done);
        client.vring_state(R::SET_VRING_ENABLE, index, 1).unwrap();
        let num = client.vring_state(R::SET_VRING_NUM, index, SIZE.into());
        assert_eq!(num.unwrap(), Ack::Done);
        let base = client.vring_state(R::SET_VRING_BASE, index, 0).unwrap();
        assert_eq!(base, Ack::Done);
        assert_eq!(client.vring_addr(index, &new).unwrap(), Ack::Done);
        served.serves(&memory, &mut new);
        assert_eq!(old.used_idx().unwrap(), used);
    });
}

/// "Inflight I/O tracking": the region's format, while it is in use.
#[test]
fn the_inflight_region_is_as_it_is_described() {
    each(|served| {
        let memory = memory();
        let client = served.ready(&memory);
        let (described, fd) = client.get_inflight(2, SIZE).unwrap();
        let (offset, size) = (described.mmap_offset, described.mmap_size);
        assert!(size >= 2 * (16 + 16 * u64::from(SIZE)), "{size} bytes");
        let ack = client.set_inflight(&described, fd.as_fd()).unwrap();
        assert_eq!(ack, Ack::Done);
        let mut ring = ring(&memory);
        client.start_ring(served.queue, &ring, 0).unwrap();
        for _ in 0..3 {
            served.serves(&memory, &mut ring);
        }
        client.stop_ring(served.queue).unwrap();
        let mut block = vec![0; 16 + 16 * usize::from(SIZE)];
        let each = block.len().next_multiple_of(64) as u64;
        let at = offset + each * u64::from(served.queue);
        File::from(fd).read_exact_at(&mut block, at).unwrap();
        let word = |at: usize| u16::from_ne_bytes([block[at], block[at + 1]]);
        assert_eq!(block[..8], [0; 8], "features");
        assert_eq!((word(8), word(10)), (1, SIZE), "version and desc_num");
        assert_eq!(word(14), 3, "used_idx");
        for entry in block[16..].chunks(16) {
            assert_eq!(entry[0], 0, "nothing is in flight");
        }
    });
}

/// "Inflight I/O tracking", "When reconnecting": what a killed back-end had taken
/// is done by its successor, all of it, also if that one is killed too.
#[test]
fn a_killed_disk_is_followed_by_one_that_finishes() {
    for round in 0..12u64 {
        let memory = memory();
        let mut disk = disk();
        let image = disk.program.folder().join("image");
        let mut client = disk.ready(&memory);
        let (described, fd) = client.get_inflight(2, SIZE).unwrap();
        let mut ring = ring(&memory);
        ring.suppress_calls(false).unwrap();
        client.set_inflight(&described, fd.as_fd()).unwrap();
        client.start_ring(0, &ring, 0).unwrap();
        let mut pending = Vec::new();
        let mut number = 0;
        let mut successors = Vec::new();
        for killed in 0..4 {
            while pending.len() < 4 {
                let place = page(PAGES, 0, number);
                let buffers = disk.traffic.prepare(&memory, place, 0, number).unwrap();
                pending.push((ring.add(&buffers).unwrap(), number));
                ring.kick().unwrap();
                number += 1;
            }
            // Sometimes before it has seen anything, sometimes in between.
            for _ in 0..(round * 37 + killed) % 5 * 200 {
                std::hint::spin_loop();
            }
            let last: &mut Program = successors.last_mut().unwrap_or(&mut disk.program);
            last.kill().unwrap();
            wait_until_free(&image);
            let image_option = format!("--blk-file={}", image.display());
            let program = ours::path("outboard-blk").unwrap();
            let mut next = command(program, &[image_option.as_str(), "--num-queues=2"]);
            successors.push(Program::serve(&mut next).unwrap());
            client = successors.last().unwrap().client().unwrap();
            client.negotiate(VERSION_1).unwrap();
            client.set_mem_table(&memory).unwrap();
            let given = client.set_inflight(&described, fd.as_fd()).unwrap();
            assert_eq!(given, Ack::Done);
            ring.renew_events().unwrap();
            let base = ring.used_idx().unwrap();
            client.start_ring(0, &ring, base).unwrap();
            if killed % 2 == 0 {
                continue;
            }
            while !pending.is_empty() {
                let (head, length) = ring.wait_used(soon()).unwrap();
                let place = pending.iter().position(|(given, _)| *given == head);
                let (_, number) = pending.swap_remove(place.unwrap());
                let at = page(PAGES, 0, number);
                let checked = disk.traffic.check(&memory, at, 0, number, length);
                checked.unwrap_or_else(|error| panic!("round {round}, {number}: {error:#}"));
            }
        }
        assert_eq!(client.stop_ring(0).unwrap(), number as u16);
    }
}

/// The kernel gives back what a killed process had in flight, and with it the
/// lock, a moment after the process has gone.
fn wait_until_free(image: &std::path::Path) {
    let deadline = soon();
    let file = || File::options().read(true).write(true).open(image).unwrap();
    while image_lock::lock(file(), Access::Write).is_err() {
        assert!(!deadline.passed(), "the image stays locked");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// "If back-end detects some error, it may close the connection": so it does when
/// it cannot tell, and serves the next front-end.
#[test]
fn whoever_is_cut_off_is_followed_by_the_next() {
    each(|served| {
        for request in [R::SET_FEATURES, R::SET_PROTOCOL_FEATURES] {
            let client = served.client();
            let all = u64::MAX.to_ne_bytes();
            client
                .send(Header::request(request.into()), &all, &[])
                .unwrap();
            assert!(matches!(client.receive(), Err(WireError::Closed)));
        }
        let memory = memory();
        let client = served.ready(&memory);
        let mut ring = ring(&memory);
        client.start_ring(served.queue, &ring, 0).unwrap();
        served.serves(&memory, &mut ring);
    });
}

/// "GET_INFLIGHT_FD": what cannot be had is answered without a descriptor.
#[test]
fn a_region_for_more_queues_than_there_are_is_not_given() {
    each(|served| {
        let memory = memory();
        let client = served.ready(&memory);
        for (queues, size) in [(0u16, SIZE), (1000, SIZE), (1, 0), (1, 3)] {
            let asked = VhostUserInflight::new(0, 0, queues, size);
            let reply = client.ask(R::GET_INFLIGHT_FD, asked.as_slice()).unwrap();
            assert!(reply.fds.is_empty(), "{queues} {size}");
        }
    });
}
