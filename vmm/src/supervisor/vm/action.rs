//! What is to be done about what has happened to a VM.

use log::Level;
use outboard_protocol::kept::Kept;
use outboard_protocol::launch::{Replay, SessionNumber};

use super::answer::Answer;
use super::look::Unserved;
use crate::supervisor::api::call::Ticket;
use crate::supervisor::api::model::{Change, SwapRequest};

/// A process of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// The machine's.
    Machine,
    /// The back-end's of the device at this place.
    Device(usize),
    /// That of the standby of the device at this place.
    Standby(usize),
}

/// What a successor of a back-end that works will be told, and how it is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heir {
    /// What its predecessor has left, if that is known.
    pub(crate) kept: Option<Kept>,
    /// Its disk may have another capacity.
    pub(crate) resizes: bool,
}

/// What is to be done. None of it waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Look for whom this device needs: as long as the user allows at first, and
    /// without an end once it has been served.
    Seek(usize),
    /// Look no more.
    StopSeeking(usize),
    /// Start the machine process and tell it what to build.
    StartMachine,
    /// Start the program of this device, if it has one, tell it what its predecessor
    /// has left, if that is known, and hand its connection to the machine, as this
    /// session.
    Attach(usize, SessionNumber, Option<Kept>),
    /// The next program of this device, which is attached next, is to deal so with
    /// requests that it finds in flight.
    Order(usize, Replay),
    /// Open what is wanted in place of this device's back-end, for this session, and look
    /// for whom that needs.
    Open(usize, SessionNumber, Box<SwapRequest>),
    /// Start the program of this device once more, or what was opened, as one that waits,
    /// and hand its connection to the machine, as this session.
    Prepare(usize, SessionNumber, Option<Heir>),
    /// Tell the machine that the back-end of this session is to hand back its rings.
    HandBack(usize, SessionNumber),
    /// Tell the machine that it goes on with them.
    GoOn(usize, SessionNumber),
    /// What waits has the place of the device's back-end from now on, as this session, and
    /// that has its place: tell it what that has left, if it is known, and the machine to
    /// let it serve; its disk may have another capacity, if so.
    TakeOver(usize, SessionNumber, Option<Kept>, bool),
    /// Tell the back-end of this disk that it has so many bytes, or as many as its image.
    Resize(usize, Option<u64>),
    /// Its image needs no more.
    Truncate(usize, u64),
    /// Each has its former place again.
    Undo(usize),
    /// Nothing is left of a session that was part of a swap.
    Forget(usize),
    /// See to it that nothing is left of this device's back-end: kill its process, or
    /// end our connection to it, and tell when it is gone and its I/O over.
    Clear(usize),
    /// Tell the machine that whoever served this session of the device is gone, and
    /// its I/O over.
    Vacate(usize, SessionNumber),
    /// Tell the machine to keep the guest from running.
    PauseMachine,
    /// Tell the machine to let the guest run.
    ResumeMachine,
    /// Tell this device's back-end to execute again what it holds back.
    Retry(usize),
    /// Tell the machine to stop.
    StopMachine,
    /// Send SIGTERM.
    Terminate(Who),
    /// Send SIGKILL.
    Kill(Who),
    /// Leave it alone: it was killed, and hangs in the kernel.
    Abandon(Who),
    /// Give the guest the terminal, if there is one.
    GuestRuns,
    /// Take the terminal back.
    GuestIsOver,
    /// Look at the back-end of this device and session, a ring of which stands still.
    Examine(usize, SessionNumber, Unserved),
    /// Log what this device's back-end has served, if it counts.
    TellCounts(usize),
    /// Answer this call.
    Answer(Ticket, Answer),
    /// Tell whoever reads the event stream.
    Tell(Change),
    /// Say this to the user.
    Say(String),
    /// Log this.
    Log(Level, String),
}
