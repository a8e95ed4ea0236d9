//! `scenario=registers`: whatever a driver should not do to a device's registers. After each step the
//! device is reset and must serve a short verified run; at the end a longer one.

use super::bars::move_bars;
use super::verify::Run;
use super::{Machine, Outcome, chaos, crew, options};
use crate::platform::phys::{Span, Word};
use crate::platform::{clock, port};
use crate::say;
use crate::virtio::ring::Layout;
use crate::virtio::transport::{NO_VECTOR, Notify, Transport, common};
use crate::virtio::{feature, status};
use alloc::string::String;
use guest_logic::random::Random;

const SHORT_RUN: u64 = 64;
const LONG_RUN: u64 = 1000;
/// Milliseconds in which a device says that it needs a reset, and for one that need not.
const LIMIT: u64 = 20_000;
const LENIENT_LIMIT: u64 = 200;
/// Sectors that nobody verifies.
const RESERVE: u64 = 64;

/// What a step works with.
struct Bench {
    run: Run,
    random: Random,
    /// Whether answers that the specification asks for are insisted on. QEMU does not give all of them.
    strict: bool,
}

type Step = fn(&mut Bench) -> Result<(), String>;

const STEPS: [(&str, Step); 13] = [
    ("queue-select", queue_select),
    ("widths-before-start", widths),
    ("widths-while-running", widths_while_running),
    ("status-orders", status_orders),
    ("features", features),
    ("overlapping-rings", overlapping_rings),
    ("vectors", vectors),
    ("msix-table", msix_table),
    ("notify-widths", notify_widths),
    ("bars", bars),
    ("bars-while-running", bars_while_running),
    ("reset-in-flight", reset_in_flight),
    ("interrupts", interrupts),
];

/// `scenario=registers`
pub fn run(machine: &Machine<'_>) -> Outcome {
    let words = &machine.words;
    let devices = machine.devices()?;
    let transport = options::block_device(words, &devices)?;
    let processors = machine.start_processors()?;
    let only = words.text("step", "all");
    let mut bench = Bench {
        run: Run::new(words, &transport, processors, RESERVE)?,
        random: Random::new(options::number(words, "seed", 1)?),
        strict: options::flag(words, "strict", true)?,
    };
    let mut done = 0;
    for (name, step) in STEPS {
        if only != "all" && only != name {
            continue;
        }
        step(&mut bench).map_err(|reason| alloc::format!("step={name} {reason}"))?;
        serve(&mut bench.run, SHORT_RUN, false)
            .map_err(|reason| alloc::format!("after={name} {reason}"))?;
        say!("step {name}");
        done += 1;
    }
    serve(&mut bench.run, LONG_RUN, true).map_err(|reason| alloc::format!("after=all {reason}"))?;
    Ok(alloc::format!("steps={done} {}", bench.run.summary()))
}

fn serve(run: &mut Run, requests: u64, last: bool) -> Result<(), String> {
    run.start()?;
    run.round(requests, last)
}

/// A device with its queues on, nothing in flight.
fn running(bench: &mut Bench) -> Result<Transport, String> {
    bench.run.start()?;
    Ok(bench.run.disk.transport.clone())
}

// -------------------------------------------------------------------- common configuration

// All registers of queues that do not exist (4.1.4.3.1: their size reads 0).
fn queue_select(bench: &mut Bench) -> Result<(), String> {
    let device = running(bench)?;
    let queues = device.queues();
    for select in [0xffff, 0x8000, 0x100, queues, queues.wrapping_add(1)] {
        let size = device.queue_size(select);
        if size != 0 && bench.strict {
            return Err(alloc::format!(
                "reason=absent-queue-has-size queue={select} size={size}"
            ));
        }
        for at in (common::QUEUE_SIZE..common::LENGTH).step_by(2) {
            let value: u16 = device.common.read(at);
            device.common.write(at, value);
            device.common.write(at, 0xffffu16);
            device.common.write(at, 1u16);
        }
    }
    device.common.write(common::QUEUE_SELECT, 0u16);
    if device.common.read::<u16>(common::QUEUE_ENABLE) != 1 && bench.strict {
        return Err("reason=queue-0-lost".into());
    }
    Ok(())
}

fn hammer<T: Word>(registers: &Span, value: T) {
    for at in 0..(registers.length() + 1).saturating_sub(size_of::<T>() as u64) {
        let before: T = registers.read(at);
        registers.write(at, before);
        registers.write(at, value);
        let _: T = registers.read(at);
    }
}

fn hammer_all(registers: &Span, value: u64) {
    hammer(registers, value as u8);
    hammer(registers, value as u16);
    hammer(registers, value as u32);
    hammer(registers, value);
}

