//! Network cards: `--net` from its text to what a back-end is lent and told.
//!
//! The supervisor opens the queues of a tap, or the socket of a peer, and lends
//! descriptors; a back-end may be started again, and finds them as they were.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use outboard_protocol::devices::Kind;
use outboard_protocol::launch;
use outboard_protocol::tap::{Mac, parse_mac};
use serde::Deserialize;

use super::config::{DEFAULT_WAIT, Source, queue_size, within};
use super::host::listener::Listener;
use super::host::program::Program;
use super::host::resources::{Lent, Resource, whose};
use super::host::tap::TapQueues;
use super::text::units::Wait;

/// The back-end that serves a card if no other is named.
const NET: &str = "outboard-net";
/// Most pairs of queues: with the control queue, no more queues than any
/// device may have.
const MAX_PAIRS: u64 = 31;
/// Least MTU (virtio 1.3, section 5.1.4.1).
const MIN_MTU: u64 = 68;

/// `--net`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct NetSettings {
    /// The tap.
    pub tap: Option<String>,
    /// The Unix stream socket of a peer, in place of a tap.
    pub peer: Option<PathBuf>,
    /// Whether the peer connects to us.
    pub listen: bool,
    /// The socket at which a back-end listens.
    pub socket: Option<PathBuf>,
    /// The program to start instead of outboard-net.
    pub backend: Option<PathBuf>,
    /// How long to wait for whoever listens at the socket or is the peer.
    pub wait: Option<Wait>,
    /// The address of the card.
    pub mac: Option<String>,
    /// The MTU that the guest is told.
    pub mtu: Option<u64>,
    /// Number of pairs of queues.
    pub queues: Option<u64>,
    /// Largest queue size.
    pub queue_size: Option<u64>,
    /// The name of the device.
    pub id: Option<String>,
}

/// What is behind a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// A tap, by name.
    Tap(String),
    /// A peer, at this socket.
    Peer {
        /// Where.
        path: PathBuf,
        /// How long to wait for it; `None`: it connects to us.
        wait: Option<Wait>,
    },
    /// What the named program finds by itself.
    Program,
}

/// A card as a back-end is told to serve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// The program; outboard-net if none is named.
    pub program: Option<PathBuf>,
    /// What is behind it.
    pub port: Port,
    /// Its address.
    pub mac: Mac,
    /// The MTU that the guest is told.
    pub mtu: Option<u16>,
    /// Pairs of queues.
    pub pairs: u16,
}

/// Makes a device and its source of the settings of the card `id`.
///
/// # Errors
/// A message that names the key and says what would be right.
pub fn card(id: &str, mut net: NetSettings) -> Result<(launch::Device, Source), String> {
    let pairs = within("queues", net.queues.unwrap_or(1), 1, MAX_PAIRS)? as u16;
    let device = launch::Device {
        id: id.to_owned(),
        kind: Kind::net(),
        // And the control queue.
        queues: 2 * pairs + 1,
        fewer: net.queues.is_none(),
        queue_size: queue_size(net.queue_size)?,
    };
    if let Some(path) = net.socket {
        let own = [
            ("tap", net.tap.is_some()),
            ("peer", net.peer.is_some()),
            ("backend", net.backend.is_some()),
            ("mac", net.mac.is_some()),
            ("mtu", net.mtu.is_some()),
            ("listen", net.listen),
        ];
        if let Some((key, _)) = own.iter().find(|(_, given)| *given) {
            return Err(format!(
                "`{key}` and `socket` exclude each other: with `socket` it is the affair of the \
                 back-end that listens there"
            ));
        }
        let wait = net.wait.unwrap_or(DEFAULT_WAIT);
        return Ok((device, Source::Socket { path, wait }));
    }
    let port = port(&mut net, pairs)?;
    let mtu = match net.mtu {
        Some(mtu) => Some(within("mtu", mtu, MIN_MTU, u16::MAX.into())? as u16),
        None => None,
    };
    let mac = match &net.mac {
        Some(text) => parse_mac(text).map_err(|error| format!("`mac`: {error}"))?,
        None => stable_mac(id, &port, &machine_id()),
    };
    let source = Source::Net(Card {
        program: net.backend,
        port,
        mac,
        mtu,
        pairs,
    });
    Ok((device, source))
}

/// What is behind a card that no socket's back-end serves; it is taken out of
/// the settings.
fn port(net: &mut NetSettings, pairs: u16) -> Result<Port, String> {
    if net.wait.is_some() && (net.peer.is_none() || net.listen) {
        return Err("`wait` is for a `socket=PATH`, or a `peer=PATH` that listens".into());
    }
    if net.listen && net.peer.is_none() {
        return Err("`listen` is for a `peer=PATH`; there is none".into());
    }
    match (net.tap.take(), net.peer.take(), &net.backend) {
        (Some(_), Some(_), _) => Err("`tap` and `peer` exclude each other".into()),
        (Some(tap), None, _) => Ok(Port::Tap(tap)),
        (None, Some(_), _) if pairs > 1 => {
            Err(format!("queues {pairs}: a peer has one pair of queues"))
        }
        (None, Some(path), _) => Ok(Port::Peer {
            path,
            wait: (!net.listen).then_some(net.wait.unwrap_or(DEFAULT_WAIT)),
        }),
        (None, None, Some(_)) => Ok(Port::Program),
        (None, None, None) => {
            Err("give `tap=NAME`, `peer=PATH`, or `socket=PATH` of a back-end that listens".into())
        }
    }
}

