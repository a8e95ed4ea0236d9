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
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;
use libtest_mimic::{Arguments, Trial};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outboard_contract::client::{Ack, Client};
use outboard_contract::driver::Driver;
use outboard_contract::program::{Program, by_shell, command, lent};
use outboard_contract::soon;
use outboard_line::{Heard, Line};
use outboard_protocol::kept::{CardState, DiskState, Kept};
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
            "a program ends as the process that was started does",
            halves_end_together,
        ),
        (
            "a program that was killed is followed at once",
            successors_find_nothing_served,
        ),
        (
            "the half outside has nothing of the other's",
            half_outside_is_empty,
        ),
        (
            "a program with a line is one process, and goes on as it is told",
            with_a_line,
        ),
        ("a line that is none is refused", without_a_start),
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
    // One at a time: what one closes is open until the exec of a child that another starts.
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

/// The program under test: this very one, started again.
fn with_env(arguments: &[&str], env: &[(&str, &str)]) -> Program {
    let mut child = command(std::env::current_exe().unwrap(), arguments);
    Program::run(as_child(&mut child).envs(env.iter().copied())).unwrap()
}

fn as_child(command: &mut Command) -> &mut Command {
    command.env(CHILD, "1").env_remove("RUST_LOG")
}

fn start(arguments: &[&str]) -> Program {
    with_env(arguments, &[])
}

/// With a socket as its descriptor 9, and this environment.
fn inheriting_with(socket: OwnedFd, env: &[(&str, &str)]) -> Program {
    let mut child = lent(socket, std::env::current_exe().unwrap(), &["--fd=9"]).unwrap();
    Program::run(as_child(&mut child).envs(env.iter().copied())).unwrap()
}

fn inheriting(socket: impl Into<OwnedFd>) -> Program {
    inheriting_with(socket.into(), &[])
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

    /// A program that serves here.
    fn served(&self) -> Program {
        start(&[&self.argument()])
    }

    fn connect(&self) -> Client {
        Client::connect(&self.path).unwrap()
    }

    fn echoes(&self) -> Client {
        echoes(self.connect())
    }
}

/// Its end by SIGTERM, which is a good one; what it said.
fn ended(program: Program) -> String {
    program.last_words().unwrap()
}

/// Serves an echo or two over this connection.
fn echoes(client: Client) -> Client {
    let driver = Driver::new(client, EVENT_IDX, guest());
    let mut ring = driver.ring(0, LOW, 16);
    still_serves(&driver.memory, &mut ring);
    still_serves(&driver.memory, &mut ring);
    driver.client
}

fn capabilities() {
    for more in [&[][..], &["--fd=77"][..]] {
        let mut program = start(&[&["--print-capabilities"], more].concat());
        assert_eq!(program.wait().unwrap().code(), Some(0));
        let parsed: serde_json::Value = serde_json::from_str(&program.printed()).unwrap();
        let expected = serde_json::json!({ "type": "loopback", "features": ["echo"] });
        assert_eq!(parsed, expected);
    }
}

fn wrong_use() {
    let place = Place::new();
    start(&[]).ends_with(2, "--socket-path").unwrap();
    start(&[&place.argument(), "--fd=5"])
        .ends_with(2, "cannot be used with")
        .unwrap();
    start(&["--fd=77"]).ends_with(1, "not open").unwrap();
    start(&["--fd=1"]).ends_with(1, "standard streams").unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    inheriting(null).ends_with(1, "not a socket").unwrap();
    start(&["--socket-path=/nowhere/at/all"])
        .ends_with(1, "cannot listen at")
        .unwrap();
    std::fs::write(&place.path, "precious").unwrap();
    place.served().ends_with(1, "not a socket").unwrap();
    assert_eq!(std::fs::read(&place.path).unwrap(), b"precious");
}

fn one_after_another() {
    let place = Place::new();
    let program = place.served();
    let first = place.echoes();
    // The second waits for the first; the third is gone before its turn.
    let second = place.connect();
    drop(place.connect());
    let header = Header::request(1);
    second.send(header, &[], &[]).unwrap();
    drop(first);
    assert_eq!(second.receive().unwrap().header, Header::reply_to(1));
    // One that breaks the rules is cut off, and the next is served.
    second.send(Header::reply_to(1), &[], &[]).unwrap();
    second.receive().unwrap_err();
    drop(place.echoes());
    // Somebody else does not get the place.
    place
        .served()
        .ends_with(1, "another process serves it")
        .unwrap();
    drop(place.echoes());
    let said = ended(program);
    assert!(said.contains("cut a front-end off"), "{said}");
    assert!(!place.path.exists());
}

