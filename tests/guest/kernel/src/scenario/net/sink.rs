//! `scenario=net-sink`: takes a blast of numbered datagrams, checks every byte, and counts what was lost,
//! came late or came twice, until the sender says "done" on port 9 or `seconds=` are over.

use super::super::crew::{self, Worker};
use super::super::{Machine, Outcome};
use super::{Run, bad, control::Stop, deadline, rate, verdict};
use crate::net::{Port, Room, port::Out};
use crate::platform::clock;
use crate::platform::sync::Spin;
use crate::say;
use crate::virtio::ring::Ring;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_logic::datagram::{self, Body, FIRST_PORT, OF_BLAST, SEGMENTS_STREAM};
use guest_logic::flow::Flow;
use guest_logic::packet::{self, End, Offload, Packet};
use guest_logic::segment::Segment;

/// Streams that are followed.
const STREAMS: usize = 32;

/// What all ports count into.
pub struct Shared {
    stop: Stop,
    flows: Vec<Spin<Box<Flow>>>,
    segments: Spin<Box<Flow>>,
    bytes: AtomicU64,
    /// Datagrams and segments that are not as they were sent.
    pub wrong: AtomicU64,
    first: AtomicU64,
    last: AtomicU64,
    end: u64,
}

impl Shared {
    /// Nothing yet, until `end` at most.
    pub fn new(end: u64) -> Shared {
        Shared {
            stop: Stop::default(),
            flows: (0..STREAMS)
                .map(|_| Spin::new(Box::new(Flow::new())))
                .collect(),
            segments: Spin::new(Box::new(Flow::new())),
            bytes: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            first: AtomicU64::new(u64::MAX),
            last: AtomicU64::new(0),
            end,
        }
    }

    fn time(&self, length: usize) {
        let now = clock::now();
        self.bytes.fetch_add(length as u64, Ordering::Relaxed);
        self.first.fetch_min(now, Ordering::Relaxed);
        self.last.fetch_max(now, Ordering::Relaxed);
    }

    /// The counts, as words of a result line.
    pub fn words(&self) -> String {
        let (mut received, mut late, mut twice, mut least) = (0, 0, 0, 0);
        for flow in self.flows.iter().chain([&self.segments]) {
            let flow = flow.lock();
            received += flow.received;
            late += flow.reordered;
            twice += flow.duplicates;
            least += flow.next;
        }
        let bytes = self.bytes.load(Ordering::Relaxed);
        let first = self.first.load(Ordering::Relaxed);
        let elapsed = self.last.load(Ordering::Relaxed).saturating_sub(first);
        let elapsed = clock::nanoseconds(elapsed);
        let sent = self.stop.sent.load(Ordering::Relaxed).max(least);
        alloc::format!(
            "sent={sent} received={received} lost={} reordered={late} duplicates={twice} wrong={} bytes={bytes} \
             ns={elapsed} pps={} bps={}",
            sent.saturating_sub(received),
            self.wrong.load(Ordering::Relaxed),
            rate(received, elapsed),
            rate(bytes * 8, elapsed)
        )
    }

    fn note_wrong(&self, what: core::fmt::Arguments<'_>) {
        // The first few say what is wrong; the rest are counted.
        if self.wrong.fetch_add(1, Ordering::Relaxed) < 5 {
            say!("wrong {what}");
        }
    }

    fn datagram(&self, out: &mut Out, from: &End, to: &End, payload: &[u8]) -> Result<(), String> {
        let header = match datagram::check(payload) {
            Ok(header) => header,
            Err(wrong) => {
                self.note_wrong(format_args!("datagram length={} {wrong:?}", payload.len()));
                return Ok(());
            }
        };
        let Some(flow) = self.flows.get(usize::from(header.stream)) else {
            self.note_wrong(format_args!("stream {}", header.stream));
            return Ok(());
        };
        self.time(payload.len());
        let (next, seen) = {
            let mut flow = flow.lock();
            flow.note(header.number);
            (flow.next, flow.received)
        };
        if header.acknowledge != 0 && seen.is_multiple_of(u64::from(header.acknowledge)) {
            let room = out.udp(from, to.port, 8, |answer| {
                answer.copy_from_slice(&next.to_le_bytes());
            })?;
            debug_assert!(room == Room::Sent);
        }
        Ok(())
    }

