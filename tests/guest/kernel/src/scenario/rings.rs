//! `scenario=rings`: chains and requests that no driver should make, one case at a time on queue 0 of a
//! fresh device. The device may answer, or say that it needs a reset, or (where nothing was asked
//! properly) stay silent; after a reset it must serve a short verified run, every time.

use super::cases::{self, CASES, Expect};
use super::verify::Run;
use super::{Machine, Outcome, options};
use crate::blk::{STATUS_NONE, feature};
use crate::platform::phys::Span;
use crate::platform::{clock, dma};
use crate::say;
use crate::virtio::ring::{Buffer, Layout, Ring};
use crate::virtio::status;
use crate::virtio::transport::{Doorbell, NO_VECTOR, Transport};
use alloc::string::String;
use core::sync::atomic::{Ordering, fence};

/// Sectors at the disk's end that cases use and nobody verifies.
pub const RESERVE: u64 = 64;
/// Milliseconds in which an answer that is owed comes.
const ANSWER: u64 = 10_000;
const SHORT_RUN: u64 = 64;
/// What memory around the buffers holds.
const CANARY: u8 = 0xc3;
const PAGE: u64 = 4096;

/// How the device took a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// So many entries came back in the used ring, the last one with this status byte.
    Used {
        entries: u16,
        status: u8,
    },
    NeedsReset,
    Silent,
}

/// A device with one queue and a driver that keeps no books.
pub struct Bench {
    /// Its registers.
    pub device: Transport,
    /// What was agreed on.
    pub features: u64,
    /// Its size in sectors.
    pub capacity: u64,
    /// Queue 0.
    pub ring: Layout,
    doorbell: Option<Doorbell>,
    next: u16,
    memory: Span,
    /// Guest-physical addresses that are no RAM.
    pub hole: u64,
    /// Where RAM below the hole ends.
    pub edge: u64,
}

impl Bench {
    fn new(run: &Run, ram: &[crate::platform::boot::Region]) -> Result<Bench, String> {
        let device = run.disk.transport.clone();
        device.reset()?;
        let size = device.queue_size(0);
        let low = ram
            .iter()
            .map(|region| region.base + region.length)
            .filter(|end| *end <= 3 << 30)
            .max();
        let edge = low.ok_or("reason=no-memory-below-3-gib")?;
        Ok(Bench {
            device,
            features: 0,
            capacity: run.disk.configuration.capacity,
            ring: Layout::allocate(size),
            doorbell: None,
            next: 0,
            memory: dma::allocate(8 * PAGE, PAGE),
            hole: edge + (16 << 20),
            edge,
        })
    }

    /// A fresh device with `layout` as its queue.
    pub fn start(&mut self, layout: &Layout, wanted: u64) -> Result<(), String> {
        self.device.reset()?;
        for part in [self.ring.descriptors, self.ring.available, self.ring.used] {
            part.fill(0);
        }
        self.memory.fill(CANARY);
        self.header().fill(0);
        self.status().write(0, STATUS_NONE);
        self.next = 0;
        self.features = self.device.negotiate(wanted)?;
        self.doorbell = Some(self.device.start_queue(0, layout, NO_VECTOR)?);
        self.device.driver_ok();
        Ok(())
    }

    /// 16 bytes for a request's header, canaries around them.
    pub fn header(&self) -> Span {
        self.memory.part(PAGE, 16)
    }

    /// A page of data, canaries around it.
    pub fn data(&self) -> Span {
        self.memory.part(3 * PAGE, PAGE)
    }

    /// The status byte, canaries around it.
    pub fn status(&self) -> Span {
        self.memory.part(5 * PAGE, 1)
    }

    /// A page for an indirect table.
    pub fn table(&self) -> Span {
        self.memory.part(6 * PAGE, PAGE)
    }

    /// Fills in the header.
    pub fn ask(&self, kind: u32, sector: u64) {
        self.header().write(0, kind);
        self.header().write(8, sector);
    }

    /// Writes one descriptor of the ring.
    pub fn describe(&self, index: u16, buffer: Buffer, flags: u16, next: u16) {
        Ring::describe(&self.ring.descriptors, index, &buffer, flags, next);
    }

