//! A card whose back-end is replaced by another on command (`outboard ctl swap`): what is on
//! its way arrives, what the guest has set is there, its link stays up; and where nothing
//! comes of it the former serves as it did.
//!
//! What has come to a tap waits in it for whoever serves next, and what a ring has taken is
//! passed on before it is handed over. So nothing is lost by a swap, and what is missing
//! after it is what the kernel has counted (`flows`).

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::thread;

use anyhow::{Context, Result, ensure};
use outboard_e2e::network::{self, Peer};
use outboard_e2e::products::{self, Products};
use outboard_e2e::vm::{GuestResult, Run, Vm};
use outboard_e2e::{eventually, while_it_moves};
use serde_json::Value;
use tempfile::TempDir;

use super::flows::{accounted, used};
use super::outlives::{EVERYONE, GROUP, LAST, MADE, OWN, STATION, heard, over, send, until};
use super::succession::{self, Card};
use super::{NET, in_network, vm};
use crate::api::{complained, ctl, said};
use crate::{Need, Test};

/// By strace(1) a program is ended where it sets up the tap.
const STRACE: &[Need] = &[Need::Kvm, Need::Network, Need::Program("strace")];

pub fn tests() -> Vec<Test> {
    vec![
        in_network(
            "datagrams both ways all arrive over 100 swaps of a card",
            NET,
            both_ways,
        ),
        in_network(
            "of a flood to the guest only what the tap has dropped is missing after swaps",
            NET,
            to_guest,
        ),
        in_network(
            "of a flood from the guest only what sockets had no room for is missing after swaps",
            NET,
            from_guest,
        ),
        in_network("what the guest has set outlives swaps", NET, settings),
        in_network("offloads outlive swaps", NET, || offloads(1)),
        in_network("offloads that the guest has off outlive swaps", NET, || {
            offloads(4)
        }),
        in_network("pairs in use outlive swaps", NET, pairs),
        in_network("a card rests, is swapped, and goes on", NET, rests),
        in_network("a link stays up over swaps", NET, || {
            succession::link_stays_up::<Swapped>(10)
        }),
        in_network(
            "a flow between two vms goes on over swaps of both",
            NET,
            || succession::neighbours::<Swapped>(3),
        ),
        in_network(
            "a successor that dies anywhere leaves a card as it was",
            STRACE,
            dies_anywhere,
        ),
        in_network(
            "a successor that stands still leaves a card as it was",
            STRACE,
            stands_still,
        ),
        in_network(
            "a successor that cannot wait leaves a card as it was",
            NET,
            cannot_wait,
        ),
    ]
}

/// A VM with one card, and its control API.
struct Swapped {
    vm: Vm,
    folder: TempDir,
}

impl Swapped {
    /// One that says what frames come to it.
    fn hearing(words: &str) -> Result<Self> {
        network::tap("tap0", "")?;
        let cmdline = format!("scenario=net-heard mac={OWN} {words}");
        let mut swapped = Self::start(vm(&format!("tap=tap0,mac={MADE}"), 1, &cmdline)?)?;
        swapped.vm.console_line("ready scenario=net-heard")?;
        network::takes_frames("tap0")?;
        Ok(swapped)
    }

    fn ctl(&self, words: &[&str]) -> Result<Output> {
        ctl(&self.folder.path().join("api"), words)
    }

    fn told(&self, words: &[&str]) -> Result<Value> {
        let said = said(self.ctl(&[&["--json"], words].concat())?);
        match said.with_context(|| self.vm.messages())? {
            said if said.is_empty() => Ok(Value::Null),
            said => serde_json::from_str(&said).context(said),
        }
    }

    /// Another process serves, since this.
    fn swap(&self) -> Result<()> {
        let before = self.status()?;
        let swapped = self.told(&["swap", "net0"])?;
        let gap = swapped["gap"]["total_us"].as_u64();
        ensure!(gap.is_some_and(|gap| gap > 0), "{swapped}");
        let after = self.status()?;
        ensure!(after["state"] == "running", "{after}");
        ensure!(after["pid"] != before["pid"], "{before}, then {after}");
        Ok(())
    }

    /// Its status once it is served; a frame may be there before that is known.
    fn running(&self) -> Result<Value> {
        eventually("the card is served", || {
            let status = self.status()?;
            Ok((status["state"] == "running").then_some(status))
        })
    }

