//! A back-end on a thread of the test's own, which gives the right answer to every
//! request. A test names the request at which it does not, and what is wrong
//! there: a front-end is tried with every answer that a good back-end would not
//! give.
//!
//! It panics where a front-end sends what no back-end knows, and the test learns
//! of it from [`Running::join`] and [`Running::messages`].
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::File;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use outboard_protocol::Deadline;
use outboard_protocol::devices::BlkConfig;
use outboard_protocol::wire::{Connection, Header, Message};
use vhost::vhost_user::message::{
    FrontendReq as R, VhostUserInflight, VhostUserProtocolFeatures as P,
};
use vm_memory::ByteValued;

use crate::client::PROTOCOL_FEATURES;
use crate::memory::sealed;

/// How long a front-end may say nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// What goes wrong at a request. Whatever that asks for is done all the same, but
/// where another thing is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends instead of an answer, and nothing is done.
    Close,
    /// No answer at all, and nothing is done.
    Silence,
    /// Half a header, then silence, and nothing is done.
    Half,
    /// These bytes, whatever they are, and nothing is done.
    Raw(Vec<u8>),
    /// A byte less.
    Short,
    /// Eight bytes more.
    Long,
    /// An answer to another request.
    Other,
    /// Not marked as a reply.
    NoReply,
    /// One descriptor more than there should be.
    Fd,
    /// A value that means failure, or makes no sense; nothing is done.
    Value,
    /// The right answer, so late.
    Late(Duration),
    /// The right answer, a byte at a time.
    Dribble,
    /// The right answer, but nothing is done.
    Idle,
    /// Another payload.
    Payload(Vec<u8>),
    /// Another payload, and so many descriptors.
    WithFds(Vec<u8>, usize),
}

/// A back-end to be started.
#[derive(Clone, Debug)]
pub struct Scripted {
    /// Its virtio features, with the bit for protocol features.
    pub features: u64,
    /// Its protocol features.
    pub protocol: u64,
    /// Number of queues.
    pub queues: u64,
    /// Its configuration; what a front-end writes into it lasts until a reset.
    pub config: Vec<u8>,
    /// What goes wrong at a request, and how often nothing does before.
    faults: Vec<(R, Fault, u32)>,
}

impl Scripted {
    /// A well-behaved back-end that offers these device features (the protocol
    /// features are added), queues and this configuration.
    pub fn new(features: u64, queues: u16, config: Vec<u8>) -> Self {
        let protocol = P::MQ
            | P::REPLY_ACK
            | P::BACKEND_REQ
            | P::CONFIG
            | P::INFLIGHT_SHMFD
            | P::RESET_DEVICE
            | P::CONFIGURE_MEM_SLOTS;
        Self {
            features: features | PROTOCOL_FEATURES,
            protocol: protocol.bits(),
            queues: queues.into(),
            config,
            faults: Vec::new(),
        }
    }

    /// A disk of 1 MiB with four queues, which offers protocol features that
    /// nobody here uses besides.
    pub fn disk() -> Self {
        let config = BlkConfig {
            capacity: 2048,
            num_queues: 4,
            ..BlkConfig::default()
        };
        let disk = Self::new(1 << 32 | 1 << 12, 4, config.to_bytes().to_vec());
        let protocol = disk.protocol | P::LOG_SHMFD.bits();
        disk.protocol(protocol)
    }

    /// Offers these virtio features and no others.
    pub fn features(self, features: u64) -> Self {
        Self { features, ..self }
    }

    /// Offers these virtio features besides.
    pub fn with(self, features: u64) -> Self {
        let features = self.features | features;
        self.features(features)
    }

    /// Offers no protocol features, nor anything else beside what it was made with.
    pub fn plain(self) -> Self {
        let features = self.features & !PROTOCOL_FEATURES;
        self.features(features)
    }

    /// Offers other protocol features.
    pub fn protocol(self, protocol: u64) -> Self {
        Self { protocol, ..self }
    }

