//! A back-end that does as it is told, for the tests: correct, but for one
//! fault at one request.

use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use outboard_protocol::Deadline;
use outboard_protocol::devices::BlkConfig;
use outboard_protocol::wire::{Connection, Header, Message};
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures as Protocol};

/// What goes wrong at the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection ends instead of an answer.
    Close,
    /// No answer at all.
    Silence,
    /// Half a header, then silence.
    Half,
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
    /// A value that means failure, or makes no sense.
    Value,
    /// The right answer, so late.
    Late(Duration),
    /// The right answer, but nothing is done.
    Idle,
}

/// What a fake has.
#[derive(Clone, Debug)]
pub(crate) struct Fake {
    /// Its virtio features.
    pub(crate) features: u64,
    /// Its protocol features.
    pub(crate) protocol: Protocol,
    /// Number of queues.
    pub(crate) queues: u64,
    /// Its configuration.
    pub(crate) config: Vec<u8>,
    /// What goes wrong, and where.
    pub(crate) fault: Option<(FrontendReq, Fault)>,
    /// How often nothing goes wrong there before.
    pub(crate) fault_after: u32,
}

impl Default for Fake {
    fn default() -> Self {
        let config = BlkConfig {
            capacity: 2048,
            num_queues: 4,
            ..BlkConfig::default()
        };
        Self {
            features: 1 << 30 | 1 << 32 | 0x1000,
            protocol: Protocol::from_bits_truncate(0xb22b | Protocol::CONFIG.bits()),
            queues: 4,
            config: config.to_bytes().to_vec(),
            fault: None,
            fault_after: 0,
        }
    }
}

/// What the test can see and do while the fake serves.
pub(crate) struct Running {
    /// The requests, as they came, with their descriptors.
    pub(crate) seen: Receiver<(FrontendReq, Message)>,
    /// The channel to the front-end, when it came.
    pub(crate) channel: Receiver<OwnedFd>,
    base: Arc<AtomicU16>,
    stream: UnixStream,
    thread: JoinHandle<()>,
}

impl Running {
    /// Waits until a request of this kind has come.
    pub(crate) fn wait_for(&self, request: FrontendReq) -> Message {
        loop {
            let (seen, message) = self.seen.recv_timeout(Duration::from_secs(60)).unwrap();
            if seen == request {
                return message;
            }
        }
    }

    /// Rings that are stopped from now on are so at this index, instead of 0.
    pub(crate) fn stop_at(&self, base: u16) {
        self.base.store(base, Ordering::Relaxed);
    }

    /// Ends the connection, as a back-end that dies does.
    pub(crate) fn hang_up(self) {
        self.stream.shutdown(Shutdown::Both).unwrap();
        self.join();
    }

    /// Waits for the end of the connection.
    pub(crate) fn join(self) {
        self.thread.join().unwrap();
    }
}

