//! The terminal: raw while the guest runs, as it was afterwards.
//!
//! script(1) makes the terminal, and a shell in it looks before and after.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outboard_e2e::eventually;
use outboard_e2e::image::Image;
use outboard_e2e::processes::{self, MARK, Process};
use outboard_e2e::vm::Run;

use crate::endings::until_full;
use crate::{KVM, Need, Test, test};

const NEEDS: &[Need] = &[Need::Kvm, Need::Program("script")];

pub fn tests() -> Vec<Test> {
    vec![
        test(
            "a terminal that takes nothing does not hold up the end",
            KVM,
            takes_nothing,
        ),
        test(
            "ctrl-a x ends the vm and the terminal is as before",
            NEEDS,
            || {
                ends("typed", 0, |_, keys| {
                    Ok(keys.write_all(b"some text\x03\x01x")?)
                })
            },
        ),
        test(
            "SIGTERM ends the vm and the terminal is as before",
            NEEDS,
            || ends("terminated", 0, |supervisor, _| signal(supervisor, "TERM")),
        ),
        test(
            "the machine dies and the terminal is as before",
            NEEDS,
            || {
                ends("killed", 6, |supervisor, _| {
                    let mark = mark("killed");
                    let machine = processes::marked(&mark)?
                        .into_iter()
                        .find(Process::is_machine)
                        .with_context(|| format!("no machine beside {supervisor:?}"))?;
                    signal(&machine, "KILL")
                })
            },
        ),
    ]
}

/// Whoever is at its other end does not read: output that waits there never
/// leaves.
fn takes_nothing() -> Result<()> {
    let image = Image::new(1 << 20)?;
    let run = Run::guest("scenario=load report=1")?.with("--disk", image.option());
    let words = run.words();
    let (program, arguments) = words.split_first().context("no program")?;
    let terminal = openpty(None, None)?;
    let path = image.directory().join("messages");
    let mut supervisor = Command::new(program)
        .args(arguments)
        .stdin(terminal.slave.try_clone()?)
        .stdout(terminal.slave.try_clone()?)
        .stderr(fs::File::create(&path)?)
        .spawn()?;
    let messages = || fs::read_to_string(&path).unwrap_or_default();
    let result = eventually("the guest runs on the terminal", || {
        let ended = supervisor.try_wait()?;
        ensure!(ended.is_none(), "it ended: {}", messages());
        Ok(messages().contains("Ctrl-A x ends").then_some(()))
    })
    .and_then(|()| until_full(&terminal.slave))
    .and_then(|()| {
        let pid = Pid::from_raw(supervisor.id().try_into()?);
        Ok(kill(pid, Signal::SIGTERM)?)
    })
    .and_then(|()| eventually("the run ends", || Ok(supervisor.try_wait()?)));
    if result.is_err() {
        supervisor.kill()?;
        supervisor.wait()?;
    }
    ensure!(result?.success(), "{}", messages());
    image.wait_until_free()
}

fn mark(name: &str) -> String {
    format!("terminal.{}.{name}", std::process::id())
}

fn signal(process: &Process, signal: &str) -> Result<()> {
    let signal = match signal {
        "TERM" => Signal::SIGTERM,
        _ => Signal::SIGKILL,
    };
    Ok(kill(process.pid, signal)?)
}

/// Runs an idle guest on a terminal, ends it by `end`, and compares.
fn ends(
    name: &str,
    code: i32,
    end: impl FnOnce(&Process, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let image = Image::new(1 << 20)?;
    let place = |name: &str| image.directory().join(name);
    let words = Run::guest("scenario=idle")?.words();
    let words: Vec<_> = words
        .iter()
        .map(|word| format!("'{}'", word.display()))
        .collect();
    let shell = format!(
        "stty -g > {before:?}; {run} 2> {messages:?}; echo $? > {code:?}; stty -g > {after:?}",
        before = place("before"),
        run = words.join(" "),
        messages = place("messages"),
        code = place("code"),
        after = place("after"),
    );
    let mut script = Command::new("script")
        .args(["-qefc", &shell, "/dev/null"])
        .env(MARK, mark(name))
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let mut keys = script.stdin.take().context("no input")?;
    let read = |name: &str| fs::read_to_string(place(name)).unwrap_or_default();
    eventually("the guest runs on the terminal", || {
        let ended = script.try_wait()?;
        ensure!(ended.is_none(), "it ended: {}", read("messages"));
        Ok(read("messages")
            .contains("Ctrl-A x ends the VM")
            .then_some(()))
    })?;
    let supervisor = processes::marked(&mark(name))?
        .into_iter()
        .find(|process| process.args.get(1).is_some_and(|word| word == "run"))
        .context("no supervisor")?;
    end(&supervisor, &mut keys)?;
    eventually("the shell is back", || {
        Ok((!read("after").is_empty()).then_some(()))
    })?;
    drop(keys);
    eventually("the terminal closes", || Ok(script.try_wait()?))?;
    ensure!(
        read("code").trim() == code.to_string(),
        "{}: {}",
        read("code"),
        read("messages")
    );
    ensure!(!read("before").is_empty() && read("before") == read("after"));
    Ok(())
}