    /// Does not offer these protocol features.
    pub fn without(self, protocol: P) -> Self {
        let protocol = self.protocol & !protocol.bits();
        self.protocol(protocol)
    }

    /// Has another number of queues.
    pub fn queues(self, queues: u64) -> Self {
        Self { queues, ..self }
    }

    /// Has another configuration.
    pub fn config(self, config: Vec<u8>) -> Self {
        Self { config, ..self }
    }

    /// Goes wrong at this request.
    pub fn on(self, request: R, fault: Fault) -> Self {
        self.on_after(request, 0, fault)
    }

    /// Goes wrong at this request, but not at the first `spared` of its kind.
    pub fn on_after(mut self, request: R, spared: u32, fault: Fault) -> Self {
        self.faults.push((request, fault, spared));
        self
    }

    /// Starts it; returns the front-end's end of the connection. It ends when
    /// that is closed, or after 60 seconds of silence.
    pub fn start(self) -> (UnixStream, Running) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stream = ours.try_clone().unwrap();
        (theirs, Running::new(self, Some(stream), || (ours, None)))
    }

    /// Serves the first who connects to a socket at `path`.
    pub fn listen(self, path: &Path) -> Running {
        let listener = UnixListener::bind(path).unwrap();
        Running::new(self, None, move || {
            let (stream, _) = listener.accept().unwrap();
            (stream, Some(listener))
        })
    }
}

/// What the test can see and do while the back-end serves.
#[derive(Debug)]
pub struct Running {
    /// The requests, as they came, with their descriptors. That of
    /// SET_BACKEND_REQ_FD is another one: its own is [`Self::channel`]'s.
    pub seen: Receiver<(R, Message)>,
    /// The channel to the front-end, when it came.
    pub channel: Receiver<OwnedFd>,
    base: Arc<AtomicU16>,
    region: Arc<AtomicU64>,
    stream: Option<UnixStream>,
    thread: JoinHandle<()>,
}

impl Running {
    fn new(
        script: Scripted,
        stream: Option<UnixStream>,
        connect: impl FnOnce() -> (UnixStream, Option<UnixListener>) + Send + 'static,
    ) -> Self {
        let (seen_in, seen) = channel();
        let (channel_in, channel) = channel();
        let base = Arc::new(AtomicU16::new(0));
        let region = Arc::new(AtomicU64::new(0));
        let config = script.config.clone();
        let mut session = Session {
            script,
            config,
            base: Arc::clone(&base),
            region: Arc::clone(&region),
            seen: seen_in,
            channel: channel_in,
        };
        let thread = std::thread::spawn(move || {
            let (stream, _listener) = connect();
            session.serve(stream.try_clone().unwrap());
            // There may be a copy, to hang up.
            let _ = stream.shutdown(Shutdown::Both);
        });
        Self {
            seen,
            channel,
            base,
            region,
            stream,
            thread,
        }
    }

    /// Waits until a request of this kind has come.
    pub fn wait_for(&self, request: R) -> Message {
        loop {
            let (seen, message) = self.seen.recv_timeout(PATIENCE).unwrap();
            if seen == request {
                return message;
            }
        }
    }

    /// Whether a request of this kind has come that was not looked at before;
    /// none of those that have is looked at again.
    pub fn has_come(&self, request: R) -> bool {
        // All of them are taken.
        let seen: Vec<_> = self.seen.try_iter().collect();
        seen.iter().any(|(other, _)| *other == request)
    }

    /// Rings that are stopped from now on are so at this index, instead of 0.
    pub fn stop_at(&self, base: u16) {
        self.base.store(base, Ordering::Relaxed);
    }

    /// The inode of the inflight region that it has made last, 0 before.
    pub fn region(&self) -> u64 {
        self.region.load(Ordering::Relaxed)
    }

