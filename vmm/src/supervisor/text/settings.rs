//! What the user asked for, as it was written: from the command line or from
//! a TOML file with the same names. Nothing is checked here beyond types;
//! [`crate::supervisor::plan`] makes one consistent VM of it.

use std::path::{Path, PathBuf};

use clap::Args;
use outboard_log::Level;
use outboard_protocol::deadline::limits;
use outboard_protocol::launch::{Doorbell, KickPath};
use serde::Deserialize;
use serde::de::{self, Deserializer};
use toml::de::DeTable;

use super::units::Size;
use super::{meant, options, written};
use crate::supervisor::device::blk::DiskSettings;
use crate::supervisor::device::net::NetSettings;
use crate::supervisor::device::other::OtherSettings;
use crate::supervisor::device::plan::DeviceOption;
use crate::supervisor::device::rng::{self, RngSettings};

/// What the value of an option that adds a device looks like.
const PAIRS: &str = "KEY=VALUE,…";

/// The settings of one source; what it does not say is `None`, false or empty.
/// Each is an option with its help, and a name in the file.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// Name of the VM, which its messages begin with
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Socket of the control API, which `outboard ctl` and curl use; there is none if it
    /// is not given
    #[arg(long, value_name = "PATH")]
    pub(crate) api: Option<PathBuf>,

    /// What is logged; on the command line it is asked for in several ways
    #[arg(skip)]
    pub(crate) log_level: Option<Level>,

    /// Guest kernel: a bzImage, an ELF vmlinux or an ELF with a PVH entry
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,

    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,

    /// Kernel command line [default: console=ttyS0]
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    pub(crate) cmdline: Option<String>,

    /// Number of CPUs, 1 to 32 [default: 1]
    #[arg(long, value_name = "N", value_parser = cpus, allow_negative_numbers = true)]
    pub(crate) cpus: Option<u64>,

    /// Memory, a multiple of 2M, such as 512M or 4G [default: 512M]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<Size>,

    /// Back the guest's memory with huge pages
    #[arg(long)]
    pub(crate) hugepages: bool,

    /// Populate the guest's memory before it starts
    #[arg(long)]
    pub(crate) prefault: bool,

    /// Where the guest's drivers write to notify a device: memory or an I/O port [default: mmio]
    #[arg(long, value_name = "mmio|pio", value_parser = options::word::<Doorbell>)]
    pub(crate) doorbell: Option<Doorbell>,

    /// Who passes that notification on to the back-end: KVM, or (to compare) the CPU's
    /// thread after an exit, or a worker thread that it wakes [default: kvm]
    ///
    /// With `socket=` only KVM can do it.
    // It was called `ring` before.
    #[arg(long, alias = "ring", value_name = "kvm|exit|worker")]
    #[arg(value_parser = options::word::<KickPath>)]
    #[serde(alias = "ring")]
    pub(crate) kick_path: Option<KickPath>,

    /// Add a disk (may be given several times)
    #[arg(long, value_name = PAIRS, value_parser = options::read::<DiskSettings>)]
    #[arg(long_help = DiskSettings::HELP)]
    pub(crate) disk: Vec<DiskSettings>,

    /// Add a network card (may be given several times)
    #[arg(long, value_name = PAIRS, value_parser = options::read::<NetSettings>)]
    #[arg(long_help = NetSettings::HELP)]
    pub(crate) net: Vec<NetSettings>,

    /// Add an entropy device (may be given several times)
    #[arg(long, value_name = PAIRS, num_args = 0..=1, default_missing_value = "")]
    #[arg(value_parser = rng::read, long_help = RngSettings::HELP)]
    pub(crate) rng: Vec<RngSettings>,

    /// Add any other vhost-user device (may be given several times)
    #[arg(long, value_name = PAIRS, value_parser = options::read::<OtherSettings>)]
    #[arg(long_help = OtherSettings::HELP)]
    pub(crate) device: Vec<OtherSettings>,

    /// The serial console: stdio, file=PATH (appended to) or null [default: stdio]
    ///
    /// On a terminal every key is the guest's, but Ctrl-A x ends the VM
    /// (Ctrl-A Ctrl-A sends one Ctrl-A).
    #[arg(long, value_name = "WHERE")]
    pub(crate) console: Option<Console>,

    /// What a guest's reset does: end the run or start the guest again [default: exit]
    #[arg(long, value_name = "exit|restart", value_parser = options::word::<OnReset>)]
    pub(crate) on_reset: Option<OnReset>,
}

impl Settings {
    /// Reads a configuration file. Returns its text, too.
    ///
    /// # Errors
    /// A message with the file, the line and the column.
    pub(crate) fn read(path: &Path) -> Result<(Self, String), String> {
        let text = written::read(path, limits::MESSAGE).map_err(|error| {
            let shown = path.display();
            format!("the configuration file {shown} cannot be read: {error}")
        })?;
        Ok((Self::parse(path, &text)?, text))
    }

