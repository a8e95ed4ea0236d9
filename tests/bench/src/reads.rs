//! Disks of outboard-blk from which the bundled guest reads blocks of 4 KiB.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::Products;
use crate::program::{Program, passed, word};

const WAIT: Duration = Duration::from_secs(120);
const IMAGE: u64 = 64 << 20;
/// A tmpfs.
const MEMORY: &str = "/dev/shm";
/// The kernel's own disk of nothing, null_blk's.
const NULL: &str = "/dev/nullb0";

/// A disk, and the directory that ends with it.
pub struct Disk {
    /// Its part of `--disk`.
    options: String,
    _directory: Option<TempDir>,
}

impl Disk {
    /// One behind which is nothing: null_blk where that can be opened, else a
    /// hole in a tmpfs, whose zeroes have no pages. Which it is, is printed.
    pub fn null() -> Result<Self> {
        match File::open(NULL) {
            Ok(_) => {
                println!("null is {NULL}, past the page cache");
                Ok(Self {
                    options: format!("path={NULL},direct,readonly"),
                    _directory: None,
                })
            }
            Err(why) => {
                println!("null is a sparse file in {MEMORY}, as {NULL} cannot be opened: {why}");
                Self::image(Path::new(MEMORY), |file| file.set_len(IMAGE))
            }
        }
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
        let path: PathBuf = directory.path().join("disk.raw");
        File::create(&path)
            .and_then(|mut file| make(&mut file))
            .with_context(making)?;
        Ok(Self {
            options: format!("path={}", path.display()),
            _directory: Some(directory),
        })
    }

    /// Random reads a second of a guest with one CPU and one queue, so many in
    /// flight, in a run of so many milliseconds.
    pub fn reads_a_second(&self, products: &Products, depth: u16, millis: u64) -> Result<f64> {
        let scenario =
            format!("scenario=measure rw=randread queues=1 depth={depth} millis={millis}");
        let mut command = Command::new(products.bin.join("outboard"));
        command
            .args(["run", "--memory", "256M", "--cpus", "1"])
            .args(["--cmdline", &scenario])
            .arg("--kernel")
            .arg(&products.guest)
            .arg("--disk")
            .arg(format!("{},queues=1", self.options));
        let line = Program::start(&mut command)?.line("OUTBOARD measure", WAIT)?;
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
