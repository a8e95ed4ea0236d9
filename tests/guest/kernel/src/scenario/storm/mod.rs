//! `scenario=storm`: random reads, writes and flushes on blocks that all queues share, for a device whose
//! back-end dies under them. Every block that comes back is judged by a ledger, every completion by
//! whether it was owed; failures are counted, not fatal. What each block must hold in the end is written
//! behind the data, for the host.
//!
//! ```text
//! Work --interrupted (reset_ms=)--> reset, abandon --> Work
//!   \--over--> Rewrite what is not known -> Flush -> ReadBack -> Record the table -> Flush -> result
//! ```

mod counts;
mod worker;

use super::crew::{self, Patience};
use super::verify::{indirect, patience};
use super::{Machine, Outcome, options};
use crate::blk::{Blk, SECTOR, feature};
use crate::cpu::apic;
use crate::platform::clock;
use crate::platform::sync::Spin;
use crate::say;
use crate::virtio::ring::Indirect;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use counts::Counts;
use guest_logic::gaps::Gaps;
use guest_logic::histogram::Histogram;
use guest_logic::ledger::{Ledger, MOST};
use guest_logic::record::Layout;
use guest_logic::words::Words;
use worker::Worker;

/// Seconds without any completion that it waits for: an outage may be long.
const TIMEOUT: u64 = 120;

/// What workers do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Work,
    Rewrite,
    Flush,
    ReadBack,
    Record,
    Rest,
}

/// What a worker does, as the command line says.
#[derive(Clone, Copy, Debug)]
struct Plan {
    seed: u64,
    /// Workers.
    queues: usize,
    /// The most blocks in a request.
    most: usize,
    /// Flushes among 1,000 requests.
    flush: u64,
    /// Writes among 100 others.
    write: u64,
    /// Whether it looks for the stop mark, and ticks from one look to the next.
    stop: bool,
    look: u64,
    /// Ticks from one progress line to the next; 0: none.
    report: u64,
}

/// What workers share.
struct Shared {
    layout: Layout,
    ledger: Spin<Ledger>,
    gaps: Spin<(Gaps, Box<Histogram>)>,
    issued: AtomicU64,
    stop: AtomicBool,
    requests: u64,
    /// When the workload began, by the time stamp counter, and when it ends.
    began: u64,
    end: u64,
    /// When the device is reset.
    interrupt: AtomicU64,
}

impl Shared {
    fn is_over(&self, now: u64) -> bool {
        now >= self.end || self.stop.load(Ordering::Acquire)
    }

    fn may_issue(&self) -> bool {
        self.issued.load(Ordering::Relaxed) < self.requests
    }

    fn is_interrupted(&self, now: u64) -> bool {
        now >= self.interrupt.load(Ordering::Relaxed)
    }

    /// Something was completed.
    fn note(&self, now: u64) {
        let mut gaps = self.gaps.lock();
        if let Some(gap) = gaps.0.note(now) {
            gaps.1.record(gap.length);
        }
    }
}

/// The device, and how it is driven.
struct Run<'a> {
    disk: Blk,
    workers: Vec<Spin<Worker<'a>>>,
    processors: usize,
    patience: Patience,
    indirect: Indirect,
    resets: u64,
    slowest_reset: u64,
}

impl Run<'_> {
    fn start(&mut self) -> Result<(), String> {
        let queues = self.workers.iter_mut().map(|w| &mut w.get_mut().queue);
        self.disk.start(queues, self.indirect)
    }

    fn reach(&mut self, goal: Goal) -> Result<(), String> {
        for worker in &mut self.workers {
            worker.get_mut().begin(goal);
        }
        crew::run(&self.workers, self.processors, self.patience)
    }

    /// The workload, with a reset after every `reset` ticks (0: none).
    fn work(&mut self, shared: &Shared, reset: u64) -> Result<(), String> {
        loop {
            let next = match reset {
                0 => u64::MAX,
                ticks => clock::now().saturating_add(ticks),
            };
            shared.interrupt.store(next, Ordering::Relaxed);
            self.reach(Goal::Work)?;
            if shared.is_over(clock::now()) || !shared.may_issue() {
                return self.drain();
            }
            shared.gaps.lock().0.rest();
            let begin = clock::now();
            self.start()?;
            for worker in &mut self.workers {
                worker.get_mut().abandon();
            }
            self.resets += 1;
            self.slowest_reset = self.slowest_reset.max(clock::now().wrapping_sub(begin));
        }
    }

    // An interruption may have come at the very end.
    fn drain(&mut self) -> Result<(), String> {
        self.reach(Goal::Rest)
    }

    fn total(&mut self) -> (Counts, Box<Histogram>) {
        let (mut counts, mut latency) = (Counts::default(), Box::new(Histogram::new()));
        for worker in &mut self.workers {
            counts.add(&worker.get_mut().counts);
            latency.add(&worker.get_mut().latency);
        }
        (counts, latency)
    }
}

