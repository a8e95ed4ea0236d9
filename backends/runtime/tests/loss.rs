//! Lent memory that goes away: its file is cut after it was mapped, or a page
//! that is touched for the first time is not to be had. The session ends and
//! says so, nothing half done reaches the driver, the program goes on and
//! serves the next front-end.
//!
//! Back-end and driver are one process here: a signal that the back-end dies of
//! ends the test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use outboard_contract::client::{Ack, Client};
use outboard_contract::memory::{Memory as Guest, unsealed};
use outboard_contract::ring::{Buffer, Ring, wait_event};
use outboard_contract::soon;
use outboard_protocol::inflight::Shape;
use outboard_runtime::event::Event;
use outboard_runtime::session::{End, Host, Limits, serve};
use support::*;
use vhost::vhost_user::message::{FrontendReq, VhostUserInflight};

const FEATURES: u64 = EVENT_IDX | INDIRECT | VERSION_1;
/// Where memory ends once it is cut: whatever is to be lost lies behind.
const END: u64 = LOW + REGION / 2;
/// Places on both sides of it.
const THERE: u64 = END - 0x1000;
const GONE: u64 = END + 0x5000;
const SIZE: u16 = 16;

/// A program that serves one front-end after another.
struct Served {
    connections: Sender<UnixStream>,
    ends: Receiver<End>,
    knobs: Arc<Knobs>,
}

impl Served {
    fn new() -> Self {
        Self::with_queues(2)
    }

    fn with_queues(queues: u16) -> Self {
        let (device, knobs) = Loopback::new(queues);
        let mut host = Host::new(device, Limits::default()).unwrap();
        let (connections, accept) = channel::<UnixStream>();
        let (end, ends) = channel();
        std::thread::spawn(move || {
            let stop = Event::new().unwrap();
            for connection in accept {
                end.send(serve(&mut host, connection, stop.as_fd()).unwrap())
                    .unwrap();
            }
        });
        Self {
            connections,
            ends,
            knobs,
        }
    }

    /// A front-end's connection, negotiated and with memory.
    fn connect(&self, guest: &Guest) -> Client {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.connections.send(theirs).unwrap();
        let mut client = Client::new(ours);
        client.negotiate(FEATURES).unwrap();
        client.set_mem_table(guest).unwrap();
        client
    }

    /// Waits for the end of a session, which is to be a sentence with these
    /// words.
    fn is_told(&self, words: &[&str]) {
        match self.ends.recv_timeout(soon().left()) {
            Ok(End::CutOff(why)) => {
                let all = words.iter().all(|word| why.contains(word));
                assert!(all, "{words:?} in: {why}");
            }
            end => panic!("{end:?}"),
        }
    }

    /// The next front-end has memory that stays.
    fn serves_the_next(self) {
        let guest = guest();
        let client = self.connect(&guest);
        let mut ring = Ring::new(&guest, LOW, SIZE, true).unwrap();
        client.start_ring(1, &ring, 0).unwrap();
        still_serves(&guest, &mut ring);
        drop(client);
        assert_eq!(self.ends.recv_timeout(soon().left()), Ok(End::Closed));
    }
}

/// Memory that can be cut, and the file to do it by.
fn cuttable() -> (Guest, File) {
    Guest::cuttable(LOW, REGION).unwrap()
}

fn cut(file: &File) {
    file.set_len(END - LOW).unwrap();
}

/// Moves a part of a ring, still empty, behind the end.
fn behind(guest: &Guest, part: &mut u64) {
    *part = END + 0x3000;
    guest.put(*part, &[0; 0x1000]);
}

/// What the worker of this queue has used of its processor, in clock ticks; no
/// other test has such a queue.
fn ticks(queue: u16) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let stats = tasks.filter_map(|task| {
        let path = task.unwrap().path().join("stat");
        std::fs::read_to_string(path).ok()
    });
    let name = format!("(queue {queue}) ");
    let stat = { stats }.find(|stat| stat.contains(&name)).unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Every part of a ring, lost while the ring rests: the next kick finds it out.
#[test]
fn a_running_ring_of_which_a_part_is_cut_off_ends_the_session() {
    let parts: [fn(&mut Ring) -> &mut u64; 3] = [
        |ring| &mut ring.descriptors,
        |ring| &mut ring.available,
        |ring| &mut ring.used,
    ];
    for (at, part) in parts.into_iter().enumerate() {
        let program = Served::new();
        let (guest, file) = cuttable();
        let client = program.connect(&guest);
        let mut ring = Ring::new(&guest, LOW, SIZE, true).unwrap();
        behind(&guest, part(&mut ring));
        client.start_ring(1, &ring, 0).unwrap();
        still_serves(&guest, &mut ring);
        let lose = || {
            ring.add(&[Buffer::readable(THERE, 64)]).unwrap();
            cut(&file);
        };
        client.unseen(1, lose).unwrap();
        ring.kick().unwrap();
        program.is_told(&["the guest's memory at 0x203000", "its file was cut"]);
        // Of what is still there, nothing says that the chain was used.
        if at < 2 {
            assert_eq!(ring.used_idx().unwrap(), 1);
        }
        program.serves_the_next();
    }
}

