//! A peer, or a back-end of ours, as a process.

use std::env;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
pub use outboard_contract::program::Program;
use outboard_contract::program::in_path;
use outboard_e2e::eventually;
use outboard_e2e::processes::is_listened_on;

/// Where a program lies: in the folder that the environment names for it, or
/// in PATH. `PEER_VHOST_DEVICE_RNG` names the file of `vhost-device-rng`.
///
/// # Errors
/// The reason why it is not there.
pub fn find(name: &str) -> Result<PathBuf, String> {
    let variable = format!("PEER_{}", name.to_uppercase().replace('-', "_"));
    if let Some(file) = env::var_os(&variable) {
        let file = PathBuf::from(file);
        return match file.is_file() {
            true => Ok(file),
            false => Err(format!("{variable}: there is no {}", file.display())),
        };
    }
    in_path(name).map_err(|error| format!("{error}, see scripts/peers"))
}

/// The version that a program says it has.
///
/// # Errors
/// It cannot be run, or says none.
pub fn version(name: &str) -> Result<String> {
    let output = Command::new(find(name).map_err(anyhow::Error::msg)?)
        .arg("--version")
        .output()
        .with_context(|| format!("{name} --version"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let mut words = said.split_whitespace();
    let found = words.find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    Ok(found
        .with_context(|| format!("{name} --version says {said:?}"))?
        .to_owned())
}

/// Starts a program and waits until the socket is there that it serves. Nothing
/// connects to it: some peers serve one connection only.
///
/// # Errors
/// It cannot be started, or the socket does not come, or the program ends before.
pub fn serving(command: &mut Command, socket: &Path) -> Result<Program> {
    let program = Program::run(command.stdin(Stdio::null()))?;
    let there = || is_listened_on(socket).then_some(());
    program.until("the socket is there", there)?;
    Ok(program)
}

/// Asks a program to end, which it must do well.
///
/// # Errors
/// It does not; what it said.
pub fn end(mut program: Program) -> Result<String> {
    let status = program.end(Signal::SIGTERM)?;
    let said = program.printed() + &program.said();
    ensure!(status.success(), "it ended with {status}; it said:\n{said}");
    Ok(said)
}

/// Connects to a Unix socket as soon as somebody listens on it.
///
/// # Errors
/// Nobody does.
pub fn connect(socket: &Path) -> Result<UnixStream> {
    eventually("somebody listens", || Ok(UnixStream::connect(socket).ok()))
}
