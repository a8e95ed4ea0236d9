//! One VM, consistent: every number in its range, every name unique, every
//! default filled in. Nothing has been opened yet.

use std::collections::BTreeSet;
use std::path::PathBuf;

use outboard_log::Level;
use outboard_protocol::devices::Kind;
use outboard_protocol::launch;

use super::claims;
use super::net::{self, Card};
use super::rng::{self, Entropy};
use super::say::Logging;
use super::text::settings::{Console, DeviceSettings, DiskSettings, OnReset, Settings};
use super::text::units::{Size, Wait};

/// Most vCPUs.
const MAX_CPUS: u64 = 32;
/// Least guest memory.
const MIN_MEMORY: Size = Size(16 << 20);
/// Guest memory is a multiple of this.
const MEMORY_STEP: u64 = 2 << 20;
/// Most devices: the slots of bus 0 beside the host bridge.
const MAX_DEVICES: usize = 31;
/// Most queues of a device.
const MAX_QUEUES: u64 = 64;
/// Most queues that a disk has by default.
const DEFAULT_QUEUES: u64 = 4;
/// Default size of a queue.
const DEFAULT_QUEUE_SIZE: u64 = 256;
/// Longest configuration space that a vhost-user message carries.
const MAX_CONFIG_SIZE: u64 = 4080;
/// Longest kernel command line: Linux takes 2048 bytes with the final zero.
const MAX_CMDLINE: usize = 2047;
/// Longest serial number of a disk (virtio 1.3, section 5.2.6.1).
const MAX_SERIAL: usize = 20;
/// How long to wait for a socket by default.
pub(super) const DEFAULT_WAIT: Wait = Wait::For(std::time::Duration::from_secs(2));

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How the processes of the VM speak.
    pub logging: Logging,
    /// The kernel image.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The serial console.
    pub console: Console,
    /// What a guest's reset does.
    pub on_reset: OnReset,
    /// What the machine is to be.
    pub machine: launch::Machine,
    /// Its devices, in slot order.
    pub devices: Vec<launch::Device>,
    /// Who serves each of them, in the same order.
    pub sources: Vec<Source>,
}

/// Who serves a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A program of the launch contract, started by the supervisor.
    Program(Disk),
    /// The same, for a network card.
    Net(Card),
    /// The same, for an entropy device.
    Rng(Entropy),
    /// Whoever listens at a socket.
    Socket {
        /// Where.
        path: PathBuf,
        /// How long to wait for it.
        wait: Wait,
    },
}

/// A disk as a back-end is told to serve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The program; outboard-blk if none is named.
    pub program: Option<PathBuf>,
    /// The image or block device; only a named program can do without.
    pub image: Option<PathBuf>,
    /// Whether the image is raw whatever it looks like.
    pub raw: bool,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// Whether the page cache is bypassed.
    pub direct: bool,
    /// The block size that the guest sees, 512 or 4096; the image's own if not
    /// said.
    pub block_size: Option<u32>,
    /// Whether the write cache is on; the back-end's default if not said.
    pub wce: Option<bool>,
    /// The serial number that the guest reads.
    pub serial: Option<String>,
}

