//! Random walks: any events in any order, and what must hold after each.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use outboard_line::Told;
use outboard_protocol::counters::{Doing, Pulse, Reading};
use outboard_protocol::deadline::limits;
use outboard_protocol::kept::{DiskState, Kept};
use outboard_protocol::launch::{Cause, Ending, FromMachine, Gap, InFlight, Whose};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::supervisor::api::call::{Call, Refusal, Reply, Ticket};
use crate::supervisor::api::model::{Change, SwapRequest};
use crate::supervisor::device::plan::OnFailure;
use crate::supervisor::process::child::Death;
use crate::supervisor::vm::action::{Action, Who};
use crate::supervisor::vm::answer::Answer;
use crate::supervisor::vm::device::{self, Device};
use crate::supervisor::vm::end::{self, End, Patience};
use crate::supervisor::vm::event::Event;
use crate::supervisor::vm::life::Life;
use crate::supervisor::vm::look::Examined;
use crate::supervisor::vm::machine::{self, Machine};
use crate::supervisor::vm::pause::Why;
use crate::supervisor::vm::verdict::Verdict;

const WALKS: u32 = 10_000;
/// No deadline is longer.
const LONG: Duration = Duration::from_secs(1000);

/// Dice: each throw is one number of the walk.
struct Dice(u32);

impl Dice {
    fn throw(&mut self, sides: u32) -> u32 {
        let thrown = self.0 % sides;
        self.0 /= sides;
        thrown
    }

    fn one(&mut self, of: u32) -> bool {
        self.throw(of) == 0
    }

    fn death(&mut self) -> Death {
        match self.throw(3) {
            0 => Death::Exited(0),
            1 => Death::Exited(1),
            _ => Death::Killed(Signal::SIGKILL),
        }
    }

    fn kept(&mut self) -> Kept {
        match self.throw(3) {
            0 => Kept::Nothing,
            bit => Kept::Disk(DiskState {
                writeback: bit == 1,
                sync_failed: self.one(2),
            }),
        }
    }

    /// What is heard on the line of this session.
    fn heard(&mut self, session: u64) -> device::Event {
        match self.throw(7) {
            6 => device::Event::InFlight(session, self.told()),
            5 => device::Event::Ready(session),
            0 | 1 => device::Event::Ready(session),
            2 => device::Event::Keeps(session, self.kept()),
            3 => device::Event::Nonsense(session, "a poem".into()),
            4 => device::Event::IoError(session, 0, "it is full".into()),
            _ => device::Event::HungUp(session),
        }
    }

    /// What is said there of requests.
    fn told(&mut self) -> Told {
        let request = InFlight {
            queue: 0,
            head: 1,
            counter: 1,
        };
        match self.throw(4) {
            0 => Told::Found(vec![request]),
            1 => Told::Replays(request),
            2 => Told::Refused(request, "a flush".into()),
            _ => Told::Replayed(0),
        }
    }

    fn cause(&mut self) -> Cause {
        match self.throw(4) {
            0 => Cause::NotRecoverable,
            1 => Cause::Silent,
            _ => Cause::Gone,
        }
    }

    fn why(&mut self) -> Why {
        match self.throw(4) {
            0 => Why::Device(0),
            1 => Why::IoError(0),
            _ => Why::Operator,
        }
    }

    fn examined(&mut self) -> Examined {
        let doing = match self.throw(3) {
            0 => Doing::Asleep,
            1 => Doing::Working,
            _ => Doing::SystemCall,
        };
        let rounds = self.throw(2).into();
        let pulse = Pulse { doing, rounds };
        let page = Reading {
            pulse,
            ..Reading::default()
        };
        Examined {
            is_stopped: self.one(3),
            page: self.one(2).then_some(page),
        }
    }

    fn ending(&mut self) -> Ending {
        match self.throw(3) {
            0 => Ending::PowerOff,
            1 => Ending::TripleFault,
            _ => Ending::Reset,
        }
    }
}

/// A device as the world has it.
#[derive(Clone, Copy, Default)]
struct Slot {
    is_ours: bool,
    lives: bool,
    killed: bool,
    sought: bool,
    /// Nothing is to be left of its back-end, and the VM has not heard yet that
    /// nothing is.
    clearing: bool,
    /// It has heard that.
    cleared: bool,
    /// It was not started, and the VM has not heard of that yet.
    failed: bool,
    /// The number of the last session.
    session: u64,
    /// There is to be one that waits; the number of its session while it lives, and
    /// whether it was killed.
    has_standby: bool,
    standby: Option<u64>,
    standby_killed: bool,
    /// The last one was not started.
    standby_failed: bool,
    /// The user was told that it keeps version 1.
    told: bool,
    /// It holds back what has failed.
    holds: bool,
    /// A successor that was opened: its session, and whether it has a program.
    candidate: Option<(u64, bool)>,
    /// The rings were asked back, and nobody was told to have them since.
    asked_back: bool,
    /// They were handed back, and then who has handed them back was told to go on.
    handed: bool,
    goes_on: bool,
    /// Who had them before a successor was told to have them.
    former: Option<u64>,
    is_disk: bool,
    /// Somebody was told to serve the rings, and has not handed them back since, nor is gone
    /// with his I/O.
    has_rings: bool,
    /// A swap of it was begun since an operator was answered that the VM is paused.
    is_swapped: bool,
}

