//! What is asked of one device: a swap, a pause, another size, another link. The device
//! reports what has become of it.

use super::super::{Life, Step};
use super::Asked;
use crate::supervisor::api::call::{Call, Refusal, Reply, Ticket};
use crate::supervisor::api::model::{Resized, VmState};
use crate::supervisor::vm::answer::Answer;
use crate::supervisor::vm::device::{self, Device, NotDone};

/// What was asked of a device.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    /// That it rests, or goes on.
    Rest,
    /// A swap, or, if so, whether it could be done.
    Swap { dry_run: bool },
    /// The size that the disk has.
    Size,
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
            Call::Resize(id, size) => {
                let resize = |number| device::Event::Resize(number, size);
                self.of_device(ticket, id, What::Size, resize);
            }
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
                (device::Event::PauseDevice(_) | device::Event::ResumeDevice(_), _)
                    if device.is_to_rest() =>
                {
                    device.why_at_rest().map(str::to_owned)
                }
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

    fn refuse(&mut self, ticket: Ticket, refusal: Refusal) {
        let answer = Answer::Reply(Reply::Refused(refusal));
        self.calls.asked.push((ticket, Asked::Other(answer)));
    }
}

/// What is answered to who has asked that of the device at this place under this number, if
/// it has reported.
pub(super) fn reported(
    (place, device): (usize, &Device),
    number: u64,
    what: What,
) -> Option<Answer> {
    if let What::Size = what {
        return Some(Answer::Reply(match device.resized(number)?.clone() {
            Ok(size) => Reply::Resized(Resized { size }),
            Err(why) => Reply::Refused(Refusal::NotNow(why)),
        }));
    }
    Some(match (device.report(number)?.clone(), what) {
        (Ok(gap), What::Swap { dry_run }) => Answer::Swapped {
            place,
            gap: gap.map(Into::into),
            dry_run,
        },
        (Ok(_), What::Rest | What::Size) => Answer::Reply(Reply::Done),
        (Err(NotDone { step, why, gap }), _) => {
            let gap = gap.map(Into::into);
            Answer::Reply(Reply::Refused(Refusal::NotSwapped(why, step, gap)))
        }
    })
}
