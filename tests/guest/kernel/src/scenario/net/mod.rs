//! Scenarios with a network device.
//!
//! ```text
//! Run::open -> ports -> (resolve the peer) -> crew::run over the ports -> totals
//! ```

pub mod blast;
pub mod canary;
mod control;
pub mod echo;
pub mod gso;
pub mod heard;
pub mod hostile;
pub mod identify;
pub mod lengths;
pub mod ping;
mod settings;
pub mod sink;
pub mod storm;

use super::crew::Patience;
use super::verify::{indirect, patience};
use super::{Machine, options};
use crate::cpu::apic;
use crate::net::device::Shape;
use crate::net::port::{Counts, resolve};
use crate::net::{self, Net, Port};
use crate::platform::clock;
use crate::virtio::ring::Indirect;
use alloc::string::String;
use alloc::vec::Vec;
use guest_logic::packet::{ETHERNET, End};
use guest_logic::words::Words;

/// What all of them start with.
struct Run {
    net: Net,
    ports: Vec<Port>,
    /// Processors that take part.
    processors: usize,
    patience: Patience,
    interrupts: u64,
    indirect: Indirect,
}

/// Opens the device that the command line chooses.
fn device(machine: &Machine<'_>) -> Result<Net, String> {
    let words = &machine.words;
    let transport = options::device(words, &machine.devices()?, net::KIND, "net")?;
    let mask = options::number(words, "features_mask", u64::MAX)?;
    Net::open(&transport, mask)
}

impl Run {
    /// Starts the device with as many pairs as `queues=` says, at most `most`, for frames of up to
    /// `longest` bytes; 0: of the MTU.
    fn open(machine: &Machine<'_>, most: u16, longest: u64) -> Result<Run, String> {
        let words = &machine.words;
        let mut net = device(machine)?;
        let processors = machine.start_processors()?;
        let present = u64::from(net.configuration.pairs.min(most));
        let pairs = options::within(words, "queues", present.min(processors as u64), 1, present)?;
        let processors = processors.min(pairs as usize);
        let pairs = pairs as u16;
        let mtu = u64::from(net.configuration.mtu);
        let shape = Shape {
            depth: options::within(words, "depth", 32, 1, 1024)? as u16,
            longest: longest.max(mtu + ETHERNET as u64),
            buffers: options::within(words, "buffers", 0, 0, 1024)? as u16,
            buffer_size: options::within(words, "rxbuf", 0, 0, 1 << 17)?,
        };
        let mut queues = net.pairs(pairs, &shape)?;
        let pieces = options::within(words, "pieces", 0, 0, net::queue::MAX_PIECES as u64)?;
        for pair in &mut queues {
            pair.transmit.pieces = pieces as usize;
        }
        let polled = words.text("mode", "irq") == "poll";
        let can_interrupt = !polled && net.interrupt_each(pairs, processors);
        let patience = patience(words, can_interrupt, 20)?;
        let own = Self::address(&net, words)?;
        let indirect = indirect(words, "mixed")?;
        net.start(queues.iter_mut(), indirect)?;
        settings::set(&mut net, words, own.mac)?;
        let ports = queues
            .into_iter()
            .map(|pair| Port::new(&net, pair, own))
            .collect();
        Ok(Run {
            net,
            ports,
            processors,
            patience,
            interrupts: apic::taken_by_devices(),
            indirect,
        })
    }

    fn address(net: &Net, words: &Words<'_>) -> Result<End, String> {
        Ok(End {
            mac: options::ethernet_address(words, "mac")?.unwrap_or(net.configuration.mac),
            ip: options::address(words, "ip", "10.0.2.2/24")?,
            port: 0,
        })
    }

    /// The peer that `peer=` names.
    fn peer(&mut self, words: &Words<'_>) -> Result<End, String> {
        let ip = options::address(words, "peer", "10.0.2.1")?;
        let limit = self.patience.limit / clock::kilohertz().max(1);
        resolve(&mut self.ports, ip, limit)
    }

    /// For a scenario that waits for others: it does not fail because nothing comes.
    fn wait_for_ever(&mut self) {
        self.patience.limit = u64::MAX;
    }

    /// Words that every result line ends with.
    fn figures(&self, ports: &[Port]) -> String {
        let mut counts = Counts::default();
        let (mut kicks, mut suppressed, mut merged) = (0, 0, 0);
        let (mut received, mut sent) = (Vec::new(), Vec::new());
        for port in ports {
            received.push(alloc::format!("{}", port.out.counts.frames));
            sent.push(alloc::format!("{}", port.out.counts.sent));
            counts.add(&port.out.counts);
            let rings = [&port.receive.ring, &port.out.transmit.ring];
            kicks += rings.map(|ring| ring.kicks).iter().sum::<u64>();
            suppressed += rings.map(|ring| ring.kicks_suppressed).iter().sum::<u64>();
            merged += port.receive.merged;
        }
        alloc::format!(
            "queues={} mode={} rx_frames={} rx_bytes={} tx_frames={} tx_bytes={} merged={merged} bad={} arps={} \
             pings={} kicks={kicks} suppressed={suppressed} interrupts={} rx_by_pair={} tx_by_pair={}",
            ports.len(),
            if self.patience.poll { "poll" } else { "irq" },
            counts.frames,
            counts.bytes,
            counts.sent,
            counts.sent_bytes,
            counts.bad,
            counts.arps,
            counts.pings,
            apic::taken_by_devices() - self.interrupts,
            received.join(","),
            sent.join(",")
        )
    }
}

/// Whether what was received held nothing wrong.
fn verdict(bad: u64, words: String) -> Result<String, String> {
    if bad == 0 {
        return Ok(words);
    }
    Err(alloc::format!("reason=wrong-data {words}"))
}

/// The sum of what ports found wrong with frames.
fn bad(ports: &[Port]) -> u64 {
    ports.iter().map(|port| port.out.counts.bad).sum()
}

/// When `seconds=` or `millis=` from now are over, by the time stamp counter.
fn deadline(words: &Words<'_>, otherwise: u64) -> Result<u64, String> {
    let seconds = options::within(words, "seconds", otherwise, 1, 86_400)?;
    let millis = options::within(words, "millis", seconds * 1000, 1, 86_400_000)?;
    Ok(clock::now().saturating_add(clock::microseconds(millis * 1000)))
}

/// Events in a second.
fn rate(count: u64, nanoseconds: u64) -> u64 {
    (u128::from(count) * 1_000_000_000 / u128::from(nanoseconds.max(1))) as u64
}
