//! Wrong use ends with a message that names the thing and says what to do,
//! before anything is started.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use outboard_contract::client::Client;
use outboard_contract::program::Program;
use outboard_contract::scripted::{Fault, Scripted};
use outboard_e2e::eventually;
use outboard_e2e::image::Image;
use outboard_e2e::products::{self, Products};
use outboard_e2e::vm::{Run, Vm};
use vhost::vhost_user::message::FrontendReq;

use crate::disks::{listener, storage_daemon};
use crate::{KVM, Need, Test, test};

const MIB: u64 = 1 << 20;
const ROOT: &[Need] = &[Need::Kvm, Need::Root, Need::Program("unshare")];

const DAEMON: &[Need] = &[Need::Kvm, Need::Program("qemu-storage-daemon")];

const PRLIMIT: &[Need] = &[Need::Kvm, Need::Program("prlimit")];

const NO_HUGE_PAGES: &[Need] = &[Need::Kvm, Need::NoHugePages];

/// A wrong option, its value, and what is to be said.
type Wrong = (&'static str, &'static str, &'static str);

/// Wrong by themselves: status 2, with or without a KVM.
const USAGE: &[Wrong] = &[
    ("--memory", "0M", "give a multiple of 2M, 16M at least"),
    ("--memory", "1M", "give a multiple of 2M, 16M at least"),
    ("--memory", "512", "write it as 512M or 4G"),
    ("--memory", "lots", "write it as 512M or 4G"),
    ("--cpus", "0", "--cpus 0: give 1 to 32"),
    ("--cpus", "1000", "--cpus 1000: give 1 to 32"),
    ("--cpus", "two", "'two' for '--cpus <N>'"),
    ("--doorbell", "bell", "expected `mmio` or `pio`"),
    (
        "--kick-path",
        "bell",
        "expected one of `kvm`, `exit`, `worker`",
    ),
    ("--kick-path", "kmv", "did you mean `kvm`?"),
    ("--disk", "path=a,read-only", "did you mean `readonly`?"),
    ("--disk", "path=a,num-queues=2", "did you mean `queues`?"),
    ("--disk", "pth=a", "did you mean `path`?"),
    ("--net", "ifname=t0", "did you mean `tap`?"),
    ("--rng", "max_bytes=1", "did you mean `max-bytes`?"),
    ("--device", "chardev=s", "did you mean `socket`?"),
    ("--disk", "path=a,ring=kvm", "unknown key `ring`"),
    ("--console", "tty", "give stdio, file=PATH or null"),
    ("--on-reset", "panic", "expected `exit` or `restart`"),
    ("--disk", "path=a,speed=9", "unknown key `speed`"),
    ("--disk", "readonly", "give `path=FILE`"),
    ("--disk", "path=a,id=x y", "letters, digits"),
    ("--disk", "path=a,queues=0", "queues 0: give 1 to 64"),
    ("--disk", "path=a,queue-size=7", "power of two"),
    ("--disk", "socket=a,readonly", "`readonly` and `socket`"),
    ("--disk", "path=a,wait=1s", "`wait` is for a `socket=PATH`"),
    ("--rng", "speed=9", "unknown key `speed`"),
    ("--rng", "wait=1s", "`wait` is for a `socket=PATH`"),
    ("--rng", "period=0", "period 0: give 1 to 4294967295"),
    ("--rng", "socket=a,max-bytes=1", "`max-bytes` and `socket`"),
    (
        "--device",
        "socket=a,queues=1,config-size=0",
        "add `virtio-id=N`",
    ),
    (
        "--config",
        "/nowhere/vm.toml",
        "/nowhere/vm.toml cannot be read",
    ),
    ("--speed", "9", "unexpected argument '--speed'"),
];

/// About things that are not there, or not as they should be: status 1.
const THINGS: &[Wrong] = &[
    (
        "--initrd",
        "/nowhere/initrd",
        "the initrd /nowhere/initrd cannot be opened",
    ),
    ("--initrd", "/", "the initrd / is a directory"),
    ("--memory", "1000000G", "more than the host has available"),
    (
        "--disk",
        "path=/nowhere/disk",
        "the image /nowhere/disk does not exist; `truncate",
    ),
    ("--disk", "path=/", "the image / is a directory"),
    (
        "--disk",
        "path=/dev/null",
        "neither a file nor a block device",
    ),
    (
        "--disk",
        "path=/,backend=/nowhere/b",
        "the program /nowhere/b cannot be opened",
    ),
    ("--disk", "path=/,backend=/etc/passwd", "is not executable"),
    ("--rng", "backend=/etc/passwd", "is not executable"),
    (
        "--rng",
        "socket=/nowhere/s,wait=50ms",
        "rng0: no back-end listens at /nowhere/s",
    ),
    (
        "--disk",
        "socket=/nowhere/s,wait=50ms",
        "no back-end listens at /nowhere/s",
    ),
    (
        "--disk",
        "socket=/etc/passwd",
        "/etc/passwd is not a socket",
    ),
];

pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for (option, value, words) in USAGE {
        let name = format!("wrong use {option} {value}");
        tests.push(test(name, &[], move || {
            refused(Run::guest("")?.with(option, *value), 2, words)
        }));
    }
    for (option, value, words) in THINGS {
        let name = format!("not there {option} {value}");
        tests.push(test(name, KVM, move || {
            refused(Run::guest("")?.with(option, *value), 1, words)
        }));
    }
    tests.extend([
        test("a kernel must be given and be one", KVM, kernels),
        test("ids are given once", &[], ids),
        test("what only one can have is given once", &[], given_twice),
        test("a console is no disk", KVM, console_on_a_disk),
        test("what would be waited for is refused", KVM, fifos),
        test("an error in a file has its line", &[], error_in_a_file),
        test(
            "a listener that does not accept is waited for and named",
            KVM,
            a_busy_listener,
        ),
        test(
            "a back-end that serves another front-end is named and waited for",
            KVM,
            two_at_ours,
        ),
        test(
            "a qemu-storage-daemon that serves another is named and waited for",
            DAEMON,
            two_at_qemu_s,
        ),
        test("a back-end that does not fit says why", KVM, unfit),
        test("a back-end of another kind is told", KVM, another_kind),
        test(
            "queues that were asked for are there or refused",
            KVM,
            queues,
        ),
        test("a back-end that is none is named", KVM, no_back_end),
        test("an initrd larger than memory is refused", KVM, large_initrd),
        test(
            "more memory than the control group allows is refused",
            ROOT,
            control_group,
        ),
        test("too few huge pages are said", NO_HUGE_PAGES, || {
            let run = Run::guest("")?.switch("--hugepages");
            refused(run, 1, "0 free huge pages of 2 MiB; as root, `echo 256 >")
        }),
        test(
            "too low a hard limit on descriptors is said at the start",
            PRLIMIT,
            few_descriptors,
        ),
        test(
            "a limit on the size of files is said and kills nobody",
            PRLIMIT,
            || {
                let run = Run::guest("")?.under(&["prlimit", "--fsize=1048576"]);
                refused(run, 1, "guest memory: File too large (os error 27)")
            },
        ),
        test("no /dev/kvm is said", ROOT, no_kvm),
        test("no permission for /dev/kvm is said", ROOT, no_permission),
    ]);
    tests
}

