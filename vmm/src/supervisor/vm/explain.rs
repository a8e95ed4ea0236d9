//! Whether a device can be taken over exactly, and why or why not: told before it is
//! needed.

use crate::supervisor::api::model::{Exactness, Explanation};
use crate::supervisor::host::lend::Opened;

/// Of this device.
pub(crate) fn explain(opened: &Opened) -> Explanation {
    let exactness = |why: &str| Exactness {
        exact: false,
        why: why.to_owned(),
    };
    Explanation {
        device: opened.spec.id.clone(),
        recovery: exactness("a back-end that dies ends the VM: outboard does not recover one yet"),
        swap: exactness("outboard cannot swap a back-end yet"),
    }
}
