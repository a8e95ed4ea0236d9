//! The programs that vCPUs run: position-independent, assembled by the compiler.

use std::arch::global_asm;

/// Some instructions.
#[derive(Clone, Copy, Debug)]
pub struct Program(&'static [u8]);

impl Program {
    /// Its machine code.
    pub fn bytes(&self) -> &'static [u8] {
        self.0
    }
}

macro_rules! program {
    ($(#[$doc:meta])* $name:ident, $start:ident, $end:ident, $($line:literal,)*) => {
        global_asm!(
            concat!(".globl ", stringify!($start)), concat!(stringify!($start), ":"),
            $($line,)*
            concat!(".globl ", stringify!($end)), concat!(stringify!($end), ":"),
        );
        unsafe extern "C" {
            static $start: u8;
            static $end: u8;
        }
        impl Program {
            $(#[$doc])*
            pub fn $name() -> Self {
                let (start, end) = (&raw const $start, &raw const $end);
                // SAFETY: the two labels enclose the instructions above, which
                // nobody writes.
                Self(unsafe {
                    std::slice::from_raw_parts(start, end.offset_from_unsigned(start))
                })
            }
        }
    };
}

/// A loop of writes that are timed one by one.
macro_rules! writes {
    ($(#[$doc:meta])* $name:ident, $start:ident, $end:ident, $($write:literal,)*) => {
        program! {
            $(#[$doc])*
            $name, $start, $end,
            "2: mov r10, rsi",
            "mov r11, rcx",
            "3: rdtsc",
            "shl rdx, 32",
            "lea r9, [rax + rdx]",
            $($write,)*
            "rdtsc",
            "shl rdx, 32",
            "add rax, rdx",
            "sub rax, r9",
            "mov [r10], rax",
            "add r10, 8",
            "dec r11",
            "jnz 3b",
            "out 0x10, al",
            "jmp 2b",
        }
    };
}

writes! {
    /// Writes ebx to the memory at rdi, rcx times, and the ticks that each write
    /// took, by the time stamp counter, to the words at rsi and behind; then
    /// exits by port 0x10, and begins again.
    memory_writes, ring3_memory_writes, ring3_memory_writes_end,
    "mov [rdi], ebx",
}

writes! {
    /// The same with the port in di.
    port_writes, ring3_port_writes, ring3_port_writes_end,
    "mov edx, edi",
    "mov eax, ebx",
    "out dx, eax",
}

/// One kick of each queue, over and over.
macro_rules! kicks {
    ($(#[$doc:meta])* $name:ident, $start:ident, $end:ident, $($write:literal,)*) => {
        program! {
            $(#[$doc])*
            $name, $start, $end,
            "2: xor ebx, ebx",
            "3: inc qword ptr [rsi + rbx * 8]",
            $($write,)*
            "inc rbx",
            "cmp rbx, r8",
            "jb 3b",
            "out 0x10, al",
            "jmp 2b",
        }
    };
}

kicks! {
    /// Kicks r8 queues, one after another: adds 1 to the queue's word, at rsi and
    /// behind, and writes to its doorbell, at rdi and every 4 bytes behind; then
    /// exits by port 0x10, and begins again.
    memory_kicks, ring3_memory_kicks, ring3_memory_kicks_end,
    "mov [rdi + rbx * 4], ebx",
}

kicks! {
    /// The same with doorbells at the port in edi and every 4 behind.
    port_kicks, ring3_port_kicks, ring3_port_kicks_end,
    "lea edx, [rdi + rbx * 4]",
    "mov eax, ebx",
    "out dx, eax",
}
