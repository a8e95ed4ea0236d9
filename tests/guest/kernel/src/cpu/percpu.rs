//! What belongs to one processor. entry.s knows the offsets of the first five fields; GS points here.

use crate::platform::ring0;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

const GS_BASE: u32 = 0xc000_0101;

/// One processor's own words.
#[repr(C, align(64))]
pub struct PerCpu {
    /// Counts interrupts: what `halt_while` looks at.
    pub events: AtomicU64,
    /// 0 for the processor that booted.
    pub index: u64,
    /// For entry.s only.
    pub ring0_stack: u64,
    /// For entry.s only.
    pub task_selector: u64,
    /// For entry.s only.
    pub ring3_stack: u64,
    /// The address that interrupts are sent to.
    pub apic_id: u32,
    /// 1 once it runs in ring 3.
    pub started: AtomicU64,
    /// Counts the pieces of work that it was given, and the ones it has done.
    pub given: AtomicU64,
    /// See `given`.
    pub done: AtomicU64,
}

impl PerCpu {
    /// A processor that does not run yet.
    pub fn new(index: u64, apic_id: u32) -> PerCpu {
        PerCpu {
            events: AtomicU64::new(0),
            index,
            ring0_stack: 0,
            task_selector: 0,
            ring3_stack: 0,
            apic_id,
            started: AtomicU64::new(0),
            given: AtomicU64::new(0),
            done: AtomicU64::new(0),
        }
    }

    /// Makes this the processor that the caller runs on.
    pub fn install(&'static self) {
        ring0::write_msr(GS_BASE, core::ptr::from_ref(self) as u64);
    }
}

/// The processor that the caller runs on.
pub fn this() -> &'static PerCpu {
    let address: u64;
    // SAFETY: GS base is the PerCpu that `install` set; ring 3 cannot read it directly, so its words are
    // found by the index, which is in it.
    unsafe { asm!("mov {}, gs:[8]", out(reg) address, options(nostack, preserves_flags, readonly)) }
    super::smp::processor(address as usize)
}

/// How many interrupts this processor has taken.
pub fn events() -> u64 {
    this().events.load(Ordering::Acquire)
}
