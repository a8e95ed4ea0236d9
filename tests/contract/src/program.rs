//! A program under test: a process of its own, with a folder of its own.
//!
//! What it prints and what it says, on standard output and on standard error, is
//! kept in that folder. Each wait for it has a limit, and ends when it does.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use outboard_protocol::Deadline;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, Rlimit, prlimit};
use tempfile::TempDir;

use crate::client::Client;

/// How long anything may take that a program does.
const PATIENCE: Duration = Duration::from_secs(300);

/// A command of this program with these arguments, which reads nothing.
pub fn command<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: &[A]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// The same behind a shell's `script`, in which `"$@"` is the command and
/// `$folder` the program's folder. The script must `exec` it in the end.
pub fn by_shell(script: &str, program: impl AsRef<OsStr>, arguments: &[&str]) -> Command {
    let mut command = command("sh", &["-ec", script, "sh"]);
    command.arg(program).args(arguments);
    command
}

/// The same, with this as its descriptor 9.
///
/// # Errors
/// Those of [`lend`].
pub fn lent(fd: impl AsFd, program: impl AsRef<OsStr>, arguments: &[&str]) -> io::Result<Command> {
    let mut command = command(program, arguments);
    lend(&mut command, fd, 9)?;
    Ok(command)
}

/// Lends the program a copy of this descriptor, as its descriptor `number`.
///
/// # Errors
/// Those of fcntl(2).
pub fn lend(command: &mut Command, fd: impl AsFd, number: RawFd) -> io::Result<()> {
    // Above every number that is lent: a descriptor that is put where it is would
    // still close on exec, and it could be another's place.
    let copy = fcntl_dupfd_cloexec(fd, 64)?;
    // SAFETY: between fork and exec, dup2(2) is all that is called.
    unsafe {
        command.pre_exec(move || match nix::libc::dup2(copy.as_raw_fd(), number) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        })
    };
    Ok(())
}

/// The option `name`, which ends with `=`, with this path.
pub fn option(name: &str, path: &Path) -> OsString {
    let mut option = OsString::from(name);
    option.push(path);
    option
}

/// A program that was started.
///
/// Dropped, it is killed; but one of ours that serves a socket is asked to end
/// then, and must do so well, and take its socket away.
#[derive(Debug)]
pub struct Program {
    child: Child,
    folder: TempDir,
    serves: bool,
    /// Its end has been waited for.
    over: bool,
}

