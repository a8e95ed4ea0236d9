//! A connection to a back-end until it is known to fit: the first words with it.
//! The driver sees nothing of it before.

use std::sync::Arc;

use anyhow::Result;
use outboard_protocol::launch::{self, FromMachine, SessionNumber, Whose};

use super::kinds;
use super::kinds::blk::{self, Cache};
use super::serving::Serving;
use crate::machine::frontend::{Connected, Interruption, Patience, Session};
use crate::machine::post::Mailbox;

/// What a driver is to see of a back-end.
#[derive(Debug)]
pub(crate) struct Offer {
    /// The features that it can have.
    pub(crate) features: u64,
    /// The configuration space.
    pub(crate) config: Vec<u8>,
}

/// Finds out what the back-end is and whether it can be one for this device. Its
/// session is `number`; `interruption` ends whatever is waited for, and that it is waited
/// for is told to `events`.
///
/// # Errors
/// What does not fit and what to do, or what went wrong.
pub(crate) fn introduce(
    spec: &launch::Device,
    number: SessionNumber,
    session: Session<Connected>,
    interruption: &Interruption,
    events: &Arc<Mailbox<FromMachine>>,
) -> Result<(Serving, Offer)> {
    let whose = session.whose();
    let session = session.with(Patience::new(spec, number, events));
    let mut session = session.negotiate(&spec.id, interruption)?;
    if whose != Whose::Own {
        session.expect_late_calls()?;
    }
    let agreement = session.agreement();
    kinds::fits(&agreement, spec)?;
    let cache = blk::settle_cache(&mut session, (spec, whose), true)?;
    if cache == Cache::TurnedOn {
        let id = &spec.id;
        log::warn!(
            "{id}: its back-end said that its write cache is off, which some say although it is \
             on: it has been turned on, and the guest flushes it"
        );
    }
    let served = kinds::served(&agreement, spec);
    let mut serving = Serving::new((number, whose), served, session);
    let config = serving.read_config(spec)?;
    let features = cache.usable(kinds::usable(&agreement, &config, spec)?);
    Ok((serving, Offer { features, config }))
}
