//! What is said on standard error: by whom, of which VM and device, and how
//! much of it.

use std::fs;

use anyhow::{Context, Result, ensure};
use outboard_e2e::image::Image;
use outboard_e2e::vm::{Ended, Run};

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

/// A guest whose available index goes backwards, which breaks its ring.
fn warnings() -> Result<()> {
    for (option, filters, said) in [
        (None, None, true),
        (Some("--log-level=error"), None, false),
        (Some("--log-level=error"), Some("debug"), false),
        (None, Some("error"), false),
        (Some("--log-level=warn"), Some("off"), true),
    ] {
        // One of its own: the guest takes a sector that it has not written for one
        // that holds nothing.
        let image = Image::new(8 * MIB)?;
        let mut run = Run::guest("scenario=rings case=index-goes-back")?
            .with("--name", "web")
            .with("--disk", image.option());
        if let Some(option) = option {
            run = run.switch(option);
        }
        let ended = with_filters(run, filters).to_the_end()?.with_code(0)?;
        let found = lines(&ended, "needs a reset");
        let expected = "outboard-machine[web]: WARN disk0: it needs a reset by its driver";
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
