//! `scenario=measure`: requests at a fixed depth for a number of seconds, and one line of figures.

use super::crew::{self, Worker};
use super::verify::{indirect, patience};
use super::{Machine, Outcome, options};
use crate::blk::{Blk, Queue, Request, SECTOR, STATUS_OK, feature, kind};
use crate::cpu::apic;
use crate::platform::clock;
use crate::platform::sync::Spin;
use crate::virtio::ring::Ring;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use guest_logic::histogram::Histogram;
use guest_logic::random::Random;
use guest_logic::words::Words;

/// What every worker does.
#[derive(Clone, Copy)]
struct Plan {
    kind: u32,
    random: bool,
    size: u64,
    /// Requests for each worker; `u64::MAX` for no limit.
    requests: u64,
    /// When to stop, by the time stamp counter; not before the first request.
    end: u64,
}

struct Meter {
    queue: Queue,
    plan: Plan,
    part: Range<u64>,
    next: u64,
    random: Random,
    began: Vec<u64>,
    issued: u64,
    requests: u64,
    latency: Box<Histogram>,
}

impl Meter {
    fn new(queue: Queue, depth: u16, part: Range<u64>, plan: Plan) -> Meter {
        for slot in 0..usize::from(depth) {
            queue.data(slot).fill(0xa5);
        }
        Meter {
            random: Random::new(u64::from(queue.index)),
            next: part.start,
            part,
            plan,
            began: alloc::vec![0; usize::from(depth)],
            issued: 0,
            requests: 0,
            latency: Box::new(Histogram::new()),
            queue,
        }
    }

    fn place(&mut self) -> u64 {
        let sectors = self.plan.size / SECTOR;
        if self.plan.random {
            let places = (self.part.end - self.part.start) / sectors;
            return self.part.start + self.random.below(places) * sectors;
        }
        if self.next + sectors > self.part.end {
            self.next = self.part.start;
        }
        self.next += sectors;
        self.next - sectors
    }

    fn wants_more(&self, now: u64) -> bool {
        self.issued < self.plan.requests && (now < self.plan.end || self.issued == 0)
    }
}

impl Worker for Meter {
    fn step(&mut self) -> Result<bool, String> {
        let mut busy = false;
        let mut now = clock::now();
        while let Some(finished) = self.queue.take()? {
            if finished.status != STATUS_OK {
                return Err(alloc::format!("reason=status status={}", finished.status));
            }
            self.latency
                .record(now.wrapping_sub(self.began[finished.slot]));
            self.requests += 1;
            busy = true;
        }
        now = if busy { clock::now() } else { now };
        while self.wants_more(now) {
            let Some(slot) = self.queue.free_slot() else {
                break;
            };
            let sector = self.place();
            if !self.queue.submit(
                &Request {
                    kind: self.plan.kind,
                    sector,
                    length: self.plan.size,
                },
                &[],
            ) {
                break;
            }
            self.began[slot] = now;
            self.issued += 1;
            busy = true;
        }
        self.queue.publish();
        Ok(busy)
    }

    fn finished(&self) -> bool {
        self.queue.busy() == 0 && !self.wants_more(clock::now())
    }

    fn ring(&mut self) -> &mut Ring {
        &mut self.queue.ring
    }
}

fn plan(words: &Words<'_>, disk: &Blk, queues: u64) -> Result<Plan, String> {
    let (kind, random) = match words.text("rw", "randread") {
        "randread" => (kind::READ, true),
        "randwrite" => (kind::WRITE, true),
        "read" => (kind::READ, false),
        "write" => (kind::WRITE, false),
        other => return Err(alloc::format!("reason=bad-value key=rw value={other}")),
    };
    if kind == kind::WRITE && disk.features & feature::RO != 0 {
        return Err("reason=read-only-disk".into());
    }
    let block = u64::from(disk.configuration.block_size.max(512));
    let size = options::within(words, "size", 4096, block, 1 << 20)?;
    if !size.is_multiple_of(block) {
        return Err(alloc::format!(
            "reason=bad-value key=size value={size} block={block}"
        ));
    }
    let requests = match options::number(words, "requests", 0)? {
        0 => u64::MAX,
        requests => requests.div_ceil(queues),
    };
    Ok(Plan {
        kind,
        random,
        size,
        requests,
        end: 0,
    })
}

