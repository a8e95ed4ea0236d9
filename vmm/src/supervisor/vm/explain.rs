//! Whether a device can be taken over exactly, and why or why not: told before it is
//! needed. The machine decides when it is (`machine/device/resume.rs`), by the rings as
//! they are then; this is what is known of the device at any time.

use outboard_protocol::devices::{BLK, NET, RNG};
use outboard_protocol::launch::Whose;
use virtio_bindings::virtio_net::VIRTIO_NET_F_CTRL_VQ;

use crate::supervisor::api::model::{Exactness, Explanation};
use crate::supervisor::device::plan::OnFailure;
use crate::supervisor::host::lend::Opened;
use crate::supervisor::vm::answer::Agreed;

/// Of this device; `is_known`: what a successor of its back-end must be told of what the
/// guest has set.
pub(crate) fn explain(opened: &Opened, is_known: bool, agreed: Agreed) -> Explanation {
    let (exact, why) = recovery(opened, is_known, agreed);
    let why = match exact && opened.standby {
        true => format!("{why}; a second process waits to take over (standby=1)"),
        false => why,
    };
    let why = match opened.on_failure {
        OnFailure::Restart => why,
        OnFailure::Pause => format!("{why}; on-failure=pause pauses the VM until it is resumed"),
        OnFailure::Shutdown => format!("{why}; but on-failure=shutdown ends the VM instead"),
    };
    let recovery = Exactness { exact, why };
    let (exact, why) = swap(opened, is_known, agreed);
    Explanation {
        device: opened.spec.id.clone(),
        recovery,
        swap: Exactness { exact, why },
    }
}

/// Whether another can take its place while it works.
fn swap(opened: &Opened, is_known: bool, agreed: Agreed) -> (bool, String) {
    let (kind, name) = (&opened.spec.kind, opened.server.name());
    let ours = opened.whose == Whose::Own;
    match kind.virtio_id {
        BLK => {
            let text = "finishes what it has taken before another begins; one of another program \
                        must have the limits that the guest has read (profile=portable: \
                        qemu-storage-daemon has)";
            (true, format!("{name} {text}"))
        }
        RNG => (true, "an entropy device holds nothing".into()),
        NET if ours && is_known => {
            let text = "returns what it has taken, and what the guest has set in the card is told \
                        to a successor of Outboard's";
            (true, format!("{name} {text}"))
        }
        NET if agreed.features.is_some_and(sets_by_commands) => {
            let text = "does not tell what the guest has set in the card by commands, and a \
                        successor would not know it";
            (false, format!("{name} {text}"))
        }
        NET => {
            let text =
                "returns what it has taken, and the guest sets nothing in the card by commands";
            (true, format!("{name} {text}"))
        }
        _ => {
            let text = "holds state of its own, which a successor would not have";
            (
                false,
                format!("a back-end of the kind {} {text}", kind.name),
            )
        }
    }
}

/// Whether a driver that has acknowledged these features sets up a card by commands
/// that the machine does not see.
fn sets_by_commands(features: u64) -> bool {
    features & 1 << VIRTIO_NET_F_CTRL_VQ != 0
}

fn recovery(opened: &Opened, is_known: bool, agreed: Agreed) -> (bool, String) {
    let (kind, name) = (&opened.spec.kind, opened.server.name());
    let ours = opened.whose == Whose::Own;
    match kind.virtio_id {
        BLK | NET if ours && !is_known => {
            let text = "does not tell what the guest has set in the device (it may keep version 1 \
                        of the launch contract), so that is lost with it, and the guest must \
                        reset the device";
            (false, format!("{name} {text}"))
        }
        BLK if ours => {
            let text = "notes every request before it begins, so another finds what was under way; a \
                        request that one after another dies of is found out, and ended in an I/O \
                        error";
            (true, format!("{name} {text}"))
        }
        NET if ours => {
            let text = "returns buffers in order, and what the guest has set in the card is kept";
            (true, format!("{name} {text}"))
        }
        RNG => {
            let text = "an entropy device holds nothing, and its buffers are returned in order";
            (true, text.into())
        }
        NET if agreed.features.is_some_and(sets_by_commands) => {
            let text = "is not Outboard's, and what the guest has set in the card by commands is \
                        lost with it: the guest must reset the device";
            (false, format!("{name} {text}"))
        }
        BLK | NET if agreed.tracked => {
            let text = "keeps a record of what is under way (an inflight region), where another \
                        finds it";
            (true, format!("{name} {text}"))
        }
        BLK | NET => {
            let text = "keeps no record of what is under way (no inflight region): another goes \
                        on only if nothing is, or all was returned in order; otherwise the \
                        device is down until the guest resets it";
            (false, format!("{name} {text}"))
        }
        _ => {
            let text = "holds state of its own, which is lost with it: the guest must reset the \
                        device";
            (
                false,
                format!("a back-end of the kind {} {text}", kind.name),
            )
        }
    }
}
