//! A VM that an operator pauses is quiet before he is answered: once no vCPU runs the guest,
//! nobody has the rings of its disks, so that their images can be copied. (Cards, entropy and
//! devices of others have none, and finish what they were given.)
//!
//! ```text
//!  the vCPUs stand ─▶ each disk is to rest ─▶ all do, or have no back-end ─▶ answered
//!                            │ one cannot, or has not after END
//!                            ▼
//!                 refused: the pause is called off
//! ```
//! A pause that is refused and left half done would be worse: who is answered copies.

use std::time::Instant;

use outboard_protocol::deadline::limits;

use super::super::{Life, Step};
use super::Asked;
use crate::supervisor::api::call::{Refusal, Reply};
use crate::supervisor::vm::answer::Answer;
use crate::supervisor::vm::device::{self, Noise};
use crate::supervisor::vm::machine;
use crate::supervisor::vm::pause::Why;

impl Life {
    /// Tells each disk whether it is to rest, and calls a pause off that cannot be had.
    pub(in super::super) fn quiet(&mut self, now: Instant) {
        let is_to = self.machine.is_paused() && self.is_paused_by_operator();
        self.let_rest(is_to);
        if !self.steps.is_empty() {
            return;
        }
        let noise = self.noise().filter(|_| self.calls.is_to_be_paused());
        let Some(noise) = noise else {
            self.calls.quiet_by = None;
            return;
        };
        let until = *self.calls.quiet_by.get_or_insert(now + limits::END);
        if noise.passes && now < until {
            return;
        }
        let is_new = |(_, asked): &(_, Asked)| matches!(asked, Asked::Paused { begins: true });
        let ends = self.calls.asked.iter().any(is_new);
        let rest = match (ends, self.machine.reasons().len()) {
            (true, 1) => "the VM goes on",
            _ => "the VM stays paused as it was, but its disks are not at rest",
        };
        let why = format!("{}; {rest}", noise.why);
        for (_, asked) in &mut self.calls.asked {
            if let Asked::Paused { .. } = asked {
                let refusal = Refusal::NotNow(why.clone());
                *asked = Asked::Other(Answer::Reply(Reply::Refused(refusal)));
            }
        }
        if ends {
            let call_off = Step::Machine(machine::Event::CallOff);
            self.steps.push_back(call_off);
        }
    }

    /// Every disk hears that it is to rest with the VM, or no more, if it has not.
    pub(in super::super) fn let_rest(&mut self, is_to: bool) {
        let devices = self.devices.iter().enumerate();
        let must = devices.filter(|(_, device)| device.must_hear(is_to));
        let hear = must.map(|(place, _)| Step::Device(place, device::Event::Rest(is_to)));
        self.steps.extend(hear);
    }

    pub(super) fn is_paused_by_operator(&self) -> bool {
        self.machine.reasons().contains(&Why::Operator)
    }

    /// Why the image of a disk may still change though an operator's pause has stopped the
    /// vCPUs, if one may: first what will not pass.
    pub(crate) fn noise(&self) -> Option<Noise> {
        if !(self.machine.is_paused() && self.is_paused_by_operator()) {
            return None;
        }
        let noises = self.devices.iter().filter_map(|device| {
            let noise = device.noise()?;
            let why = format!("{}: {}", device.id(), noise.why);
            Some(Noise { why, ..noise })
        });
        noises.min_by_key(|noise| noise.passes)
    }
}