/// Runs it, expects status and words, and that nothing was started.
pub fn refused(run: Run, code: i32, words: &str) -> Result<()> {
    let mut vm: Vm = run.start()?;
    let ended = vm.wait()?.with_code(code)?.saying(&[words])?;
    ensure!(ended.console.is_empty(), "the guest was started: {ended}");
    for line in ended.messages.lines() {
        cause_then_advice(line)?;
    }
    vm.check_nothing_is_left()
}

/// What was attempted, on what: why it failed; what to do about it.
fn cause_then_advice(line: &str) -> Result<()> {
    // As the standard library writes it, or as nix does: `EPERM: …`.
    let name = line.split(' ').find(|word| {
        let name = word.strip_suffix(':').unwrap_or_default();
        name.len() > 3 && name.starts_with('E') && name.bytes().all(|b| b.is_ascii_uppercase())
    });
    let (before, after) = match (line.split_once(" (os error "), name) {
        (Some((before, after)), _) => (before, after.split_once(')').map(|(_, after)| after)),
        (None, Some(name)) => (line.split(name).next().unwrap_or_default(), None),
        (None, None) => return Ok(()),
    };
    ensure!(
        !before.contains([';', '`']),
        "advice before the cause: {line}"
    );
    let last = after.is_none_or(|after| after.is_empty() || after.starts_with("; "));
    ensure!(last, "something between the cause and the advice: {line}");
    Ok(())
}

