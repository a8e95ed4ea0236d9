//! What is asked of a VM by its control API, and what of it is told there: its state and
//! that of each device, whenever one has changed. Nobody who changes a state tells it;
//! after each event the states are compared with those that were told last.

mod changes;
mod quiet;

use std::collections::BTreeMap;
use std::time::Instant;

use self::changes::{What, reported};
use super::{Life, Step};
use crate::supervisor::api::call::{Call, Refusal, Reply, Ticket};
use crate::supervisor::api::model::{Change, DeviceState, VmState};
use crate::supervisor::vm::action::Action;
use crate::supervisor::vm::answer::{Answer, DeviceStanding, Standing};
use crate::supervisor::vm::device::{self, Device};
use crate::supervisor::vm::event::Event;
use crate::supervisor::vm::pause::Why;
use crate::supervisor::vm::{end, machine};

/// What there is to be answered and told.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// Somebody may ask: there is a control API.
    is_open: bool,
    /// What was asked and is answered when the event that it came with has been taken.
    asked: Vec<(Ticket, Asked)>,
    /// When a pause is called off, if not every disk is at rest by then.
    pub(super) quiet_by: Option<Instant>,
    /// What was told last.
    told: Vec<Change>,
    /// The number of the last thing that was asked of a device.
    numbered: u64,
    /// Why each device has lost its last back-end, at its place.
    errors: BTreeMap<usize, String>,
}

impl Calls {
    /// The device at this place has lost its back-end, and is to have another.
    pub(super) fn has_failed(&mut self, place: usize, why: Option<&str>) {
        if let Some(why) = why {
            self.errors.insert(place, why.to_owned());
        }
    }

    /// Whether somebody waits for a pause of the VM.
    pub(super) fn is_to_be_paused(&self) -> bool {
        let mut asked = self.asked.iter();
        asked.any(|(_, asked)| matches!(asked, Asked::Paused { .. }))
    }
}

