//! A back-end program from its command line to its exit status, by QEMU's
//! conventions (vhost-user, "Backend program conventions") and Outboard's
//! launch contract (`outboard_protocol::launch`).

use std::env;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use outboard_protocol::launch;

use crate::device::Device;
use crate::inherited;
use crate::listen::Source;
use crate::session::{End, Host, Limits, serve};
use crate::worker::Stuck;

/// What every back-end takes on its command line; a program flattens it into
/// its own arguments (`#[command(flatten)]`).
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Listen on this Unix socket; serve one front-end after another
    #[arg(long, value_name = "PATH", conflicts_with = "fd",
          required_unless_present_any = ["fd", "print_capabilities"])]
    pub socket_path: Option<PathBuf>,

    /// Serve this inherited socket, connected or listening
    #[arg(long, value_name = "FDNUM")]
    pub fd: Option<RawFd>,

    /// Print what this program can do as JSON, and exit
    #[arg(long)]
    pub print_capabilities: bool,

    /// Poll a busy queue for this long at most before sleeping; 0 never polls
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50)]
    pub poll_us: u16,
}

/// What `--print-capabilities` prints (QEMU's docs/interop/vhost-user.json,
/// VHostUserBackendCapabilities).
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Capabilities {
    /// The device type by the schema, such as `block`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The options of the type that are supported.
    pub features: &'static [&'static str],
}

/// Runs a back-end: prints its capabilities, or makes its device with `build`
/// and serves it until SIGTERM, SIGINT, or the end of an inherited connection.
///
/// Status 0 is a clean end; what else happened is said on standard error.
/// Call it first of all: logging, signals and inherited descriptors are its
/// business.
pub fn run<D: Device>(
    args: &Args,
    capabilities: Capabilities,
    build: impl FnOnce() -> anyhow::Result<D>,
) -> ExitCode {
    let logging = env_logger::Env::default().default_filter_or("info,virtio_queue=off");
    let _ = env_logger::Builder::from_env(logging)
        .format_timestamp(None)
        .try_init();
    let result = if args.print_capabilities {
        print(capabilities)
    } else {
        run_device(args, build)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print(capabilities: Capabilities) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(&capabilities)?);
    Ok(())
}

fn run_device<D: Device>(
    args: &Args,
    build: impl FnOnce() -> anyhow::Result<D>,
) -> anyhow::Result<()> {
    check_contract()?;
    let signals = catch_signals()?;
    // The descriptor before anything else, since a number may be used again.
    let source = match (&args.fd, &args.socket_path) {
        (Some(number), _) => Source::inherited(inherited::take(*number)?)?,
        (None, Some(path)) => Source::at(path)?,
        (None, None) => bail!("no front-end to serve: give --socket-path=PATH or --fd=FDNUM"),
    };
    let limits = Limits {
        poll: Duration::from_micros(args.poll_us.into()),
        ..Limits::default()
    };
    let host = Host::new(build()?, limits).context("cannot make an eventfd")?;
    serve_all(&host, source, signals.as_fd())
}

/// Refuses a launch contract that this program does not know.
fn check_contract() -> anyhow::Result<()> {
    let Some(version) = env::var_os(launch::VERSION_ENV) else {
        return Ok(());
    };
    if version.to_str() != Some(&launch::VERSION.to_string()) {
        bail!(
            "{} is {:?}, but this program knows only version {}: \
             use programs of the same release",
            launch::VERSION_ENV,
            version,
            launch::VERSION
        );
    }
    Ok(())
}

/// Turns SIGTERM and SIGINT into a readable descriptor, for all threads.
fn catch_signals() -> anyhow::Result<SignalFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("cannot block signals")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("cannot wait for signals")
}

fn serve_all<D: Device>(
    host: &Host<D>,
    source: Source,
    stop: BorrowedFd<'_>,
) -> anyhow::Result<()> {
    let stuck = |Stuck| {
        anyhow::anyhow!(
            "cannot end the session: the device did not return every request in time; \
             look at the state of its resource"
        )
    };
    let listening = match source {
        Source::Connected(stream) => {
            return match serve(host, stream, stop).map_err(stuck)? {
                End::CutOff(why) => bail!("cut the front-end off: {why}"),
                End::Closed | End::Stopped => Ok(()),
            };
        }
        Source::Listening(listening) => listening,
    };
    while let Some(stream) = listening
        .accept(stop)
        .context("cannot accept a front-end")?
    {
        match serve(host, stream, stop).map_err(stuck)? {
            End::CutOff(why) => log::warn!("cut a front-end off: {why}"),
            End::Closed => {}
            End::Stopped => break,
        }
    }
    Ok(())
}
