//! A VM as a whole: the machine process, every device, and the end, and what each
//! must hear of the others. Pure, as they are.
//!
//! ```text
//!  Begin ─▶ every device has found whom it needs ─▶ the machine and every back-end
//!    ▲                                              are started, side by side
//!    │                                                       │ a verdict
//!    └── again, or over ◀─ the back-ends end ◀─ the machine ends
//! ```

mod calls;
mod faults;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use outboard_protocol::launch::FromMachine;

use self::calls::Calls;
use super::action::Action;
use super::answer::Agreed;
use super::device::{self, Device, Fault};
use super::end::{self, End, Patience};
use super::event::Event;
use super::look::Unserved;
use super::machine::{self, Machine};
use super::pause::Why;
use super::verdict::Verdict;

/// What is not done yet of an event.
#[derive(Debug)]
enum Step {
    Machine(machine::Event),
    Device(usize, device::Event),
    /// A device has told this.
    Fault(usize, Fault),
    End(end::Event),
}

/// A VM.
#[derive(Debug)]
pub(crate) struct Life {
    machine: Machine,
    devices: Vec<Device>,
    end: End,
    /// The guest has run: whatever fails from then on can be recovered.
    has_run: bool,
    calls: Calls,
    /// What follows from what has happened.
    steps: VecDeque<Step>,
}

impl Life {
    /// A VM of these devices, of which nothing has begun; `restarts`: a guest's
    /// reset starts it again.
    pub(crate) fn new(devices: Vec<Device>, restarts: bool) -> Self {
        Self {
            machine: Machine::default(),
            devices,
            end: End::new(restarts),
            has_run: false,
            calls: Calls::default(),
            steps: VecDeque::new(),
        }
    }

    /// Why it has ended, when it has.
    pub(crate) fn verdict(&self) -> Option<&Verdict> {
        match self.end.state() {
            end::State::Over(verdict) => Some(verdict),
            end::State::Alive | end::State::Ending(_) => None,
        }
    }

    /// Its machine process.
    #[cfg(test)]
    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Its devices, each at its place.
    #[cfg(test)]
    pub(crate) fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// When time itself is the next event, if nothing else comes before.
    pub(crate) fn due(&self) -> Option<Instant> {
        let devices = self.devices.iter().filter_map(Device::due);
        let quiet = self.calls.quiet_by;
        devices.chain(self.machine.due()).chain(quiet).min()
    }

    /// Takes an event; returns what is to be done, in this order.
    pub(crate) fn step(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        self.take(event);
        loop {
            while let Some(step) = self.steps.pop_front() {
                self.advance(step, now, &mut actions);
            }
            self.follow();
            self.quiet(now);
            if self.steps.is_empty() {
                self.tell(&mut actions);
                return actions;
            }
        }
    }

    /// Every device of which one half of the news is there tells its fault before
    /// anything else counts: a lost session in any case, a process that has ended in
    /// order unless the machine has a word to say about that.
    fn settle(&mut self, also_left: bool) {
        for (place, device) in self.devices.iter().enumerate() {
            let settles = match device.state() {
                device::State::Lost { .. } => true,
                device::State::Left { .. } => also_left,
                _ => false,
            };
            if settles {
                let settle = Step::Device(place, device::Event::Settle);
                self.steps.push_back(settle);
            }
        }
    }

    fn take(&mut self, event: Event) {
        match &event {
            Event::Asked => self.settle(true),
            Event::Said(
                FromMachine::Attached { .. }
                | FromMachine::Prepared { .. }
                | FromMachine::Lost { .. }
                | FromMachine::Free { .. }
                | FromMachine::Agreed { .. }
                | FromMachine::Unserved { .. }
                | FromMachine::HandedBack { .. }
                | FromMachine::GoesOn { .. }
                | FromMachine::Paused
                | FromMachine::Resumed,
            ) => {}
            Event::Said(_) | Event::Machine(_) => self.settle(false),
            Event::Begin
            | Event::Device(..)
            | Event::Call(..)
            | Event::Pause(_)
            | Event::Resume
            | Event::Tick => {}
        }
        match event {
            Event::Begin => self.all_devices(&device::Event::Begin),
            Event::Said(message) => self.said(message),
            Event::Machine(event) => self.steps.push_back(Step::Machine(event)),
            Event::Device(place, event) => self.steps.push_back(Step::Device(place, event)),
            Event::Call(ticket, call) => self.call(ticket, call),
            Event::Pause(why) => {
                let pause = machine::Event::Pause(why);
                self.steps.push_back(Step::Machine(pause));
            }
            Event::Resume => {
                self.let_rest(false);
                self.steps.push_back(Step::Machine(machine::Event::Resume));
                self.all_devices(&device::Event::Resume);
            }
            Event::Asked => self.steps.push_back(Step::End(end::Event::Asked)),
            Event::Tick => {
                self.steps.push_back(Step::Machine(machine::Event::Tick));
                self.all_devices(&device::Event::Tick);
            }
        }
    }

