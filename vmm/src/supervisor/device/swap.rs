//! What is wanted in place of a device's back-end: another program, what that is lent, or
//! whoever listens at a socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use outboard_protocol::devices::{BLK, NET, RNG};

use super::plan::{self, Executable, Lend, Plan, ServedBy};
use super::{blk, net, rng};
use crate::supervisor::api::model::SwapRequest;
use crate::supervisor::text::units::Wait;

/// Longest time that a back-end at a socket can be given to listen and to answer.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

impl Plan {
    /// What the program of this plan is lent, if it has one.
    pub(crate) fn lends(&self) -> Option<&Lend> {
        match &self.served_by {
            ServedBy::Program { lend, .. } => Some(lend),
            ServedBy::Socket { .. } => None,
        }
    }

    /// The same device, served as is wanted. What is not named stays as it is; of a device
    /// that is served at a socket, as it was when a program was last started for it
    /// (`home`).
    ///
    /// # Errors
    /// A message that says what contradicts the device, or itself.
    pub(crate) fn with(&self, home: Option<&Self>, wanted: &SwapRequest) -> Result<Self, String> {
        contradicts_itself(wanted)?;
        let SwapRequest { backend, path, .. } = wanted;
        if let Some(socket) = &wanted.socket {
            let wait = wanted.wait_ms.map(Duration::from_millis);
            return Ok(self.at(socket, plan::wait(wait.map(Wait::For))));
        }
        let Some(home) = home else {
            return Err(format!(
                "{} was begun with `socket=`, so it is not known how a program for it would be \
                 started: give `socket=PATH`",
                self.spec.id
            ));
        };
        let mut plan = home.clone();
        if let Some(name) = backend {
            plan.run(name)?;
        }
        if let Some(path) = path {
            plan.use_image(path)?;
        }
        if let Some(name) = wanted.tap.clone() {
            plan.put_behind(|pairs| Lend::Tap { name, pairs })?;
        }
        if let Some(path) = wanted.peer.clone() {
            let wait = plan::wait(None);
            plan.put_behind(|_| match wanted.listen {
                true => Lend::Listen { path },
                false => Lend::Connect { path, wait },
            })?;
        }
        Ok(plan)
    }

    fn at(&self, socket: &Path, wait: Wait) -> Self {
        let path = socket.to_owned();
        Self {
            served_by: ServedBy::Socket { path, wait },
            ..self.clone()
        }
    }

    /// By this program: one of Outboard's own by its name, any other by its path.
    fn run(&mut self, name: &Path) -> Result<(), String> {
        let own = match self.spec.kind.virtio_id {
            BLK => Some(blk::OWN),
            NET => Some(net::OWN),
            RNG => Some(rng::OWN),
            _ => None,
        };
        let is_it = |own: &Executable| matches!(own, Executable::Own { name: known, .. } if Path::new(known) == name);
        let own = own.filter(is_it);
        let ServedBy::Program {
            executable, args, ..
        } = &mut self.served_by
        else {
            return Ok(());
        };
        *executable = match own {
            Some(own) => own,
            None => Executable::Named {
                path: name.to_owned(),
                writeback: !args.iter().any(|arg| arg == "--wce=off"),
            },
        };
        Ok(())
    }

    /// Another tap or peer for a card with so many pairs of queues.
    fn put_behind(&mut self, lend: impl FnOnce(u16) -> Lend) -> Result<(), String> {
        let (id, pairs) = (&self.spec.id, self.spec.queues / 2);
        let ServedBy::Program {
            lend: has, args, ..
        } = &mut self.served_by
        else {
            return Ok(());
        };
        if !matches!(
            has,
            Lend::Tap { .. } | Lend::Connect { .. } | Lend::Listen { .. }
        ) {
            return Err(format!(
                "{id} has no tap and no peer that others could replace"
            ));
        }
        let lend = lend(pairs);
        if pairs > 1 && !matches!(lend, Lend::Tap { .. }) {
            return Err(format!(
                "{id} has {pairs} pairs of queues, and a peer has one"
            ));
        }
        *args = net::with_behind(args, &lend);
        *has = lend;
        Ok(())
    }

    fn use_image(&mut self, file: &Path) -> Result<(), String> {
        match &mut self.served_by {
            ServedBy::Program {
                lend: Lend::Image { path, .. },
                ..
            } => {
                *path = PathBuf::from(file);
                Ok(())
            }
            _ => Err(format!(
                "{} has no image that another could take the place of",
                self.spec.id
            )),
        }
    }
}

