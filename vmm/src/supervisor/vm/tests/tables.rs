//! One story after another, by its events and their times.

use std::time::{Duration, Instant};

use log::Level;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use outboard_protocol::deadline::limits;
use outboard_protocol::kept::{DiskState, Kept};
use outboard_protocol::launch::{Cause, Ending, FromMachine, Whose};

use crate::supervisor::device::plan::OnFailure;
use crate::supervisor::process::child::Death;
use crate::supervisor::vm::action::{Action, Who};
use crate::supervisor::vm::device::{self, Device};
use crate::supervisor::vm::event::Event;
use crate::supervisor::vm::life::Life;
use crate::supervisor::vm::machine;
use crate::supervisor::vm::verdict::Verdict;

pub(super) const KILLED: Death = Death::Killed(Signal::SIGKILL);
pub(super) const IN_ORDER: Death = Death::Exited(0);
pub(super) const CLEAR: device::Event = device::Event::Clear { known: true };

/// A VM of which nothing has begun, and its clock.
pub(super) struct Story {
    pub(super) life: Life,
    start: Instant,
    after: Duration,
}

impl Story {
    /// Disks with a back-end of ours each, whose failure ends the VM.
    pub(super) fn of_ours(disks: usize) -> Self {
        let disk = |place| ours(place).on_failure(OnFailure::Shutdown);
        Self::of((0..disks).map(disk).collect(), false)
    }

    pub(super) fn of(devices: Vec<Device>, restarts: bool) -> Self {
        Self {
            life: Life::new(devices, restarts),
            start: Instant::now(),
            after: Duration::ZERO,
        }
    }

    /// The time 0.
    pub(super) fn begun_at(&self) -> Instant {
        self.start
    }

    pub(super) fn at(&mut self, after: Duration) -> &mut Self {
        self.after = after;
        self
    }

    /// Lets this happen; returns what is to be done.
    pub(super) fn on(&mut self, event: Event) -> Vec<Action> {
        self.life.step(event, self.start + self.after)
    }

    pub(super) fn tick(&mut self, after: Duration) -> Vec<Action> {
        self.at(after).on(Event::Tick)
    }

    pub(super) fn machine(&mut self, event: machine::Event) -> Vec<Action> {
        self.on(Event::Machine(event))
    }

    pub(super) fn device(&mut self, place: usize, event: device::Event) -> Vec<Action> {
        self.on(Event::Device(place, event))
    }

    pub(super) fn attached(&mut self, place: usize, session: u64) -> Vec<Action> {
        let device = format!("disk{place}");
        self.on(Event::Said(FromMachine::Attached { device, session }))
    }

    pub(super) fn lost(&mut self, place: usize, session: u64, text: &str) -> Vec<Action> {
        self.on(Event::Said(FromMachine::Lost {
            device: format!("disk{place}"),
            session,
            cause: Cause::Gone,
            text: text.into(),
        }))
    }

    /// Begins, and comes to where the guest runs; every back-end has said that it is
    /// ready.
    pub(super) fn run(mut self) -> Self {
        self.on(Event::Begin);
        for place in 0..self.life.devices().len() {
            self.device(place, device::Event::Ready(1));
            assert_eq!(self.attached(place, 1), []);
        }
        assert_eq!(
            self.on(Event::Said(FromMachine::Running)),
            [Action::GuestRuns]
        );
        self
    }

    pub(super) fn verdict(&self) -> &Verdict {
        self.life.verdict().expect("it has not ended")
    }
}

/// A disk with a back-end of ours.
pub(super) fn ours(place: usize) -> Device {
    let id = format!("disk{place}");
    Device::new(place, &id, "blk", false, Some(Whose::Own))
}

/// A device is attached whose guest begins anew.
pub(super) fn attach(place: usize, session: u64) -> Action {
    Action::Attach(place, session, Some(Kept::Nothing))
}

