//! The device kinds that Outboard knows by name, and the layouts of their
//! configuration spaces.
//!
//! The machine needs no more of a device than a row of this table: an unknown
//! device is a row that the command line gives (`--device virtio-id=…`).

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// What the machine knows of a kind of device: enough to put it on the PCI bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    /// What messages call it: `blk`, `net`, or `virtio-N` for an unnamed one.
    pub name: String,
    /// Virtio device id (virtio 1.3, section 5). 1 to 63 on PCI.
    pub virtio_id: u16,
    /// PCI class code: class, subclass, programming interface in the low byte.
    pub pci_class: u32,
    /// Length of the device configuration space, in bytes; may be 0.
    pub config_len: u32,
    /// Device features of this kind that the machine would not pass on: the
    /// mask of those it lets through (bits 0 to 23 and 50 to 63, virtio 1.3
    /// section 2.2).
    pub device_features: u64,
}

impl Kind {
    /// The block device (virtio 1.3, section 5.2).
    pub fn blk() -> Self {
        Self::new("blk", BLK, 0x01_80_00, BlkConfig::LEN as u32)
    }

    /// The network card (virtio 1.3, section 5.1).
    pub fn net() -> Self {
        Self::new("net", NET, 0x02_00_00, NetConfig::LEN as u32)
    }

    /// The entropy device (virtio 1.3, section 5.4). It has no configuration.
    pub fn rng() -> Self {
        Self::new("rng", RNG, 0xff_00_00, 0)
    }

    /// A device that only the command line describes: class "other" of the
    /// unassigned class codes.
    pub fn unnamed(virtio_id: u16, config_len: u32) -> Self {
        let name = format!("virtio-{virtio_id}");
        Self::new(&name, virtio_id, 0xff_00_00, config_len)
    }

    fn new(name: &str, virtio_id: u16, pci_class: u32, config_len: u32) -> Self {
        Self {
            name: name.to_owned(),
            virtio_id,
            pci_class,
            config_len,
            device_features: DEVICE_FEATURES,
        }
    }

    /// Whether this is a kind of the table, and not one of the command line's.
    pub fn is_named(&self) -> bool {
        [Self::blk(), Self::net(), Self::rng()].contains(self)
    }
}

/// Virtio device id of the network card (virtio 1.3, section 5).
pub const NET: u16 = 1;
/// Virtio device id of the block device.
pub const BLK: u16 = 2;
/// Virtio device id of the entropy device.
pub const RNG: u16 = 4;

/// Feature bits that belong to a device kind, not to the transport and the
/// rings (virtio 1.3, section 2.2).
pub const DEVICE_FEATURES: u64 = 0x00ff_ffff | (!0u64 << 50);

/// The configuration space of a block device (virtio 1.3, section 5.2.4), up
/// to and with the write-zeroes limits. All fields are little-endian on the
/// wire; a field whose feature is not offered is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlkConfig {
    /// Size of the disk in sectors of 512 bytes.
    pub capacity: u64,
    /// Largest segment in bytes (SIZE_MAX).
    pub size_max: u32,
    /// Most data segments in a request (SEG_MAX).
    pub seg_max: u32,
    /// Logical block size in bytes (BLK_SIZE).
    pub blk_size: u32,
    /// Logical blocks in a physical block, as a power of two (TOPOLOGY).
    pub physical_block_exp: u8,
    /// Offset of the first aligned logical block (TOPOLOGY).
    pub alignment_offset: u8,
    /// Suggested minimum I/O in logical blocks (TOPOLOGY).
    pub min_io_size: u16,
    /// Suggested optimal I/O in logical blocks (TOPOLOGY).
    pub opt_io_size: u32,
    /// 1: write back, 0: write through (CONFIG_WCE); the driver may write it.
    pub writeback: u8,
    /// Number of queues (MQ).
    pub num_queues: u16,
    /// Most sectors in one discard segment (DISCARD).
    pub max_discard_sectors: u32,
    /// Most segments in one discard (DISCARD).
    pub max_discard_seg: u32,
    /// Alignment of a discard in sectors (DISCARD).
    pub discard_sector_alignment: u32,
    /// Most sectors in one write-zeroes segment (WRITE_ZEROES).
    pub max_write_zeroes_sectors: u32,
    /// Most segments in one write-zeroes (WRITE_ZEROES).
    pub max_write_zeroes_seg: u32,
    /// 1: a write-zeroes may deallocate (WRITE_ZEROES).
    pub write_zeroes_may_unmap: u8,
}

impl BlkConfig {
    /// Length in bytes.
    pub const LEN: usize = 60;
    /// Where `size_max` lies.
    pub const SIZE_MAX: Range<usize> = 8..12;
    /// Offset of `writeback`, the one field that a driver writes.
    pub const WRITEBACK: u32 = 32;

