//! How the scripts wait: for progress, not for so many seconds
//! (`scripts/lib/progress.sh`, `scripts/lib/count.sh`, `tests/linux/steady`).

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// `tests/linux/steady 8 stream sh -c SCRIPT`.
fn steady(script: &str) -> Result<Output> {
    Command::new(top().join("tests/linux/steady"))
        .args(["8", "the stream", "sh", "-c", script])
        .stdin(Stdio::null())
        .output()
        .context("steady")
}

/// What `count_checks` makes of a script which may be silent for 8 seconds,
/// in a shell that has what `scripts/test` has.
fn counted(script: &str) -> Result<String> {
    let logs = tempfile::tempdir()?;
    let script = format!(
        "set -euo pipefail
        . scripts/lib/packages.sh
        . scripts/lib/progress.sh
        LOGS={}
        . scripts/lib/count.sh
        QUIET_LIMIT=8
        count_checks step sh -c '{script}'
        report_counts || true",
        logs.path().display()
    );
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(top())
        .stdin(Stdio::null())
        .output()?;
    anyhow::ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn what_gets_on_is_left_alone_however_long_it_takes() -> Result<()> {
    // Three seconds between two bytes, and longer than the limit in all.
    let output = steady("for i in 1 2 3 4; do sleep 3; echo $i; done; exit 3")?;
    assert_eq!(output.stdout, b"1\n2\n3\n4\n");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    Ok(())
}

#[test]
fn what_stands_still_is_ended_and_named_with_its_side() -> Result<()> {
    let output = steady("echo first; sleep 1000; echo second")?;
    assert_eq!(output.stdout, b"first\n");
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    let said = String::from_utf8(output.stderr)?;
    for words in [
        "STOOD STILL: the stream",
        "sleep 1000",
        "TCP",
        "lo: received",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    Ok(())
}

#[test]
fn standard_input_is_the_commands() -> Result<()> {
    let mut child = Command::new(top().join("tests/linux/steady"))
        .args(["10", "the stream", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    std::io::Write::write_all(
        &mut child.stdin.take().context("no input")?,
        b"what was sent",
    )?;
    assert_eq!(child.wait_with_output()?.stdout, b"what was sent");
    Ok(())
}

#[test]
fn a_step_that_speaks_is_waited_for() -> Result<()> {
    let said = counted("for i in 1 2 3 4 5; do sleep 2; echo \"CHECK $i: ok\"; done")?;
    assert!(said.ends_with("5 passed, 0 failed, 0 skipped\n"), "{said}");
    Ok(())
}

#[test]
fn a_step_that_says_nothing_is_ended_and_fails() -> Result<()> {
    let said = counted("echo \"CHECK one: ok\"; sleep 1000")?;
    assert!(said.contains("step: stood still"), "{said}");
    assert!(said.ends_with("1 passed, 1 failed, 0 skipped\n"), "{said}");
    Ok(())
}
