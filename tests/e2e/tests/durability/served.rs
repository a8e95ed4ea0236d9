//! A VM whose disk is served in a certain way: by a certain engine, by a
//! certain program.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::Result;
use nix::unistd::Pid;
use outboard_contract::program as contract;
use outboard_e2e::image::Image;
use outboard_e2e::processes::{Process, is_listened_on};
use outboard_e2e::products::{self, Products};
use outboard_e2e::vm::{Ended, Run, Vm};

/// Queues of every disk here, and processors of every VM.
pub const QUEUES: u64 = 4;

/// How a disk is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As `outboard run --disk path=` does it.
    Path,
    /// By a back-end with this engine, started by hand; with `wce=off` by
    /// `outboard run`, since it does not believe that of any that it was not
    /// told itself.
    Engine(&'static str),
    /// By QEMU's storage daemon, of whatever version is installed.
    StorageDaemon,
}

/// Every way there is.
pub const WAYS: [Way; 3] = [Way::Path, Way::Engine("io_uring"), Way::Engine("threads")];

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path => write!(f, "by outboard run"),
            Self::Engine(engine) => write!(f, "by {engine}"),
            Self::StorageDaemon => write!(f, "by qemu-storage-daemon"),
        }
    }
}

impl Way {
    /// Why there is no such way on this machine.
    pub fn missing(self) -> Option<String> {
        static NO_URING: OnceLock<Option<String>> = OnceLock::new();
        match self {
            Self::Engine("io_uring") => NO_URING.get_or_init(no_uring).clone(),
            Self::Path | Self::Engine(_) => None,
            Self::StorageDaemon => no_storage_daemon(),
        }
    }
}

/// Asks outboard-blk whether it can have its io_uring. It takes its socket
/// first and its disk then, so it tells before anyone has connected.
fn no_uring() -> Option<String> {
    let tried = || -> Result<Option<String>> {
        let image = Image::new(1 << 20)?;
        let backend = Backend::start(&Program::Sound.path()?, "io_uring", &image, &[]);
        Ok(backend.err().map(|error| format!("io_uring: {error:#}")))
    };
    tried().unwrap_or_else(|error| Some(format!("{error:#}")))
}

fn no_storage_daemon() -> Option<String> {
    let tried = Command::new("qemu-storage-daemon")
        .arg("--version")
        .output();
    tried
        .err()
        .map(|error| format!("qemu-storage-daemon: {error}"))
}

/// Which program serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// outboard-blk.
    Sound,
    /// One with a fault, by its name.
    Faulty(&'static str),
}

impl Program {
    /// Where it is.
    pub fn path(self) -> Result<PathBuf> {
        match self {
            Self::Sound => Ok(Products::get()?.program("outboard-blk")),
            Self::Faulty(name) => products::faulty(name),
        }
    }
}

fn socket(image: &Image) -> PathBuf {
    image.directory().join("disk.sock")
}

/// A back-end started by hand. Dropped, it is killed.
#[derive(Debug)]
pub struct Backend {
    program: contract::Program,
    socket: PathBuf,
}

impl Backend {
    /// Starts outboard-blk and waits until it listens.
    pub fn start(program: &Path, engine: &str, image: &Image, options: &[&str]) -> Result<Self> {
        let mut command = contract::command(program, options);
        command.args([
            contract::option("--socket-path=", &socket(image)),
            contract::option("--blk-file=", image.path()),
            format!("--engine={engine}").into(),
            format!("--num-queues={QUEUES}").into(),
        ]);
        Self::by(command, image)
    }

    /// Starts QEMU's and waits until it listens.
    pub fn storage_daemon(image: &Image) -> Result<Self> {
        let socket = socket(image);
        let at = format!("addr.type=unix,addr.path={}", socket.display());
        let file = format!("file,node-name=disk,filename={}", image.path().display());
        let export =
            format!("vhost-user-blk,id=export,node-name=disk,writable=on,num-queues={QUEUES},{at}");
        let options = ["--blockdev", &file, "--export", &export];
        Self::by(contract::command("qemu-storage-daemon", &options), image)
    }

    fn by(mut command: Command, image: &Image) -> Result<Self> {
        let (program, socket) = (contract::Program::run(&mut command)?, socket(image));
        program.until("it listens and holds the image", || {
            let listens = is_listened_on(&socket) && image.is_held_by(program.pid());
            listens.then_some(())
        })?;
        Ok(Self { program, socket })
    }

