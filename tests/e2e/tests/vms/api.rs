//! The control API of a VM that runs: by curl, by `outboard ctl`, by whoever means it
//! no good, and by whom it is none of his business.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use outboard_contract::program::command;
use outboard_e2e::eventually;
use outboard_e2e::image::Image;
use outboard_e2e::products::Products;
use outboard_e2e::vm::{Run, Vm};
use serde_json::{Value, json};

use crate::{KVM, Need, Test, test};

const MIB: u64 = 1 << 20;
const CURL: &[Need] = &[Need::Kvm, Need::Program("curl")];
const LIMITS: &[Need] = &[Need::Kvm, Need::Program("prlimit")];
const OTHERS: &[Need] = &[
    Need::Kvm,
    Need::Root,
    Need::Program("curl"),
    Need::Program("setpriv"),
];

pub fn tests() -> Vec<Test> {
    vec![
        test("a vm tells how it is", CURL, status),
        test("a vm is ended by its api", KVM, shutdown),
        test("a vm is paused and resumed by its api", KVM, pause),
        test("a back-end is replaced by its api under load", KVM, restart),
        test(
            "a vm whose disk fails is paused, and its guest sees no error",
            LIMITS,
            io_error,
        ),
        test("the api outlives a guest's reset", KVM, reset),
        test("wrong requests harm nothing", KVM, wrong),
        test("a thousand clients harm nothing", KVM, crowd),
        test("nobody else controls a vm", OTHERS, others),
        test("where the api cannot listen is told", KVM, cannot_listen),
        test(
            "the readme's examples of control work when pasted",
            CURL,
            readme,
        ),
    ]
}

/// A VM with a control API and a disk.
struct Served {
    image: Image,
    vm: Vm,
}

impl Served {
    fn start(cmdline: &str, more: impl FnOnce(Run) -> Run) -> Result<Self> {
        let image = Image::new(16 * MIB)?;
        let run = Run::guest(cmdline)?
            .with("--name", "web")
            .with("--disk", image.option())
            .with("--api", socket(&image));
        let vm = more(run).start()?;
        Ok(Self { image, vm })
    }

    fn socket(&self) -> PathBuf {
        socket(&self.image)
    }

    /// Runs `outboard ctl`.
    fn ctl(&self, words: &[&str]) -> Result<Output> {
        ctl(&self.socket(), words)
    }

    /// The JSON that `outboard ctl` prints.
    fn json(&self, words: &[&str]) -> Result<Value> {
        let text = said(self.ctl(&[&["--json"], words].concat())?)?;
        serde_json::from_str(&text).context(text)
    }

