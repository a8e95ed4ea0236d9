//! What goes wrong with the image is said by the program, not to the guest
//! alone. The faults are real ones: a full file system, an image that is cut
//! short, a limit on the size of files, a device that cannot be synced.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::fs;
use std::process::Command;

use support::*;
use virtio_bindings::virtio_blk::*;

const ENGINES: [&str; 2] = ["--engine=auto", "--engine=threads"];

/// Writes `count` times 64 KiB one after the other: the statuses.
fn fill(driver: &mut Driver, count: u64) -> Vec<u8> {
    let bytes = pattern(65536, 1);
    let writes = (0..count).map(|at| driver.write(at * 128, &bytes).0);
    writes.collect()
}

/// Lines that have all of these words.
fn lines(disk: &Program, words: &[&str]) -> usize {
    let said = disk.said();
    let has = |line: &&str| words.iter().all(|word| line.contains(word));
    said.lines().filter(has).count()
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIP: only root can mount a file system of the test's own");
    }
    root
}

#[test]
fn a_full_file_system_is_told_with_its_place_and_what_to_do() {
    if !is_root() {
        return;
    }
    for engine in ENGINES {
        // In a mount namespace of its own, so that it goes with the program.
        let script = "mkdir $folder/full; exec unshare -m sh -ec 'mount -t tmpfs -o size=256k \
                      none $folder/full; truncate -s 1M $folder/full/image; exec \"$@\" \
                      --blk-file=$folder/full/image' sh \"$@\"";
        let disk = by_shell(script, &[engine]);
        let mut driver = Driver::of(&disk, EVERYTHING);
        let statuses = fill(&mut driver, 16);
        assert_eq!(statuses[0], OK);
        let failed = statuses.iter().filter(|status| **status == IOERR).count();
        assert!(failed >= 8, "{engine}: {statuses:?}");
        let line = [
            "WARN cannot write ",
            " bytes at offset ",
            "No space left on device",
            "make room",
        ];
        disk.says(&line).unwrap();
        // The first, the second, the fourth, the eighth, and the count.
        let said = lines(&disk, &line) as u32;
        assert_eq!(said, failed.ilog2() + 1, "{failed}: {}", disk.said());
        assert_eq!(lines(&disk, &["(8 times so far)"]), 1);
        // A full file system is no lost data, and another kind of operation
        // works.
        driver.works();
        assert_eq!(driver.read(0, 512).0, OK);
        drop(driver);
        disk.says(&["session ended", &format!("{failed} I/O errors")])
            .unwrap();
    }
}

