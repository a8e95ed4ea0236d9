//! What a back-end is told to do while it serves.

use super::Line;

impl Line {
    /// Tells the back-end that its disk is to have another size, in bytes. If it knows what
    /// that is, it answers ([`crate::Heard::Resized`]).
    pub fn resize(&mut self, size: u64) {
        if let Some(open) = &mut self.open {
            open.unsent.size = Some(size);
        }
        self.flush();
    }

    /// From now on the link of a card is down, whatever is behind it; or, if not, it is what
    /// that is.
    pub fn hold_down(&mut self, down: bool) {
        self.held_down = down;
        self.observe();
        self.flush();
    }

    /// Tells the back-end to execute again what it holds back.
    pub fn retry(&mut self) {
        if let Some(open) = &mut self.open {
            open.unsent.retry = true;
        }
        self.flush();
    }
}
