//! A back-end that answers as a test says, on a thread of its own: a front-end
//! is tested against every answer that a good back-end would not give.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use outboard_protocol::Deadline;
use outboard_protocol::wire::{Connection, Header, Message};
use vhost::vhost_user::message::{
    FrontendReq, VhostUserInflight, VhostUserProtocolFeatures, VhostUserVringState,
};
use vm_memory::ByteValued;

use crate::client::PROTOCOL_FEATURES;
use crate::memory::sealed;

/// What the back-end does upon a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Acknowledges it if asked, with this number.
    Acknowledge(u64),
    /// Replies with this payload.
    Reply(Vec<u8>),
    /// Replies with this payload and so many descriptors.
    ReplyWithFds(Vec<u8>, usize),
    /// Sends these bytes, whatever they are.
    Raw(Vec<u8>),
    /// Sends these bytes one at a time.
    Dribble(Vec<u8>),
    /// Says nothing and goes on listening.
    Ignore,
    /// Closes the connection.
    Close,
}

/// A back-end to be started.
#[derive(Clone, Debug)]
pub struct Scripted {
    features: u64,
    protocol: u64,
    queues: u64,
    config: Vec<u8>,
    actions: BTreeMap<u32, Action>,
}

/// One that runs.
#[derive(Debug)]
pub struct Running {
    thread: JoinHandle<Vec<Message>>,
}

