//! `ping`: ICMP echo requests, or with `--udp 1` datagrams to port 7, one after the other, and the time that
//! each took.

use crate::options::{Options, Outcome, rate};
use crate::{raw, udp};
use guest_logic::datagram::{self, Body, ECHO_PORT, HEADER, Header};
use guest_logic::histogram::Histogram;
use guest_logic::packet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

const LOST: Duration = Duration::from_secs(1);
/// What identifies our echo requests.
const IDENTITY: u16 = 0x4f42;

// One kind of question, and how its answer is recognised.
trait Kind {
    fn question(&self, number: u64, size: usize) -> Vec<u8>;
    // `None`: of another.
    fn is_right(&self, question: &[u8], answer: &[u8]) -> Option<bool>;
    fn address(&self, to: Ipv4Addr) -> SocketAddr;
}

struct Icmp;

impl Kind for Icmp {
    fn question(&self, number: u64, size: usize) -> Vec<u8> {
        let mut message = vec![0; 8 + size];
        message[0] = 8;
        message[4..6].copy_from_slice(&IDENTITY.to_be_bytes());
        message[6..8].copy_from_slice(&(number as u16).to_be_bytes());
        Body::new(0, number).fill(&mut message[8..], 0);
        let checksum = !(packet::sum(&message, 0) as u16);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        message
    }

    fn is_right(&self, question: &[u8], answer: &[u8]) -> Option<bool> {
        let header = usize::from(answer.first()? & 15) * 4;
        let message = answer.get(header..).filter(|message| message.len() >= 8)?;
        if message[0] != 0 || message[4..8] != question[4..8] {
            return None;
        }
        Some(message[8..] == question[8..] && packet::sum(message, 0) == 0xffff)
    }

    fn address(&self, to: Ipv4Addr) -> SocketAddr {
        (to, 0).into()
    }
}

struct Udp;

impl Kind for Udp {
    fn question(&self, number: u64, size: usize) -> Vec<u8> {
        let mut payload = vec![0; size.max(HEADER)];
        let header = Header {
            number,
            stream: 0,
            acknowledge: 0,
        };
        datagram::write(&mut payload, &header);
        payload
    }

    fn is_right(&self, question: &[u8], answer: &[u8]) -> Option<bool> {
        match datagram::check(answer) {
            Ok(header) if question[..8] != header.number.to_le_bytes() => None,
            Ok(_) => Some(question == answer),
            Err(_) => Some(false),
        }
    }

    fn address(&self, to: Ipv4Addr) -> SocketAddr {
        (to, ECHO_PORT).into()
    }
}

// Whether the right answer came; `None`: nothing did.
fn wait(socket: &UdpSocket, kind: &dyn Kind, question: &[u8]) -> Result<Option<bool>, String> {
    let end = Instant::now() + LOST;
    let mut buffer = vec![0; 65_536];
    while Instant::now() < end {
        if let Some((length, _)) = udp::receive(socket, &mut buffer)?
            && let Some(right) = kind.is_right(question, &buffer[..length])
        {
            return Ok(Some(right));
        }
    }
    Ok(None)
}

/// `ping`
pub fn run(options: &Options) -> Outcome {
    let to = options.address("to")?;
    let requests = options.number("requests", 10)?;
    let size = options.number("size", 56)?.min(65_000) as usize;
    let deadline = options.deadline()?;
    let datagrams = options.number("udp", 0)? == 1;
    let (socket, kind): (_, &dyn Kind) = if datagrams {
        (udp::open(options.bind()?, 0, LOST)?, &Udp)
    } else {
        let socket = raw::icmp()?;
        let timeout = socket.set_read_timeout(Some(LOST));
        timeout.map_err(|error| format!("reason=icmp error=\"{error}\""))?;
        (socket, &Icmp)
    };
    let mut latency = Box::new(Histogram::new());
    let (mut asked, mut lost, mut wrong) = (0, 0, 0);
    let began = Instant::now();
    while asked < requests && Instant::now() < deadline {
        let question = kind.question(asked, size);
        let start = Instant::now();
        asked += 1;
        // An unreachable address shows as a missing answer.
        let _ = socket.send_to(&question, kind.address(to));
        match wait(&socket, kind, &question)? {
            Some(true) => latency.record(start.elapsed().as_nanos() as u64),
            Some(false) => wrong += 1,
            None => lost += 1,
        }
    }
    let line = format!(
        "size={size} requests={asked} answered={} lost={lost} wrong={wrong} tps={} p50_ns={} p99_ns={} max_ns={}",
        latency.total(),
        rate(latency.total(), began.elapsed()),
        latency.per_mille(500),
        latency.per_mille(990),
        latency.highest()
    );
    match (latency.total(), wrong) {
        (0, _) => Err(format!("reason=no-answer {line}")),
        (_, 0) => Ok(line),
        _ => Err(format!("reason=wrong-data {line}")),
    }
}
