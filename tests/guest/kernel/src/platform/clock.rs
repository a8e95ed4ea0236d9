//! Time: the time stamp counter, and its frequency from whoever knows it.

use super::ring0::{read_msr, write_msr};
use core::arch::x86_64::{__cpuid, _rdtsc};
use core::sync::atomic::{AtomicU64, Ordering, compiler_fence};

static KILOHERTZ: AtomicU64 = AtomicU64::new(0);

const HYPERVISOR: u32 = 0x4000_0000;
const TIMING: u32 = 0x4000_0010;
const APIC_TIMER_LVT: u32 = 0x832;
const APIC_TIMER_INITIAL: u32 = 0x838;
const APIC_TIMER_CURRENT: u32 = 0x839;
const APIC_TIMER_DIVIDE: u32 = 0x83e;
const DIVIDE_BY_ONE: u64 = 0xb;
const MASKED: u64 = 1 << 16;
/// KVM's APIC timer counts nanoseconds.
const APIC_KILOHERTZ: u64 = 1_000_000;

/// The time stamp counter, in ticks.
#[inline]
pub fn now() -> u64 {
    // SAFETY: reading the counter has no effect.
    unsafe { _rdtsc() }
}

/// Ticks in a millisecond.
pub fn kilohertz() -> u64 {
    KILOHERTZ.load(Ordering::Relaxed)
}

/// Ticks for this many microseconds.
pub fn microseconds(count: u64) -> u64 {
    (u128::from(count) * u128::from(kilohertz()) / 1000) as u64
}

/// Nanoseconds for this many ticks.
pub fn nanoseconds(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000 / u128::from(kilohertz().max(1))) as u64
}

/// Finds the counter's frequency: `given` on the command line, CPUID 0x15, 0x40000010 or 0x16, or else
/// measured against the APIC timer, which must be on already.
pub fn start(given: u64) {
    let known = if given != 0 { given } else { from_cpuid() };
    KILOHERTZ.store(
        if known != 0 { known } else { measured() },
        Ordering::Relaxed,
    );
}

fn from_cpuid() -> u64 {
    let highest = __cpuid(0).eax;
    if highest >= 0x15 {
        let leaf = __cpuid(0x15);
        if leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0 {
            return u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax) / 1000;
        }
    }
    if __cpuid(1).ecx >> 31 == 1 && (TIMING..TIMING + 0x100).contains(&__cpuid(HYPERVISOR).eax) {
        let leaf = __cpuid(TIMING);
        if leaf.eax != 0 {
            return u64::from(leaf.eax);
        }
    }
    if highest >= 0x16 {
        u64::from(__cpuid(0x16).eax) * 1000
    } else {
        0
    }
}

fn measured() -> u64 {
    const COUNT: u64 = 0xffff_ffff;
    write_msr(APIC_TIMER_LVT, MASKED);
    write_msr(APIC_TIMER_DIVIDE, DIVIDE_BY_ONE);
    write_msr(APIC_TIMER_INITIAL, COUNT);
    let (first, begin) = (read_msr(APIC_TIMER_CURRENT), now());
    // Ten milliseconds or more at any likely frequency; the exact length does not matter.
    while now().wrapping_sub(begin) < 30_000_000 {
        core::hint::spin_loop();
    }
    let (last, end) = (read_msr(APIC_TIMER_CURRENT), now());
    write_msr(APIC_TIMER_INITIAL, 0);
    compiler_fence(Ordering::SeqCst);
    let elapsed = first.wrapping_sub(last).max(1);
    end.wrapping_sub(begin) * APIC_KILOHERTZ / elapsed
}
