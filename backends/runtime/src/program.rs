//! A back-end program from its command line to its exit status, by QEMU's
//! conventions (vhost-user, "Backend program conventions") and Outboard's
//! launch contract (`outboard_protocol::launch`).

use std::env;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use outboard_log::{Level, Rarely, Speaker, Verbosity};
use outboard_protocol::deadline::limits;
use outboard_protocol::{Deadline, launch};

use crate::activation;
use crate::device::Device;
use crate::event::Stuck;
use crate::inherited;
use crate::listen::Source;
use crate::outside::{Behind, Half};
use crate::session::{End, Host, Limits, serve};
use crate::signals::Stop;
use crate::supervisor::{self, Supervisor};

/// How a back-end finds its front-ends: the conventions of back-end programs.
/// With neither a path nor a descriptor it is the socket that a service manager
/// has passed ([`activation`]).
#[derive(Clone, Debug, clap::Args)]
pub struct FrontEnd {
    /// Listen on this Unix socket; serve one front-end after another
    #[arg(long, value_name = "PATH", conflicts_with = "fd")]
    pub socket_path: Option<PathBuf>,

    /// Serve this inherited socket, connected or listening
    #[arg(long, value_name = "FDNUM")]
    pub fd: Option<RawFd>,

    /// Print what this program can do as JSON, and exit
    #[arg(long)]
    pub print_capabilities: bool,

    #[command(flatten)]
    verbosity: Verbosity,
}

/// What every back-end on this runtime takes on its command line; a program
/// flattens it into its own arguments (`#[command(flatten)]`).
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    front_end: FrontEnd,

    /// Poll a busy queue for this long at most before sleeping; 0 never polls
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50)]
    poll_us: u16,
}

/// What `--print-capabilities` prints (QEMU's docs/interop/vhost-user.json,
/// VHostUserBackendCapabilities).
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Capabilities {
    /// The device type by the schema, such as `block`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The options of the type that are supported; a type that has none in the
    /// schema has no list of them either.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub features: &'static [&'static str],
}

/// Lets front-ends come. A socket at a path is bound only now: who came before there is
/// anybody to serve it would meet a program that ends.
pub type Opening = Box<dyn FnOnce() -> anyhow::Result<Source>>;

/// Runs a back-end: prints its capabilities, or makes its device with `build`
/// and serves it until a signal ([`Stop`]) or the end of an inherited connection.
///
/// Status 0 is a clean end; what else happened is said on standard error.
/// Call it first of all, before there is another thread: logging, signals and
/// inherited descriptors are its business, and started by hand the program becomes
/// two processes ([`outside`](crate::outside)).
pub fn run<D: Device>(
    args: &Args,
    capabilities: Capabilities,
    build: impl FnOnce() -> anyhow::Result<D>,
) -> ExitCode {
    let build = |_: &Supervisor| build();
    run_with(args, capabilities, || Ok((Behind::default(), build)))
}

/// The same for a device behind which there is something that a supervisor has to do
/// with: `open` opens that, in the process that may become two, and answers what the
/// half outside needs of it, and what makes the device of the rest, for a supervisor who
/// has said whether it is to wait ([`Supervisor::waits`]).
pub fn run_with<D: Device, B: FnOnce(&Supervisor) -> anyhow::Result<D>>(
    args: &Args,
    capabilities: Capabilities,
    open: impl FnOnce() -> anyhow::Result<(Behind, B)>,
) -> ExitCode {
    let limits = Limits {
        poll: Duration::from_micros(args.poll_us.into()),
        ..Limits::default()
    };
    begin(&args.front_end, capabilities, || {
        let (behind, build) = open()?;
        let serve = move |open: Opening, stop: Stop, supervisor: Supervisor| {
            let device = build(&supervisor)?;
            let mut host = Host::supervised(device, limits, supervisor)?;
            serve_all(&mut host, open()?, stop.as_fd())
        };
        Ok((behind, serve))
    })
}

/// The same for a program that serves its front-ends by itself: `serve` gets
/// where they come from, which it opens once it can serve them, a descriptor that is
/// readable when it is to end, and the supervisor, whom it tells that it is ready.
pub fn start(
    front_end: &FrontEnd,
    capabilities: Capabilities,
    serve: impl FnOnce(Opening, Stop, Supervisor) -> anyhow::Result<()>,
) -> ExitCode {
    begin(front_end, capabilities, || Ok((Behind::default(), serve)))
}

