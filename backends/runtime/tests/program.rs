//! A whole back-end program: command line, sockets, signals, exit status. The
//! program under test is this one, started again with [`CHILD`] set.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use clap::Parser;
use libtest_mimic::{Arguments, Trial};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outboard_contract::client::{Ack, Client};
use outboard_contract::ring::Ring;
use outboard_contract::soon;
use outboard_protocol::launch;
use outboard_protocol::wire::Header;
use outboard_runtime::program::{Args, Capabilities, run};
use support::*;
use vhost::vhost_user::message::FrontendReq;

const CHILD: &str = "OUTBOARD_TEST_CHILD";
/// How many descriptors the program under test may have: the soft limit, and
/// after a colon the hard one if it is another.
const DESCRIPTORS: &str = "OUTBOARD_TEST_DESCRIPTORS";

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn main() -> ExitCode {
    if std::env::var_os(CHILD).is_some() {
        if let Ok(limits) = std::env::var(DESCRIPTORS) {
            let (soft, hard) = limits.split_once(':').unwrap_or((&limits, &limits));
            let [soft, hard] = [soft, hard].map(|limit| limit.parse().unwrap());
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        }
        let capabilities = Capabilities {
            kind: "loopback",
            features: &["echo"],
        };
        return run(&Cli::parse().args, capabilities, || Ok(Loopback::new(2).0));
    }
    let tests: &[(&str, fn())] = &[
        (
            "capabilities are printed whatever else is asked",
            capabilities,
        ),
        ("wrong use is refused before anything is done", wrong_use),
        ("one front-end is served after another", one_after_another),
        (
            "a signal ends it cleanly, idle or under requests",
            ends_on_a_signal,
        ),
        ("a killed program's socket is replaced", replaced_when_stale),
        (
            "an inherited connection is served to its end",
            inherited_connection,
        ),
        (
            "a front-end that leaves before it is answered has closed the connection",
            left_before_the_answer,
        ),
        (
            "an inherited listening socket is served like its own",
            inherited_listener,
        ),
        (
            "a socket passed by a service manager is served",
            passed_socket,
        ),
        (
            "an unknown launch contract is refused",
            unknown_launch_contract,
        ),
        ("a line begins with who says it", lines_have_a_speaker),
        ("what is said is chosen", chosen_words),
        (
            "a front-end that is cut off again and again fills no log",
            cut_off_again_and_again,
        ),
        (
            "a program with too few descriptors says so",
            too_few_descriptors,
        ),
        (
            "as many descriptors are used as there may be",
            soft_limit_on_descriptors,
        ),
        (
            "a front-end that cannot be accepted yet is served later",
            no_descriptor_to_accept,
        ),
        ("a hangup that is ignored ends nothing", ignored_hangup),
        (
            "the first refusal of each kind says what to do",
            refusals_are_explained,
        ),
        (
            "a call that its owner holds is named, and the next is served",
            call_held,
        ),
    ];
    // One at a time: what one lets its child inherit, no other child may.
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trials = tests.iter().map(|(name, test)| {
        Trial::test(*name, move || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// The program under test; killed when dropped.
struct Program {
    child: Child,
}

impl Program {
    fn start(arguments: &[&str]) -> Self {
        Self::with_env(arguments, &[])
    }

    fn with_env(arguments: &[&str], env: &[(&str, &str)]) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(arguments)
            .env(CHILD, "1")
            .env_remove("RUST_LOG")
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Waits for its end: its status (none when killed), and what it said.
    fn end(mut self) -> (Option<i32>, String, String) {
        wait(|| self.child.try_wait().unwrap().is_some());
        let status = self.child.wait().unwrap().code();
        let mut said = [String::new(), String::new()];
        let [out, err] = &mut said;
        let (stdout, stderr) = (self.child.stdout.take(), self.child.stderr.take());
        stdout.unwrap().read_to_string(out).unwrap();
        stderr.unwrap().read_to_string(err).unwrap();
        let [out, err] = said;
        (status, out, err)
    }

    fn ends_with(self, status: i32, text: &str) {
        let (code, _, err) = self.end();
        assert_eq!(code, Some(status), "{err}");
        assert!(err.contains(text), "{err:?} without {text:?}");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Place {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            path: folder.path().join("socket"),
            _folder: folder,
        }
    }

    fn argument(&self) -> String {
        format!("--socket-path={}", self.path.display())
    }
}

/// Lets a child inherit it; returns its number as an option.
fn inheritable(fd: &impl AsFd) -> String {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    format!("--fd={}", fd.as_fd().as_raw_fd())
}

/// Serves an echo or two over this connection.
fn echoes(mut client: Client) -> Client {
    let guest = guest();
    client.negotiate(EVENT_IDX | VERSION_1).unwrap();
    client.set_mem_table(&guest).unwrap();
    let mut ring = Ring::new(&guest, LOW, 16, true).unwrap();
    client.start_ring(0, &ring, 0).unwrap();
    still_serves(&guest, &mut ring);
    still_serves(&guest, &mut ring);
    client
}

fn connect(path: &Path) -> Client {
    Client::connect(path).unwrap()
}

fn capabilities() {
    for more in [&[][..], &["--fd=77"][..]] {
        let (status, out, _) = Program::start(&[&["--print-capabilities"], more].concat()).end();
        assert_eq!(status, Some(0));
        let parsed: serde_json::Value = serde_json::from_str(&out).unwrap();
        let expected = serde_json::json!({ "type": "loopback", "features": ["echo"] });
        assert_eq!(parsed, expected);
    }
}

fn wrong_use() {
    let place = Place::new();
    Program::start(&[]).ends_with(2, "--socket-path");
    Program::start(&[&place.argument(), "--fd=5"]).ends_with(2, "cannot be used with");
    Program::start(&["--fd=77"]).ends_with(1, "not open");
    Program::start(&["--fd=1"]).ends_with(1, "standard streams");
    let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    Program::start(&[&inheritable(&null)]).ends_with(1, "not a socket");
    Program::start(&["--socket-path=/nowhere/at/all"]).ends_with(1, "cannot listen at");
    std::fs::write(&place.path, "precious").unwrap();
    Program::start(&[&place.argument()]).ends_with(1, "not a socket");
    assert_eq!(std::fs::read(&place.path).unwrap(), b"precious");
}

fn one_after_another() {
    let place = Place::new();
    let program = Program::start(&[&place.argument()]);
    let first = echoes(connect(&place.path));
    // The second waits for the first; the third is gone before its turn.
    let second = connect(&place.path);
    drop(connect(&place.path));
    let header = Header::request(1);
    second.send(header, &[], &[]).unwrap();
    drop(first);
    assert_eq!(second.receive().unwrap().header, Header::reply_to(1));
    // One that breaks the rules is cut off, and the next is served.
    second.send(Header::reply_to(1), &[], &[]).unwrap();
    second.receive().unwrap_err();
    drop(echoes(connect(&place.path)));
    // Somebody else does not get the place.
    Program::start(&[&place.argument()]).ends_with(1, "another process serves it");
    drop(echoes(connect(&place.path)));
    program.signal(Signal::SIGTERM);
    program.ends_with(0, "cut a front-end off");
    assert!(!place.path.exists());
}

fn ends_on_a_signal() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        for connected in [false, true] {
            let place = Place::new();
            let program = Program::start(&[&place.argument()]);
            let client = echoes(connect(&place.path));
            if !connected {
                drop(client);
                program.signal(signal);
                program.ends_with(0, "");
            } else {
                program.signal(signal);
                program.ends_with(0, "");
                client.receive().unwrap_err();
            }
            assert!(!place.path.exists());
        }
    }
}

fn replaced_when_stale() {
    let place = Place::new();
    let program = Program::start(&[&place.argument()]);
    drop(echoes(connect(&place.path)));
    program.signal(Signal::SIGKILL);
    assert_eq!(program.end().0, None);
    assert!(place.path.exists());
    let program = Program::start(&[&place.argument()]);
    drop(echoes(connect(&place.path)));
    program.signal(Signal::SIGTERM);
    program.ends_with(0, "");
    assert!(!place.path.exists());
}

fn inherited_connection() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let program = Program::start(&[&inheritable(&theirs)]);
    drop(theirs);
    drop(echoes(Client::new(ours)));
    program.ends_with(0, "");

    // Cut off, it is a failure and says why.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let program = Program::start(&[&inheritable(&theirs)]);
    drop(theirs);
    let client = echoes(Client::new(ours));
    client.send(Header::reply_to(1), &[], &[]).unwrap();
    program.ends_with(1, "cut the front-end off");
}

/// The end is met by the write of an answer, not by a read.
fn left_before_the_answer() {
    for request in [FrontendReq::GET_FEATURES, FrontendReq::GET_QUEUE_NUM] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let client = Client::new(ours);
        client
            .send(Header::request(request.into()), &[], &[])
            .unwrap();
        drop(client);
        let program = Program::start(&[&inheritable(&theirs)]);
        drop(theirs);
        let (status, _, said) = program.end();
        assert_eq!((status, said.as_str()), (Some(0), ""));
    }
    // An answer that nobody has read resets the connection.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let program = Program::start(&[&inheritable(&theirs)]);
    drop(theirs);
    let client = echoes(Client::new(ours));
    let request = Header::request(FrontendReq::GET_FEATURES.into());
    client.send(request, &[], &[]).unwrap();
    let mut answer = [PollFd::new(client.connection.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut answer, soon().poll_timeout()).unwrap(), 1);
    drop(client);
    let (status, _, said) = program.end();
    assert_eq!((status, said.as_str()), (Some(0), ""));
}

