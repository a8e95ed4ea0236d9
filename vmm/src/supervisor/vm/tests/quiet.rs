//! An operator's pause of a VM is answered when the images of its disks do not change any
//! more, or refused.

use std::time::Duration;

use outboard_protocol::deadline::limits;
use outboard_protocol::kept::Kept;
use outboard_protocol::launch::{Cause, Ending, FromMachine, Gap};

use super::swaps::{at_a_socket, new_ours};
use super::tables::{CLEAR, IN_ORDER, KILLED, Story, attach, ours};
use crate::supervisor::api::call::{Call, Refusal, Reply, Ticket};
use crate::supervisor::api::model::{DeviceState, SwapRequest, VmState};
use crate::supervisor::device::plan::OnFailure;
use crate::supervisor::vm::action::Action;
use crate::supervisor::vm::answer::{Answer, Standing};
use crate::supervisor::vm::device::{self, Device, State};
use crate::supervisor::vm::event::Event;
use crate::supervisor::vm::machine;

const PAUSE: Ticket = Ticket::FIRST;
const HAND_BACK: Action = Action::HandBack(0, 1);
const GO_ON: Action = Action::GoOn(0, 1);

fn other() -> Ticket {
    PAUSE.next()
}

/// A VM with a control API, whose guest runs and whose devices are served.
fn running(devices: Vec<Device>) -> Story {
    let mut story = Story::of(devices, true);
    story.life = story.life.with_api();
    story.on(Event::Begin);
    for place in 0..story.life.devices().len() {
        story.device(place, device::Event::Ready(1));
        story.attached(place, 1);
    }
    story.on(Event::Said(FromMachine::Running));
    story
}

fn one_disk() -> Story {
    running(vec![ours(0).with_image(true)])
}

/// What is done, without what is told and answered.
fn done(mut actions: Vec<Action>) -> Vec<Action> {
    actions.retain(|action| {
        !matches!(
            action,
            Action::Tell(_) | Action::Answer(..) | Action::Log(..) | Action::Say(_)
        )
    });
    actions
}

/// What is answered to this call, if anything is.
fn answered(actions: &[Action], ticket: Ticket) -> Option<&Answer> {
    actions.iter().find_map(|action| match action {
        Action::Answer(number, answer) if *number == ticket => Some(answer),
        _ => None,
    })
}

fn is_done(actions: &[Action], ticket: Ticket) -> bool {
    answered(actions, ticket) == Some(&Answer::Reply(Reply::Done))
}

/// Why this call is refused.
fn why_not(actions: &[Action], ticket: Ticket) -> &str {
    match answered(actions, ticket) {
        Some(Answer::Reply(Reply::Refused(Refusal::NotNow(why)))) => why,
        other => panic!("{other:?}: {actions:?}"),
    }
}

/// An operator pauses the VM, and the vCPUs stand.
fn stands(story: &mut Story) -> Vec<Action> {
    let actions = story.on(Event::Call(PAUSE, Call::Pause));
    assert_eq!(answered(&actions, PAUSE), None);
    story.on(Event::Said(FromMachine::Paused))
}

fn handed_back(story: &mut Story, place: usize, session: u64) -> Vec<Action> {
    let device = format!("disk{place}");
    story.on(Event::Said(FromMachine::HandedBack { device, session }))
}

fn goes_on(story: &mut Story, place: usize, session: u64, why: Option<&str>) -> Vec<Action> {
    story.on(Event::Said(FromMachine::GoesOn {
        device: format!("disk{place}"),
        session,
        gap: Gap::default(),
        why: why.map(str::to_owned),
    }))
}

/// A VM with one disk that an operator has paused.
fn paused() -> Story {
    let mut story = one_disk();
    assert_eq!(done(stands(&mut story)), [HAND_BACK]);
    assert!(is_done(&handed_back(&mut story, 0, 1), PAUSE));
    story
}

fn resume(story: &mut Story) -> Vec<Action> {
    story.on(Event::Call(other(), Call::Resume))
}

