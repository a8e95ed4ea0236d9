//! Signalling an eventfd that others hold too, without ever blocking.
//!
//! Whoever holds an eventfd can fill its counter and make it blocking, and a
//! write(2) would then wait for as long as he likes. The kernel's own signal
//! never waits; what makes the kernel give one is the completion of an
//! asynchronous read (io_submit(2), `IOCB_FLAG_RESFD`).

use std::fs::File;
use std::io;
use std::sync::{Mutex, PoisonError};

use nix::sys::memfd::{MFdFlags, memfd_create};
use vmm_sys_util::eventfd::EventFd;

use super::aio::{Context, Request};

/// Where requests are submitted: one for the process.
struct Signals {
    context: Context,
    /// An empty file, of which nothing is read.
    file: File,
}

static SIGNALS: Mutex<Option<Signals>> = Mutex::new(None);

/// Adds 1 to the counter of `event`.
///
/// # Errors
/// The kernel has no asynchronous I/O, or no memory.
pub(crate) fn signal(event: &EventFd) -> io::Result<()> {
    let mut signals = SIGNALS.lock().unwrap_or_else(PoisonError::into_inner);
    let signals = match &mut *signals {
        Some(signals) => signals,
        none => none.insert(Signals::new()?),
    };
    signals.signal(event)
}

impl Signals {
    fn new() -> io::Result<Self> {
        let file = File::from(memfd_create(c"signal", MFdFlags::MFD_CLOEXEC)?);
        let context = Context::new(1)?;
        Ok(Self { context, file })
    }

    fn signal(&mut self, event: &EventFd) -> io::Result<()> {
        let mut request = Request::read_nothing(&self.file, event)?;
        self.context.submit(&mut request)?;
        self.context.reap().map(drop)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_signal_adds_one_and_never_waits() {
        let event = EventFd::new(0).unwrap();
        signal(&event).unwrap();
        signal(&event).unwrap();
        assert_eq!(event.read().unwrap(), 2);
        // Blocking, and as full as it gets: a write would wait for ever.
        event.write(u64::MAX - 1).unwrap();
        signal(&event).unwrap();
        assert!(event.read().unwrap() >= u64::MAX - 1);
        // However many: what is complete is taken away.
        for _ in 0..1000 {
            signal(&event).unwrap();
        }
        assert_eq!(event.read().unwrap(), 1000);
    }
}