    /// Sends this, and returns all that comes back.
    fn send(&self, bytes: &[u8]) -> Result<String> {
        let mut socket = UnixStream::connect(self.socket())?;
        // It may be cut off in the middle.
        let _ = socket.write_all(bytes);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    fn ends(mut self) -> Result<()> {
        self.vm.wait()?.with_code(0)?;
        ensure!(!self.socket().exists(), "the socket is left");
        self.vm.check_nothing_is_left()
    }
}

fn socket(image: &Image) -> PathBuf {
    image.directory().join("api")
}

pub fn ctl(socket: &Path, words: &[&str]) -> Result<Output> {
    let program = Products::get()?.program("outboard");
    let mut ctl = command(program, &["ctl"]);
    Ok(ctl.args(words).env("OUTBOARD_API", socket).output()?)
}

/// What a program printed that did what it was told.
pub fn said(output: Output) -> Result<String> {
    let said = String::from_utf8(output.stdout.clone())?;
    ensure!(output.status.success(), "{output:?}");
    Ok(said)
}

/// What a program complained of that ended with this code.
pub fn complained(output: Output, code: i32) -> Result<String> {
    ensure!(output.status.code() == Some(code), "{output:?}");
    Ok(String::from_utf8(output.stderr)?)
}

fn curl(socket: &Path, path: &str) -> Result<Value> {
    let url = format!("http://vm{path}");
    let words = ["-sS".as_ref(), "--unix-socket".as_ref(), socket.as_os_str()];
    let mut curl = command("curl", &words);
    let text = said(curl.arg(url).output()?)?;
    serde_json::from_str(&text).context(text)
}

fn status() -> Result<()> {
    let mut served = Served::start("scenario=load", |run| run.with("--rng", "id=noise"))?;
    served.vm.console_line("progress")?;
    let vm = curl(&served.socket(), "/api/v1/vm")?;
    ensure!(vm["name"] == "web" && vm["state"] == "running", "{vm}");
    ensure!(vm["pid"] == served.vm.pid().as_raw(), "{vm}");
    ensure!(vm["memory"] == 512 * MIB && vm["vcpus"] == 1, "{vm}");
    let [disk, noise] = [&vm["devices"][0], &vm["devices"][1]];
    let machine = served.vm.process(|process| process.is_machine())?;
    ensure!(vm["machine_pid"] == machine.pid.as_raw(), "{vm}");
    let pids: Vec<_> = served
        .vm
        .processes()?
        .iter()
        .map(|it| json!(it.pid.as_raw()))
        .collect();
    for (device, id, kind, program) in [
        (disk, "disk0", "blk", "outboard-blk"),
        (noise, "noise", "rng", "outboard-rng"),
    ] {
        ensure!(device["id"] == id && device["kind"] == kind, "{device}");
        ensure!(
            device["state"] == "running" && device["program"] == program,
            "{device}"
        );
        ensure!(pids.contains(&device["pid"]), "{device}");
    }
    ensure!(disk["counters"][0]["requests"].as_u64() > Some(0), "{disk}");
    let alone = curl(&served.socket(), "/api/v1/devices/noise")?;
    ensure!(alone["pid"] == noise["pid"], "{alone}");
    ensure!(served.json(&["status"])?["pid"] == vm["pid"]);
    let table = said(served.ctl(&["status"])?)?;
    let lines: Vec<Vec<_>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    ensure!(
        table.starts_with("VM web is running: 1 CPUs, 512 MiB, process "),
        "{table}"
    );
    ensure!(lines[2][..3] == ["DEVICE", "KIND", "STATE"], "{table}");
    ensure!(lines[3][..3] == ["disk0", "blk", "running"], "{table}");
    let metrics = said(served.ctl(&["metrics"])?)?;
    let count = "\noutboard_queue_requests_total{device=\"disk0\",queue=\"0\"} ";
    ensure!(metrics.contains(count), "{metrics}");
    let explained = served.json(&["explain", "disk0"])?;
    ensure!(explained["recovery"]["exact"].is_boolean(), "{explained}");
    let unknown = complained(served.ctl(&["explain", "disk1"])?, 1)?;
    ensure!(
        unknown.contains("no device `disk1`; there are: disk0, noise"),
        "{unknown}"
    );
    said(served.ctl(&["shutdown"])?)?;
    served.ends()
}

/// Who reads the events hears all of it, to the end.
fn shutdown() -> Result<()> {
    let mut served = Served::start("scenario=idle", |run| run)?;
    let waited = said(served.ctl(&["wait", "disk0", "running", "--timeout", "5m"])?)?;
    ensure!(waited == "disk0 is running\n", "{waited}");
    served.vm.console_line("OUTBOARD idle")?;
    let path = served.socket();
    let events = thread::spawn(move || ctl(&path, &["--json", "events"]));
    let late = complained(
        served.ctl(&["wait", "disk0", "down", "--timeout", "50ms"])?,
        4,
    )?;
    ensure!(
        late.contains("disk0 is running after 50ms, and not down"),
        "{late}"
    );
    // The reader is there: it has a line of the VM.
    said(served.ctl(&["shutdown"])?)?;
    served.vm.wait()?.with_code(0)?;
    let Ok(events) = events.join() else {
        bail!("the reader has panicked");
    };
    let output = events?;
    // It may have come too late to hear anything at all.
    if output.status.success() {
        let text = said(output)?;
        let lines: Vec<Value> = text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()?;
        let of_vm = |line: &&Value| line["event"] == "vm";
        let last = lines.iter().rfind(of_vm).context("no line")?;
        ensure!(last["state"] == "ending", "{text}");
        ensure!(last["reason"] == "somebody asked for the end", "{text}");
    } else {
        complained(output, 3)?;
    }
    let gone = complained(served.ctl(&["status"])?, 3)?;
    ensure!(gone.contains("there is no socket"), "{gone}");
    served.vm.check_nothing_is_left()
}

/// While it is paused its guest does nothing, as the counters of its disk show.
fn pause() -> Result<()> {
    let mut served = Served::start("scenario=load", |run| run)?;
    served.vm.console_line("progress")?;
    let not = complained(served.ctl(&["resume"])?, 1)?;
    ensure!(not.contains("the VM is not paused"), "{not}");
    said(served.ctl(&["pause"])?)?;
    let requests = || {
        let vm = served.json(&["status"])?;
        ensure!(vm["state"] == "paused", "{vm}");
        ensure!(vm["reason"] == "an operator has asked for it", "{vm}");
        let counters = vm["devices"][0]["counters"][0]["requests"].as_u64();
        counters.context("no counter")
    };
    // What it was given before, the disk has finished.
    let most = requests()?;
    for _ in 0..20 {
        ensure!(requests()? == most);
    }
    said(served.ctl(&["resume"])?)?;
    eventually("the disk works", || {
        let vm = served.json(&["status"])?;
        ensure!(vm["state"] == "running", "{vm}");
        let now = vm["devices"][0]["counters"][0]["requests"].as_u64();
        Ok((now > Some(most)).then_some(()))
    })?;
    said(served.ctl(&["pause"])?)?;
    said(served.ctl(&["shutdown"])?)?;
    served.ends()
}

/// The guest goes on, on the successor of a successor.
fn restart() -> Result<()> {
    let mut served = Served::start("scenario=load", |run| run)?;
    served.vm.console_line("progress")?;
    let mut pid = served.json(&["status"])?["devices"][0]["pid"].clone();
    for restarts in 1..=3 {
        said(served.ctl(&["restart", "disk0"])?)?;
        said(served.ctl(&["wait", "disk0", "running", "--timeout", "5m"])?)?;
        let vm = served.json(&["status"])?;
        let disk = &vm["devices"][0];
        ensure!(disk["restarts"] == restarts && disk["pid"] != pid, "{vm}");
        ensure!(disk["last_outage_us"].as_u64() > Some(0), "{vm}");
        ensure!(disk["last_error"].is_null(), "{vm}");
        ensure!(disk["version"] == vm["version"], "{vm}");
        let features = disk["features"].as_str().context("no features")?;
        // VIRTIO_F_VERSION_1, which every driver of ours acknowledges.
        let bits = u64::from_str_radix(features.trim_start_matches("0x"), 16)?;
        ensure!(bits & 1 << 32 != 0, "{vm}");
        pid = disk["pid"].clone();
        served.vm.console_line("progress")?;
    }
    let explained = served.json(&["explain", "disk0"])?;
    ensure!(explained["recovery"]["exact"] == true, "{explained}");
    said(served.ctl(&["shutdown"])?)?;
    served.ends()
}

/// The back-end may write so many bytes of its image, from now on.
fn limit(served: &mut Served, bytes: &str) -> Result<()> {
    let disk = served.vm.process(|process| process.is_backend())?;
    let (pid, size) = (disk.pid.to_string(), format!("--fsize={bytes}:unlimited"));
    let prlimit = command("prlimit", &["--pid", &pid, &size]).output()?;
    ensure!(prlimit.status.success(), "{prlimit:?}");
    Ok(())
}

fn io_error() -> Result<()> {
    let image = Image::new(16 * MIB)?;
    let disk = format!("{},on-io-error=pause", image.option());
    let run = Run::guest("scenario=verify requests=20000")?
        .with("--disk", disk)
        .with("--api", socket(&image));
    let vm = run.start()?;
    let mut served = Served { image, vm };
    limit(&mut served, "1048576")?;
    let is_paused = |served: &Served| {
        eventually("the VM is paused", || {
            let vm = served.json(&["status"])?;
            ensure!(vm["state"] != "ending", "{vm}");
            Ok((vm["state"] == "paused").then_some(()))
        })
    };
    // It is paused again as long as nobody sees to the cause.
    for _ in 0..3 {
        is_paused(&served)?;
        // Which may be told that it is paused again already.
        served.ctl(&["resume"])?;
    }
    is_paused(&served)?;
    // What it holds would end in its error if an operator's pause took the rings.
    let why = complained(served.ctl(&["pause"])?, 1)?;
    for words in ["disk0: it holds back a request", "stays paused as it was"] {
        ensure!(why.contains(words), "{words}: {why}");
    }
    let reason = served.json(&["status"])?["reason"].take();
    ensure!(reason == "a request to disk0 has failed", "{reason}");
    let told = served.vm.messages();
    for words in ["disk0: cannot write ", "File too large", "the VM is paused"] {
        ensure!(told.contains(words), "{words}: {told}");
    }
    limit(&mut served, "unlimited")?;
    said(served.ctl(&["resume"])?)?;
    served.vm.console_line("OUTBOARD verify result=pass")?;
    served.ends()
}

fn reset() -> Result<()> {
    let cmdline = "scenario=verify requests=100 exit=reset fresh=0";
    let mut served = Served::start(cmdline, |run| run.with("--on-reset", "restart"))?;
    served.vm.console_line("OUTBOARD verify result=pass")?;
    let before = served.json(&["status"])?;
    let mut stream = UnixStream::connect(served.socket())?;
    stream.write_all(b"GET /api/v1/events HTTP/1.1\r\n\r\n")?;
    for _ in 0..3 {
        served.vm.console_line("OUTBOARD verify result=pass")?;
    }
    let after = served.json(&["status"])?;
    ensure!(before["pid"] == after["pid"], "{after}");
    ensure!(before["uptime_ms"].as_u64() < after["uptime_ms"].as_u64());
    // Of at least 4 runs, and of at most 2.
    let requests = |vm: &Value| vm["devices"][0]["counters"][0]["requests"].as_u64();
    ensure!(requests(&after) > requests(&before).map(|before| before + 100));
    served.vm.signal(Signal::SIGTERM)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    for words in [
        "\"state\":\"ending\",\"reason\":\"the guest asked for a reset\"",
        "\"event\":\"vm\",\"state\":\"starting\"",
        "\"device\":\"disk0\",\"state\":\"starting\"",
        "\"device\":\"disk0\",\"state\":\"running\"",
    ] {
        ensure!(text.contains(words), "{words} is not in {text}");
    }
    served.ends()
}

fn wrong() -> Result<()> {
    let mut served = Served::start("scenario=load", |run| run)?;
    served.vm.console_line("progress")?;
    let put = "PUT /api/v1/vm/shutdown HTTP/1.1\r\nContent-Length:";
    let large = format!("{put} 1000000\r\n\r\n{}", "x".repeat(1_000_000));
    let last = "\r\nConnection: close\r\n\r\n";
    for (request, status, words) in [
        (
            format!("{put} 5{last}{{\"a\"}}"),
            "400 Bad",
            "line 1 column",
        ),
        (large, "413 Content", "at most 65536 bytes"),
        (
            format!("POST /api/v1/vm HTTP/1.1{last}"),
            "405 Method",
            "takes GET, not POST",
        ),
        (
            format!("GET /api/v1/devices/x HTTP/1.1{last}"),
            "404 Not",
            "there are: disk0",
        ),
        (
            format!("GET /{} HTTP/1.1{last}", "x".repeat(9000)),
            "431 ",
            "at most 8192",
        ),
        ("\0\0\0\0".into(), "400 Bad", "no HTTP/1.1 request"),
        (
            "GET /api/v1/vm HTTP/1.1\r\n".into(),
            "408 ",
            "not complete within 10 s",
        ),
    ] {
        let answer = served.send(request.as_bytes())?;
        let start = format!("HTTP/1.1 {status}");
        ensure!(
            answer.starts_with(&start) && answer.contains(words),
            "{answer}"
        );
    }
    // A reader that never reads.
    let mut reader = UnixStream::connect(served.socket())?;
    reader.write_all(b"GET /api/v1/events HTTP/1.1\r\n\r\n")?;
    served.vm.console_line("progress")?;
    ensure!(served.json(&["status"])?["state"] == "running");
    said(served.ctl(&["shutdown"])?)?;
    served.ends()
}

fn crowd() -> Result<()> {
    let mut served = Served::start("scenario=load", |run| run)?;
    served.vm.console_line("progress")?;
    let mut clients = Vec::new();
    for _ in 0..1000 {
        let mut client = UnixStream::connect(served.socket())?;
        client.write_all(b"GET /api/v1/vm HTTP/1.1\r\nConnection: close\r\n\r\n")?;
        clients.push(client);
    }
    for mut client in clients {
        let mut answer = String::new();
        client.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    served.vm.console_line("progress")?;
    said(served.ctl(&["shutdown"])?)?;
    served.ends()
}

fn others() -> Result<()> {
    let mut served = Served::start("scenario=idle", |run| run)?;
    served.vm.console_line("OUTBOARD idle")?;
    let path = served.socket();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    mode(served.image.directory(), 0o755)?;
    let found = fs::metadata(&path)?.permissions().mode() & 0o7777;
    ensure!(found == 0o600, "{found:o}");
    let other = [
        "--reuid=65534",
        "--clear-groups",
        "curl",
        "-sS",
        "--unix-socket",
    ];
    let ask = || {
        let mut curl = command("setpriv", &other);
        curl.arg(&path).arg("http://vm/api/v1/vm").output()
    };
    let refused = complained(ask()?, 7)?;
    ensure!(refused.contains("connect to"), "{refused}");
    // Even where its file would let him.
    mode(&path, 0o666)?;
    let text = said(ask()?)?;
    ensure!(
        text.contains("only root and the user who runs this VM (uid 0)"),
        "{text}"
    );
    ensure!(served.json(&["status"])?["state"] == "running");
    served.vm.signal(Signal::SIGTERM)?;
    served.ends()
}

fn cannot_listen() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let place = folder.path().join("api");
    fs::write(&place, "precious")?;
    let ended = Run::guest("scenario=idle")?
        .with("--api", &place)
        .to_the_end()?
        .with_code(1)?;
    ended.saying(&["--api: cannot listen at ", "is not a socket; remove it"])?;
    ensure!(fs::read(&place)? == b"precious");
    Ok(())
}

/// All of it, as one script, with the bundled guest for a kernel; the last command once
/// the others have done what they do.
fn readme() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = fs::read_to_string(path)?;
    let (_, section) = readme.split_once("\n### Control\n").context("no section")?;
    let block = section.split("```").nth(1).context("no block")?;
    let commands = block.strip_prefix("sh\n").context("no commands")?;
    ensure!(commands.matches("curl ").count() >= 5, "{commands}");
    let image = Image::new(MIB)?;
    let place = |name: &str| image.directory().join(name);
    fs::copy(Products::get()?.guest("guest-pvh"), place("vmlinuz"))?;
    fs::write(place("root.img"), vec![0; MIB as usize])?;
    let script = |text: &str| Run::script(&format!("set -e; cd {:?}\n{text}\n", image.directory()));
    let (all, last) = commands
        .trim_end()
        .rsplit_once('\n')
        .context("one command")?;
    let mut vm = script(&format!("{all}\nwait"))?.start()?;
    let mut awaited = vec!["# EOF", "\"event\":\"device\""];
    while !awaited.is_empty() {
        let line = vm.console_line("")?;
        awaited.retain(|words| !line.contains(words));
    }
    script(last)?.to_the_end()?.with_code(0)?;
    let ended = vm.wait()?.with_code(0)?;
    for words in [
        "disk0 is running",
        "\"state\":\"running\"",
        "DEVICE",
        "outboard_device_up{",
        "\"openapi\":\"3.1.0\"",
        "\"event\":\"vm\",\"state\":\"ending\"",
    ] {
        ensure!(ended.console.contains(words), "no {words}: {ended}");
    }
    eventually("the socket is gone", || {
        Ok((!place("vm.sock").exists()).then_some(()))
    })
}
