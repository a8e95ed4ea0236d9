//! Reads of 4 KiB by the bundled guest from a disk of outboard-blk, beside those
//! with another build's programs.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use crate::Products;
use crate::program::{Program, passed, word};
use crate::spread::Spread;

const WAIT: Duration = Duration::from_secs(120);
const IMAGE: u64 = 64 << 20;

/// How long it takes, and against what.
#[derive(Args)]
pub struct Options {
    /// Directory of the other build's programs.
    #[arg(long)]
    against: std::path::PathBuf,
    /// Pairs of runs in each row.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Milliseconds of each run.
    #[arg(long, default_value_t = 700)]
    millis: u64,
}

/// Runs each row on a tmpfs and on the file system of temporary files, from the
/// page cache, and prints it.
pub fn run(products: &Products, options: &Options) -> Result<()> {
    println!("4 KiB reads a second, 1 vCPU, 1 queue; this build / the other, pair by pair");
    let places = [
        ("tmpfs", Path::new("/dev/shm")),
        ("cached file", &std::env::temp_dir()),
    ];
    for (name, place) in places {
        let directory = tempfile::tempdir_in(place)?;
        let image = directory.path().join("disk.raw");
        fill(&image).with_context(|| format!("making {}", image.display()))?;
        for depth in [1, 32] {
            let (mut here, mut there, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
            for round in 0..=options.rounds {
                let one = |bin: &Path| once(bin, products, &image, depth, options.millis);
                // Each goes first in every other round.
                let (ours, theirs) = if round % 2 == 0 {
                    let ours = one(&products.bin)?;
                    (ours, one(&options.against)?)
                } else {
                    let theirs = one(&options.against)?;
                    (one(&products.bin)?, theirs)
                };
                // The first pair warms up and does not count.
                if round > 0 {
                    here.push(ours);
                    there.push(theirs);
                    ratios.push(ours / theirs);
                }
            }
            println!("  {name}, depth {depth}");
            println!("    this   {:.0}", Spread::new(here));
            println!("    other  {:.0}", Spread::new(there));
            println!("    ratio  {:.2}", Spread::new(ratios));
        }
    }
    Ok(())
}

/// An image without holes.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    let block = vec![0xa5; 1 << 20];
    for _ in 0..IMAGE >> 20 {
        file.write_all(&block)?;
    }
    Ok(file.sync_all()?)
}

fn once(bin: &Path, products: &Products, image: &Path, depth: u16, millis: u64) -> Result<f64> {
    let scenario = format!("scenario=measure rw=randread queues=1 depth={depth} millis={millis}");
    let mut command = Command::new(bin.join("outboard"));
    command
        .args(["run", "--memory", "256M", "--cpus", "1"])
        .args(["--cmdline", &scenario])
        .arg("--kernel")
        .arg(&products.guest)
        .arg("--disk")
        .arg(format!("path={},queues=1", image.display()));
    let line = Program::start(&mut command)?.line("OUTBOARD measure", WAIT)?;
    passed(&line)?;
    Ok(word(&line, "iops")? as f64)
}
