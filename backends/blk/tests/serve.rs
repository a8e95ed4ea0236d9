//! The program itself: a real file, served over a socket to a vhost-user
//! client, with every type of request, bad ones among them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::process::Command;

use outboard_contract::client::{Ack, Client};
use outboard_contract::program::{command, option};
use outboard_contract::ring::{Buffer, Ring};
use outboard_contract::soon;
use outboard_protocol::devices::BlkConfig;
use support::*;
use virtio_bindings::virtio_blk::*;
use vm_memory::{Bytes, GuestAddress};

#[test]
fn a_disk_reads_writes_flushes_discards_and_tells_its_name() {
    for way in WAYS {
        let program = start(&[way, &["--serial=name-of-disk"]].concat());
        let mut driver = Driver::of(&program, EVERYTHING);
        // Over the border of the regions, and not aligned.
        let content = pattern(16384, 1);
        assert_eq!(driver.write(8, &content), (OK, 1), "{way:?}");
        assert_eq!(driver.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
        assert_eq!(stored(&image(&program), 4096, 16384), content, "{way:?}");
        assert_eq!(driver.read(8, 16384), (OK, 16385, content), "{way:?}");
        if driver.has(VIRTIO_BLK_F_DISCARD) {
            let result = driver.segment(VIRTIO_BLK_T_DISCARD, 8, 8, 0);
            assert_eq!(result, (OK, 1));
            assert_eq!(stored(&image(&program), 4096, 4096), [0; 4096]);
        }
        for flags in [0, 1] {
            let sector = 16 + 8 * u64::from(flags);
            let result = driver.segment(VIRTIO_BLK_T_WRITE_ZEROES, sector, 8, flags);
            assert_eq!(result, (OK, 1));
        }
        assert_eq!(stored(&image(&program), 8192, 8192), [0; 8192]);
        assert_eq!(
            stored(&image(&program), 16384, 4096),
            pattern(16384, 1)[12288..]
        );
        let name = driver.request(VIRTIO_BLK_T_GET_ID, 0, &[Buffer::writable(DATA, 20)]);
        assert_eq!(name, (OK, 21));
        assert_eq!(driver.get(DATA, 20), *b"name-of-disk\0\0\0\0\0\0\0\0");
        assert_eq!(image(&program).metadata().unwrap().len(), 1 << 20);
        driver.works();
    }
}

#[test]
fn bad_requests_are_answered_and_the_next_one_works() {
    for way in WAYS {
        let program = start(way);
        let mut driver = Driver::of(&program, EVERYTHING);
        let out = Buffer::readable(DATA, 512);
        let into = Buffer::writable(DATA, 512);
        for (kind, sector, data, status) in [
            (VIRTIO_BLK_T_IN, 2048, &[into][..], IOERR),
            (VIRTIO_BLK_T_IN, u64::MAX, &[into], IOERR),
            (VIRTIO_BLK_T_IN, 0, &[Buffer::writable(DATA, 511)], IOERR),
            (VIRTIO_BLK_T_IN, 0, &[out, into], IOERR),
            (VIRTIO_BLK_T_IN, 0, &[Buffer::writable(1 << 40, 512)], IOERR),
            (VIRTIO_BLK_T_OUT, 2048, &[out], IOERR),
            (VIRTIO_BLK_T_OUT, 2047, &[out, out], IOERR),
            (VIRTIO_BLK_T_OUT, 0, &[into], IOERR),
            (
                VIRTIO_BLK_T_OUT,
                0,
                &[Buffer::readable(0x1f_ffff, 512)],
                IOERR,
            ),
            (
                VIRTIO_BLK_T_DISCARD,
                0,
                &[Buffer::readable(DATA, 15)],
                IOERR,
            ),
            (VIRTIO_BLK_T_WRITE_ZEROES, 0, &[], IOERR),
            (99, 0, &[], UNSUPP),
        ] {
            let result = driver.request(kind, sector, data);
            assert_eq!(result, (status, 1), "{way:?}: {kind} {sector} {data:?}");
        }
        let unmapped = [Buffer::readable(1 << 40, 16), Buffer::writable(STATUS, 1)];
        assert_eq!(driver.submit(&unmapped), 1);
        let short = [Buffer::readable(HEADER, 15), Buffer::writable(STATUS, 1)];
        assert_eq!(driver.submit(&short), 1);
        // No place for a status: nothing done, nothing written.
        driver.put(HEADER, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        driver.put(DATA, &[7; 512]);
        let header = Buffer::readable(HEADER, 16);
        assert_eq!(driver.submit(&[header, out]), 0);
        assert_eq!(driver.submit(&[header]), 0);
        let nowhere = Buffer::writable(1 << 40, 1);
        assert_eq!(driver.submit(&[header, out, nowhere]), 0);
        assert_eq!(stored(&image(&program), 0, 512), [0; 512], "{way:?}");
        assert_eq!(image(&program).metadata().unwrap().len(), 1 << 20);
        driver.works();
    }
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let program = start(&["--read-only"]);
    let mut driver = Driver::of(&program, EVERYTHING);
    assert!(driver.has(VIRTIO_BLK_F_RO));
    assert_eq!(driver.write(0, &[7; 512]), (IOERR, 1));
    assert_eq!(
        driver.segment(VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 0),
        (IOERR, 1)
    );
    assert_eq!(driver.segment(VIRTIO_BLK_T_DISCARD, 0, 8, 0), (IOERR, 1));
    assert_eq!(driver.read(0, 512), (OK, 513, vec![0; 512]));
    driver.works();
}

#[test]
fn many_requests_in_flight_on_indirect_tables_all_come_back() {
    for way in WAYS {
        let program = start(way);
        let mut driver = Driver::of(&program, EVERYTHING);
        let count = 32u64;
        let old = driver.ring.next_avail;
        for i in 0..count {
            let (header, data, table) = (HEADER + 16 * i, DATA + 4096 * i, 0xa000 + 64 * i);
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&VIRTIO_BLK_T_OUT.to_le_bytes());
            bytes[8..].copy_from_slice(&(i * 8).to_le_bytes());
            driver.put(header, &bytes);
            driver.put(data, &pattern(4096, i as u8));
            driver.put(STATUS + i, &[0xee]);
            let buffers = [
                Buffer::readable(header, 16),
                Buffer::readable(data, 4096),
                Buffer::writable(STATUS + i, 1),
            ];
            driver.ring.add_indirect(table, &buffers).unwrap();
        }
        driver.ring.announce(old).unwrap();
        for _ in 0..count {
            let (_, length) = driver.ring.wait_used(soon()).unwrap();
            assert_eq!(length, 1);
        }
        for i in 0..count {
            assert_eq!(driver.get(STATUS + i, 1), [OK], "{way:?}");
            let found = stored(&image(&program), 4096 * i, 4096);
            assert_eq!(found, pattern(4096, i as u8), "{way:?}");
        }
        assert_eq!(driver.client.stop_ring(0).unwrap(), count as u16);
    }
}

#[test]
fn the_configuration_is_that_of_the_disk_and_the_cache_can_be_switched() {
    let program = start(&["--num-queues=4"]);
    let mut driver = Driver::of(&program, EVERYTHING);
    let config = driver.client.config(0, BlkConfig::LEN as u32).unwrap();
    assert_eq!(config[..8], 2048u64.to_le_bytes());
    assert_eq!(config[34..36], 4u16.to_le_bytes());
    let writeback = BlkConfig::WRITEBACK;
    for value in [0, 1] {
        let ack = driver.client.set_config(writeback, &[value]).unwrap();
        assert_eq!(ack, Ack::Done);
        assert_eq!(driver.client.config(writeback, 1).unwrap(), [value]);
        assert_eq!(driver.write(0, &[value; 512]), (OK, 1));
    }
    let ack = driver.client.set_config(0, &[1]).unwrap();
    assert_eq!(ack, Ack::Refused, "capacity is not the driver's");
    driver.works();
}

/// Bytes that only this process has, by smaps: what it has allocated, and all
/// that it has besides guest memory.
fn private(pid: nix::unistd::Pid) -> (u64, u64) {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut own, mut all) = (0, 0);
    let (mut is_guest, mut is_file) = (false, false);
    for line in smaps.lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        if line.starts_with("Private_") && !is_guest {
            let kib: u64 = fields[1].parse().unwrap();
            all += kib * 1024;
            own += if is_file { 0 } else { kib * 1024 };
        } else if !fields[0].ends_with(':') {
            let name = fields.get(5).copied().unwrap_or_default();
            is_guest = name.starts_with("/memfd:");
            is_file = name.starts_with('/');
        }
    }
    (own, all)
}

