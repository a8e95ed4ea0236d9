//! virtio over PCI (virtio 1.3, 4.1): where a device's registers are, and the steps of its
//! initialisation (3.1.1).
//!
//! ```text
//! reset -> acknowledge, driver -> features ok -> queues -> driver ok -> (needs reset) -> reset
//! ```

use super::{feature, ring::Layout, status};
use crate::pci::{Bar, Function, msix::Msix};
use crate::platform::{clock, phys::Span, port};
use alloc::string::String;
use alloc::vec::Vec;

const VENDOR: u16 = 0x1af4;
const FIRST_MODERN: u16 = 0x1040;
const LAST_MODERN: u16 = 0x107f;
const VENDOR_CAPABILITY: u8 = 0x09;
/// Milliseconds that a reset may take. (More than a VMM gives its back-end, whose verdict counts.)
const RESET_LIMIT: u64 = 60_000;

/// No MSI-X vector (4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// Offsets in the common configuration (4.1.4.3).
pub mod common {
    /// Which half of the device's features is read.
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    /// That half.
    pub const DEVICE_FEATURE: u64 = 0x04;
    /// Which half of the driver's features is written.
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    /// That half.
    pub const DRIVER_FEATURE: u64 = 0x0c;
    /// Vector of configuration changes.
    pub const CONFIG_VECTOR: u64 = 0x10;
    /// The number of queues.
    pub const QUEUES: u64 = 0x12;
    /// Device status.
    pub const STATUS: u64 = 0x14;
    /// Changes with the device configuration.
    pub const GENERATION: u64 = 0x15;
    /// Which queue the rest is about.
    pub const QUEUE_SELECT: u64 = 0x16;
    /// Its size.
    pub const QUEUE_SIZE: u64 = 0x18;
    /// Its vector.
    pub const QUEUE_VECTOR: u64 = 0x1a;
    /// Whether it is on.
    pub const QUEUE_ENABLE: u64 = 0x1c;
    /// Where its doorbell is.
    pub const QUEUE_NOTIFY_OFFSET: u64 = 0x1e;
    /// Descriptor table.
    pub const QUEUE_DESCRIPTORS: u64 = 0x20;
    /// Available ring.
    pub const QUEUE_AVAILABLE: u64 = 0x28;
    /// Used ring.
    pub const QUEUE_USED: u64 = 0x30;
    /// The whole structure.
    pub const LENGTH: u64 = 0x38;
}

/// What tells a device that a queue has work.
#[derive(Clone, Copy, Debug)]
pub enum Doorbell {
    /// A store of the queue's index.
    Memory(Span, u16),
    /// An `out` of the queue's index.
    Port(u16, u16),
}

impl Doorbell {
    /// Rings it.
    #[inline]
    pub fn ring(&self) {
        match self {
            Doorbell::Memory(register, queue) => register.write(0, *queue),
            Doorbell::Port(register, queue) => port::out16(*register, *queue),
        }
    }
}

/// Where all doorbells of a device are.
#[derive(Clone, Copy)]
pub enum Notify {
    /// In memory.
    Memory(Span),
    /// At ports: the first, and how many bytes.
    Port(u16, u64),
}

/// A device on the bus.
#[derive(Clone)]
pub struct Transport {
    /// Its function.
    pub function: Function,
    /// virtio device identity: 1 net, 2 blk, 4 entropy.
    pub kind: u16,
    /// Common configuration.
    pub common: Span,
    /// Device configuration, if it has any.
    pub device: Option<Span>,
    /// Interrupt status.
    pub isr: Option<Span>,
    /// Doorbells.
    pub notify: Notify,
    /// Bytes from one notify offset to the next.
    pub multiplier: u32,
    /// Its interrupts.
    pub msix: Option<Msix>,
}

impl Transport {
    /// Recognises a modern virtio device.
    pub fn find(function: &Function) -> Result<Option<Transport>, String> {
        let (vendor, device) = function.identity();
        if vendor != VENDOR || !(FIRST_MODERN..=LAST_MODERN).contains(&device) {
            return Ok(None);
        }
        let (mut common, mut notify, mut isr, mut specific) = (None, None, None, None);
        let mut multiplier = 0;
        for at in function.capabilities(VENDOR_CAPABILITY) {
            let config = &function.config;
            let bar = config.read::<u8>(at + 4);
            let offset = u64::from(config.read::<u32>(at + 8));
            let length = u64::from(config.read::<u32>(at + 12));
            match config.read::<u8>(at + 3) {
                1 if common.is_none() => common = Some(function.memory(bar, offset, length)?),
                // The first that can be used is the one that the device prefers (4.1.4).
                2 if notify.is_none() => {
                    multiplier = config.read(at + 16);
                    notify = Some(Self::notify(function, bar, offset, length)?);
                }
                3 if isr.is_none() => isr = Some(function.memory(bar, offset, length)?),
                4 if specific.is_none() => specific = Some(function.memory(bar, offset, length)?),
                _ => {}
            }
        }
        let (Some(common), Some(notify)) = (common, notify) else {
            return Err(alloc::format!(
                "reason=capability-missing slot={}",
                function.slot
            ));
        };
        Ok(Some(Transport {
            function: function.clone(),
            kind: device - FIRST_MODERN,
            common,
            device: specific,
            isr,
            notify,
            multiplier,
            msix: Msix::find(function)?,
        }))
    }

    fn notify(function: &Function, bar: u8, offset: u64, length: u64) -> Result<Notify, String> {
        match function.bars.get(usize::from(bar)) {
            Some(Bar::Port(base)) => Ok(Notify::Port(base.wrapping_add(offset as u16), length)),
            _ => function.memory(bar, offset, length).map(Notify::Memory),
        }
    }

