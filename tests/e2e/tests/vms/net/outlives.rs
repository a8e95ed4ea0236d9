//! What a guest has set in its card by commands outlives the card's back-end: as the
//! guest sees it, by the frames that come, and as the host does, by its tap. (There
//! is no table of VLANs: no card of ours offers one.)

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use outboard_e2e::network::{self, Peer};
use outboard_e2e::storm::killer::Killer;
use outboard_e2e::vm::{GuestResult, Vm};

use super::flows::{accounted, used};
use super::{NET, in_network, vm};
use crate::Test;
use crate::api::{ctl, said};

/// The address that the card was made with, and what the guest has set instead.
pub(super) const MADE: &str = "02:00:00:00:00:aa";
pub(super) const OWN: &str = "02:00:00:00:00:01";
/// What is in its tables, and what is not.
pub(super) const STATION: &str = "02:00:00:00:00:02";
const STRANGER: &str = "02:00:00:00:00:03";
pub(super) const GROUP: &str = "01:00:5e:00:00:01";
const OTHERS: &str = "01:00:5e:00:00:02";
pub(super) const EVERYONE: &str = "ff:ff:ff:ff:ff:ff";
/// To whom frames go, in this order.
const TARGETS: [&str; 7] = [OWN, STATION, GROUP, EVERYONE, MADE, STRANGER, OTHERS];
/// The number that ends the guest's run.
pub(super) const LAST: u32 = u32::MAX;

pub fn tests() -> Vec<Test> {
    let filters: [(&str, &'static str, &'static [&str]); 4] = [
        (
            "an address and tables",
            "promisc=0 table=02:00:00:00:00:02,01:00:5e:00:00:01",
            &[OWN, STATION, GROUP, EVERYONE],
        ),
        (
            "all groups",
            "promisc=0 allmulti=1",
            &[OWN, GROUP, EVERYONE, OTHERS],
        ),
        (
            "no groups",
            "promisc=0 nomulti=1 nobcast=1 table=02:00:00:00:00:02,01:00:5e:00:00:01",
            &[OWN, STATION],
        ),
        ("no filter", "promisc=1 table=02:00:00:00:00:02", &TARGETS),
    ];
    let mut tests: Vec<_> = filters
        .into_iter()
        .map(|(name, words, heard)| {
            in_network(
                format!("{name} outlive a card's back-end"),
                NET,
                move || filter(words, heard),
            )
        })
        .collect();
    tests.extend([
        in_network("offloads outlive a card's back-end", NET, || {
            offloads("offloads=0x2", 4)?;
            network::ip("link del tap0")?;
            offloads("", 1)
        }),
        in_network("pairs in use outlive a card's back-end", NET, pairs),
        in_network("a card is replaced by its api under load", NET, restarted),
    ]);
    tests
}

/// Kills the back-ends of a card one after the other, each once it serves.
struct Kills {
    killer: Killer,
    last: Pid,
}

impl Kills {
    fn of(vm: &mut Vm) -> Result<Self> {
        let killer = Killer::new("outboard-net", 0, Duration::ZERO);
        let last = killer.next(vm, None)?;
        Ok(Self { killer, last })
    }

    fn strike(&mut self, vm: &mut Vm) -> Result<()> {
        self.killer.strike(self.last, Signal::SIGKILL)?;
        self.last = self.killer.next(vm, Some(self.last))?;
        Ok(())
    }
}

/// A VM that says what frames come to it.
fn hearing(card: &str, words: &str) -> Result<Vm> {
    let cmdline = format!("scenario=net-heard mac={OWN} {words}");
    let mut vm = vm(&format!("tap=tap0,mac={MADE}{card}"), 1, &cmdline)?.start()?;
    vm.console_line("ready scenario=net-heard")?;
    Ok(vm)
}

pub(super) fn send(to: &str, more: &str) -> Result<()> {
    Peer::run(&format!("frames --tap tap0 --to {to} {more}"))?.passed()?;
    Ok(())
}

/// Sends the guest a frame of this number, and waits until it is there: the numbers
/// of what came before it.
pub(super) fn until(vm: &mut Vm, number: u32) -> Result<BTreeSet<u64>> {
    send(OWN, &format!("--first {number}"))?;
    let mut heard = BTreeSet::new();
    loop {
        let line = GuestResult::from_words(&vm.console_line("heard number=")?);
        match line.number("number")? {
            end if end == u64::from(number) => return Ok(heard),
            other => heard.insert(other),
        };
    }
}

