//! Receive buffers that hold no frame, or none at all: the device drops frames or keeps them, and delivers
//! again as soon as there is room. ARP answers are the frames.

use super::{AGAIN, Bench, LIMIT, is_over};
use crate::net::queue::Transmit;
use crate::net::{HEADER, Net, feature};
use crate::platform::clock;
use crate::platform::phys::Span;
use crate::say;
use crate::virtio::ring::{Buffer, Indirect, Ring};
use crate::virtio::transport::{Doorbell, NO_VECTOR};
use alloc::string::String;
use alloc::vec::Vec;
use guest_logic::packet::{self, ARP_FRAME, End, Offload, Packet};

/// Sound buffers, and the size of each.
const GOOD: u64 = 16;
const SIZE: u64 = 4096;
/// Where unsound ones are, and what surrounds them.
const BAD: u64 = 0x8_0000;
const CANARY: u8 = 0xc3;
const GUARD: u64 = 4096;

/// A receive queue without books.
struct Bare {
    ring: Ring,
    doorbell: Doorbell,
    transmit: Transmit,
    own: End,
    peer: End,
}

fn writable(address: u64, length: u32) -> Buffer {
    Buffer {
        address,
        length,
        writable: true,
    }
}

fn cases(scratch: &Span) -> Vec<(&'static str, Vec<Buffer>)> {
    let at = scratch.address() + BAD + GUARD;
    alloc::vec![
        ("no-buffers", Vec::new()),
        ("buffers-of-nothing", alloc::vec![writable(at, 0)]),
        ("buffers-of-a-byte", alloc::vec![writable(at, 1)]),
        (
            "buffers-shorter-than-a-header",
            alloc::vec![writable(at, 11)]
        ),
        ("buffers-for-a-header-alone", alloc::vec![writable(at, 12)]),
        (
            "buffers-for-a-header-in-pieces",
            (0..12).map(|byte| writable(at + byte, 1)).collect()
        ),
        (
            "buffers-for-a-byte-of-a-frame",
            alloc::vec![writable(at, 13)]
        ),
        (
            "buffers-to-be-read",
            alloc::vec![Buffer {
                writable: false,
                ..writable(at, 2000)
            }]
        ),
        ("buffers-nowhere", alloc::vec![writable(1 << 40, 2000)]),
        (
            "buffers-that-begin-nowhere",
            alloc::vec![writable(1 << 40, 12), writable(at, 2000)]
        ),
        (
            "buffers-that-end-nowhere",
            alloc::vec![writable(at, 12), writable(u64::MAX - 5, 2000)]
        ),
    ]
}

/// Runs the cases with mergeable buffers and without; how many.
pub fn run(bench: &mut Bench) -> Result<usize, String> {
    let mut count = 0;
    for without in [
        0,
        feature::MRG_RXBUF | feature::GUEST_TSO4 | feature::GUEST_TSO6 | feature::GUEST_ECN,
    ] {
        for (name, chain) in cases(&bench.scratch) {
            say!("case {name} without={without:#x}");
            case(bench, without, &chain)
                .map_err(|reason| alloc::format!("case={name} without={without:#x} {reason}"))?;
            count += 1;
        }
    }
    Ok(count)
}

fn case(bench: &mut Bench, without: u64, chain: &[Buffer]) -> Result<(), String> {
    let scratch = bench.scratch;
    scratch.fill(CANARY);
    let (own, peer) = (bench.run.ports[0].out.own, bench.peer);
    let mut bare = Bare::start(&mut bench.run.net, without, own, peer)?;
    for _ in 0..if chain.is_empty() { 0 } else { 8 } {
        bare.ring.add(chain);
    }
    bare.publish();
    // Frames come while there is no room for any.
    for _ in 0..8 {
        bare.ask()?;
    }
    let mut heads = Vec::new();
    for number in 0..GOOD {
        let buffer = writable(scratch.address() + number * SIZE, SIZE as u32);
        heads.push((bare.ring.add(&[buffer]), number));
    }
    bare.publish();
    // Without mergeable buffers, frames are dropped while a buffer is the next that has no room for them.
    let room: u32 = chain.iter().filter(|b| b.writable).map(|b| b.length).sum();
    let is_next = without != 0 && room > HEADER as u32 && room < ARP_FRAME as u32;
    if !is_next {
        bare.hear(&scratch, &mut heads)?;
    }
    let used = scratch.part(BAD + GUARD, GUARD);
    for at in (BAD..BAD + GUARD).chain(BAD + 2 * GUARD..BAD + 3 * GUARD) {
        if scratch.read::<u8>(at) != CANARY {
            return Err(alloc::format!("reason=canary offset={at:#x} {used:?}"));
        }
    }
    Ok(())
}

impl Bare {
    fn start(net: &mut Net, without: u64, own: End, peer: End) -> Result<Bare, String> {
        let transport = &net.transport;
        transport.reset()?;
        let sizes = [0, 1].map(|queue| transport.queue_size(queue));
        let features = transport.negotiate(net.features & !without)?;
        let mut ring = Ring::new(sizes[0]);
        ring.restart(features, Indirect::Mixed);
        let mut transmit = Transmit::new(1, sizes[1], 8, ARP_FRAME as u64);
        transmit.restart(features, Indirect::Mixed);
        let doorbell = transport.start_queue(0, &ring.layout, NO_VECTOR)?;
        let layout = &transmit.ring.layout;
        transmit.doorbell = Some(transport.start_queue(1, layout, NO_VECTOR)?);
        transport.driver_ok();
        Ok(Bare {
            ring,
            doorbell,
            transmit,
            own,
            peer,
        })
    }

    fn publish(&mut self) {
        self.ring.publish();
        self.doorbell.ring();
    }

    fn ask(&mut self) -> Result<(), String> {
        let (own, peer) = (self.own, self.peer);
        self.transmit.send(ARP_FRAME, |frame| {
            packet::arp(frame, 1, &own, &peer);
            Offload::default()
        })?;
        self.transmit.publish();
        Ok(())
    }

    /// Waits until an answer is whole in a sound buffer.
    fn hear(&mut self, scratch: &Span, heads: &mut [(Option<u16>, u64)]) -> Result<(), String> {
        let begin = clock::now();
        let mut asked = begin;
        while !is_over(begin, LIMIT) {
            if is_over(asked, AGAIN) {
                asked = clock::now();
                self.ask()?;
            }
            self.transmit.reclaim()?;
            let Some((head, written)) = self.ring.take()? else {
                core::hint::spin_loop();
                continue;
            };
            let good = heads.iter_mut().find(|(owner, _)| *owner == Some(head));
            let Some((owner, number)) = good else {
                continue;
            };
            let buffer = scratch.part(*number * SIZE, SIZE);
            // SAFETY: the device has given the buffer back, and nobody else looks at it.
            let bytes = unsafe { buffer.bytes() };
            let frame = bytes.get(HEADER..written as usize).unwrap_or_default();
            if let Packet::Arp {
                operation: 2,
                sender,
                ..
            } = packet::parse(frame, &Offload::default())
                && sender.ip == self.peer.ip
            {
                return Ok(());
            }
            *owner = self.ring.add(&[writable(buffer.address(), SIZE as u32)]);
            self.publish();
        }
        Err(alloc::format!("reason=no-answer {}", self.ring.state()))
    }
}
