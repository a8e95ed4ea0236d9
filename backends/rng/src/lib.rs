//! A virtio entropy device on the stock `vhost-user-backend` daemon: its
//! command line, and one session after another. [`device`] is the device.

pub mod device;

use std::io::ErrorKind;
use std::process::{ExitCode, exit};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::{Parser, value_parser};
use outboard_runtime::listen::Source;
use outboard_runtime::program::{self, Capabilities, FrontEnd, Stop};
use rustix::rand::{GetRandomFlags, getrandom};
use vhost::vhost_user::{Error as Protocol, Listener};
use vhost_user_backend::{Error, VhostUserDaemon};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use device::{Memory, PERIOD_OVER, Rate, Rng};

const EXAMPLES: &str = "\
Examples:
  Serve entropy to QEMU, Outboard or any other vhost-user front-end:
    outboard-rng --socket-path=/tmp/rng.sock
  At most 1 KiB in each second:
    outboard-rng --socket-path=/tmp/rng.sock --max-bytes=1024 --period=1000";

/// Serve the kernel's random numbers as a virtio entropy device over vhost-user
#[derive(Debug, Parser)]
#[command(name = "outboard-rng", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    front_end: FrontEnd,

    /// Most bytes that the guest gets in a period
    #[arg(long, value_name = "N", default_value_t = 1 << 20, value_parser = value_parser!(u64).range(1..))]
    max_bytes: u64,

    /// Length of a period
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 1000, value_parser = value_parser!(u32).range(1..))]
    period: u32,
}

impl Cli {
    /// Serves as the command line asks. Call it first of all.
    pub fn serve(self) -> ExitCode {
        let (kind, features) = ("rng", &[][..]);
        let rate = Rate(self.max_bytes, Duration::from_millis(self.period.into()));
        let capabilities = Capabilities { kind, features };
        program::start(&self.front_end, capabilities, |source, stop| {
            serve(source, stop, rate)
        })
    }
}

fn serve(source: Source, stop: Stop, rate: Rate) -> anyhow::Result<()> {
    let Source::Listening(listening) = source else {
        bail!("cannot serve a connected socket: give one that listens, or --socket-path");
    };
    getrandom(&mut [0u8], GetRandomFlags::empty()).context("getrandom(2) fails")?;
    let listener = listening.blocking().context("cannot share the socket")?;
    std::thread::spawn(move || {
        stop.wait();
        // Its file goes with the socket.
        drop(listening);
        exit(0);
    });
    serve_all(Listener::from(listener), rate)
}

/// Each session has a daemon of its own, since one forgets nothing.
fn serve_all(mut listener: Listener, rate: Rate) -> anyhow::Result<()> {
    let failed = |error| anyhow!("the daemon failed: {error}");
    loop {
        let memory = Memory::new(GuestMemoryMmap::new());
        let rng = Arc::new(Rng::new(memory.clone(), rate).context("cannot make a timer")?);
        let mut daemon =
            VhostUserDaemon::new("session".into(), rng.clone(), memory).map_err(failed)?;
        for worker in daemon.get_epoll_handlers() {
            worker.register_listener(rng.timer(), EventSet::IN, PERIOD_OVER.into())?;
        }
        match daemon.start(&mut listener).and_then(|()| daemon.wait()) {
            Ok(()) | Err(Error::HandleRequest(Protocol::Disconnected)) => {}
            Err(error @ Error::HandleRequest(_)) => log::warn!("cut a front-end off: {error}"),
            // The socket is shut down: no other front-end will come.
            Err(Error::CreateBackendListener(Protocol::SocketError(error)))
                if error.kind() == ErrorKind::InvalidInput =>
            {
                break Ok(());
            }
            Err(error) => break Err(failed(error)),
        }
        drop(daemon);
        rng.close();
    }
}
