//! What is asked of a VM by its control API, and what of it is told there: its state and
//! that of each device, whenever one has changed. Nobody who changes a state tells it;
//! after each event the states are compared with those that were told last.

use super::Life;
use crate::supervisor::api::call::{Call, Refusal, Reply, Ticket};
use crate::supervisor::api::model::{Change, DeviceState, VmState};
use crate::supervisor::vm::action::Action;
use crate::supervisor::vm::answer::{Answer, DeviceStanding, Standing};
use crate::supervisor::vm::device::{self, Device};
use crate::supervisor::vm::event::Event;
use crate::supervisor::vm::{end, machine};

/// What there is to be answered and told.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// Somebody may ask: there is a control API.
    is_open: bool,
    /// What was asked and is answered when the event that it came with has been taken.
    asked: Vec<(Ticket, Asked)>,
    /// What was told last.
    told: Vec<Change>,
}

#[derive(Debug)]
enum Asked {
    /// How everything is then.
    Status,
    Other(Answer),
}

impl Life {
    /// The same, with a control API: what changes is told.
    pub(crate) fn with_api(mut self) -> Self {
        self.calls.is_open = true;
        self
    }

    /// Somebody asks this.
    pub(super) fn call(&mut self, ticket: Ticket, call: Call) {
        let refused = |refusal| Answer::Reply(Reply::Refused(refusal));
        let not_yet = |what: &str| {
            let text = format!("outboard cannot {what} yet");
            refused(Refusal::CannotBeDone(text))
        };
        let answer = match call {
            Call::Status => return self.calls.asked.push((ticket, Asked::Status)),
            Call::Shutdown => {
                self.take(Event::Asked);
                Answer::Reply(Reply::Done)
            }
            Call::Pause | Call::Resume | Call::Restart(_) if self.state().0 == VmState::Ending => {
                refused(Refusal::NotNow("the VM is being ended".into()))
            }
            Call::Pause => not_yet("pause a VM"),
            Call::Resume => not_yet("resume a VM"),
            Call::Restart(id) => match self.place(id) {
                Ok(_) => not_yet("replace a back-end"),
                Err(refusal) => refused(refusal),
            },
            Call::Explain(id) => match self.place(id) {
                Ok(place) => Answer::Explain(place),
                Err(refusal) => refused(refusal),
            },
        };
        self.calls.asked.push((ticket, Asked::Other(answer)));
    }

    fn place(&self, id: String) -> Result<usize, Refusal> {
        let ids = self.devices.iter().map(Device::id);
        let place = ids.clone().position(|known| known == id);
        place.ok_or_else(|| Refusal::NoSuchDevice(id, ids.map(str::to_owned).collect()))
    }

    /// An event has been taken: what has become otherwise by it, and what is answered.
    pub(super) fn tell(&mut self, actions: &mut Vec<Action>) {
        if !self.calls.is_open {
            return;
        }
        let standing = self.standing();
        let changes = changes(&standing, &self.devices);
        for change in &changes {
            if !self.calls.told.contains(change) {
                actions.push(Action::Tell(change.clone()));
            }
        }
        self.calls.told = changes;
        for (ticket, asked) in self.calls.asked.drain(..) {
            let answer = match asked {
                Asked::Status => Answer::Status(standing.clone()),
                Asked::Other(answer) => answer,
            };
            actions.push(Action::Answer(ticket, answer));
        }
    }

    fn standing(&self) -> Standing {
        let (state, reason) = self.state();
        let devices = self.devices.iter().map(|device| {
            let (state, reason) = match state {
                VmState::Ending => (DeviceState::Ending, None),
                _ => device_state(device.state()),
            };
            DeviceStanding {
                state,
                reason,
                restarts: 0,
                last_outage_us: None,
            }
        });
        let devices = devices.collect();
        Standing {
            state,
            reason,
            devices,
        }
    }

    fn state(&self) -> (VmState, Option<String>) {
        match self.end.state() {
            end::State::Ending(verdict) | end::State::Over(verdict) => {
                (VmState::Ending, Some(verdict.reason()))
            }
            end::State::Alive => match self.machine.state() {
                machine::State::Off | machine::State::Starting { .. } => (VmState::Starting, None),
                machine::State::Paused => (VmState::Paused, None),
                machine::State::Running
                | machine::State::Pausing { .. }
                | machine::State::Resuming { .. }
                | machine::State::Silent { .. }
                | machine::State::Leaving { .. }
                | machine::State::Killed { .. } => (VmState::Running, None),
            },
        }
    }
}

/// Of a device of a VM that does not end.
fn device_state(state: &device::State) -> (DeviceState, Option<String>) {
    match state {
        device::State::Down | device::State::Found | device::State::Attaching => {
            (DeviceState::Starting, None)
        }
        device::State::Seeking => {
            let reason = "whoever listens at its socket is waited for".to_owned();
            (DeviceState::Starting, Some(reason))
        }
        device::State::Serving => (DeviceState::Running, None),
        device::State::Lost { text, .. } => (DeviceState::Down, Some(text.clone())),
        device::State::Left { death, .. } => {
            (DeviceState::Down, Some(format!("its back-end {death}")))
        }
        device::State::Over => (DeviceState::Down, None),
        device::State::Clearing { .. } => (DeviceState::WaitingForIo, None),
        device::State::Resting { .. } | device::State::Stopping { .. } => {
            (DeviceState::Restarting, None)
        }
        device::State::Out(why) => (DeviceState::Down, Some(why.clone())),
        device::State::Leaving { .. } | device::State::Killed { .. } => (DeviceState::Ending, None),
    }
}

/// What is told of a VM that is so.
fn changes(standing: &Standing, devices: &[Device]) -> Vec<Change> {
    let vm = Change::Vm {
        state: standing.state,
        reason: standing.reason.clone(),
    };
    let each = devices.iter().zip(&standing.devices);
    let each = each.map(|(device, standing)| Change::Device {
        device: device.id().to_owned(),
        state: standing.state,
        reason: standing.reason.clone(),
        // Who performs the action knows it.
        pid: None,
        restarts: standing.restarts,
    });
    [vm].into_iter().chain(each).collect()
}
