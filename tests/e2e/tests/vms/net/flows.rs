//! Many numbered datagrams at once, each checked, and what became of each.
//!
//! What is legal: a network card may lose a frame where a queue has no room,
//! and nowhere else. A tap holds 500 frames for a guest that does not keep up
//! (dropped there: the tap's `tx_dropped`), a UDP socket on the host as many
//! bytes as it was given (`RcvbufErrors`). So a sender that stays a small
//! window ahead of its receiver loses nothing, and of one that does not, what
//! is missing is what the kernel has counted, but for some of the questions
//! that the two ask each other, and ask again if they were dropped. Within a
//! stream, which stays on one queue, nothing overtakes, and nothing ever comes
//! twice.

use anyhow::{Context, Result, ensure};
use outboard_e2e::network::{self, Peer};
use outboard_e2e::vm::GuestResult;

use super::{NET, answered, in_network, vm};
use crate::Test;

/// Datagrams that each test sends at least.
const REQUESTS: u64 = 40_000;
/// Most questions that are dropped beside them: they are asked one by one, some
/// time after each other.
const QUESTIONS: u64 = 20;

#[derive(Clone, Copy)]
struct Shape {
    pairs: u32,
    cpus: u32,
    doorbell: &'static str,
    /// Data of each datagram.
    size: u32,
}

const SHAPES: &[Shape] = &[
    Shape {
        pairs: 1,
        cpus: 1,
        doorbell: "mmio",
        size: 1472,
    },
    Shape {
        pairs: 1,
        cpus: 2,
        doorbell: "pio",
        size: 64,
    },
    Shape {
        pairs: 4,
        cpus: 2,
        doorbell: "mmio",
        size: 64,
    },
    Shape {
        pairs: 4,
        cpus: 4,
        doorbell: "pio",
        size: 1472,
    },
];

pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for shape in SHAPES {
        let Shape {
            pairs,
            cpus,
            doorbell,
            size,
        } = shape;
        let with = format!("{pairs} pairs {cpus} cpus {doorbell} {size} bytes");
        let to = format!("datagrams to the guest all arrive in order with {with}");
        tests.push(in_network(to, NET, || to_guest(shape, 256)));
        let from = format!("datagrams from the guest all arrive in order with {with}");
        tests.push(in_network(from, NET, || from_guest(shape, 64)));
    }
    tests.push(in_network(
        "of a flood to the guest only what the tap has dropped is missing",
        NET,
        || to_guest(&SHAPES[2], 0),
    ));
    tests.push(in_network(
        "of a flood from the guest only what sockets had no room for is missing",
        NET,
        || from_guest(&SHAPES[2], 0),
    ));
    tests.push(in_network(
        "ping and udp are echoed at every size",
        NET,
        echo,
    ));
    tests
}

impl Shape {
    fn card(&self) -> Result<String> {
        let more = if self.pairs > 1 { "multi_queue" } else { "" };
        network::tap_with_address("tap0", more)?;
        Ok(format!("tap=tap0,queues={}", self.pairs))
    }

    fn queues(&self) -> String {
        format!("queues={} pieces=0", self.pairs)
    }
}

/// What the receiver has counted, each word after `prefix`: nothing wrong,
/// twice or late, and missing only what was `dropped` on the way.
pub(super) fn accounted(result: &GuestResult, prefix: &str, dropped: u64) -> Result<()> {
    let count = |key: &str| result.number(&format!("{prefix}{key}"));
    for key in ["wrong", "duplicates", "reordered"] {
        ensure!(count(key)? == 0, "{key}: {result:?}");
    }
    let lost = count("lost")?;
    ensure!(
        (lost..=lost + QUESTIONS).contains(&dropped),
        "dropped: {dropped}; {result:?}"
    );
    ensure!(count("received")? + lost == count("sent")?, "{result:?}");
    ensure!(count("received")? > 0, "{result:?}");
    Ok(())
}

