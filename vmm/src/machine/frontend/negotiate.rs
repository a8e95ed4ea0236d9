//! What both sides can do, found out before any ring is touched.

use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use outboard_protocol::devices;
use outboard_protocol::launch::{Cause, Device as Spec};
use vhost::vhost_user::message::{
    FrontendReq, VhostUserProtocolFeatures as Protocol, VhostUserVirtioFeatures,
};

use super::cause::because;
use super::channel::Channel;
use super::kinds;
use super::{Connected, Interruption, Negotiated, Session};
use crate::machine::virtio::F_VERSION_1;

/// The protocol features that we make use of where a back-end offers them.
const WANTED: Protocol = Protocol::from_bits_truncate(
    Protocol::MQ.bits()
        | Protocol::REPLY_ACK.bits()
        | Protocol::BACKEND_REQ.bits()
        | Protocol::CONFIG.bits()
        | Protocol::CONFIGURE_MEM_SLOTS.bits()
        | Protocol::INFLIGHT_SHMFD.bits()
        | Protocol::RESET_DEVICE.bits(),
);

/// What was found out about a back-end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// The virtio features that the back-end has, whole.
    pub features: u64,
    /// Number of queues that it serves at most.
    pub max_queues: u64,
    /// The protocol features in use.
    pub protocol: Protocol,
}

impl Agreement {
    /// Whether the back-end knows protocol features at all. If not, its rings
    /// are enabled as soon as they are started.
    pub fn has_protocol(&self) -> bool {
        self.features & protocol_bit() != 0
    }

    /// How many queues of `spec` it serves. A first pair has every network
    /// back-end, whatever it counts.
    pub fn serves(&self, spec: &Spec) -> u16 {
        let has = u16::try_from(self.max_queues).unwrap_or(u16::MAX);
        let first = match spec.kind.virtio_id {
            devices::NET => 2,
            _ => 1,
        };
        spec.queues.min(has.max(first))
    }
}

/// The virtio feature bit that says "I know protocol features".
pub fn protocol_bit() -> u64 {
    VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

impl Session<Connected> {
    /// Finds out what the back-end is and checks that it fits the device that
    /// it is to serve. From now on `interruption` ends whatever is waited for.
    ///
    /// # Errors
    /// What does not fit and what to do, or what went wrong.
    pub fn negotiate(
        mut self,
        spec: &Spec,
        interruption: &Interruption,
    ) -> Result<Session<Negotiated>> {
        let link = &mut self.link;
        link.set_id(&spec.id);
        let keeping = "keeping the connection";
        interruption.watch(&link.fds().0).context(keeping)?;
        let features = match self.phase.asked {
            true => link.answer_u64(FrontendReq::GET_FEATURES)?,
            false => link.query_u64(FrontendReq::GET_FEATURES)?,
        };
        let mut max_queues = if spec.kind.virtio_id == devices::NET {
            2
        } else {
            1
        };
        if features & protocol_bit() != 0 {
            let offered = link.query_u64(FrontendReq::GET_PROTOCOL_FEATURES)?;
            let protocol = Protocol::from_bits_truncate(offered) & WANTED;
            let bits = protocol.bits().to_ne_bytes();
            link.command(FrontendReq::SET_PROTOCOL_FEATURES, &bits, &[])?;
            link.agree(protocol);
            if protocol.contains(Protocol::MQ) {
                max_queues = link.query_u64(FrontendReq::GET_QUEUE_NUM)?;
            }
            if protocol.contains(Protocol::BACKEND_REQ) {
                let (channel, theirs) = Channel::new()?;
                interruption.watch(&channel).context(keeping)?;
                link.command(FrontendReq::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])?;
                link.open(channel);
            }
        }
        link.command(FrontendReq::SET_OWNER, &[], &[])?;
        let agreement = Agreement {
            features,
            max_queues,
            protocol: link.protocol(),
        };
        fits(&agreement, spec).map_err(|why| because(Cause::DoesNotFit, why.to_string()))?;
        Ok(Session {
            link: self.link,
            phase: Negotiated {
                agreement,
                memory_lent: false,
            },
        })
    }
}

fn fits(agreement: &Agreement, spec: &Spec) -> Result<()> {
    if agreement.features & F_VERSION_1 == 0 {
        bail!(
            "the back-end offers no VIRTIO_F_VERSION_1 (features {:#x}): it serves only legacy \
             drivers, use a newer one",
            agreement.features
        );
    }
    if let Some(why) = kinds::misfit(spec.kind.virtio_id, agreement.features) {
        bail!(why);
    }
    // A card's driver is offered what queues there are. What many back-ends
    // count here is pairs: a first pair has every one that has anything.
    let needed = if spec.fewer || spec.kind.virtio_id == devices::NET {
        1
    } else {
        spec.queues
    };
    if agreement.max_queues < needed.into() {
        let (has, wants) = (agreement.max_queues, spec.queues);
        if has == 0 {
            bail!("the back-end offers 0 queues: it cannot serve any device");
        }
        bail!(
            "the back-end offers {has} queue{}, {wants} were asked: use queues={has}",
            if has == 1 { "" } else { "s" }
        );
    }
    // A disk's size is in there: without it there is no disk.
    let needs_config = spec.kind.virtio_id == devices::BLK;
    if needs_config && !agreement.protocol.contains(Protocol::CONFIG) {
        bail!(
            "the back-end does not serve the configuration of a {} device \
             (VHOST_USER_PROTOCOL_F_CONFIG): it serves another kind of device, or is too old",
            spec.kind.name
        );
    }
    Ok(())
}
