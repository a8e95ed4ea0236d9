//! The framing of vhost-user: a 12-byte header, a payload, descriptors.
//!
//! Both sides use it: the machine's front-end, the back-ends' runtime, and the
//! peers that the tests play. It knows message boundaries, sizes, descriptors
//! and deadlines, and nothing of what a message means (vhost-user
//! specification, "Message Specification"). Payload types and request numbers
//! are the `vhost` crate's.
//!
//! Nothing here trusts the peer: a size, a descriptor count or a flag that the
//! specification does not allow ends the connection.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use vm_memory::ByteValued;

use crate::{Deadline, socket};

/// The largest payload of a message, in bytes. The specification names no
/// limit; the largest defined payload is far below this.
pub const MAX_PAYLOAD: usize = 4096;
/// The most descriptors one message carries (vhost-user, "Ancillary data":
/// one for each of the 8 regions of SET_MEM_TABLE).
pub const MAX_FDS: usize = 8;
/// The size of a header in bytes.
pub const HEADER_SIZE: usize = 12;

const VERSION: u32 = 0x1;
const VERSION_MASK: u32 = 0x3;
const REPLY: u32 = 0x4;
const NEED_REPLY: u32 = 0x8;
const KNOWN_FLAGS: u32 = VERSION_MASK | REPLY | NEED_REPLY;

/// The header of a message (vhost-user, "Header").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The request number; a reply repeats it. Unknown numbers are legal here
    /// and are the receiver's to refuse.
    pub request: u32,
    /// Whether this is the reply to a request.
    pub reply: bool,
    /// Whether the sender waits for a u64 that tells success (REPLY_ACK).
    pub need_reply: bool,
}

impl Header {
    /// A request that asks for no acknowledgement.
    pub fn request(request: u32) -> Self {
        Self {
            request,
            reply: false,
            need_reply: false,
        }
    }

    /// The same request, asking for an acknowledgement (REPLY_ACK).
    pub fn with_need_reply(self) -> Self {
        Self {
            need_reply: true,
            ..self
        }
    }

    /// The header of the reply to a request.
    pub fn reply_to(request: u32) -> Self {
        Self {
            request,
            reply: true,
            need_reply: false,
        }
    }

    fn encode(self, size: u32) -> [u8; HEADER_SIZE] {
        let mut flags = VERSION;
        if self.reply {
            flags |= REPLY;
        }
        if self.need_reply {
            flags |= NEED_REPLY;
        }
        let mut bytes = [0; HEADER_SIZE];
        for (field, value) in bytes.chunks_exact_mut(4).zip([self.request, flags, size]) {
            field.copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }

    /// Reads a header; returns it and the size of the payload that follows.
    fn decode(bytes: [u8; HEADER_SIZE]) -> Result<(Self, usize), WireError> {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        let request = u32::from_ne_bytes([a, b, c, d]);
        let flags = u32::from_ne_bytes([e, f, g, h]);
        let size = u32::from_ne_bytes([i, j, k, l]) as usize;
        if flags & VERSION_MASK != VERSION {
            return Err(malformed(format!(
                "version {} in its flags",
                flags & VERSION_MASK
            )));
        }
        if flags & !KNOWN_FLAGS != 0 {
            return Err(malformed(format!("reserved bits in its flags {flags:#x}")));
        }
        if size > MAX_PAYLOAD {
            return Err(malformed(format!(
                "a payload of {size} bytes, {MAX_PAYLOAD} at most"
            )));
        }
        let header = Self {
            request,
            reply: flags & REPLY != 0,
            need_reply: flags & NEED_REPLY != 0,
        };
        Ok((header, size))
    }
}

/// A message as it came off the socket.
#[derive(Debug)]
pub struct Message {
    /// What it is.
    pub header: Header,
    /// What it says, at most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
    /// The descriptors it brought, at most [`MAX_FDS`]; closed when dropped.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The payload as a `T`, if it has exactly that size.
    ///
    /// # Errors
    /// [`WireError::Malformed`] when the payload is longer or shorter.
    pub fn body<T: ByteValued + Default>(&self) -> Result<T, WireError> {
        let mut value = T::default();
        let bytes = value.as_mut_slice();
        if bytes.len() != self.payload.len() {
            return Err(malformed(format!(
                "request {} with a payload of {} bytes instead of {}",
                self.header.request,
                self.payload.len(),
                bytes.len()
            )));
        }
        bytes.copy_from_slice(&self.payload);
        Ok(value)
    }

