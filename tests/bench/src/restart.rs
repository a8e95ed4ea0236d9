//! A queue's reset and restart, asked of outboard-blk by this program as its front-end.
//!
//! ```text
//! GET_VRING_BASE and its answer, ENABLE 0, of each queue
//!     ──► a read of 512 bytes is made available in each
//!     ──► NUM, BASE, ADDR, ERR, CALL, KICK of each ──► ENABLE 1 of each
//!     ──► the used index of each has moved
//! ```
//! From the first message to the last index is one restart. The messages and their
//! order are those of Outboard's own front-end at a reset of the guest's driver.
//! There is no VM; the disk is a file in a tmpfs, whose reads take no time worth
//! the name.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use outboard_contract::client::{Ack, Client};
use outboard_contract::memory::Memory;
use outboard_contract::ring::{Buffer, Ring, drain};
use outboard_contract::soon;
use tempfile::NamedTempFile;
use vhost::vhost_user::message::FrontendReq;
use vm_memory::{Bytes, GuestAddress};

use crate::beside::{self, Table};
use crate::program::Program;
use crate::reads::MEMORY;
use crate::spread::Spread;

/// VIRTIO_F_VERSION_1.
const VERSION_1: u64 = 1 << 32;
const RING_SIZE: u16 = 256;
/// Between two rings, or a ring's and another's request.
const STRIDE: u64 = 8 << 10;
/// Where the requests are.
const REQUESTS: u64 = 1 << 20;
const GUEST_MEMORY: u64 = 2 << 20;
const SECTOR: u32 = 512;
/// What the disk holds, everywhere.
const CONTENT: u8 = 0xa5;
const IMAGE: usize = 1 << 20;
/// Between two restarts: longer than a worker polls, so that each finds every thread
/// of the back-end asleep.
const PAUSE: Duration = Duration::from_millis(1);

/// Beside what, and how often.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    beside: beside::Options,
    /// Restarts of each process; a row's pairs are of fresh processes.
    #[arg(long, default_value_t = 100)]
    restarts: usize,
}

/// Which back-end is restarted, and how.
#[derive(Clone, Copy)]
struct Case {
    engine: &'static str,
    queues: u8,
    /// Whether each message asks for its answer, which is waited for (REPLY_ACK), as
    /// Outboard's front-end does it; else they are sent one behind the other, and all
    /// the time is the back-end's.
    answered: bool,
}

impl Case {
    /// All of them, in the order in which they are shown.
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for answered in [false, true] {
            for engine in ["io_uring", "threads"] {
                all.extend([1, 16].map(|queues| Self {
                    engine,
                    queues,
                    answered,
                }));
            }
        }
        all
    }

    fn name(&self) -> String {
        let plural = if self.queues == 1 { "" } else { "s" };
        let answered = if self.answered { ", answered" } else { "" };
        format!("{}, {} queue{plural}{answered}", self.engine, self.queues)
    }

    /// Starts a process of each program and restarts the queues of one and the other
    /// in turn, so often each. Their medians, in microseconds.
    fn once(&self, [this, other]: [&Path; 2], restarts: usize) -> Result<[f64; 2]> {
        let mut this = Side::start("this build", this, self)?;
        let mut other = Side::start("the other build", other, self)?;
        for at in 0..restarts {
            let order = match at % 2 {
                0 => [&mut this, &mut other],
                _ => [&mut other, &mut this],
            };
            for side in order {
                side.restart(self.answered)?;
            }
        }
        Ok([this, other].map(|side| Spread::new(side.times).quantile(0.5)))
    }
}

/// One of the two that are restarted in turn.
struct Side {
    name: &'static str,
    back_end: BackEnd,
    /// Of its restarts, in microseconds.
    times: Vec<f64>,
}

impl Side {
    fn start(name: &'static str, program: &Path, case: &Case) -> Result<Self> {
        Ok(Self {
            name,
            back_end: BackEnd::start(program, case).context(name)?,
            times: Vec::new(),
        })
    }