impl Program {
    /// Starts any program.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(command: &mut Command) -> Result<Self> {
        Self::begin(tempfile::tempdir()?, command, false)
    }

    /// Starts one of ours, with the socket that it is to make and serve.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn serve(command: &mut Command) -> Result<Self> {
        Self::serve_in(tempfile::tempdir()?, command)
    }

    /// The same in a folder that has what it needs.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn serve_in(folder: TempDir, command: &mut Command) -> Result<Self> {
        command.arg(option("--socket-path=", &folder.path().join("socket")));
        // SAFETY: between fork and exec, prctl(2) is all that is called.
        unsafe {
            // Whoever ends the tests ends it too.
            command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?))
        };
        Self::begin(folder, command, true)
    }

    fn begin(folder: TempDir, command: &mut Command, serves: bool) -> Result<Self> {
        let file = |name| File::create(folder.path().join(name));
        let child = command
            .env("folder", folder.path())
            .stdout(file("printed")?)
            .stderr(file("said")?)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        Ok(Self {
            child,
            folder,
            serves,
            over: false,
        })
    }

    /// Its folder, which goes with it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The socket that it serves.
    pub fn socket(&self) -> PathBuf {
        self.folder().join("socket")
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Its first child, if it has one: the half outside of a back-end that was started
    /// by hand.
    pub fn outside(&self) -> Option<Pid> {
        let id = self.pid();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        let first = children.split_whitespace().next()?;
        first.parse().ok().map(Pid::from_raw)
    }

    /// Whether it runs.
    pub fn is_alive(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        !self.over && waitid(Id::Pid(self.pid()), flags) == Ok(WaitStatus::StillAlive)
    }

    /// Waits until `found` finds something.
    ///
    /// # Errors
    /// It does not in time, or not before the program ends; what that said.
    pub fn until<T>(&self, what: &str, mut found: impl FnMut() -> Option<T>) -> Result<T> {
        let deadline = Deadline::after(PATIENCE);
        loop {
            let alive = self.is_alive();
            if let Some(found) = found() {
                return Ok(found);
            }
            if !alive || deadline.passed() {
                let lives = if alive { "in time" } else { "before it ended" };
                bail!("not {lives}: {what}; it said:\n{}", self.said());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A new connection to its socket, as soon as it listens.
    ///
    /// # Errors
    /// It does not listen.
    pub fn client(&self) -> Result<Client> {
        let stream = self.until("it listens", || UnixStream::connect(self.socket()).ok())?;
        Ok(Client::new(stream))
    }

    /// Everything that it has said so far.
    pub fn said(&self) -> String {
        self.content("said")
    }

    /// Everything that it has printed so far.
    pub fn printed(&self) -> String {
        self.content("printed")
    }

    fn content(&self, name: &str) -> String {
        let bytes = fs::read(self.folder().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until it has said all of these words in one line.
    ///
    /// # Errors
    /// It has not in time, or has ended.
    pub fn says(&self, words: &[&str]) -> Result<()> {
        let has = |line: &str| words.iter().all(|word| line.contains(word));
        let found = || self.said().lines().any(has).then_some(());
        self.until(&format!("{words:?}"), found)
    }

    /// How many descriptors it may have from now on.
    ///
    /// # Errors
    /// Those of prlimit(2).
    pub fn limit_descriptors(&self, most: u64) -> Result<()> {
        let limits = Rlimit {
            current: Some(most),
            maximum: Some(1000),
        };
        let pid = rustix::process::Pid::from_raw(self.pid().as_raw());
        prlimit(pid, Resource::Nofile, limits)?;
        Ok(())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// Those of kill(2).
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid(), signal)?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let deadline = Deadline::after(PATIENCE);
        while self.is_alive() {
            let said = || self.said();
            ensure!(!deadline.passed(), "it does not end; it said:\n{}", said());
            std::thread::sleep(Duration::from_millis(1));
        }
        self.over = true;
        Ok(self.child.wait()?)
    }

    /// Sends it a signal and waits for its end.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.wait()
    }

    /// Kills it: no request that it has is finished.
    ///
    /// # Errors
    /// It has ended before.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL).map(drop)
    }

    /// Waits for its end, which must have this code; what it said.
    ///
    /// # Errors
    /// It ends otherwise, or has not said `words`.
    pub fn ends_with(mut self, code: i32, words: &str) -> Result<String> {
        let (status, said) = (self.wait()?, self.said());
        ensure!(status.code() == Some(code), "{status}; it said:\n{said}");
        ensure!(said.contains(words), "{said:?} without {words:?}");
        ensure!(
            !self.serves || !self.socket().exists(),
            "its socket is left"
        );
        Ok(said)
    }

    /// Asks it to end, which it must do well; what it said.
    ///
    /// # Errors
    /// It ends otherwise.
    pub fn last_words(self) -> Result<String> {
        self.ends_by(Signal::SIGTERM)
    }

    /// The same by another signal.
    ///
    /// # Errors
    /// It ends otherwise.
    pub fn ends_by(self, signal: Signal) -> Result<String> {
        self.signal(signal)?;
        self.ends_with(0, "")
    }

    fn end_of_serving(&mut self) -> Result<()> {
        // One that has only just been started does not heed a signal yet.
        self.until("it serves, or has ended", || {
            (self.socket().exists() || !self.is_alive()).then_some(())
        })?;
        let status = self.end(Signal::SIGTERM)?;
        ensure!(status.success(), "it ended with {status}");
        ensure!(!self.socket().exists(), "its socket is left");
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let result = match self.serves && !self.over {
            true => self.end_of_serving(),
            false => Ok(()),
        };
        let _ = self.child.kill();
        let _ = self.child.wait();
        let panics = std::thread::panicking();
        if panics || result.is_err() {
            eprint!("{}", self.said());
        }
        assert!(panics || result.is_ok(), "{result:?}");
    }
}

/// The file of a program of that name in PATH.
///
/// # Errors
/// There is none.
pub fn in_path(name: &str) -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut files = std::env::split_paths(&path).map(|folder| folder.join(name));
    files
        .find(|file| file.is_file())
        .ok_or_else(|| io::Error::other(format!("there is no {name} in PATH")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "these are tests")]

    use std::io::{Seek, Write};

    use super::*;

    /// Also where the next descriptors that are opened have these numbers.
    #[test]
    fn what_is_lent_has_its_number_whatever_that_was_before() {
        let [mut first, mut second] = [(); 2].map(|()| tempfile::tempfile().unwrap());
        for (file, content) in [(&mut first, "1"), (&mut second, "2")] {
            file.write_all(content.as_bytes()).unwrap();
            file.rewind().unwrap();
        }
        let numbers = [(); 2].map(|()| tempfile::tempfile().unwrap());
        let numbers = numbers.map(|free| free.as_raw_fd());
        for [one, other] in [numbers, [numbers[1], numbers[0]]] {
            let script = format!("cat /proc/self/fd/{one} /proc/self/fd/{other}");
            let mut command = command("sh", &["-ec", &script]);
            lend(&mut command, &first, one).unwrap();
            lend(&mut command, &second, other).unwrap();
            let output = command.output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), "12");
        }
    }
}
