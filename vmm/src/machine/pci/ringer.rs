//! The thread of `--kick-path worker`: a vCPU's thread only wakes it, and it signals
//! the kick eventfds. Many VMMs have such a task queue; ioeventfd is compared with it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

/// The thread, ended by dropping this.
#[derive(Debug)]
pub(crate) struct Ringer {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

/// What is to be rung: a bit a queue.
#[derive(Debug, Default)]
struct Bell {
    queues: AtomicU64,
    stopping: AtomicBool,
}

impl Ringer {
    /// Starts the thread, which calls `signal` with the index of each queue that
    /// was rung since it did so last.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub(crate) fn new(signal: impl Fn(u16) + Send + 'static) -> io::Result<Self> {
        let bell = Arc::new(Bell::default());
        let bell_too = Arc::clone(&bell);
        let thread = thread::Builder::new()
            .name("ringer".into())
            .spawn(move || bell_too.serve(signal))?;
        Ok(Self {
            bell,
            thread: Some(thread),
        })
    }

    /// Has a queue signalled, 0 to 63; never waits.
    pub(crate) fn ring(&self, queue: u16) {
        let bit = 1u64.checked_shl(queue.into()).unwrap_or(0);
        self.bell.queues.fetch_or(bit, Ordering::AcqRel);
        self.wake();
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Bell {
    fn serve(&self, signal: impl Fn(u16)) {
        while !self.stopping.load(Ordering::Acquire) {
            let mut queues = self.queues.swap(0, Ordering::AcqRel);
            if queues == 0 {
                // Rung meanwhile, it returns at once.
                thread::park();
            }
            while queues != 0 {
                signal(queues.trailing_zeros() as u16);
                queues &= queues - 1;
            }
        }
    }
}

impl Drop for Ringer {
    fn drop(&mut self) {
        self.bell.stopping.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that rings doorbells ended by a panic");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_queue_that_is_rung_is_signalled_after_it() {
        let (sender, signalled) = channel();
        let ringer = Ringer::new(move |queue| sender.send(queue).unwrap()).unwrap();
        for queue in [0, 63, 7, 7] {
            ringer.ring(queue);
            let seen = signalled.recv_timeout(Duration::from_secs(60));
            assert_eq!(seen, Ok(queue));
        }
        ringer.ring(64);
        drop(ringer);
        assert!(signalled.recv().is_err(), "there is no queue 64");
    }
}