impl Config {
    /// Makes one consistent whole of the settings.
    ///
    /// # Errors
    /// A message that names the setting and says what would be right.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let logging = logging(settings.name, settings.log_level)?;
        let cpus = within("--cpus", settings.cpus.unwrap_or(1), 1, MAX_CPUS)?;
        let memory = memory(settings.memory.unwrap_or(Size(512 << 20)))?;
        let cmdline = settings.cmdline.unwrap_or_else(|| "console=ttyS0".into());
        if cmdline.len() > MAX_CMDLINE || cmdline.contains('\0') {
            return Err(format!(
                "--cmdline: {} bytes; at most {MAX_CMDLINE}, without zero bytes",
                cmdline.len()
            ));
        }
        let Some(kernel) = settings.kernel else {
            return Err("no kernel is given: add `--kernel FILE`".into());
        };
        let (mut devices, mut sources) = (Vec::new(), Vec::new());
        let mut add = |option: &str, id: &str, made: Result<_, String>| {
            let (device, source) = made.map_err(|error| format!("--{option} {id}: {error}"))?;
            devices.push(device);
            sources.push(source);
            Ok::<_, String>(())
        };
        for (index, disk) in settings.disk.into_iter().enumerate() {
            let id = disk.id.clone().unwrap_or_else(|| format!("disk{index}"));
            add("disk", &id, self::disk(&id, disk, cpus.min(DEFAULT_QUEUES)))?;
        }
        for (index, card) in settings.net.into_iter().enumerate() {
            let id = card.id.clone().unwrap_or_else(|| format!("net{index}"));
            add("net", &id, net::card(&id, card))?;
        }
        for (index, entropy) in settings.rng.into_iter().enumerate() {
            let id = entropy.id.clone().unwrap_or_else(|| format!("rng{index}"));
            add("rng", &id, rng::entropy(&id, entropy))?;
        }
        for (index, device) in settings.device.into_iter().enumerate() {
            let named = device.id.clone();
            let id = named.unwrap_or_else(|| format!("device{index}"));
            add("device", &id, self::device(&id, device))?;
        }
        let kick_path = settings.kick_path.unwrap_or_default();
        check(&devices, &sources, kick_path)?;
        Ok(Self {
            logging,
            initrd: settings.initrd,
            console: settings.console.unwrap_or_default(),
            on_reset: settings.on_reset.unwrap_or_default(),
            machine: launch::Machine {
                cpus: cpus as u8,
                memory: memory.0,
                hugepages: settings.hugepages.unwrap_or(false),
                prefault: settings.prefault.unwrap_or(false),
                doorbell: settings.doorbell.unwrap_or_default(),
                kick_path,
                kernel: kernel.display().to_string(),
                cmdline,
            },
            devices,
            kernel,
            sources,
        })
    }
}

fn logging(name: Option<String>, level: Option<Level>) -> Result<Logging, String> {
    match name.as_deref().filter(|name| !is_name(name)) {
        Some(wrong) => Err(format!("--name {wrong}: {NAME_RULE}")),
        None => Ok(Logging { name, level }),
    }
}

pub(super) fn within(what: &str, value: u64, least: u64, most: u64) -> Result<u64, String> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(format!("{what} {value}: give {least} to {most}"))
}

fn memory(size: Size) -> Result<Size, String> {
    if size < MIN_MEMORY || !size.0.is_multiple_of(MEMORY_STEP) {
        return Err(format!(
            "--memory {size}: give a multiple of 2M, {MIN_MEMORY} at least"
        ));
    }
    Ok(size)
}

fn disk(id: &str, disk: DiskSettings, queues: u64) -> Result<(launch::Device, Source), String> {
    let device = launch::Device {
        id: id.to_owned(),
        kind: Kind::blk(),
        queues: self::queues(disk.queues.unwrap_or(queues))?,
        fewer: disk.queues.is_none(),
        queue_size: queue_size(disk.queue_size)?,
    };
    if let Some(path) = disk.socket {
        let own = [
            ("path", disk.path.is_some()),
            ("backend", disk.backend.is_some()),
            ("format", disk.format.is_some()),
            ("readonly", disk.readonly),
            ("direct", disk.direct),
            ("block-size", disk.block_size.is_some()),
            ("wce", disk.wce.is_some()),
            ("serial", disk.serial.is_some()),
        ];
        if let Some((key, _)) = own.iter().find(|(_, given)| *given) {
            return Err(format!(
                "`{key}` and `socket` exclude each other: with `socket` it is the affair of the \
                 back-end that listens there"
            ));
        }
        let wait = disk.wait.unwrap_or(DEFAULT_WAIT);
        return Ok((device, Source::Socket { path, wait }));
    }
    if disk.wait.is_some() {
        return Err("`wait` is for a `socket=PATH`; there is none".into());
    }
    if disk.path.is_none() && disk.backend.is_none() {
        return Err("give `path=FILE`, or `socket=PATH` of a back-end that listens".into());
    }
    if let Some(serial) = &disk.serial
        && (serial.len() > MAX_SERIAL || !serial.bytes().all(|byte| byte.is_ascii_graphic()))
    {
        return Err(format!(
            "`serial={serial}`: give at most {MAX_SERIAL} visible ASCII characters"
        ));
    }
    let source = Source::Program(Disk {
        program: disk.backend,
        image: disk.path,
        raw: is_raw(disk.format.as_deref())?,
        readonly: disk.readonly,
        direct: disk.direct,
        block_size: block_size(disk.block_size)?,
        wce: disk.wce,
        serial: disk.serial,
    });
    Ok((device, source))
}

