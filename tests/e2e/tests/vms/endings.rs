//! However a VM ends, it ends with the code that is promised, and nothing of
//! it is left.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{mkfifo, pipe, write};
use outboard_e2e::eventually;
use outboard_e2e::image::Image;
use outboard_e2e::processes::Process;
use outboard_e2e::products;
use outboard_e2e::vm::{Run, Vm};

use crate::{KVM, Need, Test, test};

const MIB: u64 = 1 << 20;
const ENV: &[Need] = &[Need::Kvm, Need::Program("env")];
const PRLIMIT: &[Need] = &[Need::Kvm, Need::Program("prlimit")];

/// Who is to be ended.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Terminated,
    Supervisor,
    Machine,
    BackEnd,
}

/// When.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Starting,
    UnderIo,
    PoweringOff,
}

pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for victim in [
        Victim::Terminated,
        Victim::Supervisor,
        Victim::Machine,
        Victim::BackEnd,
    ] {
        for moment in [Moment::Starting, Moment::UnderIo, Moment::PoweringOff] {
            let who = match victim {
                Victim::Terminated => "SIGTERM to the supervisor",
                Victim::Supervisor => "SIGKILL of the supervisor",
                Victim::Machine => "SIGKILL of the machine",
                Victim::BackEnd => "SIGKILL of the back-end",
            };
            let when = match moment {
                Moment::Starting => "while it starts",
                Moment::UnderIo => "under I/O",
                Moment::PoweringOff => "in power-off",
            };
            let name = format!("nothing is left after {who} {when}");
            tests.push(test(name, KVM, move || ended_by(victim, moment)));
        }
    }
    tests.extend([
        test("power-off and reset end with 0", KVM, orderly),
        test("a triple fault ends with 3 and says so", KVM, triple_fault),
        test(
            "a reset restarts the guest if that is asked for",
            KVM,
            restarts,
        ),
        test(
            "a back-end that cannot start ends the run with its own message",
            KVM,
            cannot_start,
        ),
        test(
            "a back-end that leaves at once is named",
            KVM,
            leaves_at_once,
        ),
        test(
            "a back-end that speaks nonsense is named and killed",
            KVM,
            nonsense,
        ),
        test(
            "what a back-end starts is ended with it",
            KVM,
            children_of_children,
        ),
        test("a kernel that is none ends with 1", KVM, no_kernel),
        test(
            "a start that fails is over at once, with its reason",
            KVM,
            cut_short,
        ),
        test(
            "a console that nobody reads does not hold up the end",
            KVM,
            unread_console,
        ),
        test(
            "messages that nobody reads do not hold up the end",
            &[],
            unread_messages,
        ),
        test(
            "a parent that ignores SIGCHLD hides no end",
            ENV,
            children_ignored,
        ),
        test(
            "a low soft limit on descriptors is raised for ours alone",
            PRLIMIT,
            soft_limit,
        ),
        test(
            "a machine that runs out of descriptors blames nobody",
            PRLIMIT,
            out_of_descriptors,
        ),
    ]);
    tests
}

/// A VM with a disk, at that moment.
/// Whose failure ends it; elsewhere that is recovered (`recovery.rs`).
fn at(moment: Moment, image: &Image) -> Result<Vm> {
    let scenario = match moment {
        // It never ends by itself, however late the signal comes.
        Moment::Starting | Moment::UnderIo => "scenario=load queues=2",
        Moment::PoweringOff => "scenario=verify requests=100",
    };
    let mut vm = Run::guest(scenario)?
        .with("--cpus", "2")
        .with("--disk", format!("{},on-failure=shutdown", image.option()))
        .start()?;
    match moment {
        Moment::Starting => {}
        Moment::UnderIo => {
            vm.console_line("progress")?;
            // Noted: who must let go of it.
            vm.processes()?;
        }
        Moment::PoweringOff => {
            vm.console_line("OUTBOARD verify result=pass")?;
        }
    }
    Ok(vm)
}

