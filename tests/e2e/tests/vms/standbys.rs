//! A second process waits beside a back-end (`standby=1`), and serves when that is
//! gone: nothing is lost by it, and nothing comes twice.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use outboard_e2e::eventually;
use outboard_e2e::image::Image;
use outboard_e2e::processes::{self, Process};
use outboard_e2e::storm::killer::{Aim, Blow};
use outboard_e2e::storm::{self, Outcome, Pace, Programs, Shape, Storm};
use outboard_e2e::vm::{Run, Vm};
use serde_json::Value;

use crate::api::{ctl, said};
use crate::storm::seed;
use crate::{KVM, Test, test};

pub fn tests() -> Vec<Test> {
    vec![
        test("a standby serves once the first is killed", KVM, serves),
        test("nothing is wrong after kills with a standby", KVM, || {
            let mut shape = Shape::new(26, seed()).disk(",standby=1");
            shape.aim = Aim::Any;
            killed(&shape)
        }),
        test(
            "nothing is wrong after kills with a standby between resets",
            KVM,
            || {
                let mut shape = Shape::new(16, seed()).disk(",standby=1");
                shape = shape.guest("reset_ms=60 overlap=1");
                shape.aim = Aim::Serving;
                killed(&shape)
            },
        ),
        test(
            "a standby knows that the guest has turned the cache off",
            KVM,
            || {
                let mut shape = Shape::new(8, seed()).disk(",standby=1").guest("wce=off");
                (shape.aim, shape.pace) = (Aim::Serving, Pace::OneByOne);
                killed(&shape)
            },
        ),
        test("ctl restart goes over to the standby", KVM, restarts),
        test("a standby that is killed is replaced", KVM, is_replaced),
        test("a standby is killed with the first", KVM, both_are_killed),
        test("a guest's reset ends a standby too", KVM, reset),
        test("a standby serves entropy", KVM, entropy),
        test("nothing is wrong after hangs with a standby", KVM, || {
            let mut shape = Shape::new(5, seed()).disk(",standby=1,hang-timeout=300ms");
            shape.blow = Blow::Signal(Signal::SIGSTOP);
            (shape.aim, shape.pace) = (Aim::Serving, Pace::OneByOne);
            killed(&shape)
        }),
        test(
            "a standby that hangs is followed by another",
            KVM,
            both_hang,
        ),
        test("a standby waits while its VM is paused", KVM, paused),
        test(
            "a standby does not keep a VM that is to end",
            KVM,
            shut_down,
        ),
    ]
}

fn killed(shape: &Shape) -> Result<()> {
    for shape in shape.vms() {
        let outcome = storm::run(&Programs::get()?, &shape)?.nothing_is_wrong()?;
        ensure!(outcome.kills.len() == shape.kills as usize);
    }
    Ok(())
}

/// A storm that the test itself directs.
fn begun() -> Result<Storm> {
    let shape = Shape::new(0, seed()).disk(",standby=1");
    Storm::begin(&Programs::get()?, &shape)
}

/// The one that serves, and the one that waits, once that is ready: on a busy machine one
/// may be lost before, and another be started.
fn both(storm: &Storm) -> Result<(Pid, Pid)> {
    storm.until_a_standby_is_ready()?;
    let found = eventually("two back-ends are there", || {
        Ok(<[Pid; 2]>::try_from(storm.killer.all(&storm.vm)).ok())
    });
    let [first, second] = found.with_context(|| storm.vm.messages())?;
    Ok((first, second))
}

/// The first serves until it is gone, and in order if it was told to end; then the second
/// does, and the guest goes on.
fn is_followed_by(storm: &mut Storm, first: Pid, second: Pid) -> Result<()> {
    eventually("the first is gone", || {
        let all = storm.killer.all(&storm.vm);
        Ok((!all.contains(&first)).then_some(()))
    })?;
    let (serves, _) = both(storm)?;
    ensure!(serves == second, "{serves} serves: {}", storm.vm.messages());
    storm.killer.note();
    storm.killer.until_it_goes_on(&mut storm.vm)
}

fn ends(mut storm: Storm) -> Result<Outcome> {
    storm.end()?.nothing_is_wrong()
}

/// No third is started in the place of the first.
fn serves() -> Result<()> {
    let mut storm = begun()?;
    for _ in 0..4 {
        let (first, second) = both(&storm)?;
        storm.killer.strike(first, Signal::SIGKILL)?;
        is_followed_by(&mut storm, first, second)?;
    }
    ends(storm)?;
    Ok(())
}

/// The status says that it waits, and then that the device is served by it, which goes on
/// to count where the one before ended.
fn restarts() -> Result<()> {
    let mut storm = begun()?;
    let mut last = Some(0);
    for _ in 0..4 {
        let (first, second) = both(&storm)?;
        let status = storm.status()?;
        ensure!(status["devices"][0]["pid"] == first.as_raw(), "{status}");
        let requests = status["devices"][0]["counters"][0]["requests"].as_u64();
        ensure!(requests > last, "{last:?} before: {status}");
        last = requests;
        storm.strike(first, Blow::Restart)?;
        is_followed_by(&mut storm, first, second)?;
    }
    let explained = storm.ctl(&["explain", "disk0"])?;
    ensure!(explained.contains("standby=1"), "{explained}");
    ends(storm)?;
    Ok(())
}

