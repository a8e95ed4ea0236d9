//! The API as its clients see it: real sockets, and a VM that answers from a script.
//! What it answers is checked against the description that it serves.

mod asking;
mod crowds;
mod reading;
mod schema;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;

use super::call::{Call, Refusal, Reply, Ticket};
use super::model::{
    Change, Device, DeviceState, Exactness, Explanation, QueueCounters, Refused, Resized, Standby,
    SwapStep, Vm, VmState,
};
use super::{Api, openapi};

/// An API in a folder of its own.
struct Served {
    folder: TempDir,
    api: Api,
    now: Instant,
    /// Every call so far.
    calls: Vec<Call>,
}

impl Served {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut api = Api::listen(&folder.path().join("api")).unwrap();
        let now = Instant::now();
        for change in changes() {
            api.tell(change, now);
        }
        let calls = Vec::new();
        Self {
            folder,
            api,
            now,
            calls,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("api")
    }

    fn connect(&self) -> Client {
        let socket = UnixStream::connect(self.path()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let heard = Vec::new();
        Client { socket, heard }
    }

    /// A turn of the loop: everybody is seen to, and every call answered.
    fn turn(&mut self) {
        for (ticket, call) in self.api.attend(self.now) {
            self.calls.push(call.clone());
            self.answer(ticket, call);
        }
    }

    fn answer(&mut self, ticket: Ticket, call: Call) {
        self.api.answer(ticket, reply(call), self.now);
    }

    /// Sends a request and returns the status and the body of its response.
    fn ask(&mut self, request: &str) -> (u16, String) {
        let mut client = self.connect();
        client.say(request);
        self.response(&mut client)
    }

    /// The next response to a client.
    fn response(&mut self, client: &mut Client) -> (u16, String) {
        for _ in 0..100 {
            self.turn();
            client.listen();
            if let Some(response) = client.response() {
                return response;
            }
        }
        panic!(
            "no response, but {:?}",
            String::from_utf8_lossy(&client.heard)
        );
    }

    /// Asks for this; the answer must be as the description says.
    fn get(&mut self, path: &str) -> Value {
        self.asks("GET", path)
    }

    fn asks(&mut self, method: &str, path: &str) -> Value {
        let (status, body) = self.ask(&format!("{method} {path} HTTP/1.1\r\n\r\n"));
        let body = match body.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap(),
        };
        schema::check(&openapi::description(), method, path, status, &body);
        body
    }
}

/// Somebody who uses the API.
struct Client {
    socket: UnixStream,
    heard: Vec<u8>,
}

impl Client {
    fn say(&mut self, text: &str) {
        self.socket.write_all(text.as_bytes()).unwrap();
    }

    /// Takes what there is. Returns whether the connection has ended.
    fn listen(&mut self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match self.socket.read(&mut bytes) {
                Ok(0) => return true,
                Ok(count) => self.heard.extend(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return true,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The first response that was heard whole.
    fn response(&mut self) -> Option<(u16, String)> {
        let text = String::from_utf8(self.heard.clone()).unwrap();
        let (head, rest) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        let length = length.map_or(0, |length| length.parse().unwrap());
        let body = rest.get(..length)?.to_owned();
        self.heard.drain(..head.len() + 4 + length);
        Some((status, body))
    }
}

fn changes() -> [Change; 2] {
    let vm = Change::Vm {
        state: VmState::Running,
        reason: None,
    };
    [vm, device(DeviceState::Running)]
}

fn device(state: DeviceState) -> Change {
    Change::Device {
        device: "disk0".into(),
        state,
        reason: None,
        pid: Some(7),
        restarts: 0,
    }
}

fn vm() -> Vm {
    let device = |id: &str, counters| Device {
        id: id.into(),
        kind: "blk".into(),
        state: DeviceState::Running,
        reason: None,
        pid: Some(7),
        program: "outboard-blk".into(),
        version: None,
        features: Some("0x1".into()),
        queues: 2,
        standby: Standby::Ready,
        restarts: 3,
        last_error: Some("it died".into()),
        last_outage_us: Some(1_500),
        refused_requests: 1,
        last_refused: Some(Refused {
            queue: 0,
            head: 3,
            request: "a flush".into(),
            deaths: 3,
        }),
        counters,
    };
    let counters = QueueCounters {
        requests: Some(12),
        latency_sum_us: Some(2_000_000),
        ..QueueCounters::default()
    };
    Vm {
        name: Some("web".into()),
        version: "0".into(),
        state: VmState::Running,
        reason: None,
        pid: 1,
        machine_pid: None,
        uptime_ms: 2_500,
        vcpus: 2,
        memory: 1 << 30,
        devices: vec![
            device("disk0", vec![counters, QueueCounters::default()]),
            device("disk1", Vec::new()),
        ],
    }
}

fn reply(call: Call) -> Reply {
    let exactness = |exact| Exactness {
        exact,
        why: "it is so".into(),
    };
    let unknown = |id: String| Refusal::NoSuchDevice(id, vec!["disk0".into(), "disk1".into()]);
    match call {
        Call::Status => Reply::Status(Box::new(vm())),
        Call::Restart(id) | Call::Explain(id) if !id.starts_with("disk") => {
            Reply::Refused(unknown(id))
        }
        Call::Explain(device) => Reply::Explanation(Explanation {
            device,
            recovery: exactness(true),
            swap: exactness(false),
        }),
        Call::Swap(..) => Reply::Refused(Refusal::NotSwapped(
            "it does not fit".into(),
            SwapStep::Prepare,
            None,
        )),
        Call::Resize(_, size) => Reply::Resized(Resized {
            size: size.unwrap_or(512),
        }),
        Call::Restart(_)
        | Call::Shutdown
        | Call::Link(..)
        | Call::PauseDevice(_)
        | Call::ResumeDevice(_) => Reply::Done,
        Call::Pause => Reply::Refused(Refusal::NotNow("not yet".into())),
        Call::Resume => Reply::Refused(Refusal::NotNow("it runs".into())),
    }
}
