//! A second process waits beside the one that serves: one story after another.

use std::time::Duration;

use outboard_protocol::deadline::limits;
use outboard_protocol::kept::{DiskState, Kept};
use outboard_protocol::launch::{Cause, Ending, FromMachine};

use super::tables::{CLEAR, IN_ORDER, KILLED, Story, logged, ours};
use crate::supervisor::api::model::Standby;
use crate::supervisor::device::plan::OnFailure;
use crate::supervisor::process::child::Death;
use crate::supervisor::vm::action::{Action, Who};
use crate::supervisor::vm::device::{self, Device, State};
use crate::supervisor::vm::event::Event;
use crate::supervisor::vm::machine;

/// A VM that runs, of this disk with a standby.
fn running_of(disk: Device) -> Story {
    let mut story = Story::of(vec![disk.with_standby(true)], true);
    story.on(Event::Begin);
    story.device(0, device::Event::Ready(1));
    assert_eq!(story.attached(0, 1), [Action::Prepare(0, 2, None)]);
    story.on(Event::Said(FromMachine::Running));
    story
}

fn running() -> Story {
    running_of(ours(0))
}

/// This happens to the standby.
fn waiting(story: &mut Story, session: u64, event: device::Event) -> Vec<Action> {
    let event = device::Event::Standby(session, Box::new(event));
    story.device(0, event)
}

fn is_prepared(story: &mut Story, session: u64) {
    assert_eq!(waiting(story, session, device::Event::Ready(session)), []);
    let device = "disk0".into();
    let prepared = FromMachine::Prepared { device, session };
    assert_eq!(story.on(Event::Said(prepared)), []);
    assert_eq!(standby(story), Standby::Ready);
}

fn standby(story: &Story) -> Standby {
    story.life.devices()[0].standby()
}

fn take_over(session: u64) -> Action {
    Action::TakeOver(0, session, Some(Kept::Nothing), false)
}

fn attach(session: u64) -> Action {
    Action::Attach(0, session, Some(Kept::Nothing))
}

const KILL: Action = Action::Kill(Who::Standby(0));

#[test]
fn it_serves_once_nothing_is_left_of_the_first_and_another_is_started_then() {
    let mut story = running();
    is_prepared(&mut story, 2);
    let actions = story.device(0, device::Event::Died(KILLED));
    assert!(actions.ends_with(&[Action::Clear(0)]), "{actions:?}");
    let actions = story.device(0, CLEAR);
    assert_eq!(actions, [Action::Vacate(0, 1), take_over(2)]);
    assert_eq!(standby(&story), Standby::None);
    assert_eq!(story.attached(0, 2), [Action::Prepare(0, 3, None)]);
    let device = &story.life.devices()[0];
    assert_eq!(*device.state(), State::Serving);
    assert_eq!(device.health().restarts(), 1);
    // What is said of it now is said of the one that serves.
    let kept = Kept::Disk(DiskState {
        writeback: false,
        sync_failed: false,
    });
    waiting(&mut story, 2, device::Event::Keeps(2, kept.clone()));
    assert_eq!(story.life.devices()[0].kept(), Some(&kept));
}

#[test]
fn it_is_told_what_was_kept_when_it_takes_over_and_what_it_says_before_counts_for_none() {
    let kept = |sync_failed| {
        let writeback = false;
        Kept::Disk(DiskState {
            writeback,
            sync_failed,
        })
    };
    let mut story = running();
    is_prepared(&mut story, 2);
    story.device(0, device::Event::Keeps(1, kept(true)));
    waiting(&mut story, 2, device::Event::Keeps(2, kept(false)));
    story.device(0, device::Event::Died(KILLED));
    let told = Action::TakeOver(0, 2, Some(kept(true)), false);
    assert_eq!(story.device(0, CLEAR), [Action::Vacate(0, 1), told]);
    // What nobody knows is not made up.
    let mut story = running();
    is_prepared(&mut story, 2);
    story.device(0, device::Event::Nonsense(1, "a poem".into()));
    story.device(0, device::Event::Died(KILLED));
    let told = Action::TakeOver(0, 2, None, false);
    assert_eq!(story.device(0, CLEAR), [Action::Vacate(0, 1), told]);
}