    fn status(&self) -> Result<Value> {
        Ok(self.told(&["status"])?["devices"][0].clone())
    }

    /// A program that does this before it becomes outboard-net, if it does not then do this
    /// with it.
    fn program(&self, number: u32, before: &str) -> Result<String> {
        let net = Products::get()?.program("outboard-net");
        let path = self.folder.path().join(format!("backend-{number}"));
        products::write_script(
            &path,
            &format!("{before} {net:?} \"$@\"\nexec {net:?} \"$@\""),
        )?;
        Ok(format!("backend={}", path.display()))
    }

    fn log(&self, number: u32) -> PathBuf {
        self.folder.path().join(format!("log-{number}"))
    }

    /// The guest is through, and all is in order.
    fn over(self, scenario: &str) -> Result<GuestResult> {
        over(self.vm, scenario)
    }
}

impl Card for Swapped {
    const OPTIONS: &'static str = "";

    fn start(run: Run) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let vm = run.with("--api", folder.path().join("api")).start()?;
        Ok(Self { vm, folder })
    }

    fn vm(&mut self) -> &mut Vm {
        &mut self.vm
    }

    fn into_vm(self) -> Vm {
        self.vm
    }

    fn goes_over(&mut self) -> Result<()> {
        self.swap()
    }
}

/// Frames that the tap has passed on, both ways: (to the host, to the guest).
fn passed() -> Result<(u64, u64)> {
    Ok((network::received("tap0")?, network::sent("tap0")?))
}

/// Waits until frames go both ways.
fn goes_on() -> Result<()> {
    let before = passed()?;
    while_it_moves("frames go both ways", passed, || {
        let now = passed()?;
        Ok((now.0 > before.0 + 10 && now.1 > before.1 + 10).then_some(()))
    })
}

/// A guest whose datagrams are echoed, each sent once: one that is lost is missed for a
/// minute, and then told by `again`.
fn echoed() -> Result<(Swapped, Peer)> {
    network::tap_with_address("tap0", "")?;
    let echo = Peer::listening("echo")?;
    // By the time that the first is over, the interface takes frames.
    let cmdline = "scenario=net-echo,net-storm retry_ms=60000";
    let mut swapped = Swapped::start(vm("tap=tap0", 2, cmdline)?)?;
    swapped.vm.console_line("ready scenario=net-echo")?;
    network::takes_frames("tap0")?;
    Peer::run("stop --to 10.0.2.2")?.passed()?;
    swapped.vm.console_line("begun scenario=net-storm")?;
    goes_on()?;
    Ok((swapped, echo))
}

/// Of what the guest has sent each was answered, once, by as many datagrams as there are.
fn none_is_missing(swapped: Swapped) -> Result<()> {
    Peer::run("stop --to 10.0.2.2")?.passed()?;
    let result = swapped.over("net-storm")?;
    for key in ["again", "duplicates", "wrong"] {
        ensure!(result.number(key)? == 0, "{key}: {result:?}");
    }
    ensure!(
        result.number("answered")? == result.number("sent")?,
        "{result:?}"
    );
    let dropped = (network::dropped("tap0")?, network::without_room()?);
    ensure!(dropped == ((0, 0), 0), "{dropped:?}");
    Ok(())
}

fn both_ways() -> Result<()> {
    let (swapped, echo) = echoed()?;
    for _ in 0..100 {
        swapped.swap()?;
        goes_on()?;
    }
    none_is_missing(swapped)?;
    drop(echo);
    Ok(())
}

/// Swaps until the flow is over; some are before that.
fn swap_during<T: Send + 'static>(
    swapped: &Swapped,
    flow: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let flow = thread::spawn(flow);
    let (mut swaps, mut before) = (0, passed()?);
    while !flow.is_finished() {
        swapped.swap()?;
        let now = passed()?;
        swaps += u32::from(now > before && !flow.is_finished());
        before = now;
    }
    ensure!(swaps > 0, "there was no swap during the flow");
    flow.join().ok().context("the flow has panicked")?
}

const FLOOD: &str = "scenario=net-sink queues=4 pieces=0";