fn inherited_listener() {
    let place = Place::new();
    let listener = UnixListener::bind(&place.path).unwrap();
    let program = Program::start(&[&inheritable(&listener)]);
    drop(listener);
    drop(echoes(connect(&place.path)));
    drop(echoes(connect(&place.path)));
    program.signal(Signal::SIGTERM);
    program.ends_with(0, "");
    // The path is its owner's to remove.
    assert!(place.path.exists());

    // The launch contract's has one front-end and ends with it.
    let (front, back) = launch::Handover::Listening.sockets().unwrap();
    let program = Program::start(&[&inheritable(&back)]);
    drop(back);
    drop(echoes(Client::new(front)));
    program.ends_with(0, "");
}

fn unknown_launch_contract() {
    let known = launch::OLDEST_VERSION.to_string();
    for (version, fits) in [(known.as_str(), true), ("999", false), ("", false)] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let env = [(launch::VERSION_ENV, version)];
        let program = Program::with_env(&[&inheritable(&theirs)], &env);
        drop((ours, theirs));
        if fits {
            program.ends_with(0, "");
        } else {
            program.ends_with(1, launch::VERSION_ENV);
        }
    }
}

/// The program under test as it calls itself.
fn speaker() -> String {
    let this = std::env::current_exe().unwrap();
    this.file_name().unwrap().to_str().unwrap().to_owned()
}

