//! `lengths`: checks the guest's raw frames and answers each with one of the same length.

use crate::options::{Options, Outcome};
use crate::raw::Raw;
use guest_logic::datagram::{Body, FROM_GUEST, FROM_HOST, LENGTHS_ETHERTYPE, LENGTHS_STREAM};
use guest_logic::packet::{self, ETHERNET, Offload};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Where answers say that they come from.
pub const OWN: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
const LOOK: Duration = Duration::from_millis(100);

/// Answers frames until there are none for a while, or whoever started this one closes its standard
/// input, or time is up.
pub struct Quiet {
    deadline: Instant,
    idle: Duration,
    last: Option<Instant>,
    closed: Arc<AtomicBool>,
}

impl Quiet {
    /// As the command line says.
    pub fn new(options: &Options) -> Result<Quiet, String> {
        let closed = Arc::new(AtomicBool::new(false));
        if options.number("stdin", 0)? != 0 {
            let closed = closed.clone();
            thread::spawn(move || {
                let _ = io::copy(&mut io::stdin(), &mut io::sink());
                closed.store(true, Ordering::Relaxed);
            });
        }
        Ok(Quiet {
            deadline: options.deadline()?,
            idle: Duration::from_secs(options.number("idle", 3)?),
            last: None,
            closed,
        })
    }

    /// Notes a frame.
    pub fn note(&mut self) {
        self.last = Some(Instant::now());
    }

    /// Whether it is time to end.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
            || self.closed.load(Ordering::Relaxed)
            || self.last.is_some_and(|at| at.elapsed() > self.idle)
    }
}

/// Sends a frame when there is room for it.
pub fn send(raw: &Raw, offload: &Offload, frame: &[u8], quiet: &Quiet) -> Result<(), String> {
    while !raw.send(offload, frame)? && !quiet.is_over() {
        thread::yield_now();
    }
    Ok(())
}

/// The sender's Ethernet address.
pub fn sender(frame: &[u8]) -> [u8; 6] {
    let mut mac = [0; 6];
    mac.copy_from_slice(&frame[6..12]);
    mac
}

/// `lengths`
pub fn run(options: &Options) -> Outcome {
    let mut raw = Raw::open(options.needed("tap")?, false)?;
    let mut quiet = Quiet::new(options)?;
    let mut seen = BTreeSet::new();
    let (mut frames, mut wrong) = (0u64, 0u64);
    println!("PEER ready");
    while !quiet.is_over() {
        let Some((_, frame)) = raw.receive(LOOK)? else {
            continue;
        };
        if packet::ethertype(frame) != LENGTHS_ETHERTYPE {
            continue;
        }
        quiet.note();
        let length = frame.len() as u64;
        let body = Body::new(LENGTHS_STREAM + FROM_GUEST, length);
        if let Some(at) = body.first_wrong(&frame[ETHERNET..], 0) {
            wrong += 1;
            eprintln!("wrong: length {length}, byte {at}");
            continue;
        }
        frames += 1;
        seen.insert(length);
        let mut answer = vec![0; frame.len()];
        packet::ethernet(&mut answer, OWN, sender(frame), LENGTHS_ETHERTYPE);
        Body::new(LENGTHS_STREAM + FROM_HOST, length).fill(&mut answer[ETHERNET..], 0);
        send(&raw, &Offload::default(), &answer, &quiet)?;
    }
    let line = format!(
        "min={} max={} lengths={} frames={frames} wrong={wrong}",
        seen.first().unwrap_or(&0),
        seen.last().unwrap_or(&0),
        seen.len()
    );
    match (seen.len(), wrong) {
        (0, _) => Err(format!("reason=no-frames {line}")),
        (_, 0) => Ok(line),
        _ => Err(format!("reason=wrong-data {line}")),
    }
}