/// What is logged, and how seriously.
pub(super) fn logged(actions: &[Action]) -> Vec<(Level, &str)> {
    let mut lines = Vec::new();
    for action in actions {
        if let Action::Log(level, text) = action {
            lines.push((*level, text.as_str()));
        }
    }
    lines
}

pub(super) fn said(actions: &[Action]) -> Vec<&str> {
    let mut lines = Vec::new();
    for action in actions {
        if let Action::Say(text) = action {
            lines.push(text.as_str());
        }
    }
    lines
}

#[test]
fn everything_is_started_side_by_side() {
    let mut story = Story::of_ours(2);
    assert_eq!(
        story.on(Event::Begin),
        [Action::StartMachine, attach(0, 1), attach(1, 1)]
    );
    assert_eq!(Story::of_ours(0).on(Event::Begin), [Action::StartMachine]);
}

#[test]
fn nothing_is_started_before_everybody_who_is_needed_was_found() {
    let sought = |place| Device::new(place, &format!("disk{place}"), "/run/s", true, None);
    let ours = Device::new(1, "disk1", "blk", false, Some(Whose::Own));
    let mut story = Story::of(vec![sought(0), ours, sought(2)], false);
    assert_eq!(story.on(Event::Begin), [Action::Seek(0), Action::Seek(2)]);
    assert_eq!(story.device(2, device::Event::Found), []);
    assert_eq!(
        story.device(0, device::Event::Found),
        [
            Action::StartMachine,
            attach(0, 1),
            attach(1, 1),
            attach(2, 1)
        ]
    );
}

#[test]
fn one_who_is_not_found_ends_the_vm_before_it_began() {
    let sought = |place| Device::new(place, &format!("disk{place}"), "/run/s", true, None);
    let mut story = Story::of(vec![sought(0), sought(1)], false);
    story.on(Event::Begin);
    let nobody = device::Event::CannotBegin("nobody listens".into());
    assert_eq!(
        story.device(0, nobody),
        [Action::GuestIsOver, Action::StopSeeking(1)]
    );
    let error = "nobody listens".to_owned();
    let running = false;
    assert_eq!(*story.verdict(), Verdict::Failed { error, running });
}

#[test]
fn who_asks_while_somebody_is_looked_for_is_heard_at_once() {
    let sought = Device::new(0, "disk0", "/run/s", true, None);
    let mut story = Story::of(vec![sought], false);
    story.on(Event::Begin);
    story.on(Event::Asked);
    assert_eq!(*story.verdict(), Verdict::Interrupted);
}

#[test]
fn a_start_that_takes_long_is_mentioned_once_with_what_is_missing() {
    let mut story = Story::of_ours(2);
    story.on(Event::Begin);
    story.attached(0, 1);
    assert_eq!(story.tick(Duration::from_secs(9)), []);
    let actions = story.tick(Duration::from_secs(10));
    assert_eq!(said(&actions), ["still waiting for disk1 (blk)"]);
    assert_eq!(story.tick(Duration::from_secs(20)), []);
    let mut story = Story::of_ours(0);
    story.on(Event::Begin);
    let actions = story.tick(Duration::from_secs(10));
    assert_eq!(said(&actions), ["the machine is still being built"]);
}

#[test]
fn a_program_that_cannot_be_started_ends_the_vm_at_once() {
    let mut story = Story::of_ours(2);
    story.on(Event::Begin);
    let failed = device::Event::CannotBegin("no fork".into());
    // Nothing of it has anything to finish, and nothing but the reason is said.
    assert_eq!(
        story.device(0, failed),
        [
            Action::GuestIsOver,
            Action::StopMachine,
            Action::Kill(Who::Machine)
        ]
    );
    assert_eq!(
        story.machine(machine::Event::Died(KILLED)),
        [Action::Kill(Who::Device(1))]
    );
    assert_eq!(story.device(1, device::Event::Died(KILLED)), []);
    let error = "no fork".to_owned();
    let running = false;
    assert_eq!(*story.verdict(), Verdict::Failed { error, running });
    let mut story = Story::of_ours(0);
    story.on(Event::Begin);
    story.machine(machine::Event::NotStarted("no fork".into()));
    assert!(matches!(story.verdict(), Verdict::Failed { .. }));
}