fn block_size(bytes: Option<u64>) -> Result<Option<u32>, String> {
    match bytes {
        None => Ok(None),
        Some(512) => Ok(Some(512)),
        Some(4096) => Ok(Some(4096)),
        Some(other) => Err(format!("block-size {other}: give 512 or 4096")),
    }
}

/// What `format` says: that the image is not to be looked at, if anything.
fn is_raw(format: Option<&str>) -> Result<bool, String> {
    match format {
        None => Ok(false),
        Some("raw") => Ok(true),
        Some(other) => Err(format!(
            "`format={other}`: images are served raw, and `format=raw` is for one that only looks \
             like another format; convert it with `qemu-img convert -O raw`, or have \
             qemu-storage-daemon serve it and give its `socket=PATH`"
        )),
    }
}

fn device(id: &str, device: DeviceSettings) -> Result<(launch::Device, Source), String> {
    let needed = |key: &str, value: Option<u64>| {
        value.ok_or_else(|| format!("`{key}` is missing: add `{key}=N`"))
    };
    let virtio_id = needed("virtio-id", device.virtio_id)?;
    let config_size = needed("config-size", device.config_size)?;
    let queues = needed("queues", device.queues)?;
    let path = device
        .socket
        .ok_or("`socket` is missing: add `socket=PATH` of a back-end that listens")?;
    let virtio_id = within("virtio-id", virtio_id, 1, 63)? as u16;
    let config_size = within("config-size", config_size, 0, MAX_CONFIG_SIZE)? as u32;
    let wait = device.wait.unwrap_or(DEFAULT_WAIT);
    let device = launch::Device {
        id: id.to_owned(),
        kind: Kind::unnamed(virtio_id, config_size),
        queues: self::queues(queues)?,
        fewer: false,
        queue_size: queue_size(device.queue_size)?,
    };
    Ok((device, Source::Socket { path, wait }))
}

fn queues(count: u64) -> Result<u16, String> {
    within("queues", count, 1, MAX_QUEUES).map(|count| count as u16)
}

pub(super) fn queue_size(size: Option<u64>) -> Result<u16, String> {
    let size = size.unwrap_or(DEFAULT_QUEUE_SIZE);
    if !size.is_power_of_two() {
        return Err(format!("queue-size {size}: give a power of two"));
    }
    within("queue-size", size, 2, 32768).map(|size| size as u16)
}

const NAME_RULE: &str = "give 1 to 64 letters, digits, `-`, `_` or `.`";

/// Whether it can be a VM's or a device's.
fn is_name(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(letter)
}

/// What no device can say alone.
fn check(
    devices: &[launch::Device],
    sources: &[Source],
    path: launch::KickPath,
) -> Result<(), String> {
    if devices.len() > MAX_DEVICES {
        return Err(format!(
            "{} disks and devices; there are slots for {MAX_DEVICES}",
            devices.len()
        ));
    }
    let mut ids = BTreeSet::new();
    for device in devices {
        if !is_name(&device.id) {
            return Err(format!("id `{}`: {NAME_RULE}", device.id));
        }
        if !ids.insert(&device.id) {
            return Err(format!(
                "two devices have the id `{}`; give each its own with `id=NAME`",
                device.id
            ));
        }
    }
    for (device, source) in devices.iter().zip(sources) {
        // Their eventfds are written by the machine itself then.
        if path != launch::KickPath::Kvm && matches!(source, Source::Socket { .. }) {
            return Err(format!(
                "`{}` has a `socket`: a back-end that somebody else runs could make the machine \
                 wait when it is kicked by other than KVM; leave out --kick-path",
                device.id
            ));
        }
    }
    claims::check(devices, sources)
}

#[cfg(test)]
mod tests {
    use super::super::text::options;
    use super::*;

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

