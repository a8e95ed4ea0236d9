//! What lies where in a function's BARs, and the capabilities that say so
//! (virtio 1.3, section 4.1.4; PCI 3.0, section 6.8.2).
//!
//! ```text
//! BAR 0, memory, 32 KiB          BAR 2, ports, 256 bytes (--doorbell pio)
//! 0x0000 common configuration    0x00 notify, a double word a queue
//! 0x1000 ISR
//! 0x2000 device configuration
//! 0x3000 notify, a double word a queue (--doorbell mmio)
//! 0x4000 MSI-X table
//! 0x7000 MSI-X pending bits
//! ```

use super::config::{Bar, ConfigSpace};
use super::doorbells::STRIDE;
use crate::machine::virtio::COMMON_LEN;

/// The BAR for everything in memory.
pub(crate) const MEMORY_BAR: usize = 0;
/// Its size.
pub(crate) const MEMORY_SIZE: u32 = 0x8000;
/// The BAR for doorbells that are ports.
pub(crate) const IO_BAR: usize = 2;
/// Its size, and that of the notify area wherever it is: what limits a device
/// to 64 queues.
pub(crate) const IO_SIZE: u32 = 0x100;
/// Bytes that every part of the memory BAR has at least to itself.
const PART: u32 = 0x1000;
const COMMON: u32 = 0;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
/// Where the notify addresses are in the memory BAR.
pub(crate) const NOTIFY: u32 = 0x3000;
const TABLE: u32 = 0x4000;
const PENDING: u32 = 0x7000;
/// Longest device configuration that fits.
pub(crate) const MAX_CONFIG_LEN: u32 = PART;

const CAP_VENDOR: u8 = 9;
const CAP_MSIX: u8 = 0x11;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

/// A part of the memory BAR, with an offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Common configuration.
    Common(usize),
    /// ISR.
    Isr,
    /// Device configuration.
    Device(usize),
    /// The notify address of a queue.
    Notify(u16),
    /// MSI-X table.
    Table(usize),
    /// MSI-X pending bits.
    Pending(usize),
    /// Nothing.
    Hole,
}

impl Part {
    /// What lies at `offset` in the memory BAR.
    pub(crate) fn at(offset: u32) -> Self {
        let within = (offset % PART) as usize;
        match offset {
            COMMON..ISR => Self::Common(within),
            ISR => Self::Isr,
            DEVICE..NOTIFY => Self::Device(within),
            NOTIFY..TABLE => Self::notify(offset - NOTIFY),
            TABLE..PENDING => Self::Table((offset - TABLE) as usize),
            PENDING..MEMORY_SIZE => Self::Pending(within),
            _ => Self::Hole,
        }
    }

    /// What lies at `offset` in the notify area: the whole double word of a
    /// queue notifies it.
    pub(crate) fn notify(offset: u32) -> Self {
        u16::try_from(offset / u32::from(STRIDE)).map_or(Self::Hole, Self::Notify)
    }
}

/// What a function's capabilities depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capabilities {
    /// Number of MSI-X vectors.
    pub(crate) vectors: u16,
    /// Length of the device configuration.
    pub(crate) config_len: u32,
    /// Whether doorbells are ports.
    pub(crate) io_doorbells: bool,
}

/// Where the capabilities that have state lie in configuration space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offsets {
    /// Message control of MSI-X.
    pub(crate) msix_control: usize,
    /// The capability that gives access to the BARs.
    pub(crate) window: usize,
}

/// Offset of `cap.bar` in a virtio capability.
pub(crate) const WINDOW_BAR: usize = 4;
/// Offset of `cap.offset`.
pub(crate) const WINDOW_OFFSET: usize = 8;
/// Offset of `cap.length`.
pub(crate) const WINDOW_LENGTH: usize = 12;
/// Offset of `pci_cfg_data`.
pub(crate) const WINDOW_DATA: usize = 16;

/// Adds the BARs and the capabilities.
pub(crate) fn furnish(space: &mut ConfigSpace, what: Capabilities) -> Offsets {
    space.add_bar(MEMORY_BAR, Bar::Memory, MEMORY_SIZE);
    if what.io_doorbells {
        space.add_bar(IO_BAR, Bar::Io, IO_SIZE);
    }
    let memory = |cfg, offset, length| body(cfg, MEMORY_BAR, offset, length, &[]);
    let (bar, offset) = if what.io_doorbells {
        (IO_BAR, 0)
    } else {
        (MEMORY_BAR, NOTIFY)
    };
    let stride = u32::from(STRIDE).to_le_bytes();
    let notify = body(CFG_NOTIFY, bar, offset, IO_SIZE, &stride);
    space.add_capability(
        CAP_VENDOR,
        &memory(CFG_COMMON, COMMON, COMMON_LEN as u32),
        &[],
    );
    space.add_capability(CAP_VENDOR, &notify, &[]);
    space.add_capability(CAP_VENDOR, &memory(CFG_ISR, ISR, 1), &[]);
    if what.config_len != 0 {
        space.add_capability(
            CAP_VENDOR,
            &memory(CFG_DEVICE, DEVICE, what.config_len),
            &[],
        );
    }
    let window = body(CFG_PCI, 0, 0, 0, &[0; 4]);
    // bar, then offset, length and data.
    let mut writable = [0xff; 18];
    for byte in [0, 1, 3, 4, 5] {
        if let Some(mask) = writable.get_mut(byte) {
            *mask = 0;
        }
    }
    let window = space.add_capability(CAP_VENDOR, &window, &writable);
    let msix = msix_body(what.vectors);
    let at = space.add_capability(CAP_MSIX, &msix, &[0, 0xc0]);
    Offsets {
        msix_control: at + 2,
        window,
    }
}

/// `struct virtio_pci_cap` from `cap_len` on.
fn body(cfg: u8, bar: usize, offset: u32, length: u32, more: &[u8]) -> Vec<u8> {
    let mut bytes = vec![16 + more.len() as u8, cfg, bar as u8, 0, 0, 0];
    bytes.extend(offset.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(more);
    bytes
}

/// The MSI-X capability from message control on.
fn msix_body(vectors: u16) -> Vec<u8> {
    let mut bytes = vectors.saturating_sub(1).to_le_bytes().to_vec();
    bytes.extend((TABLE | MEMORY_BAR as u32).to_le_bytes());
    bytes.extend((PENDING | MEMORY_BAR as u32).to_le_bytes());
    bytes
}
