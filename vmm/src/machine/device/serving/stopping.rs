//! Rings that are taken back from a back-end that works: they are stopped, what it had
//! taken of them is over, and the driver's set-up knows where each goes on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use outboard_log::rarely;
use outboard_protocol::launch::{self, Cause, Whose};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use super::super::backend::Backend;
use super::super::driver::Driver;
use super::super::seat::Seat;
use super::super::{kinds, ring};
use super::Serving;
use crate::machine::frontend::{Negotiated, Session, Started, Stopped, because};
use crate::machine::memory::Ram;
use crate::machine::virtio::Ring;

/// Rings that were handed back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HandedBack {
    /// How long it took until the back-end had stopped them all.
    pub(crate) stop: Duration,
    /// And then until what it had taken was over.
    pub(crate) drain: Duration,
    /// A queue of which it has not returned in time what it had taken.
    pub(crate) busy: Option<u16>,
    /// One has broken that nobody was told of.
    pub(crate) has_broken: bool,
}

/// What becomes of a card's back-end that keeps what it has taken to receive into
/// after it has stopped the ring, or of one of a kind that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeping {
    /// It must not touch that any more (vhost-user, "Suspended device state"), so
    /// it is said and believed.
    Believed,
    /// Its session is over: the guest turned bus mastering off, and nobody else
    /// may have the memory before.
    Refused,
    /// It goes on with its rings.
    Resumed,
}

impl Serving {
    /// Takes all rings back, and waits until what the back-end had taken of them
    /// has been returned. The driver's go on where they were; one that has broken
    /// does not: it was given up, and its used index is not where the back-end came
    /// to. Returns whether any has broken that nobody was told of.
    ///
    /// # Errors
    /// A ring is not handed back, or what was taken of it not returned.
    pub(crate) fn take_back(
        &mut self,
        seat: &Seat,
        driver: &mut Driver,
        keeping: Keeping,
    ) -> Result<bool> {
        let Some(session) = self.take_running() else {
            return Ok(false);
        };
        let (mut session, stopped) = session.stop()?;
        let drained = self.wait_for_all(&mut session, (seat, driver), &stopped, keeping);
        match keeping {
            Keeping::Refused => drained.context("the guest turned bus mastering off")?,
            Keeping::Believed | Keeping::Resumed => drained?,
        };
        Ok(self.is_idle_from_now_on(session, driver, &stopped))
    }

    /// As [`Self::take_back`], for a successor: where it does not return in time what it
    /// had taken, it can be started again and nothing is lost. (Not one that keeps a
    /// region: it would execute what it finds there once more.)
    ///
    /// # Errors
    /// As there.
    pub(crate) fn hand_back(&mut self, seat: &Seat, driver: &mut Driver) -> Result<HandedBack> {
        let Some(session) = self.take_running() else {
            return Ok(HandedBack::default());
        };
        let began = Instant::now();
        if self.whose != Whose::Own {
            let_it_rest(seat, driver);
        }
        let (mut session, stopped) = session.stop()?;
        let stop = began.elapsed();
        let agreed = session.agreement().protocol;
        let keeping = match agreed.contains(Protocol::INFLIGHT_SHMFD) {
            true => Keeping::Believed,
            false => Keeping::Resumed,
        };
        let busy = self.wait_for_all(&mut session, (seat, driver), &stopped, keeping)?;
        let drain = began.elapsed().saturating_sub(stop);
        let has_broken = self.is_idle_from_now_on(session, driver, &stopped);
        Ok(HandedBack {
            stop,
            drain,
            busy,
            has_broken,
        })
    }

    /// The session, if rings run.
    fn take_running(&mut self) -> Option<Session<Started>> {
        match std::mem::take(&mut self.backend) {
            Backend::Running(session) => Some(session),
            other => {
                self.backend = other;
                None
            }
        }
    }

