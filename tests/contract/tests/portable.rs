//! A portable disk (`outboard-blk --profile=portable`) beside qemu-storage-daemon's: a
//! driver that has read the one's configuration and acknowledged its features can go on
//! with the other. What differs in this version of QEMU is named.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use outboard_contract::client::{Ack, Client};
use outboard_contract::driver::{Driver, EVERYTHING};
use outboard_contract::memory::Memory;
use outboard_contract::ours;
use outboard_contract::program::{Program, command, in_path, option};
use outboard_contract::ring::Buffer;
use outboard_protocol::devices::BlkConfig;
use tempfile::TempDir;

/// Size of the images.
const SIZE: u64 = 64 << 20;
/// Every name and place of a disk's configuration (virtio 1.3, section 5.2.4).
const FIELDS: [(&str, usize, usize); 20] = [
    ("capacity", 0, 8),
    ("size_max", 8, 4),
    ("seg_max", 12, 4),
    ("geometry", 16, 4),
    ("blk_size", 20, 4),
    ("physical_block_exp", 24, 1),
    ("alignment_offset", 25, 1),
    ("min_io_size", 26, 2),
    ("opt_io_size", 28, 4),
    (CACHE, 32, 1),
    ("unused0", 33, 1),
    ("num_queues", 34, 2),
    ("max_discard_sectors", 36, 4),
    ("max_discard_seg", 40, 4),
    ("discard_sector_alignment", 44, 4),
    ("max_write_zeroes_sectors", 48, 4),
    ("max_write_zeroes_seg", 52, 4),
    ("write_zeroes_may_unmap", 56, 1),
    ("unused1", 57, 3),
    ("the end", 60, 0),
];
/// The byte that a driver may change.
const CACHE: &str = "writeback";
/// Every feature that either offers, by its bit.
const FEATURES: [(&str, u32); 14] = [
    ("SIZE_MAX", 1),
    ("SEG_MAX", 2),
    ("RO", 5),
    ("BLK_SIZE", 6),
    ("FLUSH", 9),
    ("TOPOLOGY", 10),
    ("CONFIG_WCE", 11),
    ("MQ", 12),
    ("DISCARD", 13),
    ("WRITE_ZEROES", 14),
    ("NOTIFY_ON_EMPTY", 24),
    ("LOG_ALL", 26),
    ("INDIRECT_DESC", 28),
    ("EVENT_IDX", 29),
];
/// What qemu-storage-daemon alone offers: a largest segment of 0 bytes, which a device
/// of ours does not claim, and what is for front-ends and legacy drivers.
const ITS_OWN: [&str; 3] = ["SIZE_MAX", "NOTIFY_ON_EMPTY", "LOG_ALL"];
/// What it offers of a disk that nobody may write, as if it could be written.
const OF_NO_USE: [&str; 3] = ["CONFIG_WCE", "DISCARD", "WRITE_ZEROES"];
const RO: u64 = 1 << 5;

/// One way to serve a disk, in the words of both programs.
#[derive(Clone, Copy, Debug)]
struct Way {
    ours: &'static [&'static str],
    file: &'static str,
    export: &'static str,
}

const PLAIN: Way = Way {
    ours: &[],
    file: "",
    export: "writable=on,num-queues=1",
};

/// What a disk says of itself.
#[derive(Debug)]
struct Said {
    features: u64,
    /// As it is at first; with the cache turned on; and off.
    configs: Vec<Vec<u8>>,
    /// The serial number, and the used length of the answer.
    id: (Vec<u8>, u32),
}

/// Where images are: a file system as programs are built on.
fn folder() -> TempDir {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image = File::create(folder.path().join("image")).unwrap();
    image.set_len(SIZE).unwrap();
    folder
}

fn ours(way: Way) -> Said {
    let folder = folder();
    let image = option("--blk-file=", &folder.path().join("image"));
    let mut disk = command(ours::path("outboard-blk").unwrap(), way.ours);
    disk.arg("--profile=portable").arg(image);
    let program = Program::serve_in(folder, &mut disk).unwrap();
    hear(program.client().unwrap())
}

fn stock(daemon: &Path, way: Way) -> Said {
    let folder = folder();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (image, socket) = (path("image"), path("socket"));
    let file = format!(
        "driver=file,node-name=f,filename={image},locking=off{}",
        way.file
    );
    let raw = format!("driver=raw,node-name=r,file=f{}", way.file);
    let export = format!(
        "type=vhost-user-blk,id=e,node-name=r,addr.type=unix,addr.path={socket},{}",
        way.export
    );
    let options = ["--blockdev", &file, "--blockdev", &raw, "--export", &export];
    let program = Program::run(&mut command(daemon, &options)).unwrap();
    let connect = || UnixStream::connect(&socket).ok();
    hear(Client::new(program.until("it listens", connect).unwrap()))
}

