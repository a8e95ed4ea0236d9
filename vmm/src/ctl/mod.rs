//! `outboard ctl`: asks a running VM by its control API, and says what it answers.

mod client;
mod failure;
mod show;
mod swap;

use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::{Args, Subcommand};
use outboard_protocol::Deadline;
use serde::de::DeserializeOwned;

use self::client::Client;
use self::failure::{EXIT_CODES, Failure};
use crate::supervisor::api::model::{Change, Device, DeviceState, Event, Explanation, Vm, VmState};
use crate::supervisor::say::say;
use crate::supervisor::text::options;
use crate::supervisor::text::units::Wait;

/// Between two looks for a VM that is to be waited for.
const LOOK: Duration = Duration::from_millis(20);
/// Where the socket is if it is not given.
const API_ENV: &str = "OUTBOARD_API";

/// What the help gives as examples.
pub(crate) const EXAMPLES: &str = "\
Examples:
  Ask a VM that was started with `outboard run --api vm.sock …`:
    outboard ctl --api vm.sock status

  The same, for a script:
    outboard ctl --api vm.sock status --json | jq '.devices[].state'

  Swap a disk's back-end for the release that is installed now:
    outboard ctl --api vm.sock swap disk0

  End a disk's back-end, and wait until it is served again:
    outboard ctl --api vm.sock restart disk0
    outboard ctl --api vm.sock wait disk0 running --timeout 10s

  Say it once for several:
    export OUTBOARD_API=vm.sock
    outboard ctl events
    outboard ctl shutdown";

const SWAP_HELP: &str = "\
The back-end that serves is told to stop once the other is there and fits what the guest knows; \
before the other has the queues, whatever fails leaves the first one serving.

Examples:
  Start the program that is installed now, in place of the one that runs:
    outboard ctl swap disk0

  Move a disk that was given profile=portable to qemu-storage-daemon, and back:
    qemu-storage-daemon \
      --blockdev driver=file,node-name=f,filename=disk.img,locking=off \
      --blockdev driver=raw,node-name=d,file=f \
      --export type=vhost-user-blk,id=e,node-name=d,writable=on,num-queues=2,\
addr.type=unix,addr.path=q.sock &
    outboard ctl swap disk0 socket=q.sock
    outboard ctl swap disk0

  Put a copy behind the same disk, of a VM that is paused meanwhile with its disks:
    outboard ctl pause && cp disk.img copy.img &&
      outboard ctl swap disk0 path=copy.img
    outboard ctl resume

  The same while the VM runs: the disk alone rests, and goes on with the copy:
    outboard ctl pause disk0 && cp disk.img copy.img &&
      outboard ctl swap disk0 path=copy.img";

const ENVIRONMENT: &str = "\
Environment:
  OUTBOARD_API
      The socket, where --api is not given";

/// What follows the help.
pub(crate) fn after_help() -> String {
    format!("{EXAMPLES}\n\n{EXIT_CODES}\n\n{ENVIRONMENT}")
}

/// `outboard ctl`.
#[derive(Args, Debug)]
pub struct Ctl {
    /// Socket of the VM, as `outboard run --api` has it [default: $OUTBOARD_API]
    #[arg(long, value_name = "PATH", global = true)]
    api: Option<PathBuf>,

    /// Print what the API says, in place of a table
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    what: What,
}