impl Running {
    /// Every message that it received, once the front-end has gone.
    ///
    /// # Panics
    /// When its thread did.
    pub fn messages(self) -> Vec<Message> {
        match self.thread.join() {
            Ok(messages) => messages,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Scripted {
    /// A well-behaved back-end that offers these device features (the protocol
    /// features are added), queues and this configuration.
    pub fn new(features: u64, queues: u16, config: Vec<u8>) -> Self {
        let protocol = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        Self {
            features: features | PROTOCOL_FEATURES,
            protocol: protocol.bits(),
            queues: queues.into(),
            config,
            actions: BTreeMap::new(),
        }
    }

    /// Offers no protocol features, nor anything else beside what it was made with.
    pub fn plain(self) -> Self {
        let features = self.features & !PROTOCOL_FEATURES;
        Self { features, ..self }
    }

    /// Offers other protocol features.
    pub fn protocol(self, protocol: u64) -> Self {
        Self { protocol, ..self }
    }

    /// Acts otherwise upon this request.
    pub fn on(mut self, request: FrontendReq, action: Action) -> Self {
        self.actions.insert(request.into(), action);
        self
    }

    /// Starts it; returns the front-end's end of the connection. It ends when
    /// that is closed, or after 60 seconds of silence.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub fn start(self) -> std::io::Result<(UnixStream, Running)> {
        let (ours, theirs) = UnixStream::pair()?;
        let thread = std::thread::spawn(move || self.run(ours));
        Ok((theirs, Running { thread }))
    }

    /// Serves the first who connects to a socket at `path`.
    ///
    /// # Errors
    /// Those of bind(2).
    pub fn listen(self, path: &Path) -> std::io::Result<Running> {
        let listener = UnixListener::bind(path)?;
        let thread = std::thread::spawn(move || match listener.accept() {
            Ok((stream, _)) => self.run(stream),
            Err(_) => Vec::new(),
        });
        Ok(Running { thread })
    }

    fn run(self, stream: UnixStream) -> Vec<Message> {
        let mut received = Vec::new();
        let Ok(raw) = stream.try_clone() else {
            return received;
        };
        let connection = Connection::new(stream);
        let patience = || Deadline::after(Duration::from_secs(60));
        while let Ok(message) = connection.recv(patience()) {
            let header = message.header;
            let action = self.action(&message);
            received.push(message);
            if self.act(&connection, &raw, header, action).is_none() {
                break;
            }
        }
        received
    }

    /// `None` ends the connection.
    fn act(
        &self,
        connection: &Connection,
        mut raw: &UnixStream,
        header: Header,
        action: Action,
    ) -> Option<()> {
        let reply = |payload: &[u8], fds: usize| {
            let file = sealed(4096).ok()?;
            let fds = vec![file.as_fd(); fds];
            let header = Header::reply_to(header.request);
            connection.send(header, payload, &fds, crate::soon()).ok()
        };
        match action {
            Action::Acknowledge(number) if header.need_reply => reply(&number.to_ne_bytes(), 0),
            Action::Acknowledge(_) | Action::Ignore => Some(()),
            Action::Reply(payload) => reply(&payload, 0),
            Action::ReplyWithFds(payload, fds) => reply(&payload, fds),
            Action::Raw(bytes) => raw.write_all(&bytes).ok(),
            Action::Dribble(bytes) => bytes.iter().try_for_each(|byte| {
                std::thread::sleep(Duration::from_millis(1));
                raw.write_all(&[*byte]).ok()
            }),
            Action::Close => None,
        }
    }

    fn action(&self, message: &Message) -> Action {
        let number = message.header.request;
        if let Some(action) = self.actions.get(&number) {
            return action.clone();
        }
        let reply = |number: u64| Action::Reply(number.to_ne_bytes().to_vec());
        match FrontendReq::try_from(number) {
            Ok(FrontendReq::GET_FEATURES) => reply(self.features),
            Ok(FrontendReq::GET_PROTOCOL_FEATURES) => reply(self.protocol),
            Ok(FrontendReq::GET_QUEUE_NUM) => reply(self.queues),
            Ok(FrontendReq::GET_MAX_MEM_SLOTS) => reply(32),
            Ok(FrontendReq::GET_CONFIG) => Action::Reply(self.config_reply(&message.payload)),
            Ok(FrontendReq::GET_INFLIGHT_FD) => {
                let region = VhostUserInflight::new(4096, 0, 1, 64);
                Action::ReplyWithFds(region.as_slice().to_vec(), 1)
            }
            Ok(FrontendReq::GET_VRING_BASE) => {
                let asked = message.body::<VhostUserVringState>().unwrap_or_default();
                let state = VhostUserVringState::new(asked.index, 0);
                Action::Reply(state.as_slice().to_vec())
            }
            Ok(_) => Action::Acknowledge(0),
            Err(_) => Action::Acknowledge(1),
        }
    }

    /// The request's bytes with the configuration in place of its payload.
    fn config_reply(&self, request: &[u8]) -> Vec<u8> {
        let mut reply = request.to_vec();
        let offset = request
            .first_chunk::<4>()
            .map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        let config = self.config.iter().skip(offset as usize);
        for (to, from) in reply.iter_mut().skip(12).zip(config) {
            *to = *from;
        }
        reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Ack, Client};

    #[test]
    fn a_script_without_a_word_is_a_good_back_end() {
        let (stream, running) = Scripted::new(0x5, 4, vec![7, 8, 9]).start().unwrap();
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
        use FrontendReq as R;
        let script = Scripted::new(0, 1, vec![])
            .on(R::SET_VRING_NUM, Action::Acknowledge(5))
            .on(R::GET_QUEUE_NUM, Action::ReplyWithFds(vec![1, 2, 3], 2))
            .on(R::GET_MAX_MEM_SLOTS, Action::Raw(b"nonsense here".to_vec()))
            .on(R::SET_VRING_BASE, Action::Close);
        let (stream, _running) = script.clone().start().unwrap();
        let mut client = Client::new(stream);
        client.negotiate(0).unwrap();
        let num = client.vring_state(R::SET_VRING_NUM, 0, 8).unwrap();
        assert_eq!(num, Ack::Refused);
        let reply = client.ask(R::GET_QUEUE_NUM, &[]).unwrap();
        assert_eq!((reply.payload.len(), reply.fds.len()), (3, 2));
        let base = client.vring_state(R::SET_VRING_BASE, 0, 8).unwrap();
        assert_eq!(base, Ack::CutOff);
        let (stream, _running) = script.start().unwrap();
        let client = Client::new(stream);
        assert!(client.ask(R::GET_MAX_MEM_SLOTS, &[]).is_err());
    }
}