    /// Ends the connection, as a back-end that dies does.
    pub fn hang_up(self) {
        let stream = self.stream.as_ref().unwrap();
        stream.shutdown(Shutdown::Both).unwrap();
        self.join();
    }

    /// Waits for the end of the connection.
    pub fn join(self) {
        self.messages();
    }

    /// Every message that was not looked at before, once the front-end has gone.
    pub fn messages(self) -> Vec<Message> {
        self.thread.join().unwrap();
        self.seen.iter().map(|(_, message)| message).collect()
    }
}

struct Session {
    script: Scripted,
    config: Vec<u8>,
    base: Arc<AtomicU16>,
    region: Arc<AtomicU64>,
    seen: Sender<(R, Message)>,
    channel: Sender<OwnedFd>,
}

impl Session {
    fn serve(&mut self, stream: UnixStream) {
        let connection = Connection::new(stream.try_clone().unwrap());
        while let Ok(mut message) = connection.recv(Deadline::after(PATIENCE)) {
            let request = R::try_from(message.header.request).unwrap();
            if request == R::SET_BACKEND_REQ_FD {
                let other = File::open("/dev/null").unwrap().into();
                let channel = std::mem::replace(message.fds.first_mut().unwrap(), other);
                let _ = self.channel.send(channel);
            }
            let fault = self.fault(request);
            let ends = fault == Some(Fault::Close);
            match &fault {
                Some(Fault::Close | Fault::Silence) => {}
                // Of what was asked together the front-end may have gone over the first.
                Some(Fault::Half) => drop((&stream).write_all(&[1, 0, 0, 0, 5])),
                Some(Fault::Raw(bytes)) => drop((&stream).write_all(bytes)),
                _ => self.obey(&connection, &stream, (request, &message), fault.as_ref()),
            }
            let _ = self.seen.send((request, message));
            if ends {
                return;
            }
        }
    }

    fn fault(&mut self, request: R) -> Option<Fault> {
        let mut faults = self.script.faults.iter_mut();
        let (_, fault, spared) = faults.find(|(at, ..)| *at == request)?;
        let now = *spared == 0;
        *spared = spared.saturating_sub(1);
        now.then(|| fault.clone())
    }

    fn obey(
        &mut self,
        connection: &Connection,
        mut stream: &UnixStream,
        (request, message): (R, &Message),
        fault: Option<&Fault>,
    ) {
        if let Some(Fault::Late(time)) = fault {
            std::thread::sleep(*time);
        }
        let wrong = fault == Some(&Fault::Value);
        if !wrong && fault != Some(&Fault::Idle) {
            self.configure(request, message);
        }
        let Some(mut payload) = self.answer(request, message, wrong) else {
            return;
        };
        let mut fds = usize::from(request == R::GET_INFLIGHT_FD);
        let mut header = Header::reply_to(request.into());
        match fault {
            Some(Fault::Short) => drop(payload.pop()),
            Some(Fault::Long) => payload.extend([0; 8]),
            Some(Fault::Other) => header.request = R::SEND_RARP.into(),
            Some(Fault::NoReply) => header.reply = false,
            Some(Fault::Fd) => fds += 1,
            Some(Fault::Payload(other)) => (payload, fds) = (other.clone(), 0),
            Some(Fault::WithFds(other, count)) => (payload, fds) = (other.clone(), *count),
            Some(Fault::Dribble) => {
                let head = [request.into(), 5, payload.len() as u32].map(u32::to_ne_bytes);
                for byte in head.concat().into_iter().chain(payload) {
                    std::thread::sleep(Duration::from_millis(1));
                    let _ = stream.write_all(&[byte]);
                }
                return;
            }
            _ => {}
        }
        // Another one for each question.
        let file = sealed(4096).unwrap();
        if request == R::GET_INFLIGHT_FD {
            let inode = file.metadata().unwrap().ino();
            self.region.store(inode, Ordering::Relaxed);
        }
        let fds = vec![file.as_fd(); fds];
        let _ = connection.send(header, &payload, &fds, crate::soon());
    }