    fn pid(&self) -> Pid {
        self.program.pid()
    }
}

/// A script that starts the program with this engine.
fn with_engine(program: &Path, engine: &str, image: &Image) -> Result<PathBuf> {
    let path = image.directory().join("back-end.sh");
    let program = program.display();
    let text = format!("#!/bin/sh\nexec '{program}' --engine={engine} \"$@\"\n");
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
    Ok(path)
}

/// A running VM with one disk of [`QUEUES`] queues.
#[derive(Debug)]
pub struct Served {
    /// The VM.
    pub vm: Vm,
    /// When it was started by hand.
    backend: Option<Backend>,
}

impl Served {
    /// Starts the bundled guest with a disk. `options` are those of `--disk`:
    /// `direct`, `wce=off`.
    pub fn start(
        way: Way,
        program: Program,
        image: &Image,
        options: &[&str],
        cmdline: &str,
    ) -> Result<Self> {
        let (backend, disk) = match way {
            Way::Path => {
                let mut words = vec![image.option()];
                if program != Program::Sound {
                    words.push(format!("backend={}", program.path()?.display()));
                }
                words.extend(options.iter().map(|option| (*option).to_owned()));
                (None, words.join(","))
            }
            Way::Engine(engine) if options.contains(&"wce=off") => {
                let program = with_engine(&program.path()?, engine, image)?;
                let options = options.join(",");
                let backend = program.display();
                (
                    None,
                    format!("{},backend={backend},{options}", image.option()),
                )
            }
            Way::Engine(engine) => {
                let dashed: Vec<String> = options.iter().map(|word| format!("--{word}")).collect();
                let dashed: Vec<&str> = dashed.iter().map(String::as_str).collect();
                let backend = Backend::start(&program.path()?, engine, image, &dashed)?;
                return Self::by_hand(backend, cmdline);
            }
            Way::StorageDaemon => {
                return Self::by_hand(Backend::storage_daemon(image)?, cmdline);
            }
        };
        Self::run(backend, &disk, cmdline)
    }

    /// Starts the bundled guest with the disk of a back-end started by hand.
    pub fn by_hand(backend: Backend, cmdline: &str) -> Result<Self> {
        let disk = format!("socket={}", backend.socket.display());
        Self::run(Some(backend), &disk, cmdline)
    }

    fn run(backend: Option<Backend>, disk: &str, cmdline: &str) -> Result<Self> {
        let vm = Run::guest(&format!("{cmdline} queues={QUEUES}"))?
            .with("--cpus", QUEUES.to_string())
            .with("--memory", "256M")
            .with(
                "--disk",
                format!("{disk},queues={QUEUES},on-failure=shutdown"),
            )
            .start()?;
        Ok(Self { vm, backend })
    }

    /// The process that serves the disk.
    pub fn backend(&mut self) -> Result<Pid> {
        match &self.backend {
            Some(backend) => Ok(backend.pid()),
            None => Ok(self.vm.process(Process::is_backend)?.pid),
        }
    }

    /// Waits for the guest's end, and that of a back-end started by hand.
    pub fn wait(mut self) -> Result<Ended> {
        self.vm.wait()?.with_code(0)
    }
}

/// What a process holds of an image.
pub trait Held {
    /// The flags (open(2)) of each descriptor of `process` that is the image.
    fn flags_in(&self, process: Pid) -> Vec<i32>;

    /// Whether a process has it open.
    fn is_held_by(&self, process: Pid) -> bool {
        !self.flags_in(process).is_empty()
    }
}

impl Held for Image {
    fn flags_in(&self, process: Pid) -> Vec<i32> {
        let descriptors = fs::read_dir(format!("/proc/{process}/fd"));
        let descriptors = descriptors.into_iter().flatten().flatten();
        let of_image = descriptors
            .filter(|entry| fs::read_link(entry.path()).is_ok_and(|file| file == self.path()));
        of_image
            .filter_map(|entry| {
                let number = entry.file_name().into_string().ok()?;
                let info = fs::read_to_string(format!("/proc/{process}/fdinfo/{number}")).ok()?;
                let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
                i32::from_str_radix(flags.trim(), 8).ok()
            })
            .collect()
    }
}
