//! What is changed of a device while its back-end serves it on: the size of its image, its
//! link.

use anyhow::{Context, Result, bail};
use outboard_protocol::devices::NET;
use outboard_protocol::launch::{ToMachine, Whose};

use super::Hands;
use crate::supervisor::api::call::{Refusal, Reply};
use crate::supervisor::host::lend::Server;
use crate::supervisor::vm::action::Action;
use crate::supervisor::vm::backend::Backend;
use crate::supervisor::vm::device;
use crate::supervisor::vm::event::Event;

impl Hands<'_> {
    /// Does what there is to be done of a change of a device that works, and of its standby.
    pub(super) fn change(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Open(place, session, request) => return self.open(place, session, &request),
            Action::Prepare(place, session, heir) => return self.prepare(place, session, heir),
            Action::HandBack(place, session) => {
                let device = self.id(place)?;
                self.send(ToMachine::HandBack { device, session }, Vec::new());
            }
            Action::GoOn(place, session) => self.go_on(place, session),
            Action::Resize(place, size) => return self.resize(place, size),
            Action::Truncate(place, size) => self.truncate(place, size),
            Action::Undo(place) => self.exchange(place),
            Action::Forget(place) => self.forget_standby(place),
            Action::TakeOver(place, session, kept, resizes) => {
                if let Err(error) = self.take_over(place, session, kept, resizes) {
                    let text = format!("{error:#}");
                    return Some(Event::Device(place, device::Event::CannotBegin(text)));
                }
            }
            // What else there is is done by whoever asks us.
            _ => {}
        }
        None
    }

    /// Tells the back-end of this disk that it has so many bytes, or as many as its image.
    pub(super) fn resize(&mut self, place: usize, size: Option<u64>) -> Option<Event> {
        let told = self.try_resize(place, size);
        let told = told.map_err(|error| format!("{error:#}"));
        Some(Event::Device(place, device::Event::ToldSize(told)))
    }

    fn try_resize(&mut self, place: usize, size: Option<u64>) -> Result<u64> {
        let backend = self
            .backends
            .get_mut(place)
            .context("there is no such device")?;
        let opened = backend.opened();
        let name = opened.server.name();
        if opened.whose != Whose::Own {
            bail!(
                "{name} is not Outboard's: resize it there, and the guest is told when it says so"
            );
        }
        let Some(image) = opened.server.image() else {
            bail!("{} has no image", opened.spec.id);
        };
        let size = image.prepare(size)?;
        backend.resize(size);
        Ok(size)
    }

    /// The disk has so many bytes, and nothing beyond them is in flight: its image needs no
    /// more.
    pub(super) fn truncate(&mut self, place: usize, size: u64) {
        let Some(backend) = self.backends.get(place) else {
            return;
        };
        let opened = backend.opened();
        let image = opened.server.image();
        if let Some(Err(error)) = image.map(|image| image.truncate(size)) {
            let id = &opened.spec.id;
            log::warn!("{id}: its image stays as large as it is, though the disk is not: {error}");
        }
    }

    /// Lets the link of this card be what is behind it, or holds it down.
    pub(super) fn link(&mut self, place: usize, up: bool) -> Reply {
        let Some(backend) = self.backends.get_mut(place) else {
            return Reply::Done;
        };
        let opened = backend.opened();
        let id = &opened.spec.id;
        let refused = |why: String| Reply::Refused(Refusal::NotNow(why));
        if opened.spec.kind.virtio_id != NET {
            return refused(format!("{id} is no network card, and has no link"));
        }
        if let Server::Socket { .. } = opened.server {
            let name = opened.server.name();
            return refused(format!(
                "whoever listens at {name} decides about the link of {id}"
            ));
        }
        let held = self.held_down.get_mut(place);
        held.into_iter().for_each(|held| *held = !up);
        backend.hold_link_down(!up);
        let standby = self.standbys.get_mut(place).and_then(Option::as_mut);
        standby.into_iter().for_each(|it| it.hold_link_down(!up));
        Reply::Done
    }

    /// Whether the link of this card is held down.
    pub(super) fn is_held_down(&self, place: usize) -> bool {
        self.held_down.get(place).copied().unwrap_or_default()
    }
}

/// One that is to be started for a device whose link is held down, or not.
pub(super) fn with_link(mut backend: Backend, held_down: bool) -> Backend {
    backend.hold_link_down(held_down);
    backend
}
