//! The image lock against QEMU's own programs: either keeps the other out.
//!
//! Needs `qemu-storage-daemon`, `qemu-img` or `qemu-io` (Debian: qemu-utils,
//! qemu-system-common) in PATH; what is missing is skipped, and said.
//!
//! A tool that only looks (`qemu-img info`, `qemu-io -r`) is let in by the
//! lock's rules, by a running QEMU as much as by us; one that relies on what
//! it reads (`qemu-img convert`) or writes is not.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use outboard_blk::image::{Image, Options};
use outboard_protocol::image_lock::{self, Access};

const READ_ONLY: Options = Options {
    read_only: true,
    direct: false,
    block_size: None,
    raw: false,
};
const WRITABLE: Options = Options {
    read_only: false,
    direct: false,
    block_size: None,
    raw: false,
};

/// One test at a time: an image that one has closed is still held by a child
/// that another starts, until that has become its program, and QEMU does not
/// wait for it.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A program of that name in PATH.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        eprintln!("SKIP: there is no {name} in PATH");
    }
    found
}

fn image() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    file
}

/// qemu-storage-daemon with an image open, ended when dropped.
struct Daemon {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Daemon {
    fn hold(program: &Path, image: &Path, read_only: bool) -> Self {
        let read_only = if read_only { "on" } else { "off" };
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("nbd");
        let mut child = Command::new("timeout")
            .arg("120")
            .arg(program)
            .arg("--blockdev")
            .arg(format!(
                "driver=file,node-name=disk,filename={},read-only={read_only},auto-read-only=off",
                image.display()
            ))
            // An export is what asks for the permissions.
            .arg("--nbd-server")
            .arg(format!("addr.type=unix,addr.path={}", socket.display()))
            .arg("--export")
            .arg(format!(
                "type=nbd,id=export,node-name=disk,writable={}",
                if read_only == "on" { "off" } else { "on" }
            ))
            .args(["--chardev", "stdio,id=qmp", "--monitor", "qmp"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The greeting comes when all of the above is set up.
        let mut greeting = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut greeting).unwrap();
        assert!(greeting.contains("QMP"), "it did not start: {greeting:?}");
        Self {
            child,
            _folder: folder,
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let mut stdin = self.child.stdin.take().unwrap();
        let _ = stdin.write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"quit\"}\n");
        let _ = self.child.wait();
    }
}

fn refused(path: &Path, options: Options) -> bool {
    match Image::open(path, options) {
        Ok(_) => false,
        Err(error) => {
            let message = format!("{error:#}");
            assert!(message.contains("in use by another process"), "{message}");
            true
        }
    }
}

#[test]
fn what_qemu_writes_to_is_refused_and_free_when_it_ends() {
    let _alone = alone();
    let Some(daemon) = program("qemu-storage-daemon") else {
        return;
    };
    let image = image();
    let held = Daemon::hold(&daemon, image.path(), false);
    assert!(refused(image.path(), WRITABLE));
    assert!(refused(image.path(), READ_ONLY));
    drop(held);
    assert!(!refused(image.path(), WRITABLE));
}

#[test]
fn readers_share_an_image_with_qemu() {
    let _alone = alone();
    let Some(daemon) = program("qemu-storage-daemon") else {
        return;
    };
    let image = image();
    let _held = Daemon::hold(&daemon, image.path(), true);
    assert!(!refused(image.path(), READ_ONLY));
}

/// Reads the whole image, relying on nobody writing to it.
fn convert(image: &Path) -> Option<Output> {
    let qemu_img = program("qemu-img")?;
    let copy = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new("timeout");
    let command = command
        .arg("60")
        .arg(qemu_img)
        .args(["convert", "-f", "raw", "-O", "raw"])
        .args([image, copy.path()]);
    Some(command.stdin(Stdio::null()).output().unwrap())
}

/// Writes a sector.
fn write(image: &Path) -> Option<Output> {
    let qemu_io = program("qemu-io")?;
    let mut command = Command::new("timeout");
    let command = command
        .arg("60")
        .arg(qemu_io)
        .args(["-f", "raw", "-c", "write 0 512"])
        .arg(image);
    Some(command.stdin(Stdio::null()).output().unwrap())
}

fn assert_locked_out(output: &Output) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "it was let in");
    assert!(message.contains("lock"), "{message}");
}

fn assert_let_in(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn qemu_neither_reads_nor_writes_what_we_write_to() {
    let _alone = alone();
    let image = image();
    let held = Image::open(image.path(), WRITABLE).unwrap();
    let (Some(read), Some(written)) = (convert(image.path()), write(image.path())) else {
        return;
    };
    assert_locked_out(&read);
    assert_locked_out(&written);
    drop(held);
    assert_let_in(&convert(image.path()).unwrap());
    assert_let_in(&write(image.path()).unwrap());
}

#[test]
fn qemu_reads_and_does_not_write_what_we_read() {
    let _alone = alone();
    let image = image();
    let _held = Image::open(image.path(), READ_ONLY).unwrap();
    let (Some(read), Some(written)) = (convert(image.path()), write(image.path())) else {
        return;
    };
    assert_let_in(&read);
    assert_locked_out(&written);
}

#[test]
fn a_lock_lives_on_in_a_descriptor_that_was_handed_over() {
    let _alone = alone();
    let image = image();
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).open(image.path()).unwrap();
    image_lock::lock(&opened, Access::Write).unwrap();
    let lent = Image::inherit(opened.try_clone().unwrap().into(), WRITABLE).unwrap();
    drop(opened);
    let Some(read) = convert(image.path()) else {
        return;
    };
    assert_locked_out(&read);
    drop(lent);
    assert_let_in(&convert(image.path()).unwrap());
}