    /// Puts a head into the available ring.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next % self.ring.size);
        self.ring.available.write(4 + 2 * slot, head);
        self.next = self.next.wrapping_add(1);
    }

    /// Makes the available index what was offered plus `more`, and rings.
    pub fn ring_with(&mut self, more: u16) {
        fence(Ordering::Release);
        self.ring.available.write(2, self.next.wrapping_add(more));
        fence(Ordering::SeqCst);
        self.kick();
    }

    /// Rings.
    pub fn kick(&self) {
        self.doorbell.iter().for_each(Doorbell::ring);
    }

    /// The device's used index.
    pub fn used(&self) -> u16 {
        self.ring.used.read(2)
    }

    /// Waits until the used index is `wanted`, as it must come to be, or the device needs a reset;
    /// false if neither happens.
    pub fn answered(&self, wanted: u16) -> bool {
        self.wait(|used| used == wanted, ANSWER)
    }

    /// Waits until the device needs a reset; false if it does not come to that.
    pub fn broken(&self) -> bool {
        self.wait(|_| false, ANSWER)
    }

    /// The same for a used index that is `enough`, within so many milliseconds.
    fn wait(&self, enough: impl Fn(u16) -> bool, limit: u64) -> bool {
        let begin = clock::now();
        let mut looked = begin;
        loop {
            let now = clock::now();
            if enough(self.used()) {
                return true;
            }
            if now.wrapping_sub(looked) > clock::microseconds(5000) {
                looked = now;
                if self.device.status() & status::NEEDS_RESET != 0 {
                    return true;
                }
            }
            if now.wrapping_sub(begin) > limit * clock::kilohertz() {
                return false;
            }
            core::hint::spin_loop();
        }
    }

    fn answer(&self, expect: Expect, limit: u64) -> Answer {
        // One that is owed is waited for, however slow the machine is.
        if !matches!(expect, Expect::Any) {
            self.wait(|used| used != 0, ANSWER);
        }
        // As many as the case offered would be the best answer; any is one.
        self.wait(|used| used == self.next, limit);
        let entries = self.used();
        if self.device.status() & status::NEEDS_RESET != 0 {
            Answer::NeedsReset
        } else if entries == 0 {
            Answer::Silent
        } else {
            Answer::Used {
                entries,
                status: self.status().read(0),
            }
        }
    }

    // Nothing but the data page, the status byte and the header (which some cases make writable) may have
    // changed.
    fn canaries(&self) -> Result<(), String> {
        let may_change = [
            (PAGE, 16),
            (3 * PAGE, PAGE),
            (5 * PAGE, 16),
            (6 * PAGE, PAGE),
        ];
        let guarded = (0..8 * PAGE).filter(|at| {
            !may_change
                .iter()
                .any(|(start, length)| (*start..start + length).contains(at))
        });
        for at in guarded {
            let found: u8 = self.memory.read(at);
            if found != CANARY {
                return Err(alloc::format!(
                    "reason=canary offset={at:#x} found={found:#x}"
                ));
            }
        }
        Ok(())
    }
}

fn judge(expect: Expect, answer: Answer, offered: u16) -> Result<(), &'static str> {
    match (expect, answer) {
        (_, Answer::Used { entries, .. }) if entries > offered => Err("too-many-used"),
        (Expect::Ok, Answer::Used { status: 0, .. }) => Ok(()),
        (Expect::Ok, _) => Err("refused"),
        (Expect::Error, Answer::Used { status: 0, .. }) => Err("accepted"),
        (Expect::Error, Answer::Silent) => Err("silent"),
        (Expect::Error | Expect::Any, _) => Ok(()),
    }
}

/// `scenario=rings`
pub fn run(machine: &Machine<'_>) -> Outcome {
    let words = &machine.words;
    let devices = machine.devices()?;
    let transport = options::block_device(words, &devices)?;
    let processors = machine.start_processors()?;
    let limit = options::within(words, "wait_ms", 300, 1, 60_000)?;
    let only = words.text("case", "all");
    let mut run = Run::new(words, &transport, processors, RESERVE)?;
    let mut bench = Bench::new(&run, machine.ram)?;
    let features = run.disk.features;
    let (mut cases, mut silent, mut resets, mut failed) = (0, 0, 0, String::new());
    for case in CASES {
        if only != "all" && only != case.name || features & case.needs != case.needs {
            continue;
        }
        let wanted = (feature::KNOWN | case.needs) & features;
        bench
            .start(&bench.ring.clone(), wanted)
            .map_err(|reason| alloc::format!("case={} {reason}", case.name))?;
        (case.make)(&mut bench).map_err(|reason| alloc::format!("case={} {reason}", case.name))?;
        let answer = bench.answer(case.expect, limit);
        bench
            .canaries()
            .map_err(|reason| alloc::format!("case={} {reason}", case.name))?;
        cases += 1;
        silent += u32::from(answer == Answer::Silent);
        resets += u32::from(answer == Answer::NeedsReset);
        say!("case {} {answer:?}", case.name);
        if let Err(why) = judge(case.expect, answer, bench.next.max(1)) {
            failed.push_str(&alloc::format!(
                "{}{}:{why}",
                if failed.is_empty() { "" } else { "," },
                case.name
            ));
        }
        serve(&mut run).map_err(|reason| alloc::format!("after={} {reason}", case.name))?;
    }
    cases::nothing_leaks(&mut bench)?;
    run.start()?;
    run.round(1000, true)?;
    let counts = alloc::format!("cases={cases} silent={silent} needs_reset={resets}");
    if failed.is_empty() {
        return Ok(alloc::format!("{counts} {}", run.summary()));
    }
    Err(alloc::format!(
        "reason=answers {counts} cases_failed={failed}"
    ))
}

fn serve(run: &mut Run) -> Result<(), String> {
    run.start()?;
    run.round(SHORT_RUN, false)
}
