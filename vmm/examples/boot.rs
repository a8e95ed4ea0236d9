//! Throw-away: boots a kernel without a supervisor.
#![allow(clippy::unwrap_used, clippy::panic)]
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use outboard_protocol::Deadline;
use outboard_protocol::launch::*;
fn main() {
    env_logger::init();
    let args: Vec<String> = std::env::args().collect();
    let (ours, theirs) = Channel::pair().unwrap();
    let thread = std::thread::spawn(move || outboard::machine::run(OwnedFd::from(theirs)));
    let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
    let kernel = File::open(&args[1]).unwrap();
    let initrd = args.get(5).map(|p| File::open(p).unwrap());
    let mut fds = vec![StartFd::Kvm, StartFd::Kernel, StartFd::ConsoleOut];
    let out = std::io::stdout();
    let mut send = vec![kvm.as_fd(), kernel.as_fd(), out.as_fd()];
    if let Some(i) = &initrd { fds.push(StartFd::Initrd); send.push(i.as_fd()); }
    let machine = Machine { cpus: args[2].parse().unwrap(), memory: args[3].parse::<u64>().unwrap() << 20, hugepages: false, prefault: false,
        doorbell: Doorbell::Mmio, cmdline: args[4].clone(), devices: vec![] };
    let d = || Deadline::after(Duration::from_secs(300));
    ours.send(&ToMachine::Start { version: VERSION, machine, fds }, &send, d()).unwrap();
    loop {
        let m = ours.recv::<FromMachine>(d()).unwrap().map(|m| m.0);
        match &m {
            Some(FromMachine::Ended { ending: Ending::KvmError { detail } }) => { eprintln!("{detail}"); break }
            Some(FromMachine::Failed { error }) => { eprintln!("failed: {error}"); break }
            Some(FromMachine::Ended { .. }) | None => { eprintln!("{m:?}"); break }
            _ => eprintln!("{m:?}"),
        }
    }
    thread.join().unwrap();
}
