//! The region in which a back-end notes what it has taken and not answered
//! (vhost-user, "Inflight I/O tracking"). It belongs to the device, which lends
//! it to each session that starts: whatever becomes of that, the region stays
//! where it was.

use std::os::fd::{AsFd, OwnedFd};

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

/// Gives the back-end the region from before; if there is none, a fresh one of
/// its own making. A back-end that keeps none leaves none to a successor: once it
/// may have begun with a ring, what the region says is not true any more.
/// `queues`, for a fresh one, are how many there are and the size of the largest.
pub(super) fn share(
    link: &mut Link,
    region: &mut Option<Inflight>,
    queues: (u16, u16),
) -> Result<()> {
    if !link.protocol().contains(Protocol::INFLIGHT_SHMFD) {
        *region = None;
        return Ok(());
    }
    let region = match region {
        Some(region) => region,
        none => none.insert(ask(link, queues)?),
    };
    let payload = payload(region.size, region.offset, region.queues);
    let fd = region.fd.as_fd();
    link.command(FrontendReq::SET_INFLIGHT_FD, &payload, &[fd])
}

fn ask(link: &mut Link, queues: (u16, u16)) -> Result<Inflight> {
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
    Ok(Inflight {
        fd,
        size,
        offset,
        queues,
    })
}

/// `VhostUserInflight`, padded as everybody sends it: two numbers of 64 bits, two of 16.
fn payload(size: u64, offset: u64, (count, largest): (u16, u16)) -> Vec<u8> {
    let queues = u64::from(largest) << 16 | u64::from(count);
    [size, offset, queues].map(u64::to_le_bytes).concat()
}