    fn restart(&mut self, answered: bool) -> Result<()> {
        std::thread::sleep(PAUSE);
        let time = self.back_end.restart(answered);
        let said = || {
            format!(
                "{}: a restart ({})",
                self.name,
                self.back_end.program.said()
            )
        };
        self.times
            .push(time.with_context(said)?.as_secs_f64() * 1e6);
        Ok(())
    }
}

/// Runs all rows, prints them, and fails when one did not run. `bin` is the
/// directory of this build's programs.
pub fn run(bin: &Path, options: &Options) -> Result<()> {
    let Options { beside, restarts } = options;
    let [this, other] = [bin, &beside.against].map(|bin| bin.join("outboard-blk"));
    for program in [&this, &other] {
        ensure!(program.is_file(), "there is no {}", program.display());
    }
    let restarts = match beside.quick {
        true => 3,
        false => (*restarts).max(1),
    };
    println!("from GET_VRING_BASE to the first completion after the restart, on all queues");
    println!(
        "median (p10–p90) over pairs of processes, of medians of {restarts} restarts; less is better"
    );
    let mut table = Table::new([&this, &other], beside);
    for case in Case::all() {
        table.row_of_both(&case.name(), |[this, other]| {
            let medians = case.once([this, other], restarts)?;
            Ok(medians.map(|median| vec![("µs".into(), median)]))
        });
    }
    table.finish()
}

/// A running back-end whose queues are started. Its socket goes first, as it ends by that.
struct BackEnd {
    client: Client,
    queues: Vec<Queue>,
    memory: Memory,
    program: Program,
    _image: NamedTempFile,
}

/// A queue and its one request.
struct Queue {
    index: u8,
    ring: Ring,
    /// Guest address of the request: header at 0, status at 16, data at 512.
    request: u64,
}

impl BackEnd {
    /// Starts the program by hand and each of its queues, which is to answer a read.
    fn start(program: &Path, case: &Case) -> Result<Self> {
        let image = NamedTempFile::new_in(MEMORY).context("making an image in memory")?;
        std::fs::write(image.path(), vec![CONTENT; IMAGE])?;
        let (ours, theirs) = UnixStream::pair()?;
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let mut command = Command::new(program);
        command
            .arg(format!("--fd={}", theirs.as_fd().as_raw_fd()))
            .arg(format!("--blk-file={}", image.path().display()))
            .arg(format!("--num-queues={}", case.queues))
            .arg(format!("--engine={}", case.engine));
        let program = Program::start(&mut command)?;
        // Else nobody would see that the back-end has closed it.
        drop(theirs);
        let memory = Memory::new(&[(0, GUEST_MEMORY)])?;
        let queues = (0..case.queues).map(|index| Queue::new(&memory, index));
        let mut back_end = Self {
            client: Client::new(ours),
            queues: queues.collect::<Result<_>>()?,
            memory,
            program,
            _image: image,
        };
        let opened = back_end.open();
        opened.with_context(|| format!("the first start ({})", back_end.program.said()))?;
        Ok(back_end)
    }

    fn open(&mut self) -> Result<()> {
        self.client.negotiate(VERSION_1)?;
        ensure!(self.client.acknowledged, "the back-end has no REPLY_ACK");
        self.client.set_mem_table(&self.memory)?;
        let queues = u16::try_from(self.queues.len())?;
        let (described, region) = self.client.get_inflight(queues, RING_SIZE)?;
        let ack = self.client.set_inflight(&described, region.as_fd())?;
        ensure!(ack == Ack::Done, "SET_INFLIGHT_FD: {ack:?}");
        self.serve()?;
        self.check()
    }

    /// One restart; how long it took.
    fn restart(&mut self, answered: bool) -> Result<Duration> {
        for queue in &self.queues {
            queue.poison(&self.memory)?;
        }
        self.client.acknowledged = answered;
        let begin = Instant::now();
        for queue in &self.queues {
            let base = self.client.stop_ring(queue.index)?;
            ensure!(base == queue.ring.next_used, "stopped at {base}");
            self.enable(queue, false)?;
        }
        self.serve()?;
        let time = begin.elapsed();
        self.check()?;
        Ok(time)
    }

