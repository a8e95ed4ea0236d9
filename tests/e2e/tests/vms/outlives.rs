//! State that outlives a back-end: what the guest has set in it, and what it alone
//! knew, is there in its successor, as the guest sees it and as the host does. (Of
//! network cards: `net/outlives.rs`.)

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use outboard_e2e::eventually;
use outboard_e2e::storm::killer::Killer;
use outboard_e2e::storm::{Outcome, Programs, Shape, Storm};
use outboard_e2e::vm::{GuestResult, Run};

use crate::storm::seed;
use crate::{KVM, Need, Test, test};

const STRACE: &[Need] = &[Need::Kvm, Need::Program("strace")];

pub fn tests() -> Vec<Test> {
    vec![
        test(
            "with the cache turned off a successor writes through",
            STRACE,
            || writes("wce=off", true),
        ),
        test(
            "a cache over whose turning off a back-end died is off in its successor",
            STRACE,
            a_change_that_kills,
        ),
        test(
            "with the cache turned on a successor does not write through",
            STRACE,
            || writes("wce=on", false),
        ),
        test(
            "after a sync has failed no flush succeeds in a successor",
            STRACE,
            a_failed_sync,
        ),
        test(
            "after a sync has failed no flush succeeds after the guest's reset",
            STRACE,
            a_failed_sync_and_a_reset,
        ),
        test("every buffer of entropy comes back", KVM, entropy),
    ]
}

/// Of a back-end that uses no io_uring, so that its system calls tell what it does:
/// these go to a file for each process, under a tracer that is nobody's parent.
fn traced(calls: &str, injected: &str) -> String {
    let programs = Programs::get().map(|programs| programs.bin);
    let program = programs.unwrap_or_default().join("outboard-blk");
    format!(
        "exec strace -D -f -qq -s 1 -o \"$0.trace.$$\" -e trace={calls} {injected} '{}' \
         --engine=threads \"$@\"",
        program.display()
    )
}

