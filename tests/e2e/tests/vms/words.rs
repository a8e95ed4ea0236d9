//! What is said on standard error: by whom, of which VM and device, and how
//! much of it.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use outboard_e2e::image::Image;
use outboard_e2e::products::Products;
use outboard_e2e::vm::{Ended, Run};

use crate::disks::Listener;
use crate::wrong_use::refused;
use crate::{KVM, Test, test};

const MIB: u64 = 1 << 20;

pub fn tests() -> Vec<Test> {
    vec![
        test(
            "a warning of the machine is said unless it is not wanted",
            KVM,
            warnings,
        ),
        test(
            "a line begins with program, vm and device",
            KVM,
            lines_have_a_speaker,
        ),
        test("the last word has the name of its vm", KVM, last_words),
        test("a name is one word", &[], || {
            let run = Run::guest("")?.with("--name", "two words");
            refused(run, 2, "--name two words: give 1 to 64 letters")
        }),
    ]
}

/// `RUST_LOG` as it says, or not set; whatever the environment of the tests.
fn with_filters(run: Run, filters: Option<&str>) -> Run {
    match filters {
        Some(filters) => run.under(&["env", &format!("RUST_LOG={filters}")]),
        None => run.under(&["env", "-u", "RUST_LOG"]),
    }
}

fn lines<'a>(ended: &'a Ended, words: &str) -> Vec<&'a str> {
    let lines = ended.messages.lines();
    lines.filter(|line| line.contains(words)).collect()
}

/// A card whose back-end has fewer queues than were asked for.
fn warnings() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("net.sock");
    let peer = folder.path().join("peer.sock");
    let program = Command::new(Products::get()?.program("outboard-net"))
        .arg(format!("--socket-path={}", socket.display()))
        .arg(format!("--peer={},listen", peer.display()))
        .stdin(Stdio::null())
        .spawn()?;
    let _listener = Listener::of(program);
    let net = format!("socket={},queues=2,wait=60s", socket.display());
    for (option, filters, said) in [
        (None, None, true),
        (Some("--log-level=error"), None, false),
        (Some("--log-level=error"), Some("debug"), false),
        (None, Some("error"), false),
        (Some("--log-level=warn"), Some("off"), true),
    ] {
        let mut run = Run::guest("scenario=poweroff")?
            .with("--name", "web")
            .with("--net", &net);
        if let Some(option) = option {
            run = run.switch(option);
        }
        let ended = with_filters(run, filters).to_the_end()?.with_code(0)?;
        let found = lines(&ended, "2 were asked");
        let expected = "outboard-machine[web]: WARN net0: the back-end has 1 pair of queues, ";
        let right = match found[..] {
            [line] => said && line.starts_with(expected),
            _ => !said && found.is_empty(),
        };
        ensure!(right, "{option:?} {filters:?}: {ended}");
    }
    Ok(())
}

fn lines_have_a_speaker() -> Result<()> {
    let image = Image::new(MIB)?;
    let file = image.directory().join("vm.toml");
    fs::write(&file, "name = \"web\"\nlog-level = \"debug\"\n")?;
    let run = || {
        let disk = format!("{},id=root", image.option());
        Ok::<_, anyhow::Error>(Run::guest("scenario=poweroff")?.with("--disk", disk))
    };
    let debugs = "session ended: ";
    for (run, filters, expected) in [
        (
            run()?.with("--name", "web").switch("-vv"),
            None,
            Some("outboard-blk[web/root]: DEBUG session ended: "),
        ),
        (
            run()?.with("--config", &file),
            Some("off"),
            Some("outboard-blk[web/root]: DEBUG session ended: "),
        ),
        (
            run()?,
            Some("debug"),
            Some("outboard-blk[root]: DEBUG session ended: "),
        ),
        (run()?.switch("-v"), None, None),
        (run()?.with("--name", "web"), None, None),
    ] {
        let ended = with_filters(run, filters).to_the_end()?.with_code(0)?;
        let found = lines(&ended, debugs).first().copied();
        let starts = found
            .zip(expected)
            .map(|(line, start)| line.starts_with(start));
        let right = match expected {
            Some(_) => starts == Some(true),
            None => found.is_none(),
        };
        ensure!(right, "{expected:?}: {ended}");
        // Whoever speaks, it is one of ours.
        let other = ended
            .messages
            .lines()
            .find(|line| !line.starts_with("outboard"));
        ensure!(other.is_none(), "{other:?}: {ended}");
    }
    Ok(())
}

fn last_words() -> Result<()> {
    let run = Run::plain()?.with("--kernel", "/nowhere/a\nb");
    let ended = run.with("--name", "web").to_the_end()?.with_code(1)?;
    let line = ended.messages.lines().next().context("no word")?;
    let start = "outboard[web]: the kernel /nowhere/a\\nb cannot be opened";
    ensure!(line.starts_with(start), "{ended}");
    ensure!(ended.messages.lines().count() == 1, "{ended}");
    Ok(())
}
