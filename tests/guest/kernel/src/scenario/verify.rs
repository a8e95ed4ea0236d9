//! `scenario=verify`: random writes, reads and flushes on several queues, every byte checked; `scenario=load`
//! does the same until the guest is killed.

use super::crew::{self, Patience};
use super::mastering::Pauses;
use super::plan::Plan;
use super::verifier::Verifier;
use super::{Machine, Outcome, options};
use crate::blk::{Blk, SECTOR, feature};
use crate::cpu::apic;
use crate::platform::clock;
use crate::platform::sync::Spin;
use crate::say;
use crate::virtio::ring::Indirect;
use crate::virtio::transport::Transport;
use alloc::string::String;
use alloc::vec::Vec;
use guest_logic::words::Words;

/// Sectors that are used unless `span=` says otherwise: each costs the guest 4 bytes.
const DEFAULT_SPAN: u64 = 1 << 18;
const MAX_SPAN: u64 = 1 << 26;

/// A device with workers on it.
pub struct Run {
    /// The device.
    pub disk: Blk,
    /// One for each queue.
    pub workers: Vec<Spin<Verifier>>,
    /// Processors that they are spread over.
    pub processors: usize,
    /// How they wait.
    pub patience: Patience,
    indirect: Indirect,
    span: u64,
}

/// What `mode=`, `spin=` and `timeout=` say; there may be no way to interrupt.
pub fn patience(words: &Words<'_>, can_interrupt: bool, spin: u64) -> Result<Patience, String> {
    let poll = match words.text("mode", "irq") {
        "irq" => false,
        "poll" => true,
        other => return Err(alloc::format!("reason=bad-value key=mode value={other}")),
    };
    Ok(Patience {
        poll: poll || !can_interrupt,
        spin: clock::microseconds(options::number(words, "spin", spin)?),
        limit: clock::microseconds(options::within(words, "timeout", 60, 1, 3600)? * 1_000_000),
    })
}

/// What `indirect=` says.
pub fn indirect(words: &Words<'_>, otherwise: &'static str) -> Result<Indirect, String> {
    match words.get("indirect").unwrap_or(otherwise) {
        "never" => Ok(Indirect::Never),
        "always" => Ok(Indirect::Always),
        "mixed" => Ok(Indirect::Mixed),
        other => Err(alloc::format!(
            "reason=bad-value key=indirect value={other}"
        )),
    }
}

impl Run {
    /// Prepares workers on this device as the command line says, but none for the last `reserve` sectors;
    /// `start` is next.
    pub fn new(
        words: &Words<'_>,
        transport: &Transport,
        processors: usize,
        reserve: u64,
    ) -> Result<Run, String> {
        let mut disk = Blk::open(
            transport,
            options::number(words, "features_mask", u64::MAX)?,
        )?;
        if disk.features & feature::RO != 0 {
            return Err("reason=read-only-disk".into());
        }
        let most = u64::from(disk.configuration.queues.min(transport.queues()));
        let count = options::within(words, "queues", most.min(processors as u64), 1, most)? as u16;
        let depth = options::within(words, "depth", 32, 1, 1024)? as u16;
        let plan = Plan::read(words, &disk)?;
        let queues = disk.queues(count, depth, plan.size)?;
        let processors = processors.min(usize::from(count));
        let can_interrupt = disk.interrupt_each(count, processors);
        let room = disk.configuration.capacity.saturating_sub(reserve);
        let span = options::number(words, "span", DEFAULT_SPAN)?
            .min(room)
            .min(MAX_SPAN);
        let share = span / u64::from(count) / plan.block * plan.block;
        if share < plan.size / SECTOR {
            return Err(alloc::format!(
                "reason=disk-too-small sectors={span} queues={count}"
            ));
        }
        let workers = queues.into_iter().map(|queue| {
            let first = share * u64::from(queue.index);
            Spin::new(Verifier::new(queue, depth, first..first + share, plan))
        });
        let mut workers: Vec<_> = workers.collect();
        if let Some(first) = workers.first_mut() {
            let mut pauses = Pauses::read(words, processors)?;
            if let Some(pauses) = &mut pauses {
                pauses.functions.push(transport.function.clone());
            }
            first.get_mut().pauses = pauses;
        }
        Ok(Run {
            disk,
            workers,
            processors,
            patience: patience(words, can_interrupt, 20)?,
            indirect: indirect(words, "mixed")?,
            span: share * u64::from(count),
        })
    }

