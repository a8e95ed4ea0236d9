//! The control queue (virtio 1.3, 5.1.6.5): one command at a time, waited for by polling.

use crate::platform::{clock, dma, phys::Span};
use crate::virtio::ring::{Buffer, Indirect, Ring};
use crate::virtio::transport::Doorbell;
use alloc::string::String;

/// Milliseconds that a command may take.
const LIMIT: u64 = 60_000;
const ACK: u64 = 256;
const ACK_NONE: u8 = 0xff;

/// A command: class and number.
pub type Command = (u8, u8);
/// VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC
pub const PROMISCUOUS: Command = (0, 0);
/// The receive modes (5.1.6.5.1), by the words that turn them on and off.
pub const MODES: [(&str, Command); 6] = [
    ("promisc", PROMISCUOUS),
    ("allmulti", (0, 1)),
    ("alluni", (0, 2)),
    ("nomulti", (0, 3)),
    ("nouni", (0, 4)),
    ("nobcast", (0, 5)),
];
/// VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET
pub const SET_TABLE: Command = (1, 0);
/// VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET
pub const SET_MAC: Command = (1, 1);
/// VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET
pub const SET_PAIRS: Command = (4, 0);
/// VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET
pub const SET_OFFLOADS: Command = (5, 0);

/// The control queue.
pub struct Control {
    /// Its number.
    pub index: u16,
    /// Its ring.
    pub ring: Ring,
    /// Its doorbell, once it was started.
    pub doorbell: Option<Doorbell>,
    memory: Span,
}

impl Control {
    /// A queue of `entries` descriptors.
    pub fn new(index: u16, entries: u16) -> Control {
        Control {
            index,
            ring: Ring::new(entries),
            doorbell: None,
            memory: dma::allocate(512, 64),
        }
    }

    /// Makes it empty, for a device that was reset.
    pub fn restart(&mut self, features: u64) {
        self.ring.restart(features, Indirect::Never);
    }

    /// Sends a command with up to 200 bytes of data. True if the device answers that it did it.
    pub fn command(&mut self, (class, number): Command, data: &[u8]) -> Result<bool, String> {
        self.memory.write(0, class);
        self.memory.write(1, number);
        for (at, byte) in data.iter().enumerate() {
            self.memory.write(2 + at as u64, *byte);
        }
        self.memory.write(ACK, ACK_NONE);
        let part = |offset: u64, length: u32, writable| Buffer {
            address: self.memory.address() + offset,
            length,
            writable,
        };
        let chain = [
            part(0, 2, false),
            part(2, data.len() as u32, false),
            part(ACK, 1, true),
        ];
        self.ring.add(&chain);
        if self.ring.publish()
            && let Some(doorbell) = &self.doorbell
        {
            doorbell.ring();
        }
        let begin = clock::now();
        while self.ring.take()?.is_none() {
            if clock::now().wrapping_sub(begin) > LIMIT * clock::kilohertz() {
                return Err(alloc::format!(
                    "reason=timeout command={class}.{number} {}",
                    self.ring.state()
                ));
            }
            core::hint::spin_loop();
        }
        match self.memory.read::<u8>(ACK) {
            0 => Ok(true),
            ACK_NONE => Err(alloc::format!(
                "reason=no-acknowledgement command={class}.{number}"
            )),
            _ => Ok(false),
        }
    }
}
