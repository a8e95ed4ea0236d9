//! What a front-end may send when, and what the rings must do then: the legal
//! states of one device and its connection, after the vhost-user specification.
//!
//! ```text
//!             GET_FEATURES ─► SET_FEATURES ─┐
//!                  │                        │  size, base, addresses, kick,
//!  connected ──────┴► protocol features ────┤  in any order         GET_VRING_BASE
//!                            memory ────────┴────────────► started ────► stopped
//! ```
//! It is a model of the front-end's side: what it has said, and what of it holds.
//! Where the specification leaves a ring's state open, so does [`Duty::Free`].

mod choice;
mod daemon;

use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

pub use choice::Dice;
pub use daemon::Daemon;

use crate::client::PROTOCOL_FEATURES;

/// VIRTIO_F_VERSION_1, EVENT_IDX and INDIRECT_DESC.
const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const INDIRECT: u64 = 1 << 28;

/// One thing that a front-end or its driver does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named after the messages")]
pub enum Step {
    GetFeatures,
    SetFeatures(u64),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    SetOwner,
    GetQueueNum,
    /// The regions that are in it, by bits.
    SetMemTable(u8),
    GetMaxMemSlots,
    AddMemReg(u8),
    RemMemReg(u8),
    SetVringNum(u16),
    SetVringAddr(u16),
    SetVringBase(u16),
    /// With a descriptor, or by polling.
    SetVringKick(u16, bool),
    SetVringCall(u16, bool),
    SetVringErr(u16, bool),
    SetVringEnable(u16, bool),
    GetVringBase(u16),
    GetConfig,
    SetBackendReqFd,
    GetInflightFd,
    SetInflightFd,
    ResetDevice,
    /// The connection is closed and another made.
    Reconnect,
    /// A new driver takes rings that have been stopped, from their beginning.
    NewDriver,
    /// The driver makes a request available, and kicks if the device wants it.
    Submit(u16),
}

/// What a ring must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Serve every request ("started and enabled").
    Serve,
    /// Serve none ("stopped"; and ours also when "started but disabled").
    Rest,
    /// Not said.
    Free,
}

/// What the front-end has said of a ring since it was stopped last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    size: bool,
    /// The back-end knows where to begin.
    pub base: bool,
    placed: bool,
    kick: bool,
    /// Kicks are not announced.
    pub polled: bool,
    /// There is a call descriptor.
    pub call: bool,
    enabled: Option<bool>,
    /// Everything was there once: until it is stopped, size and base stay.
    live: bool,
}

/// An inflight region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inflight {
    None,
    /// The front-end has one that fits, and has not sent it.
    Held,
    Shared,
    /// It tells of the driver before.
    Stale,
}

/// The whole state.
#[derive(Clone, Debug)]
pub struct Model {
    daemon: Daemon,
    /// Bits that the driver needs, besides VERSION_1.
    needs: u64,
    offered: Option<u64>,
    protocol_offered: Option<u64>,
    protocol: Option<u64>,
    /// What the driver of the rings has acknowledged, without the transport's.
    driver: Option<u64>,
    features: Option<u64>,
    /// Whether the front-end acknowledges the protocol features' bit.
    transport: Option<bool>,
    owned: bool,
    /// Regions that the back-end has, by bits.
    pub regions: u8,
    inflight: Inflight,
    /// Rings, by number.
    pub rings: Vec<Ring>,
}

/// Regions with rings and data, and all of them.
pub const NEEDED: u8 = 0b0011;
/// Number of regions.
pub const REGIONS: u8 = 4;

impl Model {
    /// Nothing has been said, of `rings` rings.
    pub fn new(daemon: Daemon, rings: u16, needs: u64) -> Self {
        Self {
            daemon,
            needs: needs | VERSION_1,
            offered: None,
            protocol_offered: None,
            protocol: None,
            driver: None,
            features: None,
            transport: None,
            owned: false,
            regions: 0,
            inflight: Inflight::None,
            rings: vec![Ring::default(); rings.into()],
        }
    }

    /// Whether this protocol feature has been acknowledged.
    pub fn has(&self, feature: Protocol) -> bool {
        self.protocol.unwrap_or(0) & feature.bits() != 0
    }

