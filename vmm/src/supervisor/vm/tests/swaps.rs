//! A back-end that works is replaced on command, and everything goes wrong at each step of
//! that: one story after another.

use std::time::Duration;

use outboard_protocol::deadline::limits;
use outboard_protocol::kept::{DiskState, Kept};
use outboard_protocol::launch::{Cause, FromMachine, Gap, Whose};

use super::tables::{CLEAR, IN_ORDER, KILLED, Story, logged, ours, said};
use crate::supervisor::api::call::{Call, Refusal, Reply, Ticket};
use crate::supervisor::api::model::{Change, SwapRequest, SwapStep};
use crate::supervisor::process::child::Death;
use crate::supervisor::vm::action::{Action, Heir, Who};
use crate::supervisor::vm::answer::Answer;
use crate::supervisor::vm::device::{self, Device, NotDone, Server, State};
use crate::supervisor::vm::event::Event;
use crate::supervisor::vm::machine;

/// The number of every swap.
const NUMBER: u64 = 9;
const KILL: Action = Action::Kill(Who::Standby(0));
const HAND_BACK: Action = Action::HandBack(0, 1);
const GO_ON: Action = Action::GoOn(0, 1);
const GAP: Gap = Gap {
    stop_us: 1,
    drain_us: 2,
    rest_us: 3,
    start_us: 4,
};

/// How far a swap has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// A standby of before is still there.
    Clearing,
    /// Its successor is known, and looked for.
    Seeking,
    /// It is made ready.
    Preparing,
    /// The former is to hand back its rings.
    Stopping,
    /// The successor is to have them.
    Starting,
}

/// Those in which there is a successor that has a process.
const STEPS: [At; 3] = [At::Preparing, At::Stopping, At::Starting];

pub(super) fn new_ours() -> Server {
    Server {
        name: "new".into(),
        seeks: false,
        program: Some(Whose::Own),
        whose: Whose::Own,
        has_image: true,
        must_wait: false,
    }
}

/// Somebody else's, at a socket.
pub(super) fn at_a_socket() -> Server {
    Server {
        name: "/run/s".into(),
        seeks: true,
        program: None,
        whose: Whose::default(),
        has_image: false,
        must_wait: false,
    }
}

fn running() -> Story {
    running_of(ours(0).with_image(true))
}

fn running_of(disk: Device) -> Story {
    let mut story = Story::of(vec![disk], true);
    story.life = story.life.with_api();
    story.on(Event::Begin);
    story.device(0, device::Event::Ready(1));
    story.attached(0, 1);
    story.on(Event::Said(FromMachine::Running));
    story
}

/// A disk whose swap has come so far.
fn swapping(at: At) -> Story {
    let mut story = running_of(ours(0).with_image(true).with_standby(at == At::Clearing));
    swap(&mut story, SwapRequest::default());
    if at == At::Clearing {
        return story;
    }
    if at == At::Seeking {
        assert_eq!(opens(&mut story, 2, at_a_socket()), []);
        return story;
    }
    let actions = opens(&mut story, 2, new_ours());
    assert!(matches!(actions[..], [Action::Prepare(0, 2, Some(_))]));
    waiting(&mut story, 2, device::Event::Ready(2));
    if at == At::Preparing {
        return story;
    }
    assert_eq!(prepared(&mut story, 2), [HAND_BACK]);
    if at == At::Stopping {
        return story;
    }
    let actions = handed_back(&mut story, 1);
    assert!(matches!(actions[..], [Action::TakeOver(0, 2, _, false)]));
    story
}

fn swap(story: &mut Story, request: SwapRequest) -> Vec<Action> {
    changes(story.device(0, device::Event::Swap(NUMBER, request)))
}

fn opens(story: &mut Story, session: u64, server: Server) -> Vec<Action> {
    waiting(story, session, device::Event::Opened(Box::new(server)))
}

/// This happens to who waits.
fn waiting(story: &mut Story, session: u64, event: device::Event) -> Vec<Action> {
    let event = device::Event::Standby(session, Box::new(event));
    changes(story.device(0, event))
}

fn says(story: &mut Story, message: FromMachine) -> Vec<Action> {
    changes(story.on(Event::Said(message)))
}

