//! What happens to a device, and what becomes of that.

use std::time::Duration;

use outboard_line::Told;
use outboard_protocol::kept::Kept;
use outboard_protocol::launch::{Cause, Gap, SessionNumber};

use super::server::Server;
use super::suspects::Doing;
use crate::supervisor::api::model::SwapRequest;
use crate::supervisor::process::child::Death;
use crate::supervisor::vm::action::Action;
use crate::supervisor::vm::answer::Agreed;
use crate::supervisor::vm::end::Patience;
use crate::supervisor::vm::look::{Examined, Unserved};

/// What happens to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It is to have a back-end.
    Begin,
    /// Whom it needs has been found.
    Found,
    /// It cannot have a back-end: whom it needs was not found, or its program
    /// was not started.
    CannotBegin(String),
    /// The machine is there.
    Go,
    /// The machine has attached this session.
    Attached(SessionNumber),
    /// What the driver and a back-end have agreed on has become this.
    Agreed(Agreed),
    /// The machine has this session of a standby, or of a successor.
    Prepared(SessionNumber),
    /// Another is to take its back-end's place while that works; under this number it is told
    /// what has become of it ([`super::Device::report`]).
    Swap(u64, SwapRequest),
    /// Its back-end is to take nothing until a resume; likewise.
    PauseDevice(u64),
    /// It is to go on; likewise.
    ResumeDevice(u64),
    /// An operator has paused the VM, and nobody is to have the rings of this disk; or that
    /// is over.
    Rest(bool),
    /// Its disk is to have so many bytes, or as many as its image; under this number it is
    /// told what has become of it ([`super::Device::resized`]).
    Resize(u64, Option<u64>),
    /// Its back-end was told that it has so many, or not, for this reason.
    ToldSize(Result<u64, String>),
    /// It is known who a successor is.
    Opened(Box<Server>),
    /// The back-end of this session has handed back its rings.
    HandedBack(SessionNumber),
    /// Rings that were handed back are served by this session, after this gap; why it is not
    /// a successor.
    GoesOn(SessionNumber, Gap, Option<String>),
    /// This has happened to the process of a standby, which was started for this session:
    /// what is heard on its line, that it was not started, or that it has ended.
    Standby(SessionNumber, Box<Event>),
    /// This session is over, or could not begin, with the reason.
    Lost(SessionNumber, Cause, String),
    /// The driver has reset the device while it had no back-end.
    Free,
    /// It was lost, and the VM lives on: it is to be served again.
    Recover,
    /// Nothing is left of its back-end, and its I/O is over; `known`: for certain.
    Clear {
        /// See there.
        known: bool,
    },
    /// The VM is resumed.
    Resume,
    /// Somebody wants its back-end to be started anew.
    Restart,
    /// The back-end of this session says that it is ready: before it is attached, or
    /// it keeps version 1 of the launch contract.
    Ready(SessionNumber),
    /// The back-end of this session says what its successor must know, which has been
    /// checked.
    Keeps(SessionNumber, Kept),
    /// The back-end of this session holds back a request of this queue, which has failed
    /// for this reason, and those that fail after it.
    IoError(SessionNumber, u16, String),
    /// The disk of this session has so many bytes, and nothing beyond them is in flight:
    /// the answer to a resize.
    Resized(SessionNumber, u64),
    /// The back-end of this session says this of requests that it has found in flight.
    InFlight(SessionNumber, Told),
    /// The back-end of this session has said what no back-end says, and is not heard
    /// any more.
    Nonsense(SessionNumber, String),
    /// The back-end of this session has closed its line.
    HungUp(SessionNumber),
    /// A ring of this session stands still, as the machine tells.
    Unserved(SessionNumber, Unserved),
    /// What was found of the back-end of this session when a ring stood still.
    Examined(SessionNumber, Unserved, Examined),
    /// The back-end of this session hangs, for this reason, and by whose doing.
    Hangs(SessionNumber, String, Doing),
    /// Its process has ended.
    Died(Death),
    /// The VM ends: what happens to its back-end is no fault any more.
    VmEnds,
    /// What comes next can have nothing to do with what its back-end has already
    /// shown: the fault is told now, as far as it is known.
    Settle,
    /// The machine is gone, and with it the session: the back-end is to end.
    Leave(Patience),
    /// Somebody has asked for the end twice.
    Hurry,
    /// Time has passed.
    Tick,
}

/// What becomes of an event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// This is to be done.
    Do(Action),
    /// The device has no back-end that can be used.
    Fault(Fault),
    /// The VM is to be paused: a request has failed, and is held back until it is
    /// resumed.
    IoError,
    /// The user is to hear that it has not ended, and how long it still has.
    Mention(Duration),
}

/// Why a device has no back-end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It could not be started.
    CannotBegin(String),
    /// Its process has ended; what the machine said of its session, if it did.
    Died(Death, Option<String>),
    /// Its session is over, or could not begin.
    Lost(String),
}
