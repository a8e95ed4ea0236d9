//! One VM, consistent: every number in its range, every name unique, every
//! default filled in. Nothing has been opened yet.

pub(crate) mod claims;

use std::collections::BTreeSet;
use std::path::PathBuf;

use outboard_log::Level;
use outboard_protocol::launch;

use super::device;
use super::device::blk::DiskSettings;
use super::device::plan::{OnFailure, Plan, ServedBy, within};
use super::say::Logging;
use super::text::settings::{Console, OnReset, Settings};
use super::text::units::Size;

/// Most vCPUs.
const MAX_CPUS: u64 = 32;
/// Least guest memory.
const MIN_MEMORY: Size = Size(16 << 20);
/// Guest memory is a multiple of this.
const MEMORY_STEP: u64 = 2 << 20;
/// Most devices: the slots of bus 0 beside the host bridge.
const MAX_DEVICES: usize = 31;
/// Longest kernel command line: Linux takes 2048 bytes with the final zero.
const MAX_CMDLINE: usize = 2047;

/// One VM, as it is to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmPlan {
    /// How the processes of the VM speak.
    pub(crate) logging: Logging,
    /// The socket of the control API, if there is to be one.
    pub(crate) api: Option<PathBuf>,
    /// The kernel image.
    pub(crate) kernel: PathBuf,
    /// The initial RAM disk.
    pub(crate) initrd: Option<PathBuf>,
    /// The serial console.
    pub(crate) console: Console,
    /// What a guest's reset does.
    pub(crate) on_reset: OnReset,
    /// What the machine is to be.
    pub(crate) machine: launch::Machine,
    /// Its devices, in slot order.
    pub(crate) devices: Vec<Plan>,
}

impl VmPlan {
    /// Makes one consistent VM of the settings.
    ///
    /// # Errors
    /// A message that names the setting and says what would be right.
    pub(crate) fn new(mut settings: Settings) -> Result<Self, String> {
        let logging = logging(settings.name.take(), settings.log_level)?;
        let cpus = within("--cpus", settings.cpus.unwrap_or(1), 1, MAX_CPUS)?;
        let memory = memory(settings.memory.unwrap_or(Size(512 << 20)))?;
        let cmdline = settings
            .cmdline
            .take()
            .unwrap_or_else(|| "console=ttyS0".into());
        if cmdline.len() > MAX_CMDLINE || cmdline.contains('\0') {
            return Err(format!(
                "--cmdline: {} bytes; at most {MAX_CMDLINE}, without zero bytes",
                cmdline.len()
            ));
        }
        let Some(kernel) = settings.kernel.take() else {
            return Err("no kernel is given: add `--kernel FILE`".into());
        };
        let holds = settings.disk.iter().any(DiskSettings::holds_what_fails);
        let devices = device::plans(&mut settings, cpus)?;
        let pauses = |plan: &Plan| plan.on_failure == OnFailure::Pause;
        let key = match holds {
            true => Some("on-io-error=pause"),
            false => devices.iter().any(pauses).then_some("on-failure=pause"),
        };
        if let (None, Some(key)) = (&settings.api, key) {
            let text = "pauses the VM, and nothing could resume it: add `--api PATH`";
            return Err(format!("`{key}` {text}"));
        }
        let kick_path = settings.kick_path.unwrap_or_default();
        check(&devices, kick_path)?;
        Ok(Self {
            logging,
            api: settings.api,
            initrd: settings.initrd,
            console: settings.console.unwrap_or_default(),
            on_reset: settings.on_reset.unwrap_or_default(),
            machine: launch::Machine {
                cpus: cpus as u8,
                memory: memory.0,
                hugepages: settings.hugepages,
                prefault: settings.prefault,
                doorbell: settings.doorbell.unwrap_or_default(),
                kick_path,
                kernel: kernel.display().to_string(),
                cmdline,
            },
            devices,
            kernel,
        })
    }
}

fn logging(name: Option<String>, level: Option<Level>) -> Result<Logging, String> {
    match name.as_deref().filter(|name| !is_name(name)) {
        Some(wrong) => Err(format!("--name {wrong}: {NAME_RULE}")),
        None => Ok(Logging { name, level }),
    }
}

fn memory(size: Size) -> Result<Size, String> {
    if size < MIN_MEMORY || !size.0.is_multiple_of(MEMORY_STEP) {
        return Err(format!(
            "--memory {size}: give a multiple of 2M, {MIN_MEMORY} at least"
        ));
    }
    Ok(size)
}

const NAME_RULE: &str = "give 1 to 64 letters, digits, `-`, `_` or `.`";

/// Whether it can be a VM's or a device's.
fn is_name(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(letter)
}

