//! A virtio entropy device on Outboard's runtime: all that a back-end has to
//! say for itself.

use std::fs::File;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use outboard_runtime::program::{self, Args, Capabilities};
use outboard_runtime::{Chain, Change, Device, Memory, Outcome, Queue};
use vm_memory::Bytes;

/// Serve /dev/urandom as a virtio entropy device over vhost-user
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    program: Args,
}

/// What the device is.
struct Entropy {
    source: File,
}

impl Device for Entropy {
    type Queue = EntropyQueue;

    fn virtio_id(&self) -> u16 {
        4
    }
    fn features(&self) -> u64 {
        0
    }
    fn queues(&self) -> u16 {
        1
    }
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }
    fn write_config(&self, _offset: u32, _data: &[u8]) -> io::Result<Change> {
        Err(io::ErrorKind::InvalidInput.into())
    }
    fn reset(&self, _features: u64) {}
    fn queue(&self, _index: u16) -> io::Result<EntropyQueue> {
        let source = self.source.try_clone()?;
        let memory = Arc::default();
        Ok(EntropyQueue { source, memory })
    }
}

/// What serves its queue, on a thread of its own.
struct EntropyQueue {
    source: File,
    memory: Arc<Memory>,
}

impl Queue for EntropyQueue {
    fn map(&mut self, memory: Arc<Memory>) {
        self.memory = memory;
    }
    fn take(&mut self, chain: &Chain) -> Outcome {
        let memory = &self.memory;
        let mut written = 0;
        for buffer in &chain.writable {
            // An answer may be shorter than what was asked for (virtio 1.3,
            // section 5.4.6). What is no memory is the guest's mistake: it gets
            // what it got so far.
            let length = buffer.length.min(64 << 10);
            let source = &mut self.source;
            let read = memory.read_exact_volatile_from(buffer.address, source, length as usize);
            if read.is_err() {
                break;
            }
            written += length;
            if length < buffer.length {
                break;
            }
        }
        Outcome::Done(written)
    }
}

pub(crate) fn main() -> ExitCode {
    let capabilities = Capabilities {
        kind: "rng",
        features: &[],
    };
    program::run(&Cli::parse().program, capabilities, || {
        let source = File::open("/dev/urandom").context("cannot open /dev/urandom")?;
        Ok(Entropy { source })
    })
}
