//! What both sides can do, found out before any ring is touched.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use vhost::vhost_user::message::{
    FrontendReq, VhostUserProtocolFeatures as Protocol, VhostUserVirtioFeatures,
};

use super::channel::Channel;
use super::{Connected, Interruption, Negotiated, Session};

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
    pub(crate) features: u64,
    /// Number of queues that it serves at most: 1 where it cannot tell.
    pub(crate) max_queues: u64,
    /// The protocol features in use.
    pub(crate) protocol: Protocol,
}

impl Agreement {
    /// Whether the back-end knows protocol features at all. If not, its rings
    /// are enabled as soon as they are started.
    pub(crate) fn has_protocol(&self) -> bool {
        self.features & protocol_bit() != 0
    }
}

/// The virtio feature bit that says "I know protocol features".
pub(crate) fn protocol_bit() -> u64 {
    VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

impl Session<Connected> {
    /// Finds out what the back-end of the device `id` is. Whether that fits is for
    /// the caller to say. From now on `interruption` ends whatever is waited for.
    ///
    /// # Errors
    /// The back-end refuses, is silent or has gone.
    pub fn negotiate(
        mut self,
        id: &str,
        interruption: &Interruption,
    ) -> Result<Session<Negotiated>> {
        let link = &mut self.link;
        link.set_id(id);
        let keeping = "keeping the connection";
        interruption.watch(&link.fds().0).context(keeping)?;
        let features = match self.phase.asked {
            true => link.answer_u64(FrontendReq::GET_FEATURES)?,
            false => link.query_u64(FrontendReq::GET_FEATURES)?,
        };
        let mut max_queues = 1;
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
        Ok(Session {
            link: self.link,
            phase: Negotiated {
                agreement,
                memory_lent: false,
                fresh: None,
            },
        })
    }
}