#[test]
fn four_busy_queues_need_less_than_3_mib() {
    for way in WAYS {
        let program = start(&[way, &["--num-queues=4"]].concat());
        let mut driver = Driver::of(&program, EVERYTHING);
        let mut rings = vec![];
        for index in 1..4 {
            rings.push(driver.queue(index));
        }
        let other = Ring::new(&driver.memory, 0x6000, 2, false).unwrap();
        rings.push(std::mem::replace(&mut driver.ring, other));
        for round in 0..20u64 {
            for (index, ring) in rings.iter_mut().enumerate() {
                let old = ring.next_avail;
                for i in 0..32 {
                    let sector = (round * 57 + i * 8 + index as u64 * 256) % 2000;
                    let place = i + 32 * index as u64;
                    let header = HEADER + 16 * place;
                    let mut bytes = [0; 16];
                    bytes[0] = (round & 1) as u8;
                    bytes[8..].copy_from_slice(&sector.to_le_bytes());
                    let guest = &driver.memory.guest;
                    guest.write_slice(&bytes, GuestAddress(header)).unwrap();
                    let (at, length) = (DATA + 4099 * place, 4096);
                    let data = match bytes[0] {
                        0 => Buffer::writable(at, length),
                        _ => Buffer::readable(at, length),
                    };
                    let status = Buffer::writable(STATUS + place, 1);
                    let buffers = [Buffer::readable(header, 16), data, status];
                    ring.add_indirect(0xa000 + 64 * place, &buffers).unwrap();
                }
                ring.announce(old).unwrap();
            }
            for ring in &mut rings {
                for _ in 0..32 {
                    let (_, used) = ring.wait_used(soon()).unwrap();
                    assert_eq!(used, if round & 1 == 0 { 4097 } else { 1 });
                }
            }
        }
        let pid = program.pid();
        let (own, all) = private(pid);
        println!(
            "{way:?}: {} KiB allocated, {} KiB in all",
            own >> 10,
            all >> 10
        );
        // The text of a debug build is several times that of a release.
        assert!(own < 3 << 20, "{way:?}: {own} bytes");
    }
}