/// What tells this host from others.
fn machine_id() -> Vec<u8> {
    let id = fs::read("/etc/machine-id").or_else(|_| fs::read("/proc/sys/kernel/hostname"));
    id.unwrap_or_default()
}

/// The address of a card that was given none: the same each time, and another
/// for each id, for each tap or socket, which no two VMs share, and for each
/// host. It is locally administered.
fn stable_mac(id: &str, port: &Port, host: &[u8]) -> Mac {
    let (kind, port) = match port {
        Port::Tap(name) => ("tap", name.as_bytes().to_vec()),
        Port::Peer { path, .. } => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            ("peer", path.as_os_str().as_bytes().to_vec())
        }
        Port::Program => ("program", Vec::new()),
    };
    let parts = [host, kind.as_bytes(), &port, id.as_bytes()];
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

/// Opens what a card needs.
///
/// # Errors
/// A message that names the tap, the socket or the program and says what to do.
pub fn open(device: &launch::Device, card: Card) -> Result<Resource> {
    let program = match &card.program {
        Some(path) => Program::open(path)?,
        None => Program::own(NET)?,
    };
    let args = arguments(device, &card);
    let whose = whose(card.program.as_ref(), None);
    let lent = match card.port {
        Port::Tap(name) => Lent::Tap(TapQueues::open(&name, card.pairs)?),
        Port::Peer { path, wait: None } => Lent::Listening(Listener::bind(&path)?),
        Port::Peer {
            path,
            wait: Some(wait),
        } => Lent::Peer { path, wait },
        Port::Program => Lent::Fds(Vec::new()),
    };
    Ok(Resource::Program {
        program,
        args,
        lent,
        whose,
    })
}

/// The command line of a network back-end (PROTOCOL.md, launch contract).
fn arguments(device: &launch::Device, card: &Card) -> Vec<String> {
    let first = launch::BACKEND_FD + 1;
    let mut args = vec![format!("--fd={}", launch::BACKEND_FD)];
    match &card.port {
        Port::Tap(_) => {
            let numbers = (0..card.pairs).map(|pair| (first + i32::from(pair)).to_string());
            args.push(format!(
                "--tap-fd={}",
                numbers.collect::<Vec<_>>().join(",")
            ));
        }
        Port::Peer { path, wait } => {
            args.push(format!("--peer-fd={first}"));
            // Where it connects again by itself.
            let path = std::path::absolute(path).ok().filter(|_| wait.is_some());
            if let Some(path) = path.as_deref().and_then(Path::to_str) {
                args.push(format!("--peer={path}"));
            }
        }
        Port::Program => {}
    }
    let mac = card.mac.map(|byte| format!("{byte:02x}"));
    args.push(format!("--mac={}", mac.join(":")));
    if let Some(mtu) = card.mtu {
        args.push(format!("--mtu={mtu}"));
    }
    args.push(format!("--num-queues={}", card.pairs));
    args.push(format!("--queue-size={}", device.queue_size));
    args
}

#[cfg(test)]
mod tests {
    use super::super::text::options;
    use super::*;

    fn refused(text: &str, words: &str) {
        let error = card("net0", options::read(text).unwrap()).unwrap_err();
        assert!(error.contains(words), "{text}: {error}");
    }

    fn accepted(text: &str) -> (launch::Device, Card) {
        match card("net0", options::read(text).unwrap()).unwrap() {
            (device, Source::Net(card)) => (device, card),
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
        ] {
            refused(text, words);
        }
        let unknown = options::read::<NetSettings>("tap=t,speed=9").unwrap_err();
        assert!(unknown.contains("unknown key"), "{unknown}");
    }

    #[test]
    fn a_back_end_is_told_what_was_asked_for() {
        let (device, card) = accepted("tap=t,queues=2,mac=02:00:00:00:00:AB,mtu=9000");
        assert_eq!((device.queues, device.kind.virtio_id), (5, 1));
        assert_eq!(
            arguments(&device, &card),
            [
                "--fd=3",
                "--tap-fd=4,5",
                "--mac=02:00:00:00:00:ab",
                "--mtu=9000",
                "--num-queues=2",
                "--queue-size=256",
            ]
        );
        let (device, card) = accepted("peer=p,listen");
        assert_eq!(arguments(&device, &card)[1], "--peer-fd=4");
        let (device, card) = accepted("backend=b");
        assert!(arguments(&device, &card)[1].starts_with("--mac="));
    }

    #[test]
    fn an_address_is_stable_local_and_ones_own() {
        let tap = |name: &str| Port::Tap(name.into());
        let mac = stable_mac("net0", &tap("t0"), b"host");
        assert_eq!(mac, stable_mac("net0", &tap("t0"), b"host"));
        // What has been given out must not change with a release.
        assert_eq!(mac[0] & 3, 2);
        let peer = Port::Peer {
            path: "t0".into(),
            wait: Some(DEFAULT_WAIT),
        };
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
