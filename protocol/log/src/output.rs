//! Where lines go: standard error, which somebody else may read, or not.
//!
//! A full pipe or a stopped terminal would hold whoever writes to it, and with
//! that a guest, or the end of a VM. A line waits for room as long as
//! [`limits::LAG`], once; while there is none, the next are lost at once, and how
//! many is said when there is room again.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::poll::PollFlags;
use outboard_protocol::Deadline;
use outboard_protocol::deadline::limits;

/// Lines that have been lost since there was room last.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Standard error, for a logger: each write is a line or several.
#[derive(Debug)]
pub struct Output;

impl Write for Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        put(&mut io::stderr(), line, &LOST)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a line, unless nobody makes room for it.
fn put(output: &mut (impl AsFd + Write), line: &[u8], lost: &AtomicU64) -> io::Result<()> {
    // Who has waited in vain does not wait again.
    let before = lost.load(Ordering::Relaxed);
    let wait = match before {
        0 => limits::LAG,
        _ => std::time::Duration::ZERO,
    };
    if !has_room(output, Deadline::after(wait)) {
        lost.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    }
    // In one piece: other processes write there, too.
    match lost.swap(0, Ordering::Relaxed) {
        0 => output.write_all(line),
        lost => {
            let lines = format!("({lost} lines are lost: standard error was full)\n");
            output.write_all(&[lines.as_bytes(), line].concat())
        }
    }
}

/// Whether there is room for a line; a pipe then has a page. An error of another kind
/// shows in the write.
fn has_room(output: &impl AsFd, deadline: Deadline) -> bool {
    let waited = deadline.wait_for(output.as_fd(), PollFlags::POLLOUT);
    !waited.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    #[test]
    fn a_line_that_finds_no_room_is_lost_and_counted() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut writer = File::from(std::os::fd::OwnedFd::from(writer));
        let lost = AtomicU64::new(0);
        let line = [b'x'; 4096];
        let mut written = 0;
        while lost.load(Ordering::Relaxed) == 0 {
            put(&mut writer, &line, &lost).unwrap();
            written += 1;
        }
        put(&mut writer, b"lost, too\n", &lost).unwrap();
        let mut piece = vec![0; 4096 * (written - 1)];
        reader.read_exact(&mut piece).unwrap();
        put(&mut writer, b"there is room\n", &lost).unwrap();
        drop(writer);
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        let expected = "(2 lines are lost: standard error was full)\nthere is room\n";
        assert_eq!(said, expected);
    }
}
