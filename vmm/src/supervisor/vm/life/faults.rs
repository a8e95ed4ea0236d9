//! A device has no back-end that can be used: whether it is recovered, and what else
//! becomes of the VM.

use super::{Life, Step};
use crate::supervisor::device::plan::OnFailure;
use crate::supervisor::vm::action::Action;
use crate::supervisor::vm::device::{self, Device, Fault};
use crate::supervisor::vm::pause::Why;
use crate::supervisor::vm::verdict::Verdict;
use crate::supervisor::vm::{end, machine};

impl Life {
    pub(super) fn fault(&mut self, place: usize, fault: Fault, actions: &mut Vec<Action>) {
        if let Some(policy) = self.recovers(place) {
            let verdict = self
                .devices
                .get(place)
                .map(|device| blame(device, fault, true));
            let text = verdict.and_then(|verdict| verdict.text());
            self.calls.has_failed(place, text.as_deref());
            let pauses = policy == OnFailure::Pause;
            let what = match pauses {
                true => "the VM is paused, and another is started when it is resumed",
                false => "the guest waits while another is started",
            };
            let text = text.map(|text| format!("{text}; {what}"));
            actions.extend(text.map(Action::Say));
            if pauses {
                let pause = machine::Event::Pause(Why::Device(place));
                self.steps.push_front(Step::Machine(pause));
            }
            let recover = Step::Device(place, device::Event::Recover);
            // Before whatever else has happened, as the end of the VM, which it would miss.
            return self.steps.push_front(recover);
        }
        // One whose session was lost before is first.
        let is_lost = |device: &Device| matches!(device.state(), device::State::Lost { .. });
        if let Some(first) = self.devices.iter().position(is_lost) {
            self.steps.push_front(Step::Fault(place, fault));
            let settle = Step::Device(first, device::Event::Settle);
            return self.steps.push_front(settle);
        }
        let Some(device) = self.devices.get(place) else {
            return;
        };
        if matches!(self.machine.state(), machine::State::Silent { .. }) {
            // The machine has died, or is taken for dead within its time: a
            // session that ends meanwhile ends with it.
            return;
        }
        let running = self.machine.has_run();
        self.judge(match fault {
            Fault::CannotBegin(error) => end::Event::CannotStart(error),
            fault => end::Event::Verdict(blame(device, fault, running)),
        });
    }

    /// Whether a back-end that fails is started again: the VM lives on, and its user
    /// wants that.
    fn recovers(&self, place: usize) -> Option<OnFailure> {
        let policy = self.devices.get(place)?.policy();
        let lives = *self.end.state() == end::State::Alive
            && !matches!(self.machine.state(), machine::State::Silent { .. });
        let recovers = policy != OnFailure::Shutdown && lives && self.has_run;
        recovers.then_some(policy)
    }
}

/// The reason for which a VM ends, if it ends over this.
fn blame(device: &Device, fault: Fault, running: bool) -> Verdict {
    let id = device.id().to_owned();
    match fault {
        Fault::CannotBegin(error) => Verdict::Failed {
            error,
            running: false,
        },
        Fault::Died(death, cause) => Verdict::BackEndDied {
            id,
            program: device.name().to_owned(),
            death,
            cause,
            running,
        },
        Fault::Lost(cause) => Verdict::BackEndLost { id, cause, running },
    }
}
