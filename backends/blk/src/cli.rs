//! The command line of a block back-end, and the disk that it asks for.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{ArgGroup, Parser};
use outboard_protocol::{image_blocks, size};
use outboard_runtime::device::Device;
use outboard_runtime::inherited;
use outboard_runtime::manual::after_help;
use outboard_runtime::program::{self, Capabilities};
use outboard_runtime::supervisor;

use crate::disk::{Blk, Disk, OnIoError, Settings, Storage};
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
    #[arg(long, value_name = "SIZE", value_parser = sectors)]
    null: Option<u64>,

    #[command(flatten)]
    options: Options,

    #[command(flatten)]
    settings: Settings,
}

/// A size in bytes; whole sectors.
fn sectors(text: &str) -> Result<u64, &'static str> {
    let size = size::parse(text).ok_or("give a number and a unit, K, M, G or T, as in 512M")?;
    // Offsets in a file are 63 bits.
    if size == 0 || !size.is_multiple_of(512) || size >= 1 << 63 {
        return Err("it must be a multiple of 512 bytes, more than 0, less than 8388608T");
    }
    Ok(size)
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
        let own = supervisor::own_image();
        let inherited = self.blk_fd.map(|number| {
            // With a description of its own it has no use for the shared one.
            let shared = inherited::take(number);
            own.transpose()
                .unwrap_or(shared.map_err(anyhow::Error::from))
        });
        program::run(&self.program, capabilities, || {
            anyhow::ensure!(
                self.settings.on_io_error == OnIoError::Report || supervisor::is_there(),
                "--on-io-error=pause needs somebody who pauses the VM and resumes it: give \
                 `on-io-error=pause` to `outboard run --disk`, which starts this program"
            );
            let storage = match (inherited, &self.blk_file, self.null) {
                (Some(fd), _, _) => {
                    let fd = fd.context("cannot use --blk-fd")?;
                    let image = match supervisor::is_there() {
                        true => Image::lent(fd, self.options)?,
                        false => Image::inherit(fd, self.options)?,
                    };
                    Storage::Image(image)
                }
                (None, Some(path), _) => Storage::Image(Image::open(path, self.options)?),
                (None, None, Some(size)) => null(size, self.options.block_size)?,
                (None, None, None) => anyhow::bail!("no disk: give --blk-file=PATH"),
            };
            Disk::new(storage, self.settings.clone()).map(|disk| device(Blk::new(disk)))
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
    fn a_disk_that_is_not_there_has_whole_sectors() {
        assert_eq!(sectors("512"), Ok(512));
        assert_eq!(sectors("512M"), Ok(512 << 20));
        assert_eq!(sectors("4G"), Ok(4 << 30));
        for wrong in ["", "G", "1", "0", "-1G", "4X", "4GB", "99999999T"] {
            assert!(sectors(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn queue_sizes_are_powers_of_two_and_what_is_not_given_has_its_default() {
        let with = |option: &str| {
            let given = ["outboard-blk", "--null=1M", option];
            Cli::try_parse_from(given.into_iter().filter(|word| !word.is_empty()))
        };
        let settings = with("").unwrap().settings;
        assert_eq!(
            format!("{settings:?}"),
            format!("{:?}", Settings::default())
        );
        let options = with("").unwrap().options;
        assert_eq!(format!("{options:?}"), format!("{:?}", Options::default()));
        assert_eq!(with("--queue-size=128").unwrap().settings.queue_size, 128);
        assert!(!with("--wce=off").unwrap().settings.writeback);
        assert!(with("--format=raw").unwrap().options.raw);
        for wrong in ["0", "1", "100", "65536", "x"] {
            assert!(with(&format!("--queue-size={wrong}")).is_err(), "{wrong:?}");
        }
    }
}
