//! The terminal as the guest's console: raw mode, and the way out of it.
//!
//! While a [`RawMode`] lives, every key goes to the guest, but for Ctrl-A x,
//! which ends the VM, and Ctrl-A Ctrl-A (or Ctrl-A a), which sends one Ctrl-A.
//! The terminal is put back when it is dropped and, since a release build does
//! not unwind, by a panic hook.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::termios::{OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};

/// What standard input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// A terminal that is ours to read.
    Terminal,
    /// A terminal that another process group owns: reading would stop us.
    Background,
    /// A file, a pipe, a device.
    Other,
    /// Not asked for.
    None,
}

/// Tells what a descriptor is as an input.
pub(crate) fn input(fd: BorrowedFd<'_>) -> Input {
    match (tcgetattr(fd), tcgetpgrp(fd)) {
        (Err(_), _) => Input::Other,
        (Ok(_), Ok(group)) if group == getpgrp() => Input::Terminal,
        // Not the one that controls us: no job control stops who reads it.
        (Ok(_), Err(Errno::ENOTTY)) => Input::Terminal,
        _ => Input::Background,
    }
}

/// How standard input was before, while it is raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input, a terminal, in raw mode.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Makes standard input raw. Output keeps its line discipline, so that
    /// messages beside the console stay readable.
    ///
    /// # Errors
    /// Those of tcgetattr(3) and tcsetattr(3).
    pub(crate) fn enter() -> nix::Result<Self> {
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        raw.output_flags |= before.output_flags & OutputFlags::all();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
        // Not after what is still to be written: that may be never.
        tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    // A panic may come while the lock is held; then there is nothing to do.
    if let Ok(mut before) = BEFORE.try_lock()
        && let Some(termios) = before.take()
        // A shell that has taken it back has put it back, and who changes it
        // from the background is stopped.
        && input(std::io::stdin().as_fd()) != Input::Background
    {
        let _ = tcsetattr(std::io::stdin().as_fd(), SetArg::TCSANOW, &termios);
    }
}

/// Finds Ctrl-A in what is typed.
///
/// ```text
/// text ──Ctrl-A──▶ escape ──x──▶ quit
///   ▲                 │ a, Ctrl-A: one Ctrl-A; anything else: as typed
///   └─────────────────┘
/// ```
#[derive(Debug, Default)]
pub(crate) struct Keys {
    escape: bool,
}

/// Ctrl-A.
const ESCAPE: u8 = 1;

impl Keys {
    /// Appends to `out` what the guest is to get of `typed`. Returns whether
    /// the VM is to end; what came after that is dropped.
    pub(crate) fn type_in(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in typed {
            match (std::mem::take(&mut self.escape), byte) {
                (false, ESCAPE) => self.escape = true,
                (false, _) => out.push(byte),
                (true, b'x' | b'X') => return true,
                (true, b'a' | ESCAPE) => out.push(ESCAPE),
                (true, _) => out.extend([ESCAPE, byte]),
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut keys, mut out) = (Keys::default(), Vec::new());
        let quit = pieces.iter().any(|piece| keys.type_in(piece, &mut out));
        (out, quit)
    }

    #[test]
    fn a_terminal_that_does_not_control_us_is_ours_to_read() {
        let pty = nix::pty::openpty(None, None).unwrap();
        assert_eq!(input(pty.slave.as_fd()), Input::Terminal);
        let file = tempfile::tempfile().unwrap();
        assert_eq!(input(file.as_fd()), Input::Other);
    }

    #[test]
    fn every_key_but_the_escape_reaches_the_guest() {
        assert_eq!(typed(&[b"ls\r\x03\x1a"]), (b"ls\r\x03\x1a".to_vec(), false));
        assert_eq!(typed(&[b"\x01a\x01\x01"]), (b"\x01\x01".to_vec(), false));
        assert_eq!(typed(&[b"\x01z"]), (b"\x01z".to_vec(), false));
    }

    #[test]
    fn ctrl_a_x_ends_it_even_in_two_pieces() {
        assert_eq!(typed(&[b"ab\x01xc"]), (b"ab".to_vec(), true));
        assert_eq!(typed(&[b"ab\x01", b"x"]), (b"ab".to_vec(), true));
    }
}
