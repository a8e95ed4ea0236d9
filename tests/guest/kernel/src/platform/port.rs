//! I/O ports, straight from ring 3: the task state segment's bitmap allows all of them.

use core::arch::asm;

/// Writes one byte to a port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: port accesses reach devices; those that could write memory are programmed with memory from `dma`.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) }
}

/// Writes a 16-bit word to a port.
pub fn out16(port: u16, value: u16) {
    // SAFETY: as for out8.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags)) }
}

/// Writes a 32-bit word to a port.
pub fn out32(port: u16, value: u32) {
    // SAFETY: as for out8.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags))
    }
}

/// Reads one byte from a port.
pub fn in8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: as for out8.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) }
    value
}

/// Writes bytes to a port by one string instruction, which may leave to user space once for all of them.
pub fn out_string(port: u16, bytes: &[u8]) {
    // SAFETY: reads exactly the slice.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _,
            inout("rcx") bytes.len() => _, options(nostack, preserves_flags));
    }
}
