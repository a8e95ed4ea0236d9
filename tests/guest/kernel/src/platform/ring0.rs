//! The calls into ring 0: `int3` with the address of one of entry.s's stubs in r10, and `int 4` to halt. Each costs some
//! ten microseconds on a software KVM, so none belongs on a hot path.

use core::arch::asm;
use core::sync::atomic::AtomicU64;

/// The x2APIC's register: 0 ends an interrupt.
const END_OF_INTERRUPT: u32 = 0x80b;

/// Writes a model-specific register; one that does not exist is an exception.
pub fn write_msr(msr: u32, value: u64) {
    // SAFETY: the stub is `wrmsr; iretq`. Callers write APIC and GS base registers only, none of which
    // changes what memory the program sees.
    unsafe {
        asm!("mov r10, offset call_wrmsr", "int3", in("ecx") msr, in("eax") value as u32,
            in("edx") (value >> 32) as u32, out("r10") _);
    }
}

/// Reads a model-specific register.
pub fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the stub is `rdmsr; iretq`, which has no effect beyond its two result registers.
    unsafe {
        asm!("mov r10, offset call_rdmsr", "int3", in("ecx") msr, out("eax") low, out("edx") high,
            out("r10") _);
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Halts this processor until an interrupt, unless `word` no longer is `seen`. Looks and halts with
/// interrupts off, so an interrupt that changes the word in between is not slept through.
pub fn halt_while(word: &AtomicU64, seen: u64) {
    // SAFETY: the stub reads the word, which lives as long as the reference, and changes nothing. The interrupt that ends
    // the halt writes EDX:EAX to the register ECX, as the end of an interrupt.
    unsafe {
        asm!("int 4", in("rdi") word.as_ptr(), in("rsi") seen, in("ecx") END_OF_INTERRUPT, in("eax") 0,
            in("edx") 0);
    }
}

/// Lets interrupts through from here on.
pub fn enable_interrupts() {
    // SAFETY: the stub sets IF in the flags it returns to; every vector has a stub.
    unsafe {
        asm!("mov r10, offset call_enable_interrupts", "int3", out("r10") _);
    }
}

/// Ends the machine by a triple fault.
pub fn triple_fault() -> ! {
    // SAFETY: nothing runs on this processor after the exception that follows.
    unsafe {
        asm!(
            "mov r10, offset call_drop_idt",
            "int3",
            "ud2",
            options(noreturn)
        );
    }
}
