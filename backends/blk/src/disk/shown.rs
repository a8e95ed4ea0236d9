//! What a driver is shown of a disk: its features and its configuration space
//! (virtio 1.3, sections 5.2.3 and 5.2.4).

use outboard_protocol::devices::BlkConfig;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::Disk;
use crate::profile::{Profile, SEG_MAX};
use crate::request::SECTOR;

impl Disk {
    /// What is offered, without the features of rings and transport.
    pub(super) fn features(&self) -> u64 {
        let always = [
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_MQ,
        ];
        let perhaps = [
            (VIRTIO_BLK_F_RO, self.limits.read_only),
            (VIRTIO_BLK_F_CONFIG_WCE, !self.limits.read_only),
            (VIRTIO_BLK_F_DISCARD, self.limits.discard),
            (VIRTIO_BLK_F_WRITE_ZEROES, self.limits.write_zeroes),
        ];
        let perhaps = perhaps.into_iter().filter(|(_, offered)| *offered);
        let bits = always.into_iter().chain(perhaps.map(|(bit, _)| bit));
        bits.fold(0, |features, bit| features | 1 << bit)
    }

    /// The configuration space as it is now.
    pub(super) fn config(&self) -> BlkConfig {
        let common = BlkConfig {
            capacity: self.limits().capacity / SECTOR,
            seg_max: SEG_MAX,
            blk_size: self.limits.block_size,
            num_queues: self.settings.queues,
            ..BlkConfig::default()
        };
        match self.settings.profile {
            Profile::Native => self.native(common),
            Profile::Portable => self.portable(common),
        }
    }

    /// The rest of it as the image has it; what is not offered is 0.
    fn native(&self, mut config: BlkConfig) -> BlkConfig {
        let (block, bounds) = (self.limits.block_size, self.limits.bounds);
        let physical = self.physical_block.max(block);
        let per_physical = physical.checked_div(block).unwrap_or(1);
        let queue_size = u32::from(self.settings.queue_size);
        // Header and status take a descriptor each.
        config.seg_max = SEG_MAX.clamp(1, queue_size.max(3).saturating_sub(2));
        config.physical_block_exp = per_physical.checked_ilog2().unwrap_or(0) as u8;
        config.min_io_size = u16::try_from(per_physical).unwrap_or(1);
        config.writeback = self.durability.writeback().into();
        if self.limits.discard {
            config.max_discard_sectors = bounds.discard;
            config.max_discard_seg = bounds.segments;
            config.discard_sector_alignment = (u64::from(physical) / SECTOR) as u32;
        }
        if self.limits.write_zeroes {
            config.max_write_zeroes_sectors = bounds.write_zeroes;
            config.max_write_zeroes_seg = bounds.segments;
            config.write_zeroes_may_unmap = self.limits.discard.into();
        }
        config
    }

    /// The rest of it as qemu-storage-daemon has it for any image: also where nothing
    /// of it is offered, and without a promise that zeroed blocks are given back.
    fn portable(&self, config: BlkConfig) -> BlkConfig {
        let bounds = self.limits.bounds;
        let writeback = !self.limits.read_only && self.durability.writeback();
        BlkConfig {
            min_io_size: 1,
            opt_io_size: 1,
            writeback: writeback.into(),
            max_discard_sectors: bounds.discard,
            max_discard_seg: bounds.segments,
            discard_sector_alignment: (u64::from(self.limits.block_size) / SECTOR) as u32,
            max_write_zeroes_sectors: bounds.write_zeroes,
            max_write_zeroes_seg: bounds.segments,
            ..config
        }
    }
}