/// What a VM has done to a world of processes that live and die as they please.
struct World {
    life: Life,
    now: Instant,
    machine_lives: bool,
    machine_killed: bool,
    /// The machine's socket is open.
    speaks: bool,
    /// The machine was told to pause, and not to go on since.
    pauses: bool,
    /// It has obeyed that.
    stands: bool,
    /// What it has not said yet of pauses.
    answers: VecDeque<FromMachine>,
    /// An operator has asked for a pause, and waits for the answer.
    is_asked: bool,
    /// And since when the vCPUs stand, then.
    waits: Option<Instant>,
    /// He was answered that it is paused, and nothing has ended that.
    is_answered: bool,
    slots: Vec<Slot>,
}

impl World {
    fn new(dice: &mut Dice) -> Self {
        let count = dice.throw(4) as usize;
        let mut slots = vec![Slot::default(); count];
        let mut devices = Vec::new();
        for (place, slot) in slots.iter_mut().enumerate() {
            slot.is_ours = !dice.one(3);
            // Somebody else's back-end is always looked for.
            let seeks = !slot.is_ours || dice.one(3);
            let program = slot.is_ours.then_some(Whose::Own);
            let device = Device::new(place, &format!("d{place}"), "blk", seeks, program);
            slot.has_standby = slot.is_ours && dice.one(2);
            slot.is_disk = !dice.one(4);
            let device = device.with_standby(slot.has_standby);
            let device = device.for_a_disk(slot.is_disk);
            devices.push(device.on_failure(match dice.throw(3) {
                0 => OnFailure::Shutdown,
                1 => OnFailure::Pause,
                _ => OnFailure::Restart,
            }));
        }
        let restarts = dice.one(2);
        let mut world = Self {
            life: Life::new(devices, restarts).with_api(),
            now: Instant::now(),
            machine_lives: false,
            machine_killed: false,
            speaks: false,
            pauses: false,
            stands: false,
            answers: VecDeque::new(),
            is_asked: false,
            waits: None,
            is_answered: false,
            slots,
        };
        world.happens(Event::Begin, dice);
        world
    }

    /// One whose guest runs, and whose devices are served, if nothing goes wrong.
    fn running(dice: &mut Dice) -> Self {
        let mut world = Self::new(dice);
        for place in 0..world.slots.len() {
            if std::mem::replace(&mut world.slots[place].sought, false) {
                world.happens(Event::Device(place, device::Event::Found), dice);
            }
        }
        for place in 0..world.slots.len() {
            let session = world.slots[place].session;
            if world.slots[place].is_ours && world.slots[place].lives {
                let ready = device::Event::Ready(session);
                world.happens(Event::Device(place, ready), dice);
            }
            if world.speaks {
                let device = format!("d{place}");
                let attached = FromMachine::Attached { device, session };
                world.happens(Event::Said(attached), dice);
            }
        }
        if world.speaks {
            world.happens(Event::Said(FromMachine::Running), dice);
        }
        world
    }