/// What a chain refers to, lost before it is looked at.
#[test]
fn a_chain_whose_memory_is_cut_off_ends_the_session_and_is_not_returned() {
    type Chain = fn(&mut Ring) -> anyhow::Result<u16>;
    let chains: [(&str, Chain); 3] = [
        ("0x205000", |ring| {
            ring.add(&[Buffer::readable(GONE, 64), Buffer::writable(THERE, 64)])
        }),
        ("0x205000", |ring| {
            ring.add(&[Buffer::readable(THERE, 64), Buffer::writable(GONE, 64)])
        }),
        ("0x209000", |ring| {
            let buffers = [Buffer::readable(THERE, 64), Buffer::writable(THERE, 64)];
            ring.add_indirect(GONE + 0x4000, &buffers)
        }),
    ];
    for (place, chain) in chains {
        let program = Served::new();
        let (guest, file) = cuttable();
        let client = program.connect(&guest);
        let mut ring = Ring::new(&guest, LOW, SIZE, true).unwrap();
        client.start_ring(1, &ring, 0).unwrap();
        still_serves(&guest, &mut ring);
        let lose = || {
            chain(&mut ring).unwrap();
            cut(&file);
        };
        client.unseen(1, lose).unwrap();
        ring.kick().unwrap();
        program.is_told(&["the guest's memory at", place]);
        assert_eq!(ring.used_idx().unwrap(), 1);
        program.serves_the_next();
    }
}

/// The loss is found out by one ring; another one of the session, which has
/// touched nothing that is lost, stops with it.
#[test]
fn a_loss_is_the_loss_of_the_whole_session_and_keeps_nobody_busy() {
    let program = Served::with_queues(8);
    let (guest, file) = cuttable();
    let client = program.connect(&guest);
    let mut rings = [LOW, LOW + 0x4000].map(|at| Ring::new(&guest, at, SIZE, true).unwrap());
    client.start_ring(5, &rings[0], 0).unwrap();
    client.start_ring(6, &rings[1], 0).unwrap();
    // One is with the device, which waits.
    submit(&guest, &mut rings[0], LATER, 1);
    program.knobs.wait_held(1);
    // It lies in what stays, so it can come after.
    cut(&file);
    rings[1].add(&[Buffer::readable(END, 64)]).unwrap();
    rings[1].kick().unwrap();
    wait_event(&rings[1].err, soon()).unwrap();
    // The session waits for the device, and nobody spins meanwhile.
    let before = ticks(5);
    std::thread::sleep(Duration::from_millis(300));
    assert!(ticks(5) - before < 10, "it does not sleep");
    program.knobs.open(true);
    program.is_told(&["the guest's memory at 0x200000"]);
    for ring in &rings {
        assert_eq!(ring.used_idx().unwrap(), 0);
    }
    program.serves_the_next();
}

#[test]
fn a_request_that_finds_memory_gone_is_not_answered() {
    let program = Served::new();
    let (guest, file) = cuttable();
    let client = program.connect(&guest);
    let mut ring = Ring::new(&guest, LOW, SIZE, true).unwrap();
    behind(&guest, &mut ring.used);
    cut(&file);
    // Which begins with the used index, and that is not there.
    let error = client.start_ring(1, &ring, 0).unwrap_err().to_string();
    assert!(error.contains("CutOff"), "{error}");
    program.is_told(&["the guest's memory at 0x203000"]);
    program.serves_the_next();
}

fn inflight(size: u64) -> (VhostUserInflight, File) {
    let shape = Shape::new(2, SIZE).unwrap();
    let described = VhostUserInflight::new(shape.size(), 0, 2, SIZE);
    (described, unsealed(size).unwrap())
}

#[test]
fn an_inflight_region_that_is_cut_ends_the_session_and_nothing_is_returned() {
    let guest = guest();
    for later in [false, true] {
        let program = Served::new();
        let client = program.connect(&guest);
        // Not sealed, as DPDK makes it: it is taken all the same.
        let (described, file) = inflight(0x1000);
        let ack = client.set_inflight(&described, file.as_fd()).unwrap();
        assert_eq!(ack, Ack::Done);
        let mut ring = Ring::new(&guest, LOW, SIZE, true).unwrap();
        client.start_ring(1, &ring, 0).unwrap();
        still_serves(&guest, &mut ring);
        if later {
            // It has been noted, and what is lost is the note.
            submit(&guest, &mut ring, LATER, 1);
            program.knobs.wait_held(1);
            file.set_len(0).unwrap();
            program.knobs.open(true);
        } else {
            file.set_len(0).unwrap();
            submit(&guest, &mut ring, NOW, 1);
        }
        program.is_told(&["the inflight region is not there any more", "was cut"]);
        assert_eq!(ring.used_idx().unwrap(), 1);
        program.serves_the_next();
    }
}

