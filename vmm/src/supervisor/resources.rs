//! Everything that a VM needs from the host, opened: from here on there are
//! descriptors and no paths.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use outboard_protocol::launch::{self, Whose};

use super::config::{Config, Disk, Source};
use super::connect::Whom;
use super::descriptors;
use super::host;
use super::image::{Identity, Images, Usage};
use super::logging::Logging;
use super::net;
use super::options::Wait;
use super::program::Program;
use super::rng;
use super::settings::Console;

/// The back-end that serves a disk if no other is named.
const BLK: &str = "outboard-blk";

/// What one VM runs on.
#[derive(Debug)]
pub struct Resources {
    /// How the processes of the VM speak.
    pub logging: Logging,
    /// What the machine is to be.
    pub machine: launch::Machine,
    /// The program of the machine process.
    pub program: Program,
    /// /dev/kvm.
    pub kvm: File,
    /// The kernel image.
    pub kernel: File,
    /// The initial RAM disk.
    pub initrd: Option<File>,
    /// Its devices.
    pub specs: Vec<launch::Device>,
    /// Who serves each, in the same order.
    pub devices: Vec<Resource>,
}

/// Where the console writes.
#[derive(Debug)]
pub enum Output {
    /// Standard output; standard input is its input.
    Stdio,
    /// A file, without an input.
    File(File),
}

/// Who serves a device.
#[derive(Debug)]
pub enum Resource {
    /// A program to be started.
    Program {
        /// The program.
        program: Program,
        /// What it is told beside its socket.
        args: Vec<String>,
        /// What it is lent.
        lent: Lent,
        /// Whose it is.
        whose: Whose,
    },
    /// Whoever listens at a socket.
    Socket {
        /// Where.
        path: PathBuf,
        /// How long to wait for it.
        wait: Wait,
    },
}

/// What a program is lent beside its socket, each time it is started.
#[derive(Debug)]
pub enum Lent {
    /// These descriptors.
    Fds(Vec<OwnedFd>),
    /// The queues of a tap.
    Tap(net::TapQueues),
    /// A socket at which its peer connects.
    Listening(net::Listener),
    /// A socket connected to the peer that listens at a path: a new one, since
    /// a predecessor may have read part of a frame.
    Peer {
        /// Where.
        path: PathBuf,
        /// How long to wait for it.
        wait: Wait,
    },
}

impl Resource {
    /// What it is called: the program's name, or the socket's path.
    pub fn name(&self) -> String {
        match self {
            Self::Program { program, .. } => program.name().to_owned(),
            Self::Socket { path, .. } => path.display().to_string(),
        }
    }

    /// Whether its process is ours.
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Program { .. })
    }

    /// Who must be there before it can begin, where, and how long to wait for them.
    pub fn sought(&self) -> Option<(Whom, &Path, Wait)> {
        match self {
            Self::Socket { path, wait } => Some((Whom::BackEnd, path, *wait)),
            Self::Program {
                lent: Lent::Peer { path, wait },
                ..
            } => Some((Whom::Peer, path, *wait)),
            Self::Program { .. } => None,
        }
    }

    /// Whose back-end it is.
    pub fn whose(&self) -> Whose {
        match self {
            Self::Program { whose, .. } => *whose,
            Self::Socket { .. } => Whose::default(),
        }
    }
}

/// Whose a program is that the user has named, or else has not; a disk's was
/// told this of its write cache.
pub fn whose(named: Option<&PathBuf>, wce: Option<bool>) -> Whose {
    match named {
        None => Whose::Own,
        Some(_) => Whose::Foreign {
            writeback: wce != Some(false),
        },
    }
}

impl Resources {
    /// Opens everything, and last what the console writes to; starts nothing
    /// and writes nothing.
    ///
    /// # Errors
    /// A message that names the thing and says what to do.
    pub fn open(config: Config) -> Result<(Self, Output)> {
        descriptors::check(&config)?;
        let kvm = kvm(Path::new("/dev/kvm"))?;
        let (kernel, _) = readable("kernel", &config.kernel)?;
        let initrd = match &config.initrd {
            Some(path) => Some(initrd(path, config.machine.memory)?),
            None => None,
        };
        host::check_memory(config.machine.memory, config.machine.hugepages)?;
        let mut images = Images::default();
        let mut devices = Vec::new();
        for (device, source) in config.devices.iter().zip(config.sources) {
            let resource = match source {
                Source::Socket { path, wait } => Resource::Socket { path, wait },
                Source::Program(disk) => self::disk(device, disk, &mut images)
                    .with_context(|| format!("--disk {}", device.id))?,
                Source::Net(card) => {
                    net::open(device, card).with_context(|| format!("--net {}", device.id))?
                }
                Source::Rng(entropy) => {
                    rng::open(entropy).with_context(|| format!("--rng {}", device.id))?
                }
            };
            devices.push(resource);
        }
        let resources = Self {
            program: Program::this()?,
            logging: config.logging,
            machine: config.machine,
            specs: config.devices,
            kvm,
            kernel,
            initrd,
            devices,
        };
        let output = output(config.console)?;
        if let Output::File(console) = &output {
            resources.apart_from(console, &images)?;
        }
        Ok((resources, output))
    }

