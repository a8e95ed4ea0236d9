//! What holds wherever another back-end takes a card over, of itself or on command: a link
//! that stays up, and a flow between two VMs.

use std::os::unix::net::UnixListener;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use outboard_e2e::vm::{GuestResult, Run, Vm};

use super::neighbours::socket;
use super::outlives::over;
use super::vm;

/// A VM whose one card another back-end can take over.
pub trait Card: Sized {
    /// What the card is made with.
    const OPTIONS: &'static str;

    fn start(run: Run) -> Result<Self>;
    fn vm(&mut self) -> &mut Vm;
    fn into_vm(self) -> Vm;

    /// Another back-end takes it over.
    fn goes_over(&mut self) -> Result<()>;
}

/// The guest ends when its link has gone down: not before its peer has.
pub fn link_stays_up<C: Card>(times: u32) -> Result<()> {
    let (folder, socket) = socket()?;
    let peer = UnixListener::bind(&socket)?;
    let card = format!("peer={}{}", socket.display(), C::OPTIONS);
    let cmdline = "scenario=net-identify link=up,down";
    let mut card = C::start(vm(&card, 1, cmdline)?)?;
    let mut connection = peer.accept()?;
    card.vm().console_line("link up")?;
    for _ in 0..times {
        card.goes_over()?;
        // One after another, since it serves one at a time.
        connection = peer.accept()?;
    }
    let mut vm = card.into_vm();
    ensure!(!vm.is_over()?, "{}", vm.messages());
    let messages = vm.messages();
    ensure!(!messages.contains("sees its link down"), "{messages}");
    drop((connection, peer, folder));
    vm.console_line("link down")?;
    over(vm, "net-identify")?;
    Ok(())
}

/// One listens and the other connects. What is in a connection is lost with it, and sent
/// again.
pub fn neighbours<C: Card>(times: u32) -> Result<()> {
    let (_folder, socket) = socket()?;
    let card = |how| format!("peer={},{how}{}", socket.display(), C::OPTIONS);
    let echo = vm(&card("listen"), 1, "scenario=net-echo ip=10.0.2.2")?;
    let mut echo = C::start(echo)?;
    echo.vm().console_line("ready")?;
    let storm = "scenario=net-storm ip=10.0.2.3 peer=10.0.2.2 retry_ms=20";
    let mut storm = C::start(vm(&card("wait=60s"), 1, storm)?)?;
    more_is_answered(storm.vm())?;
    for _ in 0..times {
        storm.goes_over()?;
        more_is_answered(storm.vm())?;
        echo.goes_over()?;
        more_is_answered(storm.vm())?;
    }
    for mut vm in [storm.into_vm(), echo.into_vm()] {
        vm.signal(Signal::SIGTERM)?;
        vm.wait()?;
        vm.check_nothing_is_left()?;
    }
    Ok(())
}

/// More is answered than at first, and no byte is wrong.
fn more_is_answered(vm: &mut Vm) -> Result<()> {
    let mut first = None;
    loop {
        let line = vm.console_line("progress scenario=net-storm")?;
        let words = GuestResult::from_words(&line);
        ensure!(words.number("wrong")? == 0, "{line}");
        let answered = words.number("answered")?;
        if answered > *first.get_or_insert(answered) {
            return Ok(());
        }
    }
}
