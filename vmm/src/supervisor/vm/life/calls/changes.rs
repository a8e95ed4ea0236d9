//! What is asked of one device: a swap, a pause, another size, another link. The device
//! reports what has become of it.

use super::super::{Life, Step};
use super::Asked;
use crate::supervisor::api::call::{Call, Refusal, Reply, Ticket};
use crate::supervisor::api::model::VmState;
use crate::supervisor::vm::answer::Answer;
use crate::supervisor::vm::device::{self, NotDone};

/// What was asked of a device.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    /// That it rests, or goes on.
    Rest,
    /// A swap, or, if so, whether it could be done.
    Swap { dry_run: bool },
}

impl Life {
    /// Somebody asks this of one device.
    pub(super) fn change(&mut self, ticket: Ticket, call: Call) {
        match call {
            Call::PauseDevice(id) => {
                self.of_device(ticket, id, What::Rest, device::Event::PauseDevice);
            }
            Call::ResumeDevice(id) => {
                self.of_device(ticket, id, What::Rest, device::Event::ResumeDevice);
            }
            Call::Resize(id, size) => self.resize(ticket, id, size),
            Call::Link(id, up) => match self.place(id) {
                Ok(place) => {
                    let answer = Answer::Link { place, up };
                    self.calls.asked.push((ticket, Asked::Other(answer)));
                }
                Err(refusal) => self.refuse(ticket, refusal),
            },
            Call::Swap(id, request) => {
                let dry_run = request.dry_run;
                let swap = |number| device::Event::Swap(number, request);
                self.of_device(ticket, id, What::Swap { dry_run }, swap);
            }
            _ => {}
        }
    }

    /// Something is asked of a device that it reports on.
    fn of_device(
        &mut self,
        ticket: Ticket,
        id: String,
        what: What,
        event: impl FnOnce(u64) -> device::Event,
    ) {
        let place = match self.place(id) {
            Ok(place) => place,
            Err(refusal) => return self.refuse(ticket, refusal),
        };
        let number = self.calls.numbered.wrapping_add(1);
        let event = event(number);
        let Some(device) = self.devices.get(place) else {
            return;
        };
        let why = device
            .why_not_now()
            .or_else(|| match (&event, device.rests()) {
                (device::Event::PauseDevice(_), true) => Some("it is paused already".into()),
                (device::Event::ResumeDevice(_), false) => Some("it is not paused".into()),
                _ if self.state().0 == VmState::Starting => {
                    Some("the VM is still being started; try again then".into())
                }
                _ => None,
            });
        if let Some(why) = why {
            let text = format!("{}: {why}", device.id());
            return self.refuse(ticket, Refusal::NotNow(text));
        }
        self.calls.numbered = number;
        self.steps.push_back(Step::Device(place, event));
        let asked = Asked::OfDevice(place, number, what);
        self.calls.asked.push((ticket, asked));
    }

    /// A disk is to have another size.
    fn resize(&mut self, ticket: Ticket, id: String, size: Option<u64>) {
        let before = self.calls.asked.len();
        self.of_device(ticket, id, What::Rest, |number| {
            device::Event::Resize(number, size)
        });
        for (_, asked) in self.calls.asked.iter_mut().skip(before) {
            if let Asked::OfDevice(place, number, _) = *asked {
                *asked = Asked::Resized(place, number);
            }
        }
    }

    fn refuse(&mut self, ticket: Ticket, refusal: Refusal) {
        let answer = Answer::Reply(Reply::Refused(refusal));
        self.calls.asked.push((ticket, Asked::Other(answer)));
    }
}

/// What is answered to who has asked that of the device at this place.
pub(super) fn reported(place: usize, report: &device::Report, what: What) -> Answer {
    match (report, what) {
        (Ok(_), What::Rest) => Answer::Reply(Reply::Done),
        (Ok(gap), What::Swap { dry_run }) => Answer::Swapped {
            place,
            gap: gap.map(Into::into),
            dry_run,
        },
        (Err(not_done), _) => {
            let NotDone { step, why, gap } = not_done.clone();
            let gap = gap.map(Into::into);
            Answer::Reply(Reply::Refused(Refusal::NotSwapped(why, step, gap)))
        }
    }
}
