//! The back-end programs of ours, and how each is started.
//!
//! `OUTBOARD_BIN_DIR`, or `OUTBOARD_BIN`, which the scripts set, names a folder
//! with them; else they are built as the test was, debug or release.

use std::env;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};

use crate::program::{Program, command, option};

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
    for name in ["outboard-blk", "outboard-net", "outboard-rng"] {
        cargo.args(["-p", name]);
    }
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

/// `outboard-blk`, serving the file `image` of `content` in its folder.
///
/// # Errors
/// It cannot be started.
pub fn blk(content: &[u8], more: &[&str]) -> Result<Program> {
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("image");
    std::fs::write(&image, content)?;
    let mut disk = command(path("outboard-blk")?, more);
    Program::serve_in(folder, disk.arg(option("--blk-file=", &image)))
}

/// `outboard-net`, and the peer that it is connected to.
///
/// # Errors
/// It cannot be started, or does not connect.
pub fn net() -> Result<(Program, UnixStream)> {
    connected(path("outboard-net")?, &[])
}

/// A card's program, and the peer that it is connected to: at the socket `peer`
/// in its folder.
///
/// # Errors
/// It cannot be started, or does not connect.
pub fn connected(program: PathBuf, more: &[&str]) -> Result<(Program, UnixStream)> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("peer");
    let listener = UnixListener::bind(&socket)?;
    listener.set_nonblocking(true)?;
    let mut card = command(program, more);
    let program = Program::serve_in(folder, card.arg(option("--peer=", &socket)))?;
    let (peer, _) = program.until("it connects", || listener.accept().ok())?;
    Ok((program, patient(peer)?))
}

/// A peer's end that waits for its answers, but not without end.
///
/// # Errors
/// Those of setsockopt(2).
pub fn patient(peer: UnixStream) -> Result<UnixStream> {
    peer.set_nonblocking(false)?;
    peer.set_read_timeout(Some(crate::soon().left()))?;
    peer.set_write_timeout(Some(crate::soon().left()))?;
    Ok(peer)
}

/// `outboard-rng`, on the stock daemon.
///
/// # Errors
/// It cannot be started.
pub fn rng() -> Result<Program> {
    Program::serve(&mut command(path("outboard-rng")?, &[""; 0]))
}
