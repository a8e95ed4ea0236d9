//! A back-end is lost, and the VM lives on: one story after another.

use std::time::Duration;

use nix::sys::signal::Signal;
use outboard_line::Told;
use outboard_protocol::deadline::limits;
use outboard_protocol::kept::{DiskState, Kept};
use outboard_protocol::launch::{Cause, Ending, FromMachine, InFlight, Replay};

use super::tables::{CLEAR, IN_ORDER, KILLED, Story, ours, said};
use crate::supervisor::api::model::Change;
use crate::supervisor::device::plan::OnFailure;
use crate::supervisor::process::child::Death;
use crate::supervisor::vm::action::{Action, Who};
use crate::supervisor::vm::device::{self, Device, State};
use crate::supervisor::vm::event::Event;
use crate::supervisor::vm::machine;
use crate::supervisor::vm::verdict::Verdict;

/// A VM with one disk of ours, which runs.
fn running() -> Story {
    Story::of(vec![ours(0)], true).run()
}

/// A VM with a disk at a socket, which runs.
fn at_a_socket() -> Story {
    let disk = Device::new(0, "disk0", "/run/s", true, None);
    let mut story = Story::of(vec![disk], false);
    story.on(Event::Begin);
    story.device(0, device::Event::Found);
    story.attached(0, 1);
    story.on(Event::Said(FromMachine::Running));
    story
}

fn state(story: &Story) -> &State {
    story.life.devices()[0].state()
}

fn refused(story: &mut Story, session: u64, cause: Cause, text: &str) -> Vec<Action> {
    story.on(Event::Said(FromMachine::Lost {
        device: "disk0".into(),
        session,
        cause,
        text: text.into(),
    }))
}

fn attach(session: u64) -> Action {
    Action::Attach(0, session, Some(Kept::Nothing))
}

#[test]
fn one_that_dies_is_followed_at_once_once_nothing_is_left_of_it() {
    let mut story = running();
    let actions = story.device(0, device::Event::Died(KILLED));
    let text = "disk0: the back-end blk was killed by SIGKILL; the guest waits while another is \
                started";
    assert_eq!(said(&actions), [text]);
    assert!(actions.ends_with(&[Action::Clear(0)]), "{actions:?}");
    // The machine says so, too.
    assert_eq!(story.lost(0, 1, "it closed its connection"), []);
    let actions = story.device(0, CLEAR);
    assert_eq!(actions, [Action::Vacate(0, 1), attach(2)]);
    story.device(0, device::Event::Ready(2));
    assert_eq!(story.attached(0, 2), []);
    assert_eq!(*state(&story), State::Serving);
    let health = story.life.devices()[0].health();
    assert_eq!(health.restarts(), 1);
    assert_eq!(story.life.verdict(), None);
}

#[test]
fn nothing_is_started_before_the_io_of_the_last_one_is_over_and_that_is_said() {
    let mut story = running();
    story.device(0, device::Event::Died(KILLED));
    assert_eq!(story.tick(Duration::from_secs(4)), []);
    let actions = story.tick(Duration::from_secs(5));
    let text = "disk0: waiting for blk to be gone and its I/O to be over, since 5 s; nothing else \
                may touch the device before";
    assert_eq!(said(&actions), [text]);
    assert_eq!(story.tick(Duration::from_secs(9)), []);
    assert_eq!(story.tick(Duration::from_secs(10)).len(), 1);
    // However long it takes.
    story.tick(Duration::from_secs(100_000));
    let actions = story.device(0, CLEAR);
    assert_eq!(actions, [Action::Vacate(0, 1), attach(2)]);
}

#[test]
fn one_that_lives_and_has_lost_its_session_is_cleared_away() {
    let mut story = running();
    story.lost(0, 1, "nonsense");
    let actions = story.tick(limits::LAG);
    let cleared = [Action::Terminate(Who::Device(0)), Action::Clear(0)];
    assert!(
        cleared.iter().all(|action| actions.contains(action)),
        "{actions:?}"
    );
    assert_eq!(story.device(0, device::Event::Died(KILLED)), []);
    assert!(story.device(0, CLEAR).contains(&attach(2)));
}