/// The reason for which a VM with one disk ends, after these events.
fn reason(events: impl FnOnce(&mut Story)) -> Verdict {
    let mut story = Story::of_ours(1).run();
    events(&mut story);
    story.tick(limits::LAG);
    story.machine(machine::Event::Died(IN_ORDER));
    story.device(0, device::Event::Died(IN_ORDER));
    story.verdict().clone()
}

fn died(death: Death, cause: Option<&str>) -> Verdict {
    Verdict::BackEndDied {
        id: "disk0".into(),
        program: "blk".into(),
        death,
        cause: cause.map(str::to_owned),
        running: true,
    }
}

#[test]
fn a_death_and_the_end_of_its_session_are_one_fault_whichever_comes_first() {
    let closed = "it closed its connection";
    let verdict = reason(|story| {
        story.lost(0, 1, closed);
        story.device(0, device::Event::Died(KILLED));
    });
    assert_eq!(verdict, died(KILLED, Some(closed)));
    let verdict = reason(|story| {
        story.device(0, device::Event::Died(KILLED));
        story.lost(0, 1, closed);
    });
    assert_eq!(verdict, died(KILLED, None));
    let verdict = reason(|story| {
        story.device(0, device::Event::Died(IN_ORDER));
        story.lost(0, 1, closed);
    });
    assert_eq!(verdict, died(IN_ORDER, Some(closed)));
    let verdict = reason(|story| {
        story.device(0, device::Event::Died(IN_ORDER));
    });
    assert_eq!(verdict, died(IN_ORDER, None));
    let not_started = Death::NotStarted(Errno::ENOEXEC);
    let verdict = reason(|story| {
        story.device(0, device::Event::Died(not_started.clone()));
    });
    assert_eq!(verdict, died(not_started, None));
}

#[test]
fn a_session_that_is_lost_under_a_living_process_takes_it_along() {
    let mut story = Story::of_ours(1).run();
    assert_eq!(story.lost(0, 1, "nonsense"), []);
    assert_eq!(
        story.tick(limits::LAG),
        [
            Action::Terminate(Who::Device(0)),
            Action::GuestIsOver,
            Action::StopMachine
        ]
    );
    story.machine(machine::Event::Died(IN_ORDER));
    story.device(0, device::Event::Died(IN_ORDER));
    let lost = Verdict::BackEndLost {
        id: "disk0".into(),
        cause: "nonsense".into(),
        running: true,
    };
    assert_eq!(*story.verdict(), lost);
}

#[test]
fn what_is_said_of_another_session_counts_for_none() {
    let mut story = Story::of_ours(1).run();
    for session in [0, 2] {
        assert_eq!(story.lost(0, session, "late"), []);
        assert_eq!(*story.life.devices()[0].state(), device::State::Serving);
    }
    story.on(Event::Said(FromMachine::Lost {
        device: "disk9".into(),
        session: 1,
        cause: Cause::DoesNotFit,
        text: String::new(),
    }));
    assert_eq!(story.life.due(), None);
    let mut story = Story::of_ours(1);
    story.on(Event::Begin);
    story.attached(0, 2);
    assert_eq!(*story.life.devices()[0].state(), device::State::Attaching);
}

#[test]
fn the_machine_s_last_word_counts_before_the_deaths_that_it_causes() {
    for ending in [Ending::PowerOff, Ending::TripleFault] {
        let verdict = reason(|story| {
            story.device(0, device::Event::Died(IN_ORDER));
            let ending = ending.clone();
            story.on(Event::Said(FromMachine::Ended { ending }));
        });
        assert_eq!(verdict, Verdict::Ended(ending));
    }
    // A foreign back-end may end otherwise when the machine has died.
    let verdict = reason(|story| {
        story.machine(machine::Event::HungUp);
        story.device(0, device::Event::Died(Death::Exited(1)));
        story.machine(machine::Event::Died(KILLED));
    });
    assert_eq!(verdict, Verdict::MachineDied(Some(KILLED)));
}