fn is_replaced() -> Result<()> {
    let mut storm = begun()?;
    let (first, mut second) = both(&storm)?;
    for _ in 0..4 {
        storm.killer.strike(second, Signal::SIGKILL)?;
        storm.killer.until_it_goes_on(&mut storm.vm)?;
        // Its death disturbs nobody, so it may come later than that.
        second = eventually("another waits", || {
            let all = storm.killer.all(&storm.vm);
            ensure!(all.first() == Some(&first), "{all:?}, not {first}");
            Ok(all.get(1).copied().filter(|next| *next != second))
        })?;
    }
    let outcome = ends(storm)?;
    let messages = &outcome.ended.messages;
    ensure!(!messages.contains("the guest waits"), "{messages}");
    Ok(())
}

fn both_are_killed() -> Result<()> {
    let mut storm = begun()?;
    for round in 0..6 {
        let (first, second) = both(&storm)?;
        // Either is the first to be seen.
        let mut order = [first, second];
        order.rotate_left(round % 2);
        for pid in order {
            storm.killer.strike(pid, Signal::SIGKILL)?;
        }
        storm.killer.until_it_goes_on(&mut storm.vm)?;
    }
    ends(storm)?;
    Ok(())
}

fn both_hang() -> Result<()> {
    let shape = Shape::new(0, seed()).disk(",standby=1,hang-timeout=300ms");
    let mut storm = Storm::begin(&Programs::get()?, &shape)?;
    let (first, second) = both(&storm)?;
    storm.killer.strike(second, Signal::SIGSTOP)?;
    storm.killer.strike(first, Signal::SIGSTOP)?;
    storm.killer.until_it_goes_on(&mut storm.vm)?;
    let (serves, waits) = both(&storm)?;
    ensure!(serves != first && serves != second, "{serves} serves");
    ensure!(waits != first && waits != second, "{waits} waits");
    ends(storm)?;
    Ok(())
}

/// What fails pauses the VM all the same: the standby serves once that is resumed.
fn paused() -> Result<()> {
    let shape = Shape::new(0, seed()).disk(",standby=1,on-failure=pause");
    let mut storm = Storm::begin(&Programs::get()?, &shape)?;
    for _ in 0..2 {
        let (first, second) = both(&storm)?;
        storm.killer.strike(first, Signal::SIGKILL)?;
        eventually("the VM is paused", || {
            let status = storm.status()?;
            Ok((status["state"] == "paused").then_some(()))
        })?;
        ensure!(storm.killer.all(&storm.vm) == [second]);
        storm.ctl(&["resume"])?;
        storm.killer.until_it_goes_on(&mut storm.vm)?;
        let (serves, _) = both(&storm)?;
        ensure!(serves == second, "{serves} serves: {}", storm.vm.messages());
    }
    ends(storm)?;
    Ok(())
}

fn shut_down() -> Result<()> {
    let image = Image::new(16 << 20)?;
    let mut vm = Run::guest("scenario=load")?
        .with(
            "--disk",
            format!("{},standby=1,on-failure=shutdown", image.option()),
        )
        .start()?;
    vm.console_line("progress")?;
    let pair = eventually("two back-ends are there", || {
        Ok(<[Pid; 2]>::try_from(back_ends(&vm)).ok())
    })?;
    nix::sys::signal::kill(pair[0], Signal::SIGKILL)?;
    vm.wait()?.with_code(5)?.saying(&["disk0", "SIGKILL"])?;
    vm.check_nothing_is_left()?;
    image.wait_until_free()
}

/// The oldest first.
fn back_ends(vm: &Vm) -> Vec<Pid> {
    let all = processes::children(vm.pid()).into_iter();
    let back_ends = all.filter(Process::is_backend);
    back_ends.map(|process| process.pid).collect()
}

fn reset() -> Result<()> {
    let image = Image::new(16 << 20)?;
    let mut vm = Run::guest("scenario=verify requests=300 exit=reset fresh=0")?
        .with("--disk", format!("{},standby=1", image.option()))
        .with("--on-reset", "restart")
        .start()?;
    let mut before = Vec::new();
    for _ in 0..4 {
        vm.console_line("OUTBOARD verify result=pass")?;
        let now = eventually("others are there", || {
            let now = back_ends(&vm);
            let others = now.iter().all(|pid| !before.contains(pid));
            Ok((others && !now.is_empty()).then_some(now))
        })?;
        ensure!(now.len() <= 2, "{now:?}");
        before = now;
    }
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?;
    vm.check_nothing_is_left()
}

fn entropy() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let api = folder.path().join("api");
    let mut vm = Run::guest("scenario=rng requests=200000 size=64")?
        .with("--rng", "standby=1,max-bytes=100000000")
        .with("--api", &api)
        .start()?;
    for _ in 0..3 {
        let pair = eventually("two back-ends are there", || {
            Ok(<[Pid; 2]>::try_from(back_ends(&vm)).ok())
        })?;
        eventually("the standby is ready", || {
            let status = said(ctl(&api, &["--json", "status"])?)?;
            let status: Value = serde_json::from_str(&status)?;
            Ok((status["devices"][0]["standby"] == "ready").then_some(()))
        })?;
        nix::sys::signal::kill(pair[0], Signal::SIGKILL)?;
        eventually("the second is the first", || {
            let now = back_ends(&vm);
            Ok((now.first() == Some(&pair[1]) && now.len() == 2).then_some(()))
        })?;
    }
    let ended = vm.wait()?.with_code(0)?;
    ended.result("rng")?.passed()?;
    vm.check_nothing_is_left()
}
