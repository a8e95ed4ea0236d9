//! outboard-blk at a socket, for a front-end that reconnects to whoever listens there.
//!
//! QEMU 7.2 tries once a second, so that is how long an outage is there.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::{BLK, Programs, Shape};
use crate::eventually;
use crate::image::Image;
use crate::processes::is_listened_on;
use crate::vm::Run;

/// A back-end that this process has started. Dropped, it is killed.
#[derive(Debug)]
pub struct BackEnd {
    command: Command,
    socket: PathBuf,
    child: Child,
}

impl BackEnd {
    /// Starts one that listens beside the image; the words of the shape's disk
    /// are options of its own.
    pub fn start(programs: &Programs, shape: &Shape, image: &Image) -> Result<Self> {
        let socket = image.directory().join("blk.sock");
        let mut command = Command::new(programs.bin.join(BLK));
        command
            .arg(format!("--socket-path={}", socket.display()))
            .arg(format!("--blk-file={}", image.path().display()))
            .arg("--num-queues=2")
            .args(shape.disk.split_whitespace())
            // Which front-end has come and gone is of no interest.
            .args(["--log-level", "error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let child = command.spawn().context(BLK)?;
        let mut backend = Self {
            command,
            socket,
            child,
        };
        backend.until_it_listens()?;
        Ok(backend)
    }

    /// The kernel gives back what a killed one had in flight, and with it the
    /// lock of the image, a moment after it has gone: until then none lives. One
    /// listens once it has that.
    fn until_it_listens(&mut self) -> Result<()> {
        eventually("the back-end listens", || {
            if self.child.try_wait()?.is_some() {
                self.child = self.command.spawn().context(BLK)?;
            }
            Ok(is_listened_on(&self.socket).then_some(()))
        })
    }

    /// Kills it and starts the next one.
    pub fn replace(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = self.command.spawn().context(BLK)?;
        self.until_it_listens()
    }

    /// This as a disk of `outboard run`.
    pub fn disk(&self) -> String {
        format!("socket={},queues=2", self.socket.display())
    }

    /// QEMU's microvm with the guest and this as its disk.
    pub fn front_end(&self, programs: &Programs, cmdline: &str) -> Run {
        let socket = self.socket.display();
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
            .with(
                "-chardev",
                format!("socket,id=disk,path={socket},reconnect=1"),
            )
            .with(
                "-device",
                "vhost-user-blk-pci,disable-legacy=on,chardev=disk,num-queues=2",
            )
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        // It may have gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
