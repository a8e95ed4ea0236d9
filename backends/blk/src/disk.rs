//! A disk as the driver sees it: features, configuration space, queues
//! (virtio 1.3, section 5.2).

mod device;
mod resize;
mod shown;

use std::fs::File;
use std::io;
use std::sync::{Arc, OnceLock};

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use outboard_runtime::Notifier;
use outboard_runtime::guest_buffers::GuestBuffers;

pub use self::device::Blk;
use crate::capacity::Capacity;
use crate::durability::Durability;
use crate::engine::{Choice, Engine, Null};
use crate::hold::Holds;
use crate::image::{Alignment, Image};
use crate::profile::Profile;
use crate::request::{Bounds, ID_BYTES, Limits};
use crate::task::{Refused, Rules};
use crate::trouble::Troubles;

/// Block size that guests lay out their partitions by, if the image has none.
const PAGE: u32 = 4096;

/// What is behind a disk.
#[derive(Debug)]
pub enum Storage {
    /// A file or block device.
    Image(Image),
    /// Nothing: reads give zeroes and writes vanish (`--null`).
    Null {
        /// In bytes, a multiple of `block_size`.
        size: u64,
        /// 512 or 4096.
        block_size: u32,
    },
}

/// How a disk is to appear: each is an option of the program, with its help.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Number of queues
    #[arg(long = "num-queues", value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64))]
    pub queues: u16,

    /// Largest queue size, a power of two from 2 to 32768
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = queue_size)]
    pub queue_size: u16,

    /// Serial number that the guest reads, 20 bytes at most; without it there is none
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    #[arg(value_parser = serial)]
    pub serial: String,

    /// Limits, topology and serial number; portable: those of qemu-storage-daemon, which
    /// can then take the disk over while a guest uses it, and hand it back
    #[arg(long, value_name = "PROFILE", default_value = "native")]
    pub profile: Profile,

    /// Write cache, until the driver changes it; off: a write is done when it is durable
    #[arg(long = "wce", value_name = "STATE", default_value = "on", action = clap::ArgAction::Set)]
    #[arg(value_parser = PossibleValuesParser::new(["on", "off"]).map(|state| state == "on"))]
    pub writeback: bool,

    /// How to do I/O
    #[arg(long, value_name = "ENGINE", default_value = "auto")]
    pub engine: Choice,

    /// What becomes of a request that fails on the host; pause: it is held back, and the
    /// supervisor pauses the VM
    #[arg(long, value_name = "POLICY", default_value = "report")]
    pub on_io_error: OnIoError,
}

/// What becomes of a request that fails on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OnIoError {
    /// The guest is told.
    #[default]
    Report,
    /// It is held back ([`Holds`]).
    Pause,
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

impl Default for Settings {
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 1024,
            serial: String::new(),
            profile: Profile::Native,
            writeback: true,
            engine: Choice::Auto,
            on_io_error: OnIoError::Report,
        }
    }
}

/// What all queues of a disk share.
#[derive(Debug)]
pub struct Disk {
    /// `None` when there is nothing behind it.
    file: Option<Arc<File>>,
    /// See [`Disk::measure`] and [`Disk::resize`].
    capacity: Arc<Capacity>,
    /// The rest of them, and the first capacity.
    limits: Limits,
    /// What direct I/O needs; `None` when the page cache takes anything.
    alignment: Option<Alignment>,
    physical_block: u32,
    serial: [u8; ID_BYTES],
    durability: Arc<Durability>,
    refused: Refused,
    troubles: Troubles,
    /// Where what fails is held back.
    holds: Option<Arc<Holds>>,
    settings: Settings,
    notifier: OnceLock<Notifier>,
}

impl Disk {
    /// Puts a disk together.
    ///
    /// # Errors
    /// The engine that was asked for is not to be had, or a setting does not fit the
    /// profile.
    pub fn new(storage: Storage, settings: Settings) -> anyhow::Result<Self> {
        let profile = settings.profile;
        profile.check(&settings.serial, settings.queue_size)?;
        let mut serial = [0; ID_BYTES];
        for (to, from) in serial
            .iter_mut()
            .zip(profile.serial(&settings.serial).bytes())
        {
            *to = from;
        }
        let engine = match storage {
            Storage::Image(_) => settings.engine.settle()?,
            Storage::Null { .. } => settings.engine,
        };
        let durability = Durability::new(settings.writeback);
        let settings = Settings { engine, ..settings };
        let (file, limits, alignment, physical_block) = match storage {
            Storage::Image(image) => (
                Some(image.file.clone()),
                image.limits(),
                image.blocks.alignment,
                image.blocks.physical,
            ),
            Storage::Null { size, block_size } => {
                let limits = Limits {
                    capacity: size,
                    block_size,
                    read_only: false,
                    discard: true,
                    write_zeroes: true,
                    bounds: Bounds::default(),
                };
                (None, limits, None, PAGE)
            }
        };
        let limits = Limits {
            // A portable disk has the same features on any file system, and a discard is a
            // hint where there are no holes.
            discard: limits.discard || profile == Profile::Portable && !limits.read_only,
            bounds: profile.bounds(),
            ..limits
        };
        Ok(Self {
            file,
            capacity: Arc::new(Capacity::new(limits.capacity)),
            limits,
            alignment,
            physical_block,
            serial,
            durability,
            refused: Refused::default(),
            troubles: Troubles::default(),
            holds: (settings.on_io_error == OnIoError::Pause).then(Arc::default),
            settings,
            notifier: OnceLock::new(),
        })
    }

    /// What requests are checked against.
    pub fn limits(&self) -> Limits {
        Limits {
            capacity: self.capacity.get(),
            ..self.limits
        }
    }

    /// The serial number, padded with zeroes.
    pub fn serial(&self) -> &[u8] {
        &self.serial
    }

    /// Largest queue size.
    pub fn queue_size(&self) -> u16 {
        self.settings.queue_size
    }

    /// What a task goes by; `flushes` when the driver has negotiated FLUSH.
    pub fn rules(&self, flushes: bool) -> Rules<'_> {
        Rules {
            durability: &self.durability,
            refused: &self.refused,
            troubles: &self.troubles,
            flushes,
            holds: self.holds.is_some(),
        }
    }

    /// Whether these buffers can be used as they are.
    pub fn takes(&self, data: &GuestBuffers) -> bool {
        self.alignment
            .is_none_or(|needed| data.is_aligned(needed.memory as usize, needed.offset as usize))
    }

    /// What is behind it, if there is anything.
    pub(crate) fn file(&self) -> Option<&Arc<File>> {
        self.file.as_ref()
    }

    /// Its size, and who is to know of it.
    pub(crate) fn capacity(&self) -> &Arc<Capacity> {
        &self.capacity
    }

    pub(crate) fn durability(&self) -> &Arc<Durability> {
        &self.durability
    }

    /// Where what fails is held back, if it is.
    pub(crate) fn holds(&self) -> Option<&Arc<Holds>> {
        self.holds.as_ref()
    }

    pub(crate) fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    /// An engine for one queue.
    pub(crate) fn engine(&self) -> io::Result<Box<dyn Engine>> {
        match &self.file {
            Some(file) => self.settings.engine.make(file, self.settings.queue_size),
            None => Ok(Box::new(Null)),
        }
    }
}

#[cfg(test)]
mod tests;
