//! QEMU as a front-end: a process, and its control socket (QMP).

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use outboard_e2e::PATIENCE;
use serde_json::{Value, json};

use crate::program::{self, Program};

/// A running QEMU.
#[derive(Debug)]
pub struct Qemu {
    program: Program,
    control: BufReader<UnixStream>,
    events: VecDeque<Value>,
}

impl Qemu {
    /// Starts it with these arguments, in software emulation; its control
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
        let stream = program::connect(&socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qemu = Self {
            program,
            control: BufReader::new(stream),
            events: VecDeque::new(),
        };
        ensure!(qemu.read()?.get("QMP").is_some(), "no greeting");
        qemu.execute("qmp_capabilities", json!({}))?;
        Ok(qemu)
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
    /// QEMU's, or it is gone.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({"execute": command, "arguments": arguments});
        self.control
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())?;
        loop {
            let mut answer = self.read()?;
            if answer.get("event").is_some() {
                self.events.push_back(answer);
            } else if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            } else {
                bail!("{line}: {answer}; it said:\n{}", self.said());
            }
        }
    }

    /// Waits for an event of this name, one that has come already included.
    ///
    /// # Errors
    /// None comes.
    pub fn event(&mut self, name: &str) -> Result<Value> {
        let end = Instant::now() + PATIENCE;
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => self.read().with_context(|| format!("waiting for {name}"))?,
            };
            if event.get("event").is_some_and(|found| found == name) {
                return Ok(event);
            }
            ensure!(Instant::now() < end, "no event {name}");
        }
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

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = self.control.read_line(&mut line);
        read.with_context(|| format!("QEMU is silent; it said:\n{}", self.program.said()))?;
        ensure!(!line.is_empty(), "QEMU is gone; it said:\n{}", self.said());
        Ok(serde_json::from_str(&line)?)
    }
}