#[test]
fn one_front_end_follows_another_and_finds_what_was_written() {
    let program = start(&[]);
    let mut first = Driver::of(&program, EVERYTHING);
    assert_eq!(first.write(0, &pattern(4096, 3)), (OK, 1));
    drop(first);
    let mut second = Driver::of(&program, VERSION_1);
    assert_eq!(second.read(0, 4096), (OK, 4097, pattern(4096, 3)));
}

/// A running one goes on by the size of its beginning.
#[test]
fn each_front_end_sees_the_size_that_the_image_has_when_it_comes() {
    const MIB: u64 = 1 << 20;
    for (more, block) in [("--engine=auto", 512), ("--block-size=4096", 4096)] {
        let program = start(&[more]);
        let mut size = MIB;
        for next in [2 * MIB, MIB, MIB + 1000, 0, MIB, MIB] {
            let whole = size - size % block;
            let mut driver = Driver::of(&program, EVERYTHING);
            let (said, image) = (program.said(), image(&program));
            image.set_len(next).unwrap();
            let config = driver.client.config(0, 60).unwrap();
            assert_eq!(config[..8], (whole / 512).to_le_bytes(), "{size}: {said}");
            let end = whole / 512;
            assert_eq!(driver.write(end, &vec![7; block as usize]), (IOERR, 1));
            if next >= whole && whole > 0 {
                let last = (whole - block) / 512;
                let content = pattern(block as usize, 1);
                assert_eq!(driver.write(last, &content), (OK, 1), "{size}");
                assert_eq!(driver.read(last, block as u32).2, content, "{size}");
            }
            driver.works();
            assert_eq!(image.metadata().unwrap().len(), next);
            drop(driver);
            size = next;
        }
        let said = program.said();
        for words in [
            "from 1048576 to 2097152 bytes",
            "has 1049576 bytes now",
            "has 0 bytes now",
        ] {
            assert!(said.contains(words), "{words}: {said}");
        }
    }
}

/// Runs the program to its end: its messages and whether it succeeded.
fn run(arguments: &[&str]) -> (bool, String) {
    let mut program = Program::run(&mut command(program(), arguments)).unwrap();
    let success = program.wait().unwrap().success();
    (success, program.printed() + &program.said())
}