fn ends_on_a_signal() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        for connected in [false, true] {
            let place = Place::new();
            let program = place.served();
            let client = place.echoes();
            if !connected {
                drop(client);
                program.ends_by(signal).unwrap();
            } else {
                program.ends_by(signal).unwrap();
                client.receive().unwrap_err();
            }
            assert!(!place.path.exists());
        }
    }
}

fn replaced_when_stale() {
    let place = Place::new();
    let mut program = place.served();
    drop(place.echoes());
    program.kill().unwrap();
    assert!(place.path.exists());
    let program = place.served();
    drop(place.echoes());
    ended(program);
    assert!(!place.path.exists());
}

fn inherited_connection() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let program = inheriting(theirs);
    drop(echoes(Client::new(ours)));
    program.ends_with(0, "").unwrap();

    // Cut off, it is a failure and says why.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let program = inheriting(theirs);
    let client = echoes(Client::new(ours));
    client.send(Header::reply_to(1), &[], &[]).unwrap();
    program.ends_with(1, "cut the front-end off").unwrap();
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
        let program = inheriting(theirs);
        assert_eq!(program.ends_with(0, "").unwrap(), "");
    }
    // An answer that nobody has read resets the connection.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let program = inheriting(theirs);
    let client = echoes(Client::new(ours));
    let request = Header::request(FrontendReq::GET_FEATURES.into());
    client.send(request, &[], &[]).unwrap();
    let mut answer = [PollFd::new(client.connection.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut answer, soon().poll_timeout()).unwrap(), 1);
    drop(client);
    assert_eq!(program.ends_with(0, "").unwrap(), "");
}

fn inherited_listener() {
    let place = Place::new();
    let listener = UnixListener::bind(&place.path).unwrap();
    let program = inheriting(listener);
    drop(place.echoes());
    drop(place.echoes());
    ended(program);
    // The path is its owner's to remove.
    assert!(place.path.exists());

    // The launch contract's has one front-end and ends with it.
    let (front, back) = launch::Handover::Listening.sockets().unwrap();
    let program = inheriting(back);
    drop(echoes(Client::new(front)));
    program.ends_with(0, "").unwrap();
}

fn halves_end_together() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGABRT] {
        let place = Place::new();
        let mut program = place.served();
        let client = place.echoes();
        let outside = program.outside().unwrap();
        // What is for the program is not for this one; but it ends with it, also when
        // it is stopped.
        kill(outside, Signal::SIGTERM).unwrap();
        kill(outside, Signal::SIGSTOP).unwrap();
        let status = program.end(signal).unwrap();
        // Whoever started it sees how it ended, and nothing is served any more.
        let is_well = signal == Signal::SIGTERM;
        let killed = (!is_well).then_some(signal as i32);
        assert_eq!(status.signal(), killed, "{status}");
        client.receive().unwrap_err();
        let is_there = || Path::new(&format!("/proc/{outside}")).exists();
        assert!(!is_well || !is_there(), "it has been waited for");
        wait(|| !is_there());
    }
    // Who serves does not need the other one.
    let place = Place::new();
    let program = place.served();
    let client = place.echoes();
    kill(program.outside().unwrap(), Signal::SIGKILL).unwrap();
    program.says(&["this device goes on alone"]).unwrap();
    drop(client);
    drop(place.echoes());
    ended(program);
}

/// Each is started as soon as the end of the one before has been waited for.
fn successors_find_nothing_served() {
    let place = Place::new();
    let mut program = place.served();
    for _ in 0..40 {
        drop(place.echoes());
        program.kill().unwrap();
        assert!(place.path.exists());
        program = place.served();
    }
    drop(place.echoes());
    ended(program);
    assert!(!place.path.exists());
}

/// What the descriptors of a process are, from 3 on.
fn descriptors(process: Pid) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let entries = entries.map(Result::unwrap);
    let named = entries.filter(|entry| entry.file_name().len() > 1 || entry.file_name() > *"2");
    let files = named.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    files.collect()
}

/// Lets a child inherit it; its number.
fn inheritable(fd: &impl AsFd) -> String {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    fd.as_fd().as_raw_fd().to_string()
}

fn half_outside_is_empty() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (stranger, inherited) = UnixStream::pair().unwrap();
    inheritable(&inherited);
    let program = inheriting(theirs);
    drop(inherited);
    let client = echoes(Client::new(ours));
    let (outside, serving) = (
        descriptors(program.outside().unwrap()),
        descriptors(program.pid()),
    );
    let is_shared = |file: &&PathBuf| !file.to_string_lossy().starts_with("anon_inode:");
    let shared: Vec<_> = outside.intersection(&serving).filter(is_shared).collect();
    assert!(shared.is_empty(), "{shared:?} of {outside:?}");
    // Its end of the line, and what only looks like a file.
    let files = outside.iter().filter(is_shared);
    assert_eq!(files.count(), 1, "{outside:?}");
    drop((client, stranger));
    program.ends_with(0, "").unwrap();
}

