//! One block device: what it says about itself, and its start with a given set of queues.

use super::{Queue, feature};
use crate::cpu::{apic, smp};
use crate::virtio::ring::Indirect;
use crate::virtio::transport::{NO_VECTOR, Transport};
use crate::virtio::{self};
use alloc::string::String;
use alloc::vec::Vec;

/// Where the device configuration has the cache byte.
const WRITEBACK: u64 = 32;

/// The device configuration (5.2.4). A field whose feature was not agreed on has its neutral value.
#[derive(Clone, Copy, Debug)]
pub struct Configuration {
    /// In sectors.
    pub capacity: u64,
    /// Data segments in a request.
    pub seg_max: u32,
    /// Bytes in a segment.
    pub size_max: u32,
    /// Bytes.
    pub block_size: u32,
    /// Whether the write cache is on.
    pub writeback: bool,
    /// Queues.
    pub queues: u16,
    /// Sectors in a discard segment.
    pub max_discard: u32,
    /// Sectors.
    pub discard_alignment: u32,
    /// Sectors in a write-zeroes segment.
    pub max_write_zeroes: u32,
}

impl Configuration {
    /// Reads the fields that these features make valid.
    pub fn read(transport: &Transport, features: u64) -> Result<Configuration, String> {
        let has = |bit: u64| features & bit != 0;
        transport.configuration(|device| {
            let word = |bit: u64, at: u64, otherwise: u32| {
                if has(bit) {
                    device.read::<u32>(at)
                } else {
                    otherwise
                }
            };
            let (low, high): (u32, u32) = (device.read(0), device.read(4));
            Configuration {
                capacity: u64::from(high) << 32 | u64::from(low),
                size_max: word(feature::SIZE_MAX, 8, u32::MAX),
                seg_max: word(feature::SEG_MAX, 12, 1).max(1),
                block_size: word(feature::BLK_SIZE, 20, 512),
                writeback: has(feature::CONFIG_WCE) && device.read::<u8>(WRITEBACK) == 1,
                queues: if has(feature::MQ) { device.read(34) } else { 1 },
                max_discard: word(feature::DISCARD, 36, 0),
                discard_alignment: word(feature::DISCARD, 44, 1).max(1),
                max_write_zeroes: word(feature::WRITE_ZEROES, 48, 0),
            }
        })
    }
}

/// How queues interrupt.
#[derive(Clone, Copy, Debug)]
pub struct Interrupts {
    /// The first queue's vector is this one, or `None` for no interrupts at all.
    first: Option<u8>,
    /// Processors that the queues are spread over.
    processors: usize,
}

/// A block device.
pub struct Blk {
    /// Its registers.
    pub transport: Transport,
    /// What was agreed on.
    pub features: u64,
    /// What it says about itself.
    pub configuration: Configuration,
    wanted: u64,
    interrupts: Interrupts,
}

impl Blk {
    /// Resets the device and agrees on those of its features that `mask` has and that this driver knows.
    pub fn open(transport: &Transport, mask: u64) -> Result<Blk, String> {
        let generic = virtio::feature::EVENT_IDX | virtio::feature::INDIRECT_DESC;
        let wanted = (feature::KNOWN | generic) & mask;
        transport.reset()?;
        let features = transport.negotiate(wanted)?;
        let configuration = Configuration::read(transport, features)?;
        let interrupts = Interrupts {
            first: None,
            processors: 1,
        };
        Ok(Blk {
            transport: transport.clone(),
            features,
            configuration,
            wanted,
            interrupts,
        })
    }

    /// The cache byte (5.2.5.1): whether the write cache is on.
    pub fn writeback(&self) -> Result<bool, String> {
        Ok(Configuration::read(&self.transport, self.features)?.writeback)
    }

    /// Turns the write cache on or off, if that was agreed on, and returns what the device then says.
    pub fn set_writeback(&self, on: bool) -> Result<bool, String> {
        match &self.transport.device {
            Some(device) if self.features & feature::CONFIG_WCE != 0 => {
                device.write(WRITEBACK, u8::from(on));
                self.writeback()
            }
            _ => Err("reason=no-cache-byte".into()),
        }
    }

    /// Makes `count` queues with `depth` requests of up to `size` bytes each. The device must be fresh
    /// from `open`.
    pub fn queues(&self, count: u16, depth: u16, size: u64) -> Result<Vec<Queue>, String> {
        let present = self.configuration.queues.min(self.transport.queues());
        if count == 0 || count > present {
            return Err(alloc::format!(
                "reason=queues wanted={count} present={present}"
            ));
        }
        (0..count)
            .map(|index| match self.transport.queue_size(index) {
                0 => Err(alloc::format!("reason=queue-missing queue={index}")),
                entries => Ok(Queue::new(index, entries, depth, size)),
            })
            .collect()
    }

    /// Wants an interrupt for each queue, on the processor that its index falls to. False if the device
    /// has too few vectors for that: then its queues must be polled.
    pub fn interrupt_each(&mut self, queues: u16, processors: usize) -> bool {
        let vectors = self.transport.msix.as_ref().map_or(0, |msix| msix.vectors);
        if vectors <= queues {
            return false;
        }
        let first = apic::device_vector();
        for _ in 1..queues {
            apic::device_vector();
        }
        self.interrupts = Interrupts {
            first: Some(first),
            processors,
        };
        true
    }

    /// Resets the device and starts it with these queues, which become empty.
    pub fn start<'a>(
        &mut self,
        queues: impl Iterator<Item = &'a mut Queue>,
        indirect: Indirect,
    ) -> Result<(), String> {
        self.transport.reset()?;
        self.features = self.transport.negotiate(self.wanted)?;
        let msix = self.transport.msix.clone();
        if let Some(msix) = &msix {
            msix.enable(true);
        }
        for queue in queues {
            queue.restart(self.features, indirect)?;
            let index = queue.index;
            let mut entry = NO_VECTOR;
            if let (Some(msix), Some(first)) = (&msix, self.interrupts.first) {
                // Entry 0 is for configuration changes.
                entry = index + 1;
                let cpu = smp::processor(usize::from(index) % self.interrupts.processors);
                msix.route(entry, cpu.apic_id, first.wrapping_add(index as u8));
            }
            queue.doorbell = Some(
                self.transport
                    .start_queue(index, &queue.ring.layout, entry)?,
            );
        }
        self.transport.driver_ok();
        Ok(())
    }
}
