//! From execve to the guest's first instructions.
//!
//! The bundled guest's entry stub writes `!` to the first serial port before
//! anything else. This process starts the VMM with that port on a pipe and
//! takes the time until the byte arrives.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::program::Program;
use crate::spread::Spread;
use crate::{Other, Products};

const WAIT: Duration = Duration::from_secs(60);
const TARGET_MS: f64 = 50.0;

/// The disk of each VM.
pub struct Image {
    path: PathBuf,
    _directory: TempDir,
}

impl Image {
    /// An empty one, where temporary files are.
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("disk.raw");
        std::fs::File::create(&path)
            .and_then(|file| file.set_len(64 << 20))
            .with_context(|| format!("making {}", path.display()))?;
        Ok(Self {
            path,
            _directory: directory,
        })
    }

    /// One start of these programs.
    pub fn outboard(&self, products: &Products) -> Result<Duration> {
        once(&mut outboard(products, &self.path))
    }
}

/// Runs all sides `runs` times, interleaved, and prints what it found.
pub fn run(products: &Products, runs: usize, other: &Other) -> Result<()> {
    let image = Image::new()?;
    let other = other.against.as_deref().map(|bin| products.beside(bin));
    let mut ours = Vec::new();
    let mut qemus = Vec::new();
    let mut others = Vec::new();
    for run in 0..=runs {
        let first = image.outboard(products)?;
        let qemu = once(&mut qemu(products, &image.path))?;
        let second = other.as_ref().map(|other| image.outboard(other));
        // The first of each warms the page cache and does not count.
        if run > 0 {
            ours.push(first);
            qemus.push(qemu);
            others.extend(second.transpose()?);
        }
    }
    let ratios = ratios(&qemus, &ours);
    let beside = (Spread::millis(&others), self::ratios(&ours, &others));
    let (ours, qemus) = (Spread::millis(&ours), Spread::millis(&qemus));
    let version = Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()?
        .stdout;
    let version = String::from_utf8_lossy(&version);
    println!("start-up, ms from execve to the guest's first byte, 1 vCPU, 256 MiB, one disk");
    println!("  outboard run   {ours}");
    println!("  QEMU microvm   {qemus}");
    println!("  QEMU/outboard  {ratios}");
    if other.is_some() {
        println!("  another build  {}", beside.0);
        println!("  this/another   {:.2}", beside.1);
    }
    println!(
        "  with {}",
        version.lines().next().unwrap_or("QEMU of unknown version")
    );
    let median = ours.quantile(0.5);
    let verdict = if median < TARGET_MS { "met" } else { "MISSED" };
    println!("  target: under {TARGET_MS} ms: {verdict} ({median:.1} ms)");
    Ok(())
}

/// How many times longer each of the first took than its neighbour.
fn ratios(longer: &[Duration], shorter: &[Duration]) -> Spread {
    let pairs = longer.iter().zip(shorter);
    Spread::new(
        pairs
            .map(|(a, b)| a.as_secs_f64() / b.as_secs_f64())
            .collect(),
    )
}

fn once(command: &mut Command) -> Result<Duration> {
    Program::start(command)?.hear("!", WAIT)
}

fn outboard(products: &Products, image: &Path) -> Command {
    let mut command = Command::new(products.bin.join("outboard"));
    command
        .args([
            "run",
            "--memory",
            "256M",
            "--cpus",
            "1",
            "--cmdline",
            "scenario=idle",
        ])
        .arg("--kernel")
        .arg(&products.guest)
        .arg("--disk")
        .arg(format!("path={},queues=1", image.display()));
    command
}

fn qemu(products: &Products, image: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args([
            "-M",
            "microvm,pcie=on,rtc=off",
            "-accel",
            "kvm",
            "-m",
            "256",
            "-smp",
            "1",
        ])
        .args([
            "-cpu",
            "host,-arch-capabilities",
            "-nodefaults",
            "-no-user-config",
        ])
        .args(["-display", "none", "-no-reboot", "-serial", "stdio"])
        .args([
            "-append",
            "scenario=idle",
            "-device",
            "virtio-blk-pci,drive=d",
        ])
        .arg("-kernel")
        .arg(&products.guest)
        .arg("-drive")
        .arg(format!("if=none,id=d,format=raw,file={}", image.display()));
    command
}