#[test]
fn an_inflight_region_that_is_gone_when_it_is_wanted_ends_the_session() {
    let program = Served::new();
    let guest = guest();
    let client = program.connect(&guest);
    let (described, file) = inflight(0x1000);
    client.set_inflight(&described, file.as_fd()).unwrap();
    file.set_len(0).unwrap();
    let reset = FrontendReq::RESET_DEVICE;
    assert_eq!(client.tell(reset, &[], &[]).unwrap(), Ack::CutOff);
    program.is_told(&["the inflight region"]);
    program.serves_the_next();
}

/// A file in a tmpfs of its own, which has room for as much; the file system
/// goes with the last descriptor.
fn in_tmpfs(room: u64, size: u64) -> File {
    // Of this thread alone.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = format!("size={room}");
    let kind = Some("tmpfs");
    mount(
        kind,
        folder.path(),
        kind,
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .unwrap();
    let mut options = File::options();
    let options = options.read(true).write(true).create_new(true);
    let file = options.open(folder.path().join("memory")).unwrap();
    nix::mount::umount2(folder.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    file.set_len(size).unwrap();
    file
}

/// The guest offers memory that it has never touched. The request stays in
/// flight, and once there is room a session that is handed the region does it.
#[test]
fn a_tmpfs_without_room_ends_the_session_and_the_next_does_what_was_under_way() {
    let program = Served::new();
    let file = in_tmpfs(0x8000, REGION);
    let guest = Guest::of(vec![(LOW, file.try_clone().unwrap())]).unwrap();
    let client = program.connect(&guest);
    let (described, region) = client.get_inflight(2, SIZE).unwrap();
    client.set_inflight(&described, region.as_fd()).unwrap();
    let mut ring = Ring::new(&guest, LOW, SIZE, true).unwrap();
    client.start_ring(1, &ring, 0).unwrap();
    still_serves(&guest, &mut ring);
    // The rest of the room.
    let taken = 0x8000 - file.metadata().unwrap().blocks() * 512;
    let zeroes = vec![1; taken as usize];
    guest.put(LOW + 0x8000, &zeroes);

    let (question, answer) = place(255);
    let buffers = [Buffer::readable(question, 64), Buffer::writable(END, 64)];
    let head = ring.add(&buffers).unwrap();
    ring.kick().unwrap();
    program.is_told(&["the guest's memory at 0x200000", "no room in its tmpfs"]);
    assert_eq!(ring.used_idx().unwrap(), 1);

    // Room again, where the ballast was.
    punch(&file, 0x8000, taken);
    ring.renew_events().unwrap();
    let client = program.connect(&guest);
    client.set_inflight(&described, region.as_fd()).unwrap();
    client.start_ring(1, &ring, 1).unwrap();
    assert_eq!(ring.wait_used(soon()).unwrap(), (head, 64));
    assert_eq!(guest.get(END, 64), guest.get(answer, 64));
    drop(client);
    assert_eq!(program.ends.recv_timeout(soon().left()), Ok(End::Closed));
}

fn punch(file: &File, offset: u64, length: u64) {
    use nix::fcntl::{FallocateFlags, fallocate};
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, flags, offset as i64, length as i64).unwrap();
}

#[test]
fn huge_pages_that_are_not_there_end_the_session() {
    let program = Served::new();
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    let huge = File::from(memfd_create(c"huge", flags).unwrap());
    // More than there are: those that are to be had are taken below.
    let free = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    let free: u64 = std::fs::read_to_string(free)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(free < 1024, "this test takes every huge page there is");
    huge.set_len((free + 1) * 0x20_0000).unwrap();
    let low = unsealed(REGION).unwrap();
    let guest = Guest::of(vec![(LOW, low), (HIGH, huge)]).unwrap();
    let client = program.connect(&guest);
    let mut ring = Ring::new(&guest, LOW, SIZE, true).unwrap();
    client.start_ring(1, &ring, 0).unwrap();
    still_serves(&guest, &mut ring);
    let (question, _) = place(255);
    for page in 0..=free {
        let address = HIGH + page * 0x20_0000 + 0x1000;
        let buffers = [
            Buffer::readable(question, 64),
            Buffer::writable(address, 64),
        ];
        ring.add(&buffers).unwrap();
        ring.kick().unwrap();
        if page < free {
            ring.wait_used(soon()).unwrap();
        }
    }
    program.is_told(&["the guest's memory at 0x", "no huge pages"]);
    program.serves_the_next();
}
