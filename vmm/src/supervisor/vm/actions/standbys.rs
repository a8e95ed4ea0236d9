//! The processes that wait beside those that serve.

use std::rc::Rc;

use anyhow::{Context, Result};
use outboard_protocol::kept::Kept;
use outboard_protocol::launch::{Replaces, Restored, SessionNumber, ToMachine};

use super::changes::with_link;
use super::{Hands, restored};
use crate::supervisor::api::model::{Served, SwapRequest};
use crate::supervisor::host::lend::{self, Opened};
use crate::supervisor::vm::action::{Heir, Who};
use crate::supervisor::vm::backend::Backend;
use crate::supervisor::vm::device::{self, Server};
use crate::supervisor::vm::event::Event;

impl<'a> Hands<'a> {
    /// The one that waits for the device at this place, or would.
    pub(super) fn waiting(&mut self, place: usize) -> Option<&mut Backend> {
        self.standbys.get_mut(place)?.as_mut()
    }

    /// All of both kinds.
    pub(super) fn everybody(&self) -> impl Iterator<Item = (Who, &Backend)> {
        let backends = self.backends.iter().enumerate();
        let backends = backends.map(|(place, backend)| (Who::Device(place), backend));
        let standbys = self.standbys.iter().enumerate();
        let standbys = standbys.filter_map(|(place, it)| Some((Who::Standby(place), it.as_ref()?)));
        backends.chain(standbys)
    }

    /// What there is of every one that waits.
    pub(super) fn of_standbys(
        &mut self,
        ask: impl Fn(&mut Backend) -> Vec<device::Event>,
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

    /// Opens what is wanted in place of a device's back-end, and looks for whom that needs.
    pub(super) fn open(
        &mut self,
        place: usize,
        session: SessionNumber,
        request: &SwapRequest,
    ) -> Option<Event> {
        let event = match self.try_open(place, session, request) {
            Ok(server) => device::Event::Opened(Box::new(server)),
            Err(error) => device::Event::CannotBegin(format!("{error:#}")),
        };
        Some(of_standby(place, session, event))
    }

    fn try_open(
        &mut self,
        place: usize,
        session: SessionNumber,
        request: &SwapRequest,
    ) -> Result<Server> {
        let backend = self
            .backends
            .get(place)
            .context("there is no such device")?;
        let opened = lend::instead(backend.opened(), request, &mut self.resources.images)?;
        let server = Server::of(&opened);
        let held_down = self.is_held_down(place);
        let mut candidate = with_link(Backend::new(&Rc::new(opened))?, held_down);
        let both = (served(backend), served(&candidate));
        let swap = self.swaps.get_mut(place);
        swap.context("there is no such device")?.replace(both);
        if server.seeks {
            candidate.seek();
        }
        candidate.is_for(session);
        let standby = self.standbys.get_mut(place);
        // A standby is made anew when its time comes.
        *standby.context("there is no such device")? = Some(candidate);
        Ok(server)
    }

    /// Starts one that is to wait. Returns that it was not started, if so.
    pub(super) fn prepare(
        &mut self,
        place: usize,
        session: SessionNumber,
        heir: Option<Heir>,
    ) -> Option<Event> {
        let error = self.try_prepare(place, session, heir).err()?;
        let event = device::Event::CannotBegin(format!("{error:#}"));
        Some(of_standby(place, session, event))
    }

    fn try_prepare(
        &mut self,
        place: usize,
        session: SessionNumber,
        heir: Option<Heir>,
    ) -> Result<()> {
        if heir.is_none() {
            self.renew_standby(place)?;
        }
        let parent = self.parent;
        let standby = self.standbys.get_mut(place).and_then(Option::as_mut);
        let standby = standby.context("nobody is to wait for the device")?;
        let front = standby.start(session, None, parent, &self.resources.logging)?;
        let opened = Rc::clone(standby.opened());
        let is_ours = opened.server.is_ours();
        let prepare = ToMachine::Prepare {
            device: opened.spec.id.clone(),
            session,
            asked: !is_ours,
            whose: opened.whose,
            replaces: heir.map(|heir| Replaces {
                restored: restored(heir.kept.as_ref(), is_ours),
                resizes: heir.resizes,
            }),
        };
        self.send(prepare, vec![front]);
        Ok(())
    }

    /// A standby is what the back-end is that it is to follow.
    fn renew_standby(&mut self, place: usize) -> Result<()> {
        let held_down = self.is_held_down(place);
        let backend = self.backends.get(place);
        let opened = backend.context("there is no such device")?.opened();
        let standby = self.standbys.get_mut(place);
        let standby = standby.context("there is no such device")?;
        let is_same = |it: &Backend| Rc::ptr_eq(it.opened(), opened);
        if !standby.as_ref().is_some_and(is_same) {
            *standby = Some(with_link(Backend::new(opened)?, held_down));
        }
        Ok(())
    }

    /// The one that waits serves from now on, and who served has its place.
    pub(super) fn take_over(
        &mut self,
        place: usize,
        session: SessionNumber,
        kept: Option<Kept>,
        resizes: bool,
    ) -> Result<()> {
        self.exchange(place);
        let former = self.standbys.get_mut(place).and_then(Option::as_mut);
        let backend = self.backends.get_mut(place);
        let (backend, former) = backend.zip(former).context("nobody waits")?;
        backend.follow(former);
        let order = former.take_order();
        let opened = backend.opened();
        let device = opened.spec.id.clone();
        let restored = restored(kept.as_ref(), opened.server.is_ours());
        // Before the machine lets it serve.
        backend.take_over(kept.unwrap_or_default(), order)?;
        let promote = ToMachine::Promote {
            device,
            session,
            restored,
            resizes,
        };
        self.send(promote, Vec::new());
        Ok(())
    }

    /// Whoever has handed back the rings goes on with them.
    pub(super) fn go_on(&mut self, place: usize, session: SessionNumber) {
        let Some(device) = self.id(place) else {
            return;
        };
        let promote = ToMachine::Promote {
            device,
            session,
            restored: Restored::Nothing,
            resizes: false,
        };
        self.send(promote, Vec::new());
    }

    /// Who serves and who waits change places.
    pub(super) fn exchange(&mut self, place: usize) {
        let backend = self.backends.get_mut(place);
        let standby = self.standbys.get_mut(place).and_then(Option::as_mut);
        if let Some((backend, standby)) = backend.zip(standby) {
            std::mem::swap(backend, standby);
        }
    }

    /// Nothing is left of who had its place. Whoever listens at a socket may serve another.
    pub(super) fn forget_standby(&mut self, place: usize) {
        let standby = self.standbys.get_mut(place).and_then(Option::take);
        standby.iter().for_each(Backend::hang_up);
    }
}

impl Server {
    /// That of what was opened.
    pub(crate) fn of(opened: &Opened) -> Self {
        let Opened { server, whose, .. } = opened;
        Self {
            name: server.name(),
            seeks: server.sought().is_some(),
            program: server.is_ours().then_some(*whose),
            whose: *whose,
            has_image: server.lends_image(),
            must_wait: server.must_wait(),
        }
    }
}

/// Who serves by this.
pub(super) fn served(backend: &Backend) -> Served {
    Served {
        program: backend.opened().server.name(),
        version: backend.release().map(str::to_owned),
    }
}

fn of_standby(place: usize, session: SessionNumber, event: device::Event) -> Event {
    Event::Device(place, device::Event::Standby(session, Box::new(event)))
}