fn ended_by(victim: Victim, moment: Moment) -> Result<()> {
    let image = Image::new(16 * MIB)?;
    let mut vm = at(moment, &image)?;
    let is: fn(&Process) -> bool = match victim {
        Victim::BackEnd => Process::is_backend,
        _ => Process::is_machine,
    };
    // In power-off the process may have gone already, in order.
    let process = match moment {
        Moment::PoweringOff => vm.processes()?.into_iter().find(is),
        _ => Some(vm.process(is)?),
    };
    match (victim, process) {
        (Victim::Terminated, _) => drop(vm.signal(Signal::SIGTERM)),
        (Victim::Supervisor, _) => drop(vm.signal(Signal::SIGKILL)),
        (_, Some(process)) => drop(kill(process.pid, Signal::SIGKILL)),
        (_, None) => {}
    }
    let ended = vm.wait()?;
    match (victim, moment) {
        (Victim::Terminated, _) => drop(ended.with_code(0)?),
        (Victim::Supervisor, Moment::PoweringOff) if ended.status.success() => {}
        (Victim::Supervisor, _) => drop(ended.by(Signal::SIGKILL)?),
        // The guest's power-off may have come first.
        (Victim::Machine, Moment::PoweringOff) => drop(ended.with_one_of(&[0, 6])?),
        (Victim::Machine, _) => {
            ended
                .with_code(6)?
                .saying(&["machine process was killed by SIGKILL"])?;
        }
        (Victim::BackEnd, Moment::PoweringOff) => drop(ended.with_one_of(&[0, 5])?),
        (Victim::BackEnd, Moment::Starting) => {
            // It may have started the guest at that very moment.
            let ended = ended.with_one_of(&[1, 5])?;
            ended.saying(&["disk0: the back-end outboard-blk was killed by SIGKILL"])?;
        }
        (Victim::BackEnd, Moment::UnderIo) => {
            let ended = ended.with_code(5)?;
            ended.saying(&["disk0: the back-end outboard-blk was killed by SIGKILL"])?;
        }
    }
    vm.check_nothing_is_left()?;
    ensure!(image.others()?.is_empty(), "left: {:?}", image.others()?);
    image.wait_until_free()
}

fn orderly() -> Result<()> {
    for scenario in ["poweroff", "reset", "verify"] {
        let image = Image::new(16 * MIB)?;
        let mut vm = Run::guest(&format!("scenario={scenario} requests=100"))?
            .with("--disk", image.option())
            .start()?;
        let ended = vm.wait()?.with_code(0)?;
        ensure!(ended.messages.is_empty(), "{ended}");
        vm.check_nothing_is_left()?;
        image.wait_until_free()?;
    }
    Ok(())
}

fn triple_fault() -> Result<()> {
    let image = Image::new(MIB)?;
    let mut vm = Run::guest("scenario=triple")?
        .with("--disk", image.option())
        .start()?;
    vm.wait()?.with_code(3)?.saying(&["triple fault"])?;
    vm.check_nothing_is_left()?;
    image.wait_until_free()
}

fn restarts() -> Result<()> {
    let image = Image::new(16 * MIB)?;
    let mut vm = Run::guest("scenario=verify requests=100 exit=reset fresh=0")?
        .with("--disk", image.option())
        .with("--on-reset", "restart")
        .start()?;
    for _ in 0..3 {
        vm.console_line("OUTBOARD verify result=pass")?;
    }
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.with_code(0)?;
    vm.check_nothing_is_left()?;
    image.wait_until_free()
}

/// A back-end made of a shell script.
fn script(image: &Image, text: &str) -> Result<PathBuf> {
    let path = image.directory().join("backend");
    products::write_script(&path, text)?;
    Ok(path)
}

/// A VM whose disk is served by a script.
fn served_by(image: &Image, text: &str) -> Result<Vm> {
    let backend = script(image, text)?;
    let disk = format!("{},backend={},id=root", image.option(), backend.display());
    Run::guest("scenario=verify")?.with("--disk", disk).start()
}

