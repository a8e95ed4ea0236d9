//! What a driver sets of a card: obeyed, kept for a successor in another process,
//! restored there, and undone by a reset.
//!
//! ```text
//! reset(0) ──► initial ──reset(features)──► in use ⟲ obey
//!                                             ▲
//! restore ──► restored ──reset(features)──────┘ nothing is initial in between
//! ```
//!
//! A tap is set as that says at each of these, unless the card waits; and when the first
//! ring begins, if that has not been done since the last ring ended: another process may
//! have served the card meanwhile, and have left the tap otherwise.
//!
//! Of the pairs of queues some are used, and who says which is not always the
//! same. By virtio the driver says it, by a command on the control queue, and
//! begins with one pair (virtio 1.3, section 5.1.6.5.5). But a front-end may keep
//! the control queue to itself, whether it acknowledges CTRL_VQ to us or not,
//! obeys the command and enables the rings of the pairs that are used. What tells
//! the two apart is whether we were given the control queue.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use outboard_protocol::kept::CardState;
use outboard_protocol::tap::Mac;

use super::{Card, Port};
use crate::command::Command;
use crate::features;
use crate::filter;
use crate::header::offloads;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct State {
    /// What the driver has commanded; of the pairs also that there is a control
    /// queue, by which it could.
    kept: CardState,
    /// That is of a driver whose features have not been acknowledged here.
    restored: bool,
    /// Entries of the receive ring of each pair that has been described.
    sizes: BTreeMap<u16, u16>,
    /// The tap is set as this says, for a driver that has negotiated these features;
    /// `None`: it may be otherwise.
    set_for: Option<u64>,
    /// Number of rings that are served.
    rings: u32,
}

/// A ring of the card is served while this is there.
#[derive(Debug)]
pub struct Service(Arc<Card>);

impl Drop for Service {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.rings = state.rings.saturating_sub(1);
        if state.rings == 0 {
            state.set_for = None;
        }
    }
}

