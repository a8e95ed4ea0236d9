//! What is wanted in place of a device's back-end: another program, what that is lent, or
//! whoever listens at a socket.

use std::path::{Path, PathBuf};

use outboard_protocol::devices::{BLK, NET, RNG};

use super::plan::{self, Executable, Lend, Plan, ServedBy};
use super::{blk, net, rng};
use crate::supervisor::api::model::SwapRequest;

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
        let SwapRequest {
            backend,
            socket,
            path,
            tap,
            peer,
            listen,
            ..
        } = wanted;
        let behind = [path.is_some(), tap.is_some(), peer.is_some()];
        if behind.iter().filter(|given| **given).count() > 1 {
            return Err("`path`, `tap` and `peer` exclude one another".into());
        }
        if *listen && peer.is_none() {
            return Err("`listen` is for a `peer=PATH`; there is none".into());
        }
        if let Some(socket) = socket {
            if backend.is_some() || behind.contains(&true) {
                return Err(
                    "`socket` excludes the other keys: the back-end that listens there has what it \
                     serves already"
                        .into(),
                );
            }
            return Ok(self.at(socket));
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
        if let Some(name) = tap {
            let name = name.clone();
            plan.put_behind(|pairs| Lend::Tap { name, pairs })?;
        }
        if let Some(path) = peer.clone() {
            let wait = plan::wait(None);
            plan.put_behind(|_| match listen {
                true => Lend::Listen { path },
                false => Lend::Connect { path, wait },
            })?;
        }
        Ok(plan)
    }

    fn at(&self, socket: &Path) -> Self {
        let path = socket.to_owned();
        let wait = plan::wait(None);
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