/// What is wanted must be one thing, whatever the device.
fn contradicts_itself(wanted: &SwapRequest) -> Result<(), String> {
    let SwapRequest {
        path, tap, peer, ..
    } = wanted;
    let behind = [path.is_some(), tap.is_some(), peer.is_some()];
    let refused = if behind.iter().filter(|given| **given).count() > 1 {
        "`path`, `tap` and `peer` exclude one another"
    } else if wanted.listen && peer.is_none() {
        "`listen` is for a `peer=PATH`; there is none"
    } else if wanted.wait_ms.is_some() && wanted.socket.is_none() {
        "`wait` is for a `socket=PATH`; there is none"
    } else if wanted.wait_ms.map(Duration::from_millis) > Some(LONGEST_WAIT) {
        "`wait` is 60s at most: swap once somebody listens"
    } else if wanted.socket.is_some() && (wanted.backend.is_some() || behind.contains(&true)) {
        "`socket` excludes the other keys: the back-end that listens there has what it serves already"
    } else {
        return Ok(());
    };
    Err(refused.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::device::blk::DiskSettings;
    use crate::supervisor::device::net::NetSettings;
    use crate::supervisor::device::plan::DeviceOption;
    use crate::supervisor::text::options;

    fn disk(text: &str) -> Plan {
        let disk: DiskSettings = options::read(text).unwrap();
        disk.plan("disk0".into(), 1).unwrap()
    }

    fn card(text: &str) -> Plan {
        let card: NetSettings = options::read(text).unwrap();
        card.plan("net0".into(), 1).unwrap()
    }

    fn wanted(change: impl FnOnce(&mut SwapRequest)) -> SwapRequest {
        let mut request = SwapRequest::default();
        change(&mut request);
        request
    }

    #[test]
    fn what_is_not_named_stays_and_a_socket_is_left_for_what_was_before_it() {
        let home = disk("path=a,wce=off,queues=2");
        let nothing = SwapRequest::default();
        assert_eq!(home.with(Some(&home), &nothing).unwrap(), home);
        let socket = wanted(|it| (it.socket, it.wait_ms) = (Some("/s".into()), Some(7)));
        let away = home.with(Some(&home), &socket).unwrap();
        let wait = Wait::For(Duration::from_millis(7));
        let path = "/s".into();
        assert_eq!(away.served_by, ServedBy::Socket { path, wait });
        assert_eq!(away.with(Some(&home), &nothing).unwrap(), home);
        let copy = wanted(|it| it.path = Some("b".into()));
        let copied = away.with(Some(&home), &copy).unwrap();
        assert_eq!(copied, disk("path=b,wce=off,queues=2"));
        let other = wanted(|it| it.backend = Some("/bin/x".into()));
        let other = home.with(Some(&home), &other).unwrap();
        assert_eq!(other, disk("path=a,wce=off,queues=2,backend=/bin/x"));
        let own = wanted(|it| it.backend = Some("outboard-blk".into()));
        assert_eq!(other.with(Some(&other), &own).unwrap(), home);
    }

    #[test]
    fn another_network_leaves_a_card_its_address() {
        let home = card("tap=t0,mac=02:00:00:00:00:07");
        for (text, wanted) in [
            ("tap=t1", wanted(|it| it.tap = Some("t1".into()))),
            ("peer=/p", wanted(|it| it.peer = Some("/p".into()))),
            (
                "peer=/p,listen",
                wanted(|it| (it.peer, it.listen) = (Some("/p".into()), true)),
            ),
        ] {
            let expected = card(&format!("{text},mac=02:00:00:00:00:07"));
            assert_eq!(home.with(Some(&home), &wanted).unwrap(), expected);
        }
    }

    #[test]
    fn what_contradicts_the_device_or_itself_is_refused() {
        let (blk, net) = (disk("path=a"), card("tap=t0"));
        let pairs = card("tap=t0,queues=2");
        let peer = wanted(|it| it.peer = Some("/p".into()));
        for (plan, wanted, words) in [
            (
                &blk,
                wanted(|it| it.tap = Some("t".into())),
                "no tap and no peer",
            ),
            (
                &net,
                wanted(|it| it.path = Some("a".into())),
                "has no image",
            ),
            (
                &pairs,
                peer.clone(),
                "2 pairs of queues, and a peer has one",
            ),
            (
                &net,
                wanted(|it| it.listen = true),
                "`listen` is for a `peer",
            ),
            (
                &blk,
                wanted(|it| it.wait_ms = Some(1)),
                "`wait` is for a `socket",
            ),
            (
                &net,
                SwapRequest {
                    tap: Some("t".into()),
                    ..peer.clone()
                },
                "exclude one another",
            ),
            (
                &net,
                SwapRequest {
                    socket: Some("/s".into()),
                    ..peer.clone()
                },
                "`socket` excludes",
            ),
            (
                &blk,
                wanted(|it| (it.socket, it.wait_ms) = (Some("/s".into()), Some(60_001))),
                "60s at most",
            ),
        ] {
            let error = plan.with(Some(plan), &wanted).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let socket = disk("socket=/s");
        let error = socket.with(None, &SwapRequest::default()).unwrap_err();
        assert!(error.contains("begun with `socket=`"), "{error}");
    }
}