/// Asks a disk for everything that a driver can learn of it.
fn hear(client: Client) -> Said {
    let memory = Memory::new(&[(0, 0x10_0000)]).unwrap();
    let driver = Driver::new(client, EVERYTHING, memory);
    let config = || driver.client.config(0, BlkConfig::LEN as u32).unwrap();
    let mut configs = vec![config()];
    if driver.features & RO == 0 {
        for cache in [1, 0] {
            let ack = driver.client.set_config(BlkConfig::WRITEBACK, &[cache]);
            assert_eq!(ack.unwrap(), Ack::Done);
            configs.push(config());
        }
    }
    let mut ring = driver.ring(0, 0x1000, 128);
    // VIRTIO_BLK_T_GET_ID
    driver.put(0x8000, &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    driver.put(0x9000, &[0; 20]);
    driver.put(0xa000, &[0xff]);
    let used = ring.submit(&[
        Buffer::readable(0x8000, 16),
        Buffer::writable(0x9000, 20),
        Buffer::writable(0xa000, 1),
    ]);
    assert_eq!(driver.get(0xa000, 1), [0], "GET_ID fails");
    Said {
        features: driver.features,
        configs,
        id: (driver.get(0x9000, 20), used.unwrap()),
    }
}

/// The names of these features; the bits of those that have none here.
fn names(features: u64) -> Vec<String> {
    // VERSION_1 and the protocol features, which every connection has.
    let features = features & !(1 << 32 | 1 << 30);
    let bits = (0..64u32).filter(|bit| features & (1 << bit) != 0);
    let name = |bit| {
        let found = FEATURES.iter().find(|(_, known)| *known == bit);
        found.map_or(format!("bit {bit}"), |(name, _)| (*name).to_owned())
    };
    bits.map(name).collect()
}

/// The fields in which two configurations differ.
fn differences(ours: &[u8], theirs: &[u8]) -> Vec<String> {
    let field = |&(name, at, length): &(&str, usize, usize)| {
        let (ours, theirs) = (&ours[at..at + length], &theirs[at..at + length]);
        (ours != theirs).then(|| format!("{name}: ours {ours:?}, theirs {theirs:?}"))
    };
    FIELDS.iter().filter_map(field).collect()
}

/// Both disks are alike to a driver.
fn compare(way: Way) {
    let Ok(daemon) = in_path("qemu-storage-daemon") else {
        eprintln!("SKIP: there is no qemu-storage-daemon");
        return;
    };
    let (ours, theirs) = (ours(way), stock(&daemon, way));
    let is_writable = ours.features & RO == 0;
    assert_eq!(
        names(ours.features & !theirs.features),
        [""; 0],
        "features of ours alone, {way:?}"
    );
    let mut alone = names(theirs.features & !ours.features);
    alone.retain(|name| is_writable || !OF_NO_USE.contains(&name.as_str()));
    assert_eq!(alone, ITS_OWN, "features of its alone, {way:?}");
    assert_eq!(ours.configs.len(), theirs.configs.len());
    for (number, (ours, theirs)) in ours.configs.iter().zip(&theirs.configs).enumerate() {
        let mut found = differences(ours, theirs);
        // Until it is told, it says that it has no cache, and has one.
        found.retain(|field| !(number == 0 && is_writable && field.starts_with(CACHE)));
        assert_eq!(found, [""; 0], "configuration {number}, {way:?}");
    }
    assert_eq!(ours.id, theirs.id, "GET_ID, {way:?}");
}

#[test]
fn a_portable_disk_is_as_that_of_the_stock_program() {
    compare(PLAIN);
    compare(Way {
        ours: &["--num-queues=4", "--queue-size=128", "--wce=off"],
        export: "writable=on,num-queues=4",
        ..PLAIN
    });
}

#[test]
fn so_it_is_with_larger_blocks() {
    compare(Way {
        ours: &["--block-size=4096"],
        export: "writable=on,logical-block-size=4096",
        ..PLAIN
    });
}

#[test]
fn so_it_is_where_nothing_can_be_written() {
    let way = Way {
        ours: &["--read-only"],
        file: ",read-only=on",
        export: "writable=off",
    };
    compare(way);
    compare(Way {
        ours: &["--read-only", "--block-size=4096"],
        export: "writable=off,logical-block-size=4096",
        ..way
    });
}

#[test]
fn so_it_is_past_the_page_cache() {
    let folder = folder();
    let image: PathBuf = folder.path().join("image");
    let mut options = OpenOptions::new();
    if options
        .read(true)
        .custom_flags(O_DIRECT)
        .open(image)
        .is_err()
    {
        eprintln!("SKIP: no direct I/O in {}", env!("CARGO_TARGET_TMPDIR"));
        return;
    }
    compare(Way {
        ours: &["--direct"],
        file: ",cache.direct=on",
        ..PLAIN
    });
}

const O_DIRECT: i32 = nix::fcntl::OFlag::O_DIRECT.bits();