/// How many queue pairs have passed frames, by a word of the guest's.
pub(super) fn used(result: &GuestResult, key: &str) -> Result<usize> {
    let counts = result.word(key)?.split(',');
    Ok(counts.filter(|count| *count != "0").count())
}

/// `window`: how far the sender of all streams together may be ahead; 0: as far as it
/// gets.
fn to_guest(shape: &Shape, window: u64) -> Result<()> {
    let card = shape.card()?;
    let run = vm(
        &card,
        shape.cpus,
        &format!("scenario=net-sink {}", shape.queues()),
    )?;
    let mut vm = run.with("--doorbell", shape.doorbell).start()?;
    vm.console_line("ready")?;
    let streams = if shape.pairs > 1 { 16 } else { 2 };
    let peer = Peer::run(&format!(
        "blast --to 10.0.2.2 --requests {REQUESTS} --size {} --streams {streams} --window {}",
        shape.size,
        window / streams
    ))?;
    let (_, dropped) = network::dropped("tap0")?;
    ensure!(window == 0 || dropped == 0, "dropped: {dropped}");
    accounted(&peer, "guest_", dropped)?;
    ensure!(peer.number("sent")? >= REQUESTS, "{peer:?}");
    let ended = vm.wait()?.with_code(0)?;
    let guest = ended.result("net-sink")?.passed()?;
    // The kernel spreads streams over queues by a hash: not evenly.
    let least = if shape.pairs > 1 { 2 } else { 1 };
    ensure!(used(&guest, "rx_by_pair")? >= least, "{guest:?}");
    vm.check_nothing_is_left()
}

/// The same; each stream has a window of its own.
fn from_guest(shape: &Shape, window: u64) -> Result<()> {
    let card = shape.card()?;
    let sink = Peer::listening(&format!("sink --streams {}", shape.pairs))?;
    let Shape { cpus, size, .. } = shape;
    let cmdline = format!(
        "scenario=net-blast requests={REQUESTS} window={window} size={size} {}",
        shape.queues()
    );
    let mut vm = vm(&card, *cpus, &cmdline)?
        .with("--doorbell", shape.doorbell)
        .start()?;
    let ended = vm.wait()?.with_code(0)?;
    let guest = ended.result("net-blast")?.passed()?;
    let sink = sink.end()?;
    let dropped = network::without_room()? + network::dropped("tap0")?.0;
    ensure!(window == 0 || dropped == 0, "dropped: {dropped}");
    accounted(&guest, "peer_", dropped)?;
    ensure!(guest.number("sent")? >= REQUESTS, "{guest:?}");
    ensure!(sink.number("received")? == guest.number("peer_received")?);
    // The answers to a stream come back by the queue that it went out by.
    let pairs = shape.pairs as usize;
    ensure!(used(&guest, "tx_by_pair")? == pairs, "{guest:?}");
    ensure!(
        window == 0 || used(&guest, "rx_by_pair")? == pairs,
        "{guest:?}"
    );
    vm.check_nothing_is_left()
}

fn echo() -> Result<()> {
    network::tap_with_address("tap0", "")?;
    let mut vm = vm("tap=tap0", 1, "scenario=net-echo")?.start()?;
    vm.console_line("ready")?;
    for size in [20, 56, 1000, 1472] {
        for more in ["", " --udp 1"] {
            let peer = Peer::run(&format!(
                "ping --to 10.0.2.2 --requests 50 --size {size}{more}"
            ))?;
            answered(&peer, 50)?;
        }
    }
    Peer::run("stop --to 10.0.2.2")?;
    let ended = vm.wait()?.with_code(0)?;
    let guest = ended.result("net-echo")?.passed()?;
    ensure!(guest.number("pings")? == 200, "{guest:?}");
    ensure!(guest.number("echoed")? == 200, "{guest:?}");
    guest.word("arps").context("asked for its address")?;
    vm.check_nothing_is_left()
}
