//! What a back-end has begun goes on in the kernel when its process is dead: nobody
//! follows it, and the guest gets no memory back, before that is over.
//!
//! The disk keeps a request, whoever began it is killed, and the request is let go
//! long after that.
//!
//! Each was run against builds that leave something out. Where the supervisor's fence
//! is always lifted (`Fence::is_lifted`), the late write was found: the successor had
//! written the same again, the guest something newer, and read the old (`lost=2` of
//! three kills). There, and where a machine never waits for whoever was lost
//! (`Vacancy::is_settled`), the guest's processor does not wait for the late read; let
//! go nonetheless, it spoilt the guest's own run in three of seven.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outboard_e2e::eventually;
use outboard_e2e::image::Image;
use outboard_e2e::processes::Process;
use outboard_e2e::slow_disk::{Kind, SlowDisk};
use outboard_e2e::storm::killer::Blow;
use outboard_e2e::storm::{IMAGE, Programs, Shape, Storm};
use outboard_e2e::vm::Run;

use crate::storm::seed;
use crate::{Need, Test, test};

const FUSE: &[Need] = &[Need::Kvm, Need::Root, Need::Fuse];
/// How long nothing must happen.
const STILL: Duration = Duration::from_secs(1);
/// Kills of one VM.
const KILLS: u32 = 3;

pub fn tests() -> Vec<Test> {
    vec![
        test("a late write lands over nothing newer", FUSE, late_write),
        test(
            "a late read lands in no memory that was taken back",
            FUSE,
            late_read,
        ),
    ]
}

/// A storm on a slow disk.
struct Late {
    // Before the image that it is mounted over, which is the storm's.
    disk: SlowDisk,
    storm: Storm,
    last: Option<Pid>,
}

/// What has come first, with the request still kept by the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    /// The successor waited, and nothing happened at all.
    Still,
    /// The guest has written the same place again.
    Newer,
}

impl Late {
    fn begin() -> Result<Self> {
        let shape = Shape::new(KILLS, seed()).disk(",direct");
        let image = Image::new(IMAGE)?;
        let disk = SlowDisk::over(&image)?;
        let storm = Storm::begin_on(&Programs::get()?, &shape, image)?;
        let last = None;
        Ok(Self { disk, storm, last })
    }

    /// Kills the back-end while the disk keeps a write, and lets that go once it has
    /// been seen who comes first.
    fn kill(&mut self) -> Result<First> {
        let Self { disk, storm, last } = self;
        let pid = storm.killer.next(&mut storm.vm, *last)?;
        *last = Some(pid);
        disk.keep(Kind::Write);
        disk.until_kept()?;
        storm.strike(pid, Blow::KILL)?;
        // Waited for by its parent, that is: the system says that it has ended.
        let process = format!("/proc/{pid}");
        eventually("it is gone", || {
            Ok((!Path::new(&process).exists()).then_some(()))
        })?;
        let mut still = None;
        let first = eventually("somebody comes first", || {
            // It writes what it finds in flight, and then the guest something newer.
            if disk.writes_since() > 1 {
                return Ok(Some(First::Newer));
            }
            let vm = storm.status()?;
            if vm["devices"][0]["state"] != "waiting_for_io" {
                still = None;
            } else if still.get_or_insert_with(Instant::now).elapsed() > STILL {
                return Ok(Some(First::Still));
            }
            sleep(Duration::from_millis(20));
            Ok(None)
        })?;
        if first == First::Still {
            let written = disk.writes_since();
            ensure!(written == 0, "{written} writes by nobody");
            let newest = storm.killer.newest(&storm.vm);
            ensure!(newest.is_none(), "{newest:?} is there too early");
        }
        disk.let_go()?;
        storm.killer.until_it_goes_on(&mut storm.vm)?;
        Ok(first)
    }

    /// What comes first at each kill; the guest and the image agree in the end.
    fn kills(mut self) -> Result<()> {
        let firsts = (0..KILLS).map(|_| self.kill());
        let firsts = firsts.collect::<Result<Vec<_>>>()?;
        let outcome = self.storm.end()?.nothing_is_wrong();
        outcome.with_context(|| format!("{firsts:?}"))?;
        ensure!(firsts.iter().all(|it| *it == First::Still), "{firsts:?}");
        Ok(())
    }
}

fn late_write() -> Result<()> {
    Late::begin()?.kills()
}

/// Nothing of the guest's memory changes while it has bus mastering off, which it turns
/// off while the disk keeps a read, and looks at for a while.
fn late_read() -> Result<()> {
    let image = Image::new(IMAGE)?;
    let disk = SlowDisk::over(&image)?;
    let cmdline = "scenario=verify requests=500 canary=8 mode=poll cpus=1 \
                   mastering=1000000 hold_us=1000000";
    let mut vm = Run::guest(cmdline)?
        .with("--disk", format!("{},direct", image.option()))
        .start()?;
    let dead = vm.process(Process::is_backend)?;
    let machine = vm.process(Process::is_machine)?;
    vm.console_line("!")?;
    disk.keep(Kind::Read);
    disk.until_kept()?;
    kill(dead.pid, Signal::SIGKILL)?;
    // It never sleeps by itself.
    until_it_waits(machine.pid)?;
    disk.let_go()?;
    let ended = vm.wait()?.with_code(0)?;
    let result = ended.result("verify")?.passed()?;
    ensure!(result.number("pauses")? > 0, "{ended}");
    // Before the image.
    drop(disk);
    Ok(())
}

/// Waits until a machine's processor does.
fn until_it_waits(machine: Pid) -> Result<()> {
    const LOOKS: u32 = 25;
    let mut waits = 0;
    eventually("the guest's processor waits", || {
        sleep(Duration::from_millis(20));
        let tasks = fs::read_dir(format!("/proc/{machine}/task"))?;
        let is_waiting = tasks.flatten().any(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            let state = stat
                .split_once(" (vcpu")
                .and_then(|(_, it)| it.split_once(") "));
            state.is_some_and(|(_, state)| state.starts_with('S'))
        });
        waits = if is_waiting { waits + 1 } else { 0 };
        Ok((waits > LOOKS).then_some(()))
    })
}
