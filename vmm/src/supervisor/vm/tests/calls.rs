//! What is asked of a VM by its control API, and what is told there.

use std::time::Instant;

use nix::sys::signal::Signal;
use outboard_protocol::launch::{Ending, FromMachine, Gap, Whose};

use crate::supervisor::api::call::{Call, Refusal, Reply, Ticket};
use crate::supervisor::api::model::{Change, DeviceState, VmState};
use crate::supervisor::process::child::Death;
use crate::supervisor::vm::action::{Action, Who};
use crate::supervisor::vm::answer::{Agreed, Answer};
use crate::supervisor::vm::device::{self, Device};
use crate::supervisor::vm::event::Event;
use crate::supervisor::vm::life::Life;
use crate::supervisor::vm::machine;

const TICKET: Ticket = Ticket::FIRST;

fn life(restarts: bool) -> Life {
    let disk = Device::new(0, "disk0", "blk", false, Some(Whose::Own));
    Life::new(vec![disk], restarts).with_api()
}

fn on(life: &mut Life, event: Event) -> Vec<Action> {
    life.step(event, Instant::now())
}

/// The states that are told.
fn told(actions: &[Action]) -> Vec<String> {
    let changes = actions.iter().filter_map(|action| match action {
        Action::Tell(Change::Vm { state, reason }) => {
            let reason = reason
                .as_ref()
                .map_or(String::new(), |why| format!(": {why}"));
            Some(format!("VM {state}{reason}"))
        }
        Action::Tell(Change::Device { device, state, .. }) => Some(format!("{device} {state}")),
        _ => None,
    });
    changes.collect()
}

fn answer(actions: &[Action]) -> &Answer {
    let mut answers = actions.iter().filter_map(|action| match action {
        Action::Answer(TICKET, answer) => Some(answer),
        _ => None,
    });
    answers.next().expect("no answer")
}

fn ask(life: &mut Life, call: Call) -> Vec<Action> {
    on(life, Event::Call(TICKET, call))
}

fn run(life: &mut Life) {
    on(life, Event::Begin);
    on(life, Event::Device(0, device::Event::Ready(1)));
    let device = "disk0".to_owned();
    on(
        life,
        Event::Said(FromMachine::Attached { device, session: 1 }),
    );
    on(life, Event::Said(FromMachine::Running));
}

#[test]
fn each_change_is_told_once() {
    let mut life = life(false);
    let begun = on(&mut life, Event::Begin);
    assert_eq!(told(&begun), ["VM starting", "disk0 starting"]);
    let (device, session) = ("disk0".to_owned(), 1);
    let attached = Event::Said(FromMachine::Attached { device, session });
    assert_eq!(told(&on(&mut life, attached)), ["disk0 running"]);
    let running = on(&mut life, Event::Said(FromMachine::Running));
    assert_eq!(told(&running), ["VM running"]);
    assert_eq!(told(&on(&mut life, Event::Tick)), [""; 0]);
    let ending = Ending::PowerOff;
    let ended = on(&mut life, Event::Said(FromMachine::Ended { ending }));
    let expected = ["VM ending: the guest powered off", "disk0 ending"];
    assert_eq!(told(&ended), expected);
}

#[test]
fn nothing_is_told_where_nobody_may_ask() {
    let disk = Device::new(0, "disk0", "blk", false, None);
    let mut life = Life::new(vec![disk], false);
    assert_eq!(told(&on(&mut life, Event::Begin)), [""; 0]);
}

#[test]
fn a_status_is_how_everything_is_now() {
    let mut life = life(false);
    run(&mut life);
    let actions = ask(&mut life, Call::Status);
    assert_eq!(actions.len(), 1);
    let Answer::Status(standing) = answer(&actions) else {
        panic!("{actions:?}");
    };
    assert_eq!(standing.state, VmState::Running);
    assert_eq!(standing.devices[0].state, DeviceState::Running);
}