#[test]
fn one_that_is_not_ready_when_it_is_needed_is_not_waited_for() {
    let mut story = running();
    story.device(0, device::Event::Died(KILLED));
    let actions = story.device(0, CLEAR);
    assert_eq!(actions, [Action::Vacate(0, 1), KILL, attach(3)]);
    // It is gone before another is started.
    story.device(0, device::Event::Ready(3));
    assert_eq!(story.attached(0, 3), []);
    assert_eq!(waiting(&mut story, 2, device::Event::Died(KILLED)), []);
    assert_eq!(story.tick(Duration::ZERO), [Action::Prepare(0, 4, None)]);
}

#[test]
fn its_own_death_disturbs_nobody_and_the_next_is_started_by_the_same_back_off() {
    let mut story = running();
    let mut now = Duration::ZERO;
    for (session, wait) in [(2, 0), (3, 10), (4, 20)] {
        is_prepared(&mut story, session);
        let actions = waiting(&mut story, session, device::Event::Died(KILLED));
        assert_eq!(actions.len(), 1, "{actions:?}");
        let line = logged(&actions)[0].1;
        assert!(line.contains("its standby is lost"), "{line}");
        assert_eq!(*story.life.devices()[0].state(), State::Serving);
        if wait > 0 {
            assert_eq!(story.tick(now + Duration::from_millis(wait - 1)), []);
            now += Duration::from_millis(wait);
        }
        assert_eq!(story.tick(now), [Action::Prepare(0, session + 1, None)]);
    }
    // One that the machine has lost goes as well.
    is_prepared(&mut story, 5);
    let lost = FromMachine::Lost {
        device: "disk0".into(),
        session: 5,
        cause: Cause::Gone,
        text: "it closed its connection".into(),
    };
    assert!(story.on(Event::Said(lost)).contains(&KILL));
    assert_eq!(*story.life.devices()[0].state(), State::Serving);
    assert_eq!(story.life.verdict(), None);
}

/// What kills one after another does not start processes without a pause.
#[test]
fn it_serves_without_a_wait_and_the_one_after_it_waits_instead() {
    let mut story = running();
    is_prepared(&mut story, 2);
    story.device(0, device::Event::Died(KILLED));
    story.device(0, CLEAR);
    assert_eq!(story.attached(0, 2), [Action::Prepare(0, 3, None)]);
    is_prepared(&mut story, 3);
    story.device(0, device::Event::Died(KILLED));
    assert!(story.device(0, CLEAR).contains(&take_over(3)));
    assert_eq!(story.attached(0, 3), []);
    let ten = Duration::from_millis(10);
    assert_eq!(story.tick(ten - Duration::from_millis(1)), []);
    assert_eq!(story.tick(ten), [Action::Prepare(0, 4, None)]);
}

#[test]
fn both_die_at_once_and_a_third_is_started() {
    for first in [true, false] {
        let mut story = running();
        is_prepared(&mut story, 2);
        if first {
            waiting(&mut story, 2, device::Event::Died(KILLED));
        }
        story.device(0, device::Event::Died(KILLED));
        let actions = story.device(0, CLEAR);
        match first {
            true => assert_eq!(actions, [Action::Vacate(0, 1), attach(3)]),
            false => {
                assert_eq!(actions, [Action::Vacate(0, 1), take_over(2)]);
                // Its death is seen only now: it is the device's by then.
                let actions = waiting(&mut story, 2, device::Event::Died(KILLED));
                assert!(actions.ends_with(&[Action::Clear(0)]), "{actions:?}");
                story.device(0, CLEAR);
                let actions = story.tick(Duration::from_millis(10));
                assert_eq!(actions, [attach(3)]);
            }
        }
    }
}

