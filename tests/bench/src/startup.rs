//! From execve to the guest's first instructions.
//!
//! The bundled guest's entry stub writes `!` to the first serial port before
//! anything else. This process starts the VMM with that port on a pipe and
//! takes the time until the byte arrives.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::Products;
use crate::program::Program;
use crate::spread::Spread;

const WAIT: Duration = Duration::from_secs(60);
const TARGET_MS: f64 = 50.0;

/// Runs both sides `runs` times, interleaved, and prints what it found.
pub fn run(products: &Products, runs: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let image = directory.path().join("disk.raw");
    std::fs::File::create(&image)
        .and_then(|file| file.set_len(64 << 20))
        .with_context(|| format!("making {}", image.display()))?;
    let mut ours = Vec::new();
    let mut qemus = Vec::new();
    for run in 0..=runs {
        let outboard = once(&mut outboard(products, &image))?;
        let qemu = once(&mut qemu(products, &image))?;
        // The first of each warms the page cache and does not count.
        if run > 0 {
            ours.push(outboard);
            qemus.push(qemu);
        }
    }
    let ratios = ours
        .iter()
        .zip(&qemus)
        .map(|(a, b)| b.as_secs_f64() / a.as_secs_f64());
    let ratios = Spread::new(ratios.collect());
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
    println!(
        "  with {}",
        version.lines().next().unwrap_or("QEMU of unknown version")
    );
    let median = ours.quantile(0.5);
    let verdict = if median < TARGET_MS { "met" } else { "MISSED" };
    println!("  target: under {TARGET_MS} ms: {verdict} ({median:.1} ms)");
    Ok(())
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
