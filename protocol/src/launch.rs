//! The launch contract: what a started process receives, and what the machine
//! and its supervisor say to each other.
//!
//! A **back-end** is started with `--fd=3` (its vhost-user socket, connected or
//! listening: [`Handover`]) and its resource as a further descriptor, named on its command line by number
//! (`--blk-fd=4`); [`VERSION_ENV`] tells it the version of this contract.
//! It inherits standard input (null), output and error, those descriptors, and
//! nothing else.
//!
//! The **machine** is started with one descriptor, [`MACHINE_FD`]: a
//! `SOCK_SEQPACKET` pair to its supervisor. Each packet is one JSON message
//! with the descriptors that the message names, in that order. The first is
//! [`ToMachine::Start`].

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::{env, fs, io};

use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair};
use nix::unistd::mkdtemp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::devices::{self, Kind};
use crate::{Deadline, socket};

/// Version of the launch contract and of the messages below.
pub const VERSION: u32 = 1;
/// Environment variable that tells a back-end [`VERSION`]; a back-end of ours
/// refuses one that it does not know and, started by hand, needs none.
pub const VERSION_ENV: &str = "OUTBOARD_LAUNCH";
/// Environment variable that tells a process whose lines it writes to standard
/// error: `VM/DEVICE`, or the one of the two that is known, or nothing. A
/// program of ours begins each line with its own name and that in brackets.
pub const LABEL_ENV: &str = "OUTBOARD_LABEL";
/// The descriptor on which a back-end finds its socket.
pub const BACKEND_FD: i32 = 3;
/// The descriptor on which the machine finds the socket to its supervisor.
pub const MACHINE_FD: i32 = 3;

/// Largest packet between machine and supervisor, in bytes.
const MAX_PACKET: usize = 64 * 1024;
/// Most descriptors in a packet.
const MAX_PACKET_FDS: usize = 8;

/// How a back-end program finds its front-end at [`BACKEND_FD`].
///
/// Either way there is one front-end, and with its session the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handover {
    /// The socket is connected.
    Connected,
    /// The socket listens, for programs that want to accept by themselves, as
    /// those on the `vhost-user-backend` crate do. One connection waits in it;
    /// it is shut down, so that accept(2) fails with `EINVAL` afterwards.
    Listening,
}

impl Handover {
    /// What programs for this kind of device are handed.
    pub fn of(kind: &Kind) -> Self {
        match kind.virtio_id {
            devices::RNG => Self::Listening,
            _ => Self::Connected,
        }
    }

    /// A front-end's connected socket, and what its back-end is handed.
    ///
    /// # Errors
    /// Those of socketpair(2); or those of a folder for temporary files and of
    /// a socket in it, since only a name makes a socket listen. The name is
    /// gone again, so nobody else connects.
    pub fn sockets(self) -> io::Result<(UnixStream, OwnedFd)> {
        if self == Self::Connected {
            let (front, back) = UnixStream::pair()?;
            return Ok((front, back.into()));
        }
        let template = env::temp_dir().join("outboard-XXXXXX");
        let place = Place(mkdtemp(&template).map_err(|errno| {
            let error = io::Error::from(errno);
            let shown = template.display();
            let text = format!("the folder {shown} cannot be made: {error}; set TMPDIR to another");
            io::Error::new(error.kind(), text)
        })?);
        let path = place.0.join("socket");
        let listener = UnixListener::bind(&path)?;
        let front = UnixStream::connect(&path)?;
        shutdown(listener.as_raw_fd(), Shutdown::Both)?;
        Ok((front, listener.into()))
    }
}

/// A folder of ours alone, for one socket; both are removed.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0.join("socket"));
        let _ = fs::remove_dir(&self.0);
    }
}

/// Where queue notifications go (`--doorbell`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Doorbell {
    /// A memory BAR.
    #[default]
    Mmio,
    /// An I/O BAR: 64 queues at most.
    Pio,
}

/// Who signals the kick eventfd of a queue (`--ring`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ring {
    /// KVM, by ioeventfd: no exit to user space.
    #[default]
    Kvm,
    /// The vCPU's thread, after an exit.
    Exit,
    /// A thread of the machine's, woken by the vCPU's after an exit.
    Worker,
}

/// A device as the machine is to build it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The name the user knows it by (`id=`); unique.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// Number of queues the driver is to see, 1 to 64.
    pub queues: u16,
    /// Nobody asked for that number: a back-end with fewer will do.
    pub fewer: bool,
    /// Largest queue size offered: a power of two, 2 to 32768.
    pub queue_size: u16,
    /// Who rings. Other than [`Ring::Kvm`] only for back-ends that the
    /// supervisor has started: the machine then writes eventfds that it has
    /// lent, and whoever holds those could make it wait.
    pub ring: Ring,
}

/// What the machine is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Number of vCPUs, 1 to 32.
    pub cpus: u8,
    /// Guest memory in bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// Back guest memory with huge pages.
    pub hugepages: bool,
    /// Populate guest memory before the guest starts.
    pub prefault: bool,
    /// Where queue notifications go.
    pub doorbell: Doorbell,
    /// What the user calls the kernel image, for messages.
    pub kernel: String,
    /// The kernel command line.
    pub cmdline: String,
    /// The devices, in slot order.
    pub devices: Vec<Device>,
}

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

/// Whose back-end is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "who")]
pub enum Whose {
    /// A program of Outboard's own that the supervisor has started as such: it is
    /// as it was told to be, and a ring that it says it has stopped is drained.
    Own,
    /// Any other, by whomever it was started.
    Foreign {
        /// Whether a disk is to have a write cache. What such a back-end says of
        /// it is not believed but written.
        writeback: bool,
    },
}

