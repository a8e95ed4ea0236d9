//! What may be resumed exactly: whether a back-end can go on where another was lost
//! while its driver used the device, and at which index. Nothing is asked of anybody
//! here.
//!
//! A ring goes on at its used index, and never at the available one, which would lose
//! whatever had been taken and not been returned. What that was tells the inflight
//! region of the back-end that is gone; without one it is known only where requests
//! are returned in the order in which they were taken, or where there are none.

use anyhow::{Result, bail};
use outboard_protocol::devices::{BLK, Kind, NET, NetConfig, RNG};
use outboard_protocol::launch::{Cause, Restored, Whose};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_VQ};

use super::kinds::blk;
use super::kinds::blk::Capacity;
use super::ring;
use crate::machine::frontend::because;
use crate::machine::memory::Ram;
use crate::machine::virtio::Ring;

const CONTROL_QUEUE: u64 = 1 << VIRTIO_NET_F_CTRL_VQ;
const SETS_ADDRESS: u64 = 1 << VIRTIO_NET_F_CTRL_MAC_ADDR;

/// Who is to go on where another was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Successor {
    /// Whose it is.
    pub(crate) whose: Whose,
    /// What it knows of its predecessors.
    pub(crate) restored: Restored,
    /// Which capacity its disk may have.
    pub(crate) capacity: Capacity,
}

/// Checks that a back-end that offers these features and this configuration can serve
/// a driver that has acknowledged `features` and has seen `config`.
///
/// # Errors
/// What it lacks; `NotRecoverable` where no other would do better.
pub(crate) fn fits(
    successor: Successor,
    kind: &Kind,
    (features, config): (u64, &[u8]),
    (offered, offered_config): (u64, &[u8]),
) -> Result<()> {
    if let Some(why) = lost_state(successor, kind, features) {
        bail!(because(Cause::NotRecoverable, why));
    }
    let missing = features & !offered;
    if missing != 0 {
        let text = format!(
            "the back-end does not offer what the driver has acknowledged (features {missing:#x}): \
             use the program that served before"
        );
        bail!(because(Cause::DoesNotFit, text));
    }
    let clash = match kind.virtio_id {
        BLK => blk::clash(features, (config, offered_config), successor.capacity),
        _ => difference(kind, features, config, offered_config),
    };
    match clash {
        Some(text) => bail!(because(Cause::DoesNotFit, text)),
        None => Ok(()),
    }
}

/// What a driver has set in a back-end that is gone, if its successor cannot know it.
fn lost_state(successor: Successor, kind: &Kind, features: u64) -> Option<String> {
    let ours = successor.whose == Whose::Own;
    let kept = match kind.virtio_id {
        RNG => return None,
        // Of one that is not ours the cache is set by us, and what else it knows of a
        // disk it keeps for itself.
        BLK => ours.then_some("whether a sync of the image has failed"),
        NET => (features & CONTROL_QUEUE != 0).then_some("what the guest has set in the card"),
        _ => {
            return Some(format!(
                "a back-end of the kind {} holds state of its own, which is lost with it: the \
                 guest must reset the device",
                kind.name
            ));
        }
    };
    let lost = kept.filter(|_| successor.restored == Restored::Unknown)?;
    Some(format!(
        "{lost} was lost with a back-end that tells nobody (version 1 of the launch contract, or \
         one at a socket): the guest must reset the device"
    ))
}

/// How a configuration differs from what the driver has seen, but for what may change
/// while it looks: a card's link, and its address, which a driver sets by a command that
/// the machine does not see.
fn difference(kind: &Kind, features: u64, seen: &[u8], now: &[u8]) -> Option<String> {
    let sets_address = features & SETS_ADDRESS != 0;
    let may_change = |at: usize| match kind.virtio_id {
        NET => NetConfig::STATUS.contains(&at) || sets_address && NetConfig::MAC.contains(&at),
        _ => false,
    };
    let length = seen.len().max(now.len());
    let at = (0..length).find(|at| seen.get(*at) != now.get(*at) && !may_change(*at))?;
    Some(format!(
        "the back-end's configuration is another than the driver has seen (at byte {at}): use the \
         program, and the settings, that served before"
    ))
}

/// The index at which a ring goes on that was lost with a back-end; `tracked`: the
/// successor is handed the region in which that noted what it had taken.
///
/// # Errors
/// `NotRecoverable`, with the reason.
pub(crate) fn base(kind: &Kind, ring: &Ring, tracked: bool, ram: &Ram) -> Result<u16> {
    let index = ring.index;
    let progress = ring::progress(ring, ram);
    let in_order = matches!(kind.virtio_id, NET | RNG) && progress.is_in_order();
    if tracked || in_order || progress.is_idle() {
        return Ok(progress.used());
    }
    let text = format!(
        "requests of queue {index} were lost with a back-end that kept no record of them (no \
         inflight region): the guest must reset the device"
    );
    bail!(because(Cause::NotRecoverable, text))
}
