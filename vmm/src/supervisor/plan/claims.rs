//! What only one device of a VM can have: a tap, a back-end's socket, a place to
//! listen at. Two devices that want the same one are refused before anything is
//! opened, even where they name it by different paths. (A peer that listens may take several cards, as a switch does.)
//!
//! (Images are told apart where they are opened: two may share one that both
//! only read.)

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::supervisor::device::plan::{Lend, Plan, ServedBy};

/// What a device wants for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim<'a> {
    /// A tap, by name.
    Tap(&'a str),
    /// The socket at which its back-end listens.
    BackEnd(&'a Path),
    /// The socket at which its peer listens.
    Peer(&'a Path),
    /// A socket of its own, at which its peer connects.
    Listen(&'a Path),
}

impl<'a> Claim<'a> {
    fn of(plan: &'a Plan) -> Option<Self> {
        match &plan.served_by {
            ServedBy::Socket { path, .. } => Some(Self::BackEnd(path)),
            ServedBy::Program { lend, .. } => match lend {
                Lend::Tap { name, .. } => Some(Self::Tap(name)),
                Lend::Connect { path, .. } => Some(Self::Peer(path)),
                Lend::Listen { path } => Some(Self::Listen(path)),
                Lend::Image { .. } | Lend::Nothing => None,
            },
        }
    }

    fn path(self) -> Option<&'a Path> {
        match self {
            Self::Tap(_) => None,
            Self::BackEnd(path) | Self::Peer(path) | Self::Listen(path) => Some(path),
        }
    }

    /// Why two devices cannot have these, which are the same tap or place.
    fn conflict(self, other: Self) -> Option<&'static str> {
        match (self, other) {
            (Self::Tap(_), Self::Tap(_)) => Some("give each card a tap of its own"),
            // One card listens, the other is its peer.
            (Self::Peer(_), Self::Listen(_)) | (Self::Listen(_), Self::Peer(_)) => None,
            // A switch takes many at one socket.
            (Self::Peer(_), Self::Peer(_)) => None,
            (Self::Listen(_), Self::Listen(_)) => {
                Some("a peer connects to one card there, so give each card a socket of its own")
            }
            (Self::BackEnd(_), Self::BackEnd(_)) => {
                Some("a back-end serves one device, so give each device a back-end of its own")
            }
            _ => Some("a back-end listens at one, and a card's peer at the other"),
        }
    }
}

/// Which file or socket a path leads to, by whatever name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// One that is there.
    Found(u64, u64),
    /// One that is not there yet.
    Named(PathBuf),
}

impl Place {
    fn of(path: &Path) -> Self {
        if let Ok(found) = fs::metadata(path) {
            return Self::Found(found.dev(), found.ino());
        }
        let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        // Its folder may be there, and have several names.
        let folder = whole.parent().and_then(|folder| folder.canonicalize().ok());
        match (folder, whole.file_name()) {
            (Some(folder), Some(name)) => Self::Named(folder.join(name)),
            _ => Self::Named(whole),
        }
    }
}