fn prepared(story: &mut Story, session: u64) -> Vec<Action> {
    let device = "disk0".into();
    says(story, FromMachine::Prepared { device, session })
}

fn handed_back(story: &mut Story, session: u64) -> Vec<Action> {
    let device = "disk0".into();
    says(story, FromMachine::HandedBack { device, session })
}

fn goes_on(story: &mut Story, session: u64, why: Option<&str>) -> Vec<Action> {
    let message = FromMachine::GoesOn {
        device: "disk0".into(),
        session,
        gap: GAP,
        why: why.map(str::to_owned),
    };
    says(story, message)
}

fn lost(story: &mut Story, session: u64, text: &str) -> Vec<Action> {
    changes(story.lost(0, session, text))
}

fn lost_by(story: &mut Story, cause: Cause, text: &str) -> Vec<Action> {
    let lost = FromMachine::Lost {
        device: "disk0".into(),
        session: 2,
        cause,
        text: text.into(),
    };
    says(story, lost)
}

/// What is done, without what is told of states.
fn changes(mut actions: Vec<Action>) -> Vec<Action> {
    actions.retain(|action| {
        let of_a_state = matches!(
            action,
            Action::Tell(Change::Device { .. } | Change::Vm { .. })
        );
        !of_a_state
    });
    actions
}

fn disk(story: &Story) -> &Device {
    &story.life.devices()[0]
}

/// It was not done, at this step; the reason, and the gap.
fn not_done(story: &Story, at: SwapStep) -> (String, Option<Gap>) {
    match disk(story).report(NUMBER) {
        Some(Err(NotDone { step, why, gap })) => {
            assert_eq!(*step, at, "{why}");
            (why.clone(), *gap)
        }
        other => panic!("{other:?}"),
    }
}

/// The one of before serves, as if nothing had been.
fn the_former_serves(story: &Story) {
    let device = disk(story);
    assert_eq!(*device.state(), State::Serving);
    assert_eq!(device.name(), "blk");
    assert!(!device.rests());
    assert_eq!(device.why_not_now(), None);
    assert_eq!(device.health().restarts(), 0);
}

/// Lets something happen, and returns what is to be done.
type Happens = fn(&mut Story) -> Vec<Action>;

/// What can happen to a successor with a process, and what is said of that.
fn ends() -> Vec<(Happens, &'static str)> {
    fn heard(story: &mut Story, event: device::Event) -> Vec<Action> {
        waiting(story, 2, event)
    }
    vec![
        (
            |story| heard(story, device::Event::CannotBegin("no fork".into())),
            "no fork",
        ),
        (|story| heard(story, device::Event::Died(KILLED)), "SIGKILL"),
        (
            |story| heard(story, device::Event::Died(Death::Exited(3))),
            "3",
        ),
        (
            |story| heard(story, device::Event::Nonsense(2, "a poem".into())),
            "a poem",
        ),
        (
            |story| {
                assert_eq!(heard(story, device::Event::HungUp(2)), []);
                story.tick(limits::LAG)
            },
            "closed its line",
        ),
        (
            |story| {
                let died = device::Event::Died(IN_ORDER);
                assert_eq!(heard(story, died), []);
                story.tick(limits::LAG)
            },
            "0",
        ),
        (
            |story| lost_by(story, Cause::Silent, "it is silent"),
            "it is silent",
        ),
        (
            |story| {
                assert_eq!(lost(story, 2, "it closed its connection"), []);
                story.tick(limits::LAG)
            },
            "closed its connection",
        ),
        (
            |story| {
                assert_eq!(lost(story, 2, "it closed its connection"), []);
                heard(story, device::Event::Died(Death::Exited(3)))
            },
            "3 (it closed its connection)",
        ),
    ]
}

/// Whoever waits is gone, if it was there.
fn is_gone(story: &mut Story, actions: &[Action]) {
    match actions.contains(&KILL) {
        true => {
            let actions = waiting(story, 2, device::Event::Died(KILLED));
            assert_eq!(actions, [Action::Forget(0)]);
        }
        false => assert!(actions.contains(&Action::Forget(0)), "{actions:?}"),
    }
    assert!(disk(story).has_no_standby());
}