/// What is asked.
#[derive(Debug, Subcommand)]
enum What {
    /// Show the VM and its devices.
    Status,
    /// Replace the back-end of a device.
    Restart {
        /// Id of the device.
        device: String,
    },
    /// Put another back-end in the place of one that works, while requests are in flight.
    #[command(after_help = SWAP_HELP)]
    Swap {
        /// Id of the device.
        device: String,
        /// backend=EXE, socket=PATH, path=FILE, tap=NAME or peer=PATH; nothing: the program that
        /// is installed now. wait=10s: how long to wait for a socket
        #[arg(value_name = "KEY=VALUE")]
        wanted: Vec<String>,
        /// Let the disk have another size, and tell the guest
        #[arg(long)]
        resize: bool,
        /// Say whether it could be done, and touch nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Swap a device's back-end for the program that is installed now, and say which releases
    /// they are.
    Upgrade {
        /// Id of the device; `all`: each that has a program, one after another.
        device: String,
    },
    /// Put another tap or peer behind a network card: tap=NAME or peer=PATH
    Peer {
        /// Id of the card.
        device: String,
        /// tap=NAME, or peer=PATH of a Unix socket at which the peer listens
        #[arg(value_name = "KEY=VALUE", required = true)]
        behind: Vec<String>,
        /// The peer connects there; outboard listens
        #[arg(long)]
        listen: bool,
    },
    /// Give a disk another size, of which the guest is told.
    Resize {
        /// Id of the disk.
        device: String,
        /// Size, as 20G, or in bytes; an image that is a file grows or shrinks to it
        #[arg(required_unless_present = "rescan", conflicts_with = "rescan", value_parser = size)]
        size: Option<u64>,
        /// As large as the image, or block device, is by now
        #[arg(long)]
        rescan: bool,
    },
    /// Hold the link of a network card down, or let it be what is behind the card.
    Link {
        /// Id of the card.
        device: String,
        /// up or down
        #[arg(value_parser = ["up", "down"])]
        state: String,
    },
    /// Stop the guest and its disks, whose images can be copied then, or only one device;
    /// `resume` lets it go on.
    Pause {
        /// Id of the device, whose back-end then takes nothing.
        device: Option<String>,
    },
    /// Let a guest, or one device, that was stopped go on.
    Resume {
        /// Id of the device.
        device: Option<String>,
    },
    /// End the VM in order, as SIGTERM does.
    Shutdown,
    /// Show where everything is, and then each change, until the VM ends.
    Events,
    /// Wait until a device is in a state, `--timeout 30s` at most; also for the VM.
    Wait {
        /// Id of the device.
        device: String,
        /// running, paused, down, restarting, waiting_for_io, starting or ending.
        #[arg(value_parser = options::word::<DeviceState>)]
        state: DeviceState,
        /// How long: 500ms, 30s, 2m or forever
        #[arg(long, value_name = "TIME", default_value = "30s")]
        timeout: Wait,
    },
    /// Print all figures, as Prometheus reads them.
    Metrics,
    /// Tell whether a device can be recovered and swapped exactly, and if not, why.
    Explain {
        /// Id of the device.
        device: String,
    },
}

/// Does what was asked, and tells the user.
pub fn run(ctl: Ctl) -> ExitCode {
    let (text, code) = match ctl.run() {
        Ok(()) => (None, 0),
        Err(failure) => failure.told(),
    };
    text.into_iter().for_each(|text| say(&text));
    ExitCode::from(code)
}

impl Ctl {
    fn run(self) -> Result<(), Failure> {
        let from_environment = || std::env::var_os(API_ENV).map(PathBuf::from);
        let path = self.api.or_else(from_environment);
        let path = path.filter(|path| !path.as_os_str().is_empty());
        let path = path.ok_or_else(|| {
            let text = "no socket is given: add `--api PATH`, or set OUTBOARD_API";
            Failure::Usage(text.into())
        })?;
        let connect = || Client::connect(&path);
        let put = |path: &str| connect()?.ask("PUT", path).map(drop);
        let get = |path: &str| connect()?.ask("GET", path);
        match self.what {
            What::Status => show(&get("/api/v1/vm")?, self.json, |vm: Vm| show::vm(&vm)),
            What::Restart { device } => put(&of_device(&device, "/restart")?),
            What::Swap {
                device,
                wanted,
                resize,
                dry_run,
            } => {
                let request = swap::request(&wanted, resize, dry_run)?;
                swap::swap(connect()?, &device, &request, self.json)
            }
            What::Peer {
                device,
                behind,
                listen,
            } => swap::peer(connect()?, &device, &behind, listen, self.json),
            What::Resize { device, size, .. } => swap::resize(connect()?, &device, size, self.json),
            What::Link { device, state } => swap::link(connect()?, &device, state == "up"),
            What::Upgrade { device } => swap::upgrade(connect, &device, self.json),
            What::Pause { device: None } => put("/api/v1/vm/pause"),
            What::Resume { device: None } => put("/api/v1/vm/resume"),
            What::Pause { device: Some(id) } => put(&of_device(&id, "/pause")?),
            What::Resume { device: Some(id) } => put(&of_device(&id, "/resume")?),
            What::Shutdown => put("/api/v1/vm/shutdown"),
            What::Events => events(connect()?, self.json),
            What::Wait {
                device,
                state,
                timeout,
            } => {
                let path = of_device(&device, "")?;
                wait(connect, &path, state, timeout, self.json)
            }
            What::Metrics => print(&get("/metrics")?),
            What::Explain { device } => {
                let body = get(&of_device(&device, "/explain")?)?;
                show(&body, self.json, |it: Explanation| show::explanation(&it))
            }
        }
    }
}

/// A size with a unit, or in bytes.
fn size(text: &str) -> Result<u64, String> {
    let parsed = outboard_protocol::size::parse(text);
    parsed.ok_or_else(|| format!("`{text}` is not a size; write it as 20G, or in bytes"))
}

/// The path of what is asked of a device.
fn of_device(id: &str, what: &str) -> Result<String, Failure> {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if id.is_empty() || !id.bytes().all(letter) {
        let text = "is no id of a device, which has letters, digits, `-`, `_` and `.`";
        return Err(Failure::Usage(format!("`{id}` {text}")));
    }
    Ok(format!("/api/v1/devices/{id}{what}"))
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        Failure::Refused(format!(
            "the VM's answer is not understood: {error}; use the `outboard` that runs it"
        ))
    })
}

