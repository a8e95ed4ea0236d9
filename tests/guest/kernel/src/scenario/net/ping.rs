//! `scenario=net-ping`: `requests=` datagrams to a peer's UDP echo port, one after the other, and the time
//! that each took to come back.

use super::super::crew::{self, Worker};
use super::super::{Machine, Outcome, options};
use super::{Run, bad, rate, verdict};
use crate::net::{Port, Room};
use crate::platform::clock;
use crate::platform::sync::Spin;
use crate::virtio::ring::Ring;
use alloc::boxed::Box;
use alloc::string::String;
use guest_logic::datagram::{self, ECHO_PORT, FIRST_PORT, HEADER, Header};
use guest_logic::histogram::Histogram;
use guest_logic::packet::{End, Packet, UDP_HEADERS};

/// Milliseconds after which an answer counts as lost.
const LOST: u64 = 10_000;

struct Pinger {
    port: Port,
    peer: End,
    size: usize,
    requests: u64,
    next: u64,
    // The number and the time of the one under way.
    waiting: Option<(u64, u64)>,
    answered: u64,
    lost: u64,
    wrong: u64,
    latency: Box<Histogram>,
}

impl Pinger {
    fn hear(&mut self) -> Result<bool, String> {
        let mut busy = false;
        let (peer, waiting) = (self.peer, &mut self.waiting);
        let (answered, wrong, latency) = (&mut self.answered, &mut self.wrong, &mut self.latency);
        while self.port.next(|_, _, _, packet| {
            let Packet::Udp { from, payload, .. } = packet else {
                return Ok(());
            };
            if from.ip != peer.ip || from.port != ECHO_PORT {
                return Ok(());
            }
            match (datagram::check(payload), *waiting) {
                (Ok(header), Some((number, began))) if header.number == number => {
                    latency.record(clock::now().wrapping_sub(began));
                    *answered += 1;
                    *waiting = None;
                }
                // The answer to one that was given up.
                (Ok(_), _) => {}
                (Err(_), _) => *wrong += 1,
            }
            Ok(())
        })? {
            busy = true;
        }
        Ok(busy)
    }
}

impl Worker for Pinger {
    fn step(&mut self) -> Result<bool, String> {
        let mut busy = self.hear()?;
        busy |= self.port.out.transmit.reclaim()?;
        if let Some((_, began)) = self.waiting
            && clock::now().wrapping_sub(began) > LOST * clock::kilohertz()
        {
            self.lost += 1;
            self.waiting = None;
        }
        if self.waiting.is_none() && self.next < self.requests {
            let header = Header {
                number: self.next,
                stream: 0,
                acknowledge: 0,
            };
            let began = clock::now();
            let room = self
                .port
                .out
                .udp(&self.peer, FIRST_PORT, self.size, |payload| {
                    datagram::write(payload, &header);
                })?;
            if room == Room::Sent {
                self.waiting = Some((self.next, began));
                self.next += 1;
                busy = true;
            }
        }
        self.port.publish();
        Ok(busy)
    }

    fn finished(&self) -> bool {
        self.waiting.is_none() && self.next == self.requests
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

/// `scenario=net-ping`
pub fn run(machine: &Machine<'_>) -> Outcome {
    let words = &machine.words;
    let mut run = Run::open(machine, 1, 0)?;
    let most = u64::from(run.net.configuration.mtu) + 14 - UDP_HEADERS as u64;
    let size = options::within(words, "size", 64, HEADER as u64, most)?;
    let requests = options::within(words, "requests", 1000, 1, u64::MAX)?;
    let peer = End {
        port: ECHO_PORT,
        ..run.peer(words)?
    };
    let Some(port) = run.ports.pop() else {
        return Err("reason=no-queue".into());
    };
    let worker = [Spin::new(Pinger {
        port,
        peer,
        size: size as usize,
        requests,
        next: 0,
        waiting: None,
        answered: 0,
        lost: 0,
        wrong: 0,
        latency: Box::new(Histogram::new()),
    })];
    let begin = clock::now();
    crew::run(&worker, 1, run.patience)?;
    let elapsed = clock::nanoseconds(clock::now().wrapping_sub(begin));
    let [worker] = worker;
    let done = worker.into_inner();
    let part = |part| clock::nanoseconds(done.latency.per_mille(part));
    let ports = [done.port];
    let line = alloc::format!(
        "size={size} requests={requests} answered={} lost={} wrong={} ns={elapsed} tps={} p50_ns={} p99_ns={} \
         p999_ns={} max_ns={} {}",
        done.answered,
        done.lost,
        done.wrong,
        rate(done.answered, elapsed),
        part(500),
        part(990),
        part(999),
        clock::nanoseconds(done.latency.highest()),
        run.figures(&ports)
    );
    if done.answered == 0 {
        return Err(alloc::format!("reason=no-answer {line}"));
    }
    verdict(done.wrong + bad(&ports), line)
}
