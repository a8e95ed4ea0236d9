//! A tap behind a card: its queues, what must be set each time it is taken over,
//! since whoever had it before may have set it otherwise, and that this is taken
//! back in the end.
//!
//! ```text
//! inherit() ──────────────────────────────► set up ⟲ take_over()
//! wait(): another process has it, and ──────► take_over()
//!         nothing of it is changed
//! ```

#[allow(unsafe_code)]
mod ioctl;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use outboard_protocol::tap;

use crate::filter::TapFilter;
use crate::header::{HEADER, OFFLOAD_CSUM, OFFLOAD_USO};
use crate::kernel;

/// The Linux from which on UDP that is still to be cut up passes a tap.
const WITH_USO: (u32, u32) = (6, 2);

/// A tap, one descriptor for each of its queues.
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<OwnedFd>,
    /// Whether the kernel knows UDP segmentation (Linux 6.2).
    uso: bool,
    /// Whether the end of this process is the end of its use.
    last: bool,
}

impl Tap {
    /// Takes over queues that were opened by another process; `last`: what is
    /// set of the tap is to be taken back in the end, since nobody else will.
    ///
    /// # Errors
    /// When one is no queue of a tap, or was opened otherwise than it must be,
    /// or they are of different taps.
    pub fn inherit(queues: Vec<OwnedFd>, last: bool) -> anyhow::Result<Self> {
        let mut tap = Self::identify(queues, last)?;
        let probe = OFFLOAD_CSUM | OFFLOAD_USO;
        tap.uso = ioctl::set_offloads(tap.first()?, probe).is_ok();
        // Which frames come is left as it is until a session begins: they may be for
        // a driver that is there already, and a queue that is detached loses what
        // waits in it.
        tap.set_up(0)
            .with_context(|| format!("tap {}: cannot set it up", tap.name))?;
        Ok(tap)
    }

    /// Queues that another process serves until [`Self::take_over`]: nothing of them is
    /// changed. What that one leaves is not taken back in the end.
    ///
    /// Whether the kernel cuts UDP up can only be tried, which would change what the
    /// other has set, so it is told by the kernel's version. One older than that which
    /// has it all the same is thought not to have it: such a card offers less than the
    /// one before it, and is refused by a front-end whose driver uses it.
    ///
    /// # Errors
    /// Those of [`Self::inherit`].
    pub fn wait(queues: Vec<OwnedFd>) -> anyhow::Result<Self> {
        let mut tap = Self::identify(queues, false)?;
        tap.uso = kernel::is_at_least(WITH_USO);
        Ok(tap)
    }

    fn identify(queues: Vec<OwnedFd>, last: bool) -> anyhow::Result<Self> {
        let mut names = Vec::new();
        for queue in &queues {
            names.push(tap::identify(queue.as_fd()).map_err(|why| anyhow!(why))?);
        }
        let name = names.first().context("no tap is given")?.clone();
        if let Some(other) = names.iter().find(|other| **other != name) {
            bail!("the descriptors are of different taps, {name} and {other}; give those of one");
        }
        Ok(Self {
            name,
            queues,
            uso: false,
            last,
        })
    }

    /// Whether its descriptors are still of a tap.
    pub fn is_there(&self) -> bool {
        self.first().is_ok_and(|fd| tap::identify(fd).is_ok())
    }

    /// Its name, as it was when it was opened.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of queue pairs.
    pub fn pairs(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    /// Whether the kernel cuts UDP up.
    pub fn has_uso(&self) -> bool {
        self.uso
    }

    /// The descriptor of a pair.
    pub fn queue(&self, pair: u16) -> Option<BorrowedFd<'_>> {
        self.queues.get(usize::from(pair)).map(AsFd::as_fd)
    }

    fn first(&self) -> nix::Result<BorrowedFd<'_>> {
        self.queue(0).ok_or(Errno::EBADF)
    }

    /// Sets everything as it is to be for a driver, whatever it was: header,
    /// offloads, filter, the first `pairs` pairs attached.
    ///
    /// # Errors
    /// Those of the ioctls, such as EBADFD when the tap is gone.
    pub fn take_over(&self, offloads: u32, filter: &TapFilter, pairs: u16) -> nix::Result<()> {
        self.set_up(offloads)?;
        self.set_filter(filter)?;
        self.set_pairs(pairs)
    }

    /// Sets how frames look, and not which there are.
    fn set_up(&self, offloads: u32) -> nix::Result<()> {
        for queue in &self.queues {
            let flags = OFlag::from_bits_retain(fcntl(queue, FcntlArg::F_GETFL)?);
            if !flags.contains(OFlag::O_NONBLOCK) {
                fcntl(queue, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            }
        }
        ioctl::set_header(self.first()?, HEADER)?;
        self.set_offloads(offloads)
    }

    /// Tells it what is taken (`OFFLOAD_*`).
    ///
    /// # Errors
    /// EINVAL for what this kernel does not know; EBADFD when the tap is gone.
    pub fn set_offloads(&self, offloads: u32) -> nix::Result<()> {
        ioctl::set_offloads(self.first()?, offloads)
    }

    /// Lets only these frames through.
    ///
    /// # Errors
    /// Those of the ioctl: EBADFD when the tap is gone.
    pub fn set_filter(&self, filter: &TapFilter) -> nix::Result<()> {
        ioctl::set_filter(self.first()?, &filter.addresses, filter.multicast)
    }

    /// Attaches the first `pairs` queues and detaches the others.
    ///
    /// # Errors
    /// Those of the ioctl.
    pub fn set_pairs(&self, pairs: u16) -> nix::Result<()> {
        if self.queues.len() > 1 {
            for (index, queue) in self.queues.iter().enumerate() {
                ioctl::attach(queue.as_fd(), index < usize::from(pairs))?;
            }
        }
        Ok(())
    }

    /// Attaches one queue, or detaches it.
    ///
    /// # Errors
    /// Those of the ioctl.
    pub fn attach(&self, pair: u16, attached: bool) -> nix::Result<()> {
        match self.queue(pair) {
            Some(queue) if self.queues.len() > 1 => ioctl::attach(queue, attached),
            _ => Ok(()),
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // Of one that was deleted there is nothing to be taken back.
        if self.last
            && let Err(errno) = tap::make_as_new(&self.queues)
            && errno != Errno::EBADFD
        {
            log::warn!(
                "tap {}: its filter and offloads are left as they are: {errno}",
                self.name
            );
        }
    }
}

/// Whether a read or a write failed because the tap is gone, rather than for
/// the frame.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EBADFD | libc::EBADF | libc::ENODEV | libc::ENXIO)
    )
}