fn head(span: &Span, length: u64) -> Span {
    span.part(0, length.min(span.length()))
}

// Each register with each width at each address.
fn widths(bench: &mut Bench) -> Result<(), String> {
    let device = bench.run.disk.transport.clone();
    device.reset()?;
    hammer_all(&head(&device.common, common::LENGTH), bench.random.number());
    if let Some(registers) = &device.device {
        hammer_all(&head(registers, 64), bench.random.number());
    }
    if let Some(registers) = &device.isr {
        hammer_all(&head(registers, 4), bench.random.number());
    }
    Ok(())
}

fn widths_while_running(bench: &mut Bench) -> Result<(), String> {
    let device = running(bench)?;
    hammer_all(&head(&device.common, common::LENGTH), bench.random.number());
    running(bench)?;
    hammer_all(&head(&device.common, common::STATUS), u64::MAX);
    Ok(())
}

// Status bits in any order, with and without queues.
fn status_orders(bench: &mut Bench) -> Result<(), String> {
    use status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET};
    let device = running(bench)?;
    let whole = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    let orders = [
        [DRIVER_OK, whole, 0, whole],
        [FEATURES_OK, DRIVER_OK, ACKNOWLEDGE, DRIVER],
        [whole, ACKNOWLEDGE, whole, FAILED],
        [NEEDS_RESET, whole | NEEDS_RESET, whole, 0],
        [0xff, 0x30, 0xff, whole],
        [FAILED, whole, FAILED | whole, 0],
    ];
    for order in orders {
        for value in order {
            device.common.write(common::STATUS, value);
            let _ = device.status();
        }
        device.reset()?;
    }
    for _ in 0..32 {
        device
            .common
            .write(common::STATUS, bench.random.number() as u8);
    }
    device.reset()
}

// Features that were not offered, and changes after they were agreed on.
fn features(bench: &mut Bench) -> Result<(), String> {
    let device = bench.run.disk.transport.clone();
    let acknowledge = status::ACKNOWLEDGE | status::DRIVER;
    let version = (feature::VERSION_1 >> 32) as u32;
    for (low, high) in [
        (u32::MAX, u32::MAX),
        (0, 0),
        (u32::MAX, 0),
        (0, version),
        (1 << 24, version),
    ] {
        device.reset()?;
        device.common.write(common::STATUS, acknowledge);
        for (select, half) in [(0u32, low), (1, high), (2, u32::MAX), (u32::MAX, u32::MAX)] {
            device.common.write(common::DRIVER_FEATURE_SELECT, select);
            device.common.write(common::DRIVER_FEATURE, half);
            let _: u32 = device.common.read(common::DRIVER_FEATURE);
            device.common.write(common::DEVICE_FEATURE_SELECT, select);
            let _: u32 = device.common.read(common::DEVICE_FEATURE);
        }
        device
            .common
            .write(common::STATUS, acknowledge | status::FEATURES_OK);
        let _ = device.status();
    }
    let device = running(bench)?;
    device.common.write(common::DRIVER_FEATURE_SELECT, 0u32);
    device.common.write(common::DRIVER_FEATURE, 0u32);
    Ok(())
}

// Used rings over what a device reads, and over another ring: what it writes there breaks the rings, so
// it must say that it needs a reset (2.1.2).
fn overlapping_rings(bench: &mut Bench) -> Result<(), String> {
    let device = bench.run.disk.transport.clone();
    let size = device.queue_size(0).min(64);
    let (one, other) = (Layout::allocate(size), Layout::allocate(size));
    let with_used = |used| Layout { used, ..other };
    let late = device.queues() > 1;
    for (first, second) in [
        (with_used(other.descriptors), None),
        (with_used(other.available), None),
        (one, late.then_some(with_used(one.used))),
        (one, late.then_some(with_used(one.descriptors))),
    ] {
        device.reset()?;
        device.negotiate(bench.run.disk.features)?;
        device.start_queue(0, &first, NO_VECTOR)?;
        device.driver_ok();
        if let Some(second) = &second {
            device.start_queue(1, second, NO_VECTOR)?;
        } else if first.used.address() == one.used.address() {
            continue;
        }
        let limit = if bench.strict { LIMIT } else { LENIENT_LIMIT };
        let begin = clock::now();
        while device.status() & status::NEEDS_RESET == 0 {
            if clock::now().wrapping_sub(begin) > limit * clock::kilohertz() {
                if bench.strict {
                    return Err("reason=overlapping-rings-taken".into());
                }
                break;
            }
        }
    }
    Ok(())
}

// -------------------------------------------------------------------- interrupts and doorbells

