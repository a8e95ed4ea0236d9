//! What a device's back-end says of requests in flight, its death, and what its
//! successor is told: `suspects` in the life of a device.

use log::Level;
use nix::sys::signal::Signal;
use outboard_line::Told;

use super::suspects::{Doing, Suspects};
use super::{Device, Outcome, State};
use crate::supervisor::api::model::{Change, Refused};
use crate::supervisor::process::child::Death;
use crate::supervisor::vm::action::Action;

impl Device {
    /// Its process has died, in the state that it still has.
    pub(super) fn blame(&mut self, death: &Death, out: &mut Vec<Outcome>) {
        let doing = match self.state {
            State::Attaching | State::Serving | State::Lost { .. } | State::Left { .. } => {
                doing(death)
            }
            // It was told to go, or killed.
            _ => Doing::Outside,
        };
        let Some((request, deaths)) = self.suspects.died(doing) else {
            return;
        };
        let (id, name) = (&self.id, &self.server.name);
        let (queue, head) = (request.queue, request.head);
        let text = format!(
            "{id}: {name} has died {deaths} times over one request (queue {queue}, head {head}), \
             the last time with nothing else under way: the next one ends it in an error"
        );
        out.push(Outcome::Do(Action::Log(Level::Error, text)));
    }

    /// Its back-end has said this of requests in flight.
    pub(super) fn hear_of_requests(&mut self, told: Told, out: &mut Vec<Outcome>) {
        let Some((request, deaths, text)) = self.suspects.hear(told) else {
            return;
        };
        let refused = Refused {
            queue: request.queue,
            head: request.head,
            request: text,
            deaths,
        };
        let (id, name) = (&self.id, &self.server.name);
        let said = format!("{id}: {name} has refused {refused}");
        let told = Change::Refused {
            device: id.clone(),
            refused: refused.clone(),
        };
        let (count, last) = &mut self.refused;
        (*count, *last) = (count.saturating_add(1), Some(refused));
        out.push(Outcome::Do(Action::Say(said)));
        out.push(Outcome::Do(Action::Tell(told)));
    }

    /// How many requests were refused since the VM began, and the last of them.
    pub(crate) fn refused(&self) -> (u64, Option<&Refused>) {
        let (count, last) = &self.refused;
        (*count, last.as_ref())
    }

    /// A back-end is about to be started: how it is to deal with what it finds.
    pub(super) fn order(&self, out: &mut Vec<Outcome>) {
        let order = self.suspects.order();
        if !order.is_plain() {
            out.push(Outcome::Do(Action::Order(self.place, order)));
        }
    }

    /// Its driver is another: whatever was in flight is forgotten.
    pub(super) fn forget_requests(&mut self) {
        self.suspects = Suspects::default();
    }
}