fn standing(story: &mut Story) -> Standing {
    let actions = story.on(Event::Call(other(), Call::Status));
    match answered(&actions, other()) {
        Some(Answer::Status(standing)) => standing.clone(),
        other => panic!("{other:?}"),
    }
}

/// Where the VM and its first disk are, and why.
fn told(story: &mut Story) -> (VmState, String, DeviceState) {
    let standing = standing(story);
    let why = standing.reason.unwrap_or_default();
    (standing.state, why, standing.devices[0].state)
}

fn fails(story: &mut Story, place: usize) {
    let event = device::Event::IoError(1, 0, "it is full".into());
    story.device(place, event);
}

fn state(story: &Story) -> &State {
    story.life.devices()[0].state()
}

fn runs_again(story: &Story) -> bool {
    matches!(
        story.life.machine().state(),
        machine::State::Resuming { .. }
    )
}

#[test]
fn a_pause_is_answered_once_the_disks_have_handed_back_their_rings() {
    let mut story = running(vec![ours(0), ours(1)]);
    let actions = stands(&mut story);
    assert_eq!(answered(&actions, PAUSE), None);
    assert_eq!(done(actions), [HAND_BACK, Action::HandBack(1, 1)]);
    let actions = handed_back(&mut story, 1, 1);
    assert_eq!(answered(&actions, PAUSE), None);
    let (state, why, disk) = told(&mut story);
    assert_eq!((state, disk), (VmState::Running, DeviceState::Running));
    assert!(why.contains("disk0: its back-end finishes"), "{why}");
    assert!(is_done(&handed_back(&mut story, 0, 1), PAUSE));
    let paused = (VmState::Paused, DeviceState::Paused);
    let (state, why, disk) = told(&mut story);
    assert_eq!((state, disk), paused, "{why}");
    assert_eq!(story.life.due(), None, "nothing is due any more");
}

#[test]
fn a_resume_gives_the_rings_back_before_the_guest_goes_on_and_is_answered_after_both() {
    let mut story = paused();
    let actions = resume(&mut story);
    assert_eq!(answered(&actions, other()), None);
    assert_eq!(done(actions), [GO_ON, Action::ResumeMachine]);
    let actions = story.on(Event::Said(FromMachine::Resumed));
    assert_eq!(answered(&actions, other()), None);
    assert!(is_done(&goes_on(&mut story, 0, 1, None), other()));
    let (state, why, disk) = told(&mut story);
    assert_eq!((state, disk), (VmState::Running, DeviceState::Running));
    assert_eq!(why, "");
}

#[test]
fn a_resume_that_comes_before_the_disks_are_at_rest_gives_the_rings_back_when_they_are() {
    let mut story = one_disk();
    stands(&mut story);
    let actions = resume(&mut story);
    assert!(why_not(&actions, PAUSE).contains("resumed before it was paused"));
    assert_eq!(done(actions), [Action::ResumeMachine]);
    story.on(Event::Said(FromMachine::Resumed));
    assert_eq!(done(handed_back(&mut story, 0, 1)), [GO_ON]);
    assert!(is_done(&goes_on(&mut story, 0, 1, None), other()));
}

#[test]
fn cards_and_entropy_have_no_image_and_keep_their_rings() {
    let card = ours(0).for_a_disk(false);
    let mut story = running(vec![card]);
    let actions = stands(&mut story);
    assert!(is_done(&actions, PAUSE));
    assert_eq!(done(actions), []);
    assert_eq!(done(resume(&mut story)), [Action::ResumeMachine]);
}

