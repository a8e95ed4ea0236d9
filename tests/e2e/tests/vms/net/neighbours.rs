//! Guests that talk to other guests, on a bridge or through `peer=`, and to
//! programs that speak the same framing: QEMU and passt.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use outboard_e2e::eventually;
use outboard_e2e::network::{self, Peer};
use outboard_e2e::processes::is_listened_on;
use outboard_e2e::products::Products;
use outboard_e2e::vm::{GuestResult, Run, Vm};
use tempfile::TempDir;

use super::{NET, answered, in_network, vm};
use crate::{Need, Test};

const QEMU: &[Need] = &[
    Need::Kvm,
    Need::Network,
    Need::Program("qemu-system-x86_64"),
];
const PASST: &[Need] = &[Need::Kvm, Need::Network, Need::Program("passt")];

/// What a guest that takes datagrams is told, and one that sends them.
const SINK: &str = "scenario=net-sink ip=10.0.2.2";
const BLAST: &str = "scenario=net-blast ip=10.0.2.3 peer=10.0.2.2 requests=20000 window=64";
const ECHO: &str = "scenario=net-echo ip=10.0.2.2 requests=200";
const PING: &str = "scenario=net-ping ip=10.0.2.3 peer=10.0.2.2 requests=200 size=1000";

pub fn tests() -> Vec<Test> {
    vec![
        in_network("two vms on a bridge talk", NET, || on_a_bridge(64, "")),
        in_network("two vms on a bridge leave segments uncut", NET, || {
            on_a_bridge(8, "gso=1448 requests=5000")
        }),
        in_network("two vms with a socket for a wire talk", NET, || {
            with_a_peer(outboard, outboard)
        }),
        in_network("a vm connects to a qemu that listens", QEMU, || {
            with_a_peer(qemu, outboard)
        }),
        in_network("a vm listens and a qemu connects", QEMU, || {
            with_a_peer(outboard, qemu)
        }),
        in_network("a guest and its host talk through passt", PASST, passt),
    ]
}

/// A VM by its guest's command line and the socket of its card, at which it
/// listens or not.
type Vmm = fn(&str, &Path, bool) -> Result<Run>;

fn outboard(cmdline: &str, socket: &Path, listens: bool) -> Result<Run> {
    let how = if listens { "listen" } else { "wait=60s" };
    vm(&format!("peer={},{how}", socket.display()), 1, cmdline)
}

fn qemu(cmdline: &str, socket: &Path, listens: bool) -> Result<Run> {
    let kernel = Products::get()?.guest("guest-pvh");
    let server = if listens { "on" } else { "off" };
    let netdev = format!(
        "stream,id=n,addr.type=unix,addr.path={},server={server}",
        socket.display()
    );
    Ok(Run::program("qemu-system-x86_64")
        .with("-M", "microvm,pcie=on,rtc=off")
        .with("-accel", "kvm")
        .with("-cpu", "host,-arch-capabilities")
        .with("-m", "256")
        .with("-display", "none")
        .with("-serial", "stdio")
        .switch("-no-reboot")
        .switch("-nodefaults")
        .switch("-no-user-config")
        .with("-kernel", kernel)
        .with("-append", format!("{cmdline} ecam=0xe0000000"))
        .with("-netdev", netdev)
        .with(
            "-device",
            "virtio-net-pci,disable-legacy=on,netdev=n,mac=02:00:00:00:00:42",
        ))
}

/// A folder, and a socket in it.
pub fn socket() -> Result<(TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("wire");
    Ok((folder, path))
}

fn there(socket: &Path) -> Result<()> {
    eventually("somebody listens", || {
        Ok(is_listened_on(socket).then_some(()))
    })
}

/// The guest's result, when its VM has ended as it should.
fn ends(mut vm: Vm, scenario: &str) -> Result<GuestResult> {
    let result = vm.wait()?.with_code(0)?.result(scenario)?.passed()?;
    vm.check_nothing_is_left()?;
    Ok(result)
}

/// All datagrams have come, once and in order.
fn complete(result: &GuestResult) -> Result<()> {
    for key in ["lost", "reordered", "duplicates", "wrong"] {
        ensure!(result.number(&format!("peer_{key}"))? == 0, "{result:?}");
    }
    ensure!(
        result.number("peer_received")? == result.number("sent")?,
        "{result:?}"
    );
    Ok(())
}

/// One listens at a socket and the other connects: each sends to the other,
/// and each answers the other.
fn with_a_peer(listens: Vmm, connects: Vmm) -> Result<()> {
    let (folder, socket) = socket()?;
    for (one, other, first, second) in [
        (SINK, BLAST, "net-sink", "net-blast"),
        (BLAST, SINK, "net-blast", "net-sink"),
        (ECHO, PING, "net-echo", "net-ping"),
        (PING, ECHO, "net-ping", "net-echo"),
    ] {
        // Whoever asks goes on until the other is there.
        let one = listens(one, &socket, true)?.start()?;
        there(&socket)?;
        let other = connects(other, &socket, false)?.start()?;
        let results = [ends(other, second)?, ends(one, first)?];
        // One of them has asked, and knows.
        let mut judged = 0;
        for result in &results {
            if result.word("peer_lost").is_ok() {
                complete(result)?;
                judged += 1;
            } else if result.word("answered").is_ok() {
                answered(result, 200)?;
                judged += 1;
            }
        }
        ensure!(judged == 1, "{results:?}");
        let _ = fs::remove_file(&socket);
    }
    drop(folder);
    Ok(())
}

