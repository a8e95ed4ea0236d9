//! `scenario=net-echo`: answers ARP and ping, and sends every UDP datagram to port 7 back, until `requests=`
//! of them were, `seconds=` are over, or a peer says "stop" on port 9.

use super::super::crew::{self, Worker};
use super::super::{Machine, Outcome, options};
use super::{Run, bad, control::Stop, deadline, verdict};
use crate::net::Port;
use crate::platform::clock;
use crate::platform::sync::Spin;
use crate::say;
use crate::virtio::ring::Ring;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_logic::datagram::ECHO_PORT;
use guest_logic::packet::Packet;

struct Shared {
    stop: Stop,
    echoed: AtomicU64,
    bytes: AtomicU64,
    other: AtomicU64,
    requests: u64,
    end: u64,
}

impl Shared {
    fn words(&self) -> String {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        alloc::format!(
            "echoed={} bytes={} other={}",
            count(&self.echoed),
            count(&self.bytes),
            count(&self.other)
        )
    }
}

struct Echo<'a> {
    port: Port,
    shared: &'a Shared,
}

impl Worker for Echo<'_> {
    fn step(&mut self) -> Result<bool, String> {
        let shared = self.shared;
        let mut busy = false;
        while self.port.next(|out, _, _, packet| {
            if shared.stop.hear(out, packet, || shared.words())? {
                return Ok(());
            }
            match packet {
                Packet::Udp { from, to, payload }
                    if to.ip == out.own.ip
                        && to.port == ECHO_PORT
                        && payload.len() + 42 <= out.transmit.longest() =>
                {
                    out.udp(from, ECHO_PORT, payload.len(), |answer| {
                        answer.copy_from_slice(payload);
                    })?;
                    shared.echoed.fetch_add(1, Ordering::Relaxed);
                    shared
                        .bytes
                        .fetch_add(payload.len() as u64, Ordering::Relaxed);
                }
                _ => {
                    shared.other.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        })? {
            busy = true;
        }
        if shared.echoed.load(Ordering::Relaxed) >= shared.requests {
            busy |= self.port.out.drain()?;
        }
        self.port.publish();
        Ok(busy)
    }

    fn finished(&self) -> bool {
        let shared = self.shared;
        shared.stop.is_over()
            || clock::now() >= shared.end
            || (shared.echoed.load(Ordering::Relaxed) >= shared.requests
                && self.port.out.transmit.is_drained())
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

/// `scenario=net-echo`
pub fn run(machine: &Machine<'_>) -> Outcome {
    let words = &machine.words;
    let mut run = Run::open(machine, u16::MAX, 0)?;
    run.wait_for_ever();
    let requests = match options::number(words, "requests", 0)? {
        0 => u64::MAX,
        requests => requests,
    };
    let shared = Shared {
        stop: Stop::default(),
        echoed: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        other: AtomicU64::new(0),
        requests,
        end: deadline(words, 86_400)?,
    };
    say!("ready scenario=net-echo");
    let begin = clock::now();
    let workers: Vec<_> = core::mem::take(&mut run.ports)
        .into_iter()
        .map(|port| {
            Spin::new(Echo {
                port,
                shared: &shared,
            })
        })
        .collect();
    crew::run(&workers, run.processors, run.patience)?;
    let elapsed = clock::nanoseconds(clock::now().wrapping_sub(begin));
    let ports: Vec<Port> = workers.into_iter().map(|w| w.into_inner().port).collect();
    let line = alloc::format!("{} ns={elapsed} {}", shared.words(), run.figures(&ports));
    verdict(bad(&ports), line)
}
