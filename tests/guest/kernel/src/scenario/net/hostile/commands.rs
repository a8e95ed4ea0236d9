//! The control queue: commands that are none, and commands while packets flow.

use super::{Bench, pass};
use crate::net::control::{Command, Control, PROMISCUOUS, SET_MAC, SET_PAIRS};
use crate::virtio::ring::Buffer;
use alloc::string::String;

/// What the device must refuse.
const REFUSED: &[(&str, Command, &[u8])] = &[
    ("unknown-class", (99, 99), &[99]),
    ("unknown-receive-mode", (0, 200), &[1]),
    ("mode-without-value", PROMISCUOUS, &[]),
    ("mode-too-long", PROMISCUOUS, &[1, 1]),
    ("unknown-address-command", (1, 9), &[]),
    ("address-too-short", SET_MAC, &[2, 0, 0]),
    ("address-too-long", SET_MAC, &[2, 0, 0, 0, 0, 1, 2]),
    ("address-of-a-group", SET_MAC, &[1, 0, 0x5e, 0, 0, 1]),
    ("address-of-nobody", SET_MAC, &[0; 6]),
    ("table-without-entries", (1, 0), &[255, 255, 255, 255]),
    ("table-without-second", (1, 0), &[0, 0, 0, 0]),
    (
        "table-longer-than-it-is",
        (1, 0),
        &[2, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0],
    ),
    ("pairs-cut-short", SET_PAIRS, &[1]),
    ("pairs-0", SET_PAIRS, &[0, 0]),
    ("pairs-65535", SET_PAIRS, &[255, 255]),
    ("pairs-that-are-not-there", SET_PAIRS, &[0, 1]),
    ("offloads-cut-short", (5, 0), &[0, 0, 0]),
    ("offloads-of-all-kinds", (5, 0), &[255; 8]),
];

fn control(bench: &mut Bench) -> Result<&mut Control, String> {
    let control = bench.run.net.control.as_mut();
    control.ok_or_else(|| "reason=no-control-queue".into())
}

/// Runs the cases; how many.
pub fn run(bench: &mut Bench) -> Result<usize, String> {
    for (name, command, data) in REFUSED {
        let outcome = match control(bench)?.command(*command, data) {
            Ok(false) => Ok(()),
            Ok(true) => Err("reason=accepted".into()),
            Err(reason) => Err(reason),
        };
        bench.judge(name, outcome)?;
    }
    let at = bench.scratch.address();
    bench.scratch.fill(0);
    let part = |length: u32, writable| Buffer {
        address: at,
        length,
        writable,
    };
    let chains: [(&str, &[Buffer]); 6] = [
        ("no-command", &[part(0, false)]),
        ("half-a-command", &[part(1, false)]),
        ("no-room-for-an-answer", &[part(3, false)]),
        ("an-answer-of-nothing", &[part(3, false), part(0, true)]),
        ("only-an-answer", &[part(1, true)]),
        (
            "a-command-of-a-mebibyte",
            &[part(1 << 20, false), part(1, true)],
        ),
    ];
    for (name, chain) in chains {
        let control = control(bench)?;
        let outcome = pass(&mut control.ring, control.doorbell.as_ref(), chain);
        bench.judge(name, outcome.map(drop))?;
    }
    Ok(REFUSED.len() + chains.len())
}

/// Sound commands, between datagrams that are under way; how many of these came back. Those in a queue that
/// is turned off are lost.
pub fn while_packets_flow(bench: &mut Bench, rounds: u64) -> Result<u64, String> {
    let own = bench.run.ports[0].out.own.mac;
    let pairs = bench.run.ports.len() as u16;
    let mut came = 0;
    for round in 0..rounds {
        let mut last = 0;
        for _ in 0..8 {
            last = bench.ask()?;
        }
        let net = &mut bench.run.net;
        net.command(PROMISCUOUS, &[(round % 2) as u8])?;
        net.command(SET_MAC, &own)?;
        if pairs > 1 {
            let wanted = 1 + (round % u64::from(pairs)) as u16;
            net.command(SET_PAIRS, &wanted.to_le_bytes())?;
        }
        came += u64::from(bench.hear(last, 20)?);
    }
    Ok(came)
}
