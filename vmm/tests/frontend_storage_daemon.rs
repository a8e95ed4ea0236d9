//! The front-end against a back-end that others wrote: qemu-storage-daemon.
//! No KVM: the test itself is the driver of the ring.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outboard::machine::device::kinds;
use outboard::machine::device::kinds::blk::{Cache, set_cache};
use outboard::machine::frontend::{Connected, Interruption, Negotiated, RingStart, Session};
use outboard::machine::memory::{Backing, Ram};
use outboard::machine::virtio::{F_VERSION_1, Ring};
use outboard_contract::program::{Program, command};
use outboard_protocol::devices::{BlkConfig, Kind};
use outboard_protocol::launch;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADER: u64 = 0x4000;
const STATUS: u64 = 0x4800;
const DATA: u64 = 0x5000;
const SECTORS: u64 = 2048;
const PATIENCE: Duration = Duration::from_secs(60);

struct Daemon {
    program: Program,
    directory: tempfile::TempDir,
}

impl Daemon {
    /// `None`, loudly, when it is not installed.
    fn start(queues: u16) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut file = File::create(path("image")).unwrap();
        for sector in 0..SECTORS {
            file.write_all(&sector.to_le_bytes().repeat(64)).unwrap();
        }
        let mut command = command("qemu-storage-daemon", &[""; 0]);
        let file = path("image");
        let file = format!("driver=file,node-name=file,filename={}", file.display());
        let socket = path("socket");
        let export = format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues={queues},\
             addr.type=unix,addr.path={}",
            socket.display()
        );
        command.args(["--blockdev", &file]);
        command.args(["--blockdev", "driver=raw,node-name=disk,file=file"]);
        match Program::run(command.args(["--export", &export])) {
            Ok(program) => Some(Self { program, directory }),
            Err(error) => {
                eprintln!("SKIP: no qemu-storage-daemon: {error:#}");
                None
            }
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn connect(&self) -> UnixStream {
        let socket = self.path("socket");
        let connect = || UnixStream::connect(&socket).ok();
        self.program.until("it listens", connect).unwrap()
    }
}

fn disk(queues: u16) -> launch::Device {
    launch::Device {
        id: "disk0".into(),
        kind: Kind::blk(),
        queues,
        fewer: false,
        queue_size: 64,
        hang_timeout: None,
    }
}

fn negotiated(daemon: &Daemon, queues: u16) -> Session<Negotiated> {
    let session = connected(daemon);
    kinds::fits(&session.agreement(), &disk(queues)).unwrap();
    session
}

fn connected(daemon: &Daemon) -> Session<Negotiated> {
    Session::<Connected>::new(daemon.connect())
        .negotiate("disk0", &Interruption::default())
        .unwrap()
}

fn eventfd(count: u64) -> Arc<EventFd> {
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    event.write(count).unwrap();
    Arc::new(event)
}

fn ring_start(base: u16) -> RingStart {
    RingStart {
        ring: Ring {
            index: 0,
            size: 64,
            descriptors: DESCRIPTORS,
            available: AVAILABLE,
            used: USED,
        },
        base,
        kick: eventfd(1),
        call: eventfd(1),
        error: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
    }
}