/// Its rings would end what it holds in an error, so they are not taken.
#[test]
fn a_disk_that_holds_back_a_failed_request_is_not_quiet_and_the_vm_stays_as_it_was() {
    let mut story = running(vec![ours(0), ours(1)]);
    fails(&mut story, 0);
    story.on(Event::Said(FromMachine::Paused));
    let actions = story.on(Event::Call(PAUSE, Call::Pause));
    let answer = story.on(Event::Tick);
    let actions = [actions, answer].concat();
    let why = why_not(&actions, PAUSE);
    assert!(why.contains("disk0: it holds back a request"), "{why}");
    assert!(why.contains("the VM stays paused as it was"), "{why}");
    // The other had been asked already, and goes on.
    assert_eq!(done(actions), [Action::HandBack(1, 1)]);
    assert_eq!(done(handed_back(&mut story, 1, 1)), [Action::GoOn(1, 1)]);
    let (state, why, _) = told(&mut story);
    assert_eq!(
        (state, &*why),
        (VmState::Paused, "a request to disk0 has failed")
    );
    let actions = resume(&mut story);
    assert_eq!(done(actions), [Action::ResumeMachine, Action::Retry(0)]);
}

#[test]
fn what_fails_while_the_rings_are_handed_back_is_one_more_reason_and_hinders_nothing() {
    let mut story = one_disk();
    stands(&mut story);
    fails(&mut story, 0);
    assert!(is_done(&handed_back(&mut story, 0, 1), PAUSE));
    let (state, why, disk) = told(&mut story);
    assert_eq!((state, disk), (VmState::Paused, DeviceState::Paused));
    assert!(
        why.contains("an operator") && why.contains("has failed"),
        "{why}"
    );
    let retried = [GO_ON, Action::ResumeMachine, Action::Retry(0)];
    assert_eq!(done(resume(&mut story)), retried);
}

#[test]
fn a_disk_that_was_paused_alone_stays_so_and_none_is_resumed_alone_meanwhile() {
    let mut story = one_disk();
    let id = || "disk0".to_owned();
    let actions = story.on(Event::Call(other(), Call::PauseDevice(id())));
    assert_eq!(done(actions), [HAND_BACK]);
    assert!(is_done(&handed_back(&mut story, 0, 1), other()));
    let actions = stands(&mut story);
    assert!(is_done(&actions, PAUSE));
    assert_eq!(done(actions), []);
    for call in [Call::PauseDevice, Call::ResumeDevice, Call::Restart] {
        let actions = story.on(Event::Call(other(), call(id())));
        let why = why_not(&actions, other());
        assert!(why.contains("resume the VM first"), "{why}");
        assert_eq!(done(actions), []);
    }
    assert_eq!(done(resume(&mut story)), [Action::ResumeMachine]);
    let actions = story.on(Event::Said(FromMachine::Resumed));
    assert!(is_done(&actions, other()));
    assert_eq!(told(&mut story).2, DeviceState::Paused);
    let actions = story.on(Event::Call(other(), Call::ResumeDevice(id())));
    assert_eq!(done(actions), [GO_ON]);
}

#[test]
fn one_that_does_not_finish_refuses_the_pause_and_all_goes_on() {
    let mut story = running(vec![ours(0), ours(1)]);
    stands(&mut story);
    handed_back(&mut story, 1, 1);
    let actions = goes_on(&mut story, 0, 1, Some("it did not finish"));
    let why = why_not(&actions, PAUSE);
    assert_eq!(why, "disk0: it did not finish; the VM goes on");
    let both = [Action::ResumeMachine, Action::GoOn(1, 1)];
    assert_eq!(done(actions), both);
    // It is asked again the next time.
    story.on(Event::Said(FromMachine::Resumed));
    goes_on(&mut story, 1, 1, None);
    let both = [HAND_BACK, Action::HandBack(1, 1)];
    assert_eq!(done(stands(&mut story)), both);
}

#[test]
fn who_asks_after_another_was_answered_ends_no_pause_of_that() {
    let mut story = paused();
    swapped(&mut story, 2);
    goes_on(&mut story, 0, 2, Some("it did not finish"));
    let actions = story.on(Event::Call(PAUSE, Call::Pause));
    let why = why_not(&actions, PAUSE);
    assert_eq!(
        why,
        "disk0: it did not finish; the VM stays paused as it was, but its disks are not at rest"
    );
    assert!(story.life.machine().is_paused());
    let (state, why, disk) = told(&mut story);
    assert_eq!((state, disk), (VmState::Paused, DeviceState::Running));
    assert!(why.ends_with("disk0: it did not finish"), "{why}");
}

