//! Taps and peers that go while a VM runs, and guests that do not behave.

use std::os::unix::net::UnixStream;

use anyhow::{Result, ensure};
use outboard_e2e::eventually;
use outboard_e2e::image::Image;
use outboard_e2e::network::{self, Peer, ip};
use outboard_e2e::vm::{Ended, Run, Vm};

use super::{NET, answered, in_network, vm};
use crate::Test;

pub fn tests() -> Vec<Test> {
    vec![
        in_network(
            "a tap deleted under load is a link down and the vm lives on",
            NET,
            || tap_deleted("", 1),
        ),
        in_network(
            "a tap with queues deleted under load is a link down too",
            NET,
            || tap_deleted("multi_queue", 4),
        ),
        in_network("a tap deleted in silence is a link down", NET, || {
            network::tap("tap0", "")?;
            let cmdline = "scenario=net-identify link=up,down";
            let mut vm = vm("tap=tap0", 1, cmdline)?.start()?;
            vm.console_line("link up")?;
            ip("link del tap0")?;
            link_down_was_said_once(&over(vm)?)
        }),
        in_network("a peer that goes and comes back is seen", NET, peer_goes),
        in_network(
            "one peer after another talks to the same guest",
            NET,
            peers_in_turn,
        ),
        in_network("a guest that sends nonsense harms nobody", NET, || {
            hostile("", 1)
        }),
        in_network(
            "a guest that sends nonsense with several queues harms nobody",
            NET,
            || hostile("multi_queue", 4),
        ),
    ]
}

fn over(mut vm: Vm) -> Result<Ended> {
    let ended = vm.wait()?.with_code(0)?;
    vm.check_nothing_is_left()?;
    Ok(ended)
}

fn link_down_was_said_once(ended: &Ended) -> Result<()> {
    let mut lines = ended.messages.lines().filter(|line| line.contains("ERROR"));
    let line = lines.next().unwrap_or_default();
    ensure!(
        line.contains("tap tap0: ") && line.contains("the guest sees its link down"),
        "{ended}"
    );
    ensure!(lines.next().is_none(), "{ended}");
    Ok(())
}

/// The guest sends while its tap goes; then it looks at its link, and then it
/// verifies its disk.
fn tap_deleted(more: &str, pairs: u32) -> Result<()> {
    network::tap_with_address("tap0", more)?;
    let sink = Peer::listening(&format!("sink --streams {pairs}"))?;
    let image = Image::new(16 << 20)?;
    let cmdline = "scenario=net-blast,net-identify,verify seconds=4 ack=0 link=down";
    let run = vm(&format!("tap=tap0,queues={pairs}"), 2, cmdline)?;
    let vm = run.with("--disk", image.option()).start()?;
    eventually("frames flow", || {
        Ok((network::received("tap0")? > 2000).then_some(()))
    })?;
    ip("link del tap0")?;
    let ended = over(vm)?;
    ended.result("net-blast")?.passed()?;
    let identity = ended.result("net-identify")?.passed()?;
    ensure!(identity.word("link")? == "down", "{ended}");
    let verified = ended.result("verify")?.passed()?;
    let found = image.check(1)?;
    ensure!(found.digest == verified.number("digest")?, "{found:?}");
    drop(sink);
    link_down_was_said_once(&ended)
}

fn peer_goes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("wire");
    let cmdline = "scenario=net-identify link=down,up,down,up";
    let mut vm = vm(&format!("peer={},listen", socket.display()), 1, cmdline)?.start()?;
    vm.console_line("link down")?;
    let peer = UnixStream::connect(&socket)?;
    vm.console_line("link up")?;
    drop(peer);
    vm.console_line("link down")?;
    let peer = UnixStream::connect(&socket)?;
    vm.console_line("link up")?;
    over(vm)?.result("net-identify")?.passed()?;
    drop(peer);
    ensure!(!socket.exists(), "the socket is left");
    Ok(())
}

fn peers_in_turn() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("wire");
    let cmdline = "scenario=net-echo ip=10.0.2.2 requests=300";
    let mut echo = vm(&format!("peer={},listen", socket.display()), 1, cmdline)?.start()?;
    echo.console_line("ready")?;
    for _ in 0..3 {
        let cmdline = "scenario=net-ping ip=10.0.2.3 peer=10.0.2.2 requests=100";
        let ping = vm(&format!("peer={}", socket.display()), 1, cmdline)?.start()?;
        let ping = over(ping)?.result("net-ping")?.passed()?;
        answered(&ping, 100)?;
    }
    let echo = over(echo)?.result("net-echo")?.passed()?;
    ensure!(echo.number("echoed")? == 300, "{echo:?}");
    Ok(())
}

/// Each case of the guest's is followed by a datagram that comes back.
fn hostile(more: &str, pairs: u32) -> Result<()> {
    network::tap_with_address("tap0", more)?;
    let echo = Peer::listening("echo")?;
    let cmdline = format!("scenario=net-hostile queues={pairs}");
    let run: Run = vm(&format!("tap=tap0,queues={pairs}"), 2, &cmdline)?;
    let ended = over(run.start()?)?;
    let result = ended.result("net-hostile")?.passed()?;
    for (key, least) in [
        ("chains", 30),
        ("commands", 20),
        ("receive", 20),
        ("flowing", 1),
    ] {
        ensure!(result.number(key)? >= least, "{result:?}");
    }
    drop(echo);
    Ok(())
}