/// Checks that no two devices want the same for themselves.
///
/// # Errors
/// A message that names what is wanted twice, both devices, and what to do.
pub(crate) fn check(devices: &[Plan]) -> Result<(), String> {
    let mut known: Vec<(&str, Claim<'_>, Option<Place>)> = Vec::new();
    for device in devices {
        let Some(claim) = Claim::of(device) else {
            continue;
        };
        let place = claim.path().map(Place::of);
        for (id, other, other_place) in &known {
            let same = match (claim, *other) {
                (Claim::Tap(name), Claim::Tap(other)) => name == other,
                _ => place.is_some() && place == *other_place,
            };
            if let Some(advice) = claim.conflict(*other).filter(|_| same) {
                return Err(twice(*other, claim, (id, &device.spec.id), advice));
            }
        }
        known.push((&device.spec.id, claim, place));
    }
    Ok(())
}

fn twice(first: Claim<'_>, second: Claim<'_>, ids: (&str, &str), advice: &str) -> String {
    let what = match first {
        Claim::Tap(name) => format!("tap {name}"),
        Claim::BackEnd(path) | Claim::Peer(path) | Claim::Listen(path) => {
            format!("the socket {}", path.display())
        }
    };
    // Who wrote two names must hear why they are one.
    let paths = first.path().zip(second.path());
    let by_another_name = match paths.filter(|(one, two)| one.as_os_str() != two.as_os_str()) {
        Some((_, path)) => format!(", there as {}", path.display()),
        None => String::new(),
    };
    let (one, other) = ids;
    format!("{what} is given twice: {one} and {other}{by_another_name}; {advice}")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::super::VmPlan;
    use super::*;
    use crate::supervisor::device::rng;
    use crate::supervisor::text::options;
    use crate::supervisor::text::settings::Settings;

    /// The devices of a VM, as its options give them.
    fn checked(options: &[(&str, &str)]) -> Result<(), String> {
        let mut given = Settings {
            kernel: Some("vmlinuz".into()),
            ..Settings::default()
        };
        for (option, value) in options {
            match *option {
                "disk" => given.disk.push(options::read(value).unwrap()),
                "net" => given.net.push(options::read(value).unwrap()),
                "rng" => given.rng.push(rng::read(value).unwrap()),
                _ => given.device.push(options::read(value).unwrap()),
            }
        }
        VmPlan::new(given).map(drop)
    }

    #[test]
    fn a_tap_or_a_socket_that_two_devices_want_is_named_with_both() {
        for (one, other, words) in [
            (
                ("net", "tap=t0"),
                ("net", "tap=t0"),
                "tap t0 is given twice: net0 and net1; give each card a tap of its own",
            ),
            (
                ("disk", "socket=s"),
                ("disk", "socket=s,id=root"),
                "the socket s is given twice: disk0 and root; a back-end serves one device",
            ),
            (
                ("disk", "socket=s"),
                ("rng", "socket=s"),
                "the socket s is given twice: disk0 and rng0",
            ),
            (
                ("net", "socket=s"),
                ("device", "virtio-id=4,socket=s,queues=1,config-size=0"),
                "the socket s is given twice: net0 and device0",
            ),
            (
                ("net", "peer=p,listen"),
                ("net", "peer=p,listen"),
                "the socket p is given twice: net0 and net1; a peer connects to one card",
            ),
            (
                ("disk", "socket=p"),
                ("net", "peer=p"),
                "a back-end listens at one, and a card's peer at the other",
            ),
        ] {
            let error = checked(&[one, other]).unwrap_err();
            assert!(
                error.starts_with(words) || error.ends_with(words),
                "{error}"
            );
        }
    }

    #[test]
    fn what_two_devices_can_share_or_do_not_share_is_left_to_them() {
        for (one, other) in [
            (("net", "tap=t0"), ("net", "tap=t1")),
            (("net", "tap=p"), ("net", "peer=p")),
            (("net", "peer=p"), ("net", "peer=p")),
            (("net", "peer=p,listen"), ("net", "peer=p")),
            (("disk", "socket=s"), ("disk", "socket=s2")),
            (("disk", "path=a,readonly"), ("disk", "path=a,readonly")),
            (("net", "backend=b"), ("net", "backend=b")),
        ] {
            assert_eq!(checked(&[one, other]), Ok(()), "{one:?} {other:?}");
        }
    }

    #[test]
    fn one_socket_by_several_names_is_one_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let _listener = UnixListener::bind(path("there")).unwrap();
        std::os::unix::fs::symlink(path("there"), path("symlink")).unwrap();
        fs::hard_link(path("there"), path("hard-link")).unwrap();
        fs::create_dir(path("sub")).unwrap();
        std::os::unix::fs::symlink(path("sub"), path("sub-link")).unwrap();
        for (one, other) in [
            ("there", "symlink"),
            ("there", "hard-link"),
            ("there", "sub/../there"),
            ("there", "./there"),
            // Of one that is not there yet, the folder has the names.
            ("sub/late", "sub-link/late"),
            ("sub/late", "sub//./late"),
        ] {
            let socket = |name| format!("socket={}", path(name).display());
            let (one, other) = (socket(one), socket(other));
            let error = checked(&[("disk", &one), ("disk", &other)]).unwrap_err();
            let words = format!(
                "the socket {} is given twice: disk0 and disk1, there as {}; a back-end",
                &one[7..],
                &other[7..]
            );
            assert!(error.starts_with(&words), "{error}");
        }
        let late = [
            format!("socket={}", path("a").display()),
            format!("socket={}", path("b").display()),
        ];
        assert_eq!(checked(&[("disk", &late[0]), ("disk", &late[1])]), Ok(()));
    }
}