    /// The one descriptor that the message must bring.
    ///
    /// # Errors
    /// [`WireError::Malformed`] when it brought none or several.
    pub fn one_fd(&mut self) -> Result<OwnedFd, WireError> {
        match (self.fds.pop(), self.fds.is_empty()) {
            (Some(fd), true) => Ok(fd),
            _ => Err(malformed(format!(
                "request {} without exactly one descriptor",
                self.header.request
            ))),
        }
    }
}

/// Why a message could not be sent or received. After any of them but
/// [`WireError::Closed`] the stream has no known boundary: drop it.
#[derive(Debug)]
pub enum WireError {
    /// The peer closed the connection between two messages.
    Closed,
    /// The deadline passed; the peer is silent, or does not read.
    TimedOut,
    /// The peer broke the specification; the text says how.
    Malformed(String),
    /// The socket failed, or this process has no room for a descriptor.
    Io(io::Error),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => write!(f, "the peer closed the connection"),
            Self::TimedOut => write!(f, "the peer did not answer in time"),
            Self::Malformed(what) => write!(f, "the peer sent a malformed message: {what}"),
            Self::Io(error) => write!(f, "the connection failed: {error}"),
        }
    }
}

impl std::error::Error for WireError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed,
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::InvalidData => Self::Malformed(error.to_string()),
            _ => Self::Io(error),
        }
    }
}

/// A shorthand for [`WireError::Malformed`].
pub fn malformed(what: impl Into<String>) -> WireError {
    WireError::Malformed(what.into())
}

