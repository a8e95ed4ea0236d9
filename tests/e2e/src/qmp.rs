//! QMP: QEMU's control socket.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{PATIENCE, eventually};

/// A connection. Each wait on it has a limit.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects as soon as somebody listens.
    ///
    /// # Errors
    /// Nobody does, or it is no QEMU.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = eventually("QEMU listens", || Ok(UnixStream::connect(socket).ok()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Self {
            stream: BufReader::new(stream),
            events: VecDeque::new(),
        };
        ensure!(qmp.read()?.get("QMP").is_some(), "no greeting");
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// A command; its answer.
    ///
    /// # Errors
    /// QEMU's, or it is gone.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({"execute": command, "arguments": arguments});
        self.stream
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())?;
        loop {
            let mut answer = self.read()?;
            if answer.get("event").is_some() {
                self.events.push_back(answer);
            } else if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            } else {
                bail!("{line}: {answer}");
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

    /// Waits until a chardev that is a socket is connected, or is not. No event tells.
    ///
    /// # Errors
    /// It does not come about, or there is no such chardev.
    pub fn until_chardev(&mut self, label: &str, connected: bool) -> Result<()> {
        let what = format!("chardev {label} has connected={connected}");
        eventually(&what, || {
            let all = self.execute("query-chardev", json!({}))?;
            let mut all = all.as_array().into_iter().flatten();
            let this = all.find(|chardev| chardev["label"] == label);
            let name = this.and_then(|chardev| chardev["filename"].as_str());
            let is = !name.context("no chardev")?.starts_with("disconnected:");
            Ok((is == connected).then_some(()))
        })
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line);
        read.context("QEMU is silent")?;
        ensure!(!line.is_empty(), "QEMU is gone");
        Ok(serde_json::from_str(&line)?)
    }
}