// A vector outside the table reads back as none (4.1.5.1.2).
fn vectors(bench: &mut Bench) -> Result<(), String> {
    let device = running(bench)?;
    let present = device.msix.as_ref().map_or(0, |msix| msix.vectors);
    for vector in [present, present + 1, 0x7ff, 0x8000, 0xfffe] {
        if device.set_config_vector(vector).is_ok() && bench.strict {
            return Err(alloc::format!(
                "reason=config-vector-accepted vector={vector} present={present}"
            ));
        }
        device.common.write(common::QUEUE_SELECT, 0u16);
        device.common.write(common::QUEUE_VECTOR, vector);
        let found: u16 = device.common.read(common::QUEUE_VECTOR);
        if found != NO_VECTOR && bench.strict {
            return Err(alloc::format!(
                "reason=queue-vector-accepted vector={vector} found={found}"
            ));
        }
    }
    Ok(())
}

fn msix_table(bench: &mut Bench) -> Result<(), String> {
    let device = running(bench)?;
    let Some(msix) = &device.msix else {
        return Ok(());
    };
    msix.mask_all(true);
    hammer_all(&head(&msix.table, 48), bench.random.number());
    hammer_all(&head(&msix.pending, 16), bench.random.number());
    msix.enable(false);
    hammer_all(&head(&msix.table, 16), bench.random.number());
    // Leaves messages behind that go nowhere, not ones that hit a processor at a random vector.
    for at in (0..msix.table.length()).step_by(4) {
        msix.table.write(at, u32::from(at % 16 == 12));
    }
    msix.enable(true);
    msix.mask_all(false);
    Ok(())
}

fn notify_widths(bench: &mut Bench) -> Result<(), String> {
    let device = running(bench)?;
    let value = bench.random.number();
    match device.notify {
        Notify::Memory(span) => {
            let room = span.length().min(256);
            // The widest write is 8 bytes and stays within the area.
            let Some(last) = span.length().checked_sub(8) else {
                return Ok(());
            };
            for at in (0..room - 8)
                .step_by(7)
                .chain([0, 1, 2, 4, 6, last].into_iter().filter(|at| *at <= last))
            {
                span.write(at, value as u8);
                span.write(at, value as u16);
                span.write(at, value as u32);
                span.write(at, value);
                let _: u32 = span.read(at);
            }
        }
        Notify::Port(base, length) => {
            for at in (0..length.min(64))
                .step_by(3)
                .map(|at| base.wrapping_add(at as u16))
            {
                port::out8(at, value as u8);
                port::out16(at, value as u16);
                port::out32(at, value as u32);
                let _ = port::in8(at);
            }
        }
    }
    Ok(())
}

// Vectors masked, moved and switched off while interrupts flow, doorbells rung for nothing.
fn interrupts(bench: &mut Bench) -> Result<(), String> {
    let run = &mut bench.run;
    run.start()?;
    let requests = 20 * SHORT_RUN;
    let (processors, patience) = (run.processors, run.patience);
    let transport = run.disk.transport.clone();
    let count = run.workers.len() as u64;
    let mut disturbed = alloc::vec::Vec::new();
    for mut worker in core::mem::take(&mut run.workers) {
        worker.get_mut().start_round(requests / count, false);
        let seed = bench.random.number();
        disturbed.push(chaos::Disturbed::new(
            worker,
            transport.clone(),
            processors,
            seed,
        ));
    }
    let disturbed = chaos::wrap(disturbed);
    let result = crew::run(&disturbed, processors, patience);
    run.workers = chaos::unwrap(disturbed);
    result
}

// -------------------------------------------------------------------- BARs

fn bars(bench: &mut Bench) -> Result<(), String> {
    let device = bench.run.disk.transport.clone();
    device.reset()?;
    move_bars(&device)
}

fn bars_while_running(bench: &mut Bench) -> Result<(), String> {
    let device = running(bench)?;
    move_bars(&device)?;
    // It still is the same device with the same queues: no reset in between.
    bench.run.round(SHORT_RUN, false)
}

// -------------------------------------------------------------------- reset

// Resets with requests in flight, again and again.
fn reset_in_flight(bench: &mut Bench) -> Result<(), String> {
    let run = &mut bench.run;
    for _ in 0..10 {
        run.start()?;
        for worker in &mut run.workers {
            let worker = worker.get_mut();
            worker.start_round(SHORT_RUN, false);
            crew::Worker::step(worker)?;
        }
        run.disk.transport.reset()?;
        for worker in &mut run.workers {
            let worker = worker.get_mut();
            worker.abandon();
            // What it submitted is gone, and so is the rest of its round.
            worker.end_round();
        }
    }
    Ok(())
}