    /// Lets this happen, does what is asked for, and checks what must hold.
    fn happens(&mut self, event: Event, dice: &mut Dice) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            if let Event::Device(place, device::Event::CannotBegin(_)) = event {
                self.slots[place].failed = false;
            }
            for action in self.life.step(event, self.now) {
                events.extend(self.perform(action, dice));
            }
            self.check(events.is_empty());
            self.check_pause(events.is_empty());
        }
    }

    fn perform(&mut self, action: Action, dice: &mut Dice) -> Option<Event> {
        match action {
            Action::Seek(place) => {
                let slot = &mut self.slots[place];
                assert!(!slot.lives && !slot.sought);
                slot.sought = true;
            }
            Action::StopSeeking(place) => self.slots[place].sought = false,
            Action::StartMachine => {
                assert!(!self.machine_lives, "two machines");
                if dice.one(20) {
                    let text = "no fork".into();
                    return Some(Event::Machine(machine::Event::NotStarted(text)));
                }
                (self.machine_lives, self.speaks) = (true, true);
                self.machine_killed = false;
                (self.pauses, self.stands) = (false, false);
                self.is_answered = false;
                self.answers.clear();
            }
            // It has ended with what was to pause it, and hears nothing.
            Action::PauseMachine if !self.machine_lives => {}
            Action::PauseMachine => {
                assert!(self.machine_lives && self.life.machine().has_run());
                assert!(!std::mem::replace(&mut self.pauses, true), "told twice");
                self.answers.push_back(FromMachine::Paused);
            }
            Action::Retry(place) => {
                let slot = &mut self.slots[place];
                assert!(slot.lives && std::mem::replace(&mut slot.holds, false));
            }
            Action::ResumeMachine => {
                assert!(std::mem::replace(&mut self.pauses, false), "told twice");
                (self.stands, self.is_answered) = (false, false);
                // It may have said that it stands, or not have got that far.
                if dice.one(2) {
                    self.answers.clear();
                }
                self.answers.push_back(FromMachine::Resumed);
            }
            Action::Attach(place, session, _) => {
                let slot = &mut self.slots[place];
                assert!(!slot.lives, "a successor while its predecessor lives");
                assert!(
                    !slot.clearing,
                    "a successor before its predecessor's I/O is over"
                );
                assert!(
                    slot.session == 0 || slot.cleared,
                    "a predecessor may be left"
                );
                assert!(session > slot.session);
                (slot.session, slot.cleared) = (session, false);
                slot.has_rings = true;
                slot.failed = slot.is_ours && dice.one(20);
                if slot.failed {
                    let text = "no fork".into();
                    return Some(Event::Device(place, device::Event::CannotBegin(text)));
                }
                (slot.lives, slot.killed, slot.holds) = (slot.is_ours, false, false);
            }
            Action::Order(place, order) => {
                assert!(!self.slots[place].lives && !order.is_plain());
            }
            Action::Open(place, session, _) => return Some(self.open(place, session, dice)),
            Action::Prepare(place, session, Some(_)) => {
                let slot = &mut self.slots[place];
                let (candidate, is_ours) = slot.candidate.unwrap();
                assert!(candidate == session && slot.standby.is_none());
                slot.standby_failed = is_ours && dice.one(10);
                if slot.standby_failed {
                    let failed = device::Event::CannotBegin("no fork".into());
                    return Some(of_waiting(place, session, failed));
                }
                (slot.standby, slot.standby_killed) = (is_ours.then_some(session), false);
            }
            Action::HandBack(place, session) => {
                let slot = &mut self.slots[place];
                assert!(session == slot.session && !slot.asked_back);
                (slot.asked_back, slot.handed, slot.goes_on) = (true, false, false);
            }
            Action::GoOn(place, session) => {
                let slot = &mut self.slots[place];
                assert!(session == slot.session && slot.handed);
                (slot.goes_on, slot.has_rings) = (true, true);
            }
            Action::Undo(place) => {
                let slot = &mut self.slots[place];
                let former = slot.former.take().unwrap();
                let waiting = slot.lives.then_some(slot.session);
                slot.lives = slot.standby == Some(former);
                (slot.session, slot.standby) = (former, waiting);
                (slot.standby_killed, slot.killed) = (false, false);
            }
            Action::Forget(place) => {
                let slot = &mut self.slots[place];
                assert_eq!((slot.standby, slot.former), (None, None));
                slot.candidate = None;
            }
            Action::Tell(Change::Swapped { device, .. }) => {
                let place: usize = device[1..].parse().unwrap();
                let slot = &mut self.slots[place];
                let (session, is_ours) = slot.candidate.unwrap();
                assert!(slot.former.take().is_some() && session == slot.session);
                (slot.is_ours, slot.told, slot.asked_back) = (is_ours, false, false);
            }
            Action::TakeOver(place, session, _, _)
                if self.slots[place].candidate.map(|it| it.0) == Some(session) =>
            {
                let slot = &mut self.slots[place];
                assert!(slot.asked_back && slot.former.is_none());
                assert!(session > slot.session && !slot.standby_killed);
                let former = (slot.session, slot.lives);
                slot.lives = slot.standby == Some(session);
                (slot.session, slot.former) = (session, Some(former.0));
                slot.has_rings = true;
                slot.standby = former.1.then_some(former.0);
                (slot.killed, slot.holds) = (false, false);
                if dice.one(10) {
                    let text = "it does not hear".into();
                    return Some(Event::Device(place, device::Event::CannotBegin(text)));
                }
            }
            Action::Prepare(place, session, None) => {
                let slot = &mut self.slots[place];
                assert!(slot.has_standby && slot.standby.is_none(), "two wait");
                assert!(slot.lives && session > slot.session, "nobody serves");
                slot.standby_failed = dice.one(10);
                if slot.standby_failed {
                    let failed = device::Event::CannotBegin("no fork".into());
                    let failed = device::Event::Standby(session, Box::new(failed));
                    return Some(Event::Device(place, failed));
                }
                (slot.standby, slot.standby_killed) = (Some(session), false);
            }
            Action::TakeOver(place, session, _, _) => {
                let slot = &mut self.slots[place];
                assert!(
                    !slot.lives && !slot.clearing && slot.cleared,
                    "a predecessor may be left"
                );
                assert_eq!(slot.standby.take(), Some(session));
                assert!(!slot.standby_killed && session > slot.session);
                (slot.session, slot.cleared) = (session, false);
                (slot.lives, slot.killed, slot.has_rings) = (true, false, true);
                if dice.one(10) {
                    (slot.lives, slot.failed) = (false, true);
                    let text = "it does not hear".into();
                    return Some(Event::Device(place, device::Event::CannotBegin(text)));
                }
            }
            Action::Clear(place) => {
                let slot = &mut self.slots[place];
                (slot.clearing, slot.killed) = (true, true);
                slot.asked_back = false;
                if !slot.lives && dice.one(2) {
                    return Some(self.clear(place, dice));
                }
            }
            Action::Vacate(place, session) => {
                let slot = &self.slots[place];
                let is_former = session < slot.session && slot.standby.is_none();
                assert!(is_former || !slot.lives && slot.cleared && session == slot.session);
            }
            Action::Terminate(who) => assert!(self.lives(who)),
            Action::Kill(Who::Machine) => {
                assert!(self.machine_lives);
                self.machine_killed = true;
            }
            Action::Kill(Who::Device(place)) => {
                let slot = &mut self.slots[place];
                assert!(slot.lives || slot.failed);
                slot.killed = true;
            }
            Action::Kill(Who::Standby(place)) => {
                let slot = &mut self.slots[place];
                assert!(slot.standby.is_some() || slot.standby_failed);
                slot.standby_killed = true;
            }
            Action::Abandon(who) => match who {
                Who::Standby(place) => {
                    let slot = &mut self.slots[place];
                    assert!(slot.standby.take().is_some() && slot.standby_killed);
                }
                Who::Machine => {
                    assert!(self.machine_lives && self.machine_killed);
                    (self.machine_lives, self.speaks) = (false, false);
                }
                Who::Device(place) => {
                    let slot = &mut self.slots[place];
                    assert!(slot.lives && slot.killed);
                    slot.lives = false;
                }
            },
            Action::Examine(place, session, unserved) => {
                assert_eq!(session, self.slots[place].session, "it is over");
                let event = device::Event::Examined(session, unserved, dice.examined());
                return Some(Event::Device(place, event));
            }
            Action::GuestRuns => assert!(self.machine_lives),
            Action::Log(_, text) if text.contains("version 1") => {
                let place: usize = text[1..2].parse().unwrap();
                let slot = &mut self.slots[place];
                assert!(
                    slot.is_ours && !std::mem::replace(&mut slot.told, true),
                    "{text}"
                );
            }
            Action::Log(_, text) => {
                let known = [
                    "it serves on",
                    "once more",
                    "standby",
                    "the VM is paused",
                    "the VM goes on",
                ];
                assert!(known.iter().any(|known| text.contains(known)), "{text}");
            }
            Action::TellCounts(place) => assert!(self.slots[place].is_ours),
            Action::Tell(_) => {}
            Action::Answer(_, answer) => self.hears(&answer),
            Action::Resize(..) | Action::Truncate(..) => panic!("nobody resizes"),
            // One that is gone hears nothing.
            Action::StopMachine | Action::GuestIsOver | Action::Say(_) => {}
        }
        None
    }

    fn clear(&mut self, place: usize, dice: &mut Dice) -> Event {
        let slot = &mut self.slots[place];
        (slot.clearing, slot.cleared, slot.has_rings) = (false, true, false);
        let known = !dice.one(8);
        Event::Device(place, device::Event::Clear { known })
    }

    fn lives(&self, who: Who) -> bool {
        match who {
            Who::Machine => self.machine_lives,
            Who::Device(place) => self.slots[place].lives,
            Who::Standby(place) => self.slots[place].standby.is_some(),
        }
    }

    fn is_over(&self) -> bool {
        self.life.verdict().is_some()
    }

    fn check(&self, at_rest: bool) {
        let has_any = |slot: &Slot| slot.lives || slot.sought || slot.standby.is_some();
        let any = self.slots.iter().any(has_any);
        if self.is_over() {
            assert!(!any && !self.machine_lives, "something is left");
        }
        // A device that nothing serves and nobody looks after would be lost.
        for (device, slot) in self.life.devices().iter().zip(&self.slots) {
            let waits = match device.state() {
                device::State::Seeking => slot.sought,
                device::State::Found => {
                    let silent =
                        matches!(self.life.machine().state(), machine::State::Silent { .. });
                    !self.machine_lives || silent || device.is_to_rest()
                }
                device::State::Clearing { .. } => slot.clearing,
                device::State::Resting { .. } | device::State::Held | device::State::Out(_) => {
                    !slot.lives && slot.cleared
                }
                device::State::Stopping { .. } => slot.lives,
                device::State::Attaching | device::State::Serving => {
                    slot.former.is_some() || slot.lives == slot.is_ours
                }
                device::State::Lost { .. } => slot.lives,
                device::State::Left { .. } => !slot.lives,
                device::State::Down => self.is_over() || !slot.lives,
                device::State::Over => true,
                device::State::Leaving { .. } => slot.lives && !self.machine_lives,
                device::State::Killed { .. } => slot.lives && slot.killed,
            };
            assert!(waits || !at_rest, "{:?}", device.state());
        }
        let machine = self.life.machine();
        assert!(!at_rest || machine.is_off() != self.machine_lives);
        assert!(!machine.is_paused() || self.stands, "it runs");
        let wanted = !machine.reasons().is_empty();
        match machine.state() {
            machine::State::Running => {
                assert!(!wanted && !self.pauses);
                let mut devices = self.life.devices().iter();
                let held = |device: &Device| *device.state() == device::State::Held;
                assert!(!at_rest || !devices.any(held), "nothing resumes it again");
            }
            machine::State::Pausing { .. } | machine::State::Paused => {
                assert!(wanted && self.pauses);
            }
            machine::State::Resuming { .. } => assert!(!self.pauses),
            _ => {}
        }
    }

    /// Something that can happen in this world.
    fn event(&mut self, dice: &mut Dice) -> Event {
        let places = self.slots.len() as u32;
        if dice.one(4) {
            let wait = match dice.throw(4) {
                0 => Duration::ZERO,
                1 => Duration::from_millis(700),
                2 => limits::LAG,
                _ => Duration::from_secs(30),
            };
            self.now += wait;
            return Event::Tick;
        }
        if dice.one(12) {
            return Event::Asked;
        }
        if dice.one(6) {
            return match dice.one(2) {
                true => self.pause(dice.why()),
                false => Event::Resume,
            };
        }
        if self.speaks && dice.one(3) {
            let answer = self.answers.pop_front();
            if let Some(answer) = answer {
                self.stands |= self.pauses && answer == FromMachine::Paused;
                return Event::Said(answer);
            }
        }
        if places > 0 && dice.one(2) {
            let place = dice.throw(places) as usize;
            let slot = self.slots[place];
            if slot.sought {
                self.slots[place].sought = false;
                return Event::Device(
                    place,
                    match dice.one(4) {
                        true => device::Event::CannotBegin("nobody listens".into()),
                        false => device::Event::Found,
                    },
                );
            }
            if slot.clearing && !slot.lives && dice.one(2) {
                return self.clear(place, dice);
            }
            if let Some(event) = self.of_a_swap(place, dice) {
                return event;
            }
            if let Some(session) = slot.standby
                && dice.one(2)
            {
                return self.of_standby(place, session, dice);
            }
            if dice.one(8) {
                return Event::Device(place, device::Event::Restart);
            }
            if slot.lives && dice.one(2) {
                self.slots[place].lives = false;
                return Event::Device(place, device::Event::Died(dice.death()));
            }
            if slot.lives && dice.one(2) {
                let session = slot.session.saturating_sub(dice.throw(2).into());
                let heard = dice.heard(session);
                let holds = matches!(heard, device::Event::IoError(..));
                self.slots[place].holds |= holds;
                return Event::Device(place, heard);
            }
            if self.speaks {
                let device = format!("d{place}");
                // Now and then one that is over, or none that ever was.
                let session = match dice.throw(4) {
                    0 => slot.session.saturating_sub(1),
                    1 => slot.session + 1,
                    _ => slot.session,
                };
                return Event::Said(match dice.throw(5) {
                    0 | 1 => FromMachine::Attached { device, session },
                    2 => FromMachine::Free { device },
                    3 => FromMachine::Unserved {
                        device,
                        session,
                        queue: 0,
                        kick: dice.one(2),
                        times: 1 + dice.throw(2),
                    },
                    _ => FromMachine::Lost {
                        device,
                        session,
                        cause: dice.cause(),
                        text: "gone".into(),
                    },
                });
            }
        }
        if self.speaks && dice.one(2) {
            return match dice.throw(6) {
                0 => Event::Said(FromMachine::Failed { error: "e".into() }),
                1 => Event::Said(FromMachine::Ended {
                    ending: dice.ending(),
                }),
                2 => {
                    self.speaks = false;
                    Event::Machine(machine::Event::HungUp)
                }
                _ => Event::Said(FromMachine::Running),
            };
        }
        if self.machine_lives && dice.one(3) {
            (self.machine_lives, self.speaks) = (false, false);
            return Event::Machine(machine::Event::Died(dice.death()));
        }
        Event::Tick
    }

    /// Somebody wants a pause; an operator asks by the control API, one at a time.
    fn pause(&mut self, why: Why) -> Event {
        if why != Why::Operator || std::mem::replace(&mut self.is_asked, true) {
            return Event::Pause(why);
        }
        Event::Call(Ticket::FIRST, Call::Pause)
    }

    /// The operator is answered.
    fn hears(&mut self, answer: &Answer) {
        assert!(std::mem::replace(&mut self.is_asked, false), "{answer:?}");
        match answer {
            Answer::Reply(Reply::Done) => {
                assert_eq!(self.life.noise(), None);
                self.is_answered = true;
                self.slots
                    .iter_mut()
                    .for_each(|slot| slot.is_swapped = false);
            }
            Answer::Reply(Reply::Refused(Refusal::NotNow(_))) => {}
            other => panic!("{other:?}"),
        }
    }

    /// Who was answered that the VM is paused finds no disk whose rings anybody has, but one
    /// that was swapped since, of which that is told; and none waits for ever.
    fn check_pause(&mut self, at_rest: bool) {
        let machine = self.life.machine();
        self.is_answered &= !self.is_over() && machine.is_paused();
        if self.is_answered {
            let is_told = self.life.noise().is_some();
            for (place, slot) in self.slots.iter().enumerate() {
                let rests = !slot.is_disk || !slot.has_rings;
                assert!(rests || slot.is_swapped && is_told, "d{place} is served");
            }
        }
        match at_rest && self.is_asked && machine.is_paused() {
            true => {
                let since = *self.waits.get_or_insert(self.now);
                assert!(self.now < since + limits::END, "it is not answered");
            }
            false => self.waits = None,
        }
    }

    /// Something that happens to a VM that an operator pauses and resumes, as the death of
    /// who serves.
    fn of_a_pause(&mut self, place: usize, dice: &mut Dice) -> Option<Event> {
        if self.speaks
            && dice.one(2)
            && let Some(answer) = self.answers.pop_front()
        {
            self.stands |= self.pauses && answer == FromMachine::Paused;
            return Some(Event::Said(answer));
        }
        match dice.throw(6) {
            0 if self.life.machine().is_paused() => Some(Event::Resume),
            1 | 2 => Some(self.pause(Why::Operator)),
            _ => {
                let slot = *self.slots.get(place)?;
                if slot.clearing && !slot.lives {
                    return Some(self.clear(place, dice));
                }
                let dies = slot.lives && self.life.machine().is_paused();
                self.slots[place].lives &= !dies;
                dies.then(|| Event::Device(place, device::Event::Died(dice.death())))
            }
        }
    }

    fn open(&mut self, place: usize, session: u64, dice: &mut Dice) -> Event {
        let slot = &mut self.slots[place];
        slot.is_swapped = true;
        assert!(slot.standby.is_none() && session > slot.session);
        if dice.one(8) {
            let failed = device::Event::CannotBegin("no such file".into());
            return of_waiting(place, session, failed);
        }
        let is_ours = !dice.one(3);
        slot.candidate = Some((session, is_ours));
        let whose = whose(is_ours);
        let server = device::Server {
            name: "other".into(),
            seeks: !is_ours,
            program: is_ours.then_some(whose),
            whose,
            has_image: dice.one(2),
            must_wait: dice.one(2),
        };
        of_waiting(place, session, device::Event::Opened(Box::new(server)))
    }

    /// Of any device.
    fn place(&self, dice: &mut Dice) -> usize {
        dice.throw(self.slots.len().max(1) as u32) as usize
    }

    /// Something that can happen in a swap, or begin one.
    fn of_a_swap(&mut self, place: usize, dice: &mut Dice) -> Option<Event> {
        let device = self.life.devices().get(place)?;
        let slot = self.slots[place];
        if *device.state() != device::State::Serving || dice.one(3) {
            return None;
        }
        if device.why_not_now().is_none() {
            let event = match (dice.throw(3), device.rests()) {
                // That is refused to whoever asks.
                (0, _) if device.is_to_rest() => return None,
                (0, false) => device::Event::PauseDevice(7),
                (0, true) => device::Event::ResumeDevice(8),
                (1, _) => device::Event::Swap(9, SwapRequest::default()),
                _ => return None,
            };
            return Some(Event::Device(place, event));
        }
        let id = format!("d{place}");
        if let Some((session, is_ours)) = slot.candidate
            && slot.session != session
            && !slot.asked_back
        {
            if !is_ours && slot.standby.is_none() {
                let found = match dice.one(4) {
                    true => device::Event::CannotBegin("nobody listens".into()),
                    false => device::Event::Found,
                };
                if dice.one(2) {
                    return Some(of_waiting(place, session, found));
                }
            }
            let device = id;
            return self
                .speaks
                .then_some(Event::Said(FromMachine::Prepared { device, session }));
        }
        if !self.speaks || !slot.asked_back {
            return None;
        }
        let (device, session, gap) = (id, slot.session, Gap::default());
        let said = match (slot.former, dice.throw(4)) {
            (None, _) if slot.handed && !slot.goes_on => return None,
            (None, which) if which == 0 || slot.handed => FromMachine::GoesOn {
                device,
                session,
                gap,
                why: Some("late".into()),
            },
            (None, _) => FromMachine::HandedBack { device, session },
            (Some(former), 0) => FromMachine::GoesOn {
                device,
                session: former,
                gap,
                why: Some("it failed".into()),
            },
            (Some(_), 1) => FromMachine::Attached { device, session },
            (Some(_), _) => FromMachine::GoesOn {
                device,
                session,
                gap,
                why: None,
            },
        };
        let slot = &mut self.slots[place];
        slot.handed = true;
        slot.has_rings = matches!(
            &said,
            FromMachine::GoesOn { .. } | FromMachine::Attached { .. }
        );
        slot.asked_back &= !matches!(&said, FromMachine::GoesOn { .. });
        Some(Event::Said(said))
    }

    /// Something that can happen to one that waits.
    fn of_standby(&mut self, place: usize, session: u64, dice: &mut Dice) -> Event {
        let device = format!("d{place}");
        let event = match dice.throw(8) {
            0..3 => device::Event::Ready(session),
            3 if self.speaks => {
                return Event::Said(FromMachine::Lost {
                    device,
                    session,
                    cause: dice.cause(),
                    text: "gone".into(),
                });
            }
            4 => {
                self.slots[place].standby = None;
                device::Event::Died(dice.death())
            }
            5 => dice.heard(session),
            _ if self.speaks => return Event::Said(FromMachine::Prepared { device, session }),
            _ => return Event::Tick,
        };
        Event::Device(place, device::Event::Standby(session, Box::new(event)))
    }

    /// From here on nobody does anything but die when he is killed, if that.
    fn end(&mut self, dice: &mut Dice) {
        let mortal = dice.one(2);
        self.now += Duration::from_secs(1);
        let began = self.now;
        self.happens(Event::Asked, dice);
        for _ in 0..50 {
            if self.is_over() {
                let longest = limits::MACHINE + limits::END + 2 * limits::KILLED;
                assert!(self.now - began <= longest, "{:?}", self.now - began);
                return;
            }
            if self.machine_lives && self.machine_killed && mortal {
                (self.machine_lives, self.speaks) = (false, false);
                self.happens(Event::Machine(machine::Event::Died(dice.death())), dice);
                continue;
            }
            let killed = |slot: &Slot| slot.lives && slot.killed && mortal;
            if let Some(place) = self.slots.iter().position(killed) {
                self.slots[place].lives = false;
                let died = device::Event::Died(Death::Killed(Signal::SIGKILL));
                self.happens(Event::Device(place, died), dice);
                continue;
            }
            let killed = |slot: &Slot| slot.standby.filter(|_| slot.standby_killed && mortal);
            let mut waiting = self.slots.iter().enumerate();
            if let Some((place, session)) = waiting.find_map(|(at, it)| Some((at, killed(it)?))) {
                self.slots[place].standby = None;
                let died = device::Event::Died(Death::Killed(Signal::SIGKILL));
                let died = device::Event::Standby(session, Box::new(died));
                self.happens(Event::Device(place, died), dice);
                continue;
            }
            let due = self.life.due();
            let due =
                due.unwrap_or_else(|| panic!("nothing would ever happen again: {:?}", self.life));
            self.now = self.now.max(due);
            self.happens(Event::Tick, dice);
        }
        panic!("it does not end: {:?}", self.life);
    }
}

