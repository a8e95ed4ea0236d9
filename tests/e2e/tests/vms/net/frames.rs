//! Every frame arrives as it was sent: all lengths, all segment sizes, their
//! contents checked by the guest and by its peer on the host.

use anyhow::{Result, ensure};
use outboard_e2e::network::{self, Peer};

use super::{NET, in_network, vm};
use crate::Test;

/// Feature bits that a guest may leave out (virtio 1.3, section 5.1.3).
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const MRG_RXBUF: u64 = 1 << 15;

/// Everything.
const ALL: u64 = u64::MAX;
/// Bytes of the largest segment that the guest makes: with one more byte of
/// data and all headers a frame is 65,535 bytes of IP, which is the most.
const LARGEST: u64 = 65_460;

pub fn tests() -> Vec<Test> {
    let mut tests = vec![
        in_network("frames of every length pass both ways", NET, || {
            lengths(1500, ALL)
        }),
        in_network(
            "frames of every length pass without mergeable buffers",
            NET,
            || lengths(1500, !MRG_RXBUF),
        ),
        in_network("frames of every length pass up to jumbo ones", NET, || {
            lengths(9000, ALL)
        }),
    ];
    // Together, every segment size.
    let parts = [
        (1, 20_000),
        (20_001, 36_000),
        (36_001, 51_000),
        (51_001, LARGEST),
    ];
    for version in [4, 6] {
        for (from, to) in parts {
            let sizes = format!("segments of {from} to {to} bytes");
            let name = format!("{sizes} over ipv{version} are left to be cut both ways");
            tests.push(in_network(name, NET, move || {
                segments(ALL, &format!("tso={version}"), from, to, 1)
            }));
        }
    }
    tests.extend([
        in_network("segments arrive whole in large buffers", NET, || {
            segments(!MRG_RXBUF, "", 1, LARGEST, 61)
        }),
        in_network("segments are cut for a guest that does not", NET, || {
            segments(!(GUEST_TSO4 | GUEST_TSO6), "", 1, LARGEST, 61)
        }),
    ]);
    tests
}

/// Raw frames from 14 bytes, an Ethernet header alone, to the longest.
fn lengths(mtu: u64, features: u64) -> Result<()> {
    network::tap("tap0", "")?;
    network::ip(&format!("link set tap0 mtu {mtu}"))?;
    let peer = Peer::listening("lengths --tap tap0 --stdin 1 --idle 3600")?;
    let cmdline = format!("scenario=net-lengths features_mask={features:#x}");
    let ended = vm(&format!("tap=tap0,mtu={mtu}"), 1, &cmdline)?
        .to_the_end()?
        .with_code(0)?;
    let guest = ended.result("net-lengths")?.passed()?;
    let peer = peer.end()?;
    let (least, most) = (14, mtu + 14);
    ensure!(guest.number("max")? == most, "{guest:?}");
    ensure!(guest.number("answered")? == most - least + 1, "{guest:?}");
    ensure!(guest.number("again")? == 0, "a frame was lost: {guest:?}");
    ensure!(peer.number("lengths")? == most - least + 1, "{peer:?}");
    Ok(())
}

/// TCP segments of these sizes in frames of up to 64 KiB, with ECN and
/// without; beyond 2,048 bytes one size in `step`.
fn segments(features: u64, more: &str, from: u64, to: u64, step: u64) -> Result<()> {
    network::tap("tap0", "")?;
    let peer = Peer::listening("gso --tap tap0 --stdin 1 --idle 3600")?;
    let cmdline = format!(
        "scenario=net-gso features_mask={features:#x} min={from} max={to} step={step} {more}"
    );
    let ended = vm("tap=tap0", 1, &cmdline)?.to_the_end()?.with_code(0)?;
    let guest = ended.result("net-gso")?.passed()?;
    let peer = peer.end()?;
    let dense = 2048.min(to).saturating_sub(from - 1);
    let sizes = dense + (to - from + 1 - dense) / step;
    let versions = if more.is_empty() { 2 } else { 1 };
    ensure!(peer.number("sizes")? == sizes, "{sizes}: {peer:?}");
    ensure!(peer.number("ecn")? > 0, "{peer:?}");
    ensure!(peer.number("longest")? == 65_549, "{peer:?}");
    for key in ["frames", "answered"] {
        ensure!(guest.number(key)? == versions * sizes, "{guest:?}");
    }
    // With GUEST_TSO4 and 6 an answer comes as it was sent; else in segments.
    let (whole, pieces) = (guest.number("whole")?, guest.number("segments")?);
    if features & GUEST_TSO4 != 0 {
        ensure!((whole, pieces) == (versions * sizes, 0), "{guest:?}");
    } else {
        ensure!(whole == 0 && pieces > sizes, "{guest:?}");
    }
    Ok(())
}
