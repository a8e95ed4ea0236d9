//! `outboard`: the supervisor and, started by it, the machine.

use std::process::{ExitCode, Termination};

use clap::Parser;
use outboard::cli::{Cli, Command};
use outboard::ctl;
use outboard::exit::Exit;
use outboard::machine;
use outboard::supervisor::host::descriptors;
use outboard::supervisor::say::{USUAL, say};
use outboard::supervisor::{self, process::spawn};
use outboard_log::{Speaker, filters};
use outboard_protocol::launch::MACHINE_FD;

fn main() -> ExitCode {
    // Before anything else opens descriptors, and that number with it.
    let inherited = spawn::inherited(MACHINE_FD);
    spawn::own_signals();
    descriptors::raise();
    match Cli::parse().command {
        Command::Run(run) => {
            drop(inherited);
            let (file, settings) = run.settings();
            supervisor::run(file, settings).report()
        }
        Command::Ctl(ctl) => ctl::run(ctl),
        Command::Machine => match inherited {
            Some(socket) => {
                let speaker = Speaker::new("outboard-machine", outboard_log::label().as_deref());
                outboard_log::start(speaker, &filters(None, USUAL));
                machine::run(socket)
            }
            None => {
                say("`machine` is started by `outboard run`, which see");
                Exit::Usage.report()
            }
        },
    }
}
