//! Whether a back-end hangs. The machine tells of each ring that stands still
//! (`FromMachine::Unserved`), again and again while it does; each time there is a look at
//! the back-end, and two looks in a row are compared.
//!
//! ```text
//!              it stands still      still, and nothing has moved
//!  no suspicion ──────▶ one look ─────────────────────────────▶ it hangs
//!        ▲                 │ ▲
//!        └── a new session │ └─── still, but something has moved, or may not
//! ```
//! Who waits in the kernel for a disk does not hang, however long that takes: its pulse
//! says that it is in a system call, or that it sleeps and its kicks are consumed.

use std::collections::BTreeMap;

use outboard_protocol::counters::{Doing, Pulse};
use outboard_protocol::launch::SessionNumber;

use super::{Device, Event, Outcome, suspects};
use crate::supervisor::vm::action::Action;
use crate::supervisor::vm::look::Examined;

/// What is held against a back-end.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    /// The last look, by queue.
    looks: BTreeMap<u16, Examined>,
    /// The user has been told.
    is_told: bool,
}

impl Device {
    /// Takes what concerns a suspicion; gives anything else back, and a hang when there is
    /// one.
    pub(super) fn suspect(&mut self, event: Event, out: &mut Vec<Outcome>) -> Option<Event> {
        match event {
            Event::Unserved(session, unserved) if session == self.session => {
                let look = Action::Examine(self.place, session, unserved);
                out.push(Outcome::Do(look));
            }
            Event::Examined(session, unserved, now) if session == self.session => {
                let before = self.suspicion.looks.insert(unserved.queue, now);
                let before = before.filter(|_| unserved.times > 1);
                let why = before.and_then(|before| why_it_hangs(&before, &now, unserved.kick))?;
                let text = format!(
                    "{} hangs: {why} (queue {})",
                    self.server.name, unserved.queue
                );
                if self.lives {
                    return Some(Event::Hangs(session, text, whose_doing(&now)));
                }
                self.tell_of_another_s(&text, out);
            }
            Event::Unserved(..) | Event::Examined(..) => {}
            other => return Some(other),
        }
        None
    }

    /// A back-end that somebody else runs is left alone.
    fn tell_of_another_s(&mut self, text: &str, out: &mut Vec<Outcome>) {
        if !std::mem::replace(&mut self.suspicion.is_told, true) {
            let text = format!(
                "{}: {text}; it is left alone, since outboard has not started it",
                self.id
            );
            out.push(Outcome::Do(Action::Say(text)));
        }
    }

    /// There is another session, of which nothing is known yet.
    pub(super) fn suspects_nothing(&mut self, session: SessionNumber) {
        self.session = session;
        self.suspicion = Suspicion::default();
    }
}

/// Why a back-end hangs whose ring has stood still between these two looks, if it does;
/// `kick`: it was kicked, and nobody has consumed that.
fn why_it_hangs(before: &Examined, now: &Examined, kick: bool) -> Option<&'static str> {
    const ASLEEP: &str = "it was kicked, and does not wake up";
    if before.is_stopped && now.is_stopped {
        return Some("its process is stopped, as by SIGSTOP; `hang-timeout=off` allows that");
    }
    let (Some(before), Some(now)) = (before.page, now.page) else {
        return kick.then_some("it was kicked, and consumes no kicks any more");
    };
    let Pulse { doing, .. } = now.pulse;
    match doing {
        _ if before.pulse != now.pulse => None,
        Doing::SystemCall => None,
        Doing::Working => Some("it is at work and does not get on"),
        Doing::Asleep => kick.then_some(ASLEEP),
    }
}