    fn with_device(text: &str) -> Settings {
        Settings {
            device: vec![options::read(text).unwrap()],
            ..settings()
        }
    }

    fn refused(settings: Settings, words: &str) {
        let error = Config::new(settings).unwrap_err();
        assert!(error.contains(words), "{error}");
    }

    #[test]
    fn a_vm_has_a_name_that_fits_in_brackets_or_none() {
        let named = |name: &str| Settings {
            name: Some(name.into()),
            ..settings()
        };
        let config = Config::new(named("web-1_b.example")).unwrap();
        assert_eq!(config.logging.name.as_deref(), Some("web-1_b.example"));
        assert_eq!(Config::new(settings()).unwrap().logging.name, None);
        for wrong in ["", "a b", "a/b", "a]", "a\n", "größer", &"x".repeat(65)] {
            refused(named(wrong), "give 1 to 64 letters, digits");
        }
    }

    #[test]
    fn what_is_not_said_has_a_sensible_default() {
        let mut given = with_disks(&["path=a", "socket=b"]);
        given.cpus = Some(8);
        let config = Config::new(given).unwrap();
        assert_eq!(config.machine.memory, 512 << 20);
        assert_eq!(config.console, Console::Stdio);
        let ids: Vec<_> = config.devices.iter().map(|d| d.id.as_str()).collect();
        assert_eq!(ids, ["disk0", "disk1"]);
        assert_eq!(config.devices[0].queues, 4);
        assert!(config.devices[0].fewer, "nobody asked for four");
        assert_eq!(config.devices[0].queue_size, 256);
        let one = Config::new(with_disks(&["path=a"])).unwrap();
        assert_eq!((one.machine.cpus, one.devices[0].queues), (1, 1));
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
    fn disks_that_contradict_themselves_are_refused() {
        for (text, words) in [
            ("readonly", "give `path=FILE`"),
            ("path=a,wait=1s", "`wait` is for a `socket=PATH`"),
            ("socket=a,path=b", "`path` and `socket` exclude each other"),
            ("socket=a,readonly", "`readonly` and `socket`"),
            ("socket=a,backend=b", "`backend` and `socket`"),
            ("socket=a,block-size=512", "`block-size` and `socket`"),
            ("path=a,block-size=1024", "give 512 or 4096"),
            ("socket=a,format=raw", "`format` and `socket`"),
            ("path=a,format=qcow2", "`qemu-img convert -O raw`"),
            ("path=a,queues=0", "queues 0: give 1 to 64"),
            ("path=a,queues=65", "queues 65: give 1 to 64"),
            ("path=a,queue-size=100", "power of two"),
            ("path=a,queue-size=65536", "give 2 to 32768"),
            ("path=a,serial=123456789012345678901", "at most 20"),
            ("path=a,id=a b", "letters, digits"),
        ] {
            refused(with_disks(&[text]), words);
        }
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
    }

    #[test]
    fn who_kicks_is_said_once_and_is_kvm_where_a_back_end_is_somebody_else_s() {
        use launch::KickPath::{Exit, Kvm, Worker};
        let path = |path: Option<launch::KickPath>, disks: &[&str]| {
            let settings = Settings {
                kick_path: path,
                ..with_disks(disks)
            };
            Config::new(settings).map(|config| config.machine.kick_path)
        };
        assert_eq!(path(None, &["path=a", "socket=c"]), Ok(Kvm));
        assert_eq!(path(Some(Exit), &["path=a"]), Ok(Exit));
        assert_eq!(path(Some(Kvm), &["socket=c"]), Ok(Kvm));
        for other in [Exit, Worker] {
            let error = path(Some(other), &["path=a", "socket=c"]).unwrap_err();
            assert!(error.starts_with("`disk1` has a `socket`"), "{error}");
            assert!(error.ends_with("leave out --kick-path"), "{error}");
        }
        assert!(options::read::<DiskSettings>("path=a,ring=kvm").is_err());
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
            refused(with_device(text), words);
        }
        let config = Config::new(with_device("virtio-id=4,socket=a,queues=1,config-size=0"));
        assert_eq!(config.unwrap().devices[0].kind.name, "virtio-4");
    }
}
