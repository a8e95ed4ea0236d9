//! One run: a VM, a peer on the host, and what they counted.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::Products;
use crate::processes::{Cpu, time};
use crate::program::Program;

use super::link::{GUEST, Link, TAP};
use super::plan::{Load, Path, Row, Side};
use super::sides;
use super::stats::Sample;

const WAIT: Duration = Duration::from_secs(60);
/// Frames that a sender is ahead of the receiver's acknowledgements at most:
/// less than any queue on the way holds, so nothing is lost.
const WINDOW: u64 = 256;
const SEGMENTS_WINDOW: u64 = 64;

/// What is needed for a run.
pub struct Bench<'a> {
    products: &'a Products,
    peer: PathBuf,
    millis: u64,
}

impl<'a> Bench<'a> {
    /// Runs of so many milliseconds on this link.
    pub fn new(products: &'a Products, _link: &'a Link, millis: u64) -> Self {
        Self {
            products,
            peer: products.guest.with_file_name("guest-peer"),
            millis,
        }
    }

    /// One run.
    pub fn sample(&self, row: &Row, side: Side) -> Result<Sample> {
        match row.path {
            Path::HostToGuest => self.host_sends(row, side),
            Path::GuestToHost => self.guest_sends(row, side),
        }
    }

    fn vm(&self, side: Side, words: &str) -> Result<Program> {
        Program::start(&mut sides::command(self.products, side, words))
    }

    fn peer(&self, words: &str) -> Result<Program> {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "--"])
            .arg(&self.peer)
            .args(words.split_whitespace());
        Program::start(&mut command)
    }

    fn host_sends(&self, row: &Row, side: Side) -> Result<Sample> {
        let mut vm = self.vm(side, "scenario=net-sink")?;
        vm.line("ready scenario=net-sink", WAIT)?;
        let load = match row.load {
            Load::Frames(_) => format!("--window {WINDOW}"),
            Load::Segments => format!("--window {SEGMENTS_WINDOW} --gso 1448 --tap {TAP}"),
        };
        let words = format!(
            "blast --to {GUEST} --size {} --millis {} {load}",
            row.load.data(),
            self.millis
        );
        let before = Cpu::of_family(vm.pid())?;
        let mut peer = self.peer(&words)?;
        let line = peer
            .line("PEER blast result=", WAIT)
            .with_context(|| vm.said())?;
        let cpu = Cpu::of_family(vm.pid())?.since(before);
        sample(&line, "guest_", cpu, time(peer.pid())?)
    }

    fn guest_sends(&self, row: &Row, side: Side) -> Result<Sample> {
        let (load, sink) = match row.load {
            Load::Frames(_) => (format!("window={WINDOW}"), "sink".to_owned()),
            Load::Segments => (
                format!("window={SEGMENTS_WINDOW} gso=1448"),
                format!("sink --tap {TAP}"),
            ),
        };
        let mut peer = self.peer(&sink)?;
        peer.line("PEER ready", WAIT)?;
        let words = format!(
            "scenario=net-blast size={} millis={} {load}",
            row.load.data(),
            self.millis
        );
        let mut vm = self.vm(side, &words)?;
        vm.line("ready scenario=net-blast", WAIT)?;
        let (before, idle) = (Cpu::of_family(vm.pid())?, time(peer.pid())?);
        vm.line("sent scenario=net-blast", WAIT)?;
        let cpu = Cpu::of_family(vm.pid())?.since(before);
        let busy = time(peer.pid())?.saturating_sub(idle);
        let line = vm.line("OUTBOARD net-blast result=", WAIT)?;
        sample(&line, "peer_", cpu, busy)
    }
}

// What the receiver says in the sender's line.
fn sample(line: &str, prefix: &str, cpu: Cpu, peer: u64) -> Result<Sample> {
    if !line.contains("result=pass") {
        bail!("{line}");
    }
    let word = |key: &str| -> Result<u64> {
        let mut words = line.split_whitespace();
        words
            .find_map(|word| {
                word.strip_prefix(prefix)?
                    .strip_prefix(key)?
                    .strip_prefix('=')
            })
            .and_then(|value| value.parse().ok())
            .with_context(|| format!("no {prefix}{key} in: {line}"))
    };
    Ok(Sample {
        packets: word("received")?,
        bytes: word("bytes")?,
        nanoseconds: word("ns")?,
        lost: word("lost")?,
        cpu,
        peer,
    })
}