#[test]
fn the_successor_serves_and_the_former_is_told_to_go() {
    let mut story = swapping(At::Starting);
    let actions = goes_on(&mut story, 2, None);
    assert_eq!(
        actions,
        [
            Action::Tell(Change::Swapped {
                device: "disk0".into(),
                program: "new".into(),
                gap: Some(GAP.into()),
            }),
            Action::Terminate(Who::Standby(0)),
        ]
    );
    assert_eq!(disk(&story).report(NUMBER), Some(&Ok(Some(GAP))));
    assert_eq!(disk(&story).name(), "new");
    let gone = waiting(&mut story, 1, device::Event::Died(IN_ORDER));
    assert_eq!(gone, [Action::Forget(0), Action::Vacate(0, 1)]);
    // What happens to it is a fault of the device's from now on.
    story.device(0, device::Event::Died(KILLED));
    assert_eq!(disk(&story).health().restarts(), 1);
    let actions = changes(story.device(0, CLEAR));
    assert!(
        matches!(actions[..], [Action::Vacate(0, 2), Action::Attach(0, 3, _)]),
        "{actions:?}"
    );
}

#[test]
fn a_former_that_does_not_go_is_killed_and_then_left_alone() {
    let mut story = swapping(At::Starting);
    goes_on(&mut story, 2, None);
    assert_eq!(story.tick(limits::TELL), [KILL]);
    let actions = story.tick(limits::TELL + limits::KILLED);
    assert_eq!(
        actions,
        [
            Action::Abandon(Who::Standby(0)),
            Action::Forget(0),
            Action::Vacate(0, 1)
        ]
    );
}

#[test]
fn a_successor_that_fails_as_it_is_made_ready_leaves_the_former_as_it_is() {
    for (end, words) in ends() {
        let mut story = swapping(At::Preparing);
        let actions = end(&mut story);
        let (why, gap) = not_done(&story, SwapStep::Prepare);
        assert!(why.contains(words), "{why}");
        assert_eq!(gap, None, "nothing was touched");
        is_gone(&mut story, &actions);
        the_former_serves(&story);
        // It can be tried again.
        let actions = swap(&mut story, SwapRequest::default());
        assert!(matches!(actions[..], [Action::Open(0, 3, _)]));
    }
    // What is not there cannot be opened, and whoever is looked for may not be found.
    let nobody = || device::Event::CannotBegin("nobody listens".into());
    let mut story = running();
    swap(&mut story, SwapRequest::default());
    assert_eq!(waiting(&mut story, 2, nobody()), [Action::Forget(0)]);
    assert_eq!(not_done(&story, SwapStep::Prepare).0, "nobody listens");
    the_former_serves(&story);
    let mut story = swapping(At::Seeking);
    assert_eq!(waiting(&mut story, 2, nobody()), [Action::Forget(0)]);
    assert_eq!(not_done(&story, SwapStep::Prepare).0, "nobody listens");
    the_former_serves(&story);
}

#[test]
fn a_successor_that_is_lost_while_the_former_stops_lets_that_go_on() {
    for (end, words) in ends() {
        let mut story = swapping(At::Stopping);
        let actions = end(&mut story);
        assert_eq!(disk(&story).report(NUMBER), None, "the former has stopped");
        is_gone(&mut story, &actions);
        assert_eq!(handed_back(&mut story, 1), [GO_ON]);
        assert_eq!(goes_on(&mut story, 1, None), []);
        let (why, gap) = not_done(&story, SwapStep::Stop);
        assert!(why.contains(words), "{why}");
        assert_eq!(gap, Some(GAP));
        the_former_serves(&story);
        // It may be late besides.
        let mut story = swapping(At::Stopping);
        end(&mut story);
        goes_on(&mut story, 1, Some("it did not finish"));
        assert!(not_done(&story, SwapStep::Stop).0.contains(words));
        the_former_serves(&story);
    }
    let mut story = swapping(At::Stopping);
    let actions = goes_on(&mut story, 1, Some("it did not finish"));
    assert_eq!(actions, [KILL]);
    let expected = ("it did not finish".into(), Some(GAP));
    assert_eq!(not_done(&story, SwapStep::Stop), expected);
    the_former_serves(&story);
}