#[test]
fn each_start_in_a_row_that_comes_to_nothing_makes_the_next_wait_longer() {
    let mut story = running();
    let mut now = Duration::ZERO;
    for (session, wait) in [(2, 0), (3, 10), (4, 20), (5, 40)] {
        story.device(0, device::Event::Died(KILLED));
        let mut actions = story.device(0, CLEAR);
        if wait > 0 {
            assert_eq!(actions, [Action::Vacate(0, session - 1)]);
            assert_eq!(story.tick(now + Duration::from_millis(wait - 1)), []);
            now += Duration::from_millis(wait);
            actions = story.tick(now);
        }
        assert!(actions.ends_with(&[attach(session)]), "{actions:?}");
    }
    // A minute of service makes it good.
    story.device(0, device::Event::Ready(5));
    story.attached(0, 5);
    story.at(now + Duration::from_secs(60));
    story.device(0, device::Event::Died(KILLED));
    assert!(story.device(0, CLEAR).ends_with(&[attach(6)]));
}

#[test]
fn a_program_that_cannot_be_started_again_is_tried_again() {
    let mut story = running();
    story.device(0, device::Event::Died(KILLED));
    story.device(0, CLEAR);
    let actions = story.device(0, device::Event::CannotBegin("no fork".into()));
    let text = "no fork; the guest waits while another is started";
    assert_eq!(said(&actions), [text]);
    story.device(0, CLEAR);
    let actions = story.tick(Duration::from_millis(10));
    assert_eq!(actions, [attach(3)]);
}

#[test]
fn what_its_back_end_kept_is_told_to_the_next_one() {
    let kept = Kept::Disk(DiskState {
        writeback: false,
        sync_failed: true,
    });
    let mut story = running();
    story.device(0, device::Event::Keeps(1, kept.clone()));
    story.device(0, device::Event::Died(KILLED));
    let told = Action::Attach(0, 2, Some(kept));
    assert!(story.device(0, CLEAR).contains(&told));
    // What nobody knows is not made up.
    let mut story = running();
    story.device(0, device::Event::Nonsense(1, "a poem".into()));
    story.device(0, device::Event::Died(KILLED));
    assert!(story.device(0, CLEAR).contains(&Action::Attach(0, 2, None)));
}

/// The next back-end is started, of this session, and what it is told to do with what
/// it finds; it has found one request, executes it alone if it is to, and dies so.
fn dies_again(story: &mut Story, session: u64, death: Death) -> Option<Replay> {
    let request = InFlight {
        queue: 0,
        head: 3,
        counter: 17,
    };
    let mut actions = story.device(0, CLEAR);
    if matches!(state(story), State::Resting { .. }) {
        actions = story.tick(limits::IO * session as u32);
    }
    assert!(actions.contains(&attach(session)), "{actions:?}");
    let order = actions.into_iter().find_map(|action| match action {
        Action::Order(0, order) => Some(order),
        _ => None,
    });
    let told = [Told::Found(vec![request]), Told::Replays(request)];
    story.device(0, device::Event::Ready(session));
    for told in told {
        story.device(0, device::Event::InFlight(session, told));
    }
    story.attached(0, session);
    story.device(0, device::Event::Died(death));
    order
}

/// The next back-end is started, of this session, and says that it refuses what it has
/// found; then it is killed.
fn refuses(story: &mut Story, session: u64, told: Told) -> Vec<Action> {
    story.device(0, CLEAR);
    if matches!(state(story), State::Resting { .. }) {
        story.tick(limits::IO * session as u32);
    }
    story.device(0, device::Event::Ready(session));
    story.attached(0, session);
    let Told::Refused(request, _) = told else {
        panic!("{told:?}");
    };
    let found = Told::Found(vec![request]);
    story.device(0, device::Event::InFlight(session, found));
    let actions = story.device(0, device::Event::InFlight(session, told));
    story.device(0, device::Event::Died(KILLED));
    actions
}

#[test]
fn a_request_that_kills_is_replayed_alone_after_two_deaths_and_refused_after_the_third() {
    let crash = Death::Killed(Signal::SIGSEGV);
    let mut story = running();
    story.device(0, device::Event::Died(crash.clone()));
    assert_eq!(dies_again(&mut story, 2, crash.clone()), None);
    let alone = Replay {
        one_by_one: true,
        refuse: Vec::new(),
    };
    // Killed from outside: that speaks against no request.
    assert_eq!(dies_again(&mut story, 3, KILLED), Some(alone.clone()));
    assert_eq!(dies_again(&mut story, 4, crash.clone()), Some(alone));
    let refused = dies_again(&mut story, 5, KILLED).unwrap();
    assert_eq!(refused.refuse.len(), 1);
    assert_eq!(story.life.devices()[0].refused(), (0, None));
    // It is loud about what it has refused, and once, however often it is told.
    let told = Told::Refused(refused.refuse[0], "a flush".into());
    let refused = refuses(&mut story, 6, told.clone());
    let text = "disk0: blk has refused a flush (queue 0, head 3): ended in an I/O error and not \
                executed, since 3 back-ends had died of it";
    assert_eq!(said(&refused), [text]);
    let is_event = |action: &Action| matches!(action, Action::Tell(Change::Refused { .. }));
    assert!(refused.iter().any(is_event), "{refused:?}");
    assert_eq!(refuses(&mut story, 7, told), []);
    assert_eq!(story.life.devices()[0].refused().0, 1);
    // A driver that resets the device has no such request any more.
    let mut story = running();
    story.device(0, device::Event::Died(crash.clone()));
    assert_eq!(dies_again(&mut story, 2, crash), None);
    story.device(0, device::Event::Free);
    assert_eq!(dies_again(&mut story, 3, KILLED), None);
}