#[test]
fn a_machine_that_speaks_no_more_is_killed() {
    let mut story = Story::of_ours(0).run();
    assert_eq!(story.machine(machine::Event::HungUp), []);
    assert_eq!(
        story.tick(limits::LAG),
        [Action::Kill(Who::Machine), Action::GuestIsOver]
    );
    story.machine(machine::Event::Died(KILLED));
    assert_eq!(*story.verdict(), Verdict::MachineDied(None));
}

#[test]
fn whether_the_guest_had_run_is_known_to_the_end() {
    for run in [true, false] {
        let mut story = Story::of_ours(1);
        story.on(Event::Begin);
        if run {
            story.on(Event::Said(FromMachine::Running));
        }
        let failed = FromMachine::Failed { error: "e".into() };
        story.on(Event::Said(failed));
        story.machine(machine::Event::Died(Death::Exited(1)));
        story.device(0, device::Event::Died(IN_ORDER));
        let error = "e".to_owned();
        let running = run;
        assert_eq!(*story.verdict(), Verdict::Failed { error, running });
    }
}

/// A VM of so many disks whose guest has powered off, and whose machine has gone
/// at the time 0.
fn ending(disks: usize) -> Story {
    let mut story = Story::of_ours(disks).run();
    let ending = Ending::PowerOff;
    story.on(Event::Said(FromMachine::Ended { ending }));
    story.machine(machine::Event::Died(IN_ORDER));
    story
}

#[test]
fn a_back_end_with_io_under_way_is_waited_for_and_that_is_said() {
    let mut story = ending(1);
    let actions = story.tick(Duration::from_secs(5));
    assert_eq!(
        said(&actions),
        [
            "disk0: waiting for blk to finish its I/O and end, 75 s more at most; two signals \
         (SIGTERM, Ctrl-C) end it at once"
        ]
    );
    assert_eq!(story.tick(Duration::from_secs(6)), []);
    story.on(Event::Asked);
    let actions = story.tick(Duration::from_secs(20));
    let words = "60 s more at most; a second signal (SIGTERM, Ctrl-C) ends it at once";
    assert!(said(&actions)[0].ends_with(words), "{actions:?}");
    story.device(0, device::Event::Died(IN_ORDER));
    assert_eq!(*story.verdict(), Verdict::Ended(Ending::PowerOff));
}

#[test]
fn one_that_does_not_heed_the_end_of_its_session_is_told() {
    let mut story = ending(1);
    let told = Action::Terminate(Who::Device(0));
    assert!(story.tick(limits::TELL).contains(&told));
    assert!(!story.tick(limits::TELL + limits::LAG).contains(&told));
    let term = Death::Killed(Signal::SIGTERM);
    let actions = story.device(0, device::Event::Died(term));
    assert_eq!(
        said(&actions),
        ["disk0: the back-end blk was killed by SIGTERM"]
    );
}

#[test]
fn whoever_does_not_end_in_time_is_killed_and_all_at_the_same_time() {
    let mut story = Story::of_ours(2).run();
    assert_eq!(
        story.on(Event::Asked),
        [Action::GuestIsOver, Action::StopMachine]
    );
    let actions = story.tick(limits::MACHINE);
    assert_eq!(
        actions,
        [
            Action::Say("the machine process does not end; it is killed".into()),
            Action::Kill(Who::Machine)
        ]
    );
    story.machine(machine::Event::Died(KILLED));
    let actions = story.tick(limits::MACHINE + limits::END);
    for place in 0..2 {
        assert!(actions.contains(&Action::Kill(Who::Device(place))));
    }
    assert_eq!(
        said(&actions),
        [
            "disk0: blk does not end; it is killed",
            "disk1: blk does not end; it is killed"
        ]
    );
    let actions = story.device(1, device::Event::Died(KILLED));
    assert_eq!(
        said(&actions),
        ["disk1: the back-end blk was killed by SIGKILL"]
    );
    // The other one hangs in the kernel.
    let actions = story.tick(limits::MACHINE + limits::END + limits::KILLED);
    assert_eq!(actions, [Action::Abandon(Who::Device(0))]);
    assert_eq!(*story.verdict(), Verdict::Interrupted);
}

