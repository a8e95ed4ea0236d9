//! `scenario=net-lengths`: a raw frame of every length from the Ethernet header alone to the MTU, each
//! answered by the peer with one of the same length and its own content.

use super::super::crew::{self, Worker};
use super::super::{Machine, Outcome, options};
use super::{Run, bad, verdict};
use crate::net::{Port, Room};
use crate::platform::clock;
use crate::platform::sync::Spin;
use crate::say;
use crate::virtio::ring::Ring;
use alloc::string::String;
use alloc::vec::Vec;
use guest_logic::datagram::{Body, FROM_GUEST, FROM_HOST, LENGTHS_ETHERTYPE, LENGTHS_STREAM};
use guest_logic::packet::{self, BROADCAST, ETHERNET, Offload};

/// Milliseconds after which a frame counts as lost, and is sent again.
const AGAIN: u64 = 10_000;
/// How often, before the peer counts as absent.
const TRIES: u8 = 8;

#[derive(Clone, Copy)]
struct UnderWay {
    length: usize,
    since: u64,
    tries: u8,
}

struct Lengths {
    port: Port,
    next: usize,
    last: usize,
    depth: usize,
    under_way: Vec<UnderWay>,
    answered: u64,
    again: u64,
    duplicates: u64,
    wrong: u64,
}

impl Lengths {
    fn send(&mut self, length: usize) -> Result<Room, String> {
        self.port.out.frame(length, |frame, own| {
            packet::ethernet(frame, own.mac, BROADCAST, LENGTHS_ETHERTYPE);
            let body = Body::new(LENGTHS_STREAM + FROM_GUEST, length as u64);
            body.fill(&mut frame[ETHERNET..], 0);
            Offload::default()
        })
    }

    fn hear(&mut self) -> Result<bool, String> {
        let mut busy = false;
        let under_way = &mut self.under_way;
        let (answered, duplicates, wrong) =
            (&mut self.answered, &mut self.duplicates, &mut self.wrong);
        while self.port.next(|_, offload, frame, _| {
            if packet::ethertype(frame) != LENGTHS_ETHERTYPE {
                return Ok(());
            }
            let length = frame.len();
            let body = Body::new(LENGTHS_STREAM + FROM_HOST, length as u64);
            let at = body.first_wrong(&frame[ETHERNET..], 0);
            if at.is_some() || offload.gso_type != 0 {
                if *wrong < 5 {
                    say!("wrong frame length={length} byte={at:?} {offload:?}");
                }
                *wrong += 1;
            } else if let Some(place) = under_way.iter().position(|w| w.length == length) {
                under_way.swap_remove(place);
                *answered += 1;
            } else {
                *duplicates += 1;
            }
            Ok(())
        })? {
            busy = true;
        }
        Ok(busy)
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
                    "reason=no-answer length={} answered={} wrong={}",
                    late.length,
                    self.answered,
                    self.wrong
                ));
            }
            if self.send(late.length)? == Room::Sent {
                self.under_way[at].since = now;
                self.under_way[at].tries += 1;
                self.again += 1;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Worker for Lengths {
    fn step(&mut self) -> Result<bool, String> {
        let mut busy = self.hear()?;
        busy |= self.port.out.transmit.reclaim()?;
        busy |= self.repeat()?;
        while self.next <= self.last && self.under_way.len() < self.depth {
            if self.send(self.next)? == Room::Full {
                break;
            }
            self.under_way.push(UnderWay {
                length: self.next,
                since: clock::now(),
                tries: 1,
            });
            self.next += 1;
            busy = true;
        }
        self.port.publish();
        Ok(busy)
    }

    fn finished(&self) -> bool {
        self.next > self.last && self.under_way.is_empty()
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

/// `scenario=net-lengths`
pub fn run(machine: &Machine<'_>) -> Outcome {
    let words = &machine.words;
    let mut run = Run::open(machine, 1, 0)?;
    let most = u64::from(run.net.configuration.mtu) + ETHERNET as u64;
    let first = options::within(words, "min", ETHERNET as u64, ETHERNET as u64, most)?;
    let last = options::within(words, "max", most, first, most)?;
    let Some(port) = run.ports.pop() else {
        return Err("reason=no-queue".into());
    };
    let worker = [Spin::new(Lengths {
        port,
        next: first as usize,
        last: last as usize,
        depth: options::within(words, "depth", 16, 1, 1024)? as usize,
        under_way: Vec::new(),
        answered: 0,
        again: 0,
        duplicates: 0,
        wrong: 0,
    })];
    crew::run(&worker, 1, run.patience)?;
    let [worker] = worker;
    let done = worker.into_inner();
    let ports = [done.port];
    let line = alloc::format!(
        "min={first} max={last} lengths={} answered={} again={} duplicates={} wrong={} {}",
        last - first + 1,
        done.answered,
        done.again,
        done.duplicates,
        done.wrong,
        run.figures(&ports)
    );
    verdict(done.wrong + bad(&ports), line)
}