    /// Reads the text of the configuration file `path`.
    fn parse(path: &Path, text: &str) -> Result<Self, String> {
        let shown = path.display();
        toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let before = text.get(..start).unwrap_or_default();
            let line = line_after(before);
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            let message = error.message();
            // `[disk]` is one table, and disks are a list of them.
            let hint = match message.starts_with("invalid type: map, expected a sequence") {
                true => {
                    "; there may be several: write its name in double brackets, as in `[[disk]]`"
                }
                false => "",
            };
            let message = meant::told(message);
            format!("{shown}:{line}:{column}: {message}{hint}")
        })
    }

    /// These settings, and from `file` what they leave open. The devices of
    /// the file come first.
    pub(crate) fn over(self, file: Self) -> Self {
        Self {
            name: self.name.or(file.name),
            api: self.api.or(file.api),
            log_level: self.log_level.or(file.log_level),
            kernel: self.kernel.or(file.kernel),
            initrd: self.initrd.or(file.initrd),
            cmdline: self.cmdline.or(file.cmdline),
            cpus: self.cpus.or(file.cpus),
            memory: self.memory.or(file.memory),
            hugepages: self.hugepages || file.hugepages,
            prefault: self.prefault || file.prefault,
            doorbell: self.doorbell.or(file.doorbell),
            kick_path: self.kick_path.or(file.kick_path),
            console: self.console.or(file.console),
            on_reset: self.on_reset.or(file.on_reset),
            disk: file.disk.into_iter().chain(self.disk).collect(),
            net: file.net.into_iter().chain(self.net).collect(),
            rng: file.rng.into_iter().chain(self.rng).collect(),
            device: file.device.into_iter().chain(self.device).collect(),
        }
    }
}

fn cpus(text: &str) -> Result<u64, String> {
    let wrong = |_| "give a whole number, 1 to 32".to_owned();
    text.parse().map_err(wrong)
}

/// An error about a setting of the file `path`, which is `text`, with the line
/// of that setting if it is found: `--cpus 0: …`, `--disk NAME: …`.
pub(crate) fn placed(path: &Path, text: &str, error: &str) -> String {
    let shown = path.display();
    match line_of(text, error) {
        Some(line) => format!("{shown}:{line}: {error}"),
        None => format!("{shown}: {error}"),
    }
}

fn line_of(text: &str, error: &str) -> Option<usize> {
    let mut words = error.strip_prefix("--")?.split([' ', ':']);
    let (option, name) = (words.next()?, words.next()?);
    let file = DeTable::parse(text).ok()?;
    let setting = file.get_ref().get(option)?;
    let span = match setting.get_ref().as_array() {
        // Of the devices it is the one with that name, given or by its number.
        Some(devices) => (0..).zip(devices.iter()).find_map(|(number, device)| {
            let id = device.get_ref().get("id");
            let (span, is_it) = match id.and_then(|id| Some((id, id.get_ref().as_str()?))) {
                Some((id, text)) => (id.span(), text == name),
                None => (device.span(), name == format!("{option}{number}")),
            };
            is_it.then_some(span)
        })?,
        None => setting.span(),
    };
    text.get(..span.start).map(line_after)
}

/// The line that begins or goes on behind this text; the first is 1.
fn line_after(before: &str) -> usize {
    before.matches('\n').count() + 1
}

/// `--console`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Console {
    /// Standard input and output.
    #[default]
    Stdio,
    /// Output is appended to a file; there is no input.
    File(PathBuf),
    /// Neither.
    Null,
}

