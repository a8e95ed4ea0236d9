//! `scenario=net-storm`: a flow of numbered datagrams to a peer's UDP echo port that goes on while the device's
//! back-end dies: `window=` of them are under way, and each is sent again until its answer is there. Frames
//! may be lost or come twice; no byte may be wrong, and every buffer must come back.
//!
//! ```text
//! Flow --requests= or seconds= or "stop" on port 9--> Drain --all answered--> Turn --every receive buffer has
//! come back once more--> Rest
//! ```

use super::super::crew::{self, Worker};
use super::super::{Machine, Outcome, options};
use super::{Run, bad, control::Stop, deadline, verdict};
use crate::net::{Port, Room};
use crate::platform::clock;
use crate::platform::sync::Spin;
use crate::say;
use crate::virtio::ring::Ring;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use guest_logic::datagram::{self, ECHO_PORT, FIRST_PORT, HEADER, Header};
use guest_logic::gaps::Gaps;
use guest_logic::histogram::Histogram;
use guest_logic::packet::{End, Packet, UDP_HEADERS};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Flow,
    Drain,
    Turn,
    Rest,
}

/// A datagram under way.
#[derive(Clone, Copy)]
struct Waiting {
    number: u64,
    first_sent: u64,
    sent: u64,
}

/// What it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    sent: u64,
    answered: u64,
    again: u64,
    duplicates: u64,
    wrong: u64,
}

impl Counts {
    // Memory of the guest's is never given back: only for what is said now and then.
    fn words(&self) -> String {
        alloc::format!(
            "sent={} answered={} again={} duplicates={} wrong={}",
            self.sent,
            self.answered,
            self.again,
            self.duplicates,
            self.wrong
        )
    }
}

struct Storm {
    port: Port,
    stop: Stop,
    peer: End,
    longest: usize,
    requests: u64,
    end: u64,
    retry: u64,
    phase: Phase,
    waiting: Vec<Option<Waiting>>,
    counts: Counts,
    // How often each receive buffer had come back, and how many answers there were, when the turn began.
    turn: Vec<u64>,
    turn_began: u64,
    gaps: Gaps,
    latency: Box<Histogram>,
    began: u64,
    // Ticks from one progress line to the next; 0: none.
    report: u64,
    next_report: u64,
}

// Lengths go through all that the link takes.
fn length(number: u64, longest: usize) -> usize {
    HEADER + (number.wrapping_mul(37) % (longest - HEADER + 1) as u64) as usize
}

impl Storm {
    fn hear(&mut self) -> Result<bool, String> {
        let mut busy = false;
        loop {
            let (peer, stop, counts) = (self.peer, &self.stop, self.counts);
            let mut heard = None;
            let some = self.port.next(|out, _, _, packet| {
                if stop.hear(out, packet, || counts.words())? {
                    return Ok(());
                }
                if let Packet::Udp { from, payload, .. } = packet
                    && from.ip == peer.ip
                    && from.port == ECHO_PORT
                {
                    heard = Some(datagram::check(payload).map(|header| (header, payload.len())));
                }
                Ok(())
            })?;
            if !some {
                return Ok(busy);
            }
            busy = true;
            match heard {
                None => {}
                Some(Ok((header, bytes))) => self.answer(header.number, bytes),
                Some(Err(_)) => self.counts.wrong += 1,
            }
        }
    }

    fn answer(&mut self, number: u64, bytes: usize) {
        if number >= self.counts.sent || bytes != length(number, self.longest) {
            self.counts.wrong += 1;
            return;
        }
        let place = (number % self.waiting.len() as u64) as usize;
        match self.waiting[place] {
            Some(waiting) if waiting.number == number => {
                let now = clock::now();
                self.gaps.note(now);
                self.latency.record(now.wrapping_sub(waiting.first_sent));
                self.counts.answered += 1;
                self.waiting[place] = None;
            }
            // Of one that was sent twice, or came twice.
            _ => self.counts.duplicates += 1,
        }
    }

    fn send(&mut self, number: u64) -> Result<bool, String> {
        let header = Header {
            number,
            stream: 0,
            acknowledge: 0,
        };
        let length = length(number, self.longest);
        let out = &mut self.port.out;
        let room = out.udp(&self.peer, FIRST_PORT, length, |payload| {
            datagram::write(payload, &header);
        })?;
        Ok(room == Room::Sent)
    }

    // Sends what was not answered in time again, and new ones into free places. True if there was room for all.
    fn send_all(&mut self, new: bool) -> Result<bool, String> {
        for place in 0..self.waiting.len() {
            let now = clock::now();
            let Some(waiting) = self.waiting[place] else {
                continue;
            };
            if now.wrapping_sub(waiting.sent) > self.retry {
                if !self.send(waiting.number)? {
                    return Ok(false);
                }
                self.counts.again += 1;
                self.waiting[place] = Some(Waiting {
                    sent: now,
                    ..waiting
                });
            }
        }
        loop {
            let place = (self.counts.sent % self.waiting.len() as u64) as usize;
            if !new || self.waiting[place].is_some() || !self.send(self.counts.sent)? {
                return Ok(true);
            }
            let now = clock::now();
            self.waiting[place] = Some(Waiting {
                number: self.counts.sent,
                first_sent: now,
                sent: now,
            });
            self.counts.sent += 1;
        }
    }

    fn is_turned(&self) -> bool {
        let returned = self.port.receive.returned();
        returned
            .iter()
            .zip(&self.turn)
            .all(|(now, then)| now > then)
    }

