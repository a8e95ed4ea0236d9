//! Network cards: `--net`, from its text to what outboard-net is lent and told.
//!
//! The supervisor opens the queues of a tap, or the socket of a peer, and lends
//! descriptors; a back-end may be started again, and finds them as they were.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use outboard_protocol::devices::Kind;
use outboard_protocol::launch;
use outboard_protocol::tap::{Mac, parse_mac};
use serde::Deserialize;

use super::plan::{
    self, Args, DeviceOption, Executable, LENT_FD, Lend, OnFailure, Plan, ServedBy, within,
};
use crate::supervisor::text::units::{HangTimeout, Wait};

/// The back-end that serves a card if no other is named.
pub(super) const OWN: Executable = Executable::Own {
    name: "outboard-net",
    threads: true,
};
/// Most pairs of queues: with the control queue, no more queues than any
/// device may have.
const MAX_PAIRS: u64 = 31;
/// Least MTU (virtio 1.3, section 5.1.4.1).
const MIN_MTU: u64 = 68;

/// `--net`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct NetSettings {
    /// The tap.
    pub(crate) tap: Option<String>,
    /// The Unix stream socket of a peer, in place of a tap.
    pub(crate) peer: Option<PathBuf>,
    /// Whether the peer connects to us.
    pub(crate) listen: bool,
    /// The socket at which a back-end listens.
    pub(crate) socket: Option<PathBuf>,
    /// The program to start instead of outboard-net.
    pub(crate) backend: Option<PathBuf>,
    /// How long to wait for whoever listens at the socket or is the peer.
    pub(crate) wait: Option<Wait>,
    /// The address of the card.
    pub(crate) mac: Option<String>,
    /// The MTU that the guest is told.
    pub(crate) mtu: Option<u64>,
    /// Number of pairs of queues.
    pub(crate) queues: Option<u64>,
    /// Largest queue size.
    pub(crate) queue_size: Option<u64>,
    /// How long a ring may stand still before the back-end is suspected to hang.
    pub(crate) hang_timeout: Option<HangTimeout>,
    /// What becomes of the VM when its back-end fails.
    pub(crate) on_failure: OnFailure,
    /// Whether a second process waits beside the one that serves: 0 or 1.
    pub(crate) standby: Option<u64>,
    /// The name of the device.
    pub(crate) id: Option<String>,
}

impl DeviceOption for NetSettings {
    const OPTION: &'static str = "net";

    const HELP: &'static str = "\
Add a network card (may be given several times)

`tap=NAME` starts outboard-net on a tap, which must exist; `peer=PATH[,wait=10s|forever]` on the Unix \
stream socket at which a peer listens, `peer=PATH,listen` on one to which it connects. A peer gets and \
sends each frame after its length as a 4-byte big-endian number, as passt and QEMU's `-netdev stream` \
do. `mac=ADDRESS` (default: locally administered, always the same for this host, tap or socket, and \
id). `mtu=N` is the MTU that the guest is told. `backend=EXE` starts another program instead, by the \
same launch contract. \
`socket=PATH[,wait=10s|forever]` connects to a vhost-user-net back-end that listens there and serves \
the control queue too.

All take `queues=N` (pairs of queues, default: 1; more need a tap with `multi_queue`), `queue-size=N` \
(default: 256; Linux needs 32, and receives whole segments from 128 on), `hang-timeout=TIME|off` \
(default: 5s; a back-end that serves nothing for so long hangs), `id=NAME` (default: net0, net1, …), and \
`on-failure=restart|pause|shutdown` and `standby=0|1`, as a disk does.";

    fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    fn plan(mut self, id: String, _cpus: u64) -> Result<Plan, String> {
        let pairs = within("queues", self.queues.unwrap_or(1), 1, MAX_PAIRS)? as u16;
        let spec = launch::Device {
            id,
            kind: Kind::net(),
            // And the control queue.
            queues: 2 * pairs + 1,
            fewer: self.queues.is_none(),
            queue_size: plan::queue_size(self.queue_size)?,
            hang_timeout: self.hang_timeout.unwrap_or_default().millis(),
        };
        let on_failure = self.on_failure;
        let standby = plan::standby(self.standby)?;
        let served_by = match self.socket.take() {
            Some(path) => ServedBy::socket(path, self.wait, &self.decides())?,
            None => self.program(&spec, pairs)?,
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

impl NetSettings {
    /// What a back-end that somebody else runs decides, and whether it was given.
    fn decides(&self) -> [(&'static str, bool); 7] {
        [
            ("tap", self.tap.is_some()),
            ("peer", self.peer.is_some()),
            ("backend", self.backend.is_some()),
            ("mac", self.mac.is_some()),
            ("mtu", self.mtu.is_some()),
            ("listen", self.listen),
            ("standby", self.standby.is_some()),
        ]
    }

    /// The program that is started for the card.
    fn program(mut self, spec: &launch::Device, pairs: u16) -> Result<ServedBy, String> {
        let lend = self.lend(pairs)?;
        let mtu = match self.mtu {
            Some(mtu) => Some(within("mtu", mtu, MIN_MTU, u16::MAX.into())?),
            None => None,
        };
        let mac = match &self.mac {
            Some(text) => parse_mac(text).map_err(|error| format!("`mac`: {error}"))?,
            None => stable_mac(&spec.id, &lend, &machine_id()),
        };
        let args = behind(&lend)
            .value("mac", Some(mac.map(|byte| format!("{byte:02x}")).join(":")))
            .value("mtu", mtu)
            .value("num-queues", Some(pairs))
            .value("queue-size", Some(spec.queue_size));
        Ok(ServedBy::Program {
            executable: self.backend.map_or(OWN, Executable::named),
            lend,
            args: args.all(),
        })
    }

    /// What is behind a card that a program serves, taken out of its settings.
    fn lend(&mut self, pairs: u16) -> Result<Lend, String> {
        if self.wait.is_some() && (self.peer.is_none() || self.listen) {
            return Err("`wait` is for a `socket=PATH`, or a `peer=PATH` that listens".into());
        }
        if self.listen && self.peer.is_none() {
            return Err("`listen` is for a `peer=PATH`; there is none".into());
        }
        match (self.tap.take(), self.peer.take(), &self.backend) {
            (Some(_), Some(_), _) => Err("`tap` and `peer` exclude each other".into()),
            (Some(name), None, _) => Ok(Lend::Tap { name, pairs }),
            (None, Some(_), _) if pairs > 1 => {
                Err(format!("queues {pairs}: a peer has one pair of queues"))
            }
            (None, Some(path), _) if self.listen => Ok(Lend::Listen { path }),
            (None, Some(path), _) => Ok(Lend::Connect {
                path,
                wait: plan::wait(self.wait),
            }),
            // What the named program finds by itself.
            (None, None, Some(_)) => Ok(Lend::Nothing),
            (None, None, None) => Err(
                "give `tap=NAME`, `peer=PATH`, or `socket=PATH` of a back-end that listens".into(),
            ),
        }
    }
}

/// What a back-end is told of what is behind its card.
fn behind(lend: &Lend) -> Args {
    let args = Args::with_socket();
    match lend {
        Lend::Tap { pairs, .. } => {
            let numbers = (0..*pairs).map(|pair| (LENT_FD + i32::from(pair)).to_string());
            let numbers: Vec<_> = numbers.collect();
            args.value("tap-fd", Some(numbers.join(",")))
        }
        Lend::Connect { path, .. } => {
            // Where it connects again by itself.
            let path = std::path::absolute(path).ok();
            args.value("peer-fd", Some(LENT_FD))
                .value("peer", path.as_deref().and_then(Path::to_str))
        }
        Lend::Listen { .. } => args.value("peer-fd", Some(LENT_FD)),
        Lend::Image { .. } | Lend::Nothing => args,
    }
}

/// What a back-end is told that was told this, and has that behind its card instead.
pub(super) fn with_behind(args: &[String], lend: &Lend) -> Vec<String> {
    let is_of_it = |arg: &&String| {
        let names = ["--fd=", "--tap-fd=", "--peer-fd=", "--peer="];
        !names.iter().any(|name| arg.starts_with(name))
    };
    let mut all = behind(lend).all();
    all.extend(args.iter().filter(is_of_it).cloned());
    all
}

/// What tells this host from others.
fn machine_id() -> Vec<u8> {
    let id = fs::read("/etc/machine-id").or_else(|_| fs::read("/proc/sys/kernel/hostname"));
    id.unwrap_or_default()
}

/// The address of a card that was given none: the same each time, and another
/// for each id, for each tap or socket, which no two VMs share, and for each
/// host. It is locally administered.
fn stable_mac(id: &str, lend: &Lend, host: &[u8]) -> Mac {
    let (kind, behind) = match lend {
        Lend::Tap { name, .. } => ("tap", name.as_bytes().to_vec()),
        Lend::Connect { path, .. } | Lend::Listen { path } => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            ("peer", path.as_os_str().as_bytes().to_vec())
        }
        Lend::Image { .. } | Lend::Nothing => ("program", Vec::new()),
    };
    let parts = [host, kind.as_bytes(), &behind, id.as_bytes()];
    // FNV-1a, each part after its length.
    let hash = parts.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, part| {
        let length = part.len().to_le_bytes();
        length.iter().chain(*part).fold(hash, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    });
    let [a, b, c, d, e, f, g, h] = hash.to_le_bytes();
    [(a ^ g) & !3 | 2, b ^ h, c, d, e, f]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::text::options;

    fn planned(text: &str) -> Result<Plan, String> {
        let card: NetSettings = options::read(text).unwrap();
        card.plan("net0".into(), 1)
    }

    fn told(text: &str) -> Vec<String> {
        match planned(text).unwrap().served_by {
            ServedBy::Program { args, .. } => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn cards_that_contradict_themselves_are_refused() {
        for (text, words) in [
            ("queues=2", "give `tap=NAME`"),
            ("tap=t,peer=p", "exclude each other"),
            ("tap=t,listen", "`listen` is for a `peer=PATH`"),
            ("tap=t,wait=1s", "`wait` is for a `socket=PATH`"),
            ("peer=p,listen,wait=1s", "or a `peer=PATH` that listens"),
            ("socket=s,tap=t", "`tap` and `socket` exclude each other"),
            ("socket=s,mac=02:00:00:00:00:01", "`mac` and `socket`"),
            ("tap=t,queues=0", "queues 0: give 1 to 31"),
            ("tap=t,queues=32", "queues 32: give 1 to 31"),
            ("peer=p,queues=2", "a peer has one pair"),
            ("tap=t,mtu=67", "mtu 67: give 68 to 65535"),
            ("tap=t,mtu=65536", "give 68 to 65535"),
            ("tap=t,mac=x", "`mac`: `x` is no address"),
            ("tap=t,mac=01:00:00:00:00:01", "make the first byte even"),
            ("tap=t,queue-size=3", "power of two"),
            ("tap=t,standby=2", "standby 2: give 0 to 1"),
            ("socket=s,standby=1", "`standby` and `socket`"),
        ] {
            let error = planned(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        let unknown = options::read::<NetSettings>("tap=t,speed=9").unwrap_err();
        assert!(unknown.contains("unknown key"), "{unknown}");
    }

    #[test]
    fn a_back_end_is_told_what_was_asked_for() {
        let text = "tap=t,queues=2,mac=02:00:00:00:00:AB,mtu=9000";
        let spec = planned(text).unwrap().spec;
        assert_eq!((spec.queues, spec.kind.virtio_id), (5, 1));
        assert_eq!(
            told(text),
            [
                "--fd=3",
                "--tap-fd=4,5",
                "--mac=02:00:00:00:00:ab",
                "--mtu=9000",
                "--num-queues=2",
                "--queue-size=256",
            ]
        );
        assert_eq!(told("peer=/p")[1..3], ["--peer-fd=4", "--peer=/p"]);
        let listens = told("peer=p,listen");
        assert_eq!(listens[1], "--peer-fd=4");
        assert!(listens[2].starts_with("--mac="));
        assert!(told("backend=b")[1].starts_with("--mac="));
    }

    #[test]
    fn a_card_has_a_standby_whatever_is_behind_it() {
        for text in ["tap=t", "peer=p", "peer=p,listen", "backend=b"] {
            let standby = |more| planned(&format!("{text}{more}")).unwrap().standby;
            assert_eq!(
                ["", ",standby=0", ",standby=1"].map(standby),
                [false, false, true]
            );
        }
    }

    #[test]
    fn an_address_is_stable_local_and_ones_own() {
        let tap = |name: &str| Lend::Tap {
            name: name.into(),
            pairs: 1,
        };
        let mac = stable_mac("net0", &tap("t0"), b"host");
        assert_eq!(mac, stable_mac("net0", &tap("t0"), b"host"));
        // What has been given out must not change with a release.
        assert_eq!(mac[0] & 3, 2);
        let peer = Lend::Listen { path: "t0".into() };
        for other in [
            stable_mac("net1", &tap("t0"), b"host"),
            stable_mac("net0", &tap("t1"), b"host"),
            stable_mac("net0", &tap("t0"), b"other"),
            stable_mac("0", &tap("t0net"), b"host"),
            stable_mac("net0", &peer, b"host"),
        ] {
            assert_ne!(mac, other);
        }
    }
}
