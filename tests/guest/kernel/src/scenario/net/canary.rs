//! `scenario=net-canary`: verifies a disk while a network card takes whatever comes, and resets both
//! `reinit=` times meanwhile, in the midst of frames; for `canary=`, without which it proves little.
//! A round is over when the disk's requests are done and its share of `frames=` is here.

use super::super::crew::{self, Worker};
use super::super::verifier::Verifier;
use super::super::verify;
use super::super::{Machine, Outcome, options};
use super::sink::Shared;
use super::{Run, bad, verdict};
use crate::cpu::smp;
use crate::net::device::Pair;
use crate::net::{LONGEST, Port};
use crate::platform::sync::Spin;
use crate::say;
use crate::virtio::ring::Ring;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

enum Queue<'a> {
    Disk(&'a mut Verifier),
    Net(&'a mut Port),
}

// What is left to do in a round.
struct Left {
    disks: AtomicUsize,
    frames: AtomicI64,
}

// Work on a queue of either device, until nothing is left to do for any.
struct Work<'a> {
    queue: Queue<'a>,
    shared: &'a Shared,
    left: &'a Left,
}

impl Worker for Work<'_> {
    fn step(&mut self) -> Result<bool, String> {
        match &mut self.queue {
            Queue::Disk(disk) if disk.finished() => Ok(false),
            Queue::Disk(disk) => {
                let busy = disk.step()?;
                if disk.finished() {
                    self.left.disks.fetch_sub(1, Ordering::AcqRel);
                }
                Ok(busy)
            }
            Queue::Net(port) => {
                let before = port.out.counts.frames;
                let busy = self.shared.take(port)?;
                let taken = (port.out.counts.frames - before) as i64;
                self.left.frames.fetch_sub(taken, Ordering::AcqRel);
                Ok(busy)
            }
        }
    }

    fn finished(&self) -> bool {
        self.left.disks.load(Ordering::Acquire) == 0
            && self.left.frames.load(Ordering::Acquire) <= 0
    }

    fn ring(&mut self) -> &mut Ring {
        match &mut self.queue {
            Queue::Disk(disk) => disk.ring(),
            Queue::Net(port) => &mut port.receive.ring,
        }
    }

    fn arm(&mut self) -> bool {
        match &mut self.queue {
            Queue::Disk(disk) => disk.arm(),
            Queue::Net(port) => port.arm(),
        }
    }

    fn disarm(&mut self) {
        match &mut self.queue {
            Queue::Disk(disk) => disk.disarm(),
            Queue::Net(port) => port.disarm(),
        }
    }

    fn state(&mut self) -> String {
        match &mut self.queue {
            Queue::Disk(disk) => disk.state(),
            Queue::Net(port) => port.state(),
        }
    }
}

// Resets the card and starts it again with the same queues.
fn restart(run: &mut Run) -> Result<(), String> {
    let (mut pairs, mut outs) = (Vec::new(), Vec::new());
    for port in core::mem::take(&mut run.ports) {
        outs.push((port.out.own, port.out.counts));
        pairs.push(Pair {
            receive: port.receive,
            transmit: port.out.transmit,
        });
    }
    run.net.start(pairs.iter_mut(), run.indirect)?;
    for (pair, (own, counts)) in pairs.into_iter().zip(outs) {
        let mut port = Port::new(&run.net, pair, own);
        port.out.counts = counts;
        run.ports.push(port);
    }
    Ok(())
}

fn round(
    run: &mut Run,
    disk: &mut verify::Run,
    shared: &Shared,
    frames: u64,
) -> Result<(), String> {
    let left = Left {
        disks: AtomicUsize::new(disk.workers.len()),
        frames: AtomicI64::new(frames as i64),
    };
    let disks = disk.workers.iter_mut().map(Spin::get_mut).map(Queue::Disk);
    let queues = disks.chain(run.ports.iter_mut().map(Queue::Net));
    let work: Vec<_> = queues
        .map(|queue| {
            Spin::new(Work {
                queue,
                shared,
                left: &left,
            })
        })
        .collect();
    // With as many queues on either device, each worker is where its interrupts go.
    crew::run(&work, run.processors, run.patience)
}

/// `scenario=net-canary`
pub fn run(machine: &Machine<'_>) -> Outcome {
    let words = &machine.words;
    let requests = options::within(words, "requests", 10_000, 1, u64::from(u32::MAX / 2))?;
    let rounds = options::within(words, "reinit", 0, 0, 10_000)? + 1;
    let frames = options::within(words, "frames", 0, 0, u64::from(u32::MAX))?;
    let mut run = Run::open(machine, u16::MAX, LONGEST as u64)?;
    let devices = machine.devices()?;
    let transport = options::block_device(words, &devices)?;
    let mut disk = verify::Run::new(words, &transport, smp::running(), 0)?;
    if let Some(pauses) = disk.pauses() {
        pauses.functions.push(run.net.transport.function.clone());
    }
    let shared = Shared::new(u64::MAX);
    say!("ready scenario=net-canary");
    for number in 1..=rounds {
        disk.start()?;
        if number > 1 {
            restart(&mut run)?;
        }
        if let Some(pauses) = disk.pauses() {
            let ports = run.ports.iter();
            let doorbells =
                ports.flat_map(|port| [port.receive.doorbell, port.out.transmit.doorbell]);
            pauses.doorbells.extend(doorbells.flatten());
        }
        disk.begin_round(requests / rounds, number == rounds);
        round(&mut run, &mut disk, &shared, frames / rounds)?;
    }
    for port in &run.ports {
        port.receive.check_aside()?;
    }
    let ports = core::mem::take(&mut run.ports);
    let wrong = shared.wrong.load(Ordering::Relaxed);
    let line = alloc::format!(
        "rounds={rounds} disk_{} {} {}",
        disk.summary(),
        shared.words(),
        run.figures(&ports)
    );
    verdict(wrong + bad(&ports), line)
}