#[derive(Debug)]
enum Asked {
    /// How everything is then.
    Status,
    /// That the guest stands and its disks rest, as soon as that is so; whether it was the
    /// first to ask for that.
    Paused {
        begins: bool,
    },
    /// That the guest goes on with its disks, as soon as it does.
    Resumed,
    /// What has become of what was asked of the device at this place under this number.
    OfDevice(usize, u64, What),
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
        let answer = match call {
            Call::Status => return self.calls.asked.push((ticket, Asked::Status)),
            Call::Shutdown => {
                self.take(Event::Asked);
                Answer::Reply(Reply::Done)
            }
            Call::Pause
            | Call::Resume
            | Call::Restart(_)
            | Call::PauseDevice(_)
            | Call::ResumeDevice(_)
            | Call::Swap(..)
            | Call::Resize(..)
                if self.state().0 == VmState::Ending =>
            {
                refused(Refusal::NotNow("the VM is being ended".into()))
            }
            Call::Pause => {
                let begins = !self.is_paused_by_operator();
                self.take(Event::Pause(Why::Operator));
                return self.calls.asked.push((ticket, Asked::Paused { begins }));
            }
            Call::Resume if self.machine.reasons().is_empty() && !self.machine.is_resuming() => {
                refused(Refusal::NotNow("the VM is not paused".into()))
            }
            Call::Resume if self.devices.iter().any(Device::is_swapped_at_rest) => {
                let text = "a swap of a disk is under way, which rests until that is over: \
                            resume the VM then";
                refused(Refusal::NotNow(text.into()))
            }
            Call::Resume => {
                self.take(Event::Resume);
                return self.calls.asked.push((ticket, Asked::Resumed));
            }
            Call::Restart(id) => match self.place(id) {
                Ok(place) => self.restart(place),
                Err(refusal) => refused(refusal),
            },
            Call::PauseDevice(_)
            | Call::ResumeDevice(_)
            | Call::Resize(..)
            | Call::Link(..)
            | Call::Swap(..) => return self.change(ticket, call),
            Call::Explain(id) => match self.place(id) {
                Ok(place) => {
                    let device = self.devices.get(place);
                    Answer::Explain {
                        place,
                        is_known: device.is_some_and(|device| device.kept().is_some()),
                        agreed: device.map(Device::agreed).unwrap_or_default(),
                    }
                }
                Err(refusal) => refused(refusal),
            },
        };
        self.calls.asked.push((ticket, Asked::Other(answer)));
    }

    /// The back-end of this device is to be replaced by another.
    fn restart(&mut self, place: usize) -> Answer {
        let state = self.devices.get(place).map(Device::state);
        let not_now = |text: String| Answer::Reply(Reply::Refused(Refusal::NotNow(text)));
        match state {
            _ if self.state().0 == VmState::Starting => {
                return not_now("the VM is still being started; try again then".into());
            }
            Some(device::State::Out(why)) => {
                return not_now(format!("another back-end cannot go on: {why}"));
            }
            Some(
                device::State::Attaching | device::State::Serving | device::State::Resting { .. },
            ) => {
                let device = self.devices.get(place);
                let rests = device.filter(|device| device.rests());
                let rests = rests.and_then(Device::why_at_rest);
                let why = device.and_then(Device::is_being_swapped).or(rests);
                if let Some(why) = why {
                    return not_now(why.into());
                }
                let restart = Step::Device(place, device::Event::Restart);
                self.steps.push_back(restart);
            }
            // Another is being started as it is.
            _ => {}
        }
        Answer::Reply(Reply::Done)
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
        for (ticket, asked) in std::mem::take(&mut self.calls.asked) {
            match self.answer(&asked, &standing) {
                Some(answer) => actions.push(Action::Answer(ticket, answer)),
                None => self.calls.asked.push((ticket, asked)),
            }
        }
    }

    /// The answer, if there is one by now.
    fn answer(&self, asked: &Asked, standing: &Standing) -> Option<Answer> {
        let not_now = |text: &str| Reply::Refused(Refusal::NotNow(text.into()));
        let is_over = standing.state == VmState::Ending;
        let reply = match asked {
            Asked::Status => return Some(Answer::Status(standing.clone())),
            Asked::Other(answer) => return Some(answer.clone()),
            Asked::Paused { .. } | Asked::Resumed if is_over => not_now("the VM is being ended"),
            Asked::OfDevice(place, number, what) => {
                let device = self.devices.get(*place)?;
                // Whoever serves it now is to rest first.
                if device.rests_with_vm() && !device.rests() {
                    return None;
                }
                return reported((*place, device), *number, *what);
            }
            Asked::Paused { .. } if !self.is_paused_by_operator() => {
                not_now("the VM was resumed before it was paused")
            }
            Asked::Paused { .. } if self.machine.is_paused() && self.noise().is_none() => {
                Reply::Done
            }
            Asked::Resumed if *self.machine.state() == machine::State::Running => {
                let mut devices = self.devices.iter();
                match devices.any(Device::rests_with_vm) {
                    true => return None,
                    false => Reply::Done,
                }
            }
            Asked::Resumed if !self.machine.reasons().is_empty() => {
                not_now("the VM was paused again before it was resumed")
            }
            Asked::Paused { .. } | Asked::Resumed => return None,
        };
        Some(Answer::Reply(reply))
    }

    fn standing(&self) -> Standing {
        let (state, reason) = self.state();
        let devices = self.devices.iter().enumerate().map(|(place, device)| {
            let error = self.calls.errors.get(&place);
            let (state, reason) = match state {
                VmState::Ending => (DeviceState::Ending, None),
                _ => device_state(device, error),
            };
            let health = device.health();
            let outage = health.outage().map(|outage| outage.as_micros() as u64);
            let (refused, last_refused) = device.refused();
            DeviceStanding {
                state,
                reason,
                features: device.agreed().features,
                standby: device.standby(),
                restarts: health.restarts(),
                last_error: error.cloned(),
                last_outage_us: outage,
                refused: (refused, last_refused.cloned()),
            }
        });
        let devices = devices.collect();
        Standing {
            state,
            reason,
            devices,
        }
    }

    /// No vCPU runs the guest; it counts as paused by an operator once its disks rest.
    fn paused(&self) -> (VmState, Option<String>) {
        let why = self.why_paused();
        let is_alone = self.machine.reasons().len() == 1;
        match self.noise() {
            None => (VmState::Paused, why),
            Some(noise) if is_alone && self.calls.is_to_be_paused() => (
                VmState::Running,
                Some(format!("it is paused; {}", noise.why)),
            ),
            Some(noise) => (
                VmState::Paused,
                why.map(|why| format!("{why}; {}", noise.why)),
            ),
        }
    }

    fn why_paused(&self) -> Option<String> {
        let id = |place: &usize| self.devices.get(*place).map_or("", Device::id);
        let reasons = self.machine.reasons().iter().map(|why| match why {
            Why::Operator => "an operator has asked for it".to_owned(),
            Why::Device(place) => format!("{} is without a back-end", id(place)),
            Why::IoError(place) => format!("a request to {} has failed", id(place)),
        });
        let reasons: Vec<_> = reasons.collect();
        (!reasons.is_empty()).then(|| reasons.join(", "))
    }

    fn state(&self) -> (VmState, Option<String>) {
        match self.end.state() {
            end::State::Ending(verdict) | end::State::Over(verdict) => {
                (VmState::Ending, Some(verdict.reason()))
            }
            end::State::Alive => match self.machine.state() {
                machine::State::Off | machine::State::Starting { .. } => (VmState::Starting, None),
                machine::State::Paused => self.paused(),
                machine::State::Resuming { .. } => (VmState::Paused, Some("it is resumed".into())),
                machine::State::Pausing { .. } => (VmState::Running, Some("it is paused".into())),
                machine::State::Running
                | machine::State::Silent { .. }
                | machine::State::Leaving { .. }
                | machine::State::Killed { .. } => (VmState::Running, None),
            },
        }
    }
}

/// Of a device of a VM that does not end; `error`: why it has lost its last back-end.
fn device_state(device: &Device, error: Option<&String>) -> (DeviceState, Option<String>) {
    let is_out = device.health().is_out();
    let beginning = if is_out {
        DeviceState::Restarting
    } else {
        DeviceState::Starting
    };
    let error = error.filter(|_| is_out).cloned();
    match device.state() {
        device::State::Down | device::State::Found | device::State::Attaching => (beginning, error),
        device::State::Seeking => {
            let waited = "whoever listens at its socket is waited for".to_owned();
            (beginning, error.or(Some(waited)))
        }
        device::State::Serving if device.rests() => {
            let with_vm = device.rests_with_vm().then_some("the VM is paused");
            (DeviceState::Paused, with_vm.map(str::to_owned))
        }
        device::State::Serving => (DeviceState::Running, None),
        device::State::Lost { text, .. } => (DeviceState::Down, Some(text.clone())),
        device::State::Left { death, .. } => {
            (DeviceState::Down, Some(format!("its back-end {death}")))
        }
        device::State::Over => (DeviceState::Down, error),
        device::State::Clearing { .. } if is_out => (DeviceState::WaitingForIo, error),
        // Of a guest that is started anew.
        device::State::Clearing { .. } => (beginning, None),
        device::State::Resting { .. } => (DeviceState::Restarting, error),
        device::State::Stopping { .. } => (DeviceState::Restarting, None),
        device::State::Held => {
            let reason = "it is started when the VM is resumed".to_owned();
            (DeviceState::Down, Some(reason))
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