/// `scenario=measure`
pub fn run(machine: &Machine<'_>) -> Outcome {
    let words = &machine.words;
    let devices = machine.devices()?;
    let transport = options::block_device(words, &devices)?;
    let processors = machine.start_processors()?;
    let mut disk = Blk::open(
        &transport,
        options::number(words, "features_mask", u64::MAX)?,
    )?;
    let most = u64::from(disk.configuration.queues.min(transport.queues()));
    let count = options::within(words, "queues", most.min(processors as u64), 1, most)?;
    let processors = processors.min(count as usize);
    let depth = options::within(words, "depth", 32, 1, 1024)? as u16;
    let mut plan = plan(words, &disk, count)?;
    let mut queues = disk.queues(count as u16, depth, plan.size)?;
    let eager = words.text("kick", "wanted") == "always";
    queues.iter_mut().for_each(|queue| queue.ring.eager = eager);
    let polled = words.text("mode", "irq") == "poll";
    // In poll mode queues get no vector at all.
    let can_interrupt = !polled && disk.interrupt_each(count as u16, processors);
    let patience = patience(words, can_interrupt, 0)?;
    let limit = match options::number(words, "millis", 0)? {
        0 => 1000 * options::within(words, "seconds", 3, 1, 3600)?,
        millis => millis,
    };
    let span = options::number(words, "span", u64::MAX)?.min(disk.configuration.capacity) / count;
    if span < plan.size / SECTOR {
        return Err(alloc::format!(
            "reason=disk-too-small sectors={span} queues={count}"
        ));
    }
    let before = apic::taken_by_devices();
    let meter = |queue: Queue| {
        let first = span * u64::from(queue.index);
        Spin::new(Meter::new(queue, depth, first..first + span, plan))
    };
    let mut meters: Vec<_> = queues.into_iter().map(meter).collect();
    disk.start(
        meters.iter_mut().map(|meter| &mut meter.get_mut().queue),
        indirect(words, "always")?,
    )?;
    // How long the start of the device took is no part of it.
    let begin = clock::now();
    plan.end = begin.saturating_add(clock::microseconds(limit.saturating_mul(1000)));
    for meter in &mut meters {
        meter.get_mut().plan = plan;
    }
    crew::run(&meters, processors, patience)?;
    let elapsed = clock::nanoseconds(clock::now().wrapping_sub(begin)).max(1);
    Ok(alloc::format!(
        "rw={} mode={} queues={count} processors={processors} depth={depth} {}",
        words.text("rw", "randread"),
        if patience.poll { "poll" } else { "irq" },
        figures(
            &mut meters,
            &plan,
            elapsed,
            apic::taken_by_devices() - before
        )
    ))
}

fn figures(meters: &mut [Spin<Meter>], plan: &Plan, elapsed: u64, interrupts: u64) -> String {
    let mut latency = Box::new(Histogram::new());
    let (mut requests, mut kicks, mut suppressed) = (0, 0, 0);
    for meter in meters {
        let meter = meter.get_mut();
        requests += meter.requests;
        latency.add(&meter.latency);
        kicks += meter.queue.ring.kicks;
        suppressed += meter.queue.ring.kicks_suppressed;
    }
    let iops = (u128::from(requests) * 1_000_000_000 / u128::from(elapsed)) as u64;
    let [p50, p99, p999] = [500, 990, 999].map(|part| clock::nanoseconds(latency.per_mille(part)));
    alloc::format!(
        "size={} requests={requests} bytes={} ns={elapsed} iops={iops} p50_ns={p50} p99_ns={p99} p999_ns={p999} \
         max_ns={} kicks={kicks} suppressed={suppressed} interrupts={interrupts}",
        plan.size,
        requests * plan.size,
        clock::nanoseconds(latency.highest())
    )
}
