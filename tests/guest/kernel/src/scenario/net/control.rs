//! The control port: a peer says "hello" and is answered at once, which shows that the guest is up and each
//! knows where the other is; it says "stop" or "done sent=N" and gets what was counted as the answer, in words. A scenario that
//! was told to end goes on for a moment: for datagrams that are still under way in other queues, and for the peer's
//! repetition of a question whose answer was lost. It never ends before it has answered: a peer may be slow to repeat.
//!
//! ```text
//! running --first word--> settling --SETTLE ms, a word--> answering --LINGER ms without a word--> over
//! ```

use crate::net::{Port, Room, port::Out};
use crate::platform::clock;
use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_logic::datagram::CONTROL_PORT;
use guest_logic::packet::{End, Packet};
use guest_logic::words::Words;

const READY: &[u8] = b"ready";
const SETTLE: u64 = 100;
const LINGER: u64 = 700;
/// Milliseconds between two repetitions of a question, and how often it is asked: for a minute.
const ASK_AGAIN: u64 = 150;
const QUESTIONS: u64 = 400;

/// Shared by all ports of a scenario.
#[derive(Default)]
pub struct Stop {
    // The times of the first word and of the last answer, 0 while there was none.
    since: AtomicU64,
    answered: AtomicU64,
    /// What the peer says it has sent.
    pub sent: AtomicU64,
}

// Milliseconds since then, if it has come about.
fn elapsed(since: &AtomicU64) -> Option<u64> {
    let since = since.load(Ordering::Acquire);
    (since != 0).then(|| clock::now().wrapping_sub(since) / clock::kilohertz().max(1))
}

impl Stop {
    /// Whether the scenario is to end.
    pub fn is_over(&self) -> bool {
        elapsed(&self.answered).is_some_and(|elapsed| elapsed > LINGER)
    }

    /// Whether a peer has said that it is to end.
    pub fn is_asked(&self) -> bool {
        self.since.load(Ordering::Acquire) != 0
    }

    /// Takes the datagram if it is for the control port, and answers with `words` once all has settled.
    pub fn hear(
        &self,
        out: &mut Out,
        packet: &Packet<'_>,
        words: impl FnOnce() -> String,
    ) -> Result<bool, String> {
        let Packet::Udp { from, to, payload } = packet else {
            return Ok(false);
        };
        if to.port != CONTROL_PORT || to.ip != out.own.ip {
            return Ok(false);
        }
        let text = core::str::from_utf8(payload).unwrap_or("").trim();
        if text.starts_with("hello") {
            out.udp(from, CONTROL_PORT, READY.len(), |payload| {
                payload.copy_from_slice(READY);
            })?;
            return Ok(true);
        }
        if !text.starts_with("stop") && !text.starts_with("done") {
            return Ok(true);
        }
        let sent = Words::new(text).number("sent", 0).unwrap_or(0);
        self.sent.store(sent, Ordering::Release);
        let now = clock::now();
        let _ = self
            .since
            .compare_exchange(0, now, Ordering::AcqRel, Ordering::Relaxed);
        if elapsed(&self.since).is_some_and(|elapsed| elapsed >= SETTLE) {
            let words = words();
            out.udp(from, CONTROL_PORT, words.len(), |payload| {
                payload.copy_from_slice(words.as_bytes());
            })?;
            self.answered.store(clock::now(), Ordering::Release);
        }
        Ok(true)
    }
}

/// Tells the peer that all was sent, and returns its answer; `None` if there is none.
pub fn tell(ports: &mut [Port], peer: &End, text: &str) -> Result<Option<String>, String> {
    let to = End {
        port: CONTROL_PORT,
        ..*peer
    };
    let mut heard: Option<String> = None;
    for _ in 0..QUESTIONS {
        let room = ports[0].out.udp(&to, CONTROL_PORT, text.len(), |payload| {
            payload.copy_from_slice(text.as_bytes());
        })?;
        ports[0].publish();
        if room == Room::Full {
            ports[0].out.transmit.reclaim()?;
        }
        let begin = clock::now();
        while clock::now().wrapping_sub(begin) < ASK_AGAIN * clock::kilohertz() {
            for port in &mut *ports {
                port.next(|_, _, _, packet| {
                    if let Packet::Udp { from, to, payload } = packet
                        && to.port == CONTROL_PORT
                        && from.ip == peer.ip
                    {
                        heard = core::str::from_utf8(payload).ok().map(String::from);
                    }
                    Ok(())
                })?;
                port.publish();
            }
            if heard.is_some() {
                return Ok(heard);
            }
            core::hint::spin_loop();
        }
    }
    Ok(None)
}

/// The words of a peer's answer, each with `peer_` before it.
pub fn as_peers(answer: &str) -> String {
    let mut words = String::new();
    for word in answer.split_ascii_whitespace() {
        words.push_str(" peer_");
        words.push_str(word);
    }
    words
}