    /// Device status.
    pub fn status(&self) -> u8 {
        self.common.read(common::STATUS)
    }

    /// Resets the device and waits until it says that it is (2.4).
    pub fn reset(&self) -> Result<(), String> {
        self.common.write(common::STATUS, 0u8);
        let begin = clock::now();
        while self.status() != 0 {
            if clock::now().wrapping_sub(begin) > RESET_LIMIT * clock::kilohertz() {
                return Err(alloc::format!(
                    "reason=reset-timeout status={:#x}",
                    self.status()
                ));
            }
        }
        Ok(())
    }

    /// Every feature that the device offers.
    pub fn offered(&self) -> u64 {
        let half = |select: u32| {
            self.common.write(common::DEVICE_FEATURE_SELECT, select);
            u64::from(self.common.read::<u32>(common::DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    /// Agrees on the offered ones of `wanted` and returns them.
    pub fn negotiate(&self, wanted: u64) -> Result<u64, String> {
        self.common.write(common::STATUS, status::ACKNOWLEDGE);
        self.common
            .write(common::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        let offered = self.offered();
        if offered & feature::VERSION_1 == 0 {
            return Err(alloc::format!("reason=legacy-device features={offered:#x}"));
        }
        let agreed = offered & (wanted | feature::VERSION_1 | feature::ACCESS_PLATFORM);
        for (select, half) in [(0u32, agreed as u32), (1, (agreed >> 32) as u32)] {
            self.common.write(common::DRIVER_FEATURE_SELECT, select);
            self.common.write(common::DRIVER_FEATURE, half);
        }
        let ready = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.common.write(common::STATUS, ready);
        if self.status() & status::FEATURES_OK == 0 {
            return Err(alloc::format!(
                "reason=features-refused features={agreed:#x}"
            ));
        }
        Ok(agreed)
    }

    /// The number of queues that the device has.
    pub fn queues(&self) -> u16 {
        self.common.read(common::QUEUES)
    }

    /// The largest size of a queue right after a reset, 0 if it does not exist.
    pub fn queue_size(&self, queue: u16) -> u16 {
        self.common.write(common::QUEUE_SELECT, queue);
        self.common.read(common::QUEUE_SIZE)
    }

    /// Hands a ring to the device, with an MSI-X vector or `NO_VECTOR`, and returns its doorbell.
    pub fn start_queue(
        &self,
        queue: u16,
        layout: &Layout,
        vector: u16,
    ) -> Result<Doorbell, String> {
        self.common.write(common::QUEUE_SELECT, queue);
        self.common.write(common::QUEUE_SIZE, layout.size);
        for (register, address) in [
            (common::QUEUE_DESCRIPTORS, layout.descriptors.address()),
            (common::QUEUE_AVAILABLE, layout.available.address()),
            (common::QUEUE_USED, layout.used.address()),
        ] {
            self.common.write(register, address as u32);
            self.common.write(register + 4, (address >> 32) as u32);
        }
        self.common.write(common::QUEUE_VECTOR, vector);
        if self.common.read::<u16>(common::QUEUE_VECTOR) != vector {
            return Err(alloc::format!(
                "reason=vector-refused queue={queue} vector={vector}"
            ));
        }
        let doorbell = self.doorbell(queue)?;
        self.common.write(common::QUEUE_ENABLE, 1u16);
        Ok(doorbell)
    }

    /// The doorbell of a queue (4.1.4.4).
    pub fn doorbell(&self, queue: u16) -> Result<Doorbell, String> {
        self.common.write(common::QUEUE_SELECT, queue);
        let offset = u64::from(self.common.read::<u16>(common::QUEUE_NOTIFY_OFFSET))
            * u64::from(self.multiplier);
        let room = match self.notify {
            Notify::Memory(span) => span.length(),
            Notify::Port(_, length) => length,
        };
        if offset + 2 > room {
            return Err(alloc::format!(
                "reason=doorbell-outside queue={queue} offset={offset}"
            ));
        }
        Ok(match self.notify {
            // The rest of the structure is the doorbell's as well: `registers` rings it with other widths.
            Notify::Memory(span) => {
                Doorbell::Memory(span.part(offset, (room - offset).min(8)), queue)
            }
            Notify::Port(base, _) => Doorbell::Port(base.wrapping_add(offset as u16), queue),
        })
    }

    /// Sets the vector of configuration changes.
    pub fn set_config_vector(&self, vector: u16) -> Result<(), String> {
        self.common.write(common::CONFIG_VECTOR, vector);
        if self.common.read::<u16>(common::CONFIG_VECTOR) == vector {
            return Ok(());
        }
        Err(alloc::format!(
            "reason=vector-refused queue=config vector={vector}"
        ))
    }

    /// Lets the device go.
    pub fn driver_ok(&self) {
        let status = self.status();
        self.common
            .write(common::STATUS, status | status::DRIVER_OK);
    }

    /// Reads device configuration that does not change in between (2.5.1).
    pub fn configuration<T>(&self, read: impl Fn(&Span) -> T) -> Result<T, String> {
        let device = self
            .device
            .ok_or_else(|| String::from("reason=no-device-configuration"))?;
        loop {
            let before: u8 = self.common.read(common::GENERATION);
            let result = read(&device);
            if self.common.read::<u8>(common::GENERATION) == before {
                return Ok(result);
            }
        }
    }
}

/// All virtio devices of these functions.
pub fn find_all(functions: &[Function]) -> Result<Vec<Transport>, String> {
    let mut found = Vec::new();
    for function in functions {
        found.extend(Transport::find(function)?);
    }
    Ok(found)
}