fn kernels() -> Result<()> {
    let image = Image::new(MIB)?;
    let empty = image.directory().join("empty");
    fs::write(&empty, "")?;
    let kernel = |path: &str| Ok::<_, anyhow::Error>(Run::plain()?.with("--kernel", path));
    refused(Run::plain()?, 2, "add `--kernel FILE`")?;
    refused(
        kernel("/nowhere/k")?,
        1,
        "the kernel /nowhere/k cannot be opened",
    )?;
    refused(kernel("/")?, 1, "the kernel / is a directory")?;
    refused(kernel(&empty.display().to_string())?, 1, "is empty")?;
    let broken = image.directory().join("broken");
    let path = broken.display().to_string();
    fs::write(&broken, "a text\n")?;
    let words = format!("the kernel {path}: it is not a kernel");
    refused(kernel(&path)?, 1, &words)?;
    refused(
        kernel(&path)?,
        1,
        "give a bzImage (vmlinuz) or an ELF vmlinux",
    )?;
    let whole = fs::read(Products::get()?.guest("guest-pvh"))?;
    for length in [20, 100, 3000] {
        fs::write(&broken, whole.get(..length).context("a short guest")?)?;
        let words = format!("the kernel {path} (an ELF file): it is truncated");
        refused(kernel(&path)?, 1, &words)?;
    }
    let whole = fs::read(Products::get()?.guest("guest.bzimage"))?;
    fs::write(&broken, whole.get(..whole.len() / 2).context("a guest")?)?;
    let words = format!("the kernel {path} (a bzImage): it is truncated");
    refused(kernel(&path)?, 1, &words)
}

fn large_initrd() -> Result<()> {
    let initrd = Image::new(20 * MIB)?;
    let run = Run::guest("")?
        .with("--memory", "16M")
        .with("--initrd", initrd.path());
    refused(
        run,
        1,
        "does not fit into 16777216 bytes of memory; give more",
    )
}

/// In a group of the test's own with 64 MiB, by whichever version of control
/// groups counts memory here.
fn control_group() -> Result<()> {
    let script = "
        name=outboard-test-$$
        if [ -e /sys/fs/cgroup/memory ]; then
            group=/sys/fs/cgroup/memory$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)/$name
            limit=memory.limit_in_bytes
        else
            group=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/$name
            limit=memory.max
        fi
        mkdir $group && echo 64M >$group/$limit || { echo 'outboard-test: no group' >&2; exit 77; }
        sh -c 'echo $$ >'$group'/cgroup.procs && exec \"$@\"' sh \"$@\"
        status=$?
        rmdir $group
        exit $status";
    let words = ["sh", "-c", script, "sh"];
    let run = |memory: &str| {
        let run = Run::guest("scenario=poweroff")?.with("--memory", memory);
        Ok::<_, anyhow::Error>(run.under(&words))
    };
    let ended = run("128M")?.to_the_end()?;
    if ended.status.code() == Some(77) {
        bail!("no control group of one's own can be made here: {ended}");
    }
    let ended = ended.with_code(1)?;
    ended.saying(&[
        "--memory 128M is more than the control group",
        "give less, or raise its limit",
    ])?;
    run("32M")?.to_the_end()?.with_code(0)?;
    Ok(())
}

