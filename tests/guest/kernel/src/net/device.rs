//! One network device: what it says about itself, and its start with a given set of queue pairs.

use super::control::{self, Control};
use super::queue::{Receive, Transmit};
use super::{HEADER, LONGEST, feature};
use crate::cpu::{apic, smp};
use crate::virtio;
use crate::virtio::ring::Indirect;
use crate::virtio::transport::{NO_VECTOR, Transport};
use alloc::string::String;
use alloc::vec::Vec;

/// Frames have an Ethernet header before their MTU.
const ETHERNET: u64 = guest_logic::packet::ETHERNET as u64;

/// The device configuration (5.1.4). A field whose feature was not agreed on has its neutral value.
#[derive(Clone, Copy, Debug)]
pub struct Configuration {
    /// Ethernet address.
    pub mac: [u8; 6],
    /// Whether there is a link.
    pub link: bool,
    /// Queue pairs.
    pub pairs: u16,
    /// Bytes of a frame behind the Ethernet header.
    pub mtu: u16,
}

impl Configuration {
    /// Reads the fields that these features make valid.
    pub fn read(transport: &Transport, features: u64) -> Result<Configuration, String> {
        let has = |bit: u64| features & bit != 0;
        let neutral = Configuration {
            mac: [2, 0, 0, 0, 0, 0x42],
            link: true,
            pairs: 1,
            mtu: 1500,
        };
        if features & (feature::MAC | feature::STATUS | feature::MQ | feature::MTU) == 0 {
            return Ok(neutral);
        }
        transport.configuration(|device| Configuration {
            mac: if has(feature::MAC) {
                core::array::from_fn(|at| device.read(at as u64))
            } else {
                neutral.mac
            },
            link: !has(feature::STATUS) || device.read::<u16>(6) & 1 == 1,
            pairs: if has(feature::MQ) { device.read(8) } else { 1 },
            mtu: if has(feature::MTU) {
                device.read(10)
            } else {
                neutral.mtu
            },
        })
    }
}

/// A receive and a transmit queue.
pub struct Pair {
    /// Frames from the device.
    pub receive: Receive,
    /// Frames to the device.
    pub transmit: Transmit,
}

/// How much memory a pair has.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Transmit slots.
    pub depth: u16,
    /// Bytes of the longest frame sent.
    pub longest: u64,
    /// Receive buffers; 0: as many as the queue has room for, at most 1,024.
    pub buffers: u16,
    /// Bytes of a receive buffer; 0: what the features ask for.
    pub buffer_size: u64,
}

/// A network device.
pub struct Net {
    /// Its registers.
    pub transport: Transport,
    /// What was agreed on.
    pub features: u64,
    /// What it says about itself.
    pub configuration: Configuration,
    /// Its control queue, once it was started with one.
    pub control: Option<Control>,
    wanted: u64,
    // The first pair's vector, or `None` for no interrupts at all.
    first_vector: Option<u8>,
    processors: usize,
}

// Features whose needs are not met are not wanted.
fn consistent(mut wanted: u64) -> u64 {
    for (bit, needs) in feature::NEEDS {
        if wanted & needs == 0 {
            wanted &= !bit;
        }
    }
    wanted
}

impl Net {
    /// Resets the device and agrees on those of its features that `mask` has and that this driver knows.
    pub fn open(transport: &Transport, mask: u64) -> Result<Net, String> {
        let generic = virtio::feature::EVENT_IDX | virtio::feature::INDIRECT_DESC;
        transport.reset()?;
        let wanted = consistent((feature::KNOWN | generic) & mask & transport.offered());
        let features = transport.negotiate(wanted)?;
        Ok(Net {
            transport: transport.clone(),
            features,
            configuration: Configuration::read(transport, features)?,
            control: None,
            wanted,
            first_vector: None,
            processors: 1,
        })
    }

    /// Reads again what the device says about itself.
    pub fn refresh(&mut self) -> Result<(), String> {
        self.configuration = Configuration::read(&self.transport, self.features)?;
        Ok(())
    }

    /// Whether these features were agreed on.
    pub fn has(&self, features: u64) -> bool {
        self.features & features == features
    }

    /// Bytes that a receive buffer needs at least (5.1.6.3.1).
    fn buffer_size(&self) -> u64 {
        let mtu = u64::from(self.configuration.mtu).max(1500);
        if self.has(feature::MRG_RXBUF) {
            return 2048;
        }
        let tso = feature::GUEST_TSO4 | feature::GUEST_TSO6;
        let frame = if self.features & tso != 0 {
            LONGEST as u64
        } else {
            ETHERNET + 4 + mtu
        };
        frame + HEADER as u64
    }