#[test]
fn who_asks_twice_waits_for_nothing() {
    let mut story = Story::of_ours(1).run();
    story.on(Event::Asked);
    let actions = story.at(Duration::from_secs(1)).on(Event::Asked);
    assert_eq!(actions[1..], [Action::Kill(Who::Machine)]);
    let actions = story.machine(machine::Event::Died(KILLED));
    assert_eq!(
        said(&actions),
        ["disk0: blk is killed: the end was asked for twice"]
    );
    assert_eq!(actions[1..], [Action::Kill(Who::Device(0))]);
    // Also when the machine has gone already.
    let mut story = ending(1);
    story.on(Event::Asked);
    let actions = story.at(Duration::from_secs(1)).on(Event::Asked);
    assert_eq!(actions[1..], [Action::Kill(Who::Device(0))]);
}

#[test]
fn signals_in_a_burst_ask_once_and_a_later_one_again() {
    let mut story = Story::of_ours(0).run();
    for millis in [0, 3, 400] {
        let actions = story.at(Duration::from_millis(millis)).on(Event::Asked);
        assert!(!actions.contains(&Action::Kill(Who::Machine)), "{millis}");
    }
    let actions = story.at(Duration::from_millis(600)).on(Event::Asked);
    assert!(actions.contains(&Action::Kill(Who::Machine)));
}

#[test]
fn a_guest_s_reset_starts_the_machine_again_and_the_sessions_go_on_counting() {
    for (restarts, asked) in [(true, false), (true, true), (false, false)] {
        let disk = Device::new(0, "disk0", "blk", false, Some(Whose::Own));
        let mut story = Story::of(vec![disk], restarts).run();
        let ending = Ending::Reset;
        story.on(Event::Said(FromMachine::Ended { ending }));
        story.machine(machine::Event::Died(IN_ORDER));
        if asked {
            story.on(Event::Asked);
        }
        let actions = story.device(0, device::Event::Died(IN_ORDER));
        match restarts && !asked {
            true => {
                assert_eq!(actions, [Action::Clear(0)]);
                let actions = story.device(0, CLEAR);
                let again = [Action::Vacate(0, 1), Action::StartMachine, attach(0, 2)];
                assert_eq!(actions, again);
                assert!(!story.life.machine().has_run());
                // A late word of the former run counts for nothing.
                assert_eq!(story.lost(0, 1, "late"), []);
                story.device(0, device::Event::Ready(2));
                assert_eq!(story.attached(0, 2), []);
                assert_eq!(*story.life.devices()[0].state(), device::State::Serving);
            }
            false => assert_eq!(*story.verdict(), Verdict::Ended(Ending::Reset)),
        }
    }
}

fn disk(sync_failed: bool) -> Kept {
    Kept::Disk(DiskState {
        writeback: false,
        sync_failed,
    })
}

#[test]
fn what_a_back_end_keeps_survives_it_and_not_the_guest() {
    let mut story = story_of_a_disk();
    story.device(0, device::Event::Keeps(1, disk(false)));
    // A predecessor's late word.
    story.device(0, device::Event::Keeps(0, disk(true)));
    let actions = reset_by_the_guest(&mut story, &disk(false));
    assert!(actions.ends_with(&[Action::StartMachine, attach(0, 2)]));
    assert_eq!(story.life.devices()[0].kept(), Some(&Kept::Nothing));
    // A late word of the process that is gone.
    story.device(0, device::Event::Ready(1));
    story.device(0, device::Event::Keeps(1, disk(true)));
    assert_eq!(story.life.devices()[0].kept(), Some(&Kept::Nothing));
}