    /// What the console appends to must be nothing that the guest is made of.
    fn apart_from(&self, console: &File, images: &Images) -> Result<()> {
        let console = Identity::of(&console.metadata()?);
        let is = |file: &File| {
            file.metadata()
                .is_ok_and(|other| Identity::of(&other) == console)
        };
        let other = match images.holder(console) {
            Some(id) => format!("the image of {id}"),
            None if is(&self.kernel) => "the kernel".to_owned(),
            None if self.initrd.as_ref().is_some_and(is) => "the initrd".to_owned(),
            None => return Ok(()),
        };
        bail!("the console would be written to {other}; give it a file of its own");
    }

    /// Makes them as new: who read before may have moved a file's position.
    ///
    /// # Errors
    /// Those of lseek(2).
    pub fn rewind(&mut self) -> io::Result<()> {
        self.kernel.seek(SeekFrom::Start(0))?;
        if let Some(initrd) = &mut self.initrd {
            initrd.seek(SeekFrom::Start(0))?;
        }
        Ok(())
    }
}

fn disk(device: &launch::Device, disk: Disk, images: &mut Images) -> Result<Resource> {
    let program = match &disk.program {
        Some(path) => Program::open(path)?,
        None => Program::own(BLK)?,
    };
    let mut fds = Vec::new();
    if let Some(path) = &disk.image {
        let usage = Usage {
            readonly: disk.readonly,
            direct: disk.direct,
            block_size: disk.block_size,
            raw: disk.raw,
        };
        let image = images.open(&device.id, path, usage)?;
        fds.push(OwnedFd::from(image));
    }
    let args = disk_args(device, &disk);
    Ok(Resource::Program {
        program,
        args,
        lent: Lent::Fds(fds),
        whose: whose(disk.program.as_ref(), disk.wce),
    })
}

/// The command line of a block back-end (PROTOCOL.md, launch contract).
fn disk_args(device: &launch::Device, disk: &Disk) -> Vec<String> {
    let mut args = vec![format!("--fd={}", launch::BACKEND_FD)];
    if disk.image.is_some() {
        args.push(format!("--blk-fd={}", launch::BACKEND_FD + 1));
    }
    args.push(format!("--num-queues={}", device.queues));
    args.push(format!("--queue-size={}", device.queue_size));
    if disk.readonly {
        args.push("--read-only".into());
    }
    if disk.direct {
        args.push("--direct".into());
    }
    if let Some(bytes) = disk.block_size {
        args.push(format!("--block-size={bytes}"));
    }
    if let Some(on) = disk.wce {
        args.push(format!("--wce={}", if on { "on" } else { "off" }));
    }
    if let Some(serial) = &disk.serial {
        args.push(format!("--serial={serial}"));
    }
    args
}

fn kvm(path: &Path) -> Result<File> {
    let shown = path.display();
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => anyhow!(
            "there is no {shown}: {error}; load the module kvm_intel or kvm_amd, and turn \
             virtualization on in the firmware, or nested virtualization in a virtual machine"
        ),
        Some(libc::EACCES | libc::EPERM) => {
            anyhow!("no permission to use {shown}: {error}; {}", way_in(path))
        }
        _ => anyhow!("{shown} cannot be opened: {error}"),
    })
}

/// What lets a user in who may not use the device at `path`.
fn way_in(path: &Path) -> String {
    let shown = path.display();
    let has_group = |device: fs::Metadata| device.gid() != 0 && device.mode() & 0o060 == 0o060;
    if fs::metadata(path).is_ok_and(has_group) {
        format!(
            "join its group (`sudo usermod -aG $(stat -c %G {shown}) $USER`, then log in again)"
        )
    } else {
        format!("only root may: until the next boot, `sudo chown $USER {shown}` lets you too")
    }
}