/// Who listens and speaks nonsense, another language, or an old one.
fn no_back_end() -> Result<()> {
    let features = FrontendReq::GET_FEATURES;
    let http = b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
    let good = 1 << 32 | 1 << 9;
    for (script, words) in [
        (
            Scripted::new(good, 1, vec![]).on(features, Fault::Raw(http)),
            "GET_FEATURES: the peer sent a malformed message",
        ),
        (
            Scripted::new(good, 1, vec![]).on(features, Fault::Close),
            "closed its connection at GET_FEATURES",
        ),
        (
            Scripted::new(good, 1, vec![]).on(features, Fault::Payload(vec![0; 4])),
            "GET_FEATURES",
        ),
        // Of virtio 0.9; without configuration, as a source of entropy is.
        (Scripted::new(0, 1, vec![]), "offers no VIRTIO_F_VERSION_1"),
        (
            Scripted::new(good, 1, vec![]).protocol(1),
            "it serves another kind of device",
        ),
        (
            Scripted::new(good, 1, vec![]).plain(),
            "it serves another kind of device",
        ),
    ] {
        let image = Image::new(MIB)?;
        let socket = image.directory().join("socket");
        let running = script.listen(&socket);
        let run = Run::guest("")?.with("--disk", format!("socket={},queues=1", socket.display()));
        refused(run.clone(), 1, words)?;
        drop(running);
    }
    Ok(())
}

fn ids() -> Result<()> {
    let run = Run::guest("")?
        .with("--disk", "path=a,id=root")
        .with("--disk", "path=b,id=root");
    refused(run, 2, "two devices have the id `root`")
}

/// By whatever name, and before anything is looked at: neither tap nor socket
/// is there.
fn given_twice() -> Result<()> {
    let image = Image::new(MIB)?;
    let place = |name: &str| image.directory().join(name).display().to_string();
    std::os::unix::fs::symlink(image.directory(), place("again"))?;
    for (option, one, other, words) in [
        (
            "--net",
            "tap=t0".into(),
            "tap=t0".into(),
            "tap t0 is given twice: net0 and net1; give each card a tap of its own",
        ),
        (
            "--net",
            "peer=p,listen".into(),
            "peer=p,listen".into(),
            "the socket p is given twice: net0 and net1; a peer connects to one card",
        ),
        (
            "--disk",
            format!("socket={}", place("s")),
            format!("socket={}", place("again/s")),
            "/s is given twice: disk0 and disk1, there as ",
        ),
    ] {
        let run = Run::guest("")?.with(option, one).with(option, other);
        refused(run, 2, words)?;
    }
    Ok(())
}

fn console_on_a_disk() -> Result<()> {
    let image = Image::new(MIB)?;
    let run = Run::guest("")?
        .with("--disk", image.option())
        .with("--console", format!("file={}", image.path().display()));
    refused(run, 1, "the console would be written to the image of disk0")
}