/// Nothing is known of it, so the guest is to flush.
impl Default for Whose {
    fn default() -> Self {
        Self::Foreign { writeback: true }
    }
}

/// From the supervisor to the machine.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "message")]
pub enum ToMachine {
    /// The first message, once. Its descriptors are those of `fds`, in order.
    Start {
        /// [`VERSION`].
        version: u32,
        /// What to build.
        machine: Machine,
        /// What each descriptor is.
        fds: Vec<StartFd>,
    },
    /// A new connection for a device: the first, a swap's or a recovery's.
    /// Brings one descriptor, the connected vhost-user socket.
    Attach {
        /// The device's id.
        device: String,
        /// Whether the back-end has been asked already: GET_FEATURES has been
        /// sent, and the first thing to be read is its answer.
        asked: bool,
        /// Whose the back-end is.
        whose: Whose,
    },
    /// Stop the vCPUs, end every session, exit.
    Stop,
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
    /// A triple fault: the guest broke itself.
    TripleFault,
    /// KVM gave up on the guest; the text holds registers and code bytes.
    KvmError {
        /// What KVM said.
        detail: String,
    },
}

/// From the machine to the supervisor.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "message")]
pub enum FromMachine {
    /// The device's back-end has answered and fits; sent once per attach.
    Attached {
        /// The device's id.
        device: String,
    },
    /// Every device is attached and the vCPUs run.
    Running,
    /// A device's session ended, or could not begin. The device is without a
    /// back-end until the next attach.
    Lost {
        /// The device's id.
        device: String,
        /// What happened, to be shown to the user.
        cause: String,
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

/// One end of the socket between machine and supervisor.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// A connected pair, both ends close-on-exec.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        Ok((Self { socket: a }, Self { socket: b }))
    }

    /// Adopts an inherited end.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Sends one message with its descriptors.
    ///
    /// # Errors
    /// `TimedOut` when the peer does not read before `deadline`, else those of
    /// sendmsg(2); `BrokenPipe` when the peer has gone.
    pub fn send<T: Serialize>(
        &self,
        message: &T,
        fds: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_PACKET || fds.len() > MAX_PACKET_FDS {
            return Err(io::Error::other("the message is too long for one packet"));
        }
        socket::send(self.socket.as_fd(), &bytes, fds, deadline).map(drop)
    }

    /// Receives one message with its descriptors; `None` when the peer has
    /// gone.
    ///
    /// # Errors
    /// `TimedOut` when none came before `deadline`, `InvalidData` when it is
    /// not one of ours.
    pub fn recv<T: DeserializeOwned>(
        &self,
        deadline: Deadline,
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut buffer = vec![0; MAX_PACKET];
        let mut fds = Vec::new();
        match socket::receive(self.socket.as_fd(), &mut buffer, &mut fds, deadline) {
            Ok(0) => Ok(None),
            Ok(length) => {
                let message = serde_json::from_slice(buffer.get(..length).unwrap_or_default())?;
                Ok(Some((message, fds)))
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
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
    use std::io::{Read, Write};
    use std::time::Duration;

    use super::*;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(20))
    }

    #[test]
    fn a_message_and_its_descriptors_arrive_together_and_an_end_is_seen() {
        let (a, b) = Channel::pair().unwrap();
        let sent = ToMachine::Attach {
            device: "disk0".into(),
            asked: false,
            whose: Whose::default(),
        };
        a.send(&sent, &[a.as_fd()], soon()).unwrap();
        drop(a);
        let (message, fds) = b.recv::<ToMachine>(soon()).unwrap().unwrap();
        assert_eq!(message, sent);
        assert_eq!(fds.len(), 1);
        drop(fds);
        assert!(b.recv::<ToMachine>(soon()).unwrap().is_none());
    }

    #[test]
    fn a_peer_that_has_gone_is_a_broken_pipe_whether_it_had_read_or_not() {
        let stop = ToMachine::Stop;
        for reads in [true, false] {
            let (a, b) = Channel::pair().unwrap();
            a.send(&stop, &[], soon()).unwrap();
            if reads {
                b.recv::<ToMachine>(soon()).unwrap().unwrap();
            }
            drop(b);
            let error = a.send(&stop, &[], soon()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "{reads}");
        }
    }

    #[test]
    fn a_listening_socket_has_one_front_end_and_no_name() {
        let (mut front, back) = Handover::of(&Kind::rng()).sockets().unwrap();
        let listener = UnixListener::from(back);
        let name = listener.local_addr().unwrap();
        assert!(UnixStream::connect(name.as_pathname().unwrap()).is_err());
        assert!(!name.as_pathname().unwrap().parent().unwrap().exists());
        let (mut session, _) = listener.accept().unwrap();
        front.write_all(b"hello").unwrap();
        drop(front);
        let mut said = String::new();
        session.read_to_string(&mut said).unwrap();
        assert_eq!(said, "hello");
        let error = listener.accept().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn nonsense_is_refused() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&"nonsense", &[], soon()).unwrap();
        let error = b.recv::<ToMachine>(soon()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn descriptors_without_a_name_are_refused() {
        let fd = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert!(sort_fds(&[StartFd::Kvm], vec![fd()]).is_ok());
        assert!(sort_fds(&[StartFd::Kvm], vec![fd(), fd()]).is_err());
        assert!(sort_fds(&[StartFd::Kvm, StartFd::Kvm], vec![fd(), fd()]).is_err());
    }
}