/// Opens a file that is to be read whole, and tells its size.
fn readable(what: &str, path: &Path) -> Result<(File, u64)> {
    let shown = path.display();
    let file = OpenOptions::new()
        .read(true)
        // To open a FIFO would wait otherwise; files do not care.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .with_context(|| format!("the {what} {shown} cannot be opened"))?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        let kind = if metadata.is_dir() {
            "a directory"
        } else {
            "not a file"
        };
        bail!("the {what} {shown} is {kind}; give a file");
    }
    if metadata.len() == 0 {
        bail!("the {what} {shown} is empty");
    }
    Ok((file, metadata.len()))
}

fn initrd(path: &Path, memory: u64) -> Result<File> {
    let (file, size) = readable("initrd", path)?;
    if size >= memory {
        bail!(
            "the initrd {} ({size} bytes) does not fit into {memory} bytes of memory; \
             give more with --memory",
            path.display()
        );
    }
    Ok(file)
}

fn output(console: Console) -> Result<Output> {
    let path = match console {
        Console::Stdio => return Ok(Output::Stdio),
        Console::Null => PathBuf::from("/dev/null"),
        Console::File(path) => path,
    };
    let shown = path.display();
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        // To open a FIFO would wait for its reader otherwise, to write to it
        // for room in it, and a terminal become ours.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(&path)
        .map_err(|error| {
            let kind = fs::metadata(&path).map(|found| found.file_type());
            let advice = match (error.raw_os_error(), kind) {
                (Some(libc::ENXIO), Ok(kind)) if kind.is_fifo() => {
                    format!(
                        "; it is a FIFO that nobody reads: start its reader first (`cat {shown}`)"
                    )
                }
                (Some(libc::ENXIO), Ok(kind)) if kind.is_socket() => {
                    "; it is a socket: give a file, a FIFO or a terminal".to_owned()
                }
                _ => String::new(),
            };
            anyhow!("the console file {shown} cannot be opened: {error}{advice}")
        })?;
    Ok(Output::File(file))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use outboard_protocol::image_lock;

    use super::super::image;
    use super::super::settings::{self, Settings};
    use super::*;

    fn error<T>(result: Result<T>) -> String {
        match result {
            Ok(_) => panic!("should have been refused"),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn kernels_that_cannot_be_read_are_named() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        for (path, words) in [
            (
                Path::new("/nowhere/k"),
                "the kernel /nowhere/k cannot be opened: No such file",
            ),
            (Path::new("/"), "the kernel / is a directory"),
            (Path::new("/dev/null"), "is not a file"),
            (empty.path(), "is empty"),
        ] {
            let error = error(readable("kernel", path));
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_back_end_is_our_own_unless_its_program_is_named_or_it_listens() {
        let named = PathBuf::from("/usr/bin/outboard-blk");
        let foreign = |writeback| Whose::Foreign { writeback };
        for (program, wce, expected) in [
            (None, None, Whose::Own),
            (None, Some(false), Whose::Own),
            (Some(&named), None, foreign(true)),
            (Some(&named), Some(true), foreign(true)),
            (Some(&named), Some(false), foreign(false)),
        ] {
            assert_eq!(whose(program, wce), expected, "{program:?} {wce:?}");
        }
        let socket = Resource::Socket {
            path: "/run/blk.sock".into(),
            wait: Wait::Forever,
        };
        assert_eq!(socket.whose(), foreign(true));
    }

    #[test]
    fn a_console_is_not_written_to_what_the_guest_is_made_of() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        for name in ["kernel", "initrd", "disk", "log"] {
            fs::write(place(name), [0; 512]).unwrap();
        }
        fs::hard_link(place("disk"), place("link")).unwrap();
        let mut images = Images::default();
        let image = images
            .open("disk0", &place("disk"), Usage::default())
            .unwrap();
        let open = |name: &str| File::open(place(name)).unwrap();
        let config = Config::new(Settings {
            kernel: Some("k".into()),
            ..Settings::default()
        });
        let resources = Resources {
            program: Program::this().unwrap(),
            machine: config.unwrap().machine,
            specs: Vec::new(),
            logging: Logging::default(),
            kvm: open("log"),
            kernel: open("kernel"),
            initrd: Some(open("initrd")),
            devices: Vec::new(),
        };
        let console = |name: &str| resources.apart_from(&open(name), &images);
        for (name, words) in [
            ("disk", "written to the image of disk0; give it"),
            ("link", "written to the image of disk0; give it"),
            ("kernel", "written to the kernel; give it"),
            ("initrd", "written to the initrd; give it"),
        ] {
            let error = error(console(name));
            assert!(error.contains(words), "{error}");
        }
        console("log").unwrap();
        drop(image);
    }

    /// What was attempted, on what: why it failed; what to do about it.
    #[test]
    fn the_cause_of_a_failure_comes_before_the_advice() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        fs::write(&plain, "text").unwrap();
        let nowhere = Path::new("/nowhere/it");
        let card = |port: &str| {
            let settings = net::net(port).unwrap();
            let (device, source) = net::card("net0", settings).unwrap();
            let Source::Net(card) = source else {
                panic!("{port}");
            };
            net::open(&device, card)
        };
        let here = folder.path().display();
        let fifo = folder.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let mut failures = vec![
            error(kvm(nowhere)),
            error(kvm(folder.path())),
            error(readable("kernel", nowhere)),
            error(readable("kernel", &plain.join("below"))),
            error(initrd(nowhere, 1 << 20)),
            error(output(Console::File(nowhere.into()))),
            error(output(Console::File(folder.path().into()))),
            error(output(Console::File(fifo))),
            error(Program::open(nowhere)),
            error(Program::open(Path::new("no-such-program"))),
            error(Program::open(&plain)),
            error(Images::default().open("disk0", &plain.join("below"), Usage::default())),
            error(card("backend=/nowhere/it")),
            error(card("backend=/dev/null,tap=no-such-tap")),
            error(card(&format!("peer={here}/no/folder,listen"))),
            Settings::read(nowhere).unwrap_err(),
            Settings::read(folder.path()).unwrap_err(),
        ];
        let codes = [
            libc::ENOENT,
            libc::EACCES,
            libc::EPERM,
            libc::EROFS,
            libc::EINVAL,
            libc::EBUSY,
            libc::EIO,
        ];
        let of = io::Error::from_raw_os_error;
        failures.extend(codes.map(|code| image::cannot_open(&plain, &of(code)).to_string()));
        let lock = anyhow::Error::new(image_lock::Error::Os(of(libc::ENOLCK)));
        failures.push(format!("{:#}", lock.context("the image a")));
        let mut causes = 0;
        for text in failures {
            let Some((before, after)) = text.split_once(" (os error ") else {
                let of_nix = text.contains(" EACCES: ") || text.contains(" ENOENT: ");
                assert!(!of_nix, "in other words than the rest: {text}");
                continue;
            };
            causes += 1;
            let advice = before.contains([';', '`']);
            assert!(!advice, "the advice is before the cause: {text}");
            let (_, after) = after.split_once(')').unwrap();
            let last = after.is_empty() || after.starts_with("; ");
            assert!(
                last,
                "something is between the cause and the advice: {text}"
            );
            assert!(
                !after.contains("os error"),
                "the cause is told twice: {text}"
            );
        }
        assert!(causes >= 15, "{causes} failures have a cause");
    }

    #[test]
    fn an_initrd_larger_than_memory_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        assert!(error(initrd(file.path(), 64 << 20)).contains("does not fit"));
        initrd(file.path(), 128 << 20).unwrap();
    }

    #[test]
    fn a_missing_kvm_says_what_to_load() {
        assert!(error(kvm(Path::new("/nowhere/kvm"))).contains("load the module"));
    }

    #[test]
    fn who_may_not_use_kvm_hears_what_would_let_them() {
        let device = tempfile::NamedTempFile::new().unwrap();
        let mode = |bits| fs::set_permissions(device.path(), fs::Permissions::from_mode(bits));
        mode(0o600).unwrap();
        let said = way_in(device.path());
        assert!(said.contains("sudo chown $USER"), "{said}");
        mode(0o660).unwrap();
        // Where the tests run as root, its group is root's.
        let joins = nix::unistd::getgid().as_raw() != 0;
        assert_eq!(way_in(device.path()).contains("usermod"), joins);
    }

    #[test]
    fn a_back_end_is_told_what_was_asked_for() {
        let given = Settings {
            kernel: Some("k".into()),
            disk: vec![
                settings::disk("path=a,readonly,direct,wce=off,serial=S1,queues=2,block-size=4096")
                    .unwrap(),
            ],
            ..Settings::default()
        };
        let config = Config::new(given).unwrap();
        let Source::Program(disk) = &config.sources[0] else {
            panic!("a path makes a program");
        };
        assert_eq!(
            disk_args(&config.devices[0], disk),
            [
                "--fd=3",
                "--blk-fd=4",
                "--num-queues=2",
                "--queue-size=256",
                "--read-only",
                "--direct",
                "--block-size=4096",
                "--wce=off",
                "--serial=S1"
            ]
        );
    }
}