    /// Resets and starts the device.
    pub fn start(&mut self) -> Result<(), String> {
        let queues = self
            .workers
            .iter_mut()
            .map(|worker| &mut worker.get_mut().queue);
        self.disk.start(queues, self.indirect)?;
        let doorbells = self.workers.iter_mut().map(Spin::get_mut);
        let doorbells: Vec<_> = doorbells
            .filter_map(|worker| worker.queue.doorbell)
            .collect();
        if let Some(pauses) = self.pauses() {
            pauses.doorbells = doorbells;
        }
        Ok(())
    }

    /// What stops the device now and then, if anything.
    pub fn pauses(&mut self) -> Option<&mut Pauses> {
        self.workers.first_mut()?.get_mut().pauses.as_mut()
    }

    /// Runs so many requests, shared among the workers.
    pub fn round(&mut self, requests: u64, last: bool) -> Result<(), String> {
        self.begin_round(requests, last);
        crew::run(&self.workers, self.processors, self.patience)
    }

    /// Gives the workers so many requests to do.
    pub fn begin_round(&mut self, requests: u64, last: bool) {
        let count = self.workers.len() as u64;
        for (at, worker) in self.workers.iter_mut().enumerate() {
            let extra = u64::from((at as u64) < requests % count);
            worker.get_mut().start_round(requests / count + extra, last);
        }
    }

    /// The words of the result line.
    pub fn summary(&mut self) -> String {
        let (mut digest, mut sectors) = (0u64, 0);
        let (mut requests, mut bytes, mut checked, mut kicks, mut suppressed) = (0, 0, 0, 0, 0);
        for worker in &mut self.workers {
            let worker = worker.get_mut();
            let (part, written) = worker.digest();
            digest = digest.wrapping_add(part);
            sectors += written;
            requests += worker.requests;
            bytes += worker.bytes;
            checked += worker.checked;
            kicks += worker.queue.ring.kicks;
            suppressed += worker.queue.ring.kicks_suppressed;
        }
        let pauses = self.pauses().map_or(0, |pauses| pauses.count);
        alloc::format!(
            "requests={requests} bytes={bytes} checked={checked} span={} sectors={sectors} digest={digest:#018x} \
             queues={} processors={} kicks={kicks} suppressed={suppressed} interrupts={} pauses={pauses}",
            self.span,
            self.workers.len(),
            self.processors,
            apic::taken_by_devices()
        )
    }
}

/// `scenario=verify`
pub fn run(machine: &Machine<'_>) -> Outcome {
    let words = &machine.words;
    let requests = options::within(words, "requests", 10_000, 1, u64::from(u32::MAX / 2))?;
    let rounds = options::within(words, "reinit", 0, 0, 10_000)? + 1;
    let devices = machine.devices()?;
    let transport = options::block_device(words, &devices)?;
    let processors = machine.start_processors()?;
    let mut run = Run::new(words, &transport, processors, 0)?;
    let begin = clock::now();
    for round in 1..=rounds {
        run.start()?;
        let extra = u64::from(round <= requests % rounds);
        run.round(requests / rounds + extra, round == rounds)?;
    }
    let elapsed = clock::nanoseconds(clock::now().wrapping_sub(begin)) / 1_000_000;
    Ok(alloc::format!("{} milliseconds={elapsed}", run.summary()))
}

/// `scenario=load`: goes on until it is killed, with a line after every `report=` requests.
pub fn load(machine: &Machine<'_>) -> Outcome {
    let words = &machine.words;
    let report = options::within(words, "report", 1000, 1, 1 << 30)?;
    let devices = machine.devices()?;
    let transport = options::block_device(words, &devices)?;
    let processors = machine.start_processors()?;
    let mut run = Run::new(words, &transport, processors, 0)?;
    run.start()?;
    let mut requests = 0;
    loop {
        run.round(report, false)?;
        requests += report;
        say!("progress requests={requests}");
    }
}