/// What no device can say alone.
fn check(devices: &[Plan], path: launch::KickPath) -> Result<(), String> {
    if devices.len() > MAX_DEVICES {
        return Err(format!(
            "{} disks and devices; there are slots for {MAX_DEVICES}",
            devices.len()
        ));
    }
    let mut ids = BTreeSet::new();
    for Plan {
        spec, served_by, ..
    } in devices
    {
        let id = &spec.id;
        if !is_name(id) {
            return Err(format!("id `{id}`: {NAME_RULE}"));
        }
        if !ids.insert(id) {
            return Err(format!(
                "two devices have the id `{id}`; give each its own with `id=NAME`"
            ));
        }
        // Their eventfds are written by the machine itself then.
        if path != launch::KickPath::Kvm && matches!(served_by, ServedBy::Socket { .. }) {
            return Err(format!(
                "`{id}` has a `socket`: a back-end that somebody else runs could make the machine \
                 wait when it is kicked by other than KVM; leave out --kick-path"
            ));
        }
    }
    claims::check(devices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::text::options;

    fn settings() -> Settings {
        Settings {
            kernel: Some("vmlinuz".into()),
            ..Settings::default()
        }
    }

    fn with_disks(disks: &[&str]) -> Settings {
        Settings {
            disk: disks
                .iter()
                .map(|text| options::read(text).unwrap())
                .collect(),
            ..settings()
        }
    }

    fn refused(settings: Settings, words: &str) {
        let error = VmPlan::new(settings).unwrap_err();
        assert!(error.contains(words), "{error}");
    }

    #[test]
    fn a_vm_has_a_name_that_fits_in_brackets_or_none() {
        let named = |name: &str| Settings {
            name: Some(name.into()),
            ..settings()
        };
        let plan = VmPlan::new(named("web-1_b.example")).unwrap();
        assert_eq!(plan.logging.name.as_deref(), Some("web-1_b.example"));
        assert_eq!(VmPlan::new(settings()).unwrap().logging.name, None);
        for wrong in ["", "a b", "a/b", "a]", "a\n", "größer", &"x".repeat(65)] {
            refused(named(wrong), "give 1 to 64 letters, digits");
        }
    }

    #[test]
    fn what_pauses_a_vm_needs_the_api_that_resumes_it() {
        for pause in ["on-io-error=pause", "on-failure=pause"] {
            let mut given = with_disks(&["path=a", &format!("path=b,{pause}")]);
            refused(given.clone(), &format!("`{pause}` pauses the VM"));
            given.api = Some("vm.sock".into());
            VmPlan::new(given).unwrap();
        }
        VmPlan::new(with_disks(&["path=a,on-io-error=report"])).unwrap();
    }

    #[test]
    fn what_is_not_said_has_a_sensible_default() {
        let mut given = with_disks(&["path=a", "socket=b"]);
        given.cpus = Some(8);
        let plan = VmPlan::new(given).unwrap();
        assert_eq!(plan.machine.memory, 512 << 20);
        assert_eq!(plan.console, Console::Stdio);
        let ids = plan.devices.iter().map(|plan| plan.spec.id.as_str());
        assert_eq!(ids.collect::<Vec<_>>(), ["disk0", "disk1"]);
        assert_eq!(plan.devices[0].spec.queues, 4);
        let one = VmPlan::new(with_disks(&["path=a"])).unwrap();
        assert_eq!((one.machine.cpus, one.devices[0].spec.queues), (1, 1));
    }

    #[test]
    fn a_missing_kernel_and_numbers_out_of_range_are_refused() {
        refused(Settings::default(), "add `--kernel FILE`");
        for cpus in [0, 33, 1000, u64::MAX] {
            let settings = Settings {
                cpus: Some(cpus),
                ..settings()
            };
            refused(settings, &format!("--cpus {cpus}: give 1 to 32"));
        }
        for memory in ["0M", "1M", "15M", "513M", "20000K"] {
            let settings = Settings {
                memory: Some(memory.parse().unwrap()),
                ..settings()
            };
            refused(settings, "give a multiple of 2M, 16M at least");
        }
        let settings = Settings {
            cmdline: Some("x".repeat(2048)),
            ..settings()
        };
        refused(settings, "--cmdline: 2048 bytes");
    }

    #[test]
    fn names_and_sockets_are_unique_and_slots_few() {
        refused(
            with_disks(&["path=a,id=x", "path=b,id=x"]),
            "have the id `x`",
        );
        refused(
            with_disks(&["path=a,id=disk1", "path=b"]),
            "have the id `disk1`",
        );
        refused(
            with_disks(&["socket=a", "socket=a"]),
            "the socket a is given twice",
        );
        refused(with_disks(&["path=a"; 32]), "there are slots for 31");
        refused(with_disks(&["path=a,id=a b"]), "letters, digits");
        refused(
            with_disks(&["path=a", "path=b,queues=0"]),
            "--disk disk1: queues 0",
        );
    }

    #[test]
    fn who_kicks_is_said_once_and_is_kvm_where_a_back_end_is_somebody_else_s() {
        use launch::KickPath::{Exit, Kvm, Worker};
        let path = |path: Option<launch::KickPath>, disks: &[&str]| {
            let settings = Settings {
                kick_path: path,
                ..with_disks(disks)
            };
            VmPlan::new(settings).map(|plan| plan.machine.kick_path)
        };
        assert_eq!(path(None, &["path=a", "socket=c"]), Ok(Kvm));
        assert_eq!(path(Some(Exit), &["path=a"]), Ok(Exit));
        assert_eq!(path(Some(Kvm), &["socket=c"]), Ok(Kvm));
        for other in [Exit, Worker] {
            let error = path(Some(other), &["path=a", "socket=c"]).unwrap_err();
            assert!(error.starts_with("`disk1` has a `socket`"), "{error}");
            assert!(error.ends_with("leave out --kick-path"), "{error}");
        }
    }
}
