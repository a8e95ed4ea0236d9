//! `sink`: takes a blast of numbered datagrams, one socket and thread for each stream, checks every byte,
//! and counts what was lost, came late or came twice, until the sender says "done" on port 9.

use crate::batch::Batch;
use crate::options::{Options, Outcome, rate};
use crate::raw::Raw;
use crate::udp;
use guest_logic::datagram::{self, Body, CONTROL_PORT, FIRST_PORT, OF_BLAST, SEGMENTS_STREAM};
use guest_logic::flow::Flow;
use guest_logic::packet::{self, End, UDP_HEADERS};
use guest_logic::segment::Segment;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const LOOK: Duration = Duration::from_millis(50);
/// From the first "done" to an answer, and from the last answer to the end.
const SETTLE: Duration = Duration::from_millis(100);
const LINGER: Duration = Duration::from_millis(700);

/// What one thread counts.
struct Count {
    flow: Flow,
    bytes: u64,
    wrong: u64,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Count {
    fn new() -> Mutex<Box<Count>> {
        Mutex::new(Box::new(Count {
            flow: Flow::new(),
            bytes: 0,
            wrong: 0,
            first: None,
            last: None,
        }))
    }

    fn time(&mut self, length: usize) {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
        self.bytes += length as u64;
    }

    fn note_wrong(&mut self, what: &dyn std::fmt::Debug) {
        self.wrong += 1;
        if self.wrong < 5 {
            eprintln!("wrong: {what:?}");
        }
    }

    // Returns the answer that the sender wants.
    fn datagram(&mut self, payload: &[u8]) -> Option<[u8; 8]> {
        match datagram::check(payload) {
            Ok(header) => {
                self.time(payload.len());
                self.flow.note(header.number);
                let every = u64::from(header.acknowledge);
                (every != 0 && self.flow.received.is_multiple_of(every))
                    .then(|| self.flow.next.to_le_bytes())
            }
            Err(wrong) => {
                self.note_wrong(&wrong);
                None
            }
        }
    }

    // Returns the answer that the sender wants.
    fn segment(&mut self, segment: &Segment, data: &[u8]) -> Option<[u8; 8]> {
        let ahead = segment.number.wrapping_sub(self.flow.next as u16) as i16;
        let number = self.flow.next.saturating_add_signed(i64::from(ahead));
        let body = Body::new(SEGMENTS_STREAM + OF_BLAST, u64::from(segment.number));
        if let Some(at) = body.first_wrong(data, u64::from(segment.offset)) {
            self.note_wrong(&(segment, at));
            return None;
        }
        self.time(data.len());
        if u64::from(segment.offset) + data.len() as u64 != u64::from(segment.total) {
            return None;
        }
        self.flow.note(number);
        let every = u64::from(segment.acknowledge);
        (every != 0 && self.flow.received.is_multiple_of(every))
            .then(|| self.flow.next.to_le_bytes())
    }
}

fn lock(count: &Mutex<Box<Count>>) -> std::sync::MutexGuard<'_, Box<Count>> {
    count.lock().unwrap_or_else(PoisonError::into_inner)
}

fn words(counts: &[Mutex<Box<Count>>], sent: u64) -> (String, u64) {
    let (mut received, mut late, mut twice, mut least) = (0, 0, 0, 0);
    let (mut bytes, mut wrong, mut first, mut last) = (0, 0, None, None);
    for count in counts {
        let count = lock(count);
        received += count.flow.received;
        late += count.flow.reordered;
        twice += count.flow.duplicates;
        least += count.flow.next;
        bytes += count.bytes;
        wrong += count.wrong;
        first = [first, count.first].into_iter().flatten().min();
        last = [last, count.last].into_iter().flatten().max();
    }
    let elapsed = match (first, last) {
        (Some(first), Some(last)) => last.duration_since(first),
        _ => Duration::ZERO,
    };
    let sent = sent.max(least);
    let line = format!(
        "sent={sent} received={received} lost={} reordered={late} duplicates={twice} wrong={wrong} bytes={bytes} \
         ns={} pps={} bps={}",
        sent.saturating_sub(received),
        elapsed.as_nanos(),
        rate(received, elapsed),
        rate(bytes * 8, elapsed)
    );
    (line, wrong)
}

fn datagrams(
    socket: &UdpSocket,
    count: &Mutex<Box<Count>>,
    stop: &AtomicBool,
) -> Result<(), String> {
    let mut buffer = vec![0; 65_536];
    let mut connected = false;
    while !stop.load(Ordering::Relaxed) && !connected {
        if let Some((length, from)) = udp::receive(socket, &mut buffer)? {
            if let Some(answer) = lock(count).datagram(&buffer[..length]) {
                let _ = socket.send_to(&answer, from);
            }
            // A stream has one sender. The kernel finds a connected socket without looking up a route.
            connected = datagram::check(&buffer[..length]).is_ok() && socket.connect(from).is_ok();
        }
    }
    let mut batch = Batch::new();
    while !stop.load(Ordering::Relaxed) {
        batch.receive(socket)?;
        let mut count = lock(count);
        for datagram in batch.datagrams() {
            if let Some(answer) = count.datagram(datagram) {
                let _ = socket.send(&answer);
            }
        }
    }
    Ok(())
}

