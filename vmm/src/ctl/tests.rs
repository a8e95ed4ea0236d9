//! Against an API whose VM answers from a script, and against what is none.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use clap::Parser;
use nix::poll::{PollFd, PollTimeout, poll};
use tempfile::TempDir;

use super::*;
use crate::cli::{Cli, Command};
use crate::supervisor::api::Api;
use crate::supervisor::api::call::{Call, Refusal, Reply};
use crate::supervisor::api::model::Standby;

fn ctl(path: &Path, words: &[&str]) -> Result<(), Failure> {
    let api = ["outboard", "ctl", "--api", path.to_str().unwrap()];
    let words = api.into_iter().chain(words.iter().copied());
    match Cli::try_parse_from(words).unwrap().command {
        Command::Ctl(ctl) => ctl.run(),
        _ => panic!("not ctl"),
    }
}

fn disk(state: DeviceState) -> Device {
    Device {
        id: "disk0".into(),
        kind: "blk".into(),
        state,
        reason: None,
        pid: None,
        program: "outboard-blk".into(),
        version: None,
        features: None,
        queues: 1,
        standby: Standby::None,
        restarts: 0,
        last_error: None,
        last_outage_us: None,
        refused_requests: 0,
        last_refused: None,
        counters: Vec::new(),
    }
}

fn change(state: DeviceState) -> Change {
    Change::Device {
        device: "disk0".into(),
        state,
        reason: Some("it was asked for".into()),
        pid: None,
        restarts: 1,
    }
}

/// A VM with a disk that is down; what it does next is sent to the thread.
fn serve(folder: &TempDir) -> (std::sync::mpsc::Sender<DeviceState>, JoinHandle<()>) {
    let mut api = Api::listen(&folder.path().join("api")).unwrap();
    let (sender, receiver) = channel();
    let thread = thread::spawn(move || live(&mut api, &receiver));
    (sender, thread)
}

fn live(api: &mut Api, changes: &Receiver<DeviceState>) {
    api.tell(change(DeviceState::Down), Instant::now());
    loop {
        match changes.try_recv() {
            Ok(state) => api.tell(change(state), Instant::now()),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return,
        }
        let watched = api.watched();
        let mut fds: Vec<_> = watched.map(|(fd, flags)| PollFd::new(fd, flags)).collect();
        poll(&mut fds, PollTimeout::from(10u8)).unwrap();
        for (ticket, call) in api.attend(Instant::now()) {
            api.answer(ticket, reply(call), Instant::now());
        }
    }
}

fn reply(call: Call) -> Reply {
    let unknown = |id| Refusal::NoSuchDevice(id, vec!["disk0".into()]);
    match call {
        Call::Status => Reply::Status(Box::new(Vm {
            name: None,
            version: "0".into(),
            state: VmState::Running,
            reason: None,
            pid: 1,
            machine_pid: None,
            uptime_ms: 0,
            vcpus: 1,
            memory: 0,
            devices: vec![disk(DeviceState::Down)],
        })),
        Call::Restart(id) | Call::Explain(id) => Reply::Refused(unknown(id)),
        _ => Reply::Done,
    }
}

fn refused(result: Result<(), Failure>, words: &str) {
    match result {
        Err(Failure::Refused(why)) => assert!(why.contains(words), "{why}"),
        other => panic!("{other:?}"),
    }
}

fn no_vm(result: Result<(), Failure>, words: &str) {
    match result {
        Err(Failure::NoVm(why)) => assert!(why.contains(words), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_vm_is_asked_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api");
    let (vm, thread) = serve(&folder);
    for words in [
        &["status"][..],
        &["--json", "status"],
        &["shutdown"],
        &["pause"],
        &["resume"],
        &["metrics"],
    ] {
        assert_eq!(ctl(&path, words), Ok(()), "{words:?}");
    }
    let unknown = "no device `disk1`; there are: disk0";
    refused(ctl(&path, &["restart", "disk1"]), unknown);
    refused(ctl(&path, &["explain", "disk1"]), unknown);
    refused(ctl(&path, &["wait", "disk1", "running"]), unknown);
    for wrong in ["", "a b", "../vm", "a\r\nX: y"] {
        let result = ctl(&path, &["explain", wrong]);
        assert!(matches!(result, Err(Failure::Usage(_))), "{result:?}");
    }
    drop(vm);
    thread.join().unwrap();
    no_vm(ctl(&path, &["status"]), "was it started with `--api");
}

#[test]
fn a_state_is_waited_for_until_it_is_there_or_time_has_passed_or_the_vm_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api");
    let (vm, thread) = serve(&folder);
    assert_eq!(ctl(&path, &["wait", "disk0", "down"]), Ok(()));
    match ctl(&path, &["wait", "disk0", "running", "--timeout", "20ms"]) {
        Err(Failure::Late(why)) => {
            let expected = "disk0 is down (it was asked for) after 20ms, and not running";
            assert_eq!(why, expected);
        }
        other => panic!("{other:?}"),
    }
    let waiter = |state: &'static str, timeout: &'static str| {
        let path = path.clone();
        thread::spawn(move || ctl(&path, &["wait", "disk0", state, "--timeout", timeout]))
    };
    let running = waiter("running", "60s");
    vm.send(DeviceState::Restarting).unwrap();
    vm.send(DeviceState::Running).unwrap();
    assert_eq!(running.join().unwrap(), Ok(()));
    let never = waiter("waiting_for_io", "1s");
    // Whether it had found the VM by then or not.
    drop(vm);
    thread.join().unwrap();
    let result = never.join().unwrap();
    assert!(matches!(result, Err(Failure::NoVm(_))), "{result:?}");
    let early = waiter("down", "60s");
    let (vm, thread) = serve(&folder);
    assert_eq!(early.join().unwrap(), Ok(()));
    drop(vm);
    thread.join().unwrap();
}

#[test]
fn what_is_no_vm_or_has_gone_is_told_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api");
    no_vm(ctl(&path, &["status"]), "there is no socket");
    drop(UnixListener::bind(&path).unwrap());
    no_vm(ctl(&path, &["status"]), "nobody listens");
    std::fs::remove_file(&path).unwrap();
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n";
    for (said, words) in [
        ("", "has ended before it answered"),
        ("HTTP/1.1 200", "has ended before it answered"),
        (head, "has ended before it answered"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "is no VM of Outboard's"),
    ] {
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let other = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let _ = socket.read(&mut [0; 4096]).unwrap();
            socket.write_all(said.as_bytes()).unwrap();
        });
        no_vm(ctl(&path, &["status"]), words);
        other.join().unwrap();
    }
}

#[test]
fn a_socket_must_be_named() {
    let ctl = Ctl {
        api: Some(PathBuf::new()),
        json: false,
        what: What::Status,
    };
    match ctl.run() {
        Err(Failure::Usage(why)) => assert!(why.contains("add `--api PATH`"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_code_is_in_the_help() {
    let each = [
        Failure::NotRead,
        Failure::Refused(String::new()),
        Failure::Usage(String::new()),
        Failure::NoVm(String::new()),
        Failure::Late(String::new()),
    ];
    for (expected, failure) in each.into_iter().enumerate() {
        let (_, code) = failure.told();
        assert_eq!(usize::from(code), expected);
        assert!(EXIT_CODES.contains(&format!("\n  {code}  ")), "{code}");
    }
}
