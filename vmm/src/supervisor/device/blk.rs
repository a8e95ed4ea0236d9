//! Disks: `--disk`, from its text to what outboard-blk is lent and told.
//!
//! A new key is a field of [`DiskSettings`], its words in `HELP`, a check if it
//! needs one, and an argument of the back-end. It is in the list of `decides` if
//! it has no meaning for a back-end that somebody else runs.

use std::path::PathBuf;

use outboard_protocol::devices::Kind;
use outboard_protocol::launch;
use serde::Deserialize;

use super::plan::{
    self, Args, DeviceOption, Executable, LENT_FD, Lend, OnFailure, Plan, ServedBy, Usage,
};
use crate::supervisor::text::options::switch;
use crate::supervisor::text::units::{HangTimeout, Wait};

/// The back-end that serves a disk if no other is named.
pub(super) const OWN: Executable = Executable::Own {
    name: "outboard-blk",
    threads: true,
};
/// Most queues that a disk has by default.
const DEFAULT_QUEUES: u64 = 4;
/// Smallest queue of a portable disk: requests of 126 segments, a header and a status.
const PORTABLE_QUEUE: u16 = 128;
/// Longest serial number of a disk (virtio 1.3, section 5.2.6.1).
const MAX_SERIAL: usize = 20;

/// `--disk`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct DiskSettings {
    /// The image or block device.
    pub(crate) path: Option<PathBuf>,
    /// The socket at which a back-end listens.
    pub(crate) socket: Option<PathBuf>,
    /// The program to start instead of outboard-blk.
    pub(crate) backend: Option<PathBuf>,
    /// How long to wait for the socket.
    pub(crate) wait: Option<Wait>,
    /// The format of the image: `raw`, whatever it looks like.
    pub(crate) format: Option<String>,
    /// Whether the guest may only read.
    pub(crate) readonly: bool,
    /// Whether the page cache is bypassed (O_DIRECT).
    pub(crate) direct: bool,
    /// The block size that the guest sees, in bytes.
    pub(crate) block_size: Option<u64>,
    /// Whether there is a write cache; the back-end's default if not said.
    #[serde(deserialize_with = "switch")]
    pub(crate) wce: Option<bool>,
    /// Number of queues.
    pub(crate) queues: Option<u64>,
    /// Largest queue size.
    pub(crate) queue_size: Option<u64>,
    /// What becomes of a request that fails on the host; `report` if not said.
    pub(crate) on_io_error: Option<OnIoError>,
    /// Whose limits and serial number the disk has; `native` if not said.
    pub(crate) profile: Option<Profile>,
    /// The serial number that the guest reads.
    pub(crate) serial: Option<String>,
    /// How long a ring may stand still before the back-end is suspected to hang.
    pub(crate) hang_timeout: Option<HangTimeout>,
    /// What becomes of the VM when its back-end fails.
    pub(crate) on_failure: OnFailure,
    /// Whether a second process waits beside the one that serves: 0 or 1.
    pub(crate) standby: Option<u64>,
    /// The name of the device.
    pub(crate) id: Option<String>,
}

/// Whose limits, topology and serial number a disk has.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Profile {
    /// Those of its image and of outboard-blk.
    Native,
    /// Those that qemu-storage-daemon has too.
    Portable,
}

/// What becomes of a request that fails on the host.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnIoError {
    /// The guest is told.
    Report,
    /// It is held back, and the VM is paused.
    Pause,
}

impl DeviceOption for DiskSettings {
    const OPTION: &'static str = "disk";

    const HELP: &'static str = "\
Add a disk (may be given several times)

`path=FILE[,readonly][,direct][,wce=on|off][,serial=S]` starts outboard-blk on a raw image or block \
device. `readonly`: the guest may only read. `direct`: bypass the page cache (O_DIRECT). `wce=off`: no \
write cache, so each write is on disk when it completes. `serial`: the serial number that the guest \
reads. `profile=portable`: limits and serial number as qemu-storage-daemon has them, which can then \
serve the disk in place of outboard-blk while the guest uses it; not with `serial`. \
`block-size=512|4096` is the block size that the guest sees (default: 512 for a file, its own \
for a block device; `direct` does not change it). An image that looks like another format, such as qcow2, is refused unless \
`format=raw` says that it is raw. `on-io-error=pause`: a read, write or discard that fails on the host, as when \
the file system of the image is full, is kept from the guest; the VM is paused, and on resume it is \
tried again (default: `report`, the guest gets the error; that of a flush it gets in any case, since what \
a failed sync has lost no second attempt finds). `backend=EXE` starts another program instead, by the same launch contract. \
`socket=PATH[,wait=10s|forever]` connects to a vhost-user-blk back-end that listens there. `wait` \
(default: 2s) is how long it may take to listen and to answer, which it does not do while it serves \
another front-end.

All take `queues=N` (default: one for each CPU, up to 4 and to what the back-end has), `queue-size=N` \
(default: 256), `hang-timeout=TIME|off` (default: 5s; a back-end that serves nothing for so long, and \
does not wait for its disk either, hangs), `id=NAME` (default: disk0, disk1, …) and \
`on-failure=restart|pause|shutdown`: a back-end that dies or hangs is started again while the \
guest waits (the default), or once the VM, which is paused, is resumed, or ends the VM. What pauses \
the VM needs `--api`, by which it is resumed. `standby=1` \
(not with `socket`; default: 0) keeps a second process ready, which takes over at once. A comma within a value is written `,,`.";

    fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    fn plan(mut self, id: String, cpus: u64) -> Result<Plan, String> {
        let spec = launch::Device {
            id,
            kind: Kind::blk(),
            queues: plan::queues(self.queues.unwrap_or(cpus.min(DEFAULT_QUEUES)))?,
            fewer: self.queues.is_none(),
            queue_size: plan::queue_size(self.queue_size)?,
            hang_timeout: self.hang_timeout.unwrap_or_default().millis(),
        };
        let on_failure = self.on_failure;
        let standby = plan::standby(self.standby)?;
        let served_by = match self.socket.take() {
            Some(path) => ServedBy::socket(path, self.wait, &self.decides())?,
            None => self.program(&spec)?,
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

impl DiskSettings {
    /// Whether a request that fails on the host pauses the VM.
    pub(crate) fn holds_what_fails(&self) -> bool {
        self.on_io_error == Some(OnIoError::Pause)
    }

    /// What a back-end that somebody else runs decides, and whether it was given.
    fn decides(&self) -> [(&'static str, bool); 11] {
        [
            ("path", self.path.is_some()),
            ("backend", self.backend.is_some()),
            ("format", self.format.is_some()),
            ("readonly", self.readonly),
            ("direct", self.direct),
            ("block-size", self.block_size.is_some()),
            ("wce", self.wce.is_some()),
            ("serial", self.serial.is_some()),
            ("profile", self.profile.is_some()),
            ("on-io-error", self.on_io_error.is_some()),
            ("standby", self.standby.is_some()),
        ]
    }

    /// The program that is started for the disk.
    fn program(self, spec: &launch::Device) -> Result<ServedBy, String> {
        plan::nothing_to_wait_for(self.wait)?;
        if self.path.is_none() && self.backend.is_none() {
            return Err("give `path=FILE`, or `socket=PATH` of a back-end that listens".into());
        }
        if let Some(serial) = &self.serial {
            check_serial(serial)?;
        }
        let is_portable = self.profile == Some(Profile::Portable);
        if is_portable {
            self.fits_portable(spec.queue_size)?;
        }
        if self.backend.is_some() && self.on_io_error.is_some() {
            return Err(
                "`on-io-error` and `backend` exclude each other: only outboard-blk holds \
                        back what has failed"
                    .into(),
            );
        }
        let pauses = self.holds_what_fails();
        let usage = Usage {
            readonly: self.readonly,
            direct: self.direct,
            block_size: block_size(self.block_size)?,
            raw: is_raw(self.format.as_deref())?,
        };
        let args = Args::with_socket()
            .value("blk-fd", self.path.is_some().then_some(LENT_FD))
            .value("num-queues", Some(spec.queues))
            .value("queue-size", Some(spec.queue_size))
            .switch("read-only", self.readonly)
            .switch("direct", self.direct)
            .value("block-size", self.block_size)
            .value("wce", self.wce.map(|on| if on { "on" } else { "off" }))
            .value("on-io-error", pauses.then_some("pause"))
            .value("profile", is_portable.then_some("portable"))
            .value("serial", self.serial);
        Ok(ServedBy::Program {
            executable: match self.backend {
                Some(path) => Executable::Named {
                    path,
                    writeback: self.wce != Some(false),
                },
                None => OWN,
            },
            lend: match self.path {
                Some(path) => Lend::Image { path, usage },
                None => Lend::Nothing,
            },
            args: args.all(),
        })
    }
}

impl DiskSettings {
    /// Whether a portable disk can have the rest of these settings.
    fn fits_portable(&self, queue_size: u16) -> Result<(), String> {
        if self.serial.is_some() {
            return Err(
                "`serial` and `profile=portable` exclude each other: the serial number of a \
                 portable disk is the one that qemu-storage-daemon gives each"
                    .into(),
            );
        }
        if queue_size < PORTABLE_QUEUE {
            return Err(format!(
                "queue-size {queue_size}: `profile=portable` needs {PORTABLE_QUEUE} or more, since \
                 a portable disk has requests of 126 segments"
            ));
        }
        Ok(())
    }
}

fn check_serial(serial: &str) -> Result<(), String> {
    if serial.len() > MAX_SERIAL || !serial.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "`serial={serial}`: give at most {MAX_SERIAL} visible ASCII characters"
        ));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use outboard_protocol::launch::Whose;

    use super::*;
    use crate::supervisor::text::options;

    fn planned(text: &str) -> Result<Plan, String> {
        let disk: DiskSettings = options::read(text).unwrap();
        disk.plan("disk0".into(), 8)
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
            ("socket=a,on-io-error=pause", "`on-io-error` and `socket`"),
            (
                "path=a,backend=b,on-io-error=report",
                "`on-io-error` and `backend`",
            ),
            ("path=a,queues=0", "queues 0: give 1 to 64"),
            ("path=a,queues=65", "queues 65: give 1 to 64"),
            ("path=a,queue-size=100", "power of two"),
            ("path=a,standby=2", "standby 2: give 0 to 1"),
            ("socket=a,standby=1", "`standby` and `socket`"),
            ("path=a,queue-size=65536", "give 2 to 32768"),
            ("path=a,serial=123456789012345678901", "at most 20"),
            (
                "path=a,profile=portable,serial=S1",
                "`serial` and `profile=portable` exclude",
            ),
            ("path=a,profile=portable,queue-size=64", "needs 128 or more"),
            ("socket=a,profile=portable", "`profile` and `socket`"),
        ] {
            let error = planned(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        let policy = options::read::<DiskSettings>("path=a,on-io-error=stop").unwrap_err();
        assert!(policy.contains("report"), "{policy}");
        let unknown = options::read::<DiskSettings>("path=a,ring=kvm").unwrap_err();
        assert!(unknown.contains("unknown key `ring`"), "{unknown}");
    }

    #[test]
    fn what_is_not_said_has_a_sensible_default() {
        for text in ["path=a", "socket=a"] {
            let spec = planned(text).unwrap().spec;
            assert_eq!((spec.queues, spec.queue_size), (4, 256));
            assert!(spec.fewer, "nobody asked for four");
        }
        let disk: DiskSettings = options::read("path=a").unwrap();
        assert_eq!(disk.plan("disk0".into(), 1).unwrap().spec.queues, 1);
    }

    #[test]
    fn a_back_end_is_told_what_was_asked_for() {
        let text =
            "path=a,readonly,direct,wce=off,serial=S1,queues=2,block-size=4096,on-io-error=pause";
        let ServedBy::Program { lend, args, .. } = planned(text).unwrap().served_by else {
            panic!("a path makes a program");
        };
        let told = [
            "--fd=3",
            "--blk-fd=4",
            "--num-queues=2",
            "--queue-size=256",
            "--read-only",
            "--direct",
            "--block-size=4096",
            "--wce=off",
            "--on-io-error=pause",
            "--serial=S1",
        ];
        assert_eq!(args, told);
        let usage = Usage {
            readonly: true,
            direct: true,
            block_size: Some(4096),
            raw: false,
        };
        let path = "a".into();
        assert_eq!(lend, Lend::Image { path, usage });
    }

    #[test]
    fn a_back_end_is_told_of_a_profile_that_is_not_its_own() {
        for (text, is_told) in [
            ("path=a", false),
            ("path=a,profile=native,serial=S1,queue-size=64", false),
            ("path=a,profile=portable,queue-size=128,direct", true),
            ("backend=b,path=a,profile=portable,readonly", true),
        ] {
            let ServedBy::Program { args, .. } = planned(text).unwrap().served_by else {
                panic!("a path makes a program");
            };
            let portable = args.iter().any(|word| word == "--profile=portable");
            assert_eq!(portable, is_told, "{text}");
        }
    }

    #[test]
    fn a_back_end_is_our_own_unless_its_program_is_named_or_it_listens() {
        let foreign = |writeback| Whose::Foreign { writeback };
        for (text, expected) in [
            ("path=a", Whose::Own),
            ("path=a,wce=off", Whose::Own),
            ("path=a,backend=/usr/bin/outboard-blk", foreign(true)),
            ("backend=b,wce=on", foreign(true)),
            ("backend=b,wce=off", foreign(false)),
            ("socket=/run/blk.sock,wait=forever", foreign(true)),
        ] {
            let plan = planned(text).unwrap();
            assert_eq!(plan.served_by.whose(), expected, "{text}");
        }
    }
}