/// Whoever is dead may write as long as the kernel has something of it.
#[test]
fn a_lost_back_end_is_waited_for_until_its_io_is_over_and_not_for_ever() {
    let lost = || {
        let mut story = one_disk();
        story.device(0, device::Event::Died(KILLED));
        let actions = stands(&mut story);
        assert_eq!(answered(&actions, PAUSE), None);
        story
    };
    let mut story = lost();
    assert!(is_done(&story.device(0, CLEAR), PAUSE));
    assert_eq!(
        *state(&story),
        State::Held,
        "nobody follows before the resume"
    );
    let actions = resume(&mut story);
    assert_eq!(done(actions), [Action::ResumeMachine, attach(0, 2)]);
    let mut story = lost();
    assert_eq!(
        story.life.due(),
        Some(story.begun_at() + Duration::from_secs(5))
    );
    let actions = story.tick(limits::END - Duration::from_secs(1));
    assert_eq!(answered(&actions, PAUSE), None);
    let actions = story.tick(limits::END);
    let why = why_not(&actions, PAUSE);
    assert!(
        why.contains("its I/O is not over yet; the VM goes on"),
        "{why}"
    );
    assert!(runs_again(&story));
    // Its recovery goes on as well.
    assert_eq!(done(story.device(0, CLEAR)).last(), Some(&attach(0, 2)));
}

#[test]
fn one_that_is_being_started_serves_first_and_hands_back_then() {
    let mut story = one_disk();
    story.device(0, device::Event::Died(KILLED));
    story.device(0, CLEAR);
    assert_eq!(*state(&story), State::Attaching);
    let actions = stands(&mut story);
    assert_eq!(
        (answered(&actions, PAUSE), done(actions.clone())),
        (None, vec![])
    );
    let actions = story.attached(0, 2);
    assert_eq!(done(actions), [Action::HandBack(0, 2)]);
    assert!(is_done(&handed_back(&mut story, 0, 2), PAUSE));
}

#[test]
fn a_disk_without_a_back_end_is_quiet() {
    // Nobody can go on with it.
    let mut story = one_disk();
    story.on(Event::Said(FromMachine::Lost {
        device: "disk0".into(),
        session: 1,
        cause: Cause::NotRecoverable,
        text: "no region".into(),
    }));
    story.device(0, CLEAR);
    assert!(matches!(state(&story), State::Out(_)));
    assert!(is_done(&stands(&mut story), PAUSE));
    assert_eq!(done(resume(&mut story)), [Action::ResumeMachine]);
    // It is started when the VM is resumed, which is paused for that.
    let mut story = running(vec![ours(0).on_failure(OnFailure::Pause)]);
    story.device(0, device::Event::Died(KILLED));
    story.device(0, CLEAR);
    assert!(is_done(&stands(&mut story), PAUSE));
    let actions = resume(&mut story);
    assert_eq!(done(actions), [Action::ResumeMachine, attach(0, 2)]);
    // Whoever listens at its socket is looked for, and is not let near when found.
    let foreign = Device::new(0, "disk0", "/run/s", true, None);
    let mut story = Story::of(vec![foreign], true);
    story.life = story.life.with_api();
    story.on(Event::Begin);
    story.device(0, device::Event::Found);
    story.attached(0, 1);
    story.on(Event::Said(FromMachine::Running));
    story.lost(0, 1, "it has gone");
    assert_eq!(done(story.device(0, CLEAR)).last(), Some(&Action::Seek(0)));
    assert!(is_done(&stands(&mut story), PAUSE));
    assert_eq!(done(story.device(0, device::Event::Found)), []);
    let actions = resume(&mut story);
    assert_eq!(done(actions), [Action::ResumeMachine, attach(0, 2)]);
}

