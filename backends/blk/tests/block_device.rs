//! A block device as the disk: a loop device, which root can make.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use outboard_blk::image::{Image, Options};
use support::*;
use virtio_bindings::virtio_blk::*;

/// A loop device of 8 MiB, taken apart when dropped.
struct Loop {
    device: PathBuf,
    _file: tempfile::NamedTempFile,
}

impl Loop {
    /// With sectors of this size; `None` where there are no loop devices.
    fn new(sector: u32) -> Option<Self> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8 << 20).unwrap();
        let output = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &sector.to_string()])
            .arg(file.path())
            .output();
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

#[test]
fn a_block_device_is_a_disk() {
    for sector in [512, 4096] {
        let Some(device) = Loop::new(sector) else {
            return;
        };
        for way in WAYS {
            let program = Program::serve(&device.device, way);
            let mut driver = program.driver(EVERYTHING);
            let config = driver.client.config(0, 60).unwrap();
            assert_eq!(config[..8], (8u64 << 11).to_le_bytes());
            let direct = way.contains(&"--direct");
            let block = if direct { sector } else { 512 };
            assert_eq!(config[20..24], block.to_le_bytes(), "{way:?}");
            let content = pattern(16384, 1);
            assert_eq!(driver.write(8, &content), (OK, 1), "{way:?}");
            assert_eq!(driver.read(8, 16384), (OK, 16385, content), "{way:?}");
            let sub_block = if block == 512 { OK } else { IOERR };
            assert_eq!(driver.write(1, &[1; 512]).0, sub_block, "{way:?}");
            assert!(driver.has(VIRTIO_BLK_F_DISCARD));
            let result = driver.segment(VIRTIO_BLK_T_DISCARD, 8, 8, 0);
            assert_eq!(result, (OK, 1), "{way:?}");
            for (sector, flags) in [(16, 0), (24, 1)] {
                let result = driver.segment(VIRTIO_BLK_T_WRITE_ZEROES, sector, 8, flags);
                assert_eq!(result, (OK, 1), "{way:?}");
            }
            let (status, _, found) = driver.read(16, 8192);
            assert_eq!((status, found), (OK, vec![0; 8192]), "{way:?}");
            driver.works();
        }
    }
}

#[test]
fn a_block_device_that_the_system_uses_is_refused_for_writing() {
    let Some(device) = Loop::new(512) else {
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
    Image::open(&device.device, Options::default()).unwrap();
}