/// To open a FIFO waits for who is at its other end: nobody is.
fn fifos() -> Result<()> {
    let image = Image::new(MIB)?;
    let fifo = image.directory().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU)?;
    let path = fifo.display();
    for (option, value, words) in [
        (
            "--console",
            format!("file={path}"),
            "it is a FIFO that nobody reads: start its reader first (`cat ",
        ),
        ("--kernel", format!("{path}"), "is not a file; give a file"),
        ("--initrd", format!("{path}"), "is not a file; give a file"),
        (
            "--disk",
            format!("path={path}"),
            "neither a file nor a block device",
        ),
        (
            "--disk",
            format!("path=a,backend={path}"),
            "is not a program",
        ),
        ("--rng", format!("backend={path}"), "is not a program"),
        ("--disk", format!("socket={path}"), "is not a socket"),
        ("--net", format!("peer={path}"), "is not a socket"),
        ("--net", format!("peer={path},listen"), "is not a socket"),
    ] {
        let run = match option {
            "--kernel" => Run::plain()?,
            _ => Run::guest("")?,
        };
        refused(run.with(option, value), 1, words)?;
    }
    let socket = image.directory().join("socket");
    let _listener = UnixListener::bind(&socket)?;
    let console = format!("file={}", socket.display());
    let run = Run::guest("")?.with("--console", console);
    refused(run, 1, "it is a socket: give a file, a FIFO or a terminal")
}

fn error_in_a_file() -> Result<()> {
    let image = Image::new(MIB)?;
    let file = image.directory().join("vm.toml");
    let lines = "kernel = \"k\"\n\n\n\n[[disk]]\npath = \"d\"\nspeed = 9\n";
    fs::write(&file, lines)?;
    let run = Run::plain()?.with("--config", &file);
    refused(run, 2, "vm.toml:7:1: unknown field `speed`")?;
    fs::write(&file, lines.replace("speed = 9", "read-only = true"))?;
    for words in ["vm.toml:7:1: unknown field", "did you mean `readonly`?"] {
        refused(Run::plain()?.with("--config", &file), 2, words)?;
    }
    for (line, words) in [
        ("queues = \"two\"", "vm.toml:7:10: "),
        (
            "queues = 99",
            "vm.toml:5: --disk disk0: queues 99: give 1 to 64",
        ),
        ("id = \"a b\"", "vm.toml: id `a b`"),
        ("[net]", "vm.toml:7:1: "),
        ("[net]", "write its name in double brackets"),
        ("=", "vm.toml:7:1: "),
    ] {
        fs::write(
            &file,
            format!("kernel = \"k\"\n\n\n\n[[disk]]\npath = \"d\"\n{line}\n"),
        )?;
        refused(Run::plain()?.with("--config", &file), 2, words)?;
    }
    fs::write(&file, "kernel = \"k\"\n\n\n\n\n\ncpus = 1000\n")?;
    let run = Run::plain()?.with("--config", &file);
    refused(run, 2, "vm.toml:7: --cpus 1000: give 1 to 32")?;
    fs::write(&file, "kernel = \"k\"\n\n\n\n\n\nmemory = 512\n")?;
    let run = Run::plain()?.with("--config", &file);
    refused(run, 2, "vm.toml:7:10: `512` is not a size; write it as")
}

fn a_busy_listener() -> Result<()> {
    let image = Image::new(MIB)?;
    let socket = image.directory().join("socket");
    // Somebody listens and never answers.
    let _listener = UnixListener::bind(&socket)?;
    for (option, more) in [
        ("--disk", ""),
        ("--net", ",wait=50ms"),
        ("--rng", ",wait=50ms"),
        ("--device", ",virtio-id=4,queues=1,config-size=0,wait=50ms"),
    ] {
        let value = format!("socket={}{more}", socket.display());
        let within = if more.is_empty() { "2s" } else { "1s" };
        let words = format!(
            "0: somebody listens at {} and did not answer within {within}; it may be serving",
            socket.display()
        );
        refused(Run::guest("")?.with(option, value), 1, &words)?;
    }
    Ok(())
}