    /// All rings were taken back. Returns whether any has broken that nobody was told of.
    fn is_idle_from_now_on(
        &mut self,
        session: Session<Negotiated>,
        driver: &mut Driver,
        stopped: &[Stopped],
    ) -> bool {
        self.backend = Backend::Idle(session);
        self.has_begun = false;
        let has_broken = self.errors.take_broken();
        driver.gives_up(|queue| self.errors.is_broken(queue));
        stopped.iter().for_each(|stopped| driver.rests(stopped));
        self.errors.clear();
        has_broken
    }

    /// As [`wait_drained`], of all rings that were stopped; returns the first that was
    /// not. One that its back-end has given up is stopped by its word alone: where it came
    /// to is not told by the used index.
    fn wait_for_all(
        &self,
        session: &mut Session<Negotiated>,
        (seat, driver): (&Seat, &Driver),
        stopped: &[Stopped],
        keeping: Keeping,
    ) -> Result<Option<u16>> {
        let whose = (&seat.spec, self.whose);
        for stopped in stopped {
            if let Some(ring) = driver.ring(stopped.queue)
                && !self.errors.is_broken(ring.index)
                && !wait_drained(session, whose, stopped, (&ring, &seat.ram), keeping)?
            {
                return Ok(Some(ring.index));
            }
        }
        Ok(None)
    }
}

/// Waits until the back-end has returned what it had taken of a ring before it
/// stopped that. Ours have when they say so; others may be late. A disk's goes no
/// further before that, since it would write into what the guest uses for other
/// things by then. Returns false for one that is late and is to go on.
///
/// # Errors
/// It does not finish, or has gone.
pub(super) fn wait_drained<P>(
    session: &mut Session<P>,
    (spec, whose): (&launch::Device, Whose),
    stopped: &Stopped,
    (ring, ram): (&Ring, &Ram),
    keeping: Keeping,
) -> Result<bool> {
    let Whose::Foreign { .. } = whose else {
        return Ok(true);
    };
    let goes_on = keeping == Keeping::Resumed;
    let is_short = kinds::may_hold(&spec.kind) || goes_on;
    let under_way = || ring::is_under_way(ring, stopped.base, ram);
    if session.wait_drained(stopped, is_short, under_way)? {
        return Ok(true);
    }
    let queue = stopped.queue;
    if goes_on {
        return Ok(false);
    }
    if kinds::must_finish(&spec.kind) || keeping == Keeping::Refused {
        let text =
            format!("the back-end stopped queue {queue} and did not finish its requests in time");
        bail!(because(Cause::Silent, text));
    }
    let id = &spec.id;
    rarely!(
        warn,
        "{id}: its back-end stopped queue {queue} and kept what it had taken"
    );
    Ok(true)
}

/// Lets no kick through, and waits until all is returned, or nothing is any more, if that is
/// soon.
///
/// libvhost-user (QEMU 7.2) closes the call of a ring that it stops, and takes a request that
/// completes then for a fault of its own: it ends the session. So it is to have none. Where
/// its threads wait for a processor it may be silent for some milliseconds in between.
fn let_it_rest(seat: &Seat, driver: &Driver) {
    const LOOK: Duration = Duration::from_millis(2);
    const LOOKS: usize = 50;
    /// Looks in a row that show the same.
    const STILL: usize = 5;
    seat.rest(driver);
    let look = || -> Vec<_> {
        let rings = driver.rings();
        rings
            .filter_map(|(ring, _)| ring::indices(&ring, false, &seat.ram))
            .map(|indices| (indices.used, indices.used == indices.available))
            .collect()
    };
    let (mut before, mut still) = (look(), 0);
    for _ in 0..LOOKS {
        std::thread::sleep(LOOK);
        let now = look();
        still = if now == before { still + 1 } else { 0 };
        let all_returned = now.iter().all(|(_, returned)| *returned);
        if still >= STILL || all_returned && still > 0 {
            return;
        }
        before = now;
    }
}
