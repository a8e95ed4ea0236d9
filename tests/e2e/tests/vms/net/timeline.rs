//! One device's life over the three processes, as it is shown in vmm/DESIGN.md.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use outboard_e2e::eventually;
use outboard_e2e::network::{self, ip};
use outboard_e2e::timeline::{Event, Timeline, Who, traced};
use outboard_e2e::vm::{Run, Vm};

use super::in_network;
use crate::{Need, Test};

const NEEDS: &[Need] = &[Need::Kvm, Need::Network, Need::Program("strace")];

pub fn tests() -> Vec<Test> {
    vec![
        in_network(
            "the life of a card with a peer is as it is shown",
            NEEDS,
            peer,
        ),
        in_network(
            "the life of a card with a tap is as it is shown",
            NEEDS,
            tap,
        ),
    ]
}

fn listen(socket: &Path) -> Result<UnixListener> {
    let listener = UnixListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn accept(listener: &UnixListener) -> Result<UnixStream> {
    eventually("the card connects", || {
        Ok(listener.accept().ok().map(|(peer, _)| peer))
    })
}

/// A VM with one card, whose messages are written to `file`.
fn start(card: &str, cmdline: &str, file: &Path) -> Result<Vm> {
    let run = Run::guest(&format!("scenario=net-identify {cmdline}"))?;
    let run = run.with("--net", card).with("--on-reset", "restart");
    traced(run, file).start()
}

/// The link is up, and the rings are served: the last that the machine says of them
/// is a question after they were enabled.
fn served(vm: &mut Vm, trace: &Path) -> Result<()> {
    vm.console_line("link up")?;
    eventually("the rings are served", || {
        let so_far = Timeline::read(trace, Vec::new())?;
        let said = so_far.said(Who::Machine, Who::BackEnd);
        let last = ["SET_VRING_ENABLE", "GET_FEATURES"].map(str::to_owned);
        Ok(said.ends_with(&last).then_some(()))
    })
}

fn peer() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (trace, socket) = (folder.path().join("trace"), folder.path().join("peer"));
    let mut outside = Vec::new();
    let listener = listen(&socket)?;
    let cmdline = "link=up,down,up exit=reset";
    let mut vm = start(&format!("peer={}", socket.display()), cmdline, &trace)?;
    let peer = accept(&listener)?;
    served(&mut vm, &trace)?;
    outside.push(Event::now("THE PEER GOES"));
    // Nobody listens any more: it is not to be back before the guest has looked.
    drop(listener);
    fs::remove_file(&socket)?;
    drop(peer);
    vm.console_line("link down")?;
    let listener = listen(&socket)?;
    let peer = accept(&listener)?;
    outside.push(Event::now("THE PEER IS BACK"));
    vm.console_line("link up")?;
    outside.push(Event::now("THE GUEST SEES IT, AND RESETS ITSELF"));
    // The machine's and the back-end's successors; a peer of their own.
    let next = accept(&listener)?;
    drop(peer);
    served(&mut vm, &trace)?;
    outside.push(Event::now("SIGTERM"));
    // What the test has started is strace.
    let supervisor = vm.process(|process| process.args.get(1).is_some_and(|word| word == "run"))?;
    kill(supervisor.pid, Signal::SIGTERM)?;
    vm.wait()?;
    drop(next);
    check("peer", &Timeline::read(&trace, outside)?)
}

fn tap() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let trace = folder.path().join("trace");
    let mut outside = Vec::new();
    network::tap("tap0", "")?;
    let mut vm = start("tap=tap0", "link=up,down,up", &trace)?;
    served(&mut vm, &trace)?;
    outside.push(Event::now("THE INTERFACE GOES DOWN"));
    ip("link set tap0 down")?;
    vm.console_line("link down")?;
    outside.push(Event::now("THE INTERFACE GOES UP"));
    ip("link set tap0 up")?;
    vm.console_line("link up")?;
    outside.push(Event::now("THE GUEST SEES IT, AND POWERS ITSELF OFF"));
    vm.wait()?.with_code(0)?;
    check("tap", &Timeline::read(&trace, outside)?)
}

/// What was said is what vmm/DESIGN.md shows; when, differs each time.
fn check(name: &str, made: &Timeline) -> Result<()> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vmm/DESIGN.md");
    let page = fs::read_to_string(page)?;
    let begin = format!("<!-- timeline: {name} -->\n```\n");
    let shown = page.split(&begin).nth(1);
    let shown = shown.with_context(|| format!("vmm/DESIGN.md does not show it:\n{made}"))?;
    let shown = shown.split("```").next().unwrap_or_default();
    let all = [Who::Supervisor, Who::Machine, Who::BackEnd];
    for (from, to) in all.iter().flat_map(|from| all.map(|to| (*from, to))) {
        let (made_so, shown_so) = (made.said(from, to), Timeline::said_in(shown, from, to));
        ensure!(
            made_so == shown_so,
            "vmm/DESIGN.md shows {from} → {to} as\n{shown_so:?}, and it is\n{made_so:?}; all of \
             it:\n{made}"
        );
    }
    Ok(())
}