/// The machine ends the connection, and the process its line and itself, before it is heard
/// why.
#[test]
fn the_reason_is_the_machine_s_where_that_has_one() {
    for at in [At::Preparing, At::Stopping] {
        let mut story = swapping(at);
        assert_eq!(waiting(&mut story, 2, device::Event::HungUp(2)), []);
        let died = device::Event::Died(IN_ORDER);
        assert_eq!(waiting(&mut story, 2, died), []);
        assert_eq!(disk(&story).report(NUMBER), None);
        let actions = lost(&mut story, 2, "it has 1 queue");
        assert_eq!(actions, [Action::Forget(0)]);
        if at == At::Stopping {
            assert_eq!(handed_back(&mut story, 1), [GO_ON]);
            goes_on(&mut story, 1, None);
        }
        let step = match at {
            At::Stopping => SwapStep::Stop,
            _ => SwapStep::Prepare,
        };
        assert_eq!(not_done(&story, step).0, "it has 1 queue");
        the_former_serves(&story);
    }
    // It is not given the rings meanwhile.
    let mut story = swapping(At::Stopping);
    waiting(&mut story, 2, device::Event::Died(IN_ORDER));
    assert_eq!(handed_back(&mut story, 1), [Action::Forget(0), GO_ON]);
    let mut story = swapping(At::Preparing);
    waiting(&mut story, 2, device::Event::HungUp(2));
    assert_eq!(prepared(&mut story, 2), [KILL]);
}

/// Its end is heard before the machine says whether it had a ring.
#[test]
fn a_successor_that_fails_as_it_gets_the_rings_has_had_one_or_not() {
    let ends: [fn(&mut Story); 4] = [
        |_| {},
        |story| drop(story.device(0, device::Event::Died(KILLED))),
        |story| drop(lost(story, 2, "it closed its connection")),
        |story| {
            lost(story, 2, "it closed its connection");
            story.device(0, device::Event::Died(KILLED));
        },
    ];
    for (at, end) in ends.into_iter().enumerate() {
        // It had none.
        let mut story = swapping(At::Starting);
        end(&mut story);
        assert_eq!(disk(&story).report(NUMBER), None, "{at}");
        let actions = goes_on(&mut story, 1, Some("no back-end that waits"));
        assert_eq!(actions[0], Action::Undo(0));
        let (why, gap) = not_done(&story, SwapStep::Start);
        let expected = if at >= 2 { "closed" } else { "no back-end" };
        assert!(why.contains(expected), "{why}");
        assert_eq!(gap, Some(GAP));
        is_gone(&mut story, &actions[1..]);
        the_former_serves(&story);
        assert!(!actions.contains(&Action::Vacate(0, 1)));
        // It had one, and is lost as any back-end.
        let mut story = swapping(At::Starting);
        end(&mut story);
        let mut actions = goes_on(&mut story, 2, None);
        assert_eq!(disk(&story).report(NUMBER), Some(&Ok(Some(GAP))));
        assert_eq!(disk(&story).name(), "new");
        actions.extend(lost(&mut story, 2, "it closed its connection"));
        if at % 2 == 0 {
            actions.extend(changes(story.device(0, device::Event::Died(KILLED))));
        }
        assert!(actions.contains(&Action::Clear(0)), "{at}: {actions:?}");
        assert!(!actions.contains(&Action::Undo(0)));
        let actions = changes(story.device(0, CLEAR));
        assert!(matches!(actions[..], [Action::Vacate(0, 2), ..]));
    }
}

#[test]
fn a_program_that_cannot_be_told_to_take_over_leaves_the_former() {
    let mut story = swapping(At::Starting);
    let actions = story.device(0, device::Event::CannotBegin("it does not hear".into()));
    let actions = changes(actions);
    assert!(actions.starts_with(&[Action::Undo(0)]), "{actions:?}");
    assert!(actions.ends_with(&[GO_ON]), "{actions:?}");
    goes_on(&mut story, 1, None);
    assert_eq!(not_done(&story, SwapStep::Stop).0, "it does not hear");
    the_former_serves(&story);
}

