//! `scenario=net-gso`: hand-made TCP frames that the device is to cut (segmentation offload), with every
//! segment size, each answered by the peer with one of the same kind and its own content. With GUEST_TSO
//! agreed on, answers come whole; else in segments, which are checked and put together.

use super::super::crew::{self, Worker};
use super::super::{Machine, Outcome, options};
use super::{Run, bad, verdict};
use crate::net::{LONGEST, Port, Room, feature};
use crate::platform::clock;
use crate::platform::sync::Spin;
use crate::say;
use crate::virtio::ring::Ring;
use alloc::string::String;
use alloc::vec::Vec;
use guest_logic::datagram::{Body, FROM_GUEST, FROM_HOST, SEGMENTS_STREAM};
use guest_logic::packet::{BROADCAST, End, Offload};
use guest_logic::random::Random;
use guest_logic::segment::{LONGEST_WHOLE, Segment};

/// Milliseconds after which a frame counts as lost, and is sent again.
const AGAIN: u64 = 10_000;
/// The most segments of a frame whose answer comes in segments.
const PIECES: u32 = 200;
/// How often, before the peer counts as absent.
const TRIES: u8 = 8;

#[derive(Clone, Copy)]
struct UnderWay {
    segment: Segment,
    since: u64,
    tries: u8,
    // How much of the answer is here.
    got: u32,
}

#[derive(Default)]
struct Figures {
    answered: u64,
    bytes: u64,
    whole: u64,
    segments: u64,
    again: u64,
    stray: u64,
    wrong: u64,
}

/// The frames to send: segment sizes from `gso` on, each for each version of IP.
struct Frames {
    gso: u32,
    dense: u32,
    last: u32,
    step: u32,
    versions: Vec<bool>,
    version: usize,
    number: u16,
    count: u64,
    ecn: [bool; 2],
    // Whether answers come whole.
    whole: [bool; 2],
    random: Random,
}

impl Frames {
    fn next(&mut self) -> Option<Segment> {
        if self.gso > self.last {
            return None;
        }
        let v6 = self.versions[self.version];
        let mut segment = Segment {
            v6,
            number: self.number,
            gso_size: self.gso as u16,
            ecn: self.ecn[usize::from(v6)] && self.number.is_multiple_of(4),
            ..Segment::default()
        };
        // As much as the length fields of IP can say: IPv4's counts its own header, IPv6's does not.
        let most = 65_535 + 14 + if v6 { 40 } else { 0 } - segment.headers() as u32;
        let most = most.min(LONGEST as u32 - segment.headers() as u32);
        // What the host has to cut must fit into its queues.
        let most = if self.whole[usize::from(v6)] {
            most
        } else {
            most.min(self.gso * PIECES).max(self.gso + 1)
        };
        // A frame with no more data than one segment is none to cut. The longest is always among them.
        segment.total = if self.number.is_multiple_of(8) {
            most
        } else {
            self.gso + 1 + self.random.below(u64::from(most - self.gso)) as u32
        };
        self.number = self.number.wrapping_add(1);
        self.count += 1;
        self.version += 1;
        if self.version == self.versions.len() {
            self.version = 0;
            self.gso += if self.gso < self.dense { 1 } else { self.step };
        }
        Some(segment)
    }
}

struct Gso {
    port: Port,
    frames: Frames,
    waiting: Option<Segment>,
    depth: usize,
    under_way: Vec<UnderWay>,
    figures: Figures,
}

impl Gso {
    fn send(&mut self, segment: &Segment) -> Result<Room, String> {
        let headers = segment.headers();
        let to = End {
            mac: BROADCAST,
            ip: [10, 0, 2, 254],
            port: 0,
        };
        let stream = SEGMENTS_STREAM + FROM_GUEST;
        let body = Body::new(stream, u64::from(segment.number));
        let length = headers + segment.total as usize;
        self.port.out.frame(length, |frame, own| {
            body.fill(&mut frame[headers..], 0);
            segment.write(frame, own, &to)
        })
    }

    fn hear(&mut self) -> Result<bool, String> {
        let mut busy = false;
        let (under_way, figures) = (&mut self.under_way, &mut self.figures);
        while self.port.next(|_, offload, frame, _| {
            if let Err(wrong) = Self::look(under_way, figures, offload, frame) {
                if figures.wrong < 5 {
                    say!("wrong segment length={} {offload:?} {wrong}", frame.len());
                }
                figures.wrong += 1;
            }
            Ok(())
        })? {
            busy = true;
        }
        Ok(busy)
    }