fn on_a_bridge(window: u64, more: &str) -> Result<()> {
    network::ip("link add br0 type bridge")?;
    network::ip("addr add 10.0.2.1/24 dev br0")?;
    network::ip("link set br0 up")?;
    for tap in ["tap0", "tap1"] {
        network::tap(tap, "")?;
        network::ip(&format!("link set {tap} master br0"))?;
    }
    let mut one = vm("tap=tap0", 2, SINK)?.start()?;
    one.console_line("ready")?;
    let pinged = Peer::run("ping --to 10.0.2.2 --requests 20")?;
    answered(&pinged, 20)?;
    let blast =
        format!("scenario=net-blast ip=10.0.2.3 peer=10.0.2.2 requests=20000 window={window}");
    let blast = match more {
        "" => blast,
        more => blast.replace("requests=20000", more),
    };
    let other = vm("tap=tap1", 2, &blast)?.start()?;
    complete(&ends(other, "net-blast")?)?;
    let sink = ends(one, "net-sink")?;
    // One that left segments uncut has sent frames longer than the MTU.
    let bytes = sink.number("rx_bytes")? / sink.number("rx_frames")?;
    ensure!((bytes > 1514) == more.contains("gso="), "{sink:?}");

    let mut one = vm("tap=tap0", 1, "scenario=net-echo ip=10.0.2.2")?.start()?;
    one.console_line("ready")?;
    let ping = ends(vm("tap=tap1", 1, PING)?.start()?, "net-ping")?;
    answered(&ping, 200)?;
    Peer::run("stop --to 10.0.2.2")?;
    let echo = ends(one, "net-echo")?;
    ensure!(echo.number("echoed")? == 200, "{echo:?}");
    Ok(())
}

/// A passt at a socket, killed in the end.
struct Passt(Child);

impl Passt {
    /// One that leads UDP to these `ports` of the host to the guest's.
    fn start(socket: &Path, ports: &str) -> Result<Self> {
        let child = Command::new("passt")
            .args(["--foreground", "--one-off", "--quiet", "--ipv4-only"])
            .args(["--udp-ports", ports, "--socket"])
            .arg(socket)
            .stdin(Stdio::null())
            // It complains when there is no system log.
            .stderr(Stdio::null())
            .spawn()
            .context("passt")?;
        let mut passt = Self(child);
        eventually("passt listens", || {
            let status = passt.0.try_wait()?;
            ensure!(status.is_none(), "passt ended: {status:?}");
            Ok(is_listened_on(socket).then_some(()))
        })?;
        Ok(passt)
    }

    /// It leaves with its client.
    fn ended(mut self, socket: &Path) -> Result<()> {
        let status = eventually("passt ends", || Ok(self.0.try_wait()?))?;
        ensure!(status.success(), "passt: {status}");
        let _ = fs::remove_file(socket);
        Ok(())
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// passt gives the guest the host's address, and takes the gateway's for the
/// host's loopback.
fn passt() -> Result<()> {
    network::ip("link set lo up")?;
    network::tap("uplink", "")?;
    network::ip("addr add 192.0.2.2/24 dev uplink")?;
    network::ip("route add default via 192.0.2.1")?;
    let (folder, socket) = socket()?;
    // passt becomes somebody else.
    let mode: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(folder.path(), mode)?;

    let passt = Passt::start(&socket, "none")?;
    let echo = Peer::listening("echo --bind 127.0.0.1")?;
    let cmdline = "scenario=net-ping ip=192.0.2.2 peer=192.0.2.1 requests=200 size=1000";
    let ping = ends(outboard(cmdline, &socket, false)?.start()?, "net-ping")?;
    answered(&ping, 200)?;
    drop(echo);
    passt.ended(&socket)?;

    // The other way round, and with a peer that comes late.
    let cmdline = "scenario=net-echo ip=192.0.2.2";
    let mut vm = outboard(cmdline, &socket, false)?.start()?;
    let passt = Passt::start(&socket, "7,9")?;
    vm.console_line("ready")?;
    let ping = Peer::run("ping --to 127.0.0.1 --udp 1 --requests 200 --size 1000")?;
    answered(&ping, 200)?;
    Peer::run("stop --to 127.0.0.1")?;
    let echo = ends(vm, "net-echo")?;
    ensure!(echo.number("echoed")? == 200, "{echo:?}");
    passt.ended(&socket)
}