#[test]
fn a_former_that_is_lost_is_recovered_as_it_was_and_its_successor_goes() {
    let ends: [fn(&mut Story) -> Vec<Action>; 3] = [
        |story| story.device(0, device::Event::Died(KILLED)),
        |story| {
            let mut actions = story.lost(0, 1, "it is silent");
            actions.extend(story.device(0, device::Event::Died(KILLED)));
            actions
        },
        |story| story.tick(limits::LAG),
    ];
    let steps = [At::Clearing, At::Seeking, At::Preparing, At::Stopping];
    for (at, end) in steps.into_iter().flat_map(|at| ends.map(|end| (at, end))) {
        let mut story = swapping(at);
        // In the last case that is all that is ever heard of it.
        if disk(&story).report(NUMBER).is_none() {
            story.lost(0, 1, "it is silent");
        }
        end(&mut story);
        let step = match at {
            At::Stopping => SwapStep::Stop,
            _ => SwapStep::Prepare,
        };
        let (why, gap) = not_done(&story, step);
        assert!(why.contains("lost meanwhile"), "{why}");
        assert_eq!(gap, None);
        assert_eq!(disk(&story).name(), "blk");
        assert_ne!(*disk(&story).state(), State::Serving);
    }
}

#[test]
fn a_former_that_is_lost_before_its_successor_has_the_rings_is_followed_by_that() {
    let mut story = swapping(At::Starting);
    lost(&mut story, 1, "it closed its connection");
    waiting(&mut story, 1, device::Event::Died(KILLED));
    assert_eq!(disk(&story).report(NUMBER), None);
    let device = "disk0".into();
    let actions = says(&mut story, FromMachine::Attached { device, session: 2 });
    assert!(actions.ends_with(&[Action::Forget(0), Action::Vacate(0, 1)]));
    assert_eq!(disk(&story).report(NUMBER), Some(&Ok(None)));
    assert_eq!(disk(&story).name(), "new");
    // Both are lost: the next is started for the device as it was to be.
    let mut story = swapping(At::Starting);
    lost(&mut story, 1, "it closed its connection");
    waiting(&mut story, 1, device::Event::Died(KILLED));
    lost(&mut story, 2, "there is no back-end that waits");
    let actions = changes(story.device(0, device::Event::Died(KILLED)));
    assert!(actions.contains(&Action::Clear(0)), "{actions:?}");
}

/// The former died as it was put back.
#[test]
fn a_former_that_is_lost_again_at_once_is_recovered_as_it_was() {
    let mut story = swapping(At::Starting);
    waiting(&mut story, 1, device::Event::Died(KILLED));
    let mut actions = goes_on(&mut story, 1, Some("it refused"));
    assert_eq!(not_done(&story, SwapStep::Start).0, "it refused");
    actions.extend(lost(&mut story, 1, "it closed its connection"));
    assert!(actions.contains(&Action::Clear(0)), "{actions:?}");
    waiting(&mut story, 2, device::Event::Died(KILLED));
    let actions = changes(story.device(0, CLEAR));
    assert!(
        matches!(actions[..], [Action::Vacate(0, 1), Action::Attach(0, 3, _)]),
        "{actions:?}"
    );
    assert_eq!(disk(&story).name(), "blk");
}

#[test]
fn a_vm_that_is_to_end_ends_at_each_step_and_who_asked_is_answered() {
    let steps = [At::Clearing, At::Seeking].into_iter().chain(STEPS);
    for (at, restarts) in steps.flat_map(|at| [(at, false), (at, true)]) {
        let mut story = swapping(at);
        let ticket = Ticket::FIRST;
        assert!(answer(&story.on(Event::Call(ticket, Call::Status))).is_some());
        match restarts {
            true => {
                let ending = outboard_protocol::launch::Ending::Reset;
                story.on(Event::Said(FromMachine::Ended { ending }));
            }
            false => drop(story.on(Event::Asked)),
        }
        assert!(
            matches!(disk(&story).report(NUMBER), Some(Err(_))),
            "{at:?}: {:?}",
            disk(&story).report(NUMBER)
        );
        story.machine(machine::Event::Died(IN_ORDER));
        story.device(0, device::Event::Died(IN_ORDER));
        for session in 1..4 {
            waiting(&mut story, session, device::Event::Died(KILLED));
        }
        assert_eq!(story.life.verdict().is_some(), !restarts, "{at:?}");
        assert!(disk(&story).has_no_standby(), "{at:?}");
    }
}