fn to_guest() -> Result<()> {
    network::tap_with_address("tap0", "multi_queue")?;
    let mut swapped = Swapped::start(vm("tap=tap0,queues=4", 2, FLOOD)?)?;
    swapped.vm.console_line("ready")?;
    network::takes_frames("tap0")?;
    let blast = "blast --to 10.0.2.2 --requests 100000 --size 64 --streams 16 --rate 20000";
    let peer = swap_during(&swapped, || Peer::run(blast))?;
    let (_, dropped) = network::dropped("tap0")?;
    accounted(&peer, "guest_", dropped)?;
    let guest = swapped.over("net-sink")?;
    ensure!(used(&guest, "rx_by_pair")? >= 2, "{guest:?}");
    Ok(())
}

fn from_guest() -> Result<()> {
    network::tap_with_address("tap0", "multi_queue")?;
    let sink = Peer::listening("sink --streams 4")?;
    let cmdline = "scenario=net-blast requests=100000 size=64 queues=4 pieces=0";
    let mut swapped = Swapped::start(vm("tap=tap0,queues=4", 2, cmdline)?)?;
    swapped.vm.console_line("ready scenario=net-blast")?;
    while network::received("tap0")? < 70_000 {
        swapped.swap()?;
    }
    let result = swapped.over("net-blast")?;
    let sink = sink.end()?;
    let dropped = network::without_room()? + network::dropped("tap0")?.0;
    accounted(&result, "peer_", dropped)?;
    ensure!(sink.number("received")? == result.number("peer_received")?);
    Ok(())
}

const TABLES: &str = "promisc=0 table=02:00:00:00:00:02,01:00:5e:00:00:01";
const PASSED: [&str; 4] = [OWN, STATION, GROUP, EVERYONE];

fn settings() -> Result<()> {
    let mut swapped = Swapped::hearing(TABLES)?;
    for first in (0..20).map(|turn| 100 * turn) {
        let heard = heard(&mut swapped.vm, first)?;
        ensure!(heard == PASSED, "from {first} on: {heard:?}");
        swapped.swap()?;
        until(&mut swapped.vm, first + 99)?;
    }
    send(OWN, &format!("--first {LAST}"))?;
    swapped.over("net-heard")?;
    Ok(())
}

/// A TCP frame of four segments comes to the guest in so many.
fn comes_in(swapped: &mut Swapped, number: u32, pieces: u64) -> Result<()> {
    send(OWN, &format!("--gso 1000 --first {number}"))?;
    for _ in 0..pieces {
        let line = swapped
            .vm
            .console_line(&format!("heard segment={number} "))?;
        let bytes = GuestResult::from_words(&line).number("bytes")?;
        ensure!(bytes * pieces == 4000, "{line}: {}", swapped.vm.messages());
    }
    Ok(())
}

fn offloads(pieces: u64) -> Result<()> {
    let words = if pieces == 1 { "" } else { "offloads=0x2" };
    let mut swapped = Swapped::hearing(words)?;
    for number in 1..=20 {
        comes_in(&mut swapped, number, pieces)?;
        swapped.swap()?;
    }
    comes_in(&mut swapped, 99, pieces)?;
    send(OWN, &format!("--first {LAST}"))?;
    swapped.over("net-heard")?;
    Ok(())
}

fn pairs() -> Result<()> {
    network::tap_with_address("tap0", "multi_queue")?;
    let cmdline = "scenario=net-sink queues=2";
    let mut swapped = Swapped::start(vm("tap=tap0,queues=4", 2, cmdline)?)?;
    swapped.vm.console_line("ready")?;
    for _ in 0..20 {
        Peer::run("ping --to 10.0.2.2 --requests 1")?.passed()?;
        let pairs = network::pairs("tap0")?;
        ensure!(pairs == (2, 2), "{pairs:?}");
        swapped.swap()?;
    }
    Peer::run("ping --to 10.0.2.2 --requests 1")?.passed()?;
    ensure!(network::pairs("tap0")? == (2, 2));
    Peer::run("stop --to 10.0.2.2")?.passed()?;
    swapped.over("net-sink")?;
    Ok(())
}