    fn all_devices(&mut self, event: &device::Event) {
        let places = 0..self.devices.len();
        self.steps
            .extend(places.map(|place| Step::Device(place, event.clone())));
    }

    fn said(&mut self, message: FromMachine) {
        let place = |id: &str| self.devices.iter().position(|device| device.id() == id);
        let step =
            match message {
                FromMachine::Attached { device, session } => place(&device)
                    .map(|place| Step::Device(place, device::Event::Attached(session))),
                FromMachine::Prepared { device, session } => place(&device)
                    .map(|place| Step::Device(place, device::Event::Prepared(session))),
                FromMachine::Agreed {
                    device,
                    features,
                    tracked,
                } => place(&device).map(|place| {
                    let agreed = Agreed { features, tracked };
                    Step::Device(place, device::Event::Agreed(agreed))
                }),
                FromMachine::Lost {
                    device,
                    session,
                    cause,
                    text,
                } => place(&device)
                    .map(|place| Step::Device(place, device::Event::Lost(session, cause, text))),
                FromMachine::Unserved {
                    device,
                    session,
                    queue,
                    kick,
                    times,
                } => place(&device).map(|place| {
                    let unserved = Unserved { queue, kick, times };
                    Step::Device(place, device::Event::Unserved(session, unserved))
                }),
                FromMachine::HandedBack { device, session } => place(&device)
                    .map(|place| Step::Device(place, device::Event::HandedBack(session))),
                FromMachine::GoesOn {
                    device,
                    session,
                    gap,
                    why,
                } => place(&device)
                    .map(|place| Step::Device(place, device::Event::GoesOn(session, gap, why))),
                FromMachine::Free { device } => {
                    place(&device).map(|place| Step::Device(place, device::Event::Free))
                }
                FromMachine::Running => Some(Step::Machine(machine::Event::GuestRuns)),
                FromMachine::Paused => Some(Step::Machine(machine::Event::Paused)),
                FromMachine::Resumed => Some(Step::Machine(machine::Event::Resumed)),
                FromMachine::Failed { error } => Some(Step::Machine(machine::Event::Failed(error))),
                FromMachine::Ended { ending } => Some(Step::Machine(machine::Event::Ended(ending))),
            };
        self.steps.extend(step);
    }

    fn advance(&mut self, step: Step, now: Instant, actions: &mut Vec<Action>) {
        match step {
            Step::Machine(event) => {
                self.has_run |= event == machine::Event::GuestRuns;
                for outcome in self.machine.step(event, now) {
                    match outcome {
                        machine::Outcome::Do(action) => actions.push(action),
                        machine::Outcome::Verdict(verdict) => {
                            self.judge(end::Event::Verdict(verdict));
                        }
                        machine::Outcome::NotStarted(error) => {
                            self.judge(end::Event::CannotStart(error));
                        }
                        machine::Outcome::SlowStart => actions.push(self.slow_start()),
                    }
                }
            }
            Step::Device(place, event) => {
                let Some(device) = self.devices.get_mut(place) else {
                    return;
                };
                for outcome in device.step(event, now) {
                    match outcome {
                        device::Outcome::Do(action) => actions.push(action),
                        device::Outcome::Fault(fault) => self.fault(place, fault, actions),
                        device::Outcome::IoError => {
                            let pause = machine::Event::Pause(Why::IoError(place));
                            self.steps.push_back(Step::Machine(pause));
                        }
                        device::Outcome::Mention(rest) => {
                            actions.extend(self.mention(place, rest));
                        }
                    }
                }
            }
            Step::Fault(place, fault) => self.fault(place, fault, actions),
            Step::End(event) => match self.end.step(event, now) {
                Some(end::Outcome::VmEnds(patience)) => {
                    actions.push(Action::GuestIsOver);
                    self.vm_ends(patience);
                }
                Some(end::Outcome::Hurry) => {
                    let hurry = machine::Event::Hurry(self.end.patience());
                    self.steps.push_back(Step::Machine(hurry));
                    self.all_devices(&device::Event::Hurry);
                }
                Some(end::Outcome::Again) => self.all_devices(&device::Event::Begin),
                None => {}
            },
        }
    }