fn story_of_a_disk() -> Story {
    let device = Device::new(0, "disk0", "blk", false, Some(Whose::Own));
    Story::of(vec![device], true).run()
}

/// What is done when the guest has reset itself, and this was `kept` until then.
fn reset_by_the_guest(story: &mut Story, kept: &Kept) -> Vec<Action> {
    story.on(Event::Said(FromMachine::Ended {
        ending: Ending::Reset,
    }));
    story.machine(machine::Event::Died(IN_ORDER));
    assert_eq!(story.life.devices()[0].kept(), Some(kept));
    let actions = story.device(0, device::Event::Died(IN_ORDER));
    assert_eq!(actions, [Action::Clear(0)]);
    story.device(0, CLEAR)
}

/// What the kernel has lost comes back by no reset: neither the guest's nor its driver's,
/// nor because its back-end is not understood any more, or takes it back.
#[test]
fn a_failed_sync_is_known_until_the_vm_ends() {
    let told = Kept::Disk(DiskState {
        writeback: true,
        sync_failed: true,
    });
    let first = |story: &Story| story.life.devices()[0].kept().cloned();
    let mut story = story_of_a_disk();
    story.device(0, device::Event::Keeps(1, disk(true)));
    story.device(0, device::Event::Keeps(1, disk(false)));
    let actions = reset_by_the_guest(&mut story, &disk(true));
    let attach = Action::Attach(0, 2, Some(told.clone()));
    assert!(actions.ends_with(&[Action::StartMachine, attach]));
    let mut story = story_of_a_disk();
    story.device(0, device::Event::Keeps(1, disk(true)));
    story.device(0, device::Event::Free);
    assert_eq!(first(&story), Some(told.clone()));
    story.device(0, device::Event::Nonsense(1, "nonsense".into()));
    assert_eq!(first(&story), None);
    story.device(0, device::Event::Free);
    assert_eq!(first(&story), Some(told));
}

#[test]
fn one_that_is_attached_and_was_not_ready_keeps_version_1_and_that_is_told_once() {
    for (program, level, advice) in [
        (Some(Whose::Own), Level::Warn, "it is older than outboard"),
        (Some(Whose::default()), Level::Info, "lost when it ends"),
    ] {
        let device = Device::new(0, "disk0", "blk", false, program);
        let mut story = Story::of(vec![device], true);
        story.on(Event::Begin);
        // Most do not even close what they do not know.
        story.device(0, device::Event::HungUp(1));
        let actions = story.attached(0, 1);
        let [(told, text)] = logged(&actions)[..] else {
            panic!("{actions:?}");
        };
        let words = "disk0: blk keeps version 1 of the launch contract: ";
        assert!(text.starts_with(words) && text.contains(advice), "{text}");
        assert_eq!(told, level);
        // What the user was told stays true.
        for event in [
            device::Event::Ready(1),
            device::Event::Keeps(1, disk(true)),
            device::Event::HungUp(1),
            device::Event::Nonsense(1, "a poem".into()),
        ] {
            assert_eq!(story.device(0, event), []);
        }
        assert_eq!(story.tick(limits::LAG), []);
        assert_eq!(story.life.devices()[0].kept(), None);
        story.on(Event::Said(FromMachine::Running));
        let ending = Ending::Reset;
        story.on(Event::Said(FromMachine::Ended { ending }));
        story.machine(machine::Event::Died(IN_ORDER));
        story.device(0, device::Event::Died(IN_ORDER));
        story.device(0, CLEAR);
        assert_eq!(story.attached(0, 2), []);
        assert_eq!(story.life.devices()[0].kept(), None);
    }
    // Who listens at a socket has no line to us.
    let mut story = Story::of(vec![Device::new(0, "disk0", "/run/s", true, None)], false);
    story.on(Event::Begin);
    story.device(0, device::Event::Found);
    assert_eq!(story.attached(0, 1), []);
}

