//! Kicks of a ring that is served, and those that never end.

use outboard_ring::Broken;

use super::Served;
use crate::worker::Kick;

/// After as many single kicks without a chain it is asked whether there is an end
/// of them. A driver, too, kicks now and then for what has been seen already.
const IDLE_KICKS: u32 = 64;

impl Served {
    /// Forgets a kick that has come. One whose descriptor stays readable however
    /// often it is read would keep this thread busy for ever: its ring breaks.
    pub(super) fn take_kick(&mut self) {
        let Kick::Event(event) = &self.lines.kick else {
            return;
        };
        let chains = self.ring.tally.chains;
        let (before, idle) = &mut self.state.kicks;
        let count = event.clear();
        if let Some(part) = &mut self.lines.part {
            part.kicked(count);
        }
        if count == 1 && std::mem::replace(before, chains) == chains {
            *idle = idle.wrapping_add(1);
            if idle.is_multiple_of(IDLE_KICKS) && event.is_endless() {
                self.lines.say_endless();
                self.lines.tell_error();
                self.ring.break_off(Broken::Kick);
            }
        }
    }
}
