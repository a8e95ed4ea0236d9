//! Starting a VM or another program and listening to what it prints, from outside.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outboard_protocol::Deadline;

/// A running program, a VM mostly, whose standard output is a pipe to us. Ended when dropped.
pub struct Program {
    child: Child,
    console: ChildStdout,
    errors: File,
    heard: Vec<u8>,
    started: Instant,
}

impl Program {
    /// Starts it; the clock runs from before the fork.
    pub fn start(command: &mut Command) -> Result<Self> {
        let errors = tempfile::tempfile()?;
        command.stderr(errors.try_clone()?);
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        let console = child
            .stdout
            .take()
            .context("the child has no standard output")?;
        Ok(Self {
            child,
            console,
            errors,
            heard: Vec::new(),
            started,
        })
    }

    /// The process id of what was started.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the console has said `mark`; returns the time since start.
    pub fn hear(&mut self, mark: &str, wait: Duration) -> Result<Duration> {
        let deadline = Deadline::after(wait);
        loop {
            if self
                .heard
                .windows(mark.len())
                .any(|part| part == mark.as_bytes())
            {
                return Ok(self.started.elapsed());
            }
            self.listen(mark, deadline)?;
        }
    }

    // Takes what it prints next.
    fn listen(&mut self, mark: &str, deadline: Deadline) -> Result<()> {
        let mut bytes = [0; 4096];
        let mut fds = [PollFd::new(self.console.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, deadline.poll_timeout())? == 0 {
            bail!("it did not say {mark:?} in time, only: {}", self.said());
        }
        match self.console.read(&mut bytes)? {
            0 => bail!("it ended before it said {mark:?}: {}", self.said()),
            count => self
                .heard
                .extend_from_slice(bytes.get(..count).unwrap_or_default()),
        }
        Ok(())
    }

    /// Waits for a whole line that contains `mark`.
    pub fn line(&mut self, mark: &str, wait: Duration) -> Result<String> {
        let deadline = Deadline::after(wait);
        loop {
            self.hear(mark, deadline.left())?;
            let text = String::from_utf8_lossy(&self.heard);
            let whole = text.split_inclusive('\n').find(|line| line.contains(mark));
            if let Some(line) = whole.filter(|line| line.ends_with('\n')) {
                return Ok(line.trim().to_owned());
            }
            self.listen(mark, deadline)?;
        }
    }

    /// All that the console and standard error have said so far.
    pub fn said(&self) -> String {
        let mut errors = Vec::new();
        let mut file = &self.errors;
        let _ = file.rewind().and_then(|()| file.read_to_end(&mut errors));
        let console = String::from_utf8_lossy(&self.heard);
        format!("{console}{}", String::from_utf8_lossy(&errors))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SIGTERM first: a supervisor takes its children along.
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let _ = kill(pid, Signal::SIGTERM);
        let deadline = Deadline::after(Duration::from_secs(10));
        while !deadline.passed() {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The value of a word in a line.
pub fn word(line: &str, key: &str) -> Result<u64> {
    let mut words = line.split_whitespace();
    words
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
        .with_context(|| format!("no {key} in: {line}"))
}

/// Fails unless a guest's or a peer's line says that it passed.
pub fn passed(line: &str) -> Result<()> {
    if !line.contains("result=pass") {
        bail!("{line}");
    }
    Ok(())
}