#[test]
fn one_that_says_nonsense_serves_on_and_is_not_heard_any_more() {
    for ready in [true, false] {
        let mut story = Story::of_ours(1);
        story.on(Event::Begin);
        if ready {
            story.device(0, device::Event::Ready(1));
            story.device(0, device::Event::Keeps(1, disk(true)));
        }
        let nonsense = || device::Event::Nonsense(1, "a poem".into());
        let actions = story.device(0, nonsense());
        let [(Level::Warn, text)] = logged(&actions)[..] else {
            panic!("{actions:?}");
        };
        let words = "disk0: blk says what no back-end says (a poem): it serves on";
        assert!(text.starts_with(words), "{text}");
        for event in [
            nonsense(),
            device::Event::Keeps(1, disk(true)),
            device::Event::Ready(1),
            device::Event::HungUp(1),
        ] {
            assert_eq!(story.device(0, event), []);
        }
        assert_eq!(story.life.devices()[0].kept(), None);
        assert_eq!(story.attached(0, 1), [], "that was told already");
        assert_eq!(*story.life.devices()[0].state(), device::State::Serving);
    }
}

#[test]
fn one_that_hangs_up_and_lives_on_is_told_of_and_one_that_dies_is_not() {
    let mut story = Story::of_ours(1).run();
    assert_eq!(story.device(0, device::Event::HungUp(1)), []);
    assert_eq!(story.life.due(), Some(story.start + limits::LAG));
    let actions = story.tick(limits::LAG);
    let [(Level::Warn, text)] = logged(&actions)[..] else {
        panic!("{actions:?}");
    };
    assert!(text.contains("blk has closed its line"), "{text}");
    assert_eq!(story.life.due(), None);
    assert_eq!(*story.life.devices()[0].state(), device::State::Serving);
    // Its death explains it; what was kept is what it had.
    let mut story = Story::of_ours(1).run();
    story.device(0, device::Event::Keeps(1, disk(true)));
    story.device(0, device::Event::HungUp(1));
    let actions = story.device(0, device::Event::Died(KILLED));
    assert_eq!(logged(&actions), []);
    assert_eq!(story.life.devices()[0].kept(), Some(&disk(true)));
    // Nor is it told of one that has yet to finish its I/O.
    let mut story = ending(1);
    story.device(0, device::Event::HungUp(1));
    assert_eq!(story.tick(limits::LAG), []);
    assert_eq!(story.life.devices()[0].kept(), None);
}

#[test]
fn what_one_that_dies_had_served_is_told_before_its_fault() {
    let counts = Action::TellCounts(0);
    let mut story = Story::of_ours(1).run();
    assert_eq!(story.device(0, device::Event::Died(KILLED))[0], counts);
    let mut story = Story::of_ours(1).run();
    story.lost(0, 1, "it closed its connection");
    assert_eq!(story.device(0, device::Event::Died(KILLED))[0], counts);
    let mut story = Story::of_ours(1).run();
    assert_eq!(story.device(0, device::Event::Died(IN_ORDER)), []);
    assert_eq!(story.tick(limits::LAG)[0], counts);
    // One whose VM ends has served to the end.
    let mut story = ending(1);
    assert_eq!(story.device(0, device::Event::Died(IN_ORDER)), []);
}

