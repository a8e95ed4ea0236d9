//! Which pairs of queues are used, and who says so.
//!
//! By virtio the driver says it, by a command on the control queue, and begins
//! with one pair (virtio 1.3, section 5.1.6.5.5). But a front-end may keep the
//! control queue to itself, whether it acknowledges CTRL_VQ to us or not, obeys
//! the command and enables the rings of the pairs that are used. What tells the
//! two apart is whether we were given the control queue.

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    /// How many the driver uses, by its command or before the first; `None`
    /// while there is no control queue.
    commanded: Option<u16>,
}

impl Pairs {
    /// There is a control queue, from now until a reset. Whether that is new.
    pub fn control(&mut self) -> bool {
        let new = self.commanded.is_none();
        self.commanded.get_or_insert(1);
        new
    }

    /// The driver has said how many.
    pub fn command(&mut self, pairs: u16) {
        self.commanded = Some(pairs);
    }

    /// Whether the pairs that are used are those whose rings are enabled.
    pub fn follow_rings(self) -> bool {
        self.commanded.is_none()
    }
}
