//! Lending guest memory (SET_MEM_TABLE, ADD_MEM_REG).

use std::os::fd::AsFd;

use anyhow::{Result, bail};
use outboard_protocol::launch::Cause;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserMemory, VhostUserMemoryRegion, VhostUserProtocolFeatures as Protocol,
    VhostUserSingleMemoryRegion,
};
use vm_memory::ByteValued;

use super::cause::because;
use super::link::Link;
use crate::machine::memory::{Ram, Region};

/// Lends all of guest memory, region by region where the back-end counts in
/// slots. What the messages call user addresses are guest-physical ones: a
/// back-end only ever compares them with each other, and it is not told where
/// anything lies in this process.
pub(crate) fn lend(link: &mut Link, ram: &Ram) -> Result<()> {
    if link.protocol().contains(Protocol::CONFIGURE_MEM_SLOTS) {
        lend_slots(link, ram.regions())
    } else {
        lend_table(link, ram.regions())
    }
}

fn lend_slots(link: &mut Link, regions: &[Region]) -> Result<()> {
    let slots = link.query_u64(FrontendReq::GET_MAX_MEM_SLOTS)?;
    if slots < regions.len() as u64 {
        let needed = regions.len();
        let text = format!(
            "the back-end has {slots} memory slots, the guest's memory needs {needed}: use less \
             memory or another back-end"
        );
        bail!(because(Cause::DoesNotFit, text));
    }
    for region in regions {
        let payload = VhostUserSingleMemoryRegion::new(
            region.guest_phys,
            region.size,
            region.guest_phys,
            region.file_offset,
        );
        let fd = region.file.as_fd();
        link.command(FrontendReq::ADD_MEM_REG, payload.as_slice(), &[fd])?;
    }
    Ok(())
}

fn lend_table(link: &mut Link, regions: &[Region]) -> Result<()> {
    let head = VhostUserMemory::new(u32::try_from(regions.len())?);
    let mut payload = head.as_slice().to_vec();
    for region in regions {
        let entry = VhostUserMemoryRegion::new(
            region.guest_phys,
            region.size,
            region.guest_phys,
            region.file_offset,
        );
        payload.extend_from_slice(entry.as_slice());
    }
    let fds: Vec<_> = regions.iter().map(|region| region.file.as_fd()).collect();
    link.command(FrontendReq::SET_MEM_TABLE, &payload, &fds)
}