impl std::str::FromStr for Console {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("file=")) {
            ("stdio", _) => Ok(Self::Stdio),
            ("null", _) => Ok(Self::Null),
            (_, Some(path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => {
                let question = meant::question(text, &["stdio", "null"]);
                Err(format!("`{text}`: give stdio, file=PATH or null{question}"))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Console {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        String::deserialize(source)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// `--on-reset`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnReset {
    /// The run ends with status 0.
    #[default]
    Exit,
    /// The guest is started again, on the same disks.
    Restart,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Settings::read(file.path())
            .map(|(settings, _)| settings)
            .map_err(|error| error.replace(&file.path().display().to_string(), "vm.toml"))
    }

    #[test]
    fn a_file_has_the_names_of_the_command_line() {
        let settings = read(
            r#"
            name = "web"
            api = "web.sock"
            log-level = "info"
            kernel = "vmlinuz"
            memory = "2G"
            doorbell = "pio"
            kick-path = "worker"
            console = "file=log"
            on-reset = "restart"
            [[disk]]
            path = "disk.img"
            queue-size = 128
            wce = "off"
            format = "raw"
            block-size = 4096
            [[device]]
            virtio-id = 4
            socket = "rng.sock"
            wait = "10s"
            "#,
        )
        .unwrap();
        assert_eq!(settings.name.as_deref(), Some("web"));
        assert_eq!(settings.api, Some("web.sock".into()));
        assert_eq!(settings.log_level, Some(Level::Info));
        assert_eq!(settings.memory, Some(Size(2 << 30)));
        assert_eq!(settings.doorbell, Some(Doorbell::Pio));
        assert_eq!(settings.kick_path, Some(KickPath::Worker));
        assert_eq!(settings.console, Some(Console::File("log".into())));
        assert_eq!(settings.on_reset, Some(OnReset::Restart));
        assert_eq!(
            settings.disk,
            [
                options::read("path=disk.img,queue-size=128,wce=off,format=raw,block-size=4096")
                    .unwrap()
            ]
        );
        assert_eq!(
            settings.device,
            [options::read("virtio-id=4,socket=rng.sock,wait=10s").unwrap()]
        );
    }

    #[test]
    fn an_old_name_is_still_taken() {
        let settings = read("ring = \"exit\"").unwrap();
        assert_eq!(settings.kick_path, Some(KickPath::Exit));
        let twice = read("ring = \"exit\"\nkick-path = \"kvm\"").unwrap_err();
        assert!(twice.contains("duplicate field"), "{twice}");
    }

    #[test]
    fn an_error_has_its_place_in_the_file() {
        let lines = "kernel = \"k\"\n\n\n\n[[disk]]\npath = \"d\"\n";
        for (line, words) in [
            ("speed = 9", "vm.toml:7:1: unknown field `speed`"),
            ("read-only = true", "vm.toml:7:1: unknown field `read-only`"),
            ("queues = \"a\"", "vm.toml:7:10: invalid type"),
            ("  wait = \"10\"", "vm.toml:7:10: `10` is not a wait"),
            ("queues 4", "vm.toml:7:8: "),
            ("wce = 7", "vm.toml:7:7: give true or false"),
        ] {
            let error = read(&format!("{lines}{line}\n")).unwrap_err();
            assert!(error.starts_with(words), "{error}");
        }
        let error = Settings::read(Path::new("/nowhere/vm.toml")).unwrap_err();
        assert!(error.contains("/nowhere/vm.toml cannot be read"), "{error}");
    }

    #[test]
    fn a_file_with_the_word_of_another_is_asked_about_it() {
        for (text, question) in [
            ("[[disk]]\nread-only = true", "did you mean `readonly`?"),
            ("[[disk]]\nnum_queues = 4", "did you mean `queues`?"),
            ("[[net]]\nmac_address = \"x\"", "did you mean `mac`?"),
            ("[[device]]\nchardev = \"s\"", "did you mean `socket`?"),
            ("[[rng]]\nmax_bytes = 1", "did you mean `max-bytes`?"),
            ("kick-path = \"kmv\"", "did you mean `kvm`?"),
            ("on-reset = \"reboot\"", "did you mean `restart`?"),
            ("console = \"none\"", "did you mean `null`?"),
            ("append = \"quiet\"", "did you mean `cmdline`?"),
            ("[[disks]]", "did you mean `disk`?"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with("vm.toml:"), "{error}");
            assert!(error.ends_with(question), "{error}");
        }
    }

    #[test]
    fn an_error_about_a_setting_has_the_line_of_that_setting() {
        let text = "cpus = 0\n[[disk]]\nid = \"root\"\n[[disk]]\n[[net]]\n";
        for (error, line) in [
            ("--cpus 0: give 1 to 32", Some(1)),
            ("--disk root: no", Some(3)),
            ("--disk disk1: no", Some(4)),
            ("--net net0: no", Some(5)),
            ("--memory 1M: no", None),
            ("two devices have the id `x`", None),
        ] {
            assert_eq!(line_of(text, error), line, "{error}");
        }
        let inline = "disk = [\n  { path = \"id\" },\n  { id = \"b\" } ]";
        assert_eq!(line_of(inline, "--disk disk0: no"), Some(2));
        assert_eq!(line_of(inline, "--disk b: no"), Some(3));
    }

    #[test]
    fn the_command_line_wins_and_adds() {
        let file = Settings {
            cpus: Some(2),
            memory: Some(Size(1 << 30)),
            disk: vec![options::read("path=a").unwrap()],
            ..Settings::default()
        };
        let line = Settings {
            cpus: Some(4),
            disk: vec![options::read("path=b").unwrap()],
            ..Settings::default()
        };
        let both = line.over(file);
        assert_eq!(both.cpus, Some(4));
        assert_eq!(both.memory, Some(Size(1 << 30)));
        let paths: Vec<_> = both.disk.into_iter().flat_map(|disk| disk.path).collect();
        assert_eq!(paths, [PathBuf::from("a"), PathBuf::from("b")]);
    }
}