/// Makes the chain of one request available: header, `pages` pages, status.
fn make_available(ram: &Ram, kind: u32, sector: u64, available: u16) {
    let memory = ram.guest();
    memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
    memory.write_obj(0u32, GuestAddress(HEADER + 4)).unwrap();
    memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
    memory.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
    let data_flags = if kind == 0 { 1 | 2 } else { 1 };
    let chain: [(u64, u32, u16, u16); 3] = [
        (HEADER, 16, 1, 1),
        (DATA, 4096, data_flags, 2),
        (STATUS, 1, 2, 0),
    ];
    for (index, (address, length, flags, next)) in (0..).zip(chain) {
        let at = DESCRIPTORS + 16 * index;
        memory.write_obj(address, GuestAddress(at)).unwrap();
        memory.write_obj(length, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }
    let slot = AVAILABLE + 4 + 2 * u64::from((available - 1) % 64);
    memory.write_obj(0u16, GuestAddress(slot)).unwrap();
    let index = GuestAddress(AVAILABLE + 2);
    memory
        .store(available, index, std::sync::atomic::Ordering::Release)
        .unwrap();
}

fn wait_used(ram: &Ram, index: u16) {
    let start = Instant::now();
    let at = GuestAddress(USED + 2);
    while ram
        .guest()
        .load::<u16>(at, std::sync::atomic::Ordering::Acquire)
        .unwrap()
        != index
    {
        assert!(start.elapsed() < PATIENCE, "no completion");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(ram.guest().read_obj::<u8>(GuestAddress(STATUS)).unwrap(), 0);
}

#[test]
fn a_foreign_disk_is_configured_read_written_stopped_and_started_again() {
    let Some(daemon) = Daemon::start(1) else {
        return;
    };
    let ram = Ram::new(4 << 20, Backing::default()).unwrap();
    let mut session = negotiated(&daemon, 1);
    let config = session.read_config(60).unwrap().unwrap();
    assert_eq!(config[..8], SECTORS.to_le_bytes());

    // The kick that every start owes is enough for what is there already.
    make_available(&ram, 0, 100, 1);
    let rings = [ring_start(0)];
    let mut session = session
        .describe(&ram, F_VERSION_1, (1, 64), &mut None, &rings)
        .and_then(|session| session.enable(&rings))
        .unwrap();
    wait_used(&ram, 1);
    assert_eq!(session.stop_ring(0).unwrap().base, 1);
    let mut data = [0; 4096];
    ram.guest()
        .read_slice(&mut data, GuestAddress(DATA))
        .unwrap();
    for (sector, bytes) in (100u64..).zip(data.chunks(512)) {
        assert_eq!(bytes, sector.to_le_bytes().repeat(64));
    }

    ram.guest()
        .write_slice(&[0x5a; 4096], GuestAddress(DATA))
        .unwrap();
    make_available(&ram, 1, 8, 2);
    session.start_rings(&[ring_start(1)]).unwrap();
    wait_used(&ram, 2);
    let (session, bases) = session.stop().unwrap();
    assert_eq!(bases.len(), 1);
    assert_eq!((bases[0].queue, bases[0].base), (0, 2));
    let mut written = [0; 4096];
    let file = File::open(daemon.path("image")).unwrap();
    file.read_exact_at(&mut written, 8 * 512).unwrap();
    assert_eq!(written, [0x5a; 4096]);

    // A driver that begins again begins at 0, on zeroed rings.
    for address in [AVAILABLE, USED] {
        ram.guest()
            .write_slice(&[0; 1024], GuestAddress(address))
            .unwrap();
    }
    make_available(&ram, 0, 8, 1);
    let rings = [ring_start(0)];
    let session = session
        .describe(&ram, F_VERSION_1, (1, 64), &mut None, &rings)
        .and_then(|session| session.enable(&rings))
        .unwrap();
    wait_used(&ram, 1);
    drop(session);
}

/// It has a cache and says that it has none, until it is told.
#[test]
fn a_disk_whose_cache_is_on_says_so_when_it_was_told() {
    let Some(daemon) = Daemon::start(1) else {
        return;
    };
    let mut session = negotiated(&daemon, 1);
    let writeback = |session: &mut Session<Negotiated>| {
        let config = session.read_config(60).unwrap().unwrap();
        config[BlkConfig::WRITEBACK as usize]
    };
    let first = match writeback(&mut session) {
        0 => Cache::TurnedOn,
        _ => Cache::Set,
    };
    assert_eq!(set_cache(&mut session, true, 60).unwrap(), first);
    assert_eq!(writeback(&mut session), 1);
    assert_eq!(set_cache(&mut session, true, 60).unwrap(), Cache::Set);
    assert_eq!(set_cache(&mut session, false, 60).unwrap(), Cache::Set);
    assert_eq!(writeback(&mut session), 0);
    assert_eq!(set_cache(&mut session, true, 60).unwrap(), Cache::TurnedOn);
    // Without the byte in what the driver sees there is none to be believed.
    assert_eq!(set_cache(&mut session, true, 32).unwrap(), Cache::Unknown);
}

/// It knows 60 bytes of a disk's configuration, and answers each offset with what
/// lies at 0: pieces would be put together to something that there is not.
#[test]
fn a_configuration_that_is_longer_than_the_back_end_s_is_refused() {
    let Some(daemon) = Daemon::start(1) else {
        return;
    };
    for length in [256, 300, 600, 4080] {
        let error = negotiated(&daemon, 1).read_config(length).unwrap_err();
        let error = error.to_string();
        let refused = error.contains("refused GET_CONFIG");
        // More than a message of QEMU's holds ends the connection.
        let closed = length > 256 && error.contains("closed its connection at GET_CONFIG");
        assert!(refused || closed, "{length}: {error}");
    }
}

#[test]
fn more_queues_than_the_back_end_has_are_refused_with_advice() {
    let Some(daemon) = Daemon::start(2) else {
        return;
    };
    let agreement = connected(&daemon).agreement();
    let error = kinds::fits(&agreement, &disk(4)).unwrap_err().to_string();
    assert_eq!(
        error,
        "the back-end offers 2 queues, 4 were asked: use queues=2"
    );
    negotiated(&daemon, 2);
}

#[test]
fn a_back_end_that_is_killed_is_noticed() {
    let Some(mut daemon) = Daemon::start(1) else {
        return;
    };
    let mut session = negotiated(&daemon, 1);
    session.listen().unwrap();
    daemon.program.kill().unwrap();
    let error = session.listen().unwrap_err().to_string();
    assert_eq!(error, "the back-end closed its connection");
}
