//! A request that kills whoever executes it: it is found out and ended in an I/O error,
//! loudly, and nothing else of the VM suffers.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use outboard_contract::program::command;
use outboard_e2e::eventually;
use outboard_e2e::image::Image;
use outboard_e2e::products::{self, Products};
use outboard_e2e::storm::{IMAGE, Programs, Shape, Storm};
use serde_json::Value;

use crate::storm::seed;
use crate::{KVM, Test, test};

/// Back-ends that die of the request before the next refuses it.
const DEATHS: u64 = 3;

pub fn tests() -> Vec<Test> {
    vec![
        test(
            "a request that kills every back-end is refused in the end, and nothing else",
            KVM,
            || refused("blk-dies-of-a-write", "", "was killed by SIGABRT"),
        ),
        test(
            "a request that kills every standby is refused in the end, and nothing else",
            KVM,
            || refused("blk-dies-of-a-write", ",standby=1", "was killed by SIGABRT"),
        ),
        test(
            "a request that hangs every back-end is refused in the end, and nothing else",
            KVM,
            || {
                let hangs = "hangs: it is at work and does not get on";
                refused("blk-hangs-on-a-write", ",hang-timeout=500ms", hangs)
            },
        ),
    ]
}

/// A folder with outboard and this program as its outboard-blk: of a program of others it
/// is not known enough to tell whether it hangs.
fn installed(program: &str, folder: &Path) -> Result<Programs> {
    let sound = Programs::get()?;
    for (from, name) in [
        (sound.bin.join("outboard"), "outboard"),
        (products::faulty(program)?, "outboard-blk"),
    ] {
        // Another process writes it, or a child of this one might have it open for writing.
        let copied = Command::new("cp")
            .arg(from)
            .arg(folder.join(name))
            .status()?;
        ensure!(copied.success(), "{name}: {copied}");
    }
    Ok(Programs {
        bin: folder.to_owned(),
        ..sound
    })
}

/// `outboard ctl` of this storm, with these words.
fn ctl(storm: &Storm, words: &[&str]) -> Result<Command> {
    let mut ctl = command(Products::get()?.program("outboard"), &["ctl"]);
    ctl.args(words).env("OUTBOARD_API", storm.api());
    Ok(ctl)
}

/// Reads the events of this storm from now on.
fn events(storm: &Storm) -> Result<Child> {
    eventually("there is an api", || Ok(storm.api().exists().then_some(())))?;
    let mut reader = ctl(storm, &["--json", "events"])?;
    Ok(reader.stdout(Stdio::piped()).spawn()?)
}

/// What a program printed.
fn said(mut command: Command) -> Result<String> {
    let output = command.output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

fn disk(storm: &Storm) -> Result<Value> {
    let vm: Value = serde_json::from_str(&said(ctl(storm, &["--json", "status"])?)?)?;
    Ok(vm["devices"][0].clone())
}

fn number(value: &Value, name: &str) -> Result<u64> {
    value[name]
        .as_u64()
        .with_context(|| format!("no {name} in {value}"))
}

/// The storm goes on but for one write, whose every back-end ends so.
fn refused(program: &str, keys: &str, end: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let programs = installed(program, folder.path())?;
    let shape = Shape::new(0, seed()).disk(keys);
    let seed = shape.seed;
    let whole = || {
        let mut storm = {
            let image = Image::new_in(&shape.folder, IMAGE)?;
            Storm::start(&programs, &shape, image)?
        };
        let events = events(&storm)?;
        let disk = eventually("a request is refused", || {
            if storm.vm.is_over()? {
                bail!("the VM is over: {}", storm.vm.messages());
            }
            let disk = disk(&storm)?;
            Ok((number(&disk, "refused_requests")? > 0).then_some(disk))
        })?;
        // It serves again, and goes on doing so.
        for _ in 0..3 {
            storm.vm.console_line("progress scenario=storm")?;
        }
        let status = said(ctl(&storm, &["status"])?)?;
        let outcome = storm.end()?;
        let events = events.wait_with_output()?;
        ensure!(events.status.success(), "{events:?}");
        check_told(&disk, &status, &String::from_utf8(events.stdout)?)?;
        let (queue, head) = {
            let last = &disk["last_refused"];
            (number(last, "queue")?, number(last, "head")?)
        };
        // Nobody but the guest's own word says what it was told.
        let failures = outcome.failures()?;
        ensure!(
            failures == [("status", 1)],
            "{failures:?}: {}",
            outcome.ended
        );
        let seen = format!("wrong failure=status queue={queue} status=1 length=1 ");
        ensure!(
            outcome.ended.console.contains(&seen),
            "{seen}: {}",
            outcome.ended
        );
        ensure!(
            outcome.found.is_right(),
            "{:?}: {}",
            outcome.found,
            outcome.ended
        );
        let place = format!("queue {queue}, head {head}");
        outcome.ended.saying(&[
            end,
            &format!("has died {DEATHS} times over one request ({place})"),
            &format!("({place}): ended in an I/O error and not executed, since {DEATHS} back-ends"),
            &format!("queue {queue}: a write of "),
        ])?;
        Ok(())
    };
    whole().with_context(|| format!("seed {seed}"))
}

/// A person finds out which request it was, and why it was refused: in the status of the
/// disk, as JSON and as text, and in the events.
fn check_told(disk: &Value, status: &str, events: &str) -> Result<()> {
    let refused = &disk["last_refused"];
    let request = refused["request"].as_str().unwrap_or_default();
    ensure!(
        request.starts_with("a write of ") && request.contains(" at sector "),
        "{disk}"
    );
    ensure!(number(refused, "deaths")? == DEATHS, "{disk}");
    ensure!(number(disk, "refused_requests")? == 1, "{disk}");
    // The last one may not serve yet.
    ensure!(number(disk, "restarts")? <= DEATHS, "{disk}");
    let line = format!("disk0: requests refused: 1, the last one {request} (queue ");
    ensure!(status.contains(&line), "{line}: {status}");
    let mut told = Vec::new();
    for line in events.lines() {
        let event: Value = serde_json::from_str(line)?;
        if event["event"] == "refused" {
            told.push(event);
        }
    }
    let [event] = &told[..] else {
        bail!("not one event: {events}");
    };
    ensure!(event["device"] == "disk0", "{event}");
    ensure!(event["refused"] == *refused, "{event} and {refused}");
    Ok(())
}
