//! The threads that end with the run, and their one stop path.
//!
//! Each looks at [`End`] and ends by itself once there is a reason. One that
//! sits in a system call then is kicked out of it by a signal, again and again
//! until all have ended, so no kick can be lost. So are vCPUs that are to come to
//! their gate.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use outboard_protocol::Deadline;
use outboard_protocol::deadline::limits;
use vmm_sys_util::signal::Killable;

use super::ending::End;
use super::kvm::vcpu::{install_kick_handler, kick_signal};

/// Threads that end when the run does.
pub(crate) struct Threads {
    threads: Vec<JoinHandle<()>>,
    running: Arc<Running>,
    end: Arc<End>,
}

/// How many of them have not ended.
#[derive(Default)]
struct Running {
    count: Mutex<usize>,
    fewer: Condvar,
}

/// Stack of a thread in bytes.
const STACK: usize = 256 << 10;
/// A thread that is kicked before it blocks is kicked again after this.
pub(crate) const KICK_AGAIN: Duration = Duration::from_millis(5);

impl Threads {
    /// None yet; those to come end with `end`.
    ///
    /// # Errors
    /// Those of sigaction(2).
    pub(crate) fn new(end: &Arc<End>) -> Result<Self> {
        install_kick_handler()?;
        Ok(Self {
            threads: Vec::new(),
            running: Arc::default(),
            end: Arc::clone(end),
        })
    }

    /// Starts a thread.
    ///
    /// # Errors
    /// The system has no room for another.
    pub(crate) fn start(
        &mut self,
        name: String,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<()> {
        let running = Counted::new(&self.running);
        let context = format!("starting the thread {name}");
        let thread = thread::Builder::new()
            .name(name)
            .stack_size(STACK)
            .spawn(move || {
                let _running = running;
                work();
            });
        self.threads.push(thread.context(context)?);
        Ok(())
    }

    /// Kicks every thread out of the system call that it sits in.
    pub(crate) fn kick(&self) {
        for thread in self.threads.iter().filter(|thread| !thread.is_finished()) {
            // An error here is a thread that has just ended.
            let _ = thread.kill(kick_signal());
        }
    }

    /// Waits for every thread to end.
    ///
    /// # Errors
    /// The run has not ended, or a thread is stuck in the kernel.
    pub(crate) fn stop(self) -> Result<()> {
        if self.end.get().is_none() {
            bail!("threads are to stop before the run has ended");
        }
        let deadline = Deadline::after(limits::STOP);
        loop {
            self.kick();
            if self.running.wait_for_none(KICK_AGAIN) {
                break;
            }
            if deadline.passed() {
                let stuck = self.threads.iter().filter(|thread| !thread.is_finished());
                let names: Vec<_> = stuck.filter_map(|thread| thread.thread().name()).collect();
                bail!(
                    "stuck in the kernel, perhaps in a write to the console: the thread {}",
                    names.join(", ")
                );
            }
        }
        for thread in self.threads {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if thread.join().is_err() {
                bail!("the thread {name} broke");
            }
        }
        Ok(())
    }
}

impl Running {
    /// Whether none runs any more, after waiting for that.
    fn wait_for_none(&self, limit: Duration) -> bool {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .fewer
            .wait_timeout_while(count, limit, |count| *count != 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0 == 0
    }
}

/// One of the running, for as long as it lives.
struct Counted(Arc<Running>);

impl Counted {
    fn new(running: &Arc<Running>) -> Self {
        *running.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Self(Arc::clone(running))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.fewer.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use outboard_protocol::launch::Ending;

    use super::*;

    #[test]
    fn threads_that_block_in_the_kernel_are_kicked_out_of_it() {
        let end = Arc::new(End::new().unwrap());
        let mut threads = Threads::new(&end).unwrap();
        // Nothing is ever written: a read ends by a signal only.
        let (_writer, reader) = std::os::unix::net::UnixStream::pair().unwrap();
        for index in 0..8 {
            let (end, mut reader) = (Arc::clone(&end), reader.try_clone().unwrap());
            let work = move || {
                while end.get().is_none() {
                    let _ = reader.read(&mut [0]);
                }
            };
            threads.start(format!("test{index}"), work).unwrap();
        }
        end.set(Ending::Stopped);
        threads.stop().unwrap();
    }

    #[test]
    fn threads_are_not_stopped_while_the_run_goes_on() {
        let end = Arc::new(End::new().unwrap());
        assert!(Threads::new(&end).unwrap().stop().is_err());
    }
}