    fn segment(
        &self,
        out: &mut Out,
        from: &End,
        segment: &Segment,
        data: &[u8],
    ) -> Result<(), String> {
        let body = Body::new(SEGMENTS_STREAM + OF_BLAST, u64::from(segment.number));
        if let Some(at) = body.first_wrong(data, u64::from(segment.offset)) {
            self.note_wrong(format_args!("segment number={} byte={at}", segment.number));
            return Ok(());
        }
        self.time(data.len());
        let mut flow = self.segments.lock();
        // A frame that was cut counts when its last part is here.
        if u64::from(segment.offset) + data.len() as u64 == u64::from(segment.total) {
            let number = full(segment.number, flow.next);
            flow.note(number);
            let every = u64::from(segment.acknowledge);
            if every != 0 && flow.received.is_multiple_of(every) {
                let to = End {
                    port: FIRST_PORT,
                    ..*from
                };
                out.udp(&to, FIRST_PORT, 8, |answer| {
                    answer.copy_from_slice(&flow.next.to_le_bytes());
                })?;
            }
        }
        Ok(())
    }

    fn look(
        &self,
        out: &mut Out,
        offload: &Offload,
        frame: &[u8],
        packet: &Packet<'_>,
    ) -> Result<(), String> {
        if self.stop.hear(out, packet, || self.words())? {
            return Ok(());
        }
        match packet {
            Packet::Udp { from, to, payload } if to.ip == out.own.ip && to.port >= FIRST_PORT => {
                self.datagram(out, from, to, payload)
            }
            Packet::Other => {
                match Segment::parse(frame, offload) {
                    Ok(Some((segment, data))) => {
                        let (from, _) = packet::ends(frame);
                        return self.segment(out, &from, &segment, data);
                    }
                    Ok(None) => {}
                    Err(wrong) => self.note_wrong(format_args!("segment {wrong}")),
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Takes some frames from a port. True if there were any.
    pub fn take(&self, port: &mut Port) -> Result<bool, String> {
        let mut busy = false;
        // Buffers go back in portions, so that the device does not run out of them.
        for _ in 0..64 {
            if !port.next(|out, offload, frame, packet| self.look(out, offload, frame, packet))? {
                break;
            }
            busy = true;
        }
        port.publish();
        Ok(busy)
    }
}

// The number that has these low 16 bits and is nearest to the next one expected.
fn full(low: u16, next: u64) -> u64 {
    let ahead = low.wrapping_sub(next as u16) as i16;
    next.saturating_add_signed(i64::from(ahead))
}

struct Sink<'a> {
    port: Port,
    shared: &'a Shared,
}

impl Worker for Sink<'_> {
    fn step(&mut self) -> Result<bool, String> {
        self.shared.take(&mut self.port)
    }

    fn finished(&self) -> bool {
        self.shared.stop.is_over() || clock::now() >= self.shared.end
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

/// `scenario=net-sink`
pub fn run(machine: &Machine<'_>) -> Outcome {
    let mut run = Run::open(machine, u16::MAX, 0)?;
    run.wait_for_ever();
    let shared = Shared::new(deadline(&machine.words, 86_400)?);
    say!("ready scenario=net-sink");
    let workers: Vec<_> = core::mem::take(&mut run.ports)
        .into_iter()
        .map(|port| {
            Spin::new(Sink {
                port,
                shared: &shared,
            })
        })
        .collect();
    crew::run(&workers, run.processors, run.patience)?;
    let ports: Vec<Port> = workers.into_iter().map(|w| w.into_inner().port).collect();
    let line = alloc::format!("{} {}", shared.words(), run.figures(&ports));
    let wrong = shared.wrong.load(Ordering::Relaxed);
    verdict(wrong + bad(&ports), line)
}
