//! One run: VMs, peers on the host, and what they counted.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::Products;
use crate::processes::{Cpu, time};
use crate::program::{Program, passed, word};

use super::link::{FAR, GUEST, Link, Place, RECEIVER, SENDER};
use super::plan::{Load, Path, Row, Side};
use super::sides;
use super::stats::{Latency, Sample};

const WAIT: Duration = Duration::from_secs(60);
/// Frames that a sender is ahead of the receiver's acknowledgements at most:
/// less than any queue on the way holds, so nothing is lost.
const WINDOW: u64 = 512;
const SEGMENTS_WINDOW: u64 = 64;
const GSO: u64 = 1448;
/// Segments are for a packet socket: an address that is not the host's keeps
/// them from its TCP, which would answer each with a reset.
const NOBODY: &str = "02:00:00:00:00:fe";
const LOOPBACK: &str = "127.0.0.2";
const TO_LOOPBACK: &str = "127.0.0.2 --bind 127.0.0.1";
/// Round trips in a tenth of a second, about.
const TRIPS: u64 = 1000;

/// What is needed for a run.
pub struct Bench<'a> {
    products: &'a Products,
    link: &'a Link,
    peer: PathBuf,
    millis: u64,
    words: &'a str,
}

impl<'a> Bench<'a> {
    /// Runs of so many milliseconds on this link; `words` go to each guest.
    pub fn new(products: &'a Products, link: &'a Link, millis: u64, words: &'a str) -> Self {
        Self {
            products,
            link,
            peer: products.guest.with_file_name("guest-peer"),
            millis,
            words,
        }
    }

    /// One run.
    pub fn sample(&self, row: &Row, side: Side) -> Result<Sample> {
        match row.path {
            Path::HostToGuest => self.host_to_guest(row.load, side),
            Path::GuestToHost => self.guest_to_host(row.load, side),
            Path::GuestToGuest => self.guest_to_guest(row.load, side),
            Path::RoundTrip => self.round_trip(row.load, side),
            Path::HostToHost => self.host_to_host(row.load, side),
        }
    }

    fn vm(&self, side: Side, place: Place, scenario: &str) -> Result<Program> {
        let scenario = format!("{scenario} {}", self.words);
        let mut command = match side {
            Side::Outboard => sides::outboard(self.products, place, &scenario),
            Side::Qemu => sides::qemu(self.products, place, &scenario),
            Side::Veth | Side::Loopback => bail!("{} has no guest", side.name()),
        };
        Program::start(&mut command)
    }

    fn peer(&self, words: &str) -> Result<Program> {
        let mut command = sides::child();
        command.arg(&self.peer).args(words.split_whitespace());
        Program::start(&mut command)
    }

    /// What a peer is told to send.
    fn blast(&self, load: Load, to: &str, device: &str) -> String {
        let words = format!(
            "blast --to {to} --size {} --millis {}",
            load.data(),
            self.millis
        );
        match load {
            Load::Frames(_) => format!("{words} --window {WINDOW}"),
            Load::Segments => {
                format!("{words} --window {SEGMENTS_WINDOW} --gso {GSO} --tap {device}")
            }
        }
    }

    /// What a guest is told to send.
    fn scenario(&self, load: Load) -> String {
        let words = format!(
            "scenario=net-blast size={} millis={}",
            load.data(),
            self.millis
        );
        match load {
            Load::Frames(_) => format!("{words} window={WINDOW}"),
            Load::Segments => format!("{words} window={SEGMENTS_WINDOW} gso={GSO}"),
        }
    }

    fn host_to_guest(&self, load: Load, side: Side) -> Result<Sample> {
        let mut vm = self.vm(side, GUEST, "scenario=net-sink")?;
        vm.line("ready scenario=net-sink", WAIT)?;
        let before = Cpu::of_family(vm.pid())?;
        let mut peer = self.peer(&self.blast(load, GUEST.ip, GUEST.tap))?;
        let line = peer.line("PEER blast result=", WAIT);
        let line = line.with_context(|| vm.said())?;
        let cpu = Cpu::of_family(vm.pid())?.since(before);
        flow(&line, "guest_", cpu, time(peer.pid())?)
    }

    fn guest_to_host(&self, load: Load, side: Side) -> Result<Sample> {
        let mut peer = self.peer(&sink(load, GUEST.tap))?;
        peer.line("PEER ready", WAIT)?;
        let words = format!("{} peer_mac={NOBODY}", self.scenario(load));
        let mut vm = self.vm(side, GUEST, &words)?;
        vm.line("ready scenario=net-blast", WAIT)?;
        let (before, idle) = (Cpu::of_family(vm.pid())?, time(peer.pid())?);
        vm.line("sent scenario=net-blast", WAIT)?;
        let cpu = Cpu::of_family(vm.pid())?.since(before);
        let busy = time(peer.pid())?.saturating_sub(idle);
        let line = vm.line("OUTBOARD net-blast result=", WAIT)?;
        flow(&line, "peer_", cpu, busy)
    }