/// The answer to a call, if there is one.
fn answer(actions: &[Action]) -> Option<&Answer> {
    actions.iter().find_map(|action| match action {
        Action::Answer(_, answer) => Some(answer),
        _ => None,
    })
}

fn is_refused(story: &mut Story, call: Call, words: &str) {
    let actions = story.on(Event::Call(Ticket::FIRST, call));
    match answer(&actions) {
        Some(Answer::Reply(Reply::Refused(Refusal::NotNow(text)))) => {
            assert!(text.contains(words), "{text}");
        }
        other => panic!("{other:?}: {actions:?}"),
    }
    let others = actions.iter();
    let mut others = others.filter(|action| !matches!(action, Action::Answer(..)));
    assert_eq!(others.next(), None, "it has changed nothing");
}

#[test]
fn nothing_else_of_the_kind_is_begun_meanwhile() {
    let steps = [At::Clearing, At::Seeking].into_iter().chain(STEPS);
    for at in steps {
        let mut story = swapping(at);
        let id = || "disk0".to_owned();
        for call in [
            Call::Swap(id(), SwapRequest::default()),
            Call::PauseDevice(id()),
            Call::ResumeDevice(id()),
            Call::Restart(id()),
        ] {
            is_refused(&mut story, call, "is under way");
        }
        // The first one's answer is still to come, and comes.
        story.on(Event::Asked);
        assert!(disk(&story).report(NUMBER).is_some());
    }
}

#[test]
fn a_device_that_is_paused_rests_until_it_is_resumed() {
    let mut story = running();
    let pause = device::Event::PauseDevice(NUMBER);
    assert_eq!(changes(story.device(0, pause)), [HAND_BACK]);
    handed_back(&mut story, 1);
    assert_eq!(disk(&story).report(NUMBER), Some(&Ok(None)));
    assert!(disk(&story).rests());
    let id = || "disk0".to_owned();
    is_refused(&mut story, Call::PauseDevice(id()), "paused already");
    // It would go on by that.
    is_refused(&mut story, Call::Restart(id()), "resume it first");
    let resume = device::Event::ResumeDevice(NUMBER + 1);
    assert_eq!(changes(story.device(0, resume)), [GO_ON]);
    goes_on(&mut story, 1, None);
    assert_eq!(disk(&story).report(NUMBER + 1), Some(&Ok(Some(GAP))));
    is_refused(&mut story, Call::ResumeDevice(id()), "not paused");
    // One that cannot stop in time goes on.
    let pause = device::Event::PauseDevice(NUMBER);
    story.device(0, pause);
    goes_on(&mut story, 1, Some("it did not finish"));
    assert_eq!(not_done(&story, SwapStep::Stop).0, "it did not finish");
    the_former_serves(&story);
    // And one that fails when it is to go on is lost.
    story.device(0, device::Event::PauseDevice(NUMBER));
    handed_back(&mut story, 1);
    story.device(0, device::Event::ResumeDevice(NUMBER + 1));
    story.device(0, device::Event::Died(KILLED));
    assert!(matches!(disk(&story).report(NUMBER + 1), Some(Err(_))));
    assert!(!disk(&story).rests());
}

#[test]
fn a_device_that_rests_is_swapped_without_being_stopped_again() {
    let mut story = running();
    story.device(0, device::Event::PauseDevice(1));
    handed_back(&mut story, 1);
    swap(&mut story, SwapRequest::default());
    // The first successor is none.
    opens(&mut story, 2, new_ours());
    let actions = lost_by(&mut story, Cause::DoesNotFit, "it does not fit");
    is_gone(&mut story, &actions);
    assert!(disk(&story).rests(), "as it did");
    swap(&mut story, SwapRequest::default());
    opens(&mut story, 3, new_ours());
    let actions = prepared(&mut story, 3);
    assert!(matches!(actions[..], [Action::TakeOver(0, 3, ..)]));
    goes_on(&mut story, 3, None);
    assert_eq!(disk(&story).report(NUMBER), Some(&Ok(Some(GAP))));
    assert!(!disk(&story).rests());
}

const FAILED_SYNC: Kept = Kept::Disk(DiskState {
    writeback: true,
    sync_failed: true,
});

