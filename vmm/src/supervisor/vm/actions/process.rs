//! The machine process: its start, and what it is sent.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use outboard_protocol::launch::{Channel, MESSAGES_VERSION, StartFd, ToMachine};

use super::{Hands, Machine};
use crate::supervisor::process::child::Child;
use crate::supervisor::vm::machine_line::MachineLine;

impl Hands<'_> {
    pub(super) fn start_machine(&mut self) -> Result<()> {
        let resources = &*self.resources;
        let (channel, theirs) = Channel::pair().context("a socket pair")?;
        let args = ["machine".to_owned()];
        let environment = resources.logging.environment(None);
        let ends = self.console.ends().context("the console")?;
        let mut fds = vec![
            (StartFd::Kvm, copy(&resources.kvm)?),
            (StartFd::Kernel, copy(&resources.kernel)?),
            (StartFd::ConsoleOut, ends.output),
        ];
        if let Some(initrd) = &resources.initrd {
            fds.push((StartFd::Initrd, copy(initrd)?));
        }
        fds.extend(ends.input.map(|fd| (StartFd::ConsoleIn, fd)));
        let (names, fds) = fds.into_iter().unzip();
        let specs = self.backends.iter();
        let specs = specs.map(|backend| backend.opened().spec.clone());
        let start = ToMachine::Start {
            version: MESSAGES_VERSION,
            machine: resources.machine.clone(),
            devices: specs.collect(),
            fds: names,
        };
        let theirs = [theirs.as_fd()];
        let child = Child::start(
            self.parent,
            &resources.program,
            &args,
            &environment,
            &theirs,
        );
        let child = child.context("starting the machine process")?;
        let line = MachineLine::new(channel);
        self.machine = Some(Machine { child, line });
        self.send(start, fds);
        self.is_whole = true;
        Ok(())
    }

    /// Its process is gone.
    pub(super) fn forget_machine(&mut self) {
        if let Some(machine) = self.machine.take() {
            machine.line.end();
        }
    }

    /// Sends to the machine, now or when it reads. One that is gone is found by its
    /// descriptor, with how it ended; so a failure to send says nothing more.
    pub(super) fn send(&mut self, message: ToMachine, fds: Vec<OwnedFd>) {
        if let Some(machine) = &mut self.machine {
            machine.line.send(message, fds);
        }
    }
}

fn copy(file: &File) -> io::Result<OwnedFd> {
    Ok(file.try_clone()?.into())
}
