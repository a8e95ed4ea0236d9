//! Tells the driver, by way of the front-end, that the configuration changed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::event::Event;

/// A device keeps a clone and uses it from any thread.
#[derive(Clone, Debug)]
pub struct Notifier {
    wake: Arc<Event>,
}

impl Notifier {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            wake: Arc::new(Event::new()?),
        })
    }

    /// The configuration space has changed: the front-end is asked to read it
    /// again (vhost-user, BACKEND_CONFIG_CHANGE_MSG). Never blocks: the message
    /// is the session's to send, and several changes may become one message.
    /// Without a session, or without a front-end that listens, nothing
    /// happens; the next session reads what is then true.
    pub fn config_changed(&self) {
        self.wake.signal();
    }

    /// Forgets the changes so far.
    pub(crate) fn clear(&self) {
        self.wake.clear();
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
