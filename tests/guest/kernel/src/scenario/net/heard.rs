//! `scenario=net-heard`: says which of the peer's numbered frames come, and how much of each that is to be
//! cut, until the last number there is.

use super::super::crew::{self, Worker};
use super::super::{Machine, Outcome};
use super::{Run, bad, verdict};
use crate::net::Port;
use crate::platform::sync::Spin;
use crate::say;
use crate::virtio::ring::Ring;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use guest_logic::datagram::{LAST_NUMBER, NUMBERED_ETHERTYPE};
use guest_logic::packet::{self, ETHERNET, Offload};
use guest_logic::segment::Segment;

#[derive(Default)]
struct Shared {
    heard: AtomicU64,
    over: AtomicBool,
}

impl Shared {
    fn look(&self, offload: &Offload, frame: &[u8]) {
        if packet::ethertype(frame) == NUMBERED_ETHERTYPE
            && let Some(number) = frame[ETHERNET..].first_chunk()
        {
            let number = u32::from_le_bytes(*number);
            if number == LAST_NUMBER {
                return self.over.store(true, Ordering::Release);
            }
            say!("heard number={number}");
        } else if let Ok(Some((segment, data))) = Segment::parse(frame, offload) {
            say!("heard segment={} bytes={}", segment.number, data.len());
        } else {
            return;
        }
        self.heard.fetch_add(1, Ordering::Relaxed);
    }
}

struct Ear<'a> {
    port: Port,
    shared: &'a Shared,
}

impl Worker for Ear<'_> {
    fn step(&mut self) -> Result<bool, String> {
        let shared = self.shared;
        let mut busy = false;
        while self.port.next(|_, offload, frame, _| {
            shared.look(offload, frame);
            Ok(())
        })? {
            busy = true;
        }
        self.port.publish();
        Ok(busy)
    }

    fn finished(&self) -> bool {
        self.shared.over.load(Ordering::Acquire)
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

/// `scenario=net-heard`
pub fn run(machine: &Machine<'_>) -> Outcome {
    let mut run = Run::open(machine, u16::MAX, 0)?;
    run.wait_for_ever();
    let shared = Shared::default();
    say!("ready scenario=net-heard");
    let ports = core::mem::take(&mut run.ports).into_iter();
    let ear = |port| {
        let shared = &shared;
        Spin::new(Ear { port, shared })
    };
    let workers: Vec<_> = ports.map(ear).collect();
    crew::run(&workers, run.processors, run.patience)?;
    let ports: Vec<Port> = workers.into_iter().map(|w| w.into_inner().port).collect();
    let heard = shared.heard.load(Ordering::Relaxed);
    let line = alloc::format!("heard={heard} {}", run.figures(&ports));
    verdict(bad(&ports), line)
}