#[test]
fn a_shutdown_is_what_a_signal_is_and_what_comes_too_late_is_refused() {
    let mut life = life(false);
    run(&mut life);
    let actions = ask(&mut life, Call::Shutdown);
    assert!(actions.contains(&Action::StopMachine));
    assert_eq!(answer(&actions), &Answer::Reply(Reply::Done));
    let expected = ["VM ending: somebody asked for the end", "disk0 ending"];
    assert_eq!(told(&actions), expected);
    for late in [Call::Pause, Call::Resume, Call::Restart("disk0".into())] {
        let actions = ask(&mut life, late);
        let refusal = Refusal::NotNow("the VM is being ended".into());
        assert_eq!(answer(&actions), &Answer::Reply(Reply::Refused(refusal)));
    }
}

#[test]
fn a_pause_is_answered_when_the_guest_stands_and_a_resume_when_it_goes_on() {
    let mut life = life(false);
    run(&mut life);
    let is_not_paused = Refusal::NotNow("the VM is not paused".into());
    let actions = ask(&mut life, Call::Resume);
    let refused = Answer::Reply(Reply::Refused(is_not_paused));
    assert_eq!(answer(&actions), &refused);
    let actions = ask(&mut life, Call::Pause);
    assert!(actions.contains(&Action::PauseMachine));
    assert_eq!(told(&actions), ["VM running: it is paused"]);
    assert!(!actions.iter().any(|it| matches!(it, Action::Answer(..))));
    let actions = on(&mut life, Event::Said(FromMachine::Paused));
    let waits = "VM running: it is paused; disk0: its back-end finishes what it has taken";
    assert_eq!(told(&actions), [waits]);
    let (device, session) = ("disk0".to_owned(), 1);
    let handed_back = FromMachine::HandedBack { device, session };
    let actions = on(&mut life, Event::Said(handed_back));
    let paused = ["VM paused: an operator has asked for it", "disk0 paused"];
    assert_eq!(told(&actions), paused);
    assert_eq!(answer(&actions), &Answer::Reply(Reply::Done));
    let again = ask(&mut life, Call::Pause);
    assert_eq!(answer(&again), &Answer::Reply(Reply::Done));
    let actions = ask(&mut life, Call::Resume);
    assert!(actions.contains(&Action::ResumeMachine));
    assert_eq!(told(&actions), ["VM paused: it is resumed"]);
    let actions = on(&mut life, Event::Said(FromMachine::Resumed));
    assert_eq!(told(&actions), ["VM running"]);
    let goes_on = FromMachine::GoesOn {
        device: "disk0".to_owned(),
        session: 1,
        gap: Gap::default(),
        why: None,
    };
    let actions = on(&mut life, Event::Said(goes_on));
    assert_eq!(told(&actions), ["disk0 running"]);
    assert_eq!(answer(&actions), &Answer::Reply(Reply::Done));
}

#[test]
fn a_pause_that_is_overtaken_is_refused() {
    let mut life = life(false);
    run(&mut life);
    ask(&mut life, Call::Pause);
    let other = on(&mut life, Event::Resume);
    let text = "the VM was resumed before it was paused";
    let refused = |text: &str| Answer::Reply(Reply::Refused(Refusal::NotNow(text.into())));
    assert_eq!(answer(&other), &refused(text));
    on(&mut life, Event::Said(FromMachine::Resumed));
    ask(&mut life, Call::Pause);
    let ending = Ending::PowerOff;
    let ended = on(&mut life, Event::Said(FromMachine::Ended { ending }));
    assert_eq!(answer(&ended), &refused("the VM is being ended"));
}

#[test]
fn a_device_that_is_not_there_is_told_with_those_that_are() {
    let mut life = life(false);
    run(&mut life);
    for call in [Call::Restart, Call::Explain] {
        let actions = ask(&mut life, call("disk1".into()));
        let refusal = Refusal::NoSuchDevice("disk1".into(), vec!["disk0".into()]);
        assert_eq!(answer(&actions), &Answer::Reply(Reply::Refused(refusal)));
    }
    let explained = |agreed| Answer::Explain {
        place: 0,
        is_known: true,
        agreed,
    };
    let mut explain = || ask(&mut life, Call::Explain("disk0".into()));
    assert_eq!(answer(&explain()), &explained(Agreed::default()));
}