    /// The bytes as the driver reads them.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = Vec::with_capacity(Self::LEN);
        bytes.extend(self.capacity.to_le_bytes());
        bytes.extend(self.size_max.to_le_bytes());
        bytes.extend(self.seg_max.to_le_bytes());
        // Geometry (cylinders, heads, sectors): never offered.
        bytes.extend([0; 4]);
        bytes.extend(self.blk_size.to_le_bytes());
        bytes.extend([self.physical_block_exp, self.alignment_offset]);
        bytes.extend(self.min_io_size.to_le_bytes());
        bytes.extend(self.opt_io_size.to_le_bytes());
        bytes.extend([self.writeback, 0]);
        bytes.extend(self.num_queues.to_le_bytes());
        bytes.extend(self.max_discard_sectors.to_le_bytes());
        bytes.extend(self.max_discard_seg.to_le_bytes());
        bytes.extend(self.discard_sector_alignment.to_le_bytes());
        bytes.extend(self.max_write_zeroes_sectors.to_le_bytes());
        bytes.extend(self.max_write_zeroes_seg.to_le_bytes());
        bytes.extend([self.write_zeroes_may_unmap, 0, 0, 0]);
        bytes.try_into().unwrap_or([0; Self::LEN])
    }
}

/// The configuration space of a network card (virtio 1.3, section 5.1.4), up
/// to and with the MTU. All fields are little-endian on the wire; a field
/// whose feature is not offered is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetConfig {
    /// The card's own address (MAC).
    pub mac: [u8; 6],
    /// [`Self::LINK_UP`] or 0 (STATUS).
    pub status: u16,
    /// Most pairs of a receive and a transmit queue (MQ), 1 to 32768.
    pub max_virtqueue_pairs: u16,
    /// Most bytes in a frame after its Ethernet header (MTU).
    pub mtu: u16,
}

impl NetConfig {
    /// Length in bytes.
    pub const LEN: usize = 12;
    /// Where `mac` lies.
    pub const MAC: Range<usize> = 0..6;
    /// Where `status` lies.
    pub const STATUS: Range<usize> = 6..8;
    /// The bit of `status` that says that the link is up.
    pub const LINK_UP: u16 = 1;

    /// The bytes as the driver reads them.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let words = [self.status, self.max_virtqueue_pairs, self.mtu].map(u16::to_le_bytes);
        let mut bytes = [0; Self::LEN];
        let fields = self.mac.iter().chain(words.as_flattened());
        bytes
            .iter_mut()
            .zip(fields)
            .for_each(|(to, from)| *to = *from);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets as section 5.1.4 gives them.
    #[test]
    fn every_network_field_lies_where_the_specification_puts_it() {
        let config = NetConfig {
            mac: [1, 2, 3, 4, 5, 6],
            status: 0x0807,
            max_virtqueue_pairs: 0x0a09,
            mtu: 0x0c0b,
        };
        assert_eq!(config.to_bytes(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    }

    /// Offsets as section 5.2.4 gives them.
    #[test]
    fn every_block_field_lies_where_the_specification_puts_it() {
        let config = BlkConfig {
            capacity: 0x0807_0605_0403_0201,
            size_max: 0x11,
            seg_max: 0x22,
            blk_size: 0x33,
            physical_block_exp: 0x44,
            alignment_offset: 0x55,
            min_io_size: 0x66,
            opt_io_size: 0x77,
            writeback: 0x88,
            num_queues: 0x99,
            max_discard_sectors: 0xaa,
            max_discard_seg: 0xbb,
            discard_sector_alignment: 0xcc,
            max_write_zeroes_sectors: 0xdd,
            max_write_zeroes_seg: 0xee,
            write_zeroes_may_unmap: 0xff,
        };
        let bytes = config.to_bytes();
        assert_eq!(&bytes[..8], &[1, 2, 3, 4, 5, 6, 7, 8]);
        let marks = [
            (8, 0x11),
            (12, 0x22),
            (20, 0x33),
            (24, 0x44),
            (25, 0x55),
            (26, 0x66),
            (28, 0x77),
            (32, 0x88),
            (34, 0x99),
            (36, 0xaa),
            (40, 0xbb),
            (44, 0xcc),
            (48, 0xdd),
            (52, 0xee),
            (56, 0xff),
        ];
        for (offset, value) in marks {
            assert_eq!(bytes[offset], value, "offset {offset}");
        }
        assert_eq!(
            bytes[8..].iter().filter(|byte| **byte != 0).count(),
            marks.len()
        );
    }
}
