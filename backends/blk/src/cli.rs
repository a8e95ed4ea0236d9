//! The command line of a block back-end, and the disk that it asks for.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{ArgGroup, Parser, ValueEnum};
use outboard_protocol::image_blocks;
use outboard_runtime::device::Device;
use outboard_runtime::inherited;
use outboard_runtime::manual::after_help;
use outboard_runtime::program::{self, Capabilities};

use crate::disk::{Blk, Disk, Settings, Storage};
use crate::engine::Choice;
use crate::image::{Image, Options};

const USAGE: &str = "outboard-blk [--socket-path PATH | --fd FDNUM] \
    {--blk-file PATH | --blk-fd FDNUM | --null SIZE} [OPTIONS]";

const EXAMPLES: &str = "\
Examples:
  Serve an image to QEMU, Outboard or any other vhost-user front-end:
    truncate -s 64M /tmp/disk.img
    outboard-blk --socket-path=/tmp/disk.sock --blk-file=/tmp/disk.img
  The same, past the page cache, with four queues and no write cache:
    outboard-blk --socket-path=/tmp/disk.sock --blk-file=/tmp/disk.img \\
        --direct --num-queues=4 --wce=off
  A disk that is not there, to measure everything but the disk:
    outboard-blk --socket-path=/tmp/null.sock --null=4G";

/// Serve a raw image or a block device as a virtio disk over vhost-user
#[derive(Debug, Parser)]
#[command(
    version = outboard_version::VERSION,
    override_usage = USAGE,
    after_help = EXAMPLES,
    after_long_help = after_help(EXAMPLES),
    group(ArgGroup::new("storage").args(["blk_file", "blk_fd", "null"])),
)]
pub struct Cli {
    #[command(flatten)]
    program: program::Args,

    /// The disk: a raw image file or a block device
    #[arg(long, value_name = "PATH", required_unless_present_any = ["blk_fd", "null", "print_capabilities"])]
    blk_file: Option<PathBuf>,

    /// The disk: an inherited descriptor that its opener has locked
    #[arg(long, value_name = "FDNUM")]
    blk_fd: Option<RawFd>,

    /// No disk: reads give zeroes, writes vanish (suffixes K, M, G, T)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    null: Option<u64>,

    /// Format of the image; raw serves one that looks like another format
    #[arg(long, value_name = "raw", value_parser = format)]
    format: Option<Raw>,

    /// Open the image read-only, and show the driver a read-only disk
    #[arg(long)]
    read_only: bool,

    /// Bypass the page cache (O_DIRECT)
    #[arg(long)]
    direct: bool,

    /// Block size that the guest sees, 512 or 4096 [default: 512, a block device's own]
    #[arg(long, value_name = "BYTES", value_parser = block_size)]
    block_size: Option<u32>,

    /// Number of queues
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    num_queues: u16,

    /// Largest queue size, a power of two from 2 to 32768
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = queue_size)]
    queue_size: u16,

    /// Serial number that the guest reads, 20 bytes at most; without it there is none
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = serial)]
    serial: String,

    /// Write cache, until the driver changes it; off: a write is done when it is durable
    #[arg(long, value_name = "STATE", default_value = "on")]
    wce: OnOff,

    /// How to do I/O; auto: io_uring if the kernel permits it, else threads
    #[arg(long, value_name = "ENGINE", default_value = "auto")]
    engine: EngineName,
}

/// The only format there is.
#[derive(Clone, Copy, Debug)]
struct Raw;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnOff {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum EngineName {
    Auto,
    #[value(name = "io_uring")]
    IoUring,
    Threads,
}

impl From<EngineName> for Choice {
    fn from(name: EngineName) -> Self {
        match name {
            EngineName::Auto => Self::Auto,
            EngineName::IoUring => Self::IoUring,
            EngineName::Threads => Self::Threads,
        }
    }
}

/// A size in bytes, with a suffix or without; whole sectors.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text.get(digits.len()..).unwrap_or_default() {
        "" => 1,
        "K" | "k" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        other => {
            return Err(format!(
                "{other:?} is no unit; use K, M, G or T, as in 512M"
            ));
        }
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "give a number and a unit, as in 512M".to_owned())?;
    match number.checked_mul(unit) {
        // Offsets in a file are 63 bits.
        Some(size) if size > 0 && size.is_multiple_of(512) && size < 1 << 63 => Ok(size),
        _ => Err("it must be a multiple of 512 bytes, more than 0, less than 8388608T".into()),
    }
}

fn block_size(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" => Ok(4096),
        _ => Err("give 512 or 4096".into()),
    }
}

fn format(text: &str) -> Result<Raw, String> {
    match text {
        "raw" => Ok(Raw),
        _ => Err(
            "images are served raw; convert it with `qemu-img convert -O raw`, \
                  or have qemu-storage-daemon serve it"
                .into(),
        ),
    }
}

fn queue_size(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(size) if size.is_power_of_two() && (2..=32768).contains(&size) => Ok(size),
        _ => Err("it must be a power of two from 2 to 32768".into()),
    }
}

fn serial(text: &str) -> Result<String, String> {
    match text.len() {
        0..=20 => Ok(text.to_owned()),
        length => Err(format!("it has {length} bytes, 20 are the most")),
    }
}

impl Cli {
    /// Serves the disk that the command line asks for, as `device` makes it
    /// of ours: `outboard-blk` takes it as it is. Call it first of all, since
    /// inherited descriptors are taken by number; see [`program::run`] for
    /// what happens then.
    pub fn serve<D: Device>(self, device: impl FnOnce(Blk) -> D) -> ExitCode {
        let capabilities = Capabilities {
            kind: "block",
            features: &["read-only", "blk-file"],
        };
        // Before anything else opens descriptors, and that number with it.
        let inherited = self.blk_fd.map(inherited::take);
        program::run(&self.program, capabilities, || {
            let options = Options {
                read_only: self.read_only,
                direct: self.direct,
                block_size: self.block_size,
                raw: self.format.is_some(),
            };
            let storage = match (inherited, &self.blk_file, self.null) {
                (Some(fd), _, _) => {
                    let fd = fd.context("cannot use --blk-fd")?;
                    Storage::Image(Image::inherit(fd, options)?)
                }
                (None, Some(path), _) => Storage::Image(Image::open(path, options)?),
                (None, None, Some(size)) => null(size, self.block_size)?,
                (None, None, None) => anyhow::bail!("no disk: give --blk-file=PATH"),
            };
            let settings = Settings {
                queues: self.num_queues,
                queue_size: self.queue_size,
                serial: self.serial.clone(),
                writeback: self.wce == OnOff::On,
                engine: self.engine.into(),
            };
            Disk::new(storage, settings).map(|disk| device(Blk::new(disk)))
        })
    }
}

/// A disk that is not there.
fn null(size: u64, block_size: Option<u32>) -> anyhow::Result<Storage> {
    let block_size = block_size.unwrap_or(image_blocks::SECTOR);
    anyhow::ensure!(
        size.is_multiple_of(block_size.into()),
        "--null={size} is not a multiple of --block-size={block_size}; give one that is"
    );
    Ok(Storage::Null { size, block_size })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("4G"), Ok(4 << 30));
        for wrong in ["", "G", "1", "0", "-1G", "4X", "4GB", "99999999T"] {
            assert!(size(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn queue_sizes_are_powers_of_two() {
        assert_eq!(queue_size("128"), Ok(128));
        for wrong in ["0", "1", "100", "65536", "x"] {
            assert!(queue_size(wrong).is_err(), "{wrong:?}");
        }
    }
}