    /// What follows from where everybody is.
    fn follow(&mut self) {
        if !self.machine.is_off() {
            return self.follow_the_machine();
        }
        let no_standby = || self.devices.iter().all(Device::has_no_standby);
        let all = |state: &device::State| self.devices.iter().all(|d| d.state() == state);
        match self.end.state() {
            end::State::Alive if all(&device::State::Found) => {
                self.steps.push_back(Step::Machine(machine::Event::Go));
                self.all_devices(&device::Event::Go);
            }
            end::State::Alive => {
                // No driver is there to reset it.
                let out = self.devices.iter().find_map(|device| match device.state() {
                    device::State::Out(why) => Some(format!("{}: {why}", device.id())),
                    _ => None,
                });
                let cannot = out.map(|text| Step::End(end::Event::CannotStart(text)));
                self.steps.extend(cannot);
            }
            end::State::Ending(_) if all(&device::State::Down) && no_standby() => {
                self.steps.push_back(Step::End(end::Event::NothingLeft));
            }
            end::State::Ending(_) => {
                let patience = self.end.patience();
                for (place, device) in self.devices.iter().enumerate() {
                    if *device.state() == device::State::Over {
                        let leave = device::Event::Leave(patience);
                        self.steps.push_back(Step::Device(place, leave));
                    }
                }
            }
            end::State::Over(_) => {}
        }
    }

    /// Who was found for a device that is recovered is attached to the machine that is
    /// there.
    fn follow_the_machine(&mut self) {
        let takes = matches!(
            self.machine.state(),
            machine::State::Starting { .. }
                | machine::State::Running
                | machine::State::Pausing { .. }
                | machine::State::Paused
                | machine::State::Resuming { .. }
        );
        if !takes || *self.end.state() != end::State::Alive {
            return;
        }
        for (place, device) in self.devices.iter().enumerate() {
            if *device.state() == device::State::Found && !device.is_to_rest() {
                let go = Step::Device(place, device::Event::Go);
                self.steps.push_back(go);
            }
        }
    }

    /// Everybody hears of it, before anything else that has happened.
    fn vm_ends(&mut self, patience: Patience) {
        let later = std::mem::take(&mut self.steps);
        self.steps.push_back(Step::Machine(machine::Event::VmEnds));
        if patience != Patience::Whole {
            let hurry = machine::Event::Hurry(patience);
            self.steps.push_back(Step::Machine(hurry));
        }
        self.all_devices(&device::Event::VmEnds);
        self.steps.extend(later);
    }

    /// A reason for the end: what follows from it comes before what has happened
    /// since.
    fn judge(&mut self, event: end::Event) {
        self.steps.push_front(Step::End(event));
    }

    /// The start takes long: what is missing.
    fn slow_start(&self) -> Action {
        let missing = self
            .devices
            .iter()
            .filter(|device| *device.state() == device::State::Attaching);
        let missing: Vec<_> = missing
            .map(|device| format!("{} ({})", device.id(), device.name()))
            .collect();
        Action::Say(match missing.is_empty() {
            true => "the machine is still being built".into(),
            false => format!("still waiting for {}", missing.join(", ")),
        })
    }

    /// A back-end takes long to end: what it does, and what would end it.
    fn mention(&self, place: usize, rest: Duration) -> Option<Action> {
        let device = self.devices.get(place)?;
        let how = match self.end.asked() {
            0 => "two signals (SIGTERM, Ctrl-C) end",
            _ => "a second signal (SIGTERM, Ctrl-C) ends",
        };
        let (id, name, seconds) = (device.id(), device.name(), rest.as_secs());
        Some(Action::Say(format!(
            "{id}: waiting for {name} to finish its I/O and end, {seconds} s more at most; {how} \
             it at once"
        )))
    }
}
