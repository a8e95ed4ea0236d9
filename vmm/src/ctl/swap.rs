//! `outboard ctl swap` and its like: another back-end for a device that works, another size,
//! another link.

use std::path::{Path, PathBuf};

use super::client::Client;
use super::failure::Failure;
use super::{of_device, print, read, show};
use crate::supervisor::api::model::{
    LinkRequest, ResizeRequest, Resized, Served, SwapRequest, Swapped, Vm,
};
use crate::supervisor::text::units::Wait;

/// What a user has written of a swap: `key=value`, in any order.
///
/// # Errors
/// Which of it is wrong, and what there is.
pub(super) fn request(
    words: &[String],
    resize: bool,
    dry_run: bool,
) -> Result<SwapRequest, Failure> {
    let mut request = SwapRequest {
        resize,
        dry_run,
        ..SwapRequest::default()
    };
    for word in words {
        let usage = |text: &str| Err(Failure::Usage(format!("`{word}`: {text}")));
        let Some((key, value)) = word.split_once('=').filter(|(_, value)| !value.is_empty()) else {
            return usage("give backend=EXE, socket=PATH, path=FILE, tap=NAME or peer=PATH");
        };
        let (place, value) = match key {
            // One of Outboard's own is named, and found beside it.
            "backend" if !value.contains('/') => (&mut request.backend, PathBuf::from(value)),
            "backend" => (&mut request.backend, absolute(value)?),
            "socket" => (&mut request.socket, absolute(value)?),
            "path" => (&mut request.path, absolute(value)?),
            "peer" => (&mut request.peer, absolute(value)?),
            "wait" if request.wait_ms.is_none() => {
                request.wait_ms = Some(match value.parse() {
                    Ok(Wait::For(time)) => time.as_millis() as u64,
                    _ => return usage("give a time, as 500ms or 10s"),
                });
                continue;
            }
            "tap" if request.tap.is_none() => {
                request.tap = Some(value.to_owned());
                continue;
            }
            "tap" | "wait" => return usage("it is given twice"),
            _ => return usage("the keys are backend, socket, wait, path, tap and peer"),
        };
        if place.replace(value).is_some() {
            return usage("it is given twice");
        }
    }
    Ok(request)
}

/// The VM's working directory may be another.
fn absolute(path: &str) -> Result<PathBuf, Failure> {
    std::path::absolute(Path::new(path))
        .map_err(|error| Failure::Usage(format!("`{path}` is not understood: {error}")))
}

/// Swaps, and says what has come of it.
///
/// # Errors
/// Why nothing has.
pub(super) fn swap(
    client: Client,
    device: &str,
    request: &SwapRequest,
    json: bool,
) -> Result<(), Failure> {
    let answer = ask(client, device, request)?;
    super::show(&answer, json, |swapped: Swapped| show::swapped(&swapped))
}

/// Puts this tap or peer behind a card.
///
/// # Errors
/// Why that was not done.
pub(super) fn peer(
    client: Client,
    device: &str,
    behind: &[String],
    listen: bool,
    json: bool,
) -> Result<(), Failure> {
    let request = SwapRequest {
        listen,
        ..request(behind, false, false)?
    };
    swap(client, device, &request, json)
}

/// Gives a disk so many bytes, or as many as its image has.
///
/// # Errors
/// Why it has not got them.
pub(super) fn resize(
    client: Client,
    device: &str,
    size: Option<u64>,
    json: bool,
) -> Result<(), Failure> {
    let body = client.put(&of_device(device, "/resize")?, &ResizeRequest { size })?;
    super::show(&body, json, |Resized { size }| {
        format!("{device} has {size} bytes\n")
    })
}

/// Holds the link of a card down, or lets it be what is behind the card.
///
/// # Errors
/// Why not.
pub(super) fn link(client: Client, device: &str, up: bool) -> Result<(), Failure> {
    let path = of_device(device, "/link")?;
    client.put(&path, &LinkRequest { up }).map(drop)
}

fn ask(client: Client, device: &str, request: &SwapRequest) -> Result<Vec<u8>, Failure> {
    client.put(&of_device(device, "/swap")?, request)
}

/// Swaps the back-end of this device, or of `all` that have a program, for the program that is
/// installed now.
///
/// # Errors
/// The first that was not done. Those before it were.
pub(super) fn upgrade(
    connect: impl Fn() -> Result<Client, Failure>,
    device: &str,
    json: bool,
) -> Result<(), Failure> {
    let devices = match device {
        "all" => {
            let vm: Vm = read(&connect()?.ask("GET", "/api/v1/vm")?)?;
            let own = vm.devices.into_iter().filter(|device| device.pid.is_some());
            own.map(|device| device.id).collect()
        }
        one => vec![one.to_owned()],
    };
    for device in devices {
        let body = ask(connect()?, &device, &SwapRequest::default())?;
        if json {
            print(&body)?;
            continue;
        }
        let Swapped { from, to, gap, .. } = read(&body)?;
        let version = |served: &Served| match &served.version {
            Some(version) => version.clone(),
            None => "an unknown release".into(),
        };
        let (before, after) = (version(&from), version(&to));
        let gap = gap.map(|gap| format!(", {}", show::times(&gap)));
        let gap = gap.unwrap_or_default();
        let text = format!("{device}: {} {before} -> {after}{gap}\n", to.program);
        print(text.as_bytes())?;
    }
    Ok(())
}