fn begin<S: FnOnce(Opening, Stop, Supervisor) -> anyhow::Result<()>>(
    front_end: &FrontEnd,
    capabilities: Capabilities,
    open: impl FnOnce() -> anyhow::Result<(Behind, S)>,
) -> ExitCode {
    let asked = front_end.verbosity.asked(Level::Info);
    let speaker = Speaker::this(outboard_log::label().as_deref());
    outboard_log::start(speaker, &outboard_log::filters(asked, Level::Info));
    raise_descriptors();
    live(front_end, capabilities, open).unwrap_or_else(|error| {
        outboard_log::say(&format!("{error:#}"));
        match error.is::<Usage>() {
            true => ExitCode::from(2),
            false => ExitCode::FAILURE,
        }
    })
}

fn live<S: FnOnce(Opening, Stop, Supervisor) -> anyhow::Result<()>>(
    front_end: &FrontEnd,
    capabilities: Capabilities,
    open: impl FnOnce() -> anyhow::Result<(Behind, S)>,
) -> anyhow::Result<ExitCode> {
    if front_end.print_capabilities {
        println!("{}", serde_json::to_string_pretty(&capabilities)?);
        return Ok(ExitCode::SUCCESS);
    }
    check_contract()?;
    // Descriptors before anything else, since a number may be used again.
    let line = supervisor::inherited()?;
    let opening = find(front_end)?;
    let stop = Stop::catch()?;
    let (mut behind, serve) = open()?;
    // Of the two processes, this one's.
    let _file = behind.file.take();
    let (line, _child) = match line {
        Some(line) => {
            // It is the supervisor's to see to.
            drop(behind);
            (line, None)
        }
        None => match behind.part()? {
            Half::Serving(line, child) => (line, Some(child)),
            Half::Outside(outside) => {
                drop((opening, stop, serve));
                return Ok(outside.attend());
            }
        },
    };
    let supervisor = Supervisor::meet(line, Deadline::after(limits::MESSAGE))?;
    serve(opening, stop, supervisor)?;
    Ok(ExitCode::SUCCESS)
}

/// Lets this process have as many descriptors as it may. The soft limit is low
/// for the sake of select(2) alone, which nothing here uses, and a front-end may
/// lend three for each queue and one for each region of memory.
fn raise_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| match soft < hard {
        true => setrlimit(Resource::RLIMIT_NOFILE, hard, hard),
        false => Ok(()),
    });
    if let Err(errno) = raised {
        log::debug!("the limit on open descriptors stays as it is: {errno}");
    }
}

/// Where front-ends come from. What is inherited has been taken when this returns.
fn find(front_end: &FrontEnd) -> anyhow::Result<Opening> {
    let passed = activation::passed(|name| env::var_os(name), std::process::id())?;
    let number = match (passed, front_end.fd, front_end.socket_path.clone()) {
        (false, Some(number), _) => number,
        (false, None, Some(path)) => return Ok(Box::new(move || Source::at(&path))),
        (true, None, None) => activation::PASSED,
        (true, _, _) => return Err(Usage(TWICE).into()),
        (false, None, None) => return Err(Usage(NOWHERE).into()),
    };
    let source = Source::inherited(inherited::take(number)?)?;
    Ok(Box::new(|| Ok(source)))
}

const NOWHERE: &str = "no front-end to serve: give --socket-path=PATH or --fd=FDNUM; see --help";
const TWICE: &str = "a service manager has passed a socket (LISTEN_FDS), and --socket-path or \
    --fd names another: leave one of them out";

/// The command line does not say, or says twice, where front-ends come from.
#[derive(Debug)]
struct Usage(&'static str);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Usage {}

/// Refuses a launch contract that this program does not know.
fn check_contract() -> anyhow::Result<()> {
    let Some(version) = env::var_os(launch::VERSION_ENV) else {
        return Ok(());
    };
    if version.to_str() != Some(&launch::OLDEST_VERSION.to_string()) {
        bail!(
            "{} is {version:?}, but this program knows only versions {} to {}: \
             use programs of the same release",
            launch::VERSION_ENV,
            launch::OLDEST_VERSION,
            launch::VERSION
        );
    }
    Ok(())
}

/// Says that a front-end was cut off; one may connect again and again for that.
pub fn cut_off(why: &dyn fmt::Display) {
    static CUT_OFF: Rarely = Rarely::new();
    if let Some(times) = CUT_OFF.again() {
        log::warn!("cut a front-end off: {why}{times}");
    }
}

fn serve_all<D: Device>(
    host: &mut Host<D>,
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
            End::CutOff(why) => cut_off(&why),
            End::Closed => {}
            End::Stopped => break,
        }
    }
    Ok(())
}