/// One front-end is served, and another comes: it is told so, and served when
/// the first has gone, if it waits.
fn another_front_end(listener: Program, image: &Image, socket: &Path) -> Result<()> {
    let mut first = Client::connect(socket)?;
    first.negotiate(1 << 32)?;
    let run = |wait: &str| {
        let value = format!("socket={},queues=1,wait={wait}", socket.display());
        Ok::<_, anyhow::Error>(Run::guest("scenario=identify")?.with("--disk", value))
    };
    refused(run("10ms")?, 1, "it may be serving another front-end")?;
    let waiting = |vm: &Vm| {
        let words = "disk0: waiting for the back-end at ";
        eventually("the wait is mentioned", || {
            Ok(vm.messages().contains(words).then_some(()))
        })
    };
    let mut vm = run("forever")?.start()?;
    waiting(&vm)?;
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.with_code(0)?;
    vm.check_nothing_is_left()?;
    let mut vm = run("forever")?.start()?;
    waiting(&vm)?;
    drop(first);
    let ended = vm.wait()?.with_code(0)?;
    ended.result("identify")?.passed()?;
    let times = ended.messages.matches("waiting for the back-end").count();
    ensure!(times == 1, "said {times} times: {ended}");
    drop(listener);
    image.wait_until_free()
}

fn two_at_ours() -> Result<()> {
    let image = Image::new(MIB)?;
    let socket = image.directory().join("blk.sock");
    another_front_end(listener(&image, &socket)?, &image, &socket)
}

fn two_at_qemu_s() -> Result<()> {
    let image = Image::new(MIB)?;
    let socket = image.directory().join("blk.sock");
    let daemon = storage_daemon(&image, &socket)?;
    another_front_end(daemon, &image, &socket)
}

fn unfit() -> Result<()> {
    let image = Image::new(MIB)?;
    let socket = image.directory().join("blk.sock");
    let _listener = listener(&image, &socket)?;
    let at = |option: &str, more: &str| {
        let value = format!("socket={},{more}", socket.display());
        Ok::<_, anyhow::Error>(Run::guest("scenario=identify")?.with(option, value))
    };
    refused(at("--disk", "queues=4")?, 1, "offers 1 queue, 4 were asked")?;
    // A length that is refused, and one that is not.
    let device = "virtio-id=2,queues=1,config-size=";
    let short = image.directory().join("short.sock");
    let _short = Scripted::new(1 << 32, 1, vec![]).listen(&short);
    let value = format!("socket={},{device}600", short.display());
    let run = Run::guest("scenario=identify")?.with("--device", value);
    let words = "reading 600 bytes of configuration (give config-size= the length";
    refused(run, 1, words)?;
    let run = at("--device", &format!("{device}60"))?;
    run.to_the_end()?
        .with_code(0)?
        .result("identify")?
        .passed()?;
    Ok(())
}

/// Each back-end at the option for another kind of device.
fn another_kind() -> Result<()> {
    let image = Image::new(MIB)?;
    let place = |name: &str| image.directory().join(name);
    let at = |option: &str, socket: &Path| {
        let value = format!("socket={},wait=30s", socket.display());
        Ok::<_, anyhow::Error>(Run::guest("scenario=identify")?.with(option, value))
    };
    let disk = place("blk.sock");
    let _listener = listener(&image, &disk)?;
    let words =
        "net0: the back-end cannot be used: it offers features that a network card has only";
    refused(at("--net", &disk)?, 1, words)?;
    refused(
        at("--net", &disk)?,
        1,
        "perhaps a disk; name another socket",
    )?;
    refused(at("--rng", &disk)?, 1, "a source of entropy has none")?;
    // An address, merged buffers, a status, a control queue and several pairs.
    let card = [5, 15, 16, 17, 18, 22, 32]
        .iter()
        .fold(0, |sum, bit| sum | 1 << bit);
    let script = Scripted::new(card, 9, vec![0; 60]);
    let _card = script.listen(&place("net.sock"));
    let words = "it offers features that no disk has";
    refused(at("--disk", &place("net.sock"))?, 1, words)?;
    let rng = Scripted::new(1 << 32, 1, vec![]);
    let _rng = rng.listen(&place("rng.sock"));
    let words = "it offers no feature of a network card";
    refused(at("--net", &place("rng.sock"))?, 1, words)?;
    // And where it belongs.
    let ended = at("--disk", &disk)?.to_the_end()?.with_code(0)?;
    ended.result("identify")?.passed()?;
    Ok(())
}

