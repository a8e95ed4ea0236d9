//! The back-end programs under test, and how each is started.
//!
//! `OUTBOARD_BIN_DIR`, or `OUTBOARD_BIN`, which the scripts set, names a folder
//! with them; else they are built as the test was, debug or release.

use std::env;
use std::ffi::OsString;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::client::Client;
use crate::model::Daemon;

/// Where a program of ours is.
///
/// # Errors
/// It is not there and cannot be built.
pub fn path(name: &str) -> Result<PathBuf> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| folder().map_err(|error| format!("{error:#}")));
    let folder = folder.as_ref().map_err(|error| anyhow!("{error}"))?;
    Ok(folder.join(name))
}

fn folder() -> Result<PathBuf> {
    let named = env::var_os("OUTBOARD_BIN_DIR").or_else(|| env::var_os("OUTBOARD_BIN"));
    if let Some(folder) = named {
        return Ok(folder.into());
    }
    let test = env::current_exe()?;
    let folder = test.ancestors().nth(2).context("no target folder")?;
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--locked"]);
    cargo.args([
        "-p",
        "outboard-blk",
        "-p",
        "outboard-net",
        "-p",
        "outboard-rng",
    ]);
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let status = cargo.current_dir(workspace).status()?;
    if !status.success() {
        bail!("cargo build: {status}");
    }
    Ok(folder.to_owned())
}

/// A back-end that listens; ended when dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    daemon: Daemon,
    folder: TempDir,
}

impl Program {
    /// Starts `program` with the arguments that `arguments` makes of its
    /// socket and of a folder of its own.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(
        program: &Path,
        arguments: impl FnOnce(&Path, &Path) -> Vec<OsString>,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let arguments = arguments(&folder.path().join("socket"), folder.path());
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        // What it says of being cut off is no news in these tests.
        command.env("RUST_LOG", "error");
        let child = command
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let daemon = Daemon::Ours;
        Ok(Self {
            child,
            daemon,
            folder,
        })
    }

    /// `outboard-blk`, serving a file of `content`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn blk(content: &[u8], more: &[&str]) -> Result<Self> {
        Self::start(&path("outboard-blk")?, |socket, folder| {
            let image = folder.join("image");
            // A file that cannot be written is missed by the program.
            let _ = std::fs::write(&image, content);
            let ours = [
                option("--socket-path=", socket),
                option("--blk-file=", &image),
            ];
            ours.into_iter()
                .chain(more.iter().map(OsString::from))
                .collect()
        })
    }

    /// `outboard-net`, and the peer that it is connected to.
    ///
    /// # Errors
    /// It cannot be started, or does not connect.
    pub fn net() -> Result<(Self, UnixStream)> {
        let mut listener = None;
        let program = Self::start(&path("outboard-net")?, |socket, folder| {
            let peer = folder.join("peer");
            listener = UnixListener::bind(&peer).ok();
            vec![option("--socket-path=", socket), option("--peer=", &peer)]
        })?;
        let listener = listener.context("no socket for the peer")?;
        let (peer, _) = listener.accept()?;
        peer.set_read_timeout(Some(crate::soon().left()))?;
        peer.set_write_timeout(Some(crate::soon().left()))?;
        Ok((program, peer))
    }

    /// `outboard-rng`, on the stock daemon.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn rng() -> Result<Self> {
        let mut program = Self::start(&path("outboard-rng")?, |socket, _| {
            vec![option("--socket-path=", socket)]
        })?;
        program.daemon = Daemon::Stock;
        Ok(program)
    }

    /// Whose daemon it has.
    pub fn daemon(&self) -> Daemon {
        self.daemon
    }

    /// A new connection to it.
    ///
    /// # Errors
    /// It does not listen.
    pub fn client(&self) -> Result<Client> {
        Client::connect(&self.folder.path().join("socket"))
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Whether it runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills it: no request that it has is finished.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.is_alive() {
            let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
            let deadline = crate::soon();
            while self.is_alive() && !deadline.passed() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        self.kill();
    }
}

fn option(name: &str, path: &Path) -> OsString {
    let mut option = OsString::from(name);
    option.push(path);
    option
}
