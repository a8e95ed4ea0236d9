//! Pauses: who asks for them, and what ends them.

use std::time::Duration;

use log::Level;
use outboard_protocol::deadline::limits;
use outboard_protocol::launch::{Ending, FromMachine, Whose};

use super::tables::{CLEAR, IN_ORDER, KILLED, Story, attach, logged, said};
use crate::supervisor::vm::action::{Action, Who};
use crate::supervisor::vm::device::{self, Device};
use crate::supervisor::vm::event::Event;
use crate::supervisor::vm::machine;
use crate::supervisor::vm::pause::Why;
use crate::supervisor::vm::verdict::Verdict;

fn paused(story: &mut Story) -> Vec<Action> {
    story.on(Event::Said(FromMachine::Paused))
}

fn resumed(story: &mut Story) -> Vec<Action> {
    story.on(Event::Said(FromMachine::Resumed))
}

/// A VM of so many disks that an operator has paused.
fn stands(disks: usize) -> Story {
    let mut story = Story::of_ours(disks).run();
    let actions = story.on(Event::Pause(Why::Operator));
    assert_eq!(actions, [Action::PauseMachine]);
    assert!(!story.life.machine().is_paused());
    let actions = paused(&mut story);
    assert_eq!(logged(&actions), [(Level::Info, "the VM is paused")]);
    assert!(story.life.machine().is_paused());
    story
}

fn runs(story: &Story) -> bool {
    *story.life.machine().state() == machine::State::Running
}

#[test]
fn a_vm_is_paused_when_the_machine_says_so_and_goes_on_when_it_says_so() {
    let mut story = stands(1);
    assert_eq!(story.life.due(), None, "it is nobody's to end that");
    assert_eq!(story.on(Event::Resume), [Action::ResumeMachine]);
    assert!(!story.life.machine().is_paused() && !runs(&story));
    let actions = resumed(&mut story);
    assert_eq!(logged(&actions), [(Level::Info, "the VM goes on")]);
    assert!(runs(&story));
    assert_eq!(story.life.due(), None);
}

#[test]
fn reasons_are_a_set_and_a_resume_takes_back_all_of_them() {
    let mut story = stands(2);
    for why in [Why::Operator, Why::IoError(1), Why::Device(0)] {
        assert_eq!(story.on(Event::Pause(why)), []);
    }
    let reasons: Vec<_> = story.life.machine().reasons().iter().copied().collect();
    assert_eq!(reasons, [Why::Operator, Why::Device(0), Why::IoError(1)]);
    assert_eq!(story.on(Event::Resume), [Action::ResumeMachine]);
    resumed(&mut story);
    assert!(runs(&story) && story.life.machine().reasons().is_empty());
    // Where it runs, there is nothing to be resumed.
    assert_eq!(story.on(Event::Resume), []);
    assert!(runs(&story));
}

#[test]
fn a_resume_calls_a_pause_off_and_a_late_word_of_that_is_none_of_the_next() {
    let mut story = Story::of_ours(0).run();
    story.on(Event::Pause(Why::Operator));
    assert_eq!(story.on(Event::Resume), [Action::ResumeMachine]);
    // It had said so before it heard of the resume.
    assert_eq!(paused(&mut story), []);
    // The next pause is asked for when that is settled.
    assert_eq!(story.on(Event::Pause(Why::Operator)), []);
    assert!(!story.life.machine().is_paused());
    let actions = resumed(&mut story);
    assert_eq!(actions[1..], [Action::PauseMachine]);
    paused(&mut story);
    assert!(story.life.machine().is_paused());
}

#[test]
fn one_that_was_asked_for_before_the_guest_runs_comes_when_it_does() {
    let mut story = Story::of_ours(1);
    story.on(Event::Pause(Why::Operator));
    story.on(Event::Begin);
    story.attached(0, 1);
    let actions = story.on(Event::Said(FromMachine::Running));
    assert_eq!(actions, [Action::GuestRuns, Action::PauseMachine]);
    paused(&mut story);
    assert!(story.life.machine().is_paused());
}

#[test]
fn what_takes_long_is_mentioned_once_and_stays_asked_for() {
    let mut story = Story::of_ours(0).run();
    story.on(Event::Pause(Why::Operator));
    assert_eq!(story.life.due(), Some(story.begun_at() + limits::STOP));
    let actions = story.tick(limits::STOP);
    let words = "the VM is not paused yet: a vCPU hangs in the kernel, and is waited for";
    assert_eq!(said(&actions), [words]);
    assert_eq!(story.tick(limits::STOP + limits::LAG), []);
    paused(&mut story);
    story.on(Event::Resume);
    let actions = story.tick(limits::STOP + limits::STOP + limits::LAG);
    let words = "the VM does not go on yet: the machine process does not answer";
    assert_eq!(said(&actions), [words]);
    resumed(&mut story);
    assert!(runs(&story));
}