/// Whose doing a hang is that was found so: somebody has stopped the process, or it hangs
/// by itself, perhaps over a request.
fn whose_doing(now: &Examined) -> suspects::Doing {
    match now.is_stopped {
        true => suspects::Doing::Outside,
        false => suspects::Doing::Own,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use outboard_protocol::counters::Reading;
    use outboard_protocol::launch::Whose;

    use super::super::{Fault, State};
    use super::*;
    use crate::supervisor::vm::action::Who;
    use crate::supervisor::vm::look::Unserved;

    fn look(doing: Doing, rounds: u64) -> Examined {
        let pulse = Pulse { doing, rounds };
        Examined {
            is_stopped: false,
            page: Some(Reading {
                pulse,
                ..Reading::default()
            }),
        }
    }

    fn stopped(look: Examined) -> Examined {
        Examined {
            is_stopped: true,
            ..look
        }
    }

    #[test]
    fn who_gets_on_or_waits_in_the_kernel_does_not_hang() {
        use Doing::{Asleep, SystemCall, Working};
        let no_page = Examined::default();
        for (before, now, kick, hangs) in [
            // It was kicked, and nobody has seen to that.
            (look(Asleep, 5), look(Asleep, 5), true, true),
            (look(Working, 5), look(Working, 5), true, true),
            // It is busy with a disk, on the queue's own thread or not.
            (look(SystemCall, 5), look(SystemCall, 5), true, false),
            (look(SystemCall, 5), look(SystemCall, 5), false, false),
            (look(Asleep, 5), look(Asleep, 5), false, false),
            // It was to be kicked no more, and does not look by itself.
            (look(Working, 5), look(Working, 5), false, true),
            // Something has happened.
            (look(Working, 5), look(Working, 6), true, false),
            (look(Asleep, 5), look(Asleep, 7), true, false),
            (look(Working, 5), look(Asleep, 6), true, false),
            (look(SystemCall, 5), look(Working, 6), true, false),
            // A stopped process says anything.
            (
                stopped(look(Asleep, 5)),
                stopped(look(Asleep, 5)),
                false,
                true,
            ),
            (
                stopped(look(SystemCall, 5)),
                stopped(look(SystemCall, 5)),
                false,
                true,
            ),
            (stopped(no_page), stopped(no_page), false, true),
            (stopped(look(Asleep, 5)), look(Asleep, 5), false, false),
            (look(Asleep, 5), stopped(look(Asleep, 5)), false, false),
            // Of others only kicks are known.
            (no_page, no_page, true, true),
            (no_page, no_page, false, false),
            (no_page, look(Working, 0), false, false),
        ] {
            let why = why_it_hangs(&before, &now, kick);
            assert_eq!(why.is_some(), hangs, "{before:?} {now:?} {kick}: {why:?}");
        }
    }

    /// A device in its first session.
    fn serving(program: Option<Whose>) -> Device {
        let mut device = Device::new(0, "disk0", "blk", false, program);
        for event in [Event::Begin, Event::Go, Event::Attached(1)] {
            device.step(event, Instant::now());
        }
        device
    }

    fn unserved(kick: bool, times: u32) -> Unserved {
        let queue = 3;
        Unserved { queue, kick, times }
    }

    /// It stands still, as is told in this session: what follows from this look.
    fn stands_still(device: &mut Device, told: Unserved, found: Examined) -> Vec<Outcome> {
        let session = device.session;
        let outcomes = device.step(Event::Unserved(session, told), Instant::now());
        let examine = Action::Examine(0, session, told);
        assert_eq!(outcomes, [Outcome::Do(examine)]);
        device.step(Event::Examined(session, told, found), Instant::now())
    }

    #[test]
    fn a_back_end_that_hangs_is_killed_and_its_session_is_over() {
        let mut device = serving(Some(Whose::Own));
        let asleep = look(Doing::Asleep, 5);
        let first = stands_still(&mut device, unserved(true, 1), asleep);
        assert_eq!(first, [], "there is nothing to compare");
        let second = stands_still(&mut device, unserved(true, 2), asleep);
        let text = "blk hangs: it was kicked, and does not wake up (queue 3)".to_owned();
        let expected = [
            Outcome::Do(Action::Kill(Who::Device(0))),
            Outcome::Fault(Fault::Lost(text)),
        ];
        assert_eq!(second, expected);
        assert_eq!(*device.state(), State::Over);
    }

    #[test]
    fn what_stands_still_anew_is_not_compared_with_what_was_before() {
        let mut device = serving(Some(Whose::Own));
        let asleep = look(Doing::Asleep, 5);
        for _ in 0..5 {
            let told = stands_still(&mut device, unserved(true, 1), asleep);
            assert_eq!(told, []);
        }
        // Of another queue nothing is known yet, and of another session nothing at all.
        let other = Unserved {
            queue: 4,
            ..unserved(true, 2)
        };
        assert_eq!(stands_still(&mut device, other, asleep), []);
        device.suspects_nothing(2);
        let told = stands_still(&mut device, unserved(true, 2), asleep);
        assert_eq!(told, []);
        let late = Event::Unserved(1, unserved(true, 3));
        assert_eq!(device.step(late, Instant::now()), []);
        let late = Event::Examined(1, unserved(true, 3), asleep);
        assert_eq!(device.step(late, Instant::now()), []);
    }

    #[test]
    fn a_back_end_of_somebody_else_is_spoken_of_once_and_left_alone() {
        let mut device = serving(None);
        let nothing = Examined::default();
        assert_eq!(stands_still(&mut device, unserved(true, 1), nothing), []);
        let told = stands_still(&mut device, unserved(true, 2), nothing);
        let text = "disk0: blk hangs: it was kicked, and consumes no kicks any more (queue 3); it \
                    is left alone, since outboard has not started it";
        assert_eq!(told, [Outcome::Do(Action::Say(text.into()))]);
        assert_eq!(stands_still(&mut device, unserved(true, 3), nothing), []);
        assert_eq!(*device.state(), State::Serving);
    }
}
