//! The ways to end: ACPI power-off and reset, halt, triple fault.

use super::phys::Span;
use super::sync::Spin;
use super::{port, ring0};
use core::sync::atomic::{AtomicU64, Ordering};

/// A register as ACPI describes it (Generic Address Structure).
#[derive(Clone, Copy, Debug)]
pub enum Register {
    /// A byte in memory.
    Memory(Span),
    /// An I/O port.
    Port(u16),
}

impl Register {
    fn write(self, value: u8) {
        match self {
            Register::Memory(span) => span.write(0, value),
            Register::Port(port) => port::out8(port, value),
        }
    }
}

/// What FADT says about power.
#[derive(Clone, Copy, Debug, Default)]
pub struct Power {
    /// The sleep control register of hardware-reduced ACPI.
    pub sleep: Option<Register>,
    /// The reset register and the value that resets.
    pub reset: Option<(Register, u8)>,
}

const S5: u8 = 5 << 2;
const SLEEP_ENABLE: u8 = 1 << 5;
/// QEMU's isa-debug-exit at its usual place.
const DEBUG_EXIT: u16 = 0xf4;

static POWER: Spin<Power> = Spin::new(Power {
    sleep: None,
    reset: None,
});

/// Remembers the registers.
pub fn configure(power: Power) {
    *POWER.lock() = power;
}

/// Powers off by S5; where there is none, by QEMU's debug exit; where there is neither, halts.
pub fn off() -> ! {
    let sleep = POWER.lock().sleep;
    match sleep {
        Some(register) => register.write(S5 | SLEEP_ENABLE),
        None => port::out32(DEBUG_EXIT, 0),
    }
    halt()
}

/// Resets by the ACPI reset register; where there is none, halts.
pub fn reset() -> ! {
    let reset = POWER.lock().reset;
    if let Some((register, value)) = reset {
        register.write(value);
    }
    halt()
}

/// Stops this processor for ever.
pub fn halt() -> ! {
    let word = AtomicU64::new(0);
    loop {
        ring0::halt_while(&word, word.load(Ordering::Relaxed));
    }
}
