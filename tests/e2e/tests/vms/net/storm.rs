//! A card whose back-end is killed again and again: the flow of its guest goes
//! on, no byte is wrong, and every buffer comes back.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use outboard_e2e::network::{self, Peer};
use outboard_e2e::storm::Shape;
use outboard_e2e::storm::killer::{Aim, Killer};

use super::{NET, in_network, vm};
use crate::Test;
use crate::storm::seed;

pub fn tests() -> Vec<Test> {
    vec![
        in_network("a flow goes on where nobody is killed", NET, || {
            flows("tap=tap0", Aim::Newest, 0)
        }),
        in_network("a flow goes on over 100 kills", NET, || {
            flows("tap=tap0", Aim::Newest, 100)
        }),
        in_network("a flow goes on over kills with a standby", NET, || {
            flows("tap=tap0,standby=1", Aim::Any, 40)
        }),
    ]
}

/// So many kills in all, of one VM after the other.
fn flows(card: &str, aim: Aim, kills: u32) -> Result<()> {
    network::tap_with_address("tap0", "")?;
    let echo = Peer::listening("echo")?;
    for shape in Shape::new(kills, seed()).vms() {
        flow(card, aim, shape.kills, shape.seed)?;
    }
    drop(echo);
    Ok(())
}

fn flow(card: &str, aim: Aim, kills: u32, seed: u64) -> Result<()> {
    let cmdline = "scenario=net-storm retry_ms=20";
    let mut vm = vm(card, 2, cmdline)?.start()?;
    vm.console_line("begun scenario=net-storm")?;
    let mut killer = Killer::new("outboard-net", seed, Duration::from_millis(40));
    killer.aim = aim;
    vm.console_line("progress")?;
    killer.kill_them(&mut vm, kills, Signal::SIGKILL)?;
    Peer::run("stop --to 10.0.2.2")?.passed()?;
    let ended = vm.wait()?.with_code(0)?;
    let result = ended.result("net-storm")?.passed()?;
    ensure!(
        result.number("answered")? > 200,
        "seed {seed}: next to nothing was answered: {ended}"
    );
    vm.check_nothing_is_left()
}