    fn guest_to_guest(&self, load: Load, side: Side) -> Result<Sample> {
        let mut receiver = self.vm(side, RECEIVER, "scenario=net-sink")?;
        receiver.line("ready scenario=net-sink", WAIT)?;
        let mut sender = self.vm(side, SENDER, &self.scenario(load))?;
        let both = |a: &Program, b: &Program| -> Result<Cpu> {
            Ok(Cpu::of_family(a.pid())?.and(Cpu::of_family(b.pid())?))
        };
        sender.line("ready scenario=net-blast", WAIT)?;
        let before = both(&receiver, &sender)?;
        sender.line("sent scenario=net-blast", WAIT)?;
        let cpu = both(&receiver, &sender)?.since(before);
        let line = sender.line("OUTBOARD net-blast result=", WAIT);
        let line = line.with_context(|| receiver.said())?;
        flow(&line, "peer_", cpu, 0)
    }

    fn round_trip(&self, load: Load, side: Side) -> Result<Sample> {
        let mut peer = self.peer("echo")?;
        peer.line("PEER ready", WAIT)?;
        let requests = (self.millis * TRIPS).div_ceil(100);
        let words = format!("scenario=net-ping size={} requests={requests}", load.data());
        let mut vm = self.vm(side, GUEST, &words)?;
        vm.hear("!", WAIT)?;
        let before = Cpu::of_family(vm.pid())?;
        let line = vm.line("OUTBOARD net-ping result=", WAIT)?;
        let cpu = Cpu::of_family(vm.pid())?.since(before);
        let word = |key| word(&line, key);
        let answered = passed(&line).and_then(|()| word("answered"))?;
        let micros = |key| word(key).map(|nanoseconds| nanoseconds as f64 / 1e3);
        Ok(Sample {
            packets: answered,
            bytes: answered * load.data() as u64,
            nanoseconds: word("ns")?,
            lost: word("lost")?,
            cpu,
            peer: time(peer.pid())?,
            latency: Some(Latency {
                p50: micros("p50_ns")?,
                p99: micros("p99_ns")?,
                p999: micros("p999_ns")?,
            }),
        })
    }

    fn host_to_host(&self, load: Load, side: Side) -> Result<Sample> {
        let (mut sink, to, device) = match side {
            // Both use the same ports, so each has an address.
            Side::Loopback => {
                let words = format!("{} --bind {LOOPBACK}", sink(load, "lo"));
                (self.peer(&words)?, TO_LOOPBACK, "lo")
            }
            _ => (self.far(load)?, FAR, "veth0"),
        };
        let blasted = (|| {
            sink.line("PEER ready", WAIT)?;
            let mut peer = self.peer(&self.blast(load, to, device))?;
            let line = peer.line("PEER blast result=", WAIT);
            let line = line.with_context(|| sink.said())?;
            let busy = time(peer.pid())? + time(sink.pid())?;
            flow(&line, "guest_", Cpu::default(), busy)
        })();
        drop(sink);
        if side == Side::Veth {
            self.link.remove_veth();
        }
        blasted
    }

    /// A sink in a namespace of its own, at the other end of the veth pair.
    fn far(&self, load: Load) -> Result<Program> {
        let script = format!(
            "ip link set lo up && echo here && until ip addr add {FAR}/24 dev veth1 2>/dev/null; do sleep 0.01; done \
             && ip link set veth1 up && exec \"$0\" {}",
            sink(load, "veth1")
        );
        let mut command = sides::child();
        command
            .args(["unshare", "--net", "sh", "-c", &script])
            .arg(&self.peer);
        let mut far = Program::start(&mut command)?;
        far.line("here", WAIT)?;
        self.link.add_veth(far.pid())?;
        Ok(far)
    }
}

/// What a peer is told that receives.
fn sink(load: Load, device: &str) -> String {
    match load {
        Load::Frames(_) => "sink".to_owned(),
        Load::Segments => format!("sink --tap {device}"),
    }
}

/// What the receiver says in the sender's line.
fn flow(line: &str, prefix: &str, cpu: Cpu, peer: u64) -> Result<Sample> {
    passed(line)?;
    let word = |key| word(line, &format!("{prefix}{key}"));
    Ok(Sample {
        packets: word("received")?,
        bytes: word("bytes")?,
        nanoseconds: word("ns")?,
        lost: word("lost")?,
        cpu,
        peer,
        latency: None,
    })
}