/// Whose doing such a death of a process is that nobody here has told to end.
fn doing(death: &Death) -> Doing {
    match death {
        Death::Killed(Signal::SIGKILL | Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP)
        | Death::Exited(0)
        | Death::NotStarted(_) => Doing::Outside,
        Death::Killed(_) | Death::Exited(_) | Death::Unknown => Doing::Own,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use outboard_protocol::counters::{Doing as Does, Pulse, Reading};
    use outboard_protocol::deadline::limits;
    use outboard_protocol::launch::{Cause, InFlight, Whose};

    use super::super::Event;
    use super::*;
    use crate::supervisor::vm::look::{Examined, Unserved};

    const REQUEST: InFlight = InFlight {
        queue: 0,
        head: 3,
        counter: 17,
    };

    /// What is done to a device, of which the next process is in its place.
    type Story = fn(&mut Device, Instant);

    fn is_killed_by(device: &mut Device, signal: Signal, now: Instant) {
        device.step(Event::Died(Death::Killed(signal)), now);
    }

    /// It is looked at twice, at work at the same thing; `is_stopped`: as by SIGSTOP.
    fn hangs(device: &mut Device, is_stopped: bool, now: Instant) {
        let page = Reading {
            pulse: Pulse {
                doing: Does::Working,
                rounds: 5,
            },
            ..Reading::default()
        };
        let found = Examined {
            is_stopped,
            page: Some(page),
        };
        for times in [1, 2] {
            let told = Unserved {
                queue: 0,
                kick: true,
                times,
            };
            device.step(Event::Examined(device.session, told, found), now);
        }
    }

    fn ends_as(device: &mut Device, death: Death, now: Instant) {
        device.step(Event::Died(death), now);
    }

    /// Another process serves, and has found a request in flight. Whether it was told to
    /// execute that alone.
    fn another(device: &mut Device, now: Instant) -> bool {
        device.step(Event::Settle, now);
        device.step(Event::Recover, now);
        device.step(Event::Clear { known: true }, now);
        device.step(Event::Tick, now + limits::IO);
        assert_eq!(*device.state(), State::Found);
        let out = device.step(Event::Go, now);
        let session = device.session;
        let told = Told::Found(vec![REQUEST]);
        for event in [
            Event::Ready(session),
            Event::InFlight(session, told),
            Event::Attached(session),
        ] {
            device.step(event, now);
        }
        let is_order = |outcome: &Outcome| matches!(outcome, Outcome::Do(Action::Order(..)));
        out.iter().any(is_order)
    }

    /// Whether a death of this kind counts: the second in a row that does has the third
    /// process execute one request at a time.
    fn counts(story: Story) -> bool {
        let now = Instant::now();
        let mut device = Device::new(0, "disk0", "blk", false, Some(Whose::Own));
        for event in [Event::Begin, Event::Go, Event::Ready(1), Event::Attached(1)] {
            device.step(event, now);
        }
        is_killed_by(&mut device, Signal::SIGSEGV, now);
        assert!(!another(&mut device, now), "one death is none in a row");
        story(&mut device, now);
        another(&mut device, now)
    }

    #[test]
    fn a_death_counts_that_is_its_own_doing_and_no_other() {
        let stories: [(&str, bool, Story); 15] = [
            ("it crashes", true, |device, now| {
                is_killed_by(device, Signal::SIGSEGV, now);
            }),
            ("it aborts", true, |device, now| {
                is_killed_by(device, Signal::SIGABRT, now);
            }),
            ("its image was cut short", true, |device, now| {
                is_killed_by(device, Signal::SIGBUS, now);
            }),
            ("it ends in an error", true, |device, now| {
                ends_as(device, Death::Exited(1), now);
            }),
            (
                "its session is lost, and it crashes",
                true,
                |device, now| {
                    let lost = Event::Lost(device.session, Cause::Gone, "gone".into());
                    device.step(lost, now);
                    is_killed_by(device, Signal::SIGSEGV, now);
                },
            ),
            ("it hangs, and is killed for that", true, |device, now| {
                hangs(device, false, now);
                is_killed_by(device, Signal::SIGKILL, now);
            }),
            ("it hangs, and dies late", true, |device, now| {
                hangs(device, false, now);
                device.step(Event::Recover, now);
                is_killed_by(device, Signal::SIGKILL, now);
            }),
            ("somebody has stopped it", false, |device, now| {
                hangs(device, true, now);
                is_killed_by(device, Signal::SIGKILL, now);
            }),
            ("somebody kills it", false, |device, now| {
                is_killed_by(device, Signal::SIGKILL, now);
            }),
            ("somebody ends it", false, |device, now| {
                is_killed_by(device, Signal::SIGTERM, now);
            }),
            ("it ends in order", false, |device, now| {
                ends_as(device, Death::Exited(0), now);
            }),
            ("it is not even started", false, |device, now| {
                ends_as(device, Death::NotStarted(nix::errno::Errno::ENOENT), now);
            }),
            ("the user restarts it", false, |device, now| {
                device.step(Event::Restart, now);
                ends_as(device, Death::Exited(0), now);
            }),
            (
                "the user restarts it, and it crashes",
                false,
                |device, now| {
                    device.step(Event::Restart, now);
                    is_killed_by(device, Signal::SIGSEGV, now);
                },
            ),
            (
                "the user restarts it, and it does not go",
                false,
                |device, now| {
                    device.step(Event::Restart, now);
                    hangs(device, false, now);
                    device.step(Event::Tick, now + limits::TELL);
                    is_killed_by(device, Signal::SIGKILL, now + limits::TELL);
                },
            ),
        ];
        for (what, expected, story) in stories {
            assert_eq!(counts(story), expected, "{what}");
        }
    }

    /// The hang of one process says nothing of how the next one dies.
    #[test]
    fn a_hang_is_that_of_one_process() {
        let hung_before: Story = |device, now| {
            hangs(device, true, now);
            is_killed_by(device, Signal::SIGKILL, now);
            another(device, now);
            is_killed_by(device, Signal::SIGSEGV, now);
        };
        assert!(counts(hung_before));
        let killed_after: Story = |device, now| {
            device.step(Event::Free, now);
            hangs(device, false, now);
            is_killed_by(device, Signal::SIGKILL, now);
            another(device, now);
            is_killed_by(device, Signal::SIGKILL, now);
        };
        assert!(!counts(killed_after));
    }
}
