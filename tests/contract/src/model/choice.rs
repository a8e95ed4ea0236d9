//! Which legal step comes next.

use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use super::{Inflight, Model, NEEDED, REGIONS, Step};
use crate::client::PROTOCOL_FEATURES;

/// Where a choice comes from.
pub trait Dice {
    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: u64) -> u64;

    /// Any of these bits.
    fn subset(&mut self, bits: u64) -> u64 {
        let mut some = bits;
        for bit in 0..64 {
            if self.below(3) == 0 {
                some &= !(1 << bit);
            }
        }
        some
    }
}

impl Model {
    /// A legal step, chosen at random; likelier one that leads to rings that run.
    pub fn choose(&self, dice: &mut impl Dice) -> Step {
        let mut steps = self.candidates(dice);
        steps.retain(|(_, step)| self.is_legal(*step));
        let sum: u64 = steps.iter().map(|(weight, _)| weight).sum();
        let mut place = dice.below(sum.max(1));
        for (weight, step) in steps {
            match place.checked_sub(weight) {
                Some(rest) => place = rest,
                None => return step,
            }
        }
        Step::GetFeatures
    }

    fn candidates(&self, dice: &mut impl Dice) -> Vec<(u64, Step)> {
        let offered = self.offered.unwrap_or(0);
        let transport = self.transport.unwrap_or_else(|| dice.below(5) != 0);
        let protocol_bit = if transport {
            PROTOCOL_FEATURES & offered
        } else {
            0
        };
        let chosen = self
            .driver
            .unwrap_or_else(|| dice.subset(offered & !PROTOCOL_FEATURES) | self.needs & offered);
        let protocol = dice.subset(self.protocol_offered.unwrap_or(0));
        let spare = (dice.below(4) << 2) as u8;
        let region = dice.below(u64::from(REGIONS)) as u8;
        let if_missing = |missing: bool| if missing { 40 } else { 1 };
        let with = |feature: Protocol| 2 * u64::from(self.has(feature));
        let mut steps = vec![
            (if_missing(self.offered.is_none()), Step::GetFeatures),
            (
                if_missing(self.features.is_none()),
                Step::SetFeatures(chosen | protocol_bit),
            ),
            (
                if_missing(self.protocol_offered.is_none()),
                Step::GetProtocolFeatures,
            ),
            (60, Step::SetProtocolFeatures(protocol)),
            (if_missing(!self.owned), Step::SetOwner),
            (1, Step::GetQueueNum),
            (
                if_missing(self.regions == 0),
                Step::SetMemTable(NEEDED | spare),
            ),
            (1, Step::GetMaxMemSlots),
            (
                if_missing(self.regions & NEEDED != NEEDED),
                Step::AddMemReg(region),
            ),
            (2, Step::RemMemReg(region)),
            (with(Protocol::CONFIG), Step::GetConfig),
            (1, Step::SetBackendReqFd),
            (
                if_missing(self.inflight == Inflight::Stale),
                Step::GetInflightFd,
            ),
            (
                if_missing(self.inflight == Inflight::Held),
                Step::SetInflightFd,
            ),
            (1, Step::ResetDevice),
            (1, Step::Reconnect),
            (2, Step::NewDriver),
        ];
        for (at, ring) in self.rings.iter().enumerate() {
            let index = at as u16;
            let fd = dice.below(4) != 0;
            let on = !ring.enabled.unwrap_or(false) || dice.below(2) == 0;
            steps.extend([
                (if_missing(!ring.size), Step::SetVringNum(index)),
                (if_missing(!ring.placed), Step::SetVringAddr(index)),
                (if_missing(!ring.base), Step::SetVringBase(index)),
                (if_missing(!ring.kick), Step::SetVringKick(index, fd)),
                (if_missing(!ring.call), Step::SetVringCall(index, fd)),
                (1, Step::SetVringErr(index, fd)),
                (
                    if_missing(ring.enabled.is_none()),
                    Step::SetVringEnable(index, on),
                ),
                (1, Step::GetVringBase(index)),
                (if self.runs(at) { 40 } else { 4 }, Step::Submit(index)),
            ]);
        }
        steps
    }
}