impl Fake {
    /// Serves until the connection ends; returns the front-end's socket.
    pub(crate) fn start(self) -> (UnixStream, Running) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (seen_in, seen) = channel();
        let (channel_in, channel) = channel();
        let base = Arc::new(AtomicU16::new(0));
        let base_too = Arc::clone(&base);
        let stream = ours.try_clone().unwrap();
        let serve = move || {
            let ending = ours.try_clone().unwrap();
            self.serve(ours, &seen_in, &channel_in, &base_too);
            // There is a copy, to hang up.
            let _ = ending.shutdown(Shutdown::Both);
        };
        let thread = std::thread::spawn(serve);
        let running = Running {
            seen,
            channel,
            base,
            stream,
            thread,
        };
        (theirs, running)
    }

    fn serve(
        &self,
        stream: UnixStream,
        seen: &Sender<(FrontendReq, Message)>,
        channel: &Sender<OwnedFd>,
        base: &AtomicU16,
    ) {
        let connection = Connection::new(stream.try_clone().unwrap());
        let mut config = self.config.clone();
        let mut spared = self.fault_after;
        while let Ok(mut message) = connection.recv(long()) {
            let request = FrontendReq::try_from(message.header.request).unwrap();
            if request == FrontendReq::SET_BACKEND_REQ_FD {
                let _ = channel.send(message.fds.pop().unwrap());
            }
            let mut fault = self.fault.filter(|(at, _)| *at == request).map(|(_, f)| f);
            if fault.is_some() && spared > 0 {
                (fault, spared) = (None, spared - 1);
            }
            match fault {
                Some(Fault::Close) => return,
                Some(Fault::Silence) => {}
                Some(Fault::Half) => {
                    use std::io::Write;
                    (&stream).write_all(&[1, 0, 0, 0, 5]).unwrap();
                }
                fault => {
                    if let Some(Fault::Late(time)) = fault {
                        std::thread::sleep(time);
                    }
                    if !matches!(fault, Some(Fault::Idle | Fault::Value)) {
                        self.configure(request, &message, &mut config);
                    }
                    if let Some(mut answer) = self.answer(request, &message, &config) {
                        if request == FrontendReq::GET_VRING_BASE {
                            let base = base.load(Ordering::Relaxed);
                            answer[4..6].copy_from_slice(&base.to_ne_bytes());
                        }
                        send(&connection, request, answer, fault);
                    }
                }
            }
            let _ = seen.send((request, message));
        }
    }

    /// What is written stays until a reset.
    fn configure(&self, request: FrontendReq, message: &Message, config: &mut Vec<u8>) {
        if request == FrontendReq::RESET_DEVICE {
            config.clone_from(&self.config);
        }
        let (head, data) = message.payload.split_at(message.payload.len().min(12));
        if request == FrontendReq::SET_CONFIG {
            let at = u32::from_ne_bytes(head[..4].try_into().unwrap()) as usize;
            config[at..at + data.len()].copy_from_slice(data);
        }
    }

    /// The right answer, if there is one to be given.
    fn answer(&self, request: FrontendReq, message: &Message, config: &[u8]) -> Option<Vec<u8>> {
        let wrong = self.fault == Some((request, Fault::Value));
        let number = |value: u64| Some(if wrong { 0 } else { value }.to_ne_bytes().to_vec());
        match request {
            FrontendReq::GET_FEATURES => number(self.features),
            FrontendReq::GET_PROTOCOL_FEATURES => number(self.protocol.bits()),
            FrontendReq::GET_QUEUE_NUM => number(self.queues),
            FrontendReq::GET_MAX_MEM_SLOTS => number(32),
            FrontendReq::GET_CONFIG => {
                let mut payload = message.payload[..12].to_vec();
                let at = |i: usize| u32::from_ne_bytes(payload[i..i + 4].try_into().unwrap());
                let (offset, size) = (at(0) as usize, at(4) as usize);
                match config.get(offset..offset + size) {
                    Some(bytes) if !wrong => payload.extend(bytes),
                    _ => payload.clear(),
                }
                Some(payload)
            }
            FrontendReq::GET_VRING_BASE => {
                let index = message.payload[0] ^ u8::from(wrong);
                Some(vec![index, 0, 0, 0, 0, 0, 0, 0])
            }
            FrontendReq::GET_INFLIGHT_FD => {
                let mut payload = vec![0; 20];
                payload[0] = u8::from(!wrong);
                Some(payload)
            }
            _ if message.header.need_reply => Some(u64::from(wrong).to_ne_bytes().to_vec()),
            _ => None,
        }
    }
}

fn send(connection: &Connection, request: FrontendReq, mut payload: Vec<u8>, fault: Option<Fault>) {
    // Another one for each question.
    let file = memfd_create(c"fake", MFdFlags::MFD_CLOEXEC).unwrap();
    let mut fds = Vec::new();
    if request == FrontendReq::GET_INFLIGHT_FD {
        fds.push(file.as_fd());
    }
    let mut header = Header::reply_to(request.into());
    match fault {
        Some(Fault::Short) => drop(payload.pop()),
        Some(Fault::Long) => payload.extend([0; 8]),
        Some(Fault::Other) => header.request = FrontendReq::SEND_RARP.into(),
        Some(Fault::NoReply) => header.reply = false,
        Some(Fault::Fd) => fds.push(file.as_fd()),
        _ => {}
    }
    let _ = connection.send(header, &payload, &fds, long());
}

fn long() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}