fn cannot_start() -> Result<()> {
    let image = Image::new(MIB)?;
    let mut vm = served_by(&image, "echo 'no disk today' >&2; exit 9")?;
    let ended = vm.wait()?.with_code(1)?;
    let ended = ended.saying(&[
        "no disk today",
        "root: the back-end backend exited with status 9",
    ])?;
    ensure!(ended.console.is_empty(), "the guest was started: {ended}");
    vm.check_nothing_is_left()?;
    image.wait_until_free()
}

fn leaves_at_once() -> Result<()> {
    let image = Image::new(MIB)?;
    let mut vm = served_by(&image, "exit 0")?;
    vm.wait()?.with_code(1)?.saying(&[
        "root: the back-end backend exited with status 0 before the guest was started",
    ])?;
    vm.check_nothing_is_left()
}

fn nonsense() -> Result<()> {
    let image = Image::new(MIB)?;
    let nonsense = "printf 'It is not for me to say what I am.' >&3; exec sleep 1000";
    let mut vm = served_by(&image, nonsense)?;
    vm.wait()?.with_code(1)?.saying(&["root: "])?;
    vm.check_nothing_is_left()?;
    image.wait_until_free()
}

/// Also one that has left its process group.
fn children_of_children() -> Result<()> {
    let image = Image::new(MIB)?;
    let text = "sleep 1000 & setsid sleep 1000 & sleep 1000";
    let mut vm = served_by(&image, text)?;
    eventually("all of them are there", || {
        let all = vm.processes()?;
        let sleeping = all.iter().filter(|process| process.args[0] == "sleep");
        Ok((sleeping.count() == 3).then_some(()))
    })?;
    let backend = vm.process(Process::is_backend)?;
    kill(backend.pid, Signal::SIGKILL)?;
    vm.wait()?.with_code(1)?;
    vm.check_nothing_is_left()?;
    image.wait_until_free()
}

fn no_kernel() -> Result<()> {
    let image = Image::new(MIB)?;
    let text = image.directory().join("kernel");
    fs::write(&text, "This is not a kernel. ".repeat(1000))?;
    // With devices the machine is not told of all of them before it has failed.
    for devices in 0..4 {
        let mut run = Run::plain()?.with("--kernel", &text);
        for _ in 0..devices {
            run = run.with("--rng", "");
        }
        let mut vm = run.start()?;
        let ended = vm.wait()?.with_code(1)?;
        ended.saying(&["it is not a kernel"])?;
        vm.check_nothing_is_left()?;
    }
    Ok(())
}

/// One of three programs cannot be started: nothing has anything to finish, and
/// nothing is said but why.
fn cut_short() -> Result<()> {
    let image = Image::new(MIB)?;
    let deaf = script(&image, "trap '' TERM; while :; do sleep 0.1; done")?;
    let disk = format!("{},backend={}", image.option(), deaf.display());
    let run = Run::guest("scenario=verify")?
        .with("--disk", disk)
        .with("--rng", "");
    let mut vm = run.under(&["env", "TMPDIR=/nowhere"]).start()?;
    let ended = vm.wait()?.with_code(1)?;
    ensure!(ended.messages.lines().count() == 1, "{ended}");
    ended.saying(&["rng0: making a socket: the folder /nowhere/"])?;
    vm.check_nothing_is_left()?;
    image.wait_until_free()
}

/// A child that has ended is reaped at once then, unless its parent says no.
fn children_ignored() -> Result<()> {
    let words = ["env", "--ignore-signal=CHLD"];
    let image = Image::new(MIB)?;
    let run = Run::guest("scenario=verify requests=100")?.with("--disk", image.option());
    let mut vm = run.under(&words).start()?;
    let ended = vm.wait()?.with_code(0)?;
    ensure!(ended.messages.is_empty(), "{ended}");
    vm.check_nothing_is_left()?;
    let backend = script(&image, "exit 9")?;
    let disk = format!("{},backend={}", image.option(), backend.display());
    let run = Run::guest("scenario=verify")?.with("--disk", disk);
    let ended = run.under(&words).to_the_end()?.with_code(1)?;
    ended.saying(&["disk0: the back-end backend exited with status 9"])?;
    image.wait_until_free()
}

