//! Which limits a disk has, and what else it shows of itself: its own, or those that it
//! shares with qemu-storage-daemon.
//!
//! A driver reads a disk's configuration once, and goes by it for as long as it runs.
//! Another program can take the disk over meanwhile if it says the same:
//! `tests/contract` compares what qemu-storage-daemon says with [`Profile::Portable`].

use anyhow::ensure;

use crate::request::Bounds;

/// Most data segments in a request: what Linux asked for before it could be
/// told. Longer lists save nothing and cost memory in every request.
pub const SEG_MAX: u32 = 126;
/// Serial number of each disk of qemu-storage-daemon.
const SERIAL: &str = "vhost_user_blk";

/// Limits, topology and serial number of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// As the image and this program have them.
    #[default]
    Native,
    /// As qemu-storage-daemon has them.
    Portable,
}

impl Profile {
    /// The bounds of a discard and a write-zeroes.
    pub fn bounds(self) -> Bounds {
        match self {
            Self::Native => Bounds::default(),
            Self::Portable => Bounds {
                segments: 1,
                discard: 1 << 15,
                write_zeroes: 1 << 15,
            },
        }
    }

    /// The serial number of a disk that is given this one.
    pub fn serial(self, given: &str) -> &str {
        match self {
            Self::Native => given,
            Self::Portable => SERIAL,
        }
    }

    /// Whether a disk can have this profile together with these other settings.
    ///
    /// # Errors
    /// Says which it cannot have, and why.
    pub fn check(self, serial: &str, queue_size: u16) -> anyhow::Result<()> {
        if self == Self::Native {
            return Ok(());
        }
        ensure!(
            serial.is_empty(),
            "--profile=portable and --serial exclude each other: the serial number of a portable \
             disk is \"{SERIAL}\", the one that qemu-storage-daemon says"
        );
        // Header and status take a descriptor each.
        let needed = SEG_MAX.saturating_add(2);
        ensure!(
            u32::from(queue_size) >= needed,
            "--profile=portable needs --queue-size={needed} or more: a portable disk has requests \
             of {SEG_MAX} segments"
        );
        Ok(())
    }
}