/// Which of the frames to [`TARGETS`], with numbers from this one on, come to the guest;
/// the tap has dropped the others.
pub(super) fn heard(vm: &mut Vm, first: u32) -> Result<Vec<&'static str>> {
    let (_, before) = network::dropped("tap0")?;
    send(&TARGETS.join(","), &format!("--first {first}"))?;
    let numbers = until(vm, first + 50)?;
    let (_, after) = network::dropped("tap0")?;
    let heard: Vec<_> = (u64::from(first)..)
        .zip(TARGETS)
        .filter(|(number, _)| numbers.contains(number))
        .map(|(_, target)| target)
        .collect();
    ensure!(heard.len() == numbers.len(), "{numbers:?}");
    let missing = TARGETS.len() - heard.len();
    ensure!(after - before == missing as u64, "{before}, then {after}");
    Ok(heard)
}

pub(super) fn over(mut vm: Vm, scenario: &str) -> Result<GuestResult> {
    let result = vm.wait()?.with_code(0)?.result(scenario)?.passed()?;
    vm.check_nothing_is_left()?;
    Ok(result)
}

/// A frame that is there after a kill has been passed on by a successor: so it has set
/// the tap, and what is sent then goes by that.
fn filter(words: &str, expected: &[&str]) -> Result<()> {
    network::tap("tap0", "")?;
    let mut vm = hearing("", words)?;
    network::takes_frames("tap0")?;
    let mut kills = Kills::of(&mut vm)?;
    for first in [0, 100, 200] {
        let heard = heard(&mut vm, first)?;
        ensure!(
            heard == expected,
            "from {first} on: {heard:?}, not {expected:?}"
        );
        kills.strike(&mut vm)?;
        until(&mut vm, first + 99)?;
    }
    send(OWN, &format!("--first {LAST}"))?;
    over(vm, "net-heard")?;
    Ok(())
}

/// A TCP frame of four segments comes to the guest in so many, which the host has
/// passed on.
fn offloads(words: &str, expected: u64) -> Result<()> {
    network::tap("tap0", "")?;
    let mut vm = hearing("", words)?;
    network::takes_frames("tap0")?;
    let mut kills = Kills::of(&mut vm)?;
    for number in [1, 2, 3] {
        let before = network::sent("tap0")?;
        send(OWN, &format!("--gso 1000 --first {number}"))?;
        for _ in 0..expected {
            let line = vm.console_line(&format!("heard segment={number} "))?;
            let bytes = GuestResult::from_words(&line).number("bytes")?;
            ensure!(bytes * expected == 4000, "{line}");
        }
        let frames = network::sent("tap0")? - before;
        ensure!(frames == expected, "{frames} frames, not {expected}");
        kills.strike(&mut vm)?;
        until(&mut vm, 100 + number)?;
    }
    send(OWN, &format!("--first {LAST}"))?;
    let result = over(vm, "net-heard")?;
    ensure!(result.number("heard")? == 3 * expected + 3, "{result:?}");
    Ok(())
}

/// Two pairs of four, on which nothing is lost that is sent after a kill.
fn pairs() -> Result<()> {
    network::tap_with_address("tap0", "multi_queue")?;
    let mut vm = vm("tap=tap0,queues=4", 2, "scenario=net-sink queues=2")?.start()?;
    vm.console_line("ready")?;
    let mut kills = Kills::of(&mut vm)?;
    for _ in 0..3 {
        // It is answered by who serves.
        Peer::run("ping --to 10.0.2.2 --requests 1")?.passed()?;
        let pairs = network::pairs("tap0")?;
        ensure!(pairs == (2, 2), "{pairs:?}");
        kills.strike(&mut vm)?;
    }
    Peer::run("ping --to 10.0.2.2 --requests 1")?.passed()?;
    let blast = "blast --to 10.0.2.2 --requests 10000 --size 1000 --streams 16 --window 16";
    let peer = Peer::run(blast)?;
    let (_, dropped) = network::dropped("tap0")?;
    accounted(&peer, "guest_", dropped)?;
    let guest = over(vm, "net-sink")?;
    ensure!(used(&guest, "rx_by_pair")? == 2, "{guest:?}");
    Ok(())
}

fn restarted() -> Result<()> {
    network::tap_with_address("tap0", "")?;
    let folder = tempfile::tempdir()?;
    let api = folder.path().join("api");
    let echo = Peer::listening("echo")?;
    let cmdline = "scenario=net-storm retry_ms=20 report=100";
    let mut vm = vm("tap=tap0", 2, cmdline)?.with("--api", &api).start()?;
    vm.console_line("begun scenario=net-storm")?;
    for restarts in 1..=5 {
        said(ctl(&api, &["restart", "net0"])?)?;
        said(ctl(&api, &["wait", "net0", "running", "--timeout", "5m"])?)?;
        let status = said(ctl(&api, &["--json", "status"])?)?;
        let words = format!("\"restarts\":{restarts},");
        ensure!(status.contains(&words), "{status}");
        Peer::run("ping --to 10.0.2.2 --requests 5")?.passed()?;
    }
    Peer::run("stop --to 10.0.2.2")?.passed()?;
    let result = over(vm, "net-storm")?;
    ensure!(result.number("answered")? > 200, "{result:?}");
    drop(echo);
    Ok(())
}
