//! What a session and a worker say to one another.
//!
//! ```text
//! session ──Command──► posted, wake ──► worker (looks between two rounds)
//!    ▲                                    │
//!    └───────────────── Answer ◄──────────┘
//! ```
//! Each command but [`Command::Leave`] has one answer, those of one worker in
//! the order of the commands, but that a ring is handed back when it is drained.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use outboard_ring::{Memory, Ring};

use super::Lines;
use crate::event::Event;

/// A ring with its queue's lines, on its way to a worker or back.
pub type Handed = Box<(Lines, Ring)>;

/// What a worker is to do.
pub(super) enum Command {
    /// Serve this ring, of a driver with these features, in this memory.
    Serve(Handed, u64, Arc<Memory>),
    /// Take no more chains of a queue's ring, and hand it back once the device has
    /// none left.
    Stop(u16),
    /// Go on in this memory, which keeps every mapping of the former.
    Map(Arc<Memory>),
    /// End.
    Leave,
}

/// What became of it.
pub(super) enum Answer {
    /// The device's queues are there, or one of them is not.
    Made(io::Result<()>),
    /// The ring is served.
    Served,
    /// The ring is as it was, but that it may be broken.
    Refused(Handed, io::Error),
    /// The ring is handed back.
    Stopped(Handed),
    /// The memory is in use.
    Mapped,
}

/// What both look at.
#[derive(Debug)]
struct Shared {
    posted: AtomicBool,
    wake: Event,
    /// Chains of rings that are to be handed back, when they were last counted.
    in_flight: AtomicUsize,
}

/// The session's end.
#[derive(Debug)]
pub(super) struct Outbox {
    shared: Arc<Shared>,
    commands: SyncSender<Command>,
    pub answers: Receiver<Answer>,
}

/// The worker's end.
pub(super) struct Inbox {
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    answers: SyncSender<Answer>,
}

/// A worker's two ends, with room for a command of each of so many queues and an
/// end, and for their answers: no more are ever under way.
///
/// # Errors
/// Those of eventfd(2).
pub(super) fn pair(queues: usize) -> io::Result<(Outbox, Inbox)> {
    let room = queues.saturating_add(1);
    let shared = Arc::new(Shared {
        posted: AtomicBool::new(false),
        wake: Event::new()?,
        in_flight: AtomicUsize::new(0),
    });
    let (commands, theirs) = sync_channel(room);
    let (answer, answers) = sync_channel(room);
    let outbox = Outbox {
        shared: shared.clone(),
        commands,
        answers,
    };
    let inbox = Inbox {
        shared,
        commands: theirs,
        answers: answer,
    };
    Ok((outbox, inbox))
}

impl Outbox {
    /// Never waits. Of a worker that has died or is stuck, the answer does not come.
    pub fn post(&self, command: Command) {
        let _ = self.commands.try_send(command);
        self.shared.posted.store(true, Ordering::Release);
        self.shared.wake.signal();
    }

    /// See [`Inbox::count`].
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Relaxed)
    }
}

impl Inbox {
    /// Whether there are commands.
    pub fn is_waiting(&self) -> bool {
        self.shared.posted.load(Ordering::Acquire)
    }

    /// Readable when there are.
    pub fn wake(&self) -> &Event {
        &self.shared.wake
    }

    /// The commands that there are.
    pub fn open(&self) -> impl Iterator<Item = Command> + use<'_> {
        self.shared.wake.clear();
        // Before they are looked for: one that comes now is there, or told anew.
        self.shared.posted.swap(false, Ordering::AcqRel);
        self.commands.try_iter()
    }

    /// Answers a command. If nobody waits for it any more, the process ends.
    pub fn answer(&self, answer: Answer) {
        let _ = self.answers.try_send(answer);
    }

    /// Notes how many chains a stop waits for.
    pub fn count(&self, in_flight: usize) {
        self.shared.in_flight.store(in_flight, Ordering::Relaxed);
    }
}
