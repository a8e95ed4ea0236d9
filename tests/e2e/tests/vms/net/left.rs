//! What a VM leaves behind of its tap, however it ends: nothing.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;

use anyhow::{Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::read;
use outboard_e2e::eventually;
use outboard_e2e::network::{self, Peer, ip};
use outboard_e2e::processes::Process;
use outboard_e2e::vm::Vm;
use outboard_protocol::tap;

use super::{NET, in_network, vm};
use crate::Test;

/// An address that the guest does not have, and a neighbour who has it.
const STRANGER: [u8; 6] = [2, 0, 0, 0, 0, 0x99];
/// Bytes before a frame of a tap that nobody has set up.
const HEADER: usize = tap::FRESH_HEADER;

/// How a VM comes to its end.
#[derive(Clone, Copy, Debug)]
enum End {
    Guest,
    Signal(Signal),
    Killed(fn(&Process) -> bool),
}

const ENDS: [End; 4] = [
    End::Guest,
    End::Signal(Signal::SIGTERM),
    End::Killed(Process::is_backend),
    End::Killed(Process::is_machine),
];

pub fn tests() -> Vec<Test> {
    let kinds = [("", 1), ("multi_queue", 1), ("multi_queue", 4)];
    let mut tests: Vec<_> = kinds
        .into_iter()
        .map(|(kind, pairs)| {
            let name = format!("a tap {kind} with {pairs} pairs is as new after every end");
            in_network(name.replace("  ", " "), NET, move || {
                ENDS.iter().try_for_each(|end| as_new(kind, pairs, *end))
            })
        })
        .collect();
    tests.push(in_network(
        "a tap that is not persistent goes with its vm",
        NET,
        || ENDS.iter().try_for_each(|end| goes_along(*end)),
    ));
    tests.push(in_network(
        "a tap whose supervisor was killed serves the next vm",
        NET,
        supervisor_killed,
    ));
    tests
}

/// A VM that wants frames for itself alone.
fn filtering(pairs: u32) -> Result<Vm> {
    let cmdline = "scenario=net-sink ip=10.0.2.2 promisc=0";
    let net = format!("tap=tap0,queues={pairs},on-failure=shutdown");
    let mut vm = vm(&net, pairs, cmdline)?.start()?;
    vm.console_line("ready")?;
    Ok(vm)
}

fn end(mut vm: Vm, how: End) -> Result<()> {
    match how {
        End::Guest => drop(Peer::run("stop --to 10.0.2.2")?),
        End::Signal(signal) => vm.signal(signal)?,
        End::Killed(which) => kill(vm.process(which)?.pid, Signal::SIGKILL)?,
    }
    vm.wait()?;
    vm.check_nothing_is_left()
}

fn as_new(kind: &str, pairs: u16, how: End) -> Result<()> {
    network::tap_with_address("tap0", kind)?;
    end(filtering(pairs.into())?, how)?;
    for queues in [pairs, 1] {
        let queues = tap::open("tap0", queues).map_err(|error| anyhow!(error))?;
        stranger_is_heard(&queues).map_err(|error| error.context(format!("{how:?}")))?;
    }
    ip(&format!("tuntap del dev tap0 mode tap {kind}"))
}

/// A frame for somebody else comes through, after a header of the size that the
/// kernel begins with.
fn stranger_is_heard(queues: &[OwnedFd]) -> Result<()> {
    ip("neigh replace 10.0.2.9 lladdr 02:00:00:00:00:99 dev tap0 nud permanent")?;
    network::takes_frames("tap0")?;
    UdpSocket::bind("10.0.2.1:0")?.send_to(b"anybody", "10.0.2.9:9")?;
    eventually("a frame for a stranger has come", || {
        for queue in queues {
            let mut bytes = [0; 4096];
            let Ok(length) = read(queue, &mut bytes) else {
                continue;
            };
            let frame = bytes.get(HEADER..length).unwrap_or_default();
            if frame.starts_with(&STRANGER) {
                return Ok(Some(()));
            }
            bail!("not a frame for a stranger: {:x?}", &bytes[..length]);
        }
        Ok(None)
    })
}

/// It is not persistent any more while the VM has it, and its last descriptor
/// is the VM's.
fn goes_along(how: End) -> Result<()> {
    network::tap_with_address("tap0", "multi_queue")?;
    let vm = filtering(2)?;
    ip("tuntap del dev tap0 mode tap multi_queue")?;
    ensure!(tap::index("tap0").is_ok(), "the vm has it");
    end(vm, how)?;
    ensure!(tap::index("tap0").is_err(), "{how:?}: it is still there");
    Ok(())
}

/// Nobody is left to take anything back: the next VM begins from the start.
fn supervisor_killed() -> Result<()> {
    network::tap_with_address("tap0", "multi_queue")?;
    let mut vm = filtering(4)?;
    vm.signal(Signal::SIGKILL)?;
    vm.wait()?;
    vm.check_nothing_is_left()?;
    // A driver that says nothing of what it wants to receive.
    let mut next = self::vm("tap=tap0,queues=4", 4, "scenario=net-sink ip=10.0.2.2")?.start()?;
    next.console_line("ready")?;
    // Its address is its own affair.
    Peer::run("stop --to 10.0.2.2")?;
    next.wait()?.with_code(0)?.result("net-sink")?.passed()?;
    next.check_nothing_is_left()?;
    let queues = tap::open("tap0", 4).map_err(|error| anyhow!(error))?;
    stranger_is_heard(&queues)
}