#[test]
fn an_image_that_is_cut_short_while_it_is_served_is_told() {
    for engine in ENGINES {
        let disk = start(&[engine]);
        let mut driver = Driver::of(&disk, EVERYTHING);
        assert_eq!(driver.read(1024, 4096).0, OK);
        let image = image(&disk);
        image.set_len(256 << 10).unwrap();
        assert_eq!(driver.read(1024, 4096).0, IOERR);
        disk.says(&[
            "WARN cannot read 4096 bytes at offset 524288 of the image",
            "cut short",
            "truncate -s",
        ])
        .unwrap();
        image.set_len(1 << 20).unwrap();
        assert_eq!(driver.read(1024, 4096).0, OK);
        drop(driver);
        disk.says(&["session ended", "1 I/O errors"]).unwrap();
    }
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_and_ends_nothing() {
    for engine in ENGINES {
        let script = "truncate -s 1M $folder/image; exec prlimit --fsize=262144 \"$@\" \
                      --blk-file=$folder/image";
        let disk = by_shell(script, &[engine]);
        let mut driver = Driver::of(&disk, EVERYTHING);
        assert_eq!(driver.write(0, &pattern(512, 1)).0, OK);
        assert_eq!(driver.write(1024, &pattern(4096, 1)).0, IOERR);
        let line = [
            "cannot write 4096 bytes at offset 524288",
            "too large",
            "ulimit -f",
        ];
        disk.says(&line).unwrap();
        driver.works();
        assert_eq!(driver.read(0, 512).2, pattern(512, 1));
    }
}

#[test]
fn what_a_guest_does_wrong_is_no_error_of_the_image() {
    let disk = start(&[]);
    let mut driver = Driver::of(&disk, EVERYTHING);
    // Beyond the end, and a kind that there is not.
    assert_eq!(driver.read(2048, 512).0, IOERR);
    assert_eq!(driver.write(2047, &pattern(1024, 1)).0, IOERR);
    assert_eq!(driver.request(77, 0, &[]).0, support::UNSUPP);
    driver.works();
    drop(driver);
    // What it says next comes after whatever it said of the first session.
    let mut driver = Driver::of(&disk, EVERYTHING);
    let image = image(&disk);
    image.set_len(0).unwrap();
    assert_eq!(driver.read(0, 512).0, IOERR);
    drop(driver);
    disk.says(&["session ended", "1 I/O errors"]).unwrap();
    assert_eq!(lines(&disk, &["cannot"]), 1, "{}", disk.said());
}

/// A loop device, detached in the end; in use, it goes with its last user. That
/// it was made read-only would stay with its number.
struct Detach(String);

impl Drop for Detach {
    fn drop(&mut self) {
        let _ = Command::new("blockdev").args(["--setrw", &self.0]).status();
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

fn has_loop_devices() -> bool {
    let free = Command::new("losetup").arg("-f").output();
    let has = free.is_ok_and(|output| output.status.success());
    if !has {
        eprintln!("SKIP: there are no loop devices here");
    }
    has
}

#[test]
fn a_sync_that_fails_says_that_every_flush_fails_from_then_on() {
    if !is_root() || !has_loop_devices() {
        return;
    }
    for engine in ENGINES {
        // A device whose pages cannot be put where they belong: the file behind
        // it is on a full file system.
        let script = "mkdir $folder/full; exec unshare -m sh -ec 'mount -t tmpfs -o size=128k \
                      none $folder/full; truncate -s 1M $folder/full/behind; \
                      device=$(losetup --show -f $folder/full/behind); \
                      echo $device >$folder/device; exec \"$@\" --blk-file=$device' sh \"$@\"";
        let disk = by_shell(script, &[engine]);
        let mut driver = Driver::of(&disk, EVERYTHING);
        let device = fs::read_to_string(disk.folder().join("device")).unwrap();
        let _detach = Detach(device.trim().to_owned());
        driver.works();
        assert_eq!(fill(&mut driver, 16), [OK; 16], "in the cache");
        let flush = driver.request(VIRTIO_BLK_T_FLUSH, 0, &[]);
        assert_eq!(flush.0, IOERR, "{}", disk.said());
        disk.says(&["WARN cannot sync the image: ", "kernel log"])
            .unwrap();
        disk.says(&[
            "ERROR data that",
            "may be lost",
            "every flush",
            "until the VM has ended",
        ])
        .unwrap();
        for _ in 0..3 {
            assert_eq!(driver.request(VIRTIO_BLK_T_FLUSH, 0, &[]).0, IOERR);
        }
        disk.says(&["a flush of the guest failed", "(2 times so far)"])
            .unwrap();
        assert_eq!(lines(&disk, &["may be lost"]), 1);
        drop(driver);
        disk.says(&["session ended", "4 I/O errors"]).unwrap();
        disk.last_words().unwrap();
    }
}

#[test]
fn a_device_that_becomes_read_only_is_told() {
    if !is_root() || !has_loop_devices() {
        return;
    }
    let script = "truncate -s 1M $folder/behind; \
                  device=$(losetup --show -f $folder/behind); \
                  echo $device >$folder/device; exec \"$@\" --blk-file=$device";
    let disk = by_shell(script, &[]);
    let mut driver = Driver::of(&disk, EVERYTHING);
    let device = fs::read_to_string(disk.folder().join("device")).unwrap();
    let detach = Detach(device.trim().to_owned());
    assert_eq!(driver.write(0, &pattern(512, 1)).0, OK);
    let mut blockdev = Command::new("blockdev");
    let set = blockdev.args(["--setro", &detach.0]).status().unwrap();
    assert!(set.success());
    assert_eq!(driver.write(8, &pattern(512, 2)).0, IOERR);
    disk.says(&[
        "cannot write 512 bytes at offset 4096",
        "has become read-only",
        "make it writable",
    ])
    .unwrap();
    // Nothing that was written before is lost.
    driver.works();
    assert_eq!(driver.read(0, 512).2, pattern(512, 1));
    drop(driver);
    disk.says(&["session ended", "1 I/O errors"]).unwrap();
}