/// An event of one that waits.
fn of_waiting(place: usize, session: u64, event: device::Event) -> Event {
    Event::Device(place, device::Event::Standby(session, Box::new(event)))
}

/// An event of a device, whatever state it is in.
fn device_event(dice: &mut Dice) -> device::Event {
    match dice.throw(24) {
        20 => device::Event::Prepared(dice.throw(4).into()),
        21..24 => {
            let session = dice.throw(4).into();
            let event = match dice.throw(4) {
                0 => device::Event::CannotBegin("no".into()),
                1 => dice.heard(session),
                _ => device::Event::Ready(session),
            };
            device::Event::Standby(session, Box::new(event))
        }
        16 if dice.one(2) => device::Event::Resume,
        16 => device::Event::Recover,
        17 => device::Event::Restart,
        18 => device::Event::Free,
        19 => device::Event::Clear {
            known: !dice.one(4),
        },
        0 => device::Event::Begin,
        1 => device::Event::Found,
        2 => device::Event::CannotBegin("no".into()),
        3 => device::Event::Go,
        4 => device::Event::Attached(dice.throw(3).into()),
        5 => {
            let session = dice.throw(3).into();
            device::Event::Lost(session, dice.cause(), "gone".into())
        }
        6 => device::Event::Died(dice.death()),
        7 => device::Event::VmEnds,
        8 => device::Event::Leave(match dice.throw(3) {
            0 => Patience::Whole,
            1 => Patience::Lost,
            _ => Patience::Needless,
        }),
        9 => device::Event::Hurry,
        10 => device::Event::Settle,
        11 => device::Event::Tick,
        _ => {
            let session = dice.throw(3).into();
            dice.heard(session)
        }
    }
}

