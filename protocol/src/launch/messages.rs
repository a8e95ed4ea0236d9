//! What the machine and its supervisor say to each other.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::spec::{Device, Machine, Whose};

/// Version of these messages.
pub const MESSAGES_VERSION: u32 = 7;

/// Which connection of a device is meant: they are counted, so that what is said
/// of a session that is over is not taken for its successor's.
pub type SessionNumber = u64;

/// The descriptors of [`ToMachine::Start`], by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartFd {
    /// /dev/kvm, opened for reading and writing.
    Kvm,
    /// The kernel image, opened for reading.
    Kernel,
    /// The initial RAM disk, if there is one.
    Initrd,
    /// What the guest's console reads, if anything.
    ConsoleIn,
    /// Where the guest's console writes.
    ConsoleOut,
}

/// From the supervisor to the machine.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "message")]
pub enum ToMachine {
    /// The first message, once. Its descriptors are those of `fds`, in order.
    Start {
        /// [`MESSAGES_VERSION`].
        version: u32,
        /// What to build.
        machine: Machine,
        /// Its devices, in slot order.
        devices: Vec<Device>,
        /// What each descriptor is.
        fds: Vec<StartFd>,
    },
    /// A new connection for a device: the first, a swap's or a recovery's.
    /// Brings one descriptor, the connected vhost-user socket. Answered by
    /// [`FromMachine::Attached`] or [`FromMachine::Lost`] of the same session.
    Attach {
        /// The device's id.
        device: String,
        /// The session that begins: greater than any before it of this device.
        session: SessionNumber,
        /// Whether the back-end has been asked already: GET_FEATURES has been
        /// sent, and the first thing to be read is its answer.
        asked: bool,
        /// Whose the back-end is.
        whose: Whose,
        /// What it knows of its predecessors.
        restored: Restored,
    },
    /// A connection to a back-end that is to wait for the one that serves the device:
    /// it is negotiated and lent guest memory, and has no ring. Brings one descriptor,
    /// as an attach does. Answered by [`FromMachine::Prepared`] or
    /// [`FromMachine::Lost`] of the same session, which may also come later. Another
    /// takes the place of one that waits.
    Prepare {
        /// The device's id.
        device: String,
        /// The session that waits.
        session: SessionNumber,
        /// As in [`Self::Attach`].
        asked: bool,
        /// Whose the back-end is.
        whose: Whose,
        /// It is to replace one that works: it is lost at once, with the reason, if the
        /// driver would notice.
        replaces: Option<Replaces>,
    },
    /// The back-end of this session is to hand back its rings, and they are served by
    /// nobody until a promote. Answered by [`FromMachine::HandedBack`];
    /// [`FromMachine::GoesOn`] if it does not finish in time and serves them again; or
    /// [`FromMachine::Lost`].
    HandBack {
        /// The device's id.
        device: String,
        /// The session that serves it.
        session: SessionNumber,
    },
    /// The back-end that waits is to serve the device from now on. Answered as an
    /// attach; where rings were handed back, by [`FromMachine::GoesOn`] of this session or,
    /// if it failed before its first ring was enabled, of the one that had handed them
    /// back. That one may also be named: then it goes on.
    Promote {
        /// The device's id.
        device: String,
        /// The session that waits, which must have been prepared.
        session: SessionNumber,
        /// What it knows of its predecessors.
        restored: Restored,
        /// Whether its disk may have another capacity than the driver has seen.
        resizes: bool,
    },
    /// Whoever served that session, and any before, is gone, and its I/O is over:
    /// nothing that it was lent is touched any more.
    Vacant {
        /// The device's id.
        device: String,
        /// The session.
        session: SessionNumber,
    },
    /// Keep the vCPUs from running. Answered by [`FromMachine::Paused`], unless a
    /// resume or the end of the run comes before. One more is answered once more.
    Pause,
    /// Let the vCPUs run again, or call off a pause that is not over yet. Answered by
    /// [`FromMachine::Resumed`], also where there was no pause.
    Resume,
    /// Stop the vCPUs, end every session, exit.
    Stop,
}

/// How a back-end that waits is judged which is to replace one that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaces {
    /// What it will know of its predecessors.
    pub restored: Restored,
    /// Whether its disk may have another capacity than the driver has seen.
    pub resizes: bool,
}

/// How long rings that were handed back were not served, in microseconds, by parts that
/// follow one another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// From the first request to stop a ring until the last was answered.
    pub stop_us: u64,
    /// Until what had been taken was over, too.
    pub drain_us: u64,
    /// Until it was decided who serves them next: as long as the pause was, for a device
    /// that was paused.
    pub rest_us: u64,
    /// Until the last ring was enabled again.
    pub start_us: u64,
}

