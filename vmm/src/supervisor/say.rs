//! What the user hears: what the supervisor has to say itself ([`say()`]), and
//! what the processes of a VM are to log, and as whom, which is decided once and
//! told to each by its environment (PROTOCOL.md, section 1).

use outboard_log::Level;
use outboard_log::level::{FILTERS_ENV, filters};
use outboard_log::line::Speaker;
use outboard_protocol::launch::LABEL_ENV;

pub use outboard_log::say;

/// What everything that `outboard run` starts says if nobody asks for more or
/// less.
pub const USUAL: Level = Level::Warn;

/// How the processes of one VM speak.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Logging {
    /// The name of the VM, if it has one.
    pub(crate) name: Option<String>,
    /// What was asked for by option or file, which beats `RUST_LOG`.
    pub(crate) level: Option<Level>,
}

impl Logging {
    /// From now on this process, the supervisor, speaks so.
    pub(crate) fn start(&self) {
        let speaker = Speaker::new("outboard", self.name.as_deref());
        outboard_log::start(speaker, &filters(self.level, USUAL));
    }

    /// What a child has in its environment: the machine, or the back-end of
    /// `device`.
    pub(crate) fn environment(&self, device: Option<&str>) -> Vec<(&'static str, String)> {
        let names: Vec<_> = self.name.as_deref().into_iter().chain(device).collect();
        // Said even if it is empty: ours may have one of another VM.
        let mut environment = vec![(LABEL_ENV, names.join("/"))];
        let own = std::env::var(FILTERS_ENV).is_ok_and(|filters| !filters.trim().is_empty());
        if self.level.is_some() || !own {
            let filters = self.level.unwrap_or(USUAL).filters();
            environment.push((FILTERS_ENV, filters));
        }
        environment
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_told_its_vm_and_its_device_as_far_as_they_have_names() {
        for (name, device, label) in [
            (Some("web"), Some("disk0"), "web/disk0"),
            (Some("web"), None, "web"),
            (None, Some("disk0"), "disk0"),
            (None, None, ""),
        ] {
            let logging = Logging {
                name: name.map(str::to_owned),
                level: Some(Level::Debug),
            };
            let told = logging.environment(device);
            let expected = [
                (LABEL_ENV, label.to_owned()),
                (FILTERS_ENV, "virtio_queue=off,debug".to_owned()),
            ];
            assert_eq!(told, expected);
        }
    }
}
