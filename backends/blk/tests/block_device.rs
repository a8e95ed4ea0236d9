//! A block device as the disk: a loop device, which root can make.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use outboard_blk::image::{Image, Options};
use support::*;
use virtio_bindings::virtio_blk::*;

/// A loop device of 8 MiB, taken apart when dropped.
struct Loop {
    device: PathBuf,
    _file: tempfile::NamedTempFile,
}

impl Loop {
    /// Made by losetup(8) with these options besides; `None` where there are
    /// no loop devices.
    fn new(options: &[&str]) -> Option<Self> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8 << 20).unwrap();
        let mut command = Command::new("losetup");
        command.args(["--find", "--show"]).args(options);
        Self::by(command.arg(file.path()), file)
    }

    fn with_sectors(size: u32) -> Option<Self> {
        Self::new(&["--sector-size", &size.to_string()])
    }

    /// By a command that prints its name.
    fn by(command: &mut Command, file: tempfile::NamedTempFile) -> Option<Self> {
        let output = command.output();
        let name = match output {
            Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
            other => {
                eprintln!("SKIP: cannot make a loop device: {other:?}");
                return None;
            }
        };
        Some(Self {
            device: Path::new(name.trim()).to_owned(),
            _file: file,
        })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let mut command = Command::new("losetup");
        let _ = command.arg("--detach").arg(&self.device).status();
    }
}

/// What the driver sees of its blocks: size, topology, and how large a piece
/// may be cleared.
fn blocks(driver: &mut Driver) -> Vec<Vec<u8>> {
    let config = driver.client.config(0, 60).unwrap();
    [20..24, 24..32, 36..60]
        .map(|range| config[range].to_vec())
        .to_vec()
}

/// Its block size is its own, or what is asked for, by whatever way it is served.
#[test]
fn a_block_device_is_a_disk() {
    for (sector, asked, block) in [
        (512, None, 512),
        (512, Some("--block-size=4096"), 4096),
        (4096, None, 4096),
        (4096, Some("--block-size=512"), 512),
    ] {
        let Some(device) = Loop::with_sectors(sector) else {
            return;
        };
        let mut seen = Vec::new();
        for way in WAYS {
            let direct = way.contains(&"--direct");
            let more: Vec<_> = way.iter().copied().chain(asked).collect();
            if direct && sector > block {
                let options = Options {
                    direct,
                    block_size: Some(block),
                    ..Options::default()
                };
                let error = Image::open(&device.device, options).unwrap_err();
                let message = format!("{error:#}");
                assert!(message.contains("use --block-size=4096"), "{message}");
                continue;
            }
            let program = serve(&device.device, &more);
            let mut driver = Driver::of(&program, EVERYTHING);
            let config = driver.client.config(0, 60).unwrap();
            assert_eq!(config[..8], (8u64 << 11).to_le_bytes());
            assert_eq!(config[20..24], block.to_le_bytes(), "{more:?}");
            seen.push(blocks(&mut driver));
            let content = pattern(16384, 1);
            assert_eq!(driver.write(8, &content), (OK, 1), "{more:?}");
            assert_eq!(driver.read(8, 16384), (OK, 16385, content), "{more:?}");
            let sub_block = if block == 512 { OK } else { IOERR };
            assert_eq!(driver.write(1, &[1; 512]).0, sub_block, "{more:?}");
            assert!(driver.has(VIRTIO_BLK_F_DISCARD));
            let result = driver.segment(VIRTIO_BLK_T_DISCARD, 8, 8, 0);
            assert_eq!(result, (OK, 1), "{more:?}");
            for (sector, flags) in [(16, 0), (24, 1)] {
                let result = driver.segment(VIRTIO_BLK_T_WRITE_ZEROES, sector, 8, flags);
                assert_eq!(result, (OK, 1), "{more:?}");
            }
            let (status, _, found) = driver.read(16, 8192);
            assert_eq!((status, found), (OK, vec![0; 8192]), "{more:?}");
            driver.works();
        }
        seen.dedup();
        assert_eq!(seen.len(), 1, "what is seen follows the way: {seen:?}");
    }
}