fn whose(is_own: bool) -> Whose {
    match is_own {
        true => Whose::Own,
        false => Whose::default(),
    }
}

fn machine_event(dice: &mut Dice) -> machine::Event {
    match dice.throw(14) {
        10 => machine::Event::Pause(dice.why()),
        11 => machine::Event::Resume,
        12 => machine::Event::Paused,
        13 => machine::Event::Resumed,
        0 | 1 => machine::Event::Go,
        2 => machine::Event::NotStarted("no".into()),
        3 => machine::Event::GuestRuns,
        4 => machine::Event::Ended(dice.ending()),
        5 => machine::Event::HungUp,
        6 => machine::Event::Died(dice.death()),
        7 => machine::Event::VmEnds,
        8 => machine::Event::Hurry(match dice.one(2) {
            true => Patience::Lost,
            false => Patience::Needless,
        }),
        _ => machine::Event::Tick,
    }
}

/// A world that begins like this, and what happens in it until it is over: what is `chosen`,
/// or anything.
fn walks(
    begin: impl Fn(&mut Dice) -> World,
    walk: &[u32],
    chosen: impl Fn(&mut World, &mut Dice) -> Option<Event>,
) {
    let mut walk = walk.iter().copied().map(Dice);
    let mut world = begin(&mut walk.next().unwrap_or(Dice(0)));
    for mut dice in walk {
        if world.is_over() {
            return;
        }
        let chosen = chosen(&mut world, &mut dice);
        let event = chosen.unwrap_or_else(|| world.event(&mut dice));
        world.happens(event, &mut dice);
    }
    if !world.is_over() {
        world.end(&mut Dice(0));
    }
}

