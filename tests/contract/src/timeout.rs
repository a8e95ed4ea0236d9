//! Ending a program that timeout(1) runs.

use std::process::{Child, ExitStatus};

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::soon;

/// The program's own id; `None` when it has ended. Waits for it to be there.
///
/// # Errors
/// When it does not come up.
pub fn pid(timeout: &mut Child) -> anyhow::Result<Option<Pid>> {
    let id = timeout.id();
    let children = format!("/proc/{id}/task/{id}/children");
    let deadline = soon();
    let image = |pid: &str| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    let id = id.to_string();
    while timeout.try_wait()?.is_none() {
        let listed = std::fs::read_to_string(&children)?;
        // Until it has become the program, it is a copy of timeout(1).
        if let Some(child) = listed.split_whitespace().next()
            && ![None, image(&id)].contains(&image(child))
        {
            return Ok(Some(Pid::from_raw(child.parse()?)));
        }
        anyhow::ensure!(!deadline.passed(), "timeout(1) starts nothing");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Ok(None)
}

/// Tells the program to end, and waits. Its status is timeout's. (timeout(1)
/// itself would end at once and leave the program behind, if the signal came
/// before it has noted whom it has started, however long that has been running.)
///
/// # Errors
/// Those of wait(2).
pub fn stop(timeout: &mut Child) -> anyhow::Result<ExitStatus> {
    if let Some(program) = pid(timeout)? {
        match kill(program, Signal::SIGTERM) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno).context("ending the program"),
        }
    }
    Ok(timeout.wait()?)
}
