//! The region in which a back-end notes what it has taken and not answered
//! (vhost-user, "Inflight I/O tracking"). It belongs to the device, which lends
//! it to each session that starts: whatever becomes of that, the region stays
//! where it was.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Result, bail};
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures as Protocol};

use super::link::{Link, spoke};

/// Bytes of the description of a region: 20, and 4 of padding at its end, which
/// QEMU and the `vhost` crate send.
const LEN: usize = 20;
const PADDED: usize = 24;

/// A region. We keep it and pass it on, and never look into it.
#[derive(Debug)]
pub struct Inflight {
    fd: OwnedFd,
    size: u64,
    offset: u64,
    /// For how many queues it was made, and of what size at most.
    queues: (u16, u16),
}

#[cfg(test)]
impl Inflight {
    /// Some region.
    pub(crate) fn some() -> Self {
        Self {
            fd: std::fs::File::open("/dev/null").unwrap().into(),
            size: 1,
            offset: 0,
            queues: (1, 256),
        }
    }
}

impl Inflight {
    /// What SET_INFLIGHT_FD says of it, and the file that comes with that.
    pub(super) fn described(&self) -> (Vec<u8>, [BorrowedFd<'_>; 1]) {
        let payload = payload(self.size, self.offset, self.queues);
        (payload, [self.fd.as_fd()])
    }
}

/// A fresh region of the back-end's own making, if it keeps one. `queues` are how many
/// there are and the size of the largest.
pub(super) fn ask(link: &mut Link, queues: (u16, u16)) -> Result<Option<Inflight>> {
    if !link.protocol().contains(Protocol::INFLIGHT_SHMFD) {
        return Ok(None);
    }
    let request = FrontendReq::GET_INFLIGHT_FD;
    let mut reply = link.query_with_fd(request, &payload(0, 0, queues))?;
    let length = reply.payload.len();
    if !matches!(length, LEN | PADDED) {
        bail!("the back-end answered {request:?} with {length} bytes instead of 20 or 24");
    }
    let fd = reply.one_fd().map_err(|error| spoke(request, &error))?;
    let eight = |at: usize| {
        let bytes = reply.payload.get(at..at + 8);
        bytes.and_then(|eight| eight.try_into().ok())
    };
    let size = eight(0).map_or(0, u64::from_ne_bytes);
    let offset = eight(8).map_or(0, u64::from_ne_bytes);
    if size == 0 || size.checked_add(offset).is_none() {
        bail!("the back-end answered {request:?} with {size} bytes at {offset} of a file");
    }
    Ok(Some(Inflight {
        fd,
        size,
        offset,
        queues,
    }))
}

/// `VhostUserInflight`, padded as everybody sends it: two numbers of 64 bits, two of 16.
fn payload(size: u64, offset: u64, (count, largest): (u16, u16)) -> Vec<u8> {
    let queues = u64::from(largest) << 16 | u64::from(count);
    [size, offset, queues].map(u64::to_le_bytes).concat()
}