    /// Receive buffers that did not come back.
    fn kept(&self) -> usize {
        let returned = self.port.receive.returned();
        let pairs = returned.iter().zip(&self.turn);
        pairs.filter(|(now, then)| now <= then).count()
    }

    fn advance(&mut self) -> Result<(), String> {
        let now = clock::now();
        let answered_all = self.waiting.iter().all(Option::is_none);
        self.phase = match self.phase {
            Phase::Flow
                if self.counts.sent >= self.requests || now >= self.end || self.stop.is_asked() =>
            {
                Phase::Drain
            }
            Phase::Drain if answered_all => {
                self.gaps.rest();
                self.turn = self.port.receive.returned().to_vec();
                self.turn_began = self.counts.answered;
                Phase::Turn
            }
            // A device takes buffers in their order: each is used once in so many frames.
            Phase::Turn
                if self.is_turned()
                    || self.counts.answered - self.turn_began > 8 * self.turn.len() as u64 =>
            {
                Phase::Rest
            }
            phase => phase,
        };
        let new = matches!(self.phase, Phase::Flow | Phase::Turn);
        self.send_all(new)?;
        if self.phase == Phase::Rest {
            self.port.out.drain()?;
        }
        if self.report != 0 && now >= self.next_report {
            let elapsed = now.wrapping_sub(self.began) / clock::kilohertz();
            say!(
                "progress scenario=net-storm millis={elapsed} {}",
                self.counts.words()
            );
            self.next_report = now + self.report;
        }
        Ok(())
    }
}

impl Worker for Storm {
    fn step(&mut self) -> Result<bool, String> {
        let before = (self.counts, self.phase);
        let mut busy = self.hear()?;
        busy |= self.port.out.transmit.reclaim()?;
        self.advance()?;
        self.port.publish();
        Ok(busy || before != (self.counts, self.phase))
    }

    fn finished(&self) -> bool {
        let answered_all = self.waiting.iter().all(Option::is_none);
        self.phase == Phase::Rest
            && answered_all
            && self.port.out.transmit.is_drained()
            && (!self.stop.is_asked() || self.stop.is_over())
    }

    fn ring(&mut self) -> &mut Ring {
        &mut self.port.receive.ring
    }

    fn arm(&mut self) -> bool {
        self.port.arm()
    }

    fn disarm(&mut self) {
        self.port.disarm();
    }

    fn state(&mut self) -> String {
        let phase = self.phase;
        alloc::format!(
            "phase={phase:?} {} {}",
            self.counts.words(),
            self.port.state()
        )
    }
}

/// `scenario=net-storm`
pub fn run(machine: &Machine<'_>) -> Outcome {
    let words = &machine.words;
    let mut run = Run::open(machine, 1, 0)?;
    let peer = End {
        port: ECHO_PORT,
        ..run.peer(words)?
    };
    let longest = run.net.configuration.mtu as usize + 14 - UDP_HEADERS;
    let window = options::within(words, "window", 32, 1, 1024)? as usize;
    let keep = options::within(words, "gaps", 16, 0, 65_536)? as usize;
    let retry = options::within(words, "retry_ms", 100, 1, 60_000)?;
    // Halted, it would send again no sooner than at the next interrupt.
    if options::number(words, "awake", 0)? != 0 {
        run.patience.spin = run.patience.spin.max(2 * retry * clock::kilohertz());
    }
    let report = options::within(words, "report", 1000, 0, 1 << 20)? * clock::kilohertz();
    let requests = match options::number(words, "requests", 0)? {
        0 => u64::MAX,
        requests => requests,
    };
    if words.get("timeout").is_none() {
        run.patience.limit *= 2;
    }
    let Some(port) = run.ports.pop() else {
        return Err("reason=no-queue".into());
    };
    let began = clock::now();
    let worker = [Spin::new(Storm {
        port,
        stop: Stop::default(),
        peer,
        longest,
        requests,
        end: deadline(words, 86_400)?,
        retry: retry * clock::kilohertz(),
        phase: Phase::Flow,
        waiting: alloc::vec![None; window],
        counts: Counts::default(),
        turn: Vec::new(),
        turn_began: 0,
        gaps: Gaps::new(keep),
        latency: Box::new(Histogram::new()),
        began,
        report,
        next_report: began + report,
    })];
    say!("begun scenario=net-storm");
    crew::run(&worker, 1, run.patience)?;
    let elapsed = clock::nanoseconds(clock::now().wrapping_sub(began));
    let [worker] = worker;
    result(&run, worker.into_inner(), began, elapsed)
}

fn result(run: &Run, done: Storm, began: u64, elapsed: u64) -> Outcome {
    for gap in done.gaps.longest() {
        let since = clock::nanoseconds(gap.since.saturating_sub(began));
        say!("gap at_ns={since} ns={}", clock::nanoseconds(gap.length));
    }
    let gap_max = done.gaps.longest().first().map_or(0, |gap| gap.length);
    let part = |part| clock::nanoseconds(done.latency.per_mille(part));
    let (words, kept, buffers) = (done.counts.words(), done.kept(), done.turn.len());
    let line = alloc::format!(
        "{words} buffers={buffers} kept={kept} ns={elapsed} gap_max_ns={} p50_ns={} p99_ns={} max_ns={}",
        clock::nanoseconds(gap_max),
        part(500),
        part(990),
        clock::nanoseconds(done.latency.highest())
    );
    let wrong = done.counts.wrong;
    let ports = [done.port];
    let line = alloc::format!("{line} {}", run.figures(&ports));
    if kept != 0 {
        return Err(alloc::format!("reason=buffers-kept {line}"));
    }
    verdict(wrong + bad(&ports), line)
}