/// A program with a line, and a connection.
fn with_line(kept: Kept) -> (Program, Line, UnixStream) {
    let mut line = Line::new(None, None).unwrap();
    let theirs = line.begin(kept).unwrap();
    let (front, back) = UnixStream::pair().unwrap();
    let number = inheritable(&theirs);
    let env = [(launch::VERSION_ENV, "1"), (launch::LINE_ENV, &number)];
    let program = inheriting_with(back.into(), &env);
    (program, line, front)
}

fn disk(writeback: bool) -> Kept {
    Kept::Disk(DiskState {
        writeback,
        sync_failed: false,
    })
}

fn with_a_line() {
    let (program, mut line, front) = with_line(disk(false));
    let heard = line_says(&mut line);
    let Heard::Ready { counters, .. } = heard else {
        panic!("{heard:?}");
    };
    assert_eq!(program.outside(), None, "it is one process");
    let client = echoes(Client::new(front));
    assert_eq!(client.config(1, 1).unwrap(), [0]);
    assert_eq!(client.set_config(1, &[1]).unwrap(), Ack::Done);
    let heard = line.attend();
    let is_told = matches!(&heard[..], [Heard::Keeps(kept)] if *kept == disk(true));
    assert!(is_told, "{heard:?}");
    client.stop_ring(0).unwrap();
    let counts = outboard_protocol::counters::read(counters.unwrap(), 2).unwrap();
    assert_eq!((counts[0].counts.chains, counts[1].counts.chains), (2, 0));
    // Alone it goes on.
    line.end();
    assert_eq!(client.set_config(1, &[0]).unwrap(), Ack::Done);
    assert_eq!(client.config(1, 1).unwrap(), [0]);
    drop(client);
    let words = "the supervisor has closed the line: this device goes on alone";
    program.ends_with(0, words).unwrap();

    let (program, mut line, _front) = with_line(Kept::Card(CardState::default()));
    assert!(matches!(line_says(&mut line), Heard::HungUp));
    let words = "cannot go on as the back-end before did";
    program.ends_with(1, words).unwrap();
}

/// The next thing that the back-end says.
fn line_says(line: &mut Line) -> Heard {
    let mut heard = Vec::new();
    wait(|| {
        heard.extend(line.attend());
        !heard.is_empty()
    });
    assert_eq!(heard.len(), 1, "{heard:?}");
    heard.remove(0)
}

fn without_a_start() {
    let place = Place::new();
    let refused = |number: &str, words: &str| {
        let env = [(launch::LINE_ENV, number)];
        let program = with_env(&[&place.argument()], &env);
        program.ends_with(1, words).unwrap();
        assert!(!place.path.exists());
    };
    refused("x", "no descriptor");
    refused("77", "not open");
    refused("1", "standard");
    let (_, theirs) = launch::Channel::pair().unwrap();
    refused(&inheritable(&theirs), "closed the line before `start`");
}

