//! Network cards. Each test has a network of its own; see
//! `outboard_e2e::network`.
//!
//! - [`canary`]: nothing is written that may not be;
//! - [`changed`]: what is changed of a card on command;
//! - [`frames`]: every frame and every segment arrives as it was sent;
//! - [`flows`]: many datagrams at once, and what became of each;
//! - [`left`]: what is left of a tap when its VM is over;
//! - [`neighbours`]: VMs on a bridge, and with a peer in place of a tap;
//! - [`outlives`]: what a guest has set in a card is there after its back-end;
//! - [`refused`]: taps that cannot be had;
//! - [`standby`]: a second process takes over a card, at once;
//! - [`storm`]: a card whose back-end is killed, and a flow that goes on;
//! - [`succession`]: what holds wherever another process takes over a card;
//! - [`swaps`]: another process takes over a card, on command;
//! - [`timeline`]: who says what to whom in a card's life;
//! - [`trouble`]: taps and peers that go, and guests that do not behave.

mod canary;
mod changed;
mod flows;
mod frames;
mod left;
mod neighbours;
mod outlives;
mod refused;
mod standby;
mod storm;
mod succession;
mod swaps;
mod timeline;
mod trouble;

use anyhow::{Result, ensure};
use outboard_e2e::network;
use outboard_e2e::vm::{GuestResult, Run};

use crate::{Need, Test, test};

/// What all of them need.
const NET: &[Need] = &[Need::Kvm, Need::Network];

pub fn tests() -> Vec<Test> {
    let groups = [
        canary::tests(),
        changed::tests(),
        frames::tests(),
        flows::tests(),
        left::tests(),
        neighbours::tests(),
        outlives::tests(),
        refused::tests(),
        standby::tests(),
        storm::tests(),
        swaps::tests(),
        timeline::tests(),
        trouble::tests(),
    ];
    groups.into_iter().flatten().collect()
}

/// A test in a network of its own.
fn in_network(
    name: impl Into<String>,
    needs: &'static [Need],
    run: impl FnOnce() -> Result<()> + Send + 'static,
) -> Test {
    let name = name.into();
    let again = format!("net::{}", name.replace(' ', "_"));
    test(name, needs, move || match network::is_own() {
        true => run(),
        false => network::run_again(&again),
    })
}

/// A VM with one card.
fn vm(card: &str, cpus: u32, cmdline: &str) -> Result<Run> {
    let run = Run::guest(cmdline)?.with("--cpus", cpus.to_string());
    Ok(run.with("--net", card))
}

/// So many questions, asked one after the other, were all answered.
fn answered(ping: &GuestResult, questions: u64) -> Result<()> {
    ensure!(ping.number("answered")? == questions, "{ping:?}");
    ensure!(ping.number("lost")? == 0, "{ping:?}");
    Ok(())
}
