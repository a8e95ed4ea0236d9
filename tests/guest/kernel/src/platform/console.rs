//! COM1, by lines. A port access leaves to user space, so characters go out in bursts of the FIFO's
//! size, each by one string instruction, and only the first waits for the transmitter.

use super::port::{in8, out_string, out8};
use super::sync::Spin;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

const COM1: u16 = 0x3f8;
const FIFO_CONTROL: u16 = COM1 + 2;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_EMPTY: u8 = 0x20;
const FIFO: usize = 16;
/// A transmitter that stays busy for longer than this many looks is ignored.
const PATIENCE: u32 = 20_000;

static LINE: Spin<()> = Spin::new(());
static BYTE_BY_BYTE: AtomicBool = AtomicBool::new(false);

/// Switches the FIFO on.
pub fn start() {
    out8(FIFO_CONTROL, 0x07);
}

/// Avoids string instructions, for a VMM that cannot do them (`console=bytes`).
pub fn write_byte_by_byte() {
    BYTE_BY_BYTE.store(true, Ordering::Relaxed);
}

/// Prints one line, whole, whichever processors print at the same time.
pub fn print(line: fmt::Arguments<'_>) {
    let _one_at_a_time = LINE.lock();
    let mut burst = Burst {
        bytes: [0; FIFO],
        filled: 0,
    };
    // A Burst cannot fail, so there is nothing to handle.
    let _ = burst.write_fmt(line);
    let _ = burst.write_char('\n');
    burst.send();
}

/// Prints even if another processor stopped in the middle of a line.
pub fn print_last_words(line: fmt::Arguments<'_>) {
    LINE.break_open();
    print(format_args!(""));
    print(line);
}

struct Burst {
    bytes: [u8; FIFO],
    filled: usize,
}

impl Burst {
    fn send(&mut self) {
        let mut looks = 0;
        while in8(LINE_STATUS) & TRANSMITTER_EMPTY == 0 && looks < PATIENCE {
            looks += 1;
        }
        let bytes = &self.bytes[..self.filled];
        if BYTE_BY_BYTE.load(Ordering::Relaxed) {
            bytes.iter().for_each(|byte| out8(COM1, *byte));
        } else {
            out_string(COM1, bytes);
        }
        self.filled = 0;
    }
}

impl Write for Burst {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.bytes[self.filled] = byte;
            self.filled += 1;
            if self.filled == FIFO {
                self.send();
            }
        }
        Ok(())
    }
}

/// Prints one line on the console.
#[macro_export]
macro_rules! say {
    ($($part:tt)*) => { $crate::platform::console::print(format_args!($($part)*)) };
}
