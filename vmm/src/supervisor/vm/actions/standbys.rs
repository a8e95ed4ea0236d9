//! The processes that wait beside those that serve.

use anyhow::{Context, Result};
use outboard_protocol::kept::Kept;
use outboard_protocol::launch::{SessionNumber, ToMachine};

use super::{Hands, restored};
use crate::supervisor::vm::action::Who;
use crate::supervisor::vm::backend::Backend;
use crate::supervisor::vm::device;
use crate::supervisor::vm::event::Event;

impl<'a> Hands<'a> {
    /// The one that waits for the device at this place, or would.
    pub(super) fn waiting(&mut self, place: usize) -> Option<&mut Backend<'a>> {
        self.standbys.get_mut(place)?.as_mut()
    }

    /// All of both kinds.
    pub(super) fn everybody(&self) -> impl Iterator<Item = (Who, &Backend<'a>)> {
        let backends = self.backends.iter().enumerate();
        let backends = backends.map(|(place, backend)| (Who::Device(place), backend));
        let standbys = self.standbys.iter().enumerate();
        let standbys = standbys.filter_map(|(place, it)| Some((Who::Standby(place), it.as_ref()?)));
        backends.chain(standbys)
    }

    /// What there is of every one that waits.
    pub(super) fn of_standbys(
        &mut self,
        ask: impl Fn(&mut Backend<'a>) -> Vec<device::Event>,
    ) -> Vec<Event> {
        let mut events = Vec::new();
        for (place, standby) in self.standbys.iter_mut().enumerate() {
            let Some(standby) = standby else { continue };
            let session = standby.session();
            let of_it = ask(standby).into_iter();
            events.extend(of_it.map(|event| of_standby(place, session, event)));
        }
        events
    }

    /// Starts one that is to wait. Returns that it was not started, if so.
    pub(super) fn prepare(&mut self, place: usize, session: SessionNumber) -> Option<Event> {
        let error = self.try_prepare(place, session).err()?;
        let event = device::Event::CannotBegin(format!("{error:#}"));
        Some(of_standby(place, session, event))
    }

    fn try_prepare(&mut self, place: usize, session: SessionNumber) -> Result<()> {
        let (parent, logging) = (self.parent, &self.resources.logging);
        let standby = self.waiting(place);
        let standby = standby.context("the device is to have no standby")?;
        let opened = standby.opened();
        let front = standby.start(session, None, parent, logging)?;
        let prepare = ToMachine::Prepare {
            device: opened.spec.id.clone(),
            session,
            whose: opened.whose,
        };
        self.send(prepare, vec![front]);
        Ok(())
    }

    /// The one that waits serves from now on, and nobody waits.
    pub(super) fn take_over(
        &mut self,
        place: usize,
        session: SessionNumber,
        kept: Option<Kept>,
    ) -> Result<()> {
        let backend = self.backends.get_mut(place);
        let standby = self.standbys.get_mut(place).and_then(Option::as_mut);
        let (backend, standby) = backend.zip(standby).context("nobody waits")?;
        let replay = backend.take_order();
        std::mem::swap(backend, standby);
        backend.follow(standby);
        let opened = backend.opened();
        let restored = restored(kept.as_ref(), opened.server.is_ours());
        // Before the machine lets it serve.
        backend.take_over(kept.unwrap_or_default(), replay)?;
        let promote = ToMachine::Promote {
            device: opened.spec.id.clone(),
            session,
            restored,
        };
        self.send(promote, Vec::new());
        Ok(())
    }
}

fn of_standby(place: usize, session: SessionNumber, event: device::Event) -> Event {
    Event::Device(place, device::Event::Standby(session, Box::new(event)))
}