/// A session that was lost is a fault, whatever comes while it is not known yet
/// whether the process died.
#[test]
fn nothing_overtakes_a_session_that_is_lost() {
    let lost = |id: &str| Verdict::BackEndLost {
        id: id.into(),
        cause: "nonsense".into(),
        running: true,
    };
    let others: [fn(&mut Story); 6] = [
        |story| drop(story.on(Event::Asked)),
        |story| drop(story.machine(machine::Event::HungUp)),
        |story| drop(story.machine(machine::Event::Died(KILLED))),
        |story| {
            let ending = Ending::Reset;
            story.on(Event::Said(FromMachine::Ended { ending }));
        },
        |story| {
            let error = "e".into();
            story.on(Event::Said(FromMachine::Failed { error }));
        },
        |story| drop(story.device(1, device::Event::Died(KILLED))),
    ];
    for other in others {
        let mut story = Story::of_ours(2).run();
        story.lost(0, 1, "nonsense");
        other(&mut story);
        story.machine(machine::Event::Died(IN_ORDER));
        story.device(0, device::Event::Died(IN_ORDER));
        story.device(1, device::Event::Died(IN_ORDER));
        assert_eq!(*story.verdict(), lost("disk0"));
    }
    // Nor does the guest begin to run meanwhile.
    let mut story = Story::of_ours(1);
    story.on(Event::Begin);
    story.attached(0, 1);
    story.lost(0, 1, "nonsense");
    let actions = story.on(Event::Said(FromMachine::Running));
    assert!(!actions.contains(&Action::GuestRuns), "{actions:?}");
    story.machine(machine::Event::Died(IN_ORDER));
    story.device(0, device::Event::Died(IN_ORDER));
    assert!(matches!(
        story.verdict(),
        Verdict::BackEndLost { running: false, .. }
    ));
}

#[test]
fn one_who_asks_does_not_hide_a_back_end_that_has_ended() {
    let mut story = Story::of_ours(1).run();
    story.device(0, device::Event::Died(IN_ORDER));
    story.lost(0, 2, "of another session");
    story.lost(0, 1, "it closed its connection");
    story.lost(0, 1, "a second word");
    story.on(Event::Asked);
    story.machine(machine::Event::Died(IN_ORDER));
    assert_eq!(
        *story.verdict(),
        died(IN_ORDER, Some("it closed its connection"))
    );
}

#[test]
fn what_happens_while_the_machine_ends_is_said_once() {
    let mut story = Story::of_ours(1).run();
    story.on(Event::Asked);
    let actions = story.device(0, device::Event::Died(Death::Exited(3)));
    assert_eq!(
        said(&actions),
        ["disk0: the back-end blk exited with status 3"]
    );
    assert_eq!(story.machine(machine::Event::Died(IN_ORDER)), []);
    assert_eq!(*story.verdict(), Verdict::Interrupted);
}

#[test]
fn a_machine_that_speaks_no_more_ends_with_the_vm_that_ends() {
    let mut story = Story::of_ours(0).run();
    story.machine(machine::Event::HungUp);
    story.on(Event::Asked);
    let actions = story.tick(limits::MACHINE);
    assert_eq!(
        said(&actions),
        ["the machine process does not end; it is killed"]
    );
}

#[test]
fn each_mention_has_its_time() {
    let mut story = ending(1);
    let mut after = Vec::new();
    let began = story.start;
    while let Some(due) = story.life.due().filter(|due| *due < began + limits::END) {
        let waited = due - began;
        let actions = story.tick(waited);
        if !said(&actions).is_empty() {
            after.push(waited.as_secs());
        }
    }
    assert_eq!(after, [5, 10, 20, 40]);
}

#[test]
fn one_that_was_left_alone_is_not_waited_for_when_the_guest_is_started_again() {
    let disk = Device::new(0, "disk0", "blk", false, Some(Whose::Own));
    let mut story = Story::of(vec![disk], true).run();
    let ending = Ending::Reset;
    story.on(Event::Said(FromMachine::Ended { ending }));
    story.machine(machine::Event::Died(IN_ORDER));
    story.tick(limits::END);
    let actions = story.tick(limits::END + limits::KILLED);
    assert_eq!(actions, [Action::Abandon(Who::Device(0)), Action::Clear(0)]);
    let actions = story.device(0, CLEAR);
    assert!(actions.ends_with(&[Action::StartMachine, attach(0, 2)]));
}
