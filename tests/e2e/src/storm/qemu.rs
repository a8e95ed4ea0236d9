//! outboard-blk that is started by the test, for a front-end that meets whoever comes next.
//!
//! ```text
//! it listens:      outboard-blk ◄── the front-end connects, and again when it is gone
//! QEMU listens:    outboard-blk ──► and one that waits: its connection is not accepted yet
//! ```
//! QEMU 7.2, where it connects, tries once a second (`reconnect=1`), so that is how long an
//! outage is there. Where it listens it takes the next connection at once, and each
//! back-end is lent an end of one, and the image, which is locked here for all of them.

use std::fs::{File, OpenOptions};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outboard_contract::program::{lend, option};
use outboard_protocol::image_lock::{self, Access};

use super::{BLK, Programs, Shape};
use crate::eventually;
use crate::image::Image;
use crate::processes::{self, is_listened_on};
use crate::vm::Run;

/// What QEMU calls the way to the back-end.
pub const CHARDEV: &str = "disk";

/// A back-end that this process has started. Dropped, it is killed.
#[derive(Debug)]
pub struct BackEnd {
    program: PathBuf,
    words: Vec<String>,
    socket: PathBuf,
    image: PathBuf,
    /// The image, open and locked, where the front-end listens.
    lent: Option<File>,
    child: Option<Child>,
    /// The next one, which waits.
    next: Option<Child>,
}

impl BackEnd {
    /// One that listens beside the image, once it is started; the words of the shape's
    /// disk are options of its own.
    pub fn new(programs: &Programs, shape: &Shape, image: &Image) -> Self {
        Self {
            program: programs.bin.join(BLK),
            words: shape.disk.split_whitespace().map(str::to_owned).collect(),
            socket: image.directory().join("blk.sock"),
            image: image.path().to_owned(),
            lent: None,
            child: None,
            next: None,
        }
    }

    /// The same for a front-end that listens there.
    pub fn that_connects(programs: &Programs, shape: &Shape, image: &Image) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(image.path())?;
        image_lock::lock(&file, Access::Write)?;
        let mut backend = Self::new(programs, shape, image);
        backend.lent = Some(file);
        Ok(backend)
    }

    fn spawn(&self) -> Result<Child> {
        let mut command = Command::new(&self.program);
        match &self.lent {
            Some(image) => {
                let connect = || Ok(UnixStream::connect(&self.socket).ok());
                lend(&mut command, eventually("QEMU listens", connect)?, 8)?;
                lend(&mut command, image, 9)?;
                command.args(["--fd=8", "--blk-fd=9"]);
            }
            None => {
                command.arg(option("--socket-path=", &self.socket));
                command.arg(option("--blk-file=", &self.image));
            }
        }
        command
            .arg("--num-queues=2")
            .args(&self.words)
            // Which front-end has come and gone is of no interest.
            .args(["--log-level", "error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context(BLK)
    }

    /// Starts it, once the last one is gone.
    ///
    /// The kernel gives back what a killed one had in flight, and with it the
    /// lock of the image, a moment after it has gone: until then none lives. One
    /// listens once it has that.
    pub fn start(&mut self) -> Result<()> {
        if self.lent.is_some() {
            self.child = Some(self.spawn()?);
            return Ok(());
        }
        eventually("the back-end listens", || {
            let over = match &mut self.child {
                Some(child) => child.try_wait()?.is_some(),
                None => true,
            };
            if over {
                self.child = Some(self.spawn()?);
            }
            Ok(is_listened_on(&self.socket).then_some(()))
        })
    }

    /// Has the next one wait for the end of this one, if the front-end listens.
    pub fn have_one_wait(&mut self) -> Result<()> {
        if self.lent.is_none() {
            return Ok(());
        }
        let mut next = self.spawn()?;
        let pid = Pid::from_raw(next.id().cast_signed());
        let ready = eventually("the next back-end is ready", || {
            let over = next.try_wait()?;
            ensure!(over.is_none(), "it has ended: {over:?}");
            Ok(processes::counters(pid).map(drop))
        });
        self.next = Some(next);
        ready
    }

    /// Kills it and starts the next one.
    pub fn replace(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL)?;
        self.start()
    }

    /// Ends it by a signal. The one that waited, if any, is the one that serves then.
    pub fn end(&mut self, signal: Signal) -> Result<()> {
        let mut child = self.child.take().context("no back-end")?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let struck = kill(pid, signal);
        let over = eventually("the back-end ends", || Ok(child.try_wait()?));
        if over.is_err() {
            // Nobody else would.
            let _ = child.kill();
        }
        struck?;
        self.child = self.next.take();
        over.map(drop)
    }

    /// Whether the front-end listens, and a back-end connects.
    pub fn connects(&self) -> bool {
        self.lent.is_some()
    }

    /// This as a disk of `outboard run`.
    pub fn disk(&self) -> String {
        format!("socket={},queues=2", self.socket.display())
    }

    /// QEMU's microvm with the guest and this as its disk. Its QMP is at this socket.
    pub fn front_end(&self, programs: &Programs, cmdline: &str, qmp: &Path) -> Run {
        let socket = self.socket.display();
        let how = match self.connects() {
            true => "server=on",
            false => "reconnect=1",
        };
        // ECAM's place is not in that machine's tables.
        let cmdline = format!("{cmdline} ecam=0xe0000000");
        Run::program("qemu-system-x86_64")
            .with("-M", "microvm,pcie=on,rtc=off,memory-backend=memory")
            .with(
                "-object",
                "memory-backend-memfd,id=memory,size=256M,share=on",
            )
            .with("-accel", "kvm")
            .with("-cpu", "host,-arch-capabilities")
            .with("-m", "256")
            .with("-smp", "2")
            .with("-display", "none")
            .with("-serial", "stdio")
            .switch("-no-reboot")
            .switch("-nodefaults")
            .switch("-no-user-config")
            .with("-kernel", &programs.guest)
            .with("-append", cmdline)
            .with("-qmp", format!("unix:{},server=on,wait=off", qmp.display()))
            .with(
                "-chardev",
                format!("socket,id={CHARDEV},path={socket},{how}"),
            )
            .with(
                "-device",
                format!("vhost-user-blk-pci,disable-legacy=on,chardev={CHARDEV},num-queues=2"),
            )
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        for child in [&mut self.child, &mut self.next].into_iter().flatten() {
            // It may have gone.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