    /// Starts all queues, each with a read in it, and waits for those.
    fn serve(&mut self) -> Result<()> {
        for queue in &mut self.queues {
            queue.add()?;
        }
        for queue in &self.queues {
            let Queue { index, ring, .. } = queue;
            self.client.describe_ring(*index, ring, ring.next_used)?;
        }
        for queue in &self.queues {
            self.enable(queue, true)?;
        }
        let deadline = soon();
        for queue in &mut self.queues {
            // It does not sleep, which would cost more than many a restart, but
            // lets the back-end's threads have this processor.
            while queue.ring.take_used()?.is_none() {
                ensure!(!deadline.passed(), "queue {} is silent", queue.index);
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    fn enable(&self, queue: &Queue, on: bool) -> Result<()> {
        let request = FrontendReq::SET_VRING_ENABLE;
        let ack = self
            .client
            .vring_state(request, queue.index.into(), on.into())?;
        ensure!(ack == Ack::Done, "queue {}: {ack:?}", queue.index);
        Ok(())
    }

    /// That all reads were done, and nothing else.
    fn check(&self) -> Result<()> {
        for queue in &self.queues {
            queue.check(&self.memory)?;
        }
        Ok(())
    }
}

impl Queue {
    fn new(memory: &Memory, index: u8) -> Result<Self> {
        let offset = u64::from(index) * STRIDE;
        let queue = Self {
            index,
            ring: Ring::new(memory, offset, RING_SIZE, false)?,
            request: REQUESTS + offset,
        };
        // VIRTIO_BLK_T_IN is 0, and a sector of its own.
        let mut header = [0; 16];
        header[8..].copy_from_slice(&u64::from(index).to_le_bytes());
        memory
            .guest
            .write_slice(&header, GuestAddress(queue.request))?;
        queue.poison(memory)?;
        Ok(queue)
    }

    /// Where there is to be an answer, nothing is that could pass for one.
    fn poison(&self, memory: &Memory) -> Result<()> {
        let junk = [!CONTENT; SECTOR as usize];
        let [status, data] = self.answer();
        memory.guest.write_slice(&junk[..1], status)?;
        memory.guest.write_slice(&junk, data)?;
        Ok(())
    }

    /// Makes the request available. Its kick waits in the descriptor that is lent next.
    fn add(&mut self) -> Result<()> {
        drain(&self.ring.call);
        drain(&self.ring.kick);
        let [status, data] = self.answer();
        self.ring.add(&[
            Buffer::readable(self.request, 16),
            Buffer::writable(data.0, SECTOR),
            Buffer::writable(status.0, 1),
        ])?;
        self.ring.kick()
    }

    fn check(&self, memory: &Memory) -> Result<()> {
        let mut found = [0; SECTOR as usize];
        let [status, data] = self.answer();
        let status: u8 = memory.guest.read_obj(status)?;
        memory.guest.read_slice(&mut found, data)?;
        let index = self.index;
        ensure!(status == 0, "queue {index}: a read has status {status}");
        ensure!(found == [CONTENT; 512], "queue {index}: wrong data");
        Ok(())
    }

    /// Where status and data go.
    fn answer(&self) -> [GuestAddress; 2] {
        [16, 512].map(|at| GuestAddress(self.request + at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test: another one's programs would inherit a socket that is lent here.
    #[test]
    fn every_row_runs_and_a_program_that_does_not_serve_is_told() {
        let program = outboard_contract::ours::path("outboard-blk").unwrap();
        for case in Case::all() {
            match case.once([&program, &program], 2) {
                Ok(times) => assert!(times.iter().all(|time| *time > 0.0), "{times:?}"),
                Err(error) => {
                    let text = format!("{error:#}");
                    assert!(text.contains("cannot use io_uring"), "{text}");
                    eprintln!("SKIP: {}: {text}", case.name());
                }
            }
        }

        let program = Path::new("/bin/false");
        let error = Case::all()[0].once([program, program], 1).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.starts_with("this build: the first start"), "{text}");
    }
}
