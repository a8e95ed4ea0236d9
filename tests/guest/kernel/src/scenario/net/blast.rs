//! `scenario=net-blast`: numbered datagrams to a peer as fast as they go, or at most `window=` of them ahead
//! of the peer's acknowledgements; at the end the peer is asked what it received. With `gso=` they are
//! segments of that size in TCP frames of `size=` bytes of data.

use super::super::crew::{self, Worker};
use super::super::{Machine, Outcome, options};
use super::{Run, bad, control, deadline, rate, verdict};
use crate::net::{LONGEST, Port, Room, feature};
use crate::platform::clock;
use crate::platform::sync::Spin;
use crate::say;
use crate::virtio::ring::Ring;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_logic::datagram::{self, Body, FIRST_PORT, HEADER, Header, OF_BLAST, SEGMENTS_STREAM};
use guest_logic::packet::{End, Packet, UDP_HEADERS};
use guest_logic::segment::Segment;

/// Milliseconds without an acknowledgement after which a full window lets one more datagram through.
const PROBE: u64 = 50;

#[derive(Clone, Copy)]
struct Plan {
    peer: End,
    /// Where segments go.
    to: End,
    size: usize,
    /// Bytes in a segment; 0: UDP.
    gso: u16,
    /// Datagrams for each stream.
    requests: u64,
    end: u64,
    /// 0: no limit.
    window: u64,
}

struct Blaster {
    port: Port,
    plan: Plan,
    stream: u16,
    next: u64,
    // The highest acknowledged number of each stream, plus 1.
    acknowledged: Arc<[AtomicU64]>,
    heard: u64,
}

impl Blaster {
    fn wants_more(&self) -> bool {
        self.next < self.plan.requests && (clock::now() < self.plan.end || self.next == 0)
    }

    fn may_send(&mut self) -> bool {
        let acknowledged = self.acknowledged[usize::from(self.stream)].load(Ordering::Relaxed);
        if self.plan.window == 0 || self.next < acknowledged + self.plan.window {
            return true;
        }
        let now = clock::now();
        if now.wrapping_sub(self.heard) < PROBE * clock::kilohertz() {
            return false;
        }
        self.heard = now;
        true
    }

    fn send(&mut self) -> Result<Room, String> {
        let (plan, number) = (self.plan, self.next);
        let least = u64::from(plan.window != 0);
        let acknowledge = (plan.window / 4).clamp(least, 0xffff) as u16;
        if plan.gso != 0 {
            let segment = Segment {
                number: number as u16,
                total: plan.size as u32,
                gso_size: plan.gso,
                acknowledge,
                ..Segment::default()
            };
            let headers = segment.headers();
            let body = Body::new(SEGMENTS_STREAM + OF_BLAST, u64::from(segment.number));
            return self.port.out.frame(headers + plan.size, |frame, own| {
                body.fill(&mut frame[headers..], 0);
                segment.write(frame, own, &plan.to)
            });
        }
        let port = FIRST_PORT + self.stream;
        let to = End { port, ..plan.peer };
        let header = Header {
            number,
            stream: self.stream,
            acknowledge,
        };
        self.port.out.udp(&to, port, plan.size, |payload| {
            datagram::write(payload, &header);
        })
    }

    fn hear(&mut self) -> Result<bool, String> {
        let (acknowledged, peer) = (&self.acknowledged, self.plan.peer);
        let mut heard = false;
        while self.port.next(|_, _, _, packet| {
            if let Packet::Udp { from, to, payload } = packet
                && from.ip == peer.ip
                && let Ok(bytes) = <[u8; 8]>::try_from(*payload)
                && let Some(stream) =
                    acknowledged.get(usize::from(to.port.wrapping_sub(FIRST_PORT)))
            {
                stream.fetch_max(u64::from_le_bytes(bytes), Ordering::Relaxed);
                heard = true;
            }
            Ok(())
        })? {}
        if heard {
            self.heard = clock::now();
        }
        Ok(heard)
    }
}