fn segments(mut raw: Raw, count: &Mutex<Box<Count>>, stop: &AtomicBool) -> Result<(), String> {
    while !stop.load(Ordering::Relaxed) {
        let Some((offload, frame)) = raw.receive(LOOK)? else {
            continue;
        };
        let answer = match Segment::parse(frame, &offload) {
            Ok(Some((segment, data))) => lock(count).segment(&segment, data),
            Ok(None) => None,
            Err(wrong) => {
                lock(count).note_wrong(&wrong);
                None
            }
        };
        if let Some(answer) = answer {
            let (guest, own) = packet::ends(frame);
            let at = |end: End| End {
                port: FIRST_PORT,
                ..end
            };
            let mut frame = vec![0; UDP_HEADERS + answer.len()];
            frame[UDP_HEADERS..].copy_from_slice(&answer);
            let offload = packet::udp(&mut frame, &at(own), &at(guest), false);
            // A lost answer is made up for by the next one.
            raw.send(&offload, &frame)?;
        }
    }
    Ok(())
}

// Listens on the control port until the end.
fn control(
    options: &Options,
    socket: &UdpSocket,
    counts: &[Mutex<Box<Count>>],
    sent: &AtomicU64,
) -> Result<(), String> {
    let deadline = options.deadline()?;
    let mut first: Option<Instant> = None;
    let mut answered: Option<Instant> = None;
    let mut buffer = [0; 2048];
    // Never before it has answered: a guest may be slow to repeat its question.
    while Instant::now() < deadline && answered.is_none_or(|at| at.elapsed() < LINGER) {
        let Some((length, from)) = udp::receive(socket, &mut buffer)? else {
            continue;
        };
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if text.starts_with("hello") {
            let _ = socket.send_to(b"ready", from);
        } else if text.starts_with("stop") || text.starts_with("done") {
            let said = udp::word(&text, "sent").unwrap_or(0);
            sent.store(said, Ordering::Relaxed);
            if first.get_or_insert_with(Instant::now).elapsed() >= SETTLE {
                let _ = socket.send_to(words(counts, said).0.as_bytes(), from);
                answered = Some(Instant::now());
            }
        }
    }
    Ok(())
}

/// `sink`
pub fn run(options: &Options) -> Outcome {
    let streams = options.number("streams", 1)?.clamp(1, 64) as u16;
    let sockets = (0..streams)
        .map(|stream| udp::open(options.bind()?, FIRST_PORT + stream, LOOK))
        .collect::<Result<Vec<_>, _>>()?;
    let listener = udp::open(options.bind()?, CONTROL_PORT, LOOK)?;
    let raw = match options.get("tap") {
        Some(tap) => Some(Raw::open(tap, true)?),
        None => None,
    };
    let counts: Vec<_> = (0..=streams).map(|_| Count::new()).collect();
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    println!("PEER ready");
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (socket, count) in sockets.iter().zip(&counts) {
            let stop = &stop;
            threads.push(scope.spawn(move || datagrams(socket, count, stop)));
        }
        if let (Some(raw), Some(count)) = (raw, counts.last()) {
            let stop = &stop;
            threads.push(scope.spawn(move || segments(raw, count, stop)));
        }
        let outcome = control(options, &listener, &counts, &sent);
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| "reason=panic".to_owned())??;
        }
        outcome
    })?;
    match words(&counts, sent.load(Ordering::Relaxed)) {
        (line, 0) => Ok(line),
        (line, _) => Err(format!("reason=wrong-data {line}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_that_is_slow_to_ask_again_is_answered() {
        let socket = udp::open(std::net::Ipv4Addr::LOCALHOST, 0, LOOK).unwrap();
        let to = socket.local_addr().unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let listening = thread::spawn(move || {
            let options = Options::parse(&[]).unwrap();
            control(&options, &socket, &[Count::new()], &AtomicU64::new(0))
        });
        sender.send_to(b"done sent=3", to).unwrap();
        thread::sleep(SETTLE + LINGER + 5 * LOOK);
        sender.send_to(b"done sent=3", to).unwrap();
        let mut answer = [0; 2048];
        let length = sender.recv(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        assert_eq!(udp::word(&answer, "lost"), Some(3), "{answer}");
        listening.join().unwrap().unwrap();
    }
}