#[test]
fn one_that_dies_at_rest_is_followed_when_the_vm_is_resumed() {
    let mut story = paused();
    story.device(0, device::Event::Died(KILLED));
    assert_eq!(done(story.device(0, CLEAR)), [Action::Vacate(0, 1)]);
    let (state, _, disk) = told(&mut story);
    assert_eq!((state, disk), (VmState::Paused, DeviceState::Down));
    // A restart changes nothing of that.
    let restart = Call::Restart("disk0".into());
    assert_eq!(done(story.on(Event::Call(other(), restart))), []);
    let actions = resume(&mut story);
    assert_eq!(done(actions), [Action::ResumeMachine, attach(0, 2)]);
    let actions = story.on(Event::Said(FromMachine::Resumed));
    assert!(is_done(&actions, other()));
}

#[test]
fn a_standby_does_not_take_over_before_the_vm_is_resumed() {
    let mut story = running(vec![ours(0).with_standby(true)]);
    let ready = device::Event::Ready(2);
    story.device(0, device::Event::Standby(2, Box::new(ready)));
    let (device, session) = ("disk0".to_owned(), 2);
    story.on(Event::Said(FromMachine::Prepared { device, session }));
    stands(&mut story);
    handed_back(&mut story, 0, 1);
    story.device(0, device::Event::Died(KILLED));
    assert_eq!(done(story.device(0, CLEAR)), [Action::Vacate(0, 1)]);
    assert_eq!(*state(&story), State::Held);
    let kept = Some(Kept::Nothing);
    let both = [Action::TakeOver(0, 2, kept, false), Action::ResumeMachine];
    assert_eq!(done(resume(&mut story)), both);
}

/// Swaps the disk for another image, under this session, until that has the rings.
fn swapped(story: &mut Story, session: u64) -> Vec<Action> {
    let request = SwapRequest::default();
    let swap = Call::Swap("disk0".into(), request);
    story.on(Event::Call(other(), swap));
    let of_it = |event| device::Event::Standby(session, Box::new(event));
    let opened = device::Event::Opened(Box::new(new_ours()));
    story.device(0, of_it(opened));
    story.device(0, of_it(device::Event::Ready(session)));
    let device = "disk0".to_owned();
    let actions = story.on(Event::Said(FromMachine::Prepared { device, session }));
    let kept = Some(Kept::Nothing);
    assert_eq!(done(actions), [Action::TakeOver(0, session, kept, false)]);
    goes_on(story, 0, session, None)
}

#[test]
fn a_swap_is_answered_once_the_successor_rests_as_well() {
    let mut story = paused();
    let actions = swapped(&mut story, 2);
    assert!(done(actions.clone()).contains(&Action::HandBack(0, 2)));
    assert_eq!(answered(&actions, other()), None);
    let actions = handed_back(&mut story, 0, 2);
    assert!(matches!(
        answered(&actions, other()),
        Some(Answer::Swapped { .. })
    ));
    assert_eq!(told(&mut story).2, DeviceState::Paused);
    let both = [Action::GoOn(0, 2), Action::ResumeMachine];
    assert_eq!(done(resume(&mut story)), both);
}

/// Nobody would serve it then, for as long as the other is waited for.
#[test]
fn a_vm_is_not_resumed_while_a_disk_is_swapped_that_rests() {
    let mut story = paused();
    let swap = Call::Swap("disk0".into(), SwapRequest::default());
    story.on(Event::Call(PAUSE, swap));
    let actions = resume(&mut story);
    let why = why_not(&actions, other());
    assert!(why.contains("a swap of a disk is under way"), "{why}");
    assert_eq!(done(actions), []);
    let failed = device::Event::CannotBegin("no such file".into());
    story.device(0, device::Event::Standby(2, Box::new(failed)));
    let actions = resume(&mut story);
    assert_eq!(done(actions), [GO_ON, Action::ResumeMachine]);
}