fn plan(words: &Words<'_>, queues: u64, block: u64) -> Result<Plan, String> {
    let size = options::within(
        words,
        "size",
        8 * block * SECTOR,
        block * SECTOR,
        MOST as u64 * block * SECTOR,
    )?;
    let ticks = |millis: u64| clock::microseconds(millis * 1000);
    Ok(Plan {
        seed: options::number(words, "seed", 1)?,
        queues: queues as usize,
        most: (size / (block * SECTOR)) as usize,
        flush: options::within(words, "flush", 10, 0, 1000)?,
        write: options::within(words, "write", 50, 0, 100)?,
        stop: options::flag(words, "stop", false)?,
        look: ticks(50),
        report: ticks(options::within(words, "report", 1000, 0, 1 << 20)?),
    })
}

fn shared(words: &Words<'_>, layout: Layout) -> Result<Shared, String> {
    let overlap = options::flag(words, "overlap", false)?;
    let keep = options::within(words, "gaps", 16, 0, 65_536)? as usize;
    let requests = match options::number(words, "requests", 0)? {
        0 => u64::MAX,
        requests => requests,
    };
    Ok(Shared {
        ledger: Spin::new(Ledger::new(layout.blocks as usize, overlap)),
        layout,
        gaps: Spin::new((Gaps::new(keep), Box::new(Histogram::new()))),
        issued: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        requests,
        began: 0,
        end: u64::MAX,
        interrupt: AtomicU64::new(u64::MAX),
    })
}

// Until when, if nothing else ends it: `seconds=`, for which there is no default beside `requests=` or `stop=`.
fn limit(words: &Words<'_>, plan: &Plan, shared: &Shared) -> Result<u64, String> {
    let endless = plan.stop || shared.requests != u64::MAX;
    let seconds = options::within(
        words,
        "seconds",
        if endless { 86_400 } else { 3 },
        1,
        86_400,
    )?;
    Ok(clock::microseconds(seconds * 1_000_000))
}

fn layout(words: &Words<'_>, disk: &Blk) -> Result<Layout, String> {
    let least = u64::from(disk.configuration.block_size.max(512));
    let block = options::within(words, "block", 4096.max(least), least, 65_536)?;
    if block % least != 0 {
        return Err(alloc::format!(
            "reason=bad-value key=block value={block} least={least}"
        ));
    }
    let capacity = disk.configuration.capacity;
    let span = options::number(words, "span", capacity)?.min(capacity);
    let layout = Layout::new(span, block / SECTOR).filter(|layout| layout.blocks >= MOST as u64);
    layout.ok_or_else(|| alloc::format!("reason=disk-too-small sectors={span}"))
}

// What `wce=` says of the cache: `on` or `off`; sets it.
fn set_cache(words: &Words<'_>, disk: &Blk) -> Result<Option<bool>, String> {
    let on = match words.get("wce") {
        None => return Ok(None),
        Some("on") => true,
        Some("off") => false,
        Some(other) => {
            return Err(alloc::format!("reason=bad-value key=wce value={other}"));
        }
    };
    let before = disk.writeback()?;
    let after = disk.set_writeback(on)?;
    say!("cache before={before} set={on} after={after}");
    match after == on {
        true => Ok(Some(on)),
        false => Err("reason=cache-byte".into()),
    }
}