    /// Makes `count` pairs of queues, and the control queue if there is one. The device must be fresh
    /// from `open`.
    pub fn pairs(&mut self, count: u16, shape: &Shape) -> Result<Vec<Pair>, String> {
        let present = self.configuration.pairs;
        if count == 0 || count > present {
            return Err(alloc::format!(
                "reason=queues wanted={count} present={present}"
            ));
        }
        let entries = |index: u16| match self.transport.queue_size(index) {
            0 => Err(alloc::format!("reason=queue-missing queue={index}")),
            entries => Ok(entries),
        };
        let size = match shape.buffer_size {
            0 => self.buffer_size(),
            size => size,
        };
        let mut pairs = Vec::new();
        for pair in 0..count {
            let (receive, transmit) = (entries(2 * pair)?, entries(2 * pair + 1)?);
            let buffers = match shape.buffers {
                0 => receive.min(1024),
                buffers => buffers.min(receive),
            };
            pairs.push(Pair {
                receive: Receive::new(2 * pair, receive, buffers, size),
                transmit: Transmit::new(
                    2 * pair + 1,
                    transmit,
                    shape.depth.min(transmit),
                    shape.longest,
                ),
            });
        }
        if self.has(feature::CTRL_VQ) {
            let index = 2 * present;
            self.control = Some(Control::new(index, entries(index)?));
        }
        Ok(pairs)
    }

    /// Wants an interrupt for each pair, on the processor that its index falls to. False if the device
    /// has too few vectors for that: then its queues must be polled.
    pub fn interrupt_each(&mut self, pairs: u16, processors: usize) -> bool {
        let vectors = self.transport.msix.as_ref().map_or(0, |msix| msix.vectors);
        if vectors <= pairs {
            return false;
        }
        self.first_vector = Some(apic::device_vector());
        for _ in 1..pairs {
            apic::device_vector();
        }
        self.processors = processors;
        true
    }

    /// Resets the device and starts it with these pairs, whose transmit queues become empty and whose
    /// receive queues full of empty buffers.
    pub fn start<'a>(
        &mut self,
        pairs: impl Iterator<Item = &'a mut Pair>,
        indirect: Indirect,
    ) -> Result<(), String> {
        self.transport.reset()?;
        self.features = self.transport.negotiate(self.wanted)?;
        if let Some(msix) = &self.transport.msix {
            msix.enable(true);
        }
        let mut started = Vec::new();
        for (number, pair) in (0u16..).zip(pairs) {
            let vector = self.vector(number);
            pair.receive.restart(self.features, indirect)?;
            pair.transmit.restart(self.features, indirect);
            let (receive, transmit) = (&mut pair.receive, &mut pair.transmit);
            let start = |index, ring: &crate::virtio::ring::Ring| {
                self.transport.start_queue(index, &ring.layout, vector)
            };
            receive.doorbell = Some(start(receive.index, &receive.ring)?);
            transmit.doorbell = Some(start(transmit.index, &transmit.ring)?);
            started.push(pair);
        }
        if let Some(control) = &mut self.control {
            control.restart(self.features);
            let layout = &control.ring.layout;
            control.doorbell = Some(self.transport.start_queue(
                control.index,
                layout,
                NO_VECTOR,
            )?);
        }
        self.transport.driver_ok();
        let count = started.len() as u16;
        for pair in started {
            pair.receive.publish();
        }
        if self.has(feature::MQ) {
            self.command(control::SET_PAIRS, &count.to_le_bytes())?;
        }
        Ok(())
    }

    // The MSI-X entry of a pair, routed to its processor. Entry 0 is for configuration changes.
    fn vector(&self, pair: u16) -> u16 {
        let (Some(msix), Some(first)) = (&self.transport.msix, self.first_vector) else {
            return NO_VECTOR;
        };
        let cpu = smp::processor(usize::from(pair) % self.processors);
        msix.route(pair + 1, cpu.apic_id, first.wrapping_add(pair as u8));
        pair + 1
    }

    /// Sends a command that the device must not refuse.
    pub fn command(&mut self, command: control::Command, data: &[u8]) -> Result<(), String> {
        let Some(control) = &mut self.control else {
            return Err("reason=no-control-queue".into());
        };
        if control.command(command, data)? {
            return Ok(());
        }
        Err(alloc::format!(
            "reason=command-refused command={}.{}",
            command.0,
            command.1
        ))
    }
}
