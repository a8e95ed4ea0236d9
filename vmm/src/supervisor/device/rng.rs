//! Entropy devices: `--rng`, from its text to what outboard-rng is told.

use std::path::PathBuf;

use outboard_protocol::devices::Kind;
use outboard_protocol::launch;
use serde::Deserialize;

use super::plan::{self, Args, DeviceOption, Executable, Lend, OnFailure, Plan, ServedBy, within};
use crate::supervisor::text::options;
use crate::supervisor::text::units::{HangTimeout, Wait};

/// The back-end that serves an entropy device if no other is named.
pub(super) const OWN: Executable = Executable::Own {
    name: "outboard-rng",
    threads: false,
};

/// `--rng`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct RngSettings {
    /// The socket at which a back-end listens.
    pub(crate) socket: Option<PathBuf>,
    /// The program to start instead of outboard-rng.
    pub(crate) backend: Option<PathBuf>,
    /// How long to wait for the socket.
    pub(crate) wait: Option<Wait>,
    /// Most bytes that the guest gets in a period; the back-end's default if not said.
    pub(crate) max_bytes: Option<u64>,
    /// The length of a period in milliseconds; the back-end's default if not said.
    pub(crate) period: Option<u64>,
    /// How long a ring may stand still before the back-end is suspected to hang.
    pub(crate) hang_timeout: Option<HangTimeout>,
    /// What becomes of the VM when its back-end fails.
    pub(crate) on_failure: OnFailure,
    /// Whether a second process waits beside the one that serves: 0 or 1.
    pub(crate) standby: Option<u64>,
    /// The name of the device.
    pub(crate) id: Option<String>,
}

/// Reads the value of `--rng`, which may be empty.
///
/// # Errors
/// A message that names the key and what would be right.
pub(crate) fn read(text: &str) -> Result<RngSettings, String> {
    if text.is_empty() {
        return Ok(RngSettings::default());
    }
    options::read(text)
}

impl DeviceOption for RngSettings {
    const OPTION: &'static str = "rng";

    const HELP: &'static str = "\
Add an entropy device (may be given several times)

Without a value it starts outboard-rng. `max-bytes=N` and `period=MS` bound what the guest gets in a \
period (default: 1048576 bytes in 1000 ms). `backend=EXE` starts another program instead, by the \
same launch contract. `socket=PATH[,wait=10s|forever]` connects to a vhost-user-rng back-end that listens there.

All take `hang-timeout=TIME|off` (default: 5s; a back-end that consumes no kick for so long hangs), \
`id=NAME` (default: rng0, rng1, …), and `on-failure=restart|pause|shutdown` and `standby=0|1`, as a \
disk does.";

    fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    fn plan(mut self, id: String, _cpus: u64) -> Result<Plan, String> {
        let spec = launch::Device {
            id,
            kind: Kind::rng(),
            queues: 1,
            fewer: true,
            queue_size: plan::queue_size(None)?,
            hang_timeout: self.hang_timeout.unwrap_or_default().millis(),
        };
        let on_failure = self.on_failure;
        let standby = plan::standby(self.standby)?;
        let served_by = match self.socket.take() {
            Some(path) => ServedBy::socket(path, self.wait, &self.decides())?,
            None => self.program()?,
        };
        Ok(Plan {
            option: Self::OPTION,
            spec,
            served_by,
            on_failure,
            standby,
        })
    }
}

impl RngSettings {
    /// What a back-end that somebody else runs decides, and whether it was given.
    fn decides(&self) -> [(&'static str, bool); 4] {
        [
            ("backend", self.backend.is_some()),
            ("max-bytes", self.max_bytes.is_some()),
            ("period", self.period.is_some()),
            ("standby", self.standby.is_some()),
        ]
    }

    /// The program that is started for the device.
    fn program(self) -> Result<ServedBy, String> {
        plan::nothing_to_wait_for(self.wait)?;
        if let Some(bytes) = self.max_bytes {
            within("max-bytes", bytes, 1, i64::MAX as u64)?;
        }
        if let Some(period) = self.period {
            within("period", period, 1, u32::MAX.into())?;
        }
        let args = Args::with_socket()
            .value("max-bytes", self.max_bytes)
            .value("period", self.period);
        Ok(ServedBy::Program {
            executable: self.backend.map_or(OWN, Executable::named),
            lend: Lend::Nothing,
            args: args.all(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(text: &str) -> Result<Plan, String> {
        read(text).unwrap().plan("rng0".into(), 1)
    }

    #[test]
    fn devices_that_contradict_themselves_are_refused() {
        for (text, words) in [
            ("socket=s,backend=b", "`backend` and `socket` exclude"),
            ("socket=s,max-bytes=1", "`max-bytes` and `socket` exclude"),
            ("socket=s,period=1", "`period` and `socket` exclude"),
            ("wait=1s", "`wait` is for a `socket=PATH`"),
            ("max-bytes=0", "max-bytes 0: give 1 to"),
            ("period=0", "period 0: give 1 to 4294967295"),
            ("period=4294967296", "give 1 to 4294967295"),
        ] {
            let error = planned(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert!(read("speed=9").unwrap_err().contains("unknown key"));
        assert!(read(",").unwrap_err().contains("unknown key ``"));
    }

    #[test]
    fn a_back_end_is_told_what_was_asked_for_and_no_more() {
        for (text, told) in [
            ("", &["--fd=3"][..]),
            ("backend=b", &["--fd=3"]),
            (
                "max-bytes=5,period=7",
                &["--fd=3", "--max-bytes=5", "--period=7"],
            ),
        ] {
            let plan = planned(text).unwrap();
            assert_eq!((plan.spec.kind.virtio_id, plan.spec.queues), (4, 1));
            let ServedBy::Program { args, .. } = plan.served_by else {
                panic!("a program serves it");
            };
            assert_eq!(args, told);
        }
    }
}