    /// What is written stays until a reset.
    fn configure(&mut self, request: R, message: &Message) {
        if request == R::RESET_DEVICE {
            self.config.clone_from(&self.script.config);
        }
        let (head, data) = message.payload.split_at(message.payload.len().min(12));
        if request == R::SET_CONFIG {
            let at = word(head, 0);
            self.config[at..at + data.len()].copy_from_slice(data);
        }
    }

    /// The right answer, if there is one to be given; or a wrong one.
    fn answer(&self, request: R, message: &Message, wrong: bool) -> Option<Vec<u8>> {
        let number = |value: u64| Some(if wrong { 0 } else { value }.to_ne_bytes().to_vec());
        match request {
            R::GET_FEATURES => number(self.script.features),
            R::GET_PROTOCOL_FEATURES => number(self.script.protocol),
            R::GET_QUEUE_NUM => number(self.script.queues),
            R::GET_MAX_MEM_SLOTS => number(32),
            R::GET_CONFIG => {
                let head = &message.payload[..12];
                let (offset, size) = (word(head, 0), word(head, 4));
                Some(match self.config.get(offset..offset + size) {
                    Some(bytes) if !wrong => [head, bytes].concat(),
                    _ => Vec::new(),
                })
            }
            R::GET_VRING_BASE => {
                let index = u32::from(message.payload[0] ^ u8::from(wrong));
                let base = u32::from(self.base.load(Ordering::Relaxed));
                Some([index, base].map(u32::to_ne_bytes).concat())
            }
            R::GET_INFLIGHT_FD => {
                let size = if wrong { 0 } else { 4096 };
                let region = VhostUserInflight::new(size, 0, 1, 64);
                Some(region.as_slice().to_vec())
            }
            _ if message.header.need_reply => Some(u64::from(wrong).to_ne_bytes().to_vec()),
            _ => None,
        }
    }
}

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Ack, Client};

    #[test]
    fn a_script_without_a_word_is_a_good_back_end() {
        let (stream, running) = Scripted::new(0x5, 4, vec![7, 8, 9]).start();
        let mut client = Client::new(stream);
        assert_eq!(client.negotiate(0xf).unwrap(), 0x5 | PROTOCOL_FEATURES);
        assert_eq!(client.config(1, 2).unwrap(), [8, 9]);
        assert_eq!(client.stop_ring(3).unwrap(), 0);
        drop(client);
        let numbers = running.messages().into_iter();
        let numbers: Vec<_> = numbers.map(|message| message.header.request).collect();
        assert_eq!(numbers, [1, 15, 16, 3, 2, 24, 11]);
    }

    #[test]
    fn a_script_answers_as_it_says() {
        let script = Scripted::new(0, 1, vec![])
            .on(R::SET_VRING_NUM, Fault::Value)
            .on(R::GET_QUEUE_NUM, Fault::WithFds(vec![1, 2, 3], 2))
            .on(R::GET_MAX_MEM_SLOTS, Fault::Raw(b"nonsense here".to_vec()))
            .on_after(R::SET_VRING_BASE, 1, Fault::Close);
        let (stream, _running) = script.clone().start();
        let mut client = Client::new(stream);
        client.negotiate(0).unwrap();
        let num = client.vring_state(R::SET_VRING_NUM, 0, 8).unwrap();
        assert_eq!(num, Ack::Refused);
        let reply = client.ask(R::GET_QUEUE_NUM, &[]).unwrap();
        assert_eq!((reply.payload.len(), reply.fds.len()), (3, 2));
        for ack in [Ack::Done, Ack::CutOff] {
            let base = client.vring_state(R::SET_VRING_BASE, 0, 8).unwrap();
            assert_eq!(base, ack);
        }
        let (stream, _running) = script.start();
        let client = Client::new(stream);
        assert!(client.ask(R::GET_MAX_MEM_SLOTS, &[]).is_err());
    }
}