/// Of 64 queues the machine has more than 150 descriptors.
fn soft_limit() -> Result<()> {
    let image = Image::new(MIB)?;
    let found = image.directory().join("found");
    let blk = products::Products::get()?.program("outboard-blk");
    let text = format!("ulimit -Sn >{found:?}; ulimit -n 1000; exec {blk:?} \"$@\"");
    let backend = script(&image, &text)?;
    let disk = format!("{},backend={},queues=64", image.option(), backend.display());
    let run = Run::guest("scenario=verify requests=100 queues=64")?.with("--disk", disk);
    let mut vm = run.under(&["prlimit", "--nofile=150:20000"]).start()?;
    let ended = vm.wait()?.with_code(0)?;
    ended.result("verify")?.passed()?;
    ensure!(ended.messages.is_empty(), "{ended}");
    let found = fs::read_to_string(found)?;
    ensure!(found.trim() == "150", "a foreign program found {found}");
    vm.check_nothing_is_left()
}

/// With each reset by the guest its eventfds are made anew.
fn out_of_descriptors() -> Result<()> {
    let image = Image::new(MIB)?;
    let scenario = "scenario=verify requests=1000000 reinit=10000";
    let mut vm = Run::guest(scenario)?
        .with("--disk", image.option())
        .start()?;
    vm.console_line("!")?;
    let machine = vm.process(Process::is_machine)?;
    let status = Command::new("prlimit")
        .args(["--nofile=8:8", "--pid", &machine.pid.to_string()])
        .status()?;
    ensure!(status.success(), "prlimit: {status}");
    let ended = vm.wait()?.with_code(6)?.saying(&[
        "the machine process cannot go on: disk0: making eventfds for queue 0: this process has",
        "raise its limit (`ulimit -n`",
    ])?;
    ensure!(!ended.messages.contains("back-end"), "{ended}");
    vm.check_nothing_is_left()?;
    image.wait_until_free()
}

fn unread_console() -> Result<()> {
    let image = Image::new(MIB)?;
    let path = image.directory().join("fifo");
    mkfifo(&path, Mode::S_IRWXU)?;
    let open = |options: &mut fs::OpenOptions| {
        let options = options.custom_flags(nix::libc::O_NONBLOCK);
        options.open(&path)
    };
    let reader = open(fs::OpenOptions::new().read(true))?;
    let writer = open(fs::OpenOptions::new().write(true))?;
    fcntl(&reader, FcntlArg::F_SETPIPE_SZ(4096))?;
    let mut vm = Run::guest("scenario=load report=1")?
        .with("--disk", image.option())
        .with("--console", format!("file={}", path.display()))
        .start()?;
    until_full(&writer)?;
    vm.signal(Signal::SIGTERM)?;
    let ended = vm.wait()?.with_code(0)?;
    ensure!(ended.messages.is_empty(), "{ended}");
    vm.check_nothing_is_left()?;
    image.wait_until_free()
}

/// Standard error is a pipe without room.
fn unread_messages() -> Result<()> {
    let (_reader, writer) = pipe()?;
    let room = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096))?;
    write(&writer, &vec![b'x'; room.try_into()?])?;
    let words = Run::plain()?.with("--memory", "0M").words();
    let (program, arguments) = words.split_first().context("no program")?;
    let mut supervisor = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(writer)
        .spawn()?;
    let ended = eventually("the run ends", || Ok(supervisor.try_wait()?));
    if ended.is_err() {
        supervisor.kill()?;
        supervisor.wait()?;
    }
    let status = ended?;
    ensure!(status.code() == Some(2), "{status}");
    Ok(())
}

/// Waits until nothing more can be written.
pub fn until_full(writer: &impl AsFd) -> Result<()> {
    eventually("the console is full", || {
        let mut fds = [PollFd::new(writer.as_fd(), PollFlags::POLLOUT)];
        let ready = poll(&mut fds, PollTimeout::ZERO)?;
        Ok((ready == 0).then_some(()))
    })
}