#[test]
fn nobody_follows_while_a_failed_request_is_held_back() {
    let fails = |story: &mut Story| {
        let event = device::Event::IoError(1, 0, "no space".into());
        story.device(0, event);
    };
    let mut story = running();
    fails(&mut story);
    let swap = Call::Swap("disk0".into(), SwapRequest::default());
    is_refused(&mut story, swap, "resume the VM first");
    let mut story = swapping(At::Preparing);
    fails(&mut story);
    let actions = prepared(&mut story, 2);
    assert!(!actions.contains(&HAND_BACK), "{actions:?}");
    let (why, _) = not_done(&story, SwapStep::Prepare);
    assert!(why.contains("held back"), "{why}");
}

/// Whenever it fails until the former has stopped.
#[test]
fn nobody_else_s_follows_where_a_sync_has_failed() {
    let fails = |story: &mut Story| {
        story.device(0, device::Event::Keeps(1, FAILED_SYNC));
    };
    let words = "a sync of its image has failed";
    let mut story = running();
    fails(&mut story);
    swap(&mut story, SwapRequest::default());
    assert_eq!(opens(&mut story, 2, at_a_socket()), [Action::Forget(0)]);
    assert!(not_done(&story, SwapStep::Prepare).0.contains(words));
    let introduced = || {
        let mut story = swapping(At::Seeking);
        let actions = waiting(&mut story, 2, device::Event::Found);
        assert!(matches!(actions[..], [Action::Prepare(0, 2, Some(_))]));
        story
    };
    let mut story = introduced();
    fails(&mut story);
    assert_eq!(prepared(&mut story, 2), [Action::Forget(0)]);
    assert!(not_done(&story, SwapStep::Prepare).0.contains(words));
    let mut story = introduced();
    assert_eq!(prepared(&mut story, 2), [HAND_BACK]);
    fails(&mut story);
    assert_eq!(handed_back(&mut story, 1), [Action::Forget(0), GO_ON]);
    goes_on(&mut story, 1, None);
    assert!(not_done(&story, SwapStep::Stop).0.contains(words));
    the_former_serves(&story);
    // Nor one of ours that is not told.
    let mut story = running();
    swap(&mut story, SwapRequest::default());
    opens(&mut story, 2, new_ours());
    fails(&mut story);
    assert_eq!(prepared(&mut story, 2), [KILL]);
    assert!(not_done(&story, SwapStep::Prepare).0.contains(words));
    // One of ours is told.
    let mut story = swapping(At::Stopping);
    fails(&mut story);
    let told = Action::TakeOver(0, 2, Some(FAILED_SYNC), false);
    assert_eq!(handed_back(&mut story, 1), [told]);
}

/// The same disk, served by a program of version 1, which has said nothing.
fn swapped_for_version_1() -> Story {
    let mut story = running();
    swap(&mut story, SwapRequest::default());
    opens(&mut story, 2, new_ours());
    assert_eq!(prepared(&mut story, 2), [HAND_BACK]);
    handed_back(&mut story, 1);
    let actions = goes_on(&mut story, 2, None);
    let lines: Vec<_> = logged(&actions).iter().map(|(_, text)| *text).collect();
    assert!(lines[0].contains("new keeps version 1"), "{lines:?}");
    waiting(&mut story, 1, device::Event::Died(IN_ORDER));
    assert_eq!(disk(&story).kept(), None);
    story
}

#[test]
fn a_program_of_version_1_takes_over_and_is_followed_by_one_of_version_2() {
    let mut story = swapped_for_version_1();
    let actions = swap(&mut story, SwapRequest::default());
    assert!(matches!(actions[..], [Action::Open(0, 3, _)]));
    let heir = Heir {
        kept: Some(Kept::Nothing),
        resizes: false,
    };
    let newer = Server {
        name: "newer".into(),
        ..new_ours()
    };
    let prepare = Action::Prepare(0, 3, Some(heir));
    assert_eq!(opens(&mut story, 3, newer), [prepare]);
    waiting(&mut story, 3, device::Event::Ready(3));
    assert_eq!(prepared(&mut story, 3), [Action::HandBack(0, 2)]);
    let told = Action::TakeOver(0, 3, Some(Kept::Nothing), false);
    assert_eq!(handed_back(&mut story, 2), [told]);
    let actions = goes_on(&mut story, 3, None);
    assert_eq!(logged(&actions), []);
    waiting(&mut story, 2, device::Event::Died(IN_ORDER));
    // It is as one that has served from the start: a crash is followed.
    story.device(0, device::Event::Died(KILLED));
    let actions = changes(story.device(0, CLEAR));
    assert_eq!(said(&actions), [""; 0]);
    let next = Action::Attach(0, 4, Some(Kept::Nothing));
    assert_eq!(actions, [Action::Vacate(0, 3), next]);
}

