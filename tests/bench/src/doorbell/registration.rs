//! Registering doorbells and releasing them again: what it costs, and that
//! nothing is left.

use std::time::Instant;

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use kvm_ioctls::Kvm;
use outboard_ring3::{DEVICES, Machine};

use super::cost::{RELEASE, Space, ask, eventfd};
use super::report::{Kind, Sample, What};

/// Doorbells that are there at a time: those of sixteen devices of 32 queues.
const AT_A_TIME: u64 = 512;

/// How many times fewer replacements than registrations there are.
const RARELY: u64 = 50;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// KVM_IOEVENTFD.
    Register,
    /// The same with KVM_IOEVENTFD_FLAG_DEASSIGN.
    Release,
    /// A release right after a registration, as for a queue that gets a new
    /// eventfd: both together.
    Replace,
}

/// All of them.
pub fn kinds() -> Vec<Kind> {
    [Step::Register, Step::Release, Step::Replace]
        .map(|step| {
            let name = match step {
                Step::Register => "registration, among 512",
                Step::Release => "release, among 512",
                Step::Replace => "registration and release, one after the other",
            };
            Kind {
                what: What::Registration(step),
                name: name.into(),
                reference: name.into(),
                text: None,
            }
        })
        .into()
}

fn descriptors() -> Result<usize> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count())
}

fn place(number: u64) -> (Space, u64) {
    match number % 2 {
        0 => (Space::Memory, DEVICES + 4 * number),
        _ => (Space::Port, 0xa000 + 4 * number),
    }
}

/// So many registrations and releases. Nothing is left of them: each address is
/// free again, and no descriptor is more.
///
/// # Errors
/// KVM refuses one, or something is left.
pub fn sample(step: Step, number: u64) -> Result<Sample> {
    let machine = Machine::new(&Kvm::new()?)?;
    let before = descriptors()?;
    let mut histogram = Histogram::new(3)?;
    let at_a_time = match step {
        Step::Replace => 1,
        Step::Register | Step::Release => AT_A_TIME,
    };
    let mut left = match step {
        // It takes KVM some milliseconds.
        Step::Replace => number.div_ceil(RARELY),
        Step::Register | Step::Release => number.max(1),
    };
    while left > 0 {
        let batch = left.min(at_a_time);
        left -= batch;
        let kicks = (0..batch).map(|_| eventfd()).collect::<Result<Vec<_>>>()?;
        for flags in [0, RELEASE] {
            for (number, kick) in (0..).zip(&kicks) {
                let (space, place) = place(number);
                let began = Instant::now();
                ask(machine.vm(), space, place, 4, kick, flags)?;
                let timed = match step {
                    Step::Register => flags == 0,
                    Step::Release => flags == RELEASE,
                    Step::Replace => true,
                };
                if timed {
                    histogram.record(began.elapsed().as_nanos() as u64)?;
                }
            }
        }
    }
    let after = descriptors()?;
    ensure!(
        before == after,
        "{before} descriptors before, {after} after"
    );
    Ok(Sample::of(&histogram))
}