/// Prints a body as it is, or as people read it.
fn show<T: DeserializeOwned>(
    body: &[u8],
    json: bool,
    text: impl Fn(T) -> String,
) -> Result<(), Failure> {
    match json {
        true => print(body),
        false => print(text(read(body)?).as_bytes()),
    }
}

fn print(text: &[u8]) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    let written = output.write_all(text).and_then(|()| output.flush());
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::NotRead,
        _ => Failure::Usage(format!("standard output cannot be written: {error}")),
    })
}

/// Prints every event until the VM ends.
fn events(client: Client, json: bool) -> Result<(), Failure> {
    let mut lines = client.events()?;
    let mut ends = false;
    while let Some(line) = lines.next(Deadline::after(Duration::MAX))? {
        show(&line, json, |event: Event| show::event(&event))?;
        match read::<Event>(&line)?.change {
            Change::Vm { state, .. } => ends = state == VmState::Ending,
            Change::CutOff { reason } => return Err(Failure::Refused(reason)),
            Change::Device { .. } | Change::Refused { .. } | Change::Swapped { .. } => {}
        }
    }
    match ends {
        true => Ok(()),
        false => Err(Failure::NoVm("the VM is gone, without a word".into())),
    }
}

/// Waits until the device at this path is in that state.
fn wait(
    connect: impl Fn() -> Result<Client, Failure>,
    path: &str,
    wanted: DeviceState,
    timeout: Wait,
    json: bool,
) -> Result<(), Failure> {
    let (deadline, limit) = match timeout {
        Wait::For(time) => (Deadline::after(time), format!("after {time:?}")),
        Wait::Forever => (Deadline::after(Duration::MAX), String::new()),
    };
    // Whether there is such a device.
    let body = loop {
        match connect().and_then(|client| client.ask("GET", path)) {
            Err(Failure::NoVm(_)) if !deadline.passed() => thread::sleep(LOOK),
            other => break other?,
        }
    };
    let now = read::<Device>(&body)?;
    let (id, mut state, mut reason) = (now.id, now.state, now.reason);
    let mut lines = connect()?.events()?;
    loop {
        let line = match lines.next(deadline) {
            Ok(Some(line)) => line,
            Ok(None) => {
                let text = format!("the VM has ended; {id} was {state}, and not {wanted}");
                return Err(Failure::NoVm(text));
            }
            Err(Failure::Late(_)) => {
                let why = show::because(reason.as_ref());
                let text = format!("{id} is {state}{why} {limit}, and not {wanted}");
                return Err(Failure::Late(text));
            }
            Err(failure) => return Err(failure),
        };
        match read::<Event>(&line)?.change {
            Change::Device {
                device,
                state: becomes,
                reason: why,
                ..
            } if device == id => (state, reason) = (becomes, why),
            Change::CutOff { .. } => lines = connect()?.events()?,
            _ => continue,
        }
        if state == wanted {
            let text = format!("{id} is {state}\n");
            return print(if json { &line } else { text.as_bytes() });
        }
    }
}

#[cfg(test)]
mod tests;