    /// Whether the driver has acknowledged EVENT_IDX, and INDIRECT_DESC.
    pub fn ring_features(&self) -> (bool, bool) {
        let driver = self.driver.unwrap_or(0);
        (driver & EVENT_IDX != 0, driver & INDIRECT != 0)
    }

    /// Whether the specification allows a step now, and the daemon knows it.
    pub fn is_legal(&self, step: Step) -> bool {
        let any_live = self.rings.iter().any(|ring| ring.live);
        let any_kick = self.rings.iter().any(|ring| ring.kick);
        let ring = |index: u16| {
            self.rings
                .get(usize::from(index))
                .copied()
                .unwrap_or_default()
        };
        let region = |index: u8| self.regions & 1 << index != 0;
        let knows_protocol = self.offered.unwrap_or(0) & PROTOCOL_FEATURES != 0;
        let allowed = match step {
            Step::GetFeatures | Step::SetMemTable(_) | Step::Submit(_) => true,
            Step::SetOwner => !self.owned,
            Step::SetFeatures(bits) => {
                let first = self.features.is_none() || !any_kick;
                self.offered.is_some() && (first || self.features == Some(bits))
            }
            Step::GetProtocolFeatures => knows_protocol,
            Step::SetProtocolFeatures(_) => {
                self.protocol_offered.is_some() && self.protocol.is_none()
            }
            Step::GetQueueNum => self.has(Protocol::MQ),
            Step::GetMaxMemSlots => self.has(Protocol::CONFIGURE_MEM_SLOTS),
            Step::AddMemReg(index) => self.has(Protocol::CONFIGURE_MEM_SLOTS) && !region(index),
            Step::RemMemReg(index) => {
                let needed = NEEDED & 1 << index != 0;
                self.has(Protocol::CONFIGURE_MEM_SLOTS) && region(index) && !needed
            }
            Step::SetVringNum(index) => !ring(index).live,
            Step::SetVringBase(index) => !ring(index).live,
            Step::SetVringAddr(_) => self.regions & NEEDED == NEEDED,
            Step::SetVringKick(..)
            | Step::SetVringCall(..)
            | Step::SetVringErr(..)
            | Step::GetVringBase(_) => true,
            Step::SetVringEnable(..) => self.features.unwrap_or(0) & PROTOCOL_FEATURES != 0,
            Step::GetConfig => self.has(Protocol::CONFIG),
            Step::SetBackendReqFd => {
                self.has(Protocol::BACKEND_REQ)
                    && self.features.unwrap_or(0) & PROTOCOL_FEATURES != 0
            }
            Step::GetInflightFd => {
                self.has(Protocol::INFLIGHT_SHMFD) && self.inflight != Inflight::Shared
            }
            Step::SetInflightFd => {
                self.has(Protocol::INFLIGHT_SHMFD) && self.inflight == Inflight::Held && !any_live
            }
            Step::ResetDevice => self.has(Protocol::RESET_DEVICE),
            Step::Reconnect => true,
            Step::NewDriver => {
                let said = |ring: &Ring| ring.size || ring.base || ring.placed || ring.kick;
                self.driver.is_some() && !self.rings.iter().any(said)
            }
        };
        allowed && self.is_obeyed(step) && self.after(step).is_consistent()
    }

    /// No ring runs that would start in the wrong place.
    fn is_consistent(&self) -> bool {
        let stale = self.inflight == Inflight::Stale;
        self.rings
            .iter()
            .all(|ring| !ring.live || (ring.base && !stale))
    }

