//! The guest's console on our side: whom it writes to, and what it reads.
//!
//! A terminal stays with the supervisor, which reads it in raw mode, looks for
//! Ctrl-A x and passes the rest on through a pipe; the machine, which a guest
//! might take over, never holds the terminal's input. Any other input is
//! handed to the machine as it is.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe2, read};

use super::host::output::Output;
use super::say::say;
use super::terminal::{self, Input, Keys, RawMode};

/// What the machine is given.
#[derive(Debug)]
pub(crate) struct Ends {
    /// What the guest reads.
    pub(crate) input: Option<OwnedFd>,
    /// Where the guest writes.
    pub(crate) output: OwnedFd,
}

/// The console.
#[derive(Debug)]
pub(crate) struct Console {
    /// The file, or standard output.
    output: Option<File>,
    input: Input,
    raw: Option<RawMode>,
    keys: Keys,
    /// To the machine, while a terminal is read.
    pipe: Option<File>,
}

impl Console {
    /// Takes note of where the console is; touches nothing yet.
    pub(crate) fn new(output: Output) -> Self {
        let (output, input) = match output {
            Output::Stdio => (None, terminal::input(io::stdin().as_fd())),
            Output::File(file) => (Some(file), Input::None),
        };
        Self {
            output,
            input,
            raw: None,
            keys: Keys::default(),
            pipe: None,
        }
    }

    /// Makes what the next machine is given.
    ///
    /// # Errors
    /// Those of dup(2) and pipe2(2).
    pub(crate) fn ends(&mut self) -> io::Result<Ends> {
        let output = match &self.output {
            Some(file) => file.try_clone()?.into(),
            None => io::stdout().as_fd().try_clone_to_owned()?,
        };
        let input = match self.input {
            Input::Background | Input::None => None,
            Input::Other => Some(io::stdin().as_fd().try_clone_to_owned()?),
            Input::Terminal => {
                let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
                // A guest that does not read must not stop us.
                fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
                self.pipe = Some(writer.into());
                Some(reader)
            }
        };
        Ok(Ends { input, output })
    }

    /// The guest runs: a terminal becomes its own.
    pub(crate) fn running(&mut self) {
        if self.input != Input::Terminal || self.raw.is_some() {
            return;
        }
        match RawMode::enter() {
            Ok(raw) => {
                say("Ctrl-A x ends the VM");
                self.raw = Some(raw);
            }
            Err(error) => say(&format!("the terminal cannot be made raw: {error}")),
        }
    }

    /// The guest's run is over: a terminal is the user's again.
    pub(crate) fn ended(&mut self) {
        self.raw = None;
    }

    /// What to watch for [`Self::typed`], if anything.
    pub(crate) fn watched(&self) -> Option<io::Stdin> {
        self.raw
            .as_ref()
            .and(self.pipe.as_ref())
            .map(|_| io::stdin())
    }

    /// Something was typed: passes it on. Returns whether the VM is to end.
    pub(crate) fn typed(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let count = match read(io::stdin(), &mut bytes) {
            Ok(count) if count > 0 => count,
            Err(Errno::EINTR | Errno::EAGAIN) => return false,
            // The terminal is gone; SIGHUP tells what to do.
            _ => {
                self.pipe = None;
                return false;
            }
        };
        let mut text = Vec::new();
        let typed = bytes.get(..count).unwrap_or_default();
        let quit = self.keys.type_in(typed, &mut text);
        if let Some(pipe) = &mut self.pipe
            && let Err(error) = pipe.write_all(&text)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            self.pipe = None;
        }
        quit
    }
}