#[test]
fn one_that_nobody_can_follow_exactly_waits_for_its_driver() {
    let mut story = running();
    story.device(0, device::Event::Died(KILLED));
    story.device(0, CLEAR);
    let why = "requests of queue 0 were lost";
    let actions = refused(&mut story, 2, Cause::NotRecoverable, why);
    assert!(said(&actions)[0].contains(why), "{actions:?}");
    story.device(0, device::Event::Died(KILLED));
    assert_eq!(story.device(0, CLEAR), [Action::Vacate(0, 2)]);
    assert_eq!(*state(&story), State::Out(why.into()));
    assert_eq!(story.tick(Duration::from_secs(1000)), []);
    assert_eq!(story.life.due(), None, "nobody is waked for it");
    let device = "disk0".into();
    let actions = story.on(Event::Said(FromMachine::Free { device }));
    assert_eq!(actions, [attach(3)]);
}

#[test]
fn one_whose_io_nobody_can_see_the_end_of_is_not_followed() {
    let mut story = running();
    story.device(0, device::Event::Died(KILLED));
    let unknown = device::Event::Clear { known: false };
    let actions = story.device(0, unknown);
    assert_eq!(actions[0], Action::Vacate(0, 1));
    let State::Out(why) = state(&story) else {
        panic!("{:?}", state(&story));
    };
    assert!(why.contains("whether the I/O of blk is over"), "{why}");
    assert_eq!(said(&actions), [format!("disk0: {why}")]);
}

#[test]
fn one_that_does_not_fit_any_more_is_looked_for_again() {
    let mut story = at_a_socket();
    story.lost(0, 1, "it closed its connection");
    assert_eq!(
        story.device(0, CLEAR),
        [Action::Vacate(0, 1), Action::Seek(0)]
    );
    story.device(0, device::Event::Found);
    refused(&mut story, 2, Cause::DoesNotFit, "another size");
    story.device(0, CLEAR);
    assert_eq!(story.tick(Duration::from_millis(10)), [Action::Seek(0)]);
    let actions = story.device(0, device::Event::Found);
    assert!(
        matches!(actions[..], [Action::Attach(0, 3, _)]),
        "{actions:?}"
    );
}

#[test]
fn a_restart_that_was_asked_for_lets_it_finish_and_is_no_failure() {
    let mut story = running();
    for session in 2..9 {
        let actions = story.device(0, device::Event::Restart);
        assert_eq!(actions, [Action::Terminate(Who::Device(0))]);
        assert_eq!(
            story.device(0, device::Event::Died(IN_ORDER)),
            [Action::Clear(0)]
        );
        assert!(story.device(0, CLEAR).ends_with(&[attach(session)]));
        story.device(0, device::Event::Ready(session));
        story.attached(0, session);
    }
    // One that does not finish is killed.
    story.device(0, device::Event::Restart);
    assert_eq!(story.tick(limits::TELL), [Action::Clear(0)]);
    // One at a socket is cut off.
    let mut story = at_a_socket();
    assert_eq!(story.device(0, device::Event::Restart), [Action::Clear(0)]);
}

#[test]
fn a_vm_whose_device_is_being_recovered_ends_as_any_other() {
    for steps in 0..3 {
        let mut story = running();
        story.device(0, device::Event::Died(KILLED));
        if steps > 0 {
            story.device(0, CLEAR);
        }
        if steps > 1 {
            refused(&mut story, 2, Cause::NotRecoverable, "lost");
        }
        story.on(Event::Asked);
        story.machine(machine::Event::Died(IN_ORDER));
        story.device(0, device::Event::Died(KILLED));
        assert_eq!(story.life.verdict(), Some(&Verdict::Interrupted), "{steps}");
    }
}

