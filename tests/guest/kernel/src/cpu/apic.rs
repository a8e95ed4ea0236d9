//! The local APIC in x2APIC mode: registers are MSRs, reached through ring 0.

use crate::platform::ring0::{read_msr, write_msr};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const APIC_BASE: u32 = 0x1b;
const ENABLE_X2APIC: u64 = 0xc00;
const ID: u32 = 0x802;
const SPURIOUS: u32 = 0x80f;
const INTERRUPT_COMMAND: u32 = 0x830;
const TIMER_LVT: u32 = 0x832;
const TIMER_INITIAL: u32 = 0x838;
const TIMER_DIVIDE: u32 = 0x83e;

const PERIODIC: u64 = 1 << 17;
const MASKED: u64 = 1 << 16;
const DIVIDE_BY_ONE: u64 = 0xb;

/// The timer's vector.
const TIMER_VECTOR: u8 = 0x20;
/// Sent between processors.
pub const WAKE_VECTOR: u8 = 0x21;
const SPURIOUS_VECTOR: u64 = 0xff;
/// Devices' vectors.
const FIRST_DEVICE_VECTOR: usize = 0x30;
const DEVICE_VECTORS: usize = 0xc0;

/// KVM's APIC timer counts nanoseconds: a tick each quarter of a second, so that no halt is for ever.
const TICK: u64 = 250_000_000;

unsafe extern "C" {
    #[link_name = "interrupt_counts"]
    static COUNTS: [AtomicU64; 256];
}

static NEXT_VECTOR: AtomicUsize = AtomicUsize::new(0);

/// Switches this processor's APIC on.
pub fn enable() {
    let base = read_msr(APIC_BASE);
    if base & ENABLE_X2APIC != ENABLE_X2APIC {
        write_msr(APIC_BASE, base | 0x800);
        write_msr(APIC_BASE, base | ENABLE_X2APIC);
    }
    write_msr(SPURIOUS, 0x100 | SPURIOUS_VECTOR);
}

/// This processor's address.
pub fn id() -> u32 {
    read_msr(ID) as u32
}

/// Starts or stops the tick that bounds every halt of this processor.
pub fn tick(on: bool) {
    write_msr(TIMER_DIVIDE, DIVIDE_BY_ONE);
    write_msr(
        TIMER_LVT,
        if on {
            PERIODIC | u64::from(TIMER_VECTOR)
        } else {
            MASKED
        },
    );
    write_msr(TIMER_INITIAL, if on { TICK } else { 0 });
}

/// Interrupts another processor so that it looks for work.
pub fn wake(apic_id: u32) {
    write_msr(
        INTERRUPT_COMMAND,
        u64::from(apic_id) << 32 | 0x4000 | u64::from(WAKE_VECTOR),
    );
}

/// Puts another processor into its wait-for-start-up state.
pub fn send_init(apic_id: u32) {
    write_msr(INTERRUPT_COMMAND, u64::from(apic_id) << 32 | 0x4500);
}

/// Starts another processor in real mode at `page` * 4096.
pub fn send_startup(apic_id: u32, page: u8) {
    write_msr(
        INTERRUPT_COMMAND,
        u64::from(apic_id) << 32 | 0x4600 | u64::from(page),
    );
}

/// A vector for a device. They are reused in turn when there are more wishes than vectors.
pub fn device_vector() -> u8 {
    (FIRST_DEVICE_VECTOR + NEXT_VECTOR.fetch_add(1, Ordering::Relaxed) % DEVICE_VECTORS) as u8
}

/// How often a vector was taken, on all processors.
pub fn taken(vector: u8) -> u64 {
    // SAFETY: entry.s defines the 256 counters; its stubs only count them up.
    unsafe { COUNTS[usize::from(vector)].load(Ordering::Relaxed) }
}

/// How often devices' vectors were taken, on all processors.
pub fn taken_by_devices() -> u64 {
    (FIRST_DEVICE_VECTOR..FIRST_DEVICE_VECTOR + DEVICE_VECTORS)
        .map(|vector| taken(vector as u8))
        .sum()
}
