//! What the owner of a device is asked. (What it tells is what the supervisor is to
//! hear: `launch::FromMachine`.)

use outboard_protocol::launch::{Replaces, Restored, SessionNumber};

use super::mailbox::Mailbox;
use crate::machine::frontend::{Connected, Session};
use crate::machine::pci::Clearing;
use crate::machine::virtio::Event;

/// Most configuration writes that wait for a back-end; a guest that does more
/// at once has no driver, and what it writes beyond is dropped.
const MAX_CONFIG_WRITES: usize = 64;

/// A connection to a back-end that is to serve a device.
#[derive(Debug)]
pub(crate) struct Newcomer {
    /// Which of the device's sessions it begins.
    pub(crate) number: SessionNumber,
    /// The connection.
    pub(crate) session: Session<Connected>,
    /// What it knows of its predecessors.
    pub(crate) restored: Restored,
    /// It is to replace one that works, if it can.
    pub(crate) replaces: Option<Replaces>,
}

/// What a device's owner is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// The guest did something to the registers.
    Guest(Event),
    /// The guest kicked a queue of a live session, and KVM did not see it.
    Kick(u16),
    /// The guest let the device touch its memory.
    MayMaster,
    /// The guest let it no more; it is to be told when nothing is written.
    MustNotMaster(Clearing),
    /// Here is a connection to a back-end.
    Attach(Newcomer),
    /// Here is a connection to a back-end that is to wait.
    Prepare(Newcomer),
    /// The back-end that waits is to serve, and knows this of its predecessors; or that
    /// of the session which has handed back its rings goes on.
    Promote(SessionNumber, Replaces),
    /// The back-end of this session is to hand back its rings.
    HandBack(SessionNumber),
    /// Whoever served this session, and any before, is gone, and its I/O is over.
    Vacant(SessionNumber),
    /// End.
    Stop,
}

impl Command {
    /// Posts a command; however many a guest causes, few wait. Returns whether
    /// a configuration write was dropped for it.
    #[must_use]
    pub(crate) fn post_to(self, mailbox: &Mailbox<Self>) -> bool {
        let mut dropped = false;
        let is_write = |command: &Self| matches!(command, Self::Guest(Event::ConfigWrite { .. }));
        mailbox.change(|queue| match &self {
            Self::Kick(queue_index) => {
                let same = |other: &Self| matches!(other, Self::Kick(q) if q == queue_index);
                if !queue.iter().any(same) {
                    queue.push_back(self);
                }
            }
            command if is_write(command) => {
                let waiting = queue.iter().filter(|other| is_write(other)).count();
                if waiting < MAX_CONFIG_WRITES {
                    queue.push_back(self);
                } else if let Some(last) = queue.iter_mut().rfind(|other| is_write(other)) {
                    *last = self;
                    dropped = true;
                }
            }
            _ => queue.push_back(self),
        });
        dropped
    }
}