impl Gap {
    /// The whole of it, in microseconds.
    pub fn total_us(&self) -> u64 {
        let parts = [self.stop_us, self.drain_us, self.rest_us, self.start_us];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

/// What a back-end knows of what its predecessors have kept ([`crate::kept`]): what a
/// driver has set by commands that the machine does not see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restored {
    /// There was nothing.
    Nothing,
    /// It has been told, and knows it before its first ring.
    Kept,
    /// Nobody knows what it was.
    Unknown,
}

/// How a guest's run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how")]
pub enum Ending {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// [`ToMachine::Stop`] was obeyed.
    Stopped,
    /// A triple fault: the guest crashed.
    TripleFault,
    /// KVM gave up on the guest; the text holds registers and code bytes.
    KvmError {
        /// What KVM said.
        detail: String,
    },
}

/// Why a device has no session any more, or was given none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The back-end closed its connection.
    Gone,
    /// The back-end did not answer within its time.
    Silent,
    /// The back-end said what no back-end may say, or refused what none may refuse.
    BrokeProtocol,
    /// The back-end cannot serve this device, or there is no such device, or it
    /// has a back-end.
    DoesNotFit,
    /// The driver has rings that a successor cannot take over exactly.
    NotRecoverable,
}

/// From the machine to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "message")]
pub enum FromMachine {
    /// The device's back-end has answered and fits; sent once per attach.
    Attached {
        /// The device's id.
        device: String,
        /// That of the attach.
        session: SessionNumber,
    },
    /// What the driver and a back-end of the device have agreed on, whenever that has
    /// changed; before it is told, the driver has not agreed to anything.
    Agreed {
        /// The device's id.
        device: String,
        /// The features that the driver has acknowledged; `None`: it does not use the
        /// device.
        features: Option<u64>,
        /// The last back-end notes in an inflight region what it has taken.
        tracked: bool,
    },
    /// The back-end of this session has answered and fits, and waits; sent once per
    /// prepare.
    Prepared {
        /// The device's id.
        device: String,
        /// That of the prepare.
        session: SessionNumber,
    },
    /// The back-end of this session has handed back its rings, and what it had taken is
    /// over.
    HandedBack {
        /// The device's id.
        device: String,
        /// That of the hand-back.
        session: SessionNumber,
    },
    /// Rings that were handed back are served again.
    GoesOn {
        /// The device's id.
        device: String,
        /// By whom: the successor, or the one that had handed them back.
        session: SessionNumber,
        /// How long they were not.
        gap: Gap,
        /// Why it is that one, and not the successor.
        why: Option<String>,
    },
    /// Every device is attached and the vCPUs run.
    Running,
    /// No vCPU runs the guest: that waits for a resume. Devices finish what they were
    /// given.
    Paused,
    /// The vCPUs may run. No pause that was asked for before is answered after this.
    Resumed,
    /// A session ended, or could not begin. The device is without a back-end
    /// until the next attach, unless another session of it was attached before.
    Lost {
        /// The device's id.
        device: String,
        /// That of the attach.
        session: SessionNumber,
        /// What happened.
        cause: Cause,
        /// The same, to be shown to the user.
        text: String,
    },
    /// The device has no back-end and its driver has reset it: any that fits can
    /// serve it, whatever its predecessor has left.
    Free {
        /// The device's id.
        device: String,
    },
    /// A ring has stood still for half of the device's
    /// [`hang_timeout`](Device::hang_timeout), or an answer of its back-end, which may be
    /// about any ring, has been waited for as long. It is told again after each further
    /// half, and need not be anybody's fault.
    Unserved {
        /// The device's id.
        device: String,
        /// That of the attach.
        session: SessionNumber,
        /// The queue.
        queue: u16,
        /// Nobody has consumed its kick, though kicks of it were consumed before. If not:
        /// chains of it have not been returned, or no kicks are asked for.
        kick: bool,
        /// How often this was told in a row: 2 when the time is over.
        times: u32,
    },
    /// The machine cannot be built, or cannot go on; it exits after this.
    Failed {
        /// What was attempted, on what, what to do.
        error: String,
    },
    /// The run is over; the machine exits after this.
    Ended {
        /// How.
        ending: Ending,
    },
}

/// Sorts the descriptors of a [`ToMachine::Start`] by their names.
///
/// # Errors
/// `InvalidData` when there are more or fewer than names, or a name twice.
pub fn sort_fds(names: &[StartFd], fds: Vec<OwnedFd>) -> io::Result<BTreeMap<StartFd, OwnedFd>> {
    let count = fds.len();
    let sorted: BTreeMap<_, _> = names.iter().copied().zip(fds).collect();
    if count != names.len() || sorted.len() != count {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{count} descriptors for {} names", names.len()),
        ));
    }
    Ok(sorted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_without_a_name_are_refused() {
        let fd = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert!(sort_fds(&[StartFd::Kvm], vec![fd()]).is_ok());
        assert!(sort_fds(&[StartFd::Kvm], vec![fd(), fd()]).is_err());
        assert!(sort_fds(&[StartFd::Kvm, StartFd::Kvm], vec![fd(), fd()]).is_err());
    }
}
