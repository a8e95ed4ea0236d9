//! Disks of outboard-blk from which the bundled guest reads blocks of 4 KiB.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::Products;
use crate::program::{Program, passed, word};

const WAIT: Duration = Duration::from_secs(120);
const IMAGE: u64 = 64 << 20;
/// A tmpfs.
pub const MEMORY: &str = "/dev/shm";
const IMAGE_NAME: &str = "disk.raw";

/// A disk, and the directory that ends with it.
pub struct Disk {
    directory: TempDir,
    /// Behind which is nothing.
    is_null: bool,
}

impl Disk {
    /// One behind which is nothing: `outboard-blk --null`.
    pub fn null() -> Result<Self> {
        Ok(Self {
            directory: tempfile::tempdir().context("making a directory")?,
            is_null: true,
        })
    }

    /// One whose image is in a tmpfs.
    pub fn tmpfs() -> Result<Self> {
        Self::image(Path::new(MEMORY), fill)
    }

    /// One whose image is where temporary files are, and in the page cache.
    pub fn cached() -> Result<Self> {
        Self::image(&std::env::temp_dir(), fill)
    }

    fn image(place: &Path, make: fn(&mut File) -> std::io::Result<()>) -> Result<Self> {
        let making = || format!("making an image in {}", place.display());
        let directory = tempfile::tempdir_in(place).with_context(making)?;
        File::create(directory.path().join(IMAGE_NAME))
            .and_then(|mut file| make(&mut file))
            .with_context(making)?;
        Ok(Self {
            directory,
            is_null: false,
        })
    }

    /// Random reads a second of a guest with one CPU and one queue, so many in
    /// flight, in a run of so many milliseconds.
    pub fn reads_a_second(&self, products: &Products, depth: u16, millis: u64) -> Result<f64> {
        let place = |name| self.directory.path().join(name);
        let mut served = None;
        let disk = match self.is_null {
            false => format!("path={}", place(IMAGE_NAME).display()),
            true => {
                let socket = place("socket");
                let mut back_end = Command::new(products.bin.join("outboard-blk"));
                back_end.arg(format!("--null={IMAGE}"));
                back_end.arg(format!("--socket-path={}", socket.display()));
                served = Some(Program::start(&mut back_end)?);
                format!("socket={},wait=20s", socket.display())
            }
        };
        let scenario =
            format!("scenario=measure rw=randread queues=1 depth={depth} millis={millis}");
        let mut command = Command::new(products.bin.join("outboard"));
        command
            .args(["run", "--memory", "256M", "--cpus", "1"])
            .args(["--cmdline", &scenario])
            .arg("--kernel")
            .arg(&products.guest)
            .arg("--disk")
            .arg(format!("{disk},queues=1"));
        let line = Program::start(&mut command)?.line("OUTBOARD measure", WAIT)?;
        drop(served);
        passed(&line)?;
        Ok(word(&line, "iops")? as f64)
    }
}

/// Without holes.
fn fill(file: &mut File) -> std::io::Result<()> {
    let block = vec![0xa5; 1 << 20];
    for _ in 0..IMAGE >> 20 {
        file.write_all(&block)?;
    }
    file.sync_all()
}
