//! Workers on processors: each processor goes round its workers until all have finished or one fails.
//!
//! ```text
//! step everyone --something happened--> step everyone
//!      |  nothing for a while: ask for interrupts, look once more, halt until one comes
//!      |  nothing for the time limit: fail with the state of the rings
//! ```

use crate::cpu::{percpu, smp};
use crate::platform::sync::Spin;
use crate::platform::{clock, ring0};
use crate::virtio::ring::Ring;
use alloc::string::String;
use core::sync::atomic::{AtomicBool, Ordering};

/// Work on one queue.
pub trait Worker: Send {
    /// Takes what has finished and submits what there is room for. True if it did anything.
    fn step(&mut self) -> Result<bool, String>;
    /// Whether it has nothing more to do.
    fn finished(&self) -> bool;
    /// Its ring.
    fn ring(&mut self) -> &mut Ring;
    /// Asks for an interrupt when there is more to do. True if there is already.
    fn arm(&mut self) -> bool {
        self.ring().arm()
    }
    /// Wants no interrupts for now.
    fn disarm(&mut self) {
        self.ring().disarm();
    }
    /// What a reader of a failure needs to know.
    fn state(&mut self) -> String {
        self.ring().state()
    }
}

/// How to wait.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Never halts.
    pub poll: bool,
    /// Ticks without anything happening before it halts.
    pub spin: u64,
    /// Ticks without anything happening before it fails.
    pub limit: u64,
}

/// Runs the workers, spread over this many processors, until all have finished.
pub fn run<W: Worker>(
    workers: &[Spin<W>],
    processors: usize,
    patience: Patience,
) -> Result<(), String> {
    let stop = AtomicBool::new(false);
    let failure = Spin::new(None);
    smp::on_each(processors, &|cpu| {
        if let Err(reason) = work(workers, cpu, processors, patience, &stop) {
            stop.store(true, Ordering::Release);
            failure.lock().get_or_insert(reason);
        }
    });
    failure.lock().take().map_or(Ok(()), Err)
}

fn work<W: Worker>(
    workers: &[Spin<W>],
    cpu: usize,
    processors: usize,
    patience: Patience,
    stop: &AtomicBool,
) -> Result<(), String> {
    let own = || workers.iter().skip(cpu).step_by(processors);
    if patience.poll {
        own().for_each(|worker| worker.lock().disarm());
    }
    let mut quiet_since = clock::now();
    loop {
        let events = percpu::events();
        let (mut busy, mut finished) = (false, true);
        for worker in own() {
            let mut worker = worker.lock();
            busy |= worker.step()?;
            finished &= worker.finished();
        }
        if finished || stop.load(Ordering::Acquire) {
            return Ok(());
        }
        let now = clock::now();
        if busy {
            quiet_since = now;
            continue;
        }
        let quiet = now.wrapping_sub(quiet_since);
        if quiet > patience.limit {
            return Err(describe_hang(own()));
        }
        if patience.poll || quiet < patience.spin {
            core::hint::spin_loop();
            continue;
        }
        let mut pending = false;
        own().for_each(|worker| pending |= worker.lock().arm());
        if !pending {
            // Any interrupt since `events` was read changes it, and then this does not halt.
            ring0::halt_while(&percpu::this().events, events);
        }
        own().for_each(|worker| worker.lock().disarm());
    }
}

fn describe_hang<'a, W: Worker + 'a>(own: impl Iterator<Item = &'a Spin<W>>) -> String {
    let mut reason = String::from("reason=timeout");
    for worker in own {
        reason.push(' ');
        reason.push_str(&worker.lock().state());
    }
    reason
}