fn throws() -> impl Strategy<Value = Vec<u32>> {
    vec(any::<u32>(), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(WALKS))]

    #[test]
    fn a_vm_loses_no_device_starts_none_twice_and_ends_when_it_is_asked(walk in throws()) {
        walks(World::new, &walk, |_, _| None);
    }

    #[test]
    fn a_swap_leaves_a_device_with_one_back_end_that_is_known(walk in throws()) {
        walks(World::running, &walk, |world, dice| {
            let place = world.place(dice);
            let is_of_a_swap = !dice.one(8);
            is_of_a_swap.then(|| world.of_a_swap(place, dice)).flatten()
        });
    }

    #[test]
    fn a_vm_that_an_operator_has_paused_is_quiet_or_he_is_told(walk in throws()) {
        walks(World::running, &walk, |world, dice| {
            let place = world.place(dice);
            match dice.throw(3) {
                0 => None,
                1 => world.of_a_pause(place, dice),
                _ => world.of_a_swap(place, dice),
            }
        });
    }

    #[test]
    fn a_device_starts_nothing_while_something_lives_and_has_a_way_down(
        walk in throws(),
        seeks: bool,
        is_ours: bool,
        is_own: bool,
        stands_by: bool,
    ) {
        let is_own = is_own && is_ours;
        let mut now = Instant::now();
        let mut device = Device::new(0, "disk0", "blk", seeks, is_ours.then(|| whose(is_own)))
            .with_standby(is_ours && stands_by);
        let (mut lives, mut last) = (false, 0);
        let (mut standby, mut numbered) = (None, 0);
        let (mut told, mut ready, mut holds) = (false, false, false);
        for mut dice in walk.into_iter().map(Dice) {
            let event = device_event(&mut dice);
            // Nobody dies who does not live, and who could not be started does not.
            match &event {
                device::Event::Died(_) if !lives => continue,
                device::Event::Clear { .. } if lives => continue,
                device::Event::CannotBegin(_) if *device.state() == device::State::Serving => {
                    continue;
                }
                device::Event::Died(_) | device::Event::CannotBegin(_) => lives = false,
                _ => {}
            }
            now += Duration::from_secs(dice.throw(3).into());
            // What is said of one that serves, and not of the standby.
            let event = match event {
                device::Event::Standby(session, event) if session == last => match *event {
                    device::Event::CannotBegin(_) => continue,
                    other => other,
                },
                other => other,
            };
            if let device::Event::Standby(session, it) = &event
                && matches!(**it, device::Event::CannotBegin(_))
                && standby == Some(*session)
            {
                standby = None;
            }
            let before = device.kept().cloned();
            let of_another = match &event {
                device::Event::Ready(session)
                | device::Event::Keeps(session, _)
                | device::Event::IoError(session, ..)
                | device::Event::Nonsense(session, _)
                | device::Event::HungUp(session) => !lives || *session != last,
                _ => false,
            };
            ready |= lives && event == device::Event::Ready(last);
            let outcomes = device.step(event, now);
            if of_another {
                assert!(outcomes.is_empty(), "{outcomes:?}");
                assert_eq!(device.kept(), before.as_ref());
            }
            for outcome in outcomes {
                match outcome {
                    device::Outcome::Do(Action::Log(_, text)) => {
                        assert!(lives || text.contains("standby"), "{text}");
                        if text.contains("version 1") {
                            assert!(!ready && !std::mem::replace(&mut told, true));
                        }
                    }
                    device::Outcome::Do(Action::Attach(_, session, kept)) => {
                        assert!(!lives && session > numbered && kept.as_ref() == device.kept());
                        (lives, last, ready, holds) = (is_ours, session, false, false);
                        numbered = session;
                    }
                    device::Outcome::IoError => {
                        assert!(ready && is_own && !std::mem::replace(&mut holds, true));
                    }
                    device::Outcome::Do(Action::Retry(_)) => {
                        assert!(lives && std::mem::replace(&mut holds, false));
                    }
                    device::Outcome::Do(Action::Prepare(_, session, _)) => {
                        assert!(lives && standby.is_none() && session > numbered);
                        (standby, numbered) = (Some(session), session);
                    }
                    device::Outcome::Do(Action::TakeOver(_, session, kept, _)) => {
                        assert!(!lives && standby == Some(session));
                        assert_eq!(kept.as_ref(), device.kept());
                        (lives, last, ready, standby) = (true, session, true, None);
                    }
                    device::Outcome::Do(Action::Kill(Who::Standby(_))) => {
                        assert!(standby.is_some());
                    }
                    device::Outcome::Do(Action::Abandon(Who::Standby(_))) => standby = None,
                    device::Outcome::Do(Action::Kill(_) | Action::Terminate(_)) => assert!(lives),
                    device::Outcome::Do(Action::Abandon(_)) => lives = false,
                    _ => {}
                }
            }
            assert!(!lives || *device.state() != device::State::Down);
        }
        device.step(device::Event::VmEnds, now);
        device.step(device::Event::Leave(Patience::Whole), now);
        for _ in 0..3 {
            now += LONG;
            device.step(device::Event::Tick, now);
        }
        assert_eq!(*device.state(), device::State::Down);
        assert_eq!(device.due(), None);
        assert!(device.has_no_standby());
    }

    #[test]
    fn a_machine_is_started_once_at_a_time_and_has_a_way_off(walk in throws()) {
        let mut now = Instant::now();
        let mut machine = Machine::default();
        let (mut lives, mut pauses) = (false, false);
        for mut dice in walk.into_iter().map(Dice) {
            let event = machine_event(&mut dice);
            match &event {
                machine::Event::Died(_) if !lives => continue,
                machine::Event::NotStarted(_)
                    if !matches!(machine.state(), machine::State::Starting { .. }) =>
                {
                    continue;
                }
                machine::Event::Died(_) | machine::Event::NotStarted(_) => lives = false,
                _ => {}
            }
            now += Duration::from_secs(dice.throw(3).into());
            for outcome in machine.step(event, now) {
                match outcome {
                    machine::Outcome::Do(Action::StartMachine) => {
                        assert!(!lives);
                        (lives, pauses) = (true, false);
                    }
                    machine::Outcome::Do(Action::PauseMachine) => {
                        assert!(lives && !std::mem::replace(&mut pauses, true));
                    }
                    machine::Outcome::Do(Action::ResumeMachine) => {
                        assert!(lives && std::mem::replace(&mut pauses, false));
                    }
                    machine::Outcome::Do(Action::Abandon(_)) => lives = false,
                    machine::Outcome::Do(Action::Kill(_) | Action::StopMachine) => assert!(lives),
                    _ => {}
                }
            }
            assert_eq!(lives, !machine.is_off());
            assert!(!machine.is_paused() || pauses && !machine.reasons().is_empty());
        }
        machine.step(machine::Event::VmEnds, now);
        for _ in 0..2 {
            now += LONG;
            machine.step(machine::Event::Tick, now);
        }
        assert!(machine.is_off() && machine.due().is_none());
    }

    #[test]
    fn an_end_comes_once_and_only_a_reset_that_nobody_ended_begins_anew(
        walk in throws(),
        restarts: bool,
    ) {
        let mut now = Instant::now();
        let mut end = End::new(restarts);
        for mut dice in walk.into_iter().map(Dice) {
            now += Duration::from_millis(dice.throw(700).into());
            let was_alive = *end.state() == end::State::Alive;
            let was_over = matches!(end.state(), end::State::Over(_));
            let event = match dice.throw(4) {
                0 => end::Event::Asked,
                1 => end::Event::NothingLeft,
                2 => end::Event::Verdict(Verdict::Ended(dice.ending())),
                _ => end::Event::Verdict(Verdict::MachineDied(None)),
            };
            let reason = match end.state() {
                end::State::Ending(verdict) => Some(verdict.clone()),
                _ => None,
            };
            match end.step(event, now) {
                Some(end::Outcome::VmEnds(_)) => assert!(was_alive),
                Some(end::Outcome::Again) => {
                    assert_eq!(reason, Some(Verdict::Ended(Ending::Reset)));
                    assert!(restarts && end.asked() == 0);
                }
                Some(end::Outcome::Hurry) => assert_eq!(end.patience(), Patience::Lost),
                None => {}
            }
            if was_over {
                assert!(matches!(end.state(), end::State::Over(_)));
            }
        }
        end.step(end::Event::Asked, now);
        end.step(end::Event::NothingLeft, now);
        assert!(matches!(end.state(), end::State::Over(_)));
    }
}