#[test]
fn capabilities_are_what_the_schema_says() {
    let (success, text) = run(&["--print-capabilities"]);
    assert!(success);
    let compact: String = text.split_whitespace().collect();
    assert_eq!(
        compact,
        r#"{"type":"block","features":["read-only","blk-file"]}"#
    );
}

#[test]
fn wrong_use_ends_with_a_message_that_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("--socket-path={}", folder.path().join("socket").display());
    let file = |name: &str, size| {
        let path = folder.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        format!("--blk-file={}", path.display())
    };
    let odd = file("odd", 1000);
    let odd_for_4096 = file("odd-for-4096", 4608);
    let cases: [(&[&str], &[&str]); 12] = [
        (&[&socket], &["--blk-file"]),
        (&["--null=1G"], &["--socket-path"]),
        (
            &[&socket, "--blk-file=/nonexistent"],
            &["/nonexistent", "truncate"],
        ),
        (&[&socket, "--blk-file=/"], &["directory"]),
        (&[&socket, &odd], &["odd", "multiple of 512"]),
        (&[&socket, "--blk-fd=99"], &["99", "not open"]),
        (&[&socket, "--null=1"], &["512"]),
        (
            &[&socket, "--null=512", "--block-size=4096"],
            &["not a multiple of --block-size=4096"],
        ),
        (
            &[&socket, "--null=1G", "--block-size=1024"],
            &["give 512 or 4096"],
        ),
        (
            &[&socket, &odd_for_4096, "--block-size=4096"],
            &["multiple of 4096", "--block-size=512"],
        ),
        (
            &[&socket, "--null=1G", "--queue-size=100"],
            &["power of two"],
        ),
        (&[&socket, "--null=1G", "--num-queues=0"], &["1..=64"]),
    ];
    for (arguments, words) in cases {
        let (success, text) = run(arguments);
        assert!(!success, "{arguments:?}");
        for word in words {
            assert!(text.contains(word), "{arguments:?}: no {word:?} in {text}");
        }
    }
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 2, "a socket was left behind");
}

#[test]
fn an_image_that_is_served_is_not_served_twice() {
    let program = start(&[]);
    let _ready = Driver::of(&program, EVERYTHING);
    let second = serve(&program.folder().join("image"), &[]);
    second.ends_with(1, "in use by another process").unwrap();
}

/// Nobody comes to one that is about to end: what its predecessor has left at the path
/// of its socket is as it was.
#[test]
fn who_cannot_have_the_image_does_not_listen() {
    let program = start(&[]);
    let _ready = Driver::of(&program, EVERYTHING);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let (success, said) = run(&[
        option("--socket-path=", &socket).to_str().unwrap(),
        option("--blk-file=", &program.folder().join("image"))
            .to_str()
            .unwrap(),
    ]);
    assert!(
        !success && said.contains("in use by another process"),
        "{said}"
    );
    assert!(socket.exists());
}

#[test]
fn an_inherited_image_is_served_and_locked() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let program = inherit(image.path(), &[]);
    let mut driver = Driver::of(&program, EVERYTHING);
    assert_eq!(driver.write(0, &pattern(4096, 5)), (OK, 1));
    assert_eq!(stored(image.as_file(), 0, 4096), pattern(4096, 5));
    let second = serve(image.path(), &[]);
    second.ends_with(1, "in use by another process").unwrap();
}

/// The commands of the examples, each line that is one as a word list.
#[test]
fn the_examples_of_the_help_work_when_pasted() {
    let (success, text) = run(&["--help"]);
    assert!(success);
    let (_, examples) = text.split_once("Examples:").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let here = format!("{}/", folder.path().display());
    let joined = examples.replace("\\\n", " ").replace("/tmp/", &here);
    let mut tried = 0;
    for line in joined.lines().map(str::trim) {
        if line.starts_with("truncate ") {
            assert!(
                Command::new("sh")
                    .args(["-c", line])
                    .status()
                    .unwrap()
                    .success()
            );
        }
        let Some(arguments) = line.strip_prefix("outboard-blk ") else {
            continue;
        };
        let arguments: Vec<_> = arguments.split_whitespace().collect();
        let socket = arguments
            .iter()
            .find_map(|one| one.strip_prefix("--socket-path="));
        let program = Program::run(&mut command(program(), &arguments)).unwrap();
        let client = Client::connect(socket.unwrap().as_ref()).unwrap();
        Driver::new(client, EVERYTHING).works();
        program.last_words().unwrap();
        tried += 1;
    }
    assert_eq!(tried, 3);
}
