//! All that the VMM knows of what a disk or a card is. Of any other device it
//! knows nothing but the row of its table, and leaves it to back-end and driver.
//!
//! The questions are here, whatever the kind: does a back-end fit, what of it can
//! a driver use, what may a driver write, what is waited for. What there is to be
//! answered of one kind alone is in `blk.rs` and `net.rs`.

use anyhow::Result;
use outboard_protocol::devices::{BLK, Kind, NET, RNG};
use outboard_protocol::launch::{self, Cause};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use crate::machine::frontend::{Agreement, because};
use crate::machine::virtio::F_VERSION_1;

mod apart;
pub mod blk;
mod net;

/// Checks that a back-end can be one for this device, as far as it can be told
/// before its configuration is read.
///
/// # Errors
/// What does not fit, and what to do.
pub fn fits(agreement: &Agreement, spec: &launch::Device) -> Result<()> {
    let misfit = misfit(agreement, spec);
    misfit.map_or(Ok(()), |why| Err(because(Cause::DoesNotFit, why)))
}

fn misfit(agreement: &Agreement, spec: &launch::Device) -> Option<String> {
    if agreement.features & F_VERSION_1 == 0 {
        return Some(format!(
            "the back-end offers no VIRTIO_F_VERSION_1 (features {:#x}): it serves only legacy \
             drivers, use a newer one",
            agreement.features
        ));
    }
    let kind = apart::misfit(spec.kind.virtio_id, agreement.features);
    kind.or_else(|| too_few_queues(agreement, spec))
        .or_else(|| no_config(agreement, spec))
}

fn too_few_queues(agreement: &Agreement, spec: &launch::Device) -> Option<String> {
    // A card's driver is offered what queues there are. What many back-ends
    // count here is pairs: a first pair has every one that has anything.
    let needed = if spec.fewer || spec.kind.virtio_id == NET {
        1
    } else {
        spec.queues
    };
    let (has, wants) = (agreement.max_queues, spec.queues);
    if has >= needed.into() {
        return None;
    }
    if has == 0 {
        return Some("the back-end offers 0 queues: it cannot serve any device".into());
    }
    let s = if has == 1 { "" } else { "s" };
    Some(format!(
        "the back-end offers {has} queue{s}, {wants} were asked: use queues={has}"
    ))
}

/// A disk's size is in its configuration: without that there is no disk.
fn no_config(agreement: &Agreement, spec: &launch::Device) -> Option<String> {
    let needed = spec.kind.virtio_id == BLK;
    let missing = needed && !agreement.protocol.contains(Protocol::CONFIG);
    missing.then(|| {
        format!(
            "the back-end does not serve the configuration of a {} device \
             (VHOST_USER_PROTOCOL_F_CONFIG): it serves another kind of device, or is too old",
            spec.kind.name
        )
    })
}

/// How many queues of the device a back-end serves. A first pair has every card,
/// whatever it counts.
pub(crate) fn served(agreement: &Agreement, spec: &launch::Device) -> u16 {
    let has = u16::try_from(agreement.max_queues).unwrap_or(u16::MAX);
    let first = match spec.kind.virtio_id {
        NET => 2,
        _ => 1,
    };
    spec.queues.min(has.max(first))
}

/// The features of a back-end that its driver is offered. `config` is the
/// back-end's configuration space.
///
/// # Errors
/// The back-end does not fit after all.
pub(crate) fn usable(agreement: &Agreement, config: &[u8], spec: &launch::Device) -> Result<u64> {
    match spec.kind.virtio_id {
        NET => net::usable(agreement, config, spec),
        BLK => Ok(blk::usable(agreement.features, config)),
        _ => Ok(agreement.features),
    }
}

/// Makes a configuration agree with the number of queues that the driver can
/// reach, which may be fewer than the back-end has or than it says there.
pub(crate) fn limit_queues(config: &mut [u8], spec: &launch::Device, served: u16) {
    if spec.kind.virtio_id == BLK {
        blk::limit_queues(config, served);
    }
}

/// Whether a driver with these features may write that to the configuration. A
/// back-end may end its session over a write to anything else (libvhost-user
/// does), so a guest could end its VM by one: it is not passed on. Of a card
/// (virtio 1.3, section 5.1.4) or a source of entropy (5.4.4) nothing may be
/// written; of other kinds nothing is known.
pub(crate) fn may_write(kind: &Kind, features: u64, offset: u32, data: &[u8]) -> bool {
    match kind.virtio_id {
        BLK => blk::may_write(features, offset, data),
        NET | RNG => false,
        _ => true,
    }
}

/// The byte that a driver sees of a disk's cache and may go by, if it is offered to be
/// set: 0 for off, 1 for on.
pub(crate) fn shown_cache(kind: &Kind, offered: u64, config: &[u8]) -> Option<u8> {
    match kind.virtio_id {
        BLK => blk::shown_cache(offered, config),
        _ => None,
    }
}

/// Whether a back-end of this kind may hold what the guest has lent it until
/// something comes, as a card does that receives. It is not waited for as what
/// needs I/O is.
pub(crate) fn may_hold(kind: &Kind) -> bool {
    kind.virtio_id == NET
}

/// Whether what a back-end of this kind has taken must be over before the guest
/// goes on: a disk would write into memory that is used for other things by then.
pub(crate) fn must_finish(kind: &Kind) -> bool {
    kind.virtio_id == BLK
}

#[cfg(test)]
mod tests;