/// While it rests it takes nothing from the guest.
fn rests() -> Result<()> {
    let (swapped, echo) = echoed()?;
    for swaps in [0, 1, 2] {
        swapped.told(&["pause", "net0"])?;
        let rested = network::received("tap0")?;
        let status = swapped.status()?;
        ensure!(status["state"] == "paused", "{status}");
        thread::sleep(std::time::Duration::from_millis(20));
        ensure!(network::received("tap0")? == rested);
        for _ in 0..swaps {
            swapped.told(&["swap", "net0"])?;
        }
        if swaps == 0 {
            swapped.told(&["resume", "net0"])?;
        }
        goes_on()?;
    }
    none_is_missing(swapped)?;
    drop(echo);
    Ok(())
}

/// The card is as its guest has it: filter, tables and offloads.
fn as_it_was(swapped: &mut Swapped, first: u32) -> Result<()> {
    let heard = heard(&mut swapped.vm, first)?;
    ensure!(heard == PASSED, "{heard:?}: {}", swapped.vm.messages());
    comes_in(swapped, first + 60, 1)
}

/// Nothing has come of a swap for this reason.
fn fails(swapped: &Swapped, words: &[&str], why: &str) -> Result<()> {
    let before = swapped.status()?;
    let complaint = complained(swapped.ctl(&[&["swap", "net0"], words].concat())?, 1)?;
    ensure!(complaint.contains(why), "{complaint}");
    let after = swapped.status()?;
    ensure!(
        after["state"] == "running" && after["pid"] == before["pid"],
        "{complaint} {before}, then {after}"
    );
    Ok(())
}

/// A program with strace(1) on it, the first time that it is started: it is sent a signal
/// as it begins its ioctl of this number. What it has done is in the log.
fn traced(swapped: &Swapped, number: u32, signal: &str) -> Result<String> {
    let log = swapped.log(number);
    swapped.program(
        number,
        &format!(
            "[ -e {log:?} ] || exec strace -D -f -qqq -o {log:?} -e trace=ioctl \
             -e inject=ioctl:signal={signal}:when={number}"
        ),
    )
}

/// Where it dies before it has a ring, the former goes on. After that it is the back-end,
/// and another is started in its place.
fn dies_anywhere() -> Result<()> {
    let mut swapped = Swapped::hearing(TABLES)?;
    let (mut put_back, mut recovered) = (0, 0);
    for number in 1..=9 {
        let program = traced(&swapped, number, "KILL")?;
        let before = swapped.status()?;
        let done = swapped.ctl(&["swap", "net0", &program])?.status.success();
        as_it_was(&mut swapped, 100 * number)?;
        let after = swapped.running()?;
        ensure!(
            (after["pid"] != before["pid"]) == done,
            "{before}, then {after}"
        );
        let log = fs::read_to_string(swapped.log(number))?;
        put_back += u32::from(!done);
        recovered += u32::from(log.contains("TUNSETVNETHDRSZ") && log.contains("SIGKILL"));
    }
    ensure!(put_back > 3 && recovered > 2, "{put_back}, {recovered}");
    send(OWN, &format!("--first {LAST}"))?;
    swapped.over("net-heard")?;
    Ok(())
}

/// As it is made ready, and as it is given the rings.
fn stands_still() -> Result<()> {
    let mut swapped = Swapped::hearing(TABLES)?;
    for number in [1, 5] {
        let program = traced(&swapped, number, "STOP")?;
        fails(&swapped, &[&program], "was silent")?;
        as_it_was(&mut swapped, 100 * number)?;
    }
    send(OWN, &format!("--first {LAST}"))?;
    swapped.over("net-heard")?;
    Ok(())
}

/// It keeps version 1 of the launch contract, so it sets up the tap as it starts.
fn cannot_wait() -> Result<()> {
    let mut swapped = Swapped::hearing(TABLES)?;
    as_it_was(&mut swapped, 0)?;
    let program = swapped.program(0, "unset OUTBOARD_LINE; exec")?;
    for (turn, words) in [&[&*program] as &[_], &[&program, "--dry-run"]]
        .iter()
        .enumerate()
    {
        fails(&swapped, words, "does not say that it waits")?;
        as_it_was(&mut swapped, 100 * (1 + turn as u32))?;
    }
    send(OWN, &format!("--first {LAST}"))?;
    swapped.over("net-heard")?;
    Ok(())
}