#[test]
fn a_paused_vm_ends_as_any_other() {
    type End = fn(&mut Story);
    let ends: [(End, Verdict); 4] = [
        (|story| drop(story.on(Event::Asked)), Verdict::Interrupted),
        (
            |story| {
                let ending = Ending::PowerOff;
                story.on(Event::Said(FromMachine::Ended { ending }));
            },
            Verdict::Ended(Ending::PowerOff),
        ),
        (
            |story| drop(story.machine(machine::Event::HungUp)),
            Verdict::MachineDied(Some(KILLED)),
        ),
        (
            |story| {
                let error = "e".into();
                story.on(Event::Said(FromMachine::Failed { error }));
            },
            Verdict::Failed {
                error: "e".into(),
                running: true,
            },
        ),
    ];
    for (end, verdict) in ends {
        let mut story = stands(1);
        end(&mut story);
        story.machine(machine::Event::Died(KILLED));
        story.device(0, device::Event::Died(IN_ORDER));
        assert_eq!(*story.verdict(), verdict);
    }
    // It is told to stop, and who asks twice need not wait.
    let mut story = stands(0);
    assert_eq!(
        story.on(Event::Asked),
        [Action::GuestIsOver, Action::StopMachine]
    );
    let actions = story.at(Duration::from_secs(1)).on(Event::Asked);
    assert!(actions.contains(&Action::Kill(Who::Machine)));
    // What is asked for then comes too late.
    assert_eq!(story.on(Event::Resume), []);
    assert_eq!(story.on(Event::Pause(Why::Operator)), []);
}

#[test]
fn a_back_end_s_death_is_the_same_fault_in_a_pause() {
    let mut story = stands(1);
    let actions = story.device(0, device::Event::Died(KILLED));
    assert!(actions.contains(&Action::StopMachine), "{actions:?}");
}

#[test]
fn an_operator_s_pause_outlives_the_guest_s_reset_and_no_other_does() {
    for (why, holds) in [
        (Why::Operator, true),
        (Why::IoError(0), false),
        (Why::Device(0), false),
    ] {
        let disk = Device::new(0, "disk0", "blk", false, Some(Whose::Own));
        let mut story = Story::of(vec![disk], true).run();
        story.on(Event::Pause(why));
        // It was under way when it was asked for.
        let ending = Ending::Reset;
        story.on(Event::Said(FromMachine::Ended { ending }));
        story.machine(machine::Event::Died(IN_ORDER));
        story.device(0, device::Event::Died(IN_ORDER));
        let actions = story.device(0, CLEAR);
        assert!(actions.ends_with(&[Action::StartMachine, attach(0, 2)]));
        story.device(0, device::Event::Ready(2));
        story.attached(0, 2);
        let actions = story.on(Event::Said(FromMachine::Running));
        assert_eq!(actions.contains(&Action::PauseMachine), holds, "{why:?}");
        assert_eq!(runs(&story), !holds);
    }
}

fn fails(story: &mut Story, place: usize, session: u64) -> Vec<Action> {
    let why = "cannot write 512 bytes: it is full".into();
    story.device(place, device::Event::IoError(session, 2, why))
}

#[test]
fn a_request_that_fails_pauses_the_vm_and_is_tried_again_on_resume() {
    let mut story = Story::of_ours(2).run();
    for round in 0..3 {
        let actions = fails(&mut story, 1, 1);
        let words = "disk1: cannot write 512 bytes: it is full (queue 2); the guest is not told: \
                     the VM is paused, and this is tried again when it is resumed";
        assert_eq!(said(&actions), [words], "{round}");
        assert_eq!(actions[1..], [Action::PauseMachine]);
        assert_eq!(fails(&mut story, 1, 1), [], "it is known");
        paused(&mut story);
        // What it is told to try again it may fail before the guest runs.
        let retry = [Action::ResumeMachine, Action::Retry(1)];
        assert_eq!(story.on(Event::Resume), retry);
        resumed(&mut story);
        assert!(runs(&story));
        assert_eq!(story.on(Event::Resume), [], "nothing is held back");
    }
    fails(&mut story, 0, 1);
    paused(&mut story);
    story.on(Event::Resume);
    let actions = fails(&mut story, 0, 1);
    assert_eq!(said(&actions).len(), 1);
    let actions = resumed(&mut story);
    assert!(actions.contains(&Action::PauseMachine), "{actions:?}");
}

#[test]
fn an_operator_s_pause_and_a_disk_s_are_ended_by_one_resume() {
    let mut story = stands(2);
    for place in 0..2 {
        assert_eq!(said(&fails(&mut story, place, 1)).len(), 1);
    }
    assert_eq!(
        story.on(Event::Resume),
        [Action::ResumeMachine, Action::Retry(0), Action::Retry(1)]
    );
}

#[test]
fn what_another_session_or_a_program_of_others_says_of_errors_pauses_nothing() {
    let mut story = Story::of_ours(1).run();
    assert_eq!(fails(&mut story, 0, 0), []);
    assert_eq!(fails(&mut story, 0, 2), []);
    let foreign = Device::new(0, "disk0", "blk", false, Some(Whose::default()));
    let mut story = Story::of(vec![foreign], false).run();
    let actions = fails(&mut story, 0, 1);
    let [(Level::Warn, text)] = logged(&actions)[..] else {
        panic!("{actions:?}");
    };
    assert!(text.contains("holds back what nobody has asked it to"));
    assert!(runs(&story));
}

#[test]
fn a_guest_s_reset_forgets_what_its_disks_held_back() {
    let disk = Device::new(0, "disk0", "blk", false, Some(Whose::Own));
    let mut story = Story::of(vec![disk], true).run();
    fails(&mut story, 0, 1);
    let ending = Ending::Reset;
    story.on(Event::Said(FromMachine::Ended { ending }));
    story.machine(machine::Event::Died(IN_ORDER));
    story.device(0, device::Event::Died(IN_ORDER));
    story.device(0, CLEAR);
    story.device(0, device::Event::Ready(2));
    story.attached(0, 2);
    let actions = story.on(Event::Said(FromMachine::Running));
    assert_eq!(actions, [Action::GuestRuns]);
    assert_eq!(story.on(Event::Resume), []);
    assert_eq!(said(&fails(&mut story, 0, 2)).len(), 1);
}