fn unknown_launch_contract() {
    let known = launch::OLDEST_VERSION.to_string();
    for (version, fits) in [(known.as_str(), true), ("999", false), ("", false)] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let env = [(launch::VERSION_ENV, version)];
        let program = inheriting_with(theirs.into(), &env);
        drop(ours);
        if fits {
            program.ends_with(0, "").unwrap();
        } else {
            program.ends_with(1, launch::VERSION_ENV).unwrap();
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
    let program = with_env(&arguments, env);
    let client = place.connect();
    client.send(Header::reply_to(1), &[], &[]).unwrap();
    client.receive().unwrap_err();
    drop(place.echoes());
    ended(program)
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
        let program = with_env(&["--socket-path=/nowhere/a\nb"], &env);
        let said = program.ends_with(1, "").unwrap();
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
    start(&["--log-level=off"])
        .ends_with(2, "--socket-path")
        .unwrap();
    start(&["--log-level=loud"])
        .ends_with(2, "possible values: off, error")
        .unwrap();
}

fn cut_off_again_and_again() {
    const TIMES: usize = 1000;
    let place = Place::new();
    let program = start(&[&place.argument(), "--log-level=debug"]);
    for _ in 0..TIMES {
        // A refusal, which is answered, and what ends the session.
        let mut client = place.connect();
        client.negotiate(VERSION_1).unwrap();
        refused(&client, FrontendReq::SET_VRING_NUM, 77, 8);
        client.send(Header::reply_to(1), &[], &[]).unwrap();
        client.receive().unwrap_err();
    }
    let said = ended(program);
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
    let program = with_env(&[&place.argument()], &[(DESCRIPTORS, limits)]);
    let mut client = place.connect();
    client.negotiate(EVENT_IDX | VERSION_1).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let header = Header::request(FrontendReq::SET_MEM_TABLE.into());
    client.send(header, &[0; 8], &[file.as_fd(); 8]).unwrap();
    client.receive().unwrap_err();
    // The next front-end finds room.
    place.connect().negotiate(EVENT_IDX | VERSION_1).unwrap();
    let said = ended(program);
    assert!(said.contains("cut a front-end off: "), "{said}");
    said
}

/// Standard ones, signals, both ends of the listening and of a session, three of each
/// queue: a few less than eight are left of these.
const FEW: &str = "18";

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

fn no_descriptor_to_accept() {
    let place = Place::new();
    let program = place.served();
    drop(place.echoes());
    let table = format!("/proc/{}/fd", program.pid());
    let open = || -> BTreeSet<usize> {
        let entries = std::fs::read_dir(&table).unwrap().map(Result::unwrap);
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.map(|name| name.parse().unwrap()).collect()
    };
    // A session that has only begun has one, the next number that is free.
    let client = place.connect();
    client.ask(FrontendReq::GET_FEATURES, &[]).unwrap();
    let begun = open().len();
    drop(client);
    let rests = || open().len() == begun - 1;
    wait(rests);
    let free = (0..).find(|number| !open().contains(number)).unwrap();
    program.limit_descriptors(free as u64).unwrap();
    let client = place.connect();
    client.send(Header::request(1), &[], &[]).unwrap();
    let words = [
        "cannot accept a front-end for",
        "raise its limit (`ulimit -n`",
    ];
    program.says(&words).unwrap();
    program.limit_descriptors(100).unwrap();
    assert_eq!(client.receive().unwrap().header, Header::reply_to(1));
    drop(client);
    drop(place.echoes());
    // And while one waits, it ends when it is asked.
    wait(rests);
    program.limit_descriptors(free as u64).unwrap();
    let before = program.said().lines().count();
    let _client = place.connect();
    wait(|| program.said().lines().count() > before);
    ended(program);
    assert!(!place.path.exists());
}

fn ignored_hangup() {
    let place = Place::new();
    let this = std::env::current_exe().unwrap();
    let own = place.argument();
    let mut child = by_shell("trap '' HUP; exec \"$@\"", this, &[&own]);
    let program = Program::run(as_child(&mut child)).unwrap();
    drop(place.echoes());
    program.signal(Signal::SIGHUP).unwrap();
    drop(place.echoes());
    ended(program);
}

fn refusals_are_explained() {
    let place = Place::new();
    let program = place.served();
    let mut client = place.connect();
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
    let said = ended(program);
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
    let program = place.served();
    let driver = Driver::new(place.connect(), 0, guest());
    let (guest, mut ring) = (&driver.memory, driver.fresh_ring(LOW, 16));
    fcntl(&ring.call, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    driver.client.start_ring(0, &ring, 0).unwrap();
    still_serves(guest, &mut ring);
    let _ = ring.call.read();
    ring.call.write(u64::MAX - 1).unwrap();
    fcntl(&ring.call, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    submit(guest, &mut ring, NOW, 1);
    wait(|| ring.used_idx().unwrap() == 2);
    drop(driver);
    drop(place.echoes());
    let said = ended(program);
    assert!(
        said.contains("queue 0: its call eventfd held this device up"),
        "{said}"
    );
}

/// A shell becomes the program, with its own process id in `LISTEN_PID` and the
/// socket as descriptor 3: what a service manager does.
fn passed(socket: &UnixListener, environment: &str, arguments: &[&str]) -> Program {
    let this = std::env::current_exe().unwrap();
    let script = format!("exec 3<&0 </dev/null; {environment} exec \"$@\"");
    let mut child = by_shell(&script, this, arguments);
    child.stdin(OwnedFd::from(socket.try_clone().unwrap()));
    Program::run(as_child(&mut child)).unwrap()
}

fn passed_socket() {
    let place = Place::new();
    let listener = UnixListener::bind(&place.path).unwrap();
    let ours = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=disk";
    let program = passed(&listener, ours, &[]);
    drop(place.echoes());
    drop(place.echoes());
    ended(program);
    assert!(place.path.exists(), "the path is its owner's to remove");
    for (environment, arguments, status, words) in [
        (
            ours,
            &["--socket-path=/nowhere/s"][..],
            2,
            "leave one of them out",
        ),
        (ours, &["--fd=3"], 2, "leave one of them out"),
        ("LISTEN_PID=$$ LISTEN_FDS=2", &[], 1, "one ListenStream="),
        ("LISTEN_PID=1 LISTEN_FDS=1", &[], 2, "--socket-path"),
    ] {
        passed(&listener, environment, arguments)
            .ends_with(status, words)
            .unwrap();
    }
}