/// One vhost-user connection: a stream socket that carries messages.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// Wraps a connected socket. Its blocking mode does not matter.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// Sends one message whole.
    ///
    /// # Errors
    /// [`WireError::TimedOut`] when the peer does not read before `deadline`,
    /// [`WireError::Closed`] when it has gone.
    pub fn send(
        &self,
        header: Header,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(), WireError> {
        let size = u32::try_from(payload.len()).map_err(|_| malformed("payload too long"))?;
        let mut bytes = header.encode(size).to_vec();
        bytes.extend_from_slice(payload);
        let mut sent = 0usize;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            // The descriptors travel with the first byte.
            let fds = if sent == 0 { fds } else { &[] };
            let count = socket::send(self.stream.as_fd(), rest, fds, deadline)?;
            sent = sent.saturating_add(count);
        }
        Ok(())
    }

    /// Receives one message whole. Waits until `deadline` for it; a caller that
    /// has an event loop polls the descriptor first and gives a short one.
    ///
    /// # Errors
    /// [`WireError::Closed`] at an end of file between two messages,
    /// [`WireError::TimedOut`] when the message, begun or not, is not complete
    /// by then, [`WireError::Malformed`] when its header or its descriptors
    /// break the specification or the stream ends within it.
    pub fn recv(&self, deadline: Deadline) -> Result<Message, WireError> {
        let message = self.message(Some(deadline), deadline)?;
        message.ok_or(WireError::TimedOut)
    }

    /// Receives one message whole, if any of it is there, and waits until `deadline` for
    /// the rest.
    ///
    /// # Errors
    /// Those of [`Self::recv`].
    pub fn recv_begun(&self, deadline: Deadline) -> Result<Option<Message>, WireError> {
        self.message(None, deadline)
    }

    /// A message that begins before `begin`, or has begun, and is complete by `deadline`.
    fn message(
        &self,
        begin: Option<Deadline>,
        deadline: Deadline,
    ) -> Result<Option<Message>, WireError> {
        let mut fds = Vec::new();
        let mut bytes = [0; HEADER_SIZE];
        let begun = match self.some(&mut bytes, &mut fds, begin) {
            Ok(0) => return Err(WireError::Closed),
            Err(WireError::TimedOut) => return Ok(None),
            begun => begun?,
        };
        let rest = bytes.get_mut(begun..).unwrap_or_default();
        self.fill(rest, &mut fds, deadline)?;
        let (header, size) = Header::decode(bytes)?;
        let mut payload = vec![0; size];
        self.fill(&mut payload, &mut fds, deadline)?;
        Ok(Some(Message {
            header,
            payload,
            fds,
        }))
    }

    /// Reads until `buffer` is full, keeping the descriptors that come along.
    fn fill(
        &self,
        mut buffer: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        deadline: Deadline,
    ) -> Result<(), WireError> {
        while !buffer.is_empty() {
            buffer = match self.some(buffer, fds, Some(deadline))? {
                0 => return Err(malformed("the connection ended within it")),
                count => buffer.get_mut(count..).unwrap_or_default(),
            };
        }
        Ok(())
    }

    /// Reads what there is, 0 bytes at the end of the stream.
    fn some(
        &self,
        buffer: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        deadline: Option<Deadline>,
    ) -> Result<usize, WireError> {
        let received = socket::receive(self.stream.as_fd(), buffer, fds, deadline);
        // First of all, since too many may be why not all of them came.
        if fds.len() > MAX_FDS {
            return Err(malformed(format!("more than {MAX_FDS} descriptors")));
        }
        Ok(received?)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use super::*;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(20))
    }

    fn pair() -> (UnixStream, Connection) {
        let (a, b) = UnixStream::pair().unwrap();
        (a, Connection::new(b))
    }

    #[test]
    fn a_message_arrives_as_it_was_sent_with_its_descriptors() {
        let (a, b) = pair();
        let a = Connection::new(a);
        let file = tempfile();
        let header = Header::request(5).with_need_reply();
        a.send(header, b"payload", &[file.as_fd(), file.as_fd()], soon())
            .unwrap();
        let message = b.recv(soon()).unwrap();
        assert_eq!(message.header, header);
        assert_eq!(message.payload, b"payload");
        assert_eq!(message.fds.len(), 2);
    }

    #[test]
    fn a_message_that_comes_a_byte_at_a_time_is_whole() {
        let (mut a, b) = pair();
        let sender = std::thread::spawn(move || {
            for byte in Header::request(7).encode(3).iter().chain(b"abc") {
                a.write_all(&[*byte]).unwrap();
            }
        });
        assert_eq!(b.recv(soon()).unwrap().payload, b"abc");
        sender.join().unwrap();
    }

    #[test]
    fn a_message_cut_anywhere_is_malformed_and_an_end_between_two_is_a_close() {
        let whole = [&Header::request(7).encode(3)[..], b"abc"].concat();
        for cut in 0..whole.len() {
            let (mut a, b) = pair();
            a.write_all(&whole[..cut]).unwrap();
            drop(a);
            match b.recv(soon()) {
                Err(WireError::Closed) => assert_eq!(cut, 0),
                Err(WireError::Malformed(_)) => assert_ne!(cut, 0),
                other => panic!("cut at {cut}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_silent_peer_costs_the_deadline_and_no_more() {
        let (mut a, b) = pair();
        a.write_all(&Header::request(7).encode(3)).unwrap();
        let deadline = Deadline::after(Duration::from_millis(50));
        assert!(matches!(b.recv(deadline), Err(WireError::TimedOut)));
    }

    #[test]
    fn wrong_versions_reserved_flags_and_huge_sizes_are_refused() {
        for (flags, size) in [
            (0u32, 0u32),
            (2, 0),
            (3, 0),
            (0x11, 0),
            (1, 4097),
            (1, u32::MAX),
        ] {
            let (mut a, b) = pair();
            for word in [7u32, flags, size] {
                a.write_all(&word.to_ne_bytes()).unwrap();
            }
            let result = b.recv(soon());
            assert!(
                matches!(result, Err(WireError::Malformed(_))),
                "{flags:#x} {size}"
            );
        }
    }

    #[test]
    fn too_many_descriptors_are_refused_and_none_stays_open() {
        let (a, b) = pair();
        let a = Connection::new(a);
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let many = vec![writer.as_fd(); MAX_FDS + 1];
        a.send(Header::request(1), &[], &many, soon()).unwrap();
        assert!(matches!(b.recv(soon()), Err(WireError::Malformed(_))));
        drop(writer);
        // Every copy of the writing end is closed, so the reader sees the end.
        let mut byte = [0];
        assert_eq!(nix::unistd::read(&reader, &mut byte).unwrap(), 0);
    }

    #[test]
    fn a_body_must_have_exactly_its_size() {
        for size in 0..20 {
            let message = Message {
                header: Header::request(1),
                payload: vec![1; size],
                fds: vec![],
            };
            assert_eq!(message.body::<u64>().is_ok(), size == 8, "{size}");
        }
    }

    fn tempfile() -> OwnedFd {
        nix::unistd::pipe().unwrap().0
    }
}