/// Its partition table would be gone if its blocks followed from `--direct`.
#[test]
fn a_file_on_storage_of_4096_has_the_same_blocks_with_and_without_direct_io() {
    let Some(device) = Loop::with_sectors(4096) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    let script = format!(
        "mount --make-rprivate / && mkfs.ext4 -q -b 4096 {device} && mount {device} {folder}",
        device = device.device.display(),
        folder = folder.path().display()
    );
    let ended = std::thread::spawn(move || {
        // This thread's mounts, and those of the programs that it starts.
        let unshared = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS);
        let mut command = Command::new("sh");
        let made = unshared.is_ok() && command.args(["-c", &script]).status().unwrap().success();
        if !made {
            return eprintln!("SKIP: cannot make a file system on blocks of 4096 bytes");
        }
        std::fs::write(&image, vec![0; 1 << 20]).unwrap();
        let mut options = Options {
            direct: true,
            ..Options::default()
        };
        let message = format!("{:#}", Image::open(&image, options).unwrap_err());
        assert!(message.contains("use --block-size=4096"), "{message}");
        options.block_size = Some(4096);
        Image::open(&image, options).unwrap();
        let see = |more: &[&str]| {
            let program = serve(&image, more);
            let mut driver = Driver::of(&program, EVERYTHING);
            assert_eq!(driver.write(8, &pattern(8192, 1)), (OK, 1), "{more:?}");
            assert_eq!(driver.read(8, 8192).2, pattern(8192, 1), "{more:?}");
            driver.works();
            blocks(&mut driver)
        };
        let small = see(&[]);
        assert_eq!(small[0], 512u32.to_le_bytes());
        assert_eq!(see(&["--block-size=512"]), small);
        let large = see(&["--block-size=4096"]);
        assert_eq!(large[0], 4096u32.to_le_bytes());
        assert_eq!(see(&["--block-size=4096", "--direct"]), large);
        Command::new("umount")
            .arg(image.parent().unwrap())
            .status()
            .unwrap();
    });
    ended.join().unwrap();
}

#[test]
fn a_block_device_that_the_system_uses_is_refused_for_writing() {
    let Some(device) = Loop::with_sectors(512) else {
        return;
    };
    // As a mount does it.
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(nix::libc::O_EXCL);
    let mounted = options.open(&device.device).unwrap();
    let read_only = Options {
        read_only: true,
        ..Options::default()
    };
    let error = Image::open(&device.device, Options::default()).unwrap_err();
    let message = format!("{error:#}");
    assert!(message.contains("mounted"), "{message}");
    assert!(Image::open(&device.device, read_only).is_ok());
    drop(mounted);
    // A child that another test has just forked holds a copy until its exec.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while let Err(error) = Image::open(&device.device, Options::default()) {
        assert!(std::time::Instant::now() < end, "{error:#}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// The kernel opens it for writing, and fails each write.
#[test]
fn a_block_device_that_is_set_read_only_is_refused_for_writing() {
    let Some(device) = Loop::new(&["--read-only"]) else {
        return;
    };
    let read_only = Options {
        read_only: true,
        ..Options::default()
    };
    let message = |result: anyhow::Result<Image>| format!("{:#}", result.unwrap_err());
    let lent = || {
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).open(&device.device);
        opened.unwrap().into()
    };
    for message in [
        message(Image::open(&device.device, Options::default())),
        message(Image::inherit(lent(), Options::default())),
    ] {
        assert!(
            message.contains("is set read-only; use --read-only"),
            "{message}"
        );
    }
    Image::open(&device.device, read_only).unwrap();
    Image::inherit(lent(), read_only).unwrap();
}

/// On a file system without holes.
#[test]
fn a_block_device_that_cannot_discard_does_not_offer_it() {
    let mut command = Command::new("unshare");
    let script = "folder=$(mktemp -d) && mount -t ramfs none $folder && \
        truncate -s 8M $folder/disk && losetup --find --show $folder/disk && umount -l $folder && \
        rmdir $folder";
    command.args(["--mount", "sh", "-c", script]);
    let file = tempfile::NamedTempFile::new().unwrap();
    let Some(device) = Loop::by(&mut command, file) else {
        return;
    };
    let program = serve(&device.device, &[]);
    let mut driver = Driver::of(&program, EVERYTHING);
    assert!(!driver.has(VIRTIO_BLK_F_DISCARD));
    assert_eq!(driver.segment(VIRTIO_BLK_T_DISCARD, 0, 8, 0), (UNSUPP, 1));
    assert_eq!(driver.write(0, &[7; 8192]), (OK, 1));
    let zeroes = driver.segment(VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 1);
    assert_eq!(zeroes, (OK, 1));
    assert_eq!(driver.read(0, 4096), (OK, 4097, vec![0; 4096]));
    assert_eq!(driver.read(8, 4096), (OK, 4097, vec![7; 4096]));
    driver.works();
}

#[test]
fn a_file_that_is_swap_space_is_refused_for_writing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display();
    // Given up in any case; where there is no swapping nothing is tested.
    let script = format!(
        "head -c 1048576 /dev/zero > {path} && chmod 600 {path} && mkswap {path} && \
         swapon {path}"
    );
    let quiet = Stdio::null;
    let mut command = Command::new("sh");
    command
        .args(["-c", &script])
        .stdout(quiet())
        .stderr(quiet());
    if !command.status().unwrap().success() {
        return eprintln!("SKIP: cannot swap to a file");
    }
    let result = Image::open(file.path(), Options::default());
    let ended = Command::new("swapoff").arg(file.path()).status();
    assert!(ended.unwrap().success());
    let message = format!("{:#}", result.unwrap_err());
    assert!(message.contains("is in use as swap space"), "{message}");
    Image::open(file.path(), Options::default()).unwrap();
}