/// What a back-end, which still has its image's folder, has asked of the kernel.
fn calls(storm: &Storm, pid: Pid) -> Result<Vec<String>> {
    let name = format!("blk.trace.{pid}");
    let path = storm.image.directory().join(name);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Kills the back-end of a disk so many times, each when the guest has gone on. The
/// last one that serves.
fn kill(storm: &mut Storm, times: u32) -> Result<Pid> {
    let mut last = storm.killer.next(&mut storm.vm, None)?;
    for _ in 0..times {
        storm.killer.strike(last, Signal::SIGKILL)?;
        last = storm.killer.next(&mut storm.vm, Some(last))?;
        storm.killer.until_it_goes_on(&mut storm.vm)?;
    }
    Ok(last)
}

/// How many writes of a back-end there were, and how many of these were durable.
fn durable(storm: &Storm, pid: Pid) -> Result<(usize, usize)> {
    let mut calls = calls(storm, pid)?;
    calls.retain(|call| call.contains("pwritev2("));
    let through = |call: &&String| call.contains("RWF_DSYNC");
    let through = calls.iter().filter(through).count();
    ensure!(calls.len() > 20, "{calls:?}");
    Ok((calls.len(), through))
}

/// That the byte is as the guest has set it, the guest looks for in the end.
fn writes(guest: &str, is_durable: bool) -> Result<()> {
    let mut shape = Shape::new(0, seed()).guest(guest);
    shape.before = Some((traced("pwritev2", ""), String::new()));
    // The other way round than the guest has it in the end.
    let other = if is_durable { "" } else { ",wce=off" };
    let mut storm = Storm::begin(&Programs::get()?, &shape.disk(other))?;
    let successor = kill(&mut storm, 2)?;
    let (all, through) = durable(&storm, successor)?;
    let expected = if is_durable { all } else { 0 };
    let said = storm.vm.messages();
    ensure!(
        through == expected,
        "{through} of {all} are durable: {said}"
    );
    storm.end()?.nothing_is_wrong()?;
    Ok(())
}

/// The guest has read back that the cache is off, which it is only after a sync; this
/// one takes longer than its back-end lives.
fn a_change_that_kills() -> Result<()> {
    const SYNC: &str = "-e inject=fdatasync:delay_enter=10000000";
    let before = first(&traced("fdatasync", SYNC), &traced("pwritev2", ""));
    let mut shape = Shape::new(0, seed()).guest("wce=off flush=0");
    shape.before = Some((before, String::new()));
    let mut storm = Storm::begin(&Programs::get()?, &shape)?;
    let dies = storm.killer.next(&mut storm.vm, None)?;
    eventually("the sync is under way", || {
        let calls = calls(&storm, dies)?;
        Ok((!calls.is_empty()).then_some(()))
    })?;
    let successor = kill(&mut storm, 1)?;
    let (all, through) = durable(&storm, successor)?;
    let said = storm.vm.messages();
    ensure!(through == all, "{through} of {all} are durable: {said}");
    storm.end()?.nothing_is_wrong()?;
    Ok(())
}

/// What a shell does that becomes the first back-end of an image, or a later one.
fn first(first: &str, later: &str) -> String {
    format!("if mkdir \"$0.first\" 2>/dev/null; then {first}; fi; {later}")
}

/// The first back-end's syncs fail; those of its successors would not.
fn a_failed_sync() -> Result<()> {
    let fails = traced("fdatasync", "-e inject=fdatasync:error=EIO");
    let serves = traced("fdatasync", "");
    let mut shape = Shape::new(0, seed()).guest("flush=100");
    shape.before = Some((first(&fails, &serves), String::new()));
    let mut storm = Storm::begin(&Programs::get()?, &shape)?;
    let first = storm.killer.next(&mut storm.vm, None)?;
    let failed = calls(&storm, first)?;
    ensure!(failed.iter().any(|call| call.contains("EIO")), "{failed:?}");
    let successor = kill(&mut storm, 2)?;
    let calls = calls(&storm, successor)?;
    let Outcome { result, ended, .. } = storm.end()?;
    // In the end the guest flushes once more on each queue.
    let (flushes, failed) = (result.number("flushes")?, result.number("status")?);
    ensure!(failed == flushes && flushes > 10, "{ended}");
    ensure!(result.number("lost")? == 0, "{ended}");
    ensure!(
        !calls.iter().any(|call| call.contains("fdatasync(")),
        "nobody would believe these: {calls:?}"
    );
    ended.saying(&[
        "data that was written to the image may be lost: from now on every flush",
        "data that was written to the image may be lost: a sync failed before this program",
    ])?;
    Ok(())
}

/// The guest resets itself, again and again, and each time it has a back-end that could
/// sync.
fn a_failed_sync_and_a_reset() -> Result<()> {
    let fails = traced("fdatasync", "-e inject=fdatasync:error=EIO");
    let before = first(&fails, &traced("fdatasync", ""));
    let mut shape = Shape::new(0, seed()).guest("flush=100 exit=reset");
    shape.before = Some((before, String::new()));
    shape.more = vec![("--on-reset".into(), "restart".into())];
    let mut storm = Storm::begin(&Programs::get()?, &shape)?;
    storm.stop()?;
    for _ in 0..3 {
        let line = storm.vm.console_line("OUTBOARD storm")?;
        let result = GuestResult::from_words(&line);
        let (flushes, failed) = (result.number("flushes")?, result.number("status")?);
        ensure!(failed == flushes && flushes > 0, "{line}");
        ensure!(result.number("lost")? == 0, "{line}");
    }
    storm.vm.signal(Signal::SIGTERM)?;
    let why = "data that was written to the image may be lost: a sync failed before this program";
    storm.vm.wait()?.with_code(0)?.saying(&[why])?;
    storm.vm.check_nothing_is_left()
}

/// It has 8 buffers, and asks until all of its requests were answered.
fn entropy() -> Result<()> {
    const REQUESTS: u64 = 600_000;
    let cmdline = format!("scenario=identify,rng requests={REQUESTS} size=64 depth=8");
    let mut vm = Run::guest(&cmdline)?.switch("--rng").start()?;
    vm.console_line("OUTBOARD identify")?;
    let mut killer = Killer::new("outboard-rng", seed(), Duration::from_millis(40));
    killer.kill_them(&mut vm, 8, Signal::SIGKILL)?;
    let ended = vm.wait()?.with_code(0)?;
    let result = ended.result("rng")?.passed()?;
    ensure!(result.number("requests")? == REQUESTS, "{ended}");
    ensure!(result.number("bytes")? == 64 * REQUESTS, "{ended}");
    vm.check_nothing_is_left()
}
