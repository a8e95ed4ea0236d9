//! What a back-end may not write stays as it was: memory that the guest does
//! not use, buffers behind the end of what they were filled with, buffers that
//! were used and are not posted again yet, and whatever is only to be read. The
//! guest looks itself (`canary=`), with both its devices at work.

use anyhow::{Result, ensure};
use outboard_e2e::image::Image;
use outboard_e2e::network::{self, Peer};
use outboard_e2e::vm::GuestResult;

use super::{NET, in_network, vm};
use crate::Test;

/// Used buffers that the guest keeps aside for each queue.
const CANARY: &str = "canary=64";
/// All features but VIRTIO_NET_F_MRG_RXBUF, in big buffers of which few fit.
const UNMERGED: &str = "features_mask=0xffffffffffff7fff buffers=128";
const MIB: u64 = 1 << 20;

pub fn tests() -> Vec<Test> {
    vec![
        in_network(
            "datagrams and sectors go where they may and nowhere else",
            NET,
            || flood(2, "", "--size 1472 --streams 4"),
        ),
        in_network(
            "whole segments and sectors go where they may and nowhere else",
            NET,
            || flood(1, "", "--tap tap0 --gso 1448 --size 65160"),
        ),
        in_network(
            "unmerged segments and sectors go where they may and nowhere else",
            NET,
            || flood(1, UNMERGED, "--tap tap0 --gso 1448 --size 65160"),
        ),
        in_network("what the guest sends stays as it is", NET, from_guest),
        in_network(
            "nothing is written while bus mastering is off",
            NET,
            without_bus_mastering,
        ),
    ]
}

fn checked(guest: &GuestResult, buffers: u64) -> Result<()> {
    ensure!(guest.number("canary_memory")? > 64 * MIB, "{guest:?}");
    ensure!(guest.number("canary_buffers")? > buffers, "{guest:?}");
    Ok(())
}

/// With both devices reset now and then, in the midst of frames.
fn flood(queues: u32, words: &str, blast: &str) -> Result<()> {
    let more = if queues > 1 { "multi_queue" } else { "" };
    network::tap_with_address("tap0", &format!("vnet_hdr {more}"))?;
    let image = Image::new(16 * MIB)?;
    let cmdline = format!(
        "scenario=net-canary {CANARY} requests=4000 frames=4000 reinit=9 queues={queues} {words}"
    );
    let card = format!("tap=tap0,queues={queues}");
    let mut vm = vm(&card, 2, &cmdline)?
        .with("--memory", "128M")
        .with("--disk", format!("{},queues={queues}", image.option()))
        .start()?;
    vm.console_line("ready")?;
    let _blast = Peer::start(&format!(
        "blast --to 10.0.2.2 --requests 1000000000 {blast}"
    ))?;
    let guest = vm.wait()?.with_code(0)?.result("net-canary")?.passed()?;
    ensure!(guest.number("received")? > 0, "{guest:?}");
    checked(&guest, 8000)?;
    vm.check_nothing_is_left()
}

/// A flood comes, and requests are under way, each time that both are stopped.
fn without_bus_mastering() -> Result<()> {
    network::tap_with_address("tap0", "vnet_hdr")?;
    let image = Image::new(16 * MIB)?;
    let cmdline = "scenario=net-canary requests=3000 frames=3000 queues=1 mastering=40 cpus=1";
    let mut vm = vm("tap=tap0", 1, cmdline)?
        .with("--memory", "128M")
        .with("--disk", image.option())
        .start()?;
    vm.console_line("ready")?;
    let _blast = Peer::start("blast --to 10.0.2.2 --requests 1000000000 --size 1472 --streams 4")?;
    let guest = vm.wait()?.with_code(0)?.result("net-canary")?.passed()?;
    ensure!(guest.number("received")? > 1000, "{guest:?}");
    ensure!(guest.number("pauses")? > 10, "{guest:?}");
    vm.check_nothing_is_left()
}

fn from_guest() -> Result<()> {
    network::tap("tap0", "vnet_hdr")?;
    let peer = Peer::listening("gso --tap tap0 --stdin 1 --idle 3600")?;
    let cmdline = format!("scenario=net-gso {CANARY} dense=64 step=4870");
    let mut vm = vm("tap=tap0", 1, &cmdline)?.start()?;
    let guest = vm.wait()?.with_code(0)?.result("net-gso")?.passed()?;
    peer.end()?;
    checked(&guest, 300)?;
    vm.check_nothing_is_left()
}