impl Worker for Blaster {
    fn step(&mut self) -> Result<bool, String> {
        let mut busy = self.hear()?;
        busy |= if self.wants_more() {
            self.port.out.transmit.reclaim()?
        } else {
            self.port.out.drain()?
        };
        // The device is told after a part of the slots was filled, not when all are.
        for _ in 0..32 {
            if !self.wants_more() || !self.may_send() || self.send()? == Room::Full {
                break;
            }
            self.next += 1;
            busy = true;
        }
        self.port.publish();
        Ok(busy)
    }

    fn finished(&self) -> bool {
        !self.wants_more() && self.port.out.transmit.is_drained()
    }

    fn ring(&mut self) -> &mut Ring {
        &mut self.port.receive.ring
    }

    fn arm(&mut self) -> bool {
        self.port.arm()
    }

    fn disarm(&mut self) {
        self.port.disarm();
    }

    fn state(&mut self) -> String {
        self.port.state()
    }
}

fn plan(machine: &Machine<'_>, run: &mut Run) -> Result<Plan, String> {
    let words = &machine.words;
    let gso = options::within(words, "gso", 0, 0, 65_000)? as u16;
    let mtu = u64::from(run.net.configuration.mtu) + 14;
    let (low, high, otherwise) = if gso == 0 {
        (
            HEADER as u64,
            mtu - UDP_HEADERS as u64,
            mtu - UDP_HEADERS as u64,
        )
    } else {
        (u64::from(gso) + 1, LONGEST as u64 - 54, 65_160)
    };
    if gso != 0 && !run.net.has(feature::HOST_TSO4) {
        return Err("reason=no-offload feature=host-tso4".into());
    }
    let requests = match options::number(words, "requests", 0)? {
        0 => u64::MAX,
        requests => requests.div_ceil(run.ports.len() as u64),
    };
    let window = options::number(words, "window", 0)?;
    let peer = run.peer(words)?;
    let mac = options::ethernet_address(words, "peer_mac")?.unwrap_or(peer.mac);
    Ok(Plan {
        peer,
        to: End { mac, ..peer },
        size: options::within(words, "size", otherwise, low, high)? as usize,
        gso,
        requests,
        end: deadline(words, if requests == u64::MAX { 3 } else { 3600 })?,
        window,
    })
}

/// `scenario=net-blast`
pub fn run(machine: &Machine<'_>) -> Outcome {
    let words = &machine.words;
    let segments = options::number(words, "gso", 0)? != 0;
    let most = if segments { 1 } else { u16::MAX };
    let mut run = Run::open(machine, most, if segments { LONGEST as u64 } else { 0 })?;
    let plan = plan(machine, &mut run)?;
    let acknowledged: Arc<[AtomicU64]> = run.ports.iter().map(|_| AtomicU64::new(0)).collect();
    say!("ready scenario=net-blast");
    let begin = clock::now();
    let workers: Vec<_> = (0u16..)
        .zip(core::mem::take(&mut run.ports))
        .map(|(stream, port)| {
            Spin::new(Blaster {
                port,
                plan,
                stream,
                next: 0,
                acknowledged: acknowledged.clone(),
                heard: begin,
            })
        })
        .collect();
    crew::run(&workers, run.processors, run.patience)?;
    let elapsed = clock::nanoseconds(clock::now().wrapping_sub(begin)).max(1);
    // What follows is no load.
    say!("sent scenario=net-blast");
    let (mut ports, mut sent) = (Vec::new(), 0);
    for worker in workers {
        let worker = worker.into_inner();
        sent += worker.next;
        ports.push(worker.port);
    }
    let line = alloc::format!(
        "size={} gso={} sent={sent} bytes={} ns={elapsed} pps={} bps={} {}",
        plan.size,
        plan.gso,
        sent * plan.size as u64,
        rate(sent, elapsed),
        rate(sent * plan.size as u64 * 8, elapsed),
        run.figures(&ports)
    );
    if !options::flag(words, "ack", true)? {
        return verdict(bad(&ports), line);
    }
    match control::tell(&mut ports, &plan.peer, &alloc::format!("done sent={sent}"))? {
        Some(answer) => verdict(
            bad(&ports),
            alloc::format!("{line}{}", control::as_peers(&answer)),
        ),
        None => Err(alloc::format!("reason=no-answer-to-done {line}")),
    }
}