#[test]
fn a_guest_s_reset_takes_a_device_that_nobody_could_follow_up_again() {
    let mut story = running();
    story.device(0, device::Event::Died(KILLED));
    story.device(0, device::Event::Clear { known: false });
    let ending = Ending::Reset;
    story.on(Event::Said(FromMachine::Ended { ending }));
    story.machine(machine::Event::Died(IN_ORDER));
    let actions = story.device(0, CLEAR);
    assert!(
        actions.ends_with(&[Action::StartMachine, attach(2)]),
        "{actions:?}"
    );
}

#[test]
fn a_vm_that_is_to_pause_over_a_failure_starts_the_next_one_when_it_is_resumed() {
    let mut story = Story::of(vec![ours(0).on_failure(OnFailure::Pause)], false).run();
    let actions = story.device(0, device::Event::Died(KILLED));
    assert!(actions.contains(&Action::PauseMachine), "{actions:?}");
    assert!(
        said(&actions)[0].contains("started when it is resumed"),
        "{actions:?}"
    );
    assert_eq!(story.device(0, CLEAR), [Action::Vacate(0, 1)]);
    story.on(Event::Said(FromMachine::Paused));
    assert_eq!(story.tick(Duration::from_secs(1000)), []);
    let actions = story.on(Event::Resume);
    assert!(actions.contains(&Action::ResumeMachine), "{actions:?}");
    assert!(actions.contains(&attach(2)), "{actions:?}");
}

/// It is over before it is known that nothing is left of the back-end.
#[test]
fn a_resume_that_comes_early_counts() {
    for early in [Event::Resume, Event::Device(0, device::Event::Restart)] {
        let mut story = Story::of(vec![ours(0).on_failure(OnFailure::Pause)], false).run();
        story.device(0, device::Event::Died(KILLED));
        story.on(Event::Said(FromMachine::Paused));
        assert!(!story.on(early).contains(&attach(2)));
        let actions = story.device(0, CLEAR);
        assert!(actions.contains(&attach(2)), "{actions:?}");
    }
}

/// One that is lost while the guest is started anew is no reason to end either.
#[test]
fn the_guest_has_run_once_and_from_then_on_everything_is_recovered() {
    let mut story = running();
    let ending = Ending::Reset;
    story.on(Event::Said(FromMachine::Ended { ending }));
    story.machine(machine::Event::Died(IN_ORDER));
    story.device(0, device::Event::Died(IN_ORDER));
    let actions = story.device(0, CLEAR);
    assert!(
        actions.ends_with(&[Action::StartMachine, attach(2)]),
        "{actions:?}"
    );
    story.device(0, device::Event::Died(KILLED));
    assert!(story.device(0, CLEAR).ends_with(&[attach(3)]));
}

#[test]
fn one_of_version_1_is_not_followed_when_it_crashes_on_an_image_that_it_shares() {
    let of = |death: Death, has_image: bool| {
        let mut story = Story::of(vec![ours(0).with_image(has_image)], false);
        story.on(Event::Begin);
        story.attached(0, 1);
        story.on(Event::Said(FromMachine::Running));
        story.device(0, device::Event::Died(death));
        story.tick(limits::LAG);
        story.device(0, CLEAR);
        matches!(state(&story), State::Out(_))
    };
    assert!(of(KILLED, true));
    assert!(of(Death::Exited(1), true));
    assert!(!of(IN_ORDER, true), "its I/O is over then");
    assert!(!of(KILLED, false));
    // One of version 2 that did not come to speak has not worked yet.
    let mut story = Story::of(vec![ours(0).with_image(true)], false).run();
    story.device(0, device::Event::Died(KILLED));
    story.device(0, CLEAR);
    story.device(0, device::Event::Died(KILLED));
    story.device(0, CLEAR);
    assert!(
        matches!(state(&story), State::Resting { .. }),
        "{:?}",
        state(&story)
    );
}

/// Nobody knows whether the former guest's requests still write to its image.
#[test]
fn a_guest_is_not_started_anew_on_a_disk_whose_io_may_not_be_over() {
    let mut story = running();
    let ending = Ending::Reset;
    story.on(Event::Said(FromMachine::Ended { ending }));
    story.machine(machine::Event::Died(IN_ORDER));
    story.device(0, device::Event::Died(KILLED));
    story.device(0, device::Event::Clear { known: false });
    let Some(Verdict::Failed { error, .. }) = story.life.verdict() else {
        panic!("{:?}", story.life.verdict());
    };
    assert!(error.starts_with("disk0: it cannot be known"), "{error}");
}
