//! A qemu-storage-daemon that serves a storm's image at a socket of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;

use crate::eventually;
use crate::processes::is_listened_on;

/// The program.
pub const PROGRAM: &str = "qemu-storage-daemon";

/// One that listens. Dropped, it is killed.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    /// Starts one on an image that a VM has locked, with two queues.
    ///
    /// # Errors
    /// It does not listen.
    pub fn start(image: &Path, socket: PathBuf, direct: bool) -> Result<Self> {
        let mut file = format!(
            "file,node-name=disk,locking=off,filename={}",
            image.display()
        );
        if direct {
            file.push_str(",cache.direct=on,aio=native");
        }
        let export = format!(
            "vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=2,\
             addr.type=unix,addr.path={}",
            socket.display()
        );
        let mut child = Command::new(PROGRAM)
            .args(["--blockdev", &file, "--export", &export])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context(PROGRAM)?;
        let listens = eventually("the storage daemon listens", || {
            let over = child.try_wait()?;
            ensure!(over.is_none(), "it has ended: {over:?}");
            Ok(is_listened_on(&socket).then_some(()))
        });
        let daemon = Self { child, socket };
        listens.map(|()| daemon)
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// It.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Kills it.
    ///
    /// # Errors
    /// The system does not let it.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}