#[test]
fn a_program_of_version_1_that_sets_up_an_interface_as_it_starts_does_not_take_over() {
    let mut story = running();
    swap(&mut story, SwapRequest::default());
    let must_wait = true;
    let card = Server {
        must_wait,
        ..new_ours()
    };
    opens(&mut story, 2, card);
    assert_eq!(prepared(&mut story, 2), [KILL]);
    // It may have changed what the former uses, who sets that up again once it is gone.
    let killed = device::Event::Died(Death::Exited(1));
    let actions = waiting(&mut story, 2, killed);
    assert_eq!(actions, [Action::Forget(0), HAND_BACK]);
    assert_eq!(handed_back(&mut story, 1), [Action::GoOn(0, 1)]);
    assert_eq!(goes_on(&mut story, 1, None), []);
    let (why, gap) = not_done(&story, SwapStep::Prepare);
    assert!(why.contains("version 1"), "{why}");
    assert_eq!(gap, Some(GAP));
    the_former_serves(&story);
}

#[test]
fn what_is_only_tried_touches_nothing() {
    let mut story = running();
    let dry_run = true;
    let request = SwapRequest {
        dry_run,
        ..SwapRequest::default()
    };
    swap(&mut story, request);
    opens(&mut story, 2, new_ours());
    waiting(&mut story, 2, device::Event::Ready(2));
    assert_eq!(prepared(&mut story, 2), [KILL]);
    assert_eq!(disk(&story).report(NUMBER), Some(&Ok(None)));
    is_gone(&mut story, &[KILL]);
    the_former_serves(&story);
}

/// It may fail a request before it is heard that it serves.
#[test]
fn a_successor_of_ours_may_hold_back_what_fails_at_once_whoever_was_before() {
    // At a socket is somebody else, who may not.
    let mut story = swapping(At::Seeking);
    waiting(&mut story, 2, device::Event::Found);
    prepared(&mut story, 2);
    handed_back(&mut story, 1);
    goes_on(&mut story, 2, None);
    waiting(&mut story, 1, device::Event::Died(IN_ORDER));
    swap(&mut story, SwapRequest::default());
    opens(&mut story, 3, new_ours());
    waiting(&mut story, 3, device::Event::Ready(3));
    prepared(&mut story, 3);
    handed_back(&mut story, 2);
    let failed = device::Event::IoError(3, 0, "no space".into());
    let actions = story.device(0, failed);
    assert!(actions.contains(&Action::PauseMachine), "{actions:?}");
    goes_on(&mut story, 3, None);
    assert_eq!(disk(&story).report(NUMBER), Some(&Ok(Some(GAP))));
    story.on(Event::Said(FromMachine::Paused));
    assert!(story.on(Event::Resume).contains(&Action::Retry(0)));
}

/// What is said late, or of another, is not taken for an answer.
#[test]
fn nothing_but_the_answer_moves_a_swap() {
    for at in STEPS {
        let mut story = swapping(at);
        for event in [
            device::Event::Prepared(7),
            device::Event::HandedBack(7),
            device::Event::GoesOn(7, GAP, None),
            device::Event::Lost(7, Cause::Gone, "another".into()),
            device::Event::Tick,
        ] {
            assert_eq!(changes(story.device(0, event)), [], "{at:?}");
        }
        assert_eq!(disk(&story).report(NUMBER), None, "{at:?}");
        assert_eq!(story.tick(Duration::from_secs(500)), [], "{at:?}");
    }
    let mut idle = running();
    for event in [
        device::Event::HandedBack(1),
        device::Event::GoesOn(1, GAP, None),
        device::Event::Opened(Box::new(new_ours())),
    ] {
        assert_eq!(changes(idle.device(0, event)), []);
    }
    the_former_serves(&idle);
}