#[test]
fn a_swap_that_fails_leaves_the_former_at_rest() {
    let mut story = paused();
    let request = SwapRequest::default();
    let swap = Call::Swap("disk0".into(), request);
    story.on(Event::Call(other(), swap));
    let failed = device::Event::CannotBegin("no such file".into());
    let actions = story.device(0, device::Event::Standby(2, Box::new(failed)));
    assert!(answered(&actions, other()).is_some());
    assert!(!done(actions).contains(&GO_ON));
    assert_eq!(told(&mut story).2, DeviceState::Paused);
    // So does one that has been given the rings for nothing.
    let mut story = paused();
    swapped_for_nothing(&mut story);
    let actions = handed_back(&mut story, 0, 1);
    assert!(answered(&actions, other()).is_some());
    assert_eq!(told(&mut story).2, DeviceState::Paused);
}

fn swapped_for_nothing(story: &mut Story) {
    let swap = Call::Swap("disk0".into(), SwapRequest::default());
    story.on(Event::Call(other(), swap));
    let of_it = |event| device::Event::Standby(2, Box::new(event));
    story.device(0, of_it(device::Event::Opened(Box::new(at_a_socket()))));
    story.device(0, of_it(device::Event::Found));
    let (device, session) = ("disk0".to_owned(), 2);
    story.on(Event::Said(FromMachine::Prepared { device, session }));
    let actions = goes_on(story, 0, 1, Some("it has closed its connection"));
    assert_eq!(answered(&actions, other()), None);
    assert!(done(actions).contains(&HAND_BACK));
}

#[test]
fn a_swap_that_is_under_way_is_finished_first() {
    let mut story = one_disk();
    let swap = Call::Swap("disk0".into(), SwapRequest::default());
    story.on(Event::Call(other(), swap));
    let actions = stands(&mut story);
    assert_eq!(
        (answered(&actions, PAUSE), done(actions.clone())),
        (None, vec![])
    );
    let failed = device::Event::CannotBegin("no such file".into());
    let actions = story.device(0, device::Event::Standby(2, Box::new(failed)));
    assert!(done(actions).contains(&HAND_BACK));
    assert!(is_done(&handed_back(&mut story, 0, 1), PAUSE));
}

#[test]
fn a_reset_that_was_under_way_leads_to_a_guest_that_is_paused_with_its_disks() {
    let mut story = paused();
    let ending = Ending::Reset;
    story.on(Event::Said(FromMachine::Ended { ending }));
    story.machine(machine::Event::Died(IN_ORDER));
    story.device(0, device::Event::Died(IN_ORDER));
    assert!(done(story.device(0, CLEAR)).contains(&attach(0, 2)));
    story.device(0, device::Event::Ready(2));
    story.attached(0, 2);
    story.on(Event::Said(FromMachine::Running));
    let actions = story.on(Event::Said(FromMachine::Paused));
    assert_eq!(done(actions), [Action::HandBack(0, 2)]);
    let (state, why, _) = told(&mut story);
    assert_eq!(state, VmState::Paused);
    assert!(why.contains("disk0: its back-end finishes"), "{why}");
    handed_back(&mut story, 0, 2);
    assert_eq!(told(&mut story).1, "an operator has asked for it");
}

#[test]
fn a_vm_that_is_paused_is_shut_down_without_giving_the_rings_back() {
    let mut story = paused();
    let actions = story.on(Event::Call(other(), Call::Shutdown));
    assert!(is_done(&actions, other()));
    assert_eq!(done(actions), [Action::GuestIsOver, Action::StopMachine]);
    // Who waits for a pause is answered.
    let mut story = one_disk();
    stands(&mut story);
    let actions = story.on(Event::Call(other(), Call::Shutdown));
    assert_eq!(why_not(&actions, PAUSE), "the VM is being ended");
    assert_eq!(done(handed_back(&mut story, 0, 1)), []);
}
