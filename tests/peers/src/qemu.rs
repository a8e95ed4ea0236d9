//! QEMU as a front-end: a process, and its control socket (QMP).

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use outboard_e2e::qmp::Qmp;
use serde_json::{Value, json};

use crate::program::{self, Program};

/// A running QEMU.
#[derive(Debug)]
pub struct Qemu {
    program: Program,
    control: Qmp,
}

impl Qemu {
    /// Starts it with these arguments; its control
    /// socket and its log are made in `directory`.
    ///
    /// # Errors
    /// It cannot be started; what it said.
    pub fn start(directory: &Path, arguments: &[String]) -> Result<Self> {
        let socket = directory.join("qmp.sock");
        let mut command =
            Command::new(program::find("qemu-system-x86_64").map_err(anyhow::Error::msg)?);
        command
            .args(arguments)
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()));
        let program = program::serving(&mut command, &socket)?;
        let control = Qmp::connect(&socket).with_context(|| program.said())?;
        Ok(Self { program, control })
    }

    /// Everything it said, and how it ended if it did, for a message.
    pub fn said(&mut self) -> String {
        let ended = match self.program.is_alive() {
            true => "",
            false => "it ended\n",
        };
        ended.to_owned() + &self.program.printed() + &self.program.said()
    }

    /// A command; its answer.
    ///
    /// # Errors
    /// QEMU's, or it is gone; what it said.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let answer = self.control.execute(command, arguments);
        answer.with_context(|| self.words())
    }

    /// Waits for an event of this name, one that has come already included.
    ///
    /// # Errors
    /// None comes.
    pub fn event(&mut self, name: &str) -> Result<Value> {
        let event = self.control.event(name);
        event.with_context(|| self.words())
    }

    /// Tells it to end, and checks that it does so in peace.
    ///
    /// # Errors
    /// It crashed, or hangs.
    pub fn quit(&mut self) -> Result<()> {
        self.execute("quit", json!({}))?;
        let status = self.program.wait()?;
        ensure!(
            status.success(),
            "QEMU: {status}; it said:\n{}",
            self.said()
        );
        Ok(())
    }

    fn words(&mut self) -> String {
        format!("QEMU said:\n{}", self.said())
    }
}