#[test]
fn a_restart_that_was_asked_for_uses_it() {
    let mut story = running();
    is_prepared(&mut story, 2);
    story.device(0, device::Event::Restart);
    story.device(0, device::Event::Died(IN_ORDER));
    assert!(story.device(0, CLEAR).contains(&take_over(2)));
}

#[test]
fn a_vm_that_pauses_over_a_failure_goes_on_with_it_when_it_is_resumed() {
    let mut story = running_of(ours(0).on_failure(OnFailure::Pause));
    is_prepared(&mut story, 2);
    story.device(0, device::Event::Died(KILLED));
    assert_eq!(story.device(0, CLEAR), [Action::Vacate(0, 1)]);
    story.on(Event::Said(FromMachine::Paused));
    assert!(story.on(Event::Resume).contains(&take_over(2)));
}

#[test]
fn it_ends_with_the_vm_and_a_guest_that_is_started_anew_has_another() {
    let mut story = running();
    is_prepared(&mut story, 2);
    let ending = Ending::Reset;
    let actions = story.on(Event::Said(FromMachine::Ended { ending }));
    assert!(actions.contains(&KILL), "{actions:?}");
    story.machine(machine::Event::Died(IN_ORDER));
    let actions = story.device(0, device::Event::Died(IN_ORDER));
    assert_eq!(actions, [], "it is waited for");
    let actions = waiting(&mut story, 2, device::Event::Died(KILLED));
    assert!(actions.contains(&Action::Clear(0)), "{actions:?}");
    assert!(story.device(0, CLEAR).ends_with(&[attach(3)]));
    story.device(0, device::Event::Ready(3));
    assert_eq!(story.attached(0, 3), [Action::Prepare(0, 4, None)]);
}

#[test]
fn one_that_hangs_in_the_kernel_is_left_alone() {
    let mut story = running();
    is_prepared(&mut story, 2);
    story.on(Event::Asked);
    story.machine(machine::Event::Died(IN_ORDER));
    story.device(0, device::Event::Died(IN_ORDER));
    assert!(story.life.verdict().is_none());
    let actions = story.tick(limits::KILLED);
    assert_eq!(actions, [Action::Abandon(Who::Standby(0))]);
    assert!(story.life.verdict().is_some());
}

/// It does not know the word, and ends with an error; or it takes no notice.
#[test]
fn a_program_that_cannot_wait_is_not_started_for_ever_and_that_is_said_once() {
    let mut story = running();
    let mut now = Duration::ZERO;
    let mut session = 2;
    loop {
        let actions = waiting(&mut story, session, device::Event::Died(Death::Exited(1)));
        let lines = logged(&actions);
        if lines
            .iter()
            .any(|(_, text)| text.contains("no standby is kept"))
        {
            break;
        }
        now += Duration::from_secs(5);
        session += 1;
        assert_eq!(story.tick(now), [Action::Prepare(0, session, None)]);
    }
    assert_eq!(session, 4, "three times");
    assert_eq!(story.tick(now + Duration::from_secs(100)), []);
    // The device is recovered as any other.
    story.device(0, device::Event::Died(KILLED));
    assert!(story.device(0, CLEAR).contains(&attach(5)));
    story.device(0, device::Event::Ready(5));
    assert_eq!(story.attached(0, 5), []);
}

#[test]
fn a_program_of_version_1_has_no_standby() {
    let mut story = Story::of(vec![ours(0).with_standby(true)], false);
    story.on(Event::Begin);
    let actions = story.attached(0, 1);
    let lines: Vec<_> = logged(&actions).iter().map(|(_, text)| *text).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[1].contains("no standby is kept"), "{lines:?}");
    story.on(Event::Said(FromMachine::Running));
    assert_eq!(story.tick(Duration::from_secs(100)), []);
    assert_eq!(standby(&story), Standby::None);
}
