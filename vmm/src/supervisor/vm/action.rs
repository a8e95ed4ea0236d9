//! What is to be done about what has happened to a VM.

use outboard_protocol::launch::SessionNumber;

/// A process of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// The machine's.
    Machine,
    /// The back-end's of the device at this place.
    Device(usize),
}

/// What is to be done. None of it waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Look for whom this device needs.
    Seek(usize),
    /// Look no more.
    StopSeeking(usize),
    /// Start the machine process and tell it what to build.
    StartMachine,
    /// Start the program of this device, if it has one, and hand its connection
    /// to the machine, as this session.
    Attach(usize, SessionNumber),
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
    /// Say this to the user.
    Say(String),
}
