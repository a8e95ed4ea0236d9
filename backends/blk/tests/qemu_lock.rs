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
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use outboard_blk::image::{Image, Options};
use outboard_contract::program::{Program, by_shell, in_path};
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
    let found = in_path(name);
    found.inspect_err(|error| eprintln!("SKIP: {error}")).ok()
}

fn image() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    file
}

/// qemu-storage-daemon with an image open, ended when dropped.
fn hold(program: &Path, image: &Path, read_only: bool) -> Program {
    let (read_only, writable) = if read_only {
        ("on", "off")
    } else {
        ("off", "on")
    };
    // An export is what asks for the permissions; the file of its id is written when
    // all of this is set up.
    let script = "exec \"$@\" --nbd-server addr.type=unix,addr.path=$folder/nbd --export \
                  type=nbd,id=export,node-name=disk,writable=$writable \
                  --pidfile $folder/ready";
    let disk = format!(
        "driver=file,node-name=disk,filename={},read-only={read_only},auto-read-only=off",
        image.display()
    );
    let mut command = by_shell(script, program, &["--blockdev", &disk]);
    let daemon = Program::run(command.env("writable", writable)).unwrap();
    let ready = || daemon.folder().join("ready").exists().then_some(());
    daemon.until("it is set up", ready).unwrap();
    daemon
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
    let held = hold(&daemon, image.path(), false);
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
    let _held = hold(&daemon, image.path(), true);
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
