//! Devices of any other kind: `--device`, whose back-ends somebody else runs.

use std::path::PathBuf;

use outboard_protocol::devices::Kind;
use outboard_protocol::launch;
use serde::Deserialize;

use super::plan::{self, DeviceOption, OnFailure, Plan, ServedBy, within};
use crate::supervisor::text::units::{HangTimeout, Wait};

/// Longest configuration space that a vhost-user message carries, in bytes.
const MAX_CONFIG_SIZE: u64 = 4080;

/// `--device`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct OtherSettings {
    /// The virtio device id.
    pub(crate) virtio_id: Option<u64>,
    /// The socket at which the back-end listens.
    pub(crate) socket: Option<PathBuf>,
    /// How long to wait for the socket.
    pub(crate) wait: Option<Wait>,
    /// Number of queues.
    pub(crate) queues: Option<u64>,
    /// Largest queue size.
    pub(crate) queue_size: Option<u64>,
    /// Length of the configuration space in bytes.
    pub(crate) config_size: Option<u64>,
    /// How long a ring may stand still before the back-end is suspected to hang.
    pub(crate) hang_timeout: Option<HangTimeout>,
    /// What becomes of the VM when its back-end fails.
    pub(crate) on_failure: OnFailure,
    /// The name of the device.
    pub(crate) id: Option<String>,
}

impl DeviceOption for OtherSettings {
    const OPTION: &'static str = "device";

    const HELP: &'static str = "\
Add any other vhost-user device (may be given several times)

`virtio-id=N,socket=PATH,queues=N,config-size=N`: a device with that virtio device id and that many \
bytes of configuration, whose back-end listens at PATH. It also takes `queue-size=N` (default: 256), \
`id=NAME` (default: device0, device1, …), `hang-timeout=TIME|off` (default: 5s; a back-end that \
consumes no kick for so long is spoken of), `wait=10s|forever` (default: 2s) and \
`on-failure=restart|pause|shutdown`, as a disk does.";

    fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    fn plan(self, id: String, _cpus: u64) -> Result<Plan, String> {
        let needed = |key: &str, value: Option<u64>| {
            value.ok_or_else(|| format!("`{key}` is missing: add `{key}=N`"))
        };
        let virtio_id = needed("virtio-id", self.virtio_id)?;
        let config_size = needed("config-size", self.config_size)?;
        let queues = needed("queues", self.queues)?;
        let path = self
            .socket
            .ok_or("`socket` is missing: add `socket=PATH` of a back-end that listens")?;
        let virtio_id = within("virtio-id", virtio_id, 1, 63)? as u16;
        let config_size = within("config-size", config_size, 0, MAX_CONFIG_SIZE)? as u32;
        Ok(Plan {
            option: Self::OPTION,
            spec: launch::Device {
                id,
                kind: Kind::unnamed(virtio_id, config_size),
                queues: plan::queues(queues)?,
                fewer: false,
                queue_size: plan::queue_size(self.queue_size)?,
                hang_timeout: self.hang_timeout.unwrap_or_default().millis(),
            },
            served_by: ServedBy::socket(path, self.wait, &[])?,
            on_failure: self.on_failure,
            standby: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::text::options;

    fn planned(text: &str) -> Result<Plan, String> {
        let device: OtherSettings = options::read(text).unwrap();
        device.plan("device0".into(), 1)
    }

    #[test]
    fn a_device_must_say_what_it_is() {
        for (text, words) in [
            ("socket=a,queues=1,config-size=0", "add `virtio-id=N`"),
            ("virtio-id=4,queues=1,config-size=0", "add `socket=PATH`"),
            ("virtio-id=4,socket=a,config-size=0", "add `queues=N`"),
            ("virtio-id=4,socket=a,queues=1", "add `config-size=N`"),
            (
                "virtio-id=64,socket=a,queues=1,config-size=0",
                "virtio-id 64: give 1 to 63",
            ),
            (
                "virtio-id=4,socket=a,queues=1,config-size=5000",
                "give 0 to 4080",
            ),
        ] {
            let error = planned(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        let plan = planned("virtio-id=4,socket=a,queues=1,config-size=0").unwrap();
        assert_eq!(plan.spec.kind.name, "virtio-4");
    }
}