/// A number that somebody asked for is given or refused, of a disk's queues as
/// of a card's pairs; one that nobody asked for becomes what there is.
fn queues() -> Result<()> {
    let image = Image::new(MIB)?;
    let place = |name: &str| image.directory().join(name);
    let disk = place("blk.sock");
    let _listener = listener(&image, &disk)?;
    let run = |option: &str, socket: &Path, more: &str| {
        let value = format!("socket={},wait=30s{more}", socket.display());
        let run = Run::guest("scenario=identify")?.with("--cpus", "4");
        Ok::<_, anyhow::Error>(run.with(option, value))
    };
    let words = "the back-end offers 1 queue, 2 were asked: use queues=1";
    refused(run("--disk", &disk, ",queues=2")?, 1, words)?;
    let ended = run("--disk", &disk, "")?.to_the_end()?.with_code(0)?;
    ended.result("identify")?.passed()?;
    ensure!(!ended.messages.contains("asked"), "{ended}");
    let card = [5, 15, 16, 17, 22, 32]
        .iter()
        .fold(0, |sum, bit| sum | 1 << bit);
    let config = [&[2, 0, 0, 0, 0, 1, 1, 0][..], &[2, 0, 0, 0]].concat();
    let script = Scripted::new(card, 5, config);
    let _card = script.listen(&place("net.sock"));
    let words = "the back-end offers 2 pairs of queues, 4 were asked: use queues=2";
    refused(run("--net", &place("net.sock"), ",queues=4")?, 1, words)
}

fn few_descriptors() -> Result<()> {
    let image = Image::new(MIB)?;
    let backend = image.directory().join("never-started");
    products::write_script(&backend, "echo started >&2")?;
    for (more, words) in [
        ("", "the back-end of disk0 needs up to 341 descriptors"),
        (
            &format!(",backend={}", backend.display()),
            "the machine process needs up to 233 descriptors",
        ),
    ] {
        let disk = format!("{},queues=64{more}", image.option());
        let run = Run::guest("")?.with("--disk", disk);
        let run = run.under(&["prlimit", "--nofile=150:150"]);
        refused(run.clone(), 1, words)?;
        refused(run.clone(), 1, "the hard limit is 150 (`ulimit -Hn`)")?;
        let said = run.to_the_end()?.messages;
        ensure!(said.contains("give fewer queues"), "{said}");
        ensure!(!said.contains("started"), "{said}");
    }
    Ok(())
}

fn no_kvm() -> Result<()> {
    let script = "mount -t tmpfs none /dev && exec \"$@\"";
    let words = ["unshare", "--mount", "sh", "-c", script, "sh"];
    refused(Run::guest("")?.under(&words), 1, "there is no /dev/kvm")
}

/// The program may lie where only root can reach it; so it is started from a
/// copy.
fn no_permission() -> Result<()> {
    let directory = tempfile::tempdir_in("/tmp")?;
    let words = Run::guest("")?.words();
    let original = words.first().context("a program")?;
    let program = directory.path().join("outboard");
    let mode: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(directory.path(), mode)?;
    let script = format!(
        "chmod 600 /dev/kvm && exec setpriv --reuid=65534 --clear-groups {program:?} run --kernel /etc/passwd"
    );
    let script = format!(
        "cp {original:?} {program:?} && mount -t tmpfs none /mnt && cp -a /dev/kvm /mnt/kvm && mount --bind /mnt/kvm /dev/kvm && {script}"
    );
    let run = Run::plain()?.under(&["unshare", "--mount", "sh", "-c", &script, "sh"]);
    refused(run, 1, "no permission to use /dev/kvm")
}
