//! A disk whose syncs do not end: the driver turns the write cache off, and
//! nobody waits for it without an end. strace(1) holds fdatasync(2).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outboard_protocol::devices::BlkConfig;
use outboard_protocol::wire::Header;
use support::{Driver, EVERYTHING, OK, Program, by_shell, pattern};

/// VHOST_USER_SET_CONFIG.
const SET_CONFIG: u32 = 25;

/// Serves an image whose syncs take longer than the program lives.
struct Hanging {
    // Ended first, since what it traces is not reaped before.
    tracer: Tracer,
    disk: Program,
}

struct Tracer(Pid);

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

impl Hanging {
    fn start() -> Option<Self> {
        let strace = Command::new("strace").args(["-qq", "true"]).output();
        if !strace.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIP: strace(1) cannot trace here");
            return None;
        }
        // The tracer is nobody's parent, so that signals go to the program.
        let script = "truncate -s 1M $folder/image; exec strace -D -f -qq -o $folder/trace \
                      -e trace=fdatasync -e inject=fdatasync:delay_enter=110s \"$@\" \
                      --engine=auto --blk-file=$folder/image";
        let disk = by_shell(script, &[]);
        drop(Driver::of(&disk, EVERYTHING));
        let tracer = field(disk.pid(), "TracerPid:").parse().unwrap();
        let tracer = Tracer(Pid::from_raw(tracer));
        Some(Self { tracer, disk })
    }

    /// Asks the program to end, and waits until it has, and well.
    fn end(self) {
        let pid = self.disk.pid();
        self.disk.signal(Signal::SIGTERM).unwrap();
        let deadline = outboard_contract::soon();
        while !field(pid, "State:").starts_with('Z') {
            assert!(!deadline.passed(), "it does not end: {}", self.disk.said());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        drop(self.tracer);
        self.disk.ends_with(0, "").unwrap();
    }
}

/// What a process's status says.
fn field(pid: Pid, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    let status = status.expect("it was there until its sync had ended");
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    value.unwrap().trim().to_owned()
}

/// Turns the cache off, and waits until the sync has begun.
fn turn_off(disk: &Program, driver: &support::Driver) {
    let mut payload = [BlkConfig::WRITEBACK, 1, 0].map(u32::to_ne_bytes).concat();
    payload.push(0);
    let header = Header::request(SET_CONFIG).with_need_reply();
    driver.client.send(header, &payload, &[]).unwrap();
    let deadline = outboard_contract::soon();
    while !is_syncing(disk.pid()) {
        assert!(!deadline.passed(), "no sync");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Whether a thread of it is in fdatasync(2).
fn is_syncing(pid: Pid) -> bool {
    let number = format!("{} ", nix::libc::SYS_fdatasync);
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut calls = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("syscall")).ok());
    calls.any(|call| call.starts_with(&number))
}

#[test]
fn a_program_that_is_to_end_does_not_wait_for_the_cache_to_be_off() {
    let Some(hanging) = Hanging::start() else {
        return;
    };
    let mut driver = Driver::of(&hanging.disk, EVERYTHING);
    assert_eq!(driver.write(0, &pattern(4096, 1)), (OK, 1));
    turn_off(&hanging.disk, &driver);
    // The queue goes on meanwhile: what it writes is durable by itself.
    assert_eq!(driver.write(8, &pattern(4096, 2)), (OK, 1));
    hanging.end();
}

#[test]
fn the_next_front_end_is_served_while_the_last_ones_sync_hangs() {
    let Some(hanging) = Hanging::start() else {
        return;
    };
    let mut driver = Driver::of(&hanging.disk, EVERYTHING);
    assert_eq!(driver.write(0, &pattern(4096, 1)), (OK, 1));
    turn_off(&hanging.disk, &driver);
    drop(driver);
    let mut driver = Driver::of(&hanging.disk, EVERYTHING);
    assert_eq!(driver.read(0, 4096).2, pattern(4096, 1));
    let config = driver.client.config(BlkConfig::WRITEBACK, 1).unwrap();
    assert_eq!(config, [1], "it was not turned off");
    hanging.end();
}
