//! A peer, or a back-end of ours, as a process.

use std::env;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
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
    let directories = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&directories)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| format!("there is no program {name}, see scripts/peers"))
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

/// A running program whose output goes to a file. Dropped, it is killed.
#[derive(Debug)]
pub struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command, log: PathBuf) -> Result<Self> {
        let file = File::options().create(true).append(true).open(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        Ok(Self { child, log })
    }

    /// Waits until the socket is there that it serves. Nothing connects to
    /// it: some peers serve one connection only.
    ///
    /// # Errors
    /// It does not come, or the program ends before.
    pub fn listens_at(&mut self, socket: &Path) -> Result<()> {
        eventually("the socket is there", || {
            let ended = self.ended()?;
            ensure!(ended.is_none(), "it ended; it said:\n{}", self.said());
            Ok(is_listened_on(socket).then_some(()))
        })
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Everything it said.
    pub fn said(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Sends it a signal and waits for its end.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        kill(Pid::from_raw(self.child.id() as i32), signal)?;
        self.wait()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let ended = eventually("the program ends", || Ok(self.child.try_wait()?));
        ended.with_context(|| format!("it said:\n{}", self.said()))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connects to a Unix socket as soon as somebody listens on it.
///
/// # Errors
/// Nobody does.
pub fn connect(socket: &Path) -> Result<UnixStream> {
    eventually("somebody listens", || Ok(UnixStream::connect(socket).ok()))
}
