//! The Linux guest in QEMU. Its agent (`guest-agent` beside this crate's
//! manifest) runs one line of shell after another that comes on a
//! port of virtio-serial, and answers each with its output and its status.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use outboard_e2e::while_it_moves;

use crate::program;

/// How long a line of shell may say nothing. Four processors are emulated on two or fewer.
const PATIENCE: Duration = Duration::from_secs(600);

/// A guest that was told to boot.
#[derive(Debug)]
pub struct Guest {
    port: BufReader<UnixStream>,
    console: PathBuf,
}

impl Guest {
    /// QEMU's arguments for the console and the agent's port in `directory`.
    pub fn arguments(directory: &Path) -> Vec<String> {
        let directory = directory.display();
        vec![
            "-serial".into(),
            format!("file:{directory}/console"),
            "-chardev".into(),
            format!("socket,id=agent,path={directory}/agent.sock,server=on,wait=off"),
            "-device".into(),
            "virtio-serial-pci,addr=10".into(),
            "-device".into(),
            "virtserialport,chardev=agent,name=agent".into(),
        ]
    }

    /// Connects to the port of a QEMU that runs.
    ///
    /// # Errors
    /// It is not there.
    pub fn connect(directory: &Path) -> Result<Self> {
        let port = program::connect(&directory.join("agent.sock"))?;
        port.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            port: BufReader::new(port),
            console: directory.join("console"),
        })
    }

    /// Waits until the guest has booted.
    ///
    /// # Errors
    /// It does not; with what its kernel said.
    pub fn booted(&mut self) -> Result<()> {
        while self.line("booting")? != "=== ready" {}
        Ok(())
    }

    /// Runs a line of shell; its output, without the last end of line.
    ///
    /// # Errors
    /// Its status is not 0, or it takes too long.
    pub fn run(&mut self, line: &str) -> Result<String> {
        ensure!(!line.contains('\n'), "{line:?} is more than a line");
        self.tell(line)?;
        let mut output = String::new();
        loop {
            let said = self.line(line)?;
            match said.strip_prefix("=== ") {
                Some("0") => return Ok(output.trim_end().to_owned()),
                Some(status) => bail!("in the guest: {line}: status {status}\n{output}"),
                None => output.extend([said.as_str(), "\n"]),
            }
        }
    }

    /// Gives it a line of shell that it will not answer.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        self.port
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())?;
        Ok(())
    }

    /// Starts a line of shell in the background, for [`Self::finished`].
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn start(&mut self, name: &str, line: &str) -> Result<()> {
        self.run(&format!(
            "rm -f /tmp/{name}.status; ({line}; echo $? >/tmp/{name}.now; mv /tmp/{name}.now /tmp/{name}.status) \
             >/tmp/{name}.log 2>&1 &"
        ))?;
        Ok(())
    }

    /// Whether what was started has ended; its output if it did well.
    ///
    /// # Errors
    /// It failed.
    pub fn status(&mut self, name: &str) -> Result<Option<String>> {
        match self
            .run(&format!(
                "cat /tmp/{name}.status 2>/dev/null || echo running"
            ))?
            .as_str()
        {
            "running" => Ok(None),
            "0" => Ok(Some(self.run(&format!("cat /tmp/{name}.log"))?)),
            status => {
                let log = self.run(&format!("cat /tmp/{name}.log"))?;
                bail!("in the guest: {name}: status {status}\n{log}")
            }
        }
    }

    /// Waits for the end of what was started, as long as something moves on
    /// the guest's disks or network.
    ///
    /// # Errors
    /// It failed, or stands still.
    pub fn finished(&mut self, name: &str) -> Result<String> {
        let guest = RefCell::new(self);
        while_it_moves(
            &format!("{name} in the guest ends"),
            || guest.borrow_mut().run("cat /proc/diskstats /proc/net/dev"),
            || guest.borrow_mut().status(name),
        )
    }

    fn line(&mut self, during: &str) -> Result<String> {
        let mut line = Vec::new();
        let read = self.port.read_until(b'\n', &mut line);
        read.with_context(|| {
            format!(
                "the guest is silent ({during}); its console:\n{}",
                self.console()
            )
        })?;
        ensure!(
            !line.is_empty(),
            "the guest is gone ({during}); its console:\n{}",
            self.console()
        );
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    fn console(&self) -> String {
        let bytes = std::fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}
