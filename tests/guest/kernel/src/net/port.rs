//! A queue pair with an address: it answers ARP and ping by itself and sends UDP. There is no routing and
//! no fragmentation: a peer is on the same link.

use super::device::{Net, Pair};
use super::feature;
use super::queue::{Receive, Transmit};
use crate::platform::clock;
use alloc::string::String;
use guest_logic::packet::{self, ARP_FRAME, End, Offload, Packet, UDP_HEADERS};

/// Milliseconds between two questions for an address.
const ASK_AGAIN: u64 = 200;

/// What a port counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Frames from the device.
    pub frames: u64,
    /// Their bytes, without virtio's header.
    pub bytes: u64,
    /// Frames whose lengths or checksums contradict each other.
    pub bad: u64,
    /// ARP requests that were answered.
    pub arps: u64,
    /// Echo requests that were answered.
    pub pings: u64,
    /// Frames to the device.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
}

impl Counts {
    /// Adds another port's.
    pub fn add(&mut self, other: &Counts) {
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.bad += other.bad;
        self.arps += other.arps;
        self.pings += other.pings;
        self.sent += other.sent;
        self.sent_bytes += other.sent_bytes;
    }
}

/// Whether a frame found room in its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It did.
    Sent,
    /// Not now.
    Full,
}

/// The sending half.
pub struct Out {
    /// Its address.
    pub own: End,
    /// Its queue.
    pub transmit: Transmit,
    /// Counted here and in the other half.
    pub counts: Counts,
    checksum: bool,
    // It wants to know when there is room again.
    waits: bool,
}

impl Out {
    /// Sends a frame that `fill` writes.
    pub fn frame(
        &mut self,
        length: usize,
        fill: impl FnOnce(&mut [u8], &End) -> Offload,
    ) -> Result<Room, String> {
        let own = self.own;
        if self.transmit.send(length, |frame| fill(frame, &own))? {
            self.counts.sent += 1;
            self.counts.sent_bytes += length as u64;
            return Ok(Room::Sent);
        }
        self.waits = true;
        Ok(Room::Full)
    }

    /// Sends a datagram of `length` bytes that `fill` writes, from this port of ours.
    pub fn udp(
        &mut self,
        to: &End,
        port: u16,
        length: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<Room, String> {
        let offload = self.checksum;
        self.frame(UDP_HEADERS + length, |frame, own| {
            fill(&mut frame[UDP_HEADERS..]);
            packet::udp(frame, &End { port, ..*own }, to, offload)
        })
    }

    /// Takes back what the device has sent, and wants to know when it has sent the rest.
    pub fn drain(&mut self) -> Result<bool, String> {
        self.waits = true;
        self.transmit.reclaim()
    }

    fn has_room(&mut self) -> Result<bool, String> {
        if self.transmit.has_room()? {
            return Ok(true);
        }
        self.waits = true;
        Ok(false)
    }

    fn answer(&mut self, frame: &[u8], packet: &Packet<'_>) -> Result<bool, String> {
        match packet {
            Packet::Arp {
                operation: 1,
                sender,
                target,
            } if *target == self.own.ip => {
                self.frame(ARP_FRAME, |frame, own| {
                    packet::arp(frame, 2, own, sender);
                    Offload::default()
                })?;
                self.counts.arps += 1;
            }
            Packet::Ping { from, to, message }
                if *to == self.own.ip && frame.len() <= self.transmit.longest() =>
            {
                self.frame(34 + message.len(), |frame, own| {
                    packet::pong(frame, own, from, message);
                    Offload::default()
                })?;
                self.counts.pings += 1;
            }
            Packet::Bad(_) => self.counts.bad += 1,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// A queue pair with an address.
pub struct Port {
    /// Frames from the device.
    pub receive: Receive,
    /// Frames to the device.
    pub out: Out,
}

impl Port {
    /// Gives a pair of this device an address.
    pub fn new(net: &Net, pair: Pair, own: End) -> Port {
        Port {
            receive: pair.receive,
            out: Out {
                own,
                transmit: pair.transmit,
                counts: Counts::default(),
                checksum: net.has(feature::CSUM),
                waits: false,
            },
        }
    }

    /// Takes one frame, if there is one and room for an answer. ARP and ping are answered here; anything
    /// else is shown to `look`. False if there was none.
    pub fn next(
        &mut self,
        look: impl FnOnce(&mut Out, &Offload, &[u8], &Packet<'_>) -> Result<(), String>,
    ) -> Result<bool, String> {
        let out = &mut self.out;
        if !out.has_room()? {
            return Ok(false);
        }
        let seen = self.receive.next(|offload, frame| {
            out.counts.frames += 1;
            out.counts.bytes += frame.len() as u64;
            let packet = packet::parse(frame, offload);
            if out.answer(frame, &packet)? {
                return Ok(());
            }
            look(out, offload, frame, &packet)
        })?;
        seen.map_or(Ok(false), |outcome| outcome.map(|()| true))
    }

    /// Hands over what was sent and taken.
    pub fn publish(&mut self) {
        self.receive.publish();
        self.out.transmit.publish();
    }

    /// For `crew::Worker`.
    pub fn arm(&mut self) -> bool {
        let frames = self.receive.ring.arm();
        let room = self.out.waits && self.out.transmit.ring.arm();
        self.out.waits = false;
        frames || room
    }

    /// For `crew::Worker`.
    pub fn disarm(&mut self) {
        self.receive.ring.disarm();
        self.out.transmit.ring.disarm();
    }

    /// For `crew::Worker`.
    pub fn state(&self) -> String {
        alloc::format!(
            "rx: {} tx: {}",
            self.receive.ring.state(),
            self.out.transmit.ring.state()
        )
    }
}

/// Asks for the Ethernet address of a peer, for as many milliseconds as `limit`.
pub fn resolve(ports: &mut [Port], ip: [u8; 4], limit: u64) -> Result<End, String> {
    let wanted = End {
        ip,
        ..End::default()
    };
    let mut found = None;
    let begin = clock::now();
    let mut asked = None;
    loop {
        let waited = clock::now().wrapping_sub(begin) / clock::kilohertz();
        if waited > limit {
            let [a, b, c, d] = ip;
            return Err(alloc::format!("reason=no-arp-answer peer={a}.{b}.{c}.{d}"));
        }
        if asked.is_none_or(|at| waited >= at + ASK_AGAIN) {
            asked = Some(waited);
            ports[0].out.frame(ARP_FRAME, |frame, own| {
                packet::arp(frame, 1, own, &wanted);
                Offload::default()
            })?;
        }
        for port in &mut *ports {
            port.next(|_, _, _, packet| {
                if let Packet::Arp {
                    operation: 2,
                    sender,
                    ..
                } = packet
                    && sender.ip == ip
                {
                    found = Some(*sender);
                }
                Ok(())
            })?;
            port.publish();
        }
        if let Some(peer) = found {
            return Ok(peer);
        }
        core::hint::spin_loop();
    }
}