    fn look(
        under_way: &mut Vec<UnderWay>,
        figures: &mut Figures,
        offload: &Offload,
        frame: &[u8],
    ) -> Result<(), String> {
        let Some((segment, data)) = Segment::parse(frame, offload)? else {
            return Ok(());
        };
        let place = under_way
            .iter()
            .position(|w| w.segment.number == segment.number && w.segment.v6 == segment.v6);
        let Some(place) = place else {
            figures.stray += 1;
            return Ok(());
        };
        let known = &mut under_way[place];
        if segment.gso_size != known.segment.gso_size
            || segment.total != known.segment.answer_total()
        {
            return Err(alloc::format!("fields {segment:?}"));
        }
        let stream = SEGMENTS_STREAM + FROM_HOST;
        let body = Body::new(stream, u64::from(segment.number));
        if let Some(at) = body.first_wrong(data, u64::from(segment.offset)) {
            return Err(alloc::format!("byte={at} {segment:?}"));
        }
        let whole = data.len() as u32 == segment.total;
        if offload.gso_type != 0 {
            let kind = if segment.v6 {
                Offload::TCPV6
            } else {
                Offload::TCPV4
            };
            if offload.gso_type & !Offload::ECN != kind
                || offload.gso_size != segment.gso_size
                || (offload.gso_type & Offload::ECN != 0) != segment.ecn
                || !whole
            {
                return Err(alloc::format!("gso {segment:?}"));
            }
            figures.whole += 1;
        } else {
            if data.len() > usize::from(segment.gso_size) {
                return Err(alloc::format!("uncut {segment:?}"));
            }
            figures.segments += 1;
        }
        if segment.offset == 0 {
            known.got = 0;
        }
        if segment.offset == known.got {
            known.got += data.len() as u32;
        }
        if known.got == segment.total {
            figures.answered += 1;
            figures.bytes += u64::from(segment.total);
            under_way.swap_remove(place);
        }
        Ok(())
    }

    fn repeat(&mut self) -> Result<bool, String> {
        let now = clock::now();
        for at in 0..self.under_way.len() {
            let late = self.under_way[at];
            if now.wrapping_sub(late.since) < AGAIN * clock::kilohertz() {
                continue;
            }
            if late.tries == TRIES {
                return Err(alloc::format!(
                    "reason=no-answer number={} v6={} gso_size={} total={} got={} answered={} wrong={}",
                    late.segment.number,
                    u8::from(late.segment.v6),
                    late.segment.gso_size,
                    late.segment.total,
                    late.got,
                    self.figures.answered,
                    self.figures.wrong
                ));
            }
            if self.send(&late.segment)? == Room::Sent {
                self.under_way[at].since = now;
                self.under_way[at].tries += 1;
                self.figures.again += 1;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Worker for Gso {
    fn step(&mut self) -> Result<bool, String> {
        let mut busy = self.hear()?;
        busy |= self.port.out.transmit.reclaim()?;
        busy |= self.repeat()?;
        while self.under_way.len() < self.depth {
            let Some(segment) = self.waiting.take().or_else(|| self.frames.next()) else {
                break;
            };
            if self.send(&segment)? == Room::Full {
                self.waiting = Some(segment);
                break;
            }
            self.under_way.push(UnderWay {
                segment,
                since: clock::now(),
                tries: 1,
                got: 0,
            });
            busy = true;
        }
        self.port.publish();
        Ok(busy)
    }

    fn finished(&self) -> bool {
        self.frames.gso > self.frames.last && self.waiting.is_none() && self.under_way.is_empty()
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

fn frames(machine: &Machine<'_>, run: &Run) -> Result<Frames, String> {
    let words = &machine.words;
    let mut versions = Vec::new();
    for (v6, bit, name) in [
        (false, feature::HOST_TSO4, "4"),
        (true, feature::HOST_TSO6, "6"),
    ] {
        if matches!(words.text("tso", "both"), wish if wish == name || wish == "both") {
            if !run.net.has(bit) {
                return Err(alloc::format!("reason=no-offload feature=host-tso{name}"));
            }
            versions.push(v6);
        }
    }
    if versions.is_empty() {
        return Err("reason=bad-value key=tso".into());
    }
    // A device that cannot pass the flag on whole would have it cut by the host.
    let ecn = |guest: u64| {
        let whole = run.net.has(guest);
        run.net.has(feature::HOST_ECN) && (!whole || run.net.has(feature::GUEST_ECN))
    };
    let most = LONGEST_WHOLE as u64 - 74 - 1;
    let first = options::within(words, "min", 1, 1, most)?;
    let last = options::within(words, "max", most, first, most)?;
    Ok(Frames {
        gso: first as u32,
        dense: options::within(words, "dense", 2048, 0, most)? as u32,
        last: last as u32,
        step: options::within(words, "step", 487, 1, most)? as u32,
        versions,
        version: 0,
        number: 0,
        count: 0,
        whole: [feature::GUEST_TSO4, feature::GUEST_TSO6].map(|bit| run.net.has(bit)),
        ecn: [ecn(feature::GUEST_TSO4), ecn(feature::GUEST_TSO6)],
        random: Random::new(options::number(words, "seed", 1)?),
    })
}

/// `scenario=net-gso`
pub fn run(machine: &Machine<'_>) -> Outcome {
    let words = &machine.words;
    let mut run = Run::open(machine, 1, LONGEST as u64)?;
    let frames = frames(machine, &run)?;
    let (first, last) = (frames.gso, frames.last);
    let Some(port) = run.ports.pop() else {
        return Err("reason=no-queue".into());
    };
    let worker = [Spin::new(Gso {
        port,
        frames,
        waiting: None,
        depth: options::within(words, "window", 2, 1, 64)? as usize,
        under_way: Vec::new(),
        figures: Figures::default(),
    })];
    crew::run(&worker, 1, run.patience)?;
    let [worker] = worker;
    let done = worker.into_inner();
    let (ports, figures) = ([done.port], done.figures);
    let line = alloc::format!(
        "min={first} max={last} frames={} answered={} bytes={} whole={} segments={} again={} stray={} wrong={} {}",
        done.frames.count,
        figures.answered,
        figures.bytes,
        figures.whole,
        figures.segments,
        figures.again,
        figures.stray,
        figures.wrong,
        run.figures(&ports)
    );
    verdict(figures.wrong + bad(&ports), line)
}
