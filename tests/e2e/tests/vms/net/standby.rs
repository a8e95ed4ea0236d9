//! A card with a second process (`standby=1`), which takes over when the first is gone:
//! a flow goes on, what the guest has set is there, and it sees no link go down.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use outboard_e2e::eventually;
use outboard_e2e::network::{self, Peer};
use outboard_e2e::storm::killer::Killer;
use outboard_e2e::vm::{Run, Vm};
use serde_json::Value;
use tempfile::TempDir;

use super::outlives::{EVERYONE, GROUP, LAST, MADE, OWN, STATION, heard, over, send, until};
use super::succession::{self, Card};
use super::{NET, in_network, vm};
use crate::Test;
use crate::api::{ctl, said};

pub fn tests() -> Vec<Test> {
    vec![
        in_network("a flow goes on over the standbys of a card", NET, flow),
        in_network(
            "a card's standby knows what the guest has set",
            NET,
            settings,
        ),
        in_network("a card's standby has the pairs in use", NET, pairs),
        in_network("a card's standby waits through resets", NET, reset),
        in_network(
            "a link stays up while a standby connects to the peer",
            NET,
            || succession::link_stays_up::<Guarded>(4),
        ),
        in_network(
            "a flow between two vms goes on over the standbys of both",
            NET,
            || succession::neighbours::<Guarded>(2),
        ),
    ]
}

/// A VM whose one card has a standby, and its control API.
struct Guarded {
    vm: Vm,
    killer: Killer,
    api: PathBuf,
    _folder: TempDir,
}

impl Guarded {
    fn status(&self) -> Result<Value> {
        let status = said(ctl(&self.api, &["--json", "status"])?)?;
        Ok(serde_json::from_str::<Value>(&status)?["devices"][0].clone())
    }

    /// The one that serves, and the one that is ready to.
    fn both(&self) -> Result<(Pid, Pid)> {
        let found = eventually("the standby is ready", || {
            let status = self.status()?;
            let ready = status["state"] == "running" && status["standby"] == "ready";
            let both = <[Pid; 2]>::try_from(self.killer.all(&self.vm)).ok();
            Ok(both.filter(|both| ready && status["pid"] == both[0].as_raw()))
        });
        let [first, second] = found.with_context(|| self.vm.messages())?;
        Ok((first, second))
    }
}

impl Card for Guarded {
    const OPTIONS: &'static str = ",standby=1";

    fn start(run: Run) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let api = folder.path().join("api");
        Ok(Self {
            vm: run.with("--api", &api).start()?,
            killer: Killer::new("outboard-net", 0, Duration::ZERO),
            api,
            _folder: folder,
        })
    }

    fn vm(&mut self) -> &mut Vm {
        &mut self.vm
    }

    fn into_vm(self) -> Vm {
        self.vm
    }

    /// Kills the process that serves once the other is ready, and waits until that one
    /// serves.
    fn goes_over(&mut self) -> Result<()> {
        let (first, second) = self.both()?;
        self.killer.strike(first, Signal::SIGKILL)?;
        eventually("the first is gone", || {
            Ok((!self.killer.all(&self.vm).contains(&first)).then_some(()))
        })?;
        let (serves, _) = self.both()?;
        ensure!(serves == second, "{serves} serves: {}", self.vm.messages());
        Ok(())
    }
}

fn flow() -> Result<()> {
    network::tap_with_address("tap0", "")?;
    let echo = Peer::listening("echo")?;
    let cmdline = "scenario=net-storm retry_ms=20";
    let mut guarded = Guarded::start(vm("tap=tap0,standby=1", 2, cmdline)?)?;
    guarded.vm.console_line("progress")?;
    for _ in 0..6 {
        guarded.goes_over()?;
        Peer::run("ping --to 10.0.2.2 --requests 5")?.passed()?;
    }
    Peer::run("stop --to 10.0.2.2")?.passed()?;
    let result = over(guarded.vm, "net-storm")?;
    ensure!(result.number("answered")? > 200, "{result:?}");
    drop(echo);
    Ok(())
}

fn settings() -> Result<()> {
    network::tap("tap0", "")?;
    let words = format!("promisc=0 table={STATION},{GROUP}");
    let cmdline = format!("scenario=net-heard mac={OWN} {words}");
    let card = format!("tap=tap0,mac={MADE},standby=1");
    let mut guarded = Guarded::start(vm(&card, 1, &cmdline)?)?;
    guarded.vm.console_line("ready scenario=net-heard")?;
    network::takes_frames("tap0")?;
    for first in [0, 100, 200] {
        // The one that waits has changed nothing.
        guarded.both()?;
        let heard = heard(&mut guarded.vm, first)?;
        ensure!(heard == [OWN, STATION, GROUP, EVERYONE], "{heard:?}");
        guarded.goes_over()?;
        until(&mut guarded.vm, first + 99)?;
    }
    send(OWN, &format!("--first {LAST}"))?;
    over(guarded.vm, "net-heard")?;
    Ok(())
}

fn pairs() -> Result<()> {
    network::tap_with_address("tap0", "multi_queue")?;
    let card = "tap=tap0,queues=4,standby=1";
    let mut guarded = Guarded::start(vm(card, 2, "scenario=net-sink queues=2")?)?;
    guarded.vm.console_line("ready")?;
    for _ in 0..3 {
        guarded.both()?;
        Peer::run("ping --to 10.0.2.2 --requests 1")?.passed()?;
        let pairs = network::pairs("tap0")?;
        ensure!(pairs == (2, 2), "{pairs:?}");
        guarded.goes_over()?;
    }
    Peer::run("ping --to 10.0.2.2 --requests 1")?.passed()?;
    ensure!(network::pairs("tap0")? == (2, 2));
    Peer::run("stop --to 10.0.2.2")?.passed()?;
    over(guarded.vm, "net-sink")?;
    Ok(())
}

/// Where the guest has just reset its card, it serves the driver that comes then.
fn reset() -> Result<()> {
    network::tap_with_address("tap0", "")?;
    let cmdline = "scenario=net-echo,net-echo,net-echo";
    let mut guarded = Guarded::start(vm("tap=tap0,standby=1", 1, cmdline)?)?;
    for _ in 0..3 {
        guarded.vm.console_line("ready")?;
        Peer::run("ping --to 10.0.2.2 --requests 5")?.passed()?;
        guarded.goes_over()?;
        Peer::run("ping --to 10.0.2.2 --requests 5")?.passed()?;
        Peer::run("stop --to 10.0.2.2")?.passed()?;
    }
    over(guarded.vm, "net-echo")?;
    Ok(())
}