impl Card {
    /// A ring of a driver that has negotiated `features` is about to be served: the tap
    /// is as that driver has it when this returns.
    pub fn begin(self: &Arc<Self>, features: u64) -> Service {
        let mut state = self.state();
        if state.set_for != Some(features) {
            self.take_over(&mut state, features);
        }
        // Its driver goes on: what it acknowledges later is not what it had acknowledged.
        state.restored = false;
        state.rings = state.rings.saturating_add(1);
        Service(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its address, if it has one.
    pub(super) fn address(&self) -> Option<Mac> {
        self.state().kept.mac.or(self.settings.mac)
    }

    /// Everything as for a fresh driver that has negotiated `features`; or for the
    /// one whose state was restored, if this says what it had negotiated.
    pub fn reset(&self, features: u64) {
        if features == 0 {
            self.counters.tell_rarely();
        }
        let mut state = self.state();
        if features != 0 && std::mem::take(&mut state.restored) {
            // The rest is set already, if anything is; that needs no features.
            if let (Port::Tap(tap), Some(_)) = (&self.port, state.set_for) {
                self.check(tap.set_offloads(state.offloads(features)));
                state.set_for = Some(features);
            }
            return;
        }
        *state = State {
            rings: state.rings,
            ..State::default()
        };
        self.take_over(&mut state, features);
    }

    /// What its driver has set, for a successor in another process.
    pub fn kept(&self) -> CardState {
        self.state().kept.clone()
    }

    /// Sets what was kept of a predecessor, before the first queue is made.
    ///
    /// # Errors
    /// A message that says what is out of bounds, or not of this card; nothing
    /// has changed.
    pub fn restore(&self, kept: &CardState) -> Result<(), String> {
        kept.check()?;
        let most = self.pairs();
        if let Some(pairs) = kept.pairs.filter(|pairs| *pairs > most) {
            return Err(format!(
                "{pairs} pairs of queues were used, and the card has {most}"
            ));
        }
        let offered = self.features() & features::guest_offloads();
        let foreign = kept.offloads.unwrap_or(0) & !offered;
        if foreign != 0 {
            return Err(format!(
                "offloads {foreign:#x} were used, which the card does not offer"
            ));
        }
        if kept.vlans.is_some() {
            return Err("a table of VLANs was set, which the card does not offer".into());
        }
        let mut state = self.state();
        *state = State {
            kept: kept.clone(),
            restored: true,
            rings: state.rings,
            ..State::default()
        };
        self.take_over(&mut state, 0);
        Ok(())
    }

    /// Sets the tap as the state says, unless another process serves it. Other pairs than
    /// the first are the driver's to turn on.
    fn take_over(&self, state: &mut State, features: u64) {
        state.set_for = (!self.waits()).then_some(features);
        if state.set_for.is_none() {
            return;
        }
        if let Port::Tap(tap) = &self.port
            && !self.tap_gone.load(Ordering::Acquire)
        {
            let filter = filter::for_tap(&state.kept, self.settings.mac);
            let pairs = state.kept.pairs.unwrap_or(1);
            self.check(tap.take_over(state.offloads(features), &filter, pairs));
        }
    }

    /// Obeys a command; whether it could be obeyed.
    pub fn obey(&self, command: &Command, features: u64) -> bool {
        match command {
            Command::Mode(mode, on) => self.refilter(|kept| mode.turn(&mut kept.modes, *on)),
            Command::Address(mac) => self.refilter(|kept| kept.mac = Some(*mac)),
            Command::Table(unicast, multicast) => self.refilter(|kept| {
                kept.unicast = unicast.clone().into();
                kept.multicast = multicast.clone().into();
            }),
            Command::Pairs(pairs) => match &self.port {
                Port::Tap(tap) if (1..=tap.pairs()).contains(pairs) => {
                    let mut state = self.state();
                    let obeyed = self.check(tap.set_pairs(*pairs));
                    if obeyed {
                        state.kept.pairs = Some(*pairs);
                    }
                    obeyed
                }
                _ => false,
            },
            Command::Offloads(bits) => {
                let known = features::guest_offloads() & features;
                match &self.port {
                    Port::Tap(tap) if bits & !known == 0 => {
                        let mut state = self.state();
                        let obeyed = self.check(tap.set_offloads(offloads(*bits)));
                        if obeyed {
                            state.kept.offloads = Some(*bits);
                        }
                        obeyed
                    }
                    _ => false,
                }
            }
        }
    }

    /// Changes what is kept and with it the filter. One that the kernel does not
    /// take is no failure: filtering is not promised.
    fn refilter(&self, change: impl FnOnce(&mut CardState)) -> bool {
        let mut state = self.state();
        change(&mut state.kept);
        let filter = filter::for_tap(&state.kept, self.settings.mac);
        if let Port::Tap(tap) = &self.port {
            self.check(tap.set_filter(&filter));
        }
        true
    }

    /// The driver has its control queue here: the pair that every driver begins
    /// with is the only one until it commands otherwise, or has done so before.
    pub fn controlled(&self) {
        let mut state = self.state();
        if state.kept.pairs.is_none() {
            state.kept.pairs = Some(1);
            if let (Port::Tap(tap), Some(_)) = (&self.port, state.set_for) {
                self.check(tap.set_pairs(1));
            }
        }
    }

    /// A pair is served from now on, or not any more: frames are steered to it
    /// if it is one that is used, and rings say which are.
    pub fn serve(&self, pair: u16, served: bool) {
        let state = self.state();
        if let Port::Tap(tap) = &self.port
            && state.kept.pairs.is_none()
            && (served || pair > 0)
        {
            self.check(tap.attach(pair, served));
        }
    }

    /// The receive ring of a pair has this many entries.
    pub fn set_ring_size(&self, pair: u16, size: u16) {
        self.state().sizes.insert(pair, size);
    }

    /// Entries of the receive ring of a pair, as far as it is known.
    pub fn ring_size(&self, pair: u16) -> u16 {
        let known = self.state().sizes.get(&pair).copied();
        known.unwrap_or(self.settings.queue_size)
    }
}

impl State {
    /// What the tap may leave undone for a driver that has negotiated `features`.
    fn offloads(&self, features: u64) -> u32 {
        offloads(self.kept.offloads.unwrap_or(features) & features)
    }
}