#[test]
fn what_driver_and_back_end_have_agreed_on_is_told_until_the_driver_has_gone() {
    let mut life = life(false);
    run(&mut life);
    for features in [None, Some(0x1_0000_0000), None] {
        let agreed = Agreed {
            features,
            tracked: true,
        };
        let device = "disk0".into();
        let said = FromMachine::Agreed {
            device,
            features,
            tracked: true,
        };
        on(&mut life, Event::Said(said));
        let actions = ask(&mut life, Call::Status);
        let Answer::Status(standing) = answer(&actions) else {
            panic!("{actions:?}");
        };
        assert_eq!(standing.devices[0].features, features);
        let actions = ask(&mut life, Call::Explain("disk0".into()));
        let Answer::Explain { agreed: told, .. } = answer(&actions) else {
            panic!("{actions:?}");
        };
        assert_eq!(*told, agreed);
    }
}

/// A kill, and its recovery: what is told, and what a status has afterwards.
#[test]
fn a_back_end_that_is_lost_and_replaced_is_told_with_the_reason() {
    let mut life = life(false);
    run(&mut life);
    let killed = Death::Killed(Signal::SIGKILL);
    let died = on(&mut life, Event::Device(0, device::Event::Died(killed)));
    assert_eq!(told(&died), ["disk0 waiting_for_io"]);
    let known = true;
    let cleared = on(&mut life, Event::Device(0, device::Event::Clear { known }));
    assert_eq!(told(&cleared), ["disk0 restarting"]);
    let (device, session) = ("disk0".to_owned(), 2);
    let attached = Event::Said(FromMachine::Attached { device, session });
    assert_eq!(told(&on(&mut life, attached)), ["disk0 running"]);
    let actions = ask(&mut life, Call::Status);
    let Answer::Status(standing) = answer(&actions) else {
        panic!("{actions:?}");
    };
    let disk = &standing.devices[0];
    assert_eq!((disk.restarts, disk.reason.as_ref()), (1, None));
    assert!(disk.last_outage_us.is_some());
    let error = disk.last_error.as_ref().unwrap();
    assert!(
        error.starts_with("disk0: the back-end blk was killed by"),
        "{error}"
    );
}

#[test]
fn a_restart_is_asked_for_once_the_guest_runs() {
    let mut life = life(false);
    on(&mut life, Event::Begin);
    let restart = || Call::Restart("disk0".into());
    let actions = ask(&mut life, restart());
    let text = "the VM is still being started; try again then";
    let early = Answer::Reply(Reply::Refused(Refusal::NotNow(text.into())));
    assert_eq!(answer(&actions), &early);
    run(&mut life);
    for expected in [vec![Action::Terminate(Who::Device(0))], vec![]] {
        let actions = ask(&mut life, restart());
        assert_eq!(answer(&actions), &Answer::Reply(Reply::Done));
        let done = |action: &&Action| !matches!(action, Action::Tell(_) | Action::Answer(..));
        assert_eq!(
            actions.iter().filter(done).cloned().collect::<Vec<_>>(),
            expected
        );
    }
}

#[test]
fn a_guest_that_is_started_again_is_told_of_from_the_start() {
    let mut life = life(true);
    run(&mut life);
    let ending = Ending::Reset;
    let ended = on(&mut life, Event::Said(FromMachine::Ended { ending }));
    let expected = ["VM ending: the guest asked for a reset", "disk0 ending"];
    assert_eq!(told(&ended), expected);
    let left = Death::Exited(0);
    on(
        &mut life,
        Event::Device(0, device::Event::Died(left.clone())),
    );
    let again = on(&mut life, Event::Machine(machine::Event::Died(left)));
    assert_eq!(told(&again), ["VM starting", "disk0 starting"]);
}
