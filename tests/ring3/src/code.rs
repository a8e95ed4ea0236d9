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

program! {
    /// Writes eax to the memory at rdi, rcx times; then exits by port 0x10, and
    /// begins again with what rcx is then.
    memory_writes, ring3_memory_writes, ring3_memory_writes_end,
    "2: mov [rdi], eax",
    "dec rcx",
    "jnz 2b",
    "out 0x10, al",
    "jmp 2b",
}

program! {
    /// The same with the port in dx.
    port_writes, ring3_port_writes, ring3_port_writes_end,
    "2: out dx, eax",
    "dec rcx",
    "jnz 2b",
    "out 0x10, al",
    "jmp 2b",
}

program! {
    /// The same without any write: what the loop itself costs.
    no_writes, ring3_no_writes, ring3_no_writes_end,
    "2: nop",
    "dec rcx",
    "jnz 2b",
    "out 0x10, al",
    "jmp 2b",
}

program! {
    /// Kicks r8 queues, one after another: adds 1 to the queue's word, at rsi and
    /// behind, and writes to its doorbell, at rdi and every 4 bytes behind; then
    /// exits by port 0x10, and begins again.
    memory_kicks, ring3_memory_kicks, ring3_memory_kicks_end,
    "2: xor ebx, ebx",
    "3: inc qword ptr [rsi + rbx * 8]",
    "mov [rdi + rbx * 4], ebx",
    "inc rbx",
    "cmp rbx, r8",
    "jb 3b",
    "out 0x10, al",
    "jmp 2b",
}

program! {
    /// The same with doorbells at the port in edi and every 4 behind.
    port_kicks, ring3_port_kicks, ring3_port_kicks_end,
    "2: xor ebx, ebx",
    "3: inc qword ptr [rsi + rbx * 8]",
    "lea edx, [rdi + rbx * 4]",
    "mov eax, ebx",
    "out dx, eax",
    "inc rbx",
    "cmp rbx, r8",
    "jb 3b",
    "out 0x10, al",
    "jmp 2b",
}