/// `scenario=storm`
pub fn run(machine: &Machine<'_>) -> Outcome {
    let words = &machine.words;
    let devices = machine.devices()?;
    let transport = options::block_device(words, &devices)?;
    let processors = machine.start_processors()?;
    let mask = options::number(words, "features_mask", u64::MAX)?;
    let mut disk = Blk::open(&transport, mask)?;
    if disk.features & feature::RO != 0 {
        return Err("reason=read-only-disk".into());
    }
    let most = u64::from(disk.configuration.queues.min(transport.queues()));
    let count = options::within(words, "queues", most.min(2), 1, most)?;
    let depth = options::within(words, "depth", 32, 1, 1024)? as u16;
    let layout = layout(words, &disk)?;
    let mut plan = plan(words, count, layout.block)?;
    if disk.features & feature::FLUSH == 0 {
        plan.flush = 0;
    }
    let mut shared = shared(words, layout)?;
    let processors = processors.min(count as usize);
    let mut queues = disk.queues(
        count as u16,
        depth,
        plan.most as u64 * layout.block * SECTOR,
    )?;
    let can_interrupt = disk.interrupt_each(count as u16, processors);
    let mut patience = patience(words, can_interrupt, 20)?;
    if words.get("timeout").is_none() {
        patience.limit = clock::microseconds(TIMEOUT * 1_000_000);
    }
    let reset = clock::microseconds(options::within(words, "reset_ms", 0, 0, 1 << 20)? * 1000);
    let indirect = indirect(words, "mixed")?;
    disk.start(queues.iter_mut(), indirect)?;
    let cache = set_cache(words, &disk)?;
    say!(
        "begun scenario=storm blocks={} block={}",
        layout.blocks,
        layout.block * SECTOR
    );
    shared.began = clock::now();
    shared.end = shared.began.saturating_add(limit(words, &plan, &shared)?);
    let shared = shared;
    let workers = queues.into_iter();
    let workers = workers.map(|queue| Spin::new(Worker::new(queue, depth, plan, &shared)));
    let mut run = Run {
        workers: workers.collect(),
        disk,
        processors,
        patience,
        indirect,
        resets: 0,
        slowest_reset: 0,
    };
    run.work(&shared, reset)?;
    let elapsed = clock::now().wrapping_sub(shared.began);
    say!("over scenario=storm");
    let has_flush = run.disk.features & feature::FLUSH != 0;
    for goal in [
        Goal::Rewrite,
        Goal::Flush,
        Goal::ReadBack,
        Goal::Record,
        Goal::Flush,
    ] {
        if goal != Goal::Flush || has_flush {
            run.reach(goal)?;
        }
    }
    if let Some(on) = cache
        && run.disk.writeback()? != on
    {
        return Err(alloc::format!("reason=cache-byte-changed set={on}"));
    }
    result(&mut run, &shared, &plan, elapsed)
}

fn result(run: &mut Run<'_>, shared: &Shared, plan: &Plan, elapsed: u64) -> Outcome {
    let (counts, latency) = run.total();
    let (gaps, times) = &mut *shared.gaps.lock();
    for gap in gaps.longest() {
        let since = clock::nanoseconds(gap.since.saturating_sub(shared.began));
        let length = clock::nanoseconds(gap.length);
        say!("gap at_ns={since} ns={length}");
    }
    let part = |histogram: &Histogram, part| clock::nanoseconds(histogram.per_mille(part));
    let line = alloc::format!(
        "{} gap_max_ns={} gap_p999_ns={} gap_p99_ns={} gap_p50_ns={} max_ns={} p999_ns={} p99_ns={} p50_ns={} \
         ns={} blocks={} block={} seed={} queues={} resets={} reset_max_ns={} interrupts={}",
        counts.words(),
        clock::nanoseconds(times.highest()),
        part(times, 999),
        part(times, 990),
        part(times, 500),
        clock::nanoseconds(latency.highest()),
        part(&latency, 999),
        part(&latency, 990),
        part(&latency, 500),
        clock::nanoseconds(elapsed),
        shared.layout.blocks,
        shared.layout.block * SECTOR,
        plan.seed,
        plan.queues,
        run.resets,
        clock::nanoseconds(run.slowest_reset),
        apic::taken_by_devices()
    );
    match counts.failed() {
        0 => Ok(line),
        _ => Err(alloc::format!("reason=wrong {line}")),
    }
}