/// What the program says while one front-end breaks the rules and is cut off.
fn said_of_a_cut(arguments: &[&str], env: &[(&str, &str)]) -> String {
    let place = Place::new();
    let own = place.argument();
    let arguments = [&[own.as_str()], arguments].concat();
    let program = Program::with_env(&arguments, env);
    let client = connect(&place.path);
    client.send(Header::reply_to(1), &[], &[]).unwrap();
    client.receive().unwrap_err();
    drop(echoes(connect(&place.path)));
    program.signal(Signal::SIGTERM);
    let (status, _, said) = program.end();
    assert_eq!(status, Some(0), "{said}");
    said
}

fn lines_have_a_speaker() {
    let name = speaker();
    for (label, speaker) in [
        (None, name.clone()),
        (Some(""), name.clone()),
        (Some("web/disk0"), format!("{name}[web/disk0]")),
        (Some("web\nnet0: INFO"), format!("{name}[web\\nnet0: INFO]")),
    ] {
        let env: Vec<_> = label
            .map(|label| (launch::LABEL_ENV, label))
            .into_iter()
            .collect();
        let said = said_of_a_cut(&[], &env);
        let line = format!("{speaker}: WARN cut a front-end off: ");
        assert!(said.starts_with(&line), "{said:?} without {line:?}");
        assert_eq!(said.lines().count(), 1, "{said}");
        // So does the last word of one that cannot start.
        let program = Program::with_env(&["--socket-path=/nowhere/a\nb"], &env);
        let (_, _, said) = program.end();
        let line = format!("{speaker}: cannot listen at /nowhere/a\\nb: ");
        assert!(said.starts_with(&line), "{said:?} without {line:?}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

fn chosen_words() {
    let debugs = "DEBUG session ended";
    for (arguments, environment, warns, debugs_too) in [
        (&[][..], None, true, false),
        (&["--log-level=error"], None, false, false),
        (&["--log-level=debug"], None, true, true),
        (&["-v"], None, true, true),
        (&[], Some("debug"), true, true),
        (&[], Some("off"), false, false),
        (&["--log-level=warn"], Some("off"), true, false),
        (&["--log-level=off"], Some("debug"), false, false),
    ] {
        let env: Vec<_> = environment
            .map(|filters| ("RUST_LOG", filters))
            .into_iter()
            .collect();
        let said = said_of_a_cut(arguments, &env);
        let found = (said.contains("cut a front-end off"), said.contains(debugs));
        assert_eq!(found, (warns, debugs_too), "{arguments:?} {env:?}: {said}");
    }
    // Why it cannot start is said in any case.
    Program::start(&["--log-level=off"]).ends_with(2, "--socket-path");
    Program::start(&["--log-level=loud"]).ends_with(2, "possible values: off, error");
}

fn cut_off_again_and_again() {
    const TIMES: usize = 1000;
    let place = Place::new();
    let program = Program::start(&[&place.argument(), "--log-level=debug"]);
    for _ in 0..TIMES {
        // A refusal, which is answered, and what ends the session.
        let mut client = connect(&place.path);
        client.negotiate(VERSION_1).unwrap();
        refused(&client, FrontendReq::SET_VRING_NUM, 77, 8);
        client.send(Header::reply_to(1), &[], &[]).unwrap();
        client.receive().unwrap_err();
    }
    program.signal(Signal::SIGTERM);
    let (_, _, said) = program.end();
    let lines: Vec<_> = said.lines().collect();
    assert!(lines.len() <= 40, "{} lines:\n{said}", lines.len());
    let mut cuts = lines
        .iter()
        .filter(|line| line.contains("cut a front-end off"));
    let last = cuts.next_back().unwrap();
    assert!(last.ends_with("(512 times so far)"), "{last}");
}

/// What a program with these limits on descriptors says of a table of memory
/// with eight of them.
fn said_of_eight_descriptors(limits: &str) -> String {
    let place = Place::new();
    let program = Program::with_env(&[&place.argument()], &[(DESCRIPTORS, limits)]);
    let mut client = connect(&place.path);
    client.negotiate(EVENT_IDX | VERSION_1).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let header = Header::request(FrontendReq::SET_MEM_TABLE.into());
    client.send(header, &[0; 8], &[file.as_fd(); 8]).unwrap();
    client.receive().unwrap_err();
    // The next front-end finds room.
    connect(&place.path)
        .negotiate(EVENT_IDX | VERSION_1)
        .unwrap();
    program.signal(Signal::SIGTERM);
    let (_, _, said) = program.end();
    assert!(said.contains("cut a front-end off: "), "{said}");
    said
}

/// Standard ones, signals, both ends of the listening and of a session: a few
/// less than eight are left of these.
const FEW: &str = "12";

fn too_few_descriptors() {
    let said = said_of_eight_descriptors(FEW);
    assert!(!said.contains("malformed"), "{said}");
    assert!(said.contains("raise its limit (`ulimit -n`"), "{said}");
}

fn soft_limit_on_descriptors() {
    let said = said_of_eight_descriptors(&format!("{FEW}:100"));
    // The table itself is nonsense.
    assert!(said.contains("a memory table of another length"), "{said}");
}

/// Lets the program have this many descriptors from now on.
fn limit_descriptors(program: &Program, most: usize) {
    let pid = rustix::process::Pid::from_raw(program.child.id() as i32);
    let limits = rustix::process::Rlimit {
        current: Some(most as u64),
        maximum: Some(1000),
    };
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limits).unwrap();
}

/// Waits until the program says something, and reads that.
fn next_words(program: &mut Program) -> String {
    let said = program.child.stderr.as_mut().unwrap();
    wait(|| {
        let mut fds = [PollFd::new(said.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    });
    let mut words = vec![0; 4096];
    let count = said.read(&mut words).unwrap();
    words.truncate(count);
    String::from_utf8(words).unwrap()
}

fn no_descriptor_to_accept() {
    let place = Place::new();
    let mut program = Program::start(&[&place.argument()]);
    let table = format!("/proc/{}/fd", program.child.id());
    let open = || -> BTreeSet<usize> {
        let entries = std::fs::read_dir(&table).unwrap().map(Result::unwrap);
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.map(|name| name.parse().unwrap()).collect()
    };
    // A session that has only begun has one, the next number that is free.
    let client = connect(&place.path);
    client.ask(FrontendReq::GET_FEATURES, &[]).unwrap();
    let begun = open().len();
    drop(client);
    let rests = || open().len() == begun - 1;
    wait(rests);
    let free = (0..).find(|number| !open().contains(number)).unwrap();
    limit_descriptors(&program, free);
    let client = connect(&place.path);
    client.send(Header::request(1), &[], &[]).unwrap();
    let said = next_words(&mut program);
    assert!(said.contains("cannot accept a front-end for"), "{said}");
    assert!(said.contains("raise its limit (`ulimit -n`"), "{said}");
    limit_descriptors(&program, 100);
    assert_eq!(client.receive().unwrap().header, Header::reply_to(1));
    drop(client);
    drop(echoes(connect(&place.path)));
    // And while one waits, it ends when it is asked.
    wait(rests);
    limit_descriptors(&program, free);
    let _client = connect(&place.path);
    next_words(&mut program);
    program.signal(Signal::SIGTERM);
    program.ends_with(0, "");
    assert!(!place.path.exists());
}

fn ignored_hangup() {
    let place = Place::new();
    let this = std::env::current_exe().unwrap();
    let script = format!("trap '' HUP; exec {this:?} {}", place.argument());
    let program = Program {
        child: by_shell(&script),
    };
    drop(echoes(connect(&place.path)));
    program.signal(Signal::SIGHUP);
    drop(echoes(connect(&place.path)));
    program.signal(Signal::SIGTERM);
    program.ends_with(0, "");
}

fn refusals_are_explained() {
    let place = Place::new();
    let program = Program::start(&[&place.argument()]);
    let mut client = connect(&place.path);
    client.negotiate(VERSION_1).unwrap();
    for _ in 0..100 {
        refused(&client, FrontendReq::SET_VRING_NUM, 1, 512);
        refused(&client, FrontendReq::SET_VRING_BASE, 0, 65_536);
        refused(&client, FrontendReq::SET_VRING_ENABLE, 2, 1);
        // The guest can cause this one, and nobody need be answered.
        assert_eq!(client.set_config(0, &[9]).unwrap(), Ack::Refused);
        client.send(Header::request(99), &[], &[]).unwrap();
    }
    drop(client);
    program.signal(Signal::SIGTERM);
    let (_, _, said) = program.end();
    let warnings = said.lines().filter(|line| line.contains("WARN"));
    assert_eq!(warnings.count(), 5, "{said}");
    for words in [
        "SET_VRING_NUM: queue 1 with 512 entries, 256 at most: ",
        "a larger --queue-size",
        "SET_VRING_BASE: base 65536, 65535 at most",
        "SET_VRING_ENABLE: queue 2, and 2 in all, from 0 on",
        "SET_CONFIG: 1 bytes at 0: ",
        "request 99 is not known",
    ] {
        assert!(said.contains(words), "{said:?} without {words:?}");
    }
}

fn call_held() {
    let place = Place::new();
    let program = Program::start(&[&place.argument()]);
    let (mut client, guest) = (connect(&place.path), guest());
    client.negotiate(VERSION_1).unwrap();
    client.set_mem_table(&guest).unwrap();
    let mut ring = Ring::new(&guest, LOW, 16, false).unwrap();
    fcntl(&ring.call, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    client.start_ring(0, &ring, 0).unwrap();
    still_serves(&guest, &mut ring);
    let _ = ring.call.read();
    ring.call.write(u64::MAX - 1).unwrap();
    fcntl(&ring.call, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    submit(&guest, &mut ring, NOW, 1);
    wait(|| ring.used_idx().unwrap() == 2);
    drop(client);
    drop(echoes(connect(&place.path)));
    program.signal(Signal::SIGTERM);
    program.ends_with(0, "queue 0: its call eventfd held this device up");
}

/// A shell that becomes the program.
fn by_shell(script: &str) -> Child {
    Command::new("/bin/sh")
        .args(["-c", script])
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A shell becomes the program, with its own process id in `LISTEN_PID` and the
/// socket as descriptor 3: what a service manager does.
fn passed(socket: &impl AsFd, environment: &str, arguments: &str) -> Program {
    let number = inheritable(socket).replace("--fd=", "");
    let this = std::env::current_exe().unwrap();
    let script = format!("exec 3<&{number}; {environment} exec {this:?} {arguments}");
    Program {
        child: by_shell(&script),
    }
}

fn passed_socket() {
    let place = Place::new();
    let listener = UnixListener::bind(&place.path).unwrap();
    let ours = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=disk";
    let program = passed(&listener, ours, "");
    drop(echoes(connect(&place.path)));
    drop(echoes(connect(&place.path)));
    program.signal(Signal::SIGTERM);
    program.ends_with(0, "");
    assert!(place.path.exists(), "the path is its owner's to remove");
    for (environment, arguments, status, words) in [
        (ours, "--socket-path=/nowhere/s", 2, "leave one of them out"),
        (ours, "--fd=3", 2, "leave one of them out"),
        ("LISTEN_PID=$$ LISTEN_FDS=2", "", 1, "one ListenStream="),
        ("LISTEN_PID=1 LISTEN_FDS=1", "", 2, "--socket-path"),
    ] {
        passed(&listener, environment, arguments).ends_with(status, words);
    }
}