    /// The state after a step.
    pub fn after(&self, step: Step) -> Self {
        let mut next = self.clone();
        next.apply(step);
        for index in 0..next.rings.len() {
            let runs = next.runs(index);
            if let Some(ring) = next.rings.get_mut(index) {
                ring.live |= runs;
            }
        }
        // A region that was not there from the start knows nothing.
        if next.inflight == Inflight::Held && next.rings.iter().any(|ring| ring.live) {
            next.inflight = Inflight::None;
        }
        next
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::SetFeatures(bits) => {
                self.features = Some(bits);
                self.driver = Some(bits & !PROTOCOL_FEATURES);
                self.transport = Some(bits & PROTOCOL_FEATURES != 0);
            }
            Step::SetOwner => self.owned = true,
            Step::SetProtocolFeatures(bits) => self.protocol = Some(bits),
            Step::SetMemTable(regions) => self.regions = regions,
            Step::AddMemReg(index) => self.regions |= 1 << index,
            Step::RemMemReg(index) => self.regions &= !(1 << index),
            Step::GetInflightFd => self.inflight = Inflight::Held,
            Step::SetInflightFd => self.inflight = Inflight::Shared,
            Step::ResetDevice => {
                self.features = None;
                self.new_driver();
                for ring in &mut self.rings {
                    ring.enabled = None;
                }
            }
            Step::NewDriver => self.new_driver(),
            Step::Reconnect => {
                *self = Self {
                    driver: self.driver,
                    inflight: match self.inflight {
                        Inflight::Shared => Inflight::Held,
                        _ => Inflight::None,
                    },
                    ..Self::new(self.daemon, self.rings.len() as u16, self.needs)
                };
            }
            Step::SetVringNum(index) => self.change(index, |ring| ring.size = true),
            Step::SetVringAddr(index) => self.change(index, |ring| ring.placed = true),
            Step::SetVringBase(index) => self.change(index, |ring| ring.base = true),
            Step::SetVringKick(index, fd) => self.change(index, |ring| {
                ring.kick = true;
                ring.polled = !fd;
            }),
            Step::SetVringCall(index, fd) => self.change(index, |ring| ring.call = fd),
            Step::SetVringEnable(index, on) => {
                self.change(index, |ring| ring.enabled = Some(on));
            }
            // What it was told before may or may not be remembered: say it again.
            Step::GetVringBase(index) => {
                let keeps_call = self.daemon == Daemon::Ours;
                self.change(index, |ring| {
                    *ring = Ring {
                        call: ring.call && keeps_call,
                        enabled: ring.enabled,
                        ..Ring::default()
                    };
                });
            }
            Step::GetFeatures
            | Step::GetProtocolFeatures
            | Step::GetQueueNum
            | Step::GetMaxMemSlots
            | Step::SetVringErr(..)
            | Step::GetConfig
            | Step::SetBackendReqFd
            | Step::Submit(_) => {}
        }
    }

    /// Rings begin again, and nothing that was in flight is.
    fn new_driver(&mut self) {
        self.driver = None;
        if self.inflight != Inflight::None {
            self.inflight = Inflight::Stale;
        }
        for ring in &mut self.rings {
            *ring = Ring {
                call: ring.call,
                enabled: ring.enabled,
                ..Ring::default()
            };
        }
    }

    fn change(&mut self, index: u16, change: impl FnOnce(&mut Ring)) {
        if let Some(ring) = self.rings.get_mut(usize::from(index)) {
            change(ring);
        }
    }

    /// GET_FEATURES was answered.
    pub fn learn_features(&mut self, offered: u64) {
        self.offered = Some(offered);
    }

    /// GET_PROTOCOL_FEATURES was answered.
    pub fn learn_protocol(&mut self, offered: u64) {
        self.protocol_offered = Some(offered);
    }

    fn is_enabled(&self, ring: &Ring) -> bool {
        // "Ring states": without the feature bit, enabled from the start.
        match self.features.unwrap_or(0) & PROTOCOL_FEATURES {
            0 => true,
            _ => ring.enabled.unwrap_or(false),
        }
    }

    fn runs(&self, index: usize) -> bool {
        let Some(ring) = self.rings.get(index) else {
            return false;
        };
        let described = ring.size && ring.placed && ring.kick;
        self.features.is_some()
            && self.regions & NEEDED == NEEDED
            && described
            && self.is_enabled(ring)
    }

    /// What a ring must do ("Ring states").
    pub fn duty(&self, index: u16) -> Duty {
        let index = usize::from(index);
        let Some(ring) = self.rings.get(index) else {
            return Duty::Free;
        };
        if self.runs(index) {
            Duty::Serve
        } else if !ring.kick || (self.features.is_some() && !self.is_enabled(ring)) {
            Duty::Rest
        } else {
            Duty::Free
        }
    }
}
