//! Entropy devices: `--rng` from its text to what a back-end is told.

use std::path::PathBuf;

use anyhow::Result;
use outboard_protocol::devices::Kind;
use outboard_protocol::launch;
use serde::Deserialize;

use super::config::{DEFAULT_WAIT, Source, queue_size, within};
use super::host::program::Program;
use super::host::resources::{Lent, Resource, whose};
use super::text::options;
use super::text::units::Wait;

/// The back-end that serves an entropy device if no other is named.
const RNG: &str = "outboard-rng";

/// `--rng`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RngSettings {
    /// The socket at which a back-end listens.
    pub socket: Option<PathBuf>,
    /// The program to start instead of outboard-rng.
    pub backend: Option<PathBuf>,
    /// How long to wait for the socket.
    pub wait: Option<Wait>,
    /// Most bytes that the guest gets in a period.
    pub max_bytes: Option<u64>,
    /// The length of a period in milliseconds.
    pub period: Option<u64>,
    /// The name of the device.
    pub id: Option<String>,
}

/// Reads the value of `--rng`, which may be empty.
///
/// # Errors
/// A message that names the key and what would be right.
pub fn rng(text: &str) -> Result<RngSettings, String> {
    if text.is_empty() {
        return Ok(RngSettings::default());
    }
    options::read(text)
}

/// An entropy device as a back-end is told to serve it; what is not said is
/// the back-end's to choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entropy {
    /// The program; outboard-rng if none is named.
    pub program: Option<PathBuf>,
    /// Most bytes that the guest gets in a period, at least 1.
    pub max_bytes: Option<u64>,
    /// The length of a period in milliseconds, at least 1.
    pub period: Option<u64>,
}

/// Makes a device and its source of the settings of the entropy device `id`.
///
/// # Errors
/// A message that names the key and says what would be right.
pub fn entropy(id: &str, rng: RngSettings) -> Result<(launch::Device, Source), String> {
    let device = launch::Device {
        id: id.to_owned(),
        kind: Kind::rng(),
        queues: 1,
        fewer: true,
        queue_size: queue_size(None)?,
    };
    if let Some(path) = rng.socket {
        let own = [
            ("backend", rng.backend.is_some()),
            ("max-bytes", rng.max_bytes.is_some()),
            ("period", rng.period.is_some()),
        ];
        if let Some((key, _)) = own.iter().find(|(_, given)| *given) {
            return Err(format!(
                "`{key}` and `socket` exclude each other: with `socket` it is the affair of the \
                 back-end that listens there"
            ));
        }
        let wait = rng.wait.unwrap_or(DEFAULT_WAIT);
        return Ok((device, Source::Socket { path, wait }));
    }
    if rng.wait.is_some() {
        return Err("`wait` is for a `socket=PATH`; there is none".into());
    }
    if let Some(bytes) = rng.max_bytes {
        within("max-bytes", bytes, 1, i64::MAX as u64)?;
    }
    if let Some(period) = rng.period {
        within("period", period, 1, u32::MAX.into())?;
    }
    let source = Source::Rng(Entropy {
        program: rng.backend,
        max_bytes: rng.max_bytes,
        period: rng.period,
    });
    Ok((device, source))
}

/// Opens what an entropy device needs: its program.
///
/// # Errors
/// A message that names the program and says what to do.
pub fn open(entropy: Entropy) -> Result<Resource> {
    let program = match &entropy.program {
        Some(path) => Program::open(path)?,
        None => Program::own(RNG)?,
    };
    Ok(Resource::Program {
        program,
        args: arguments(&entropy),
        lent: Lent::Fds(Vec::new()),
        whose: whose(entropy.program.as_ref(), None),
    })
}

/// The command line of an entropy back-end (PROTOCOL.md, launch contract).
fn arguments(entropy: &Entropy) -> Vec<String> {
    let mut args = vec![format!("--fd={}", launch::BACKEND_FD)];
    let told = [("max-bytes", entropy.max_bytes), ("period", entropy.period)];
    let told = told
        .iter()
        .filter_map(|(key, value)| value.map(|value| format!("--{key}={value}")));
    args.extend(told);
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_contradict_themselves_are_refused() {
        for (text, words) in [
            ("socket=s,backend=b", "`backend` and `socket` exclude"),
            ("socket=s,max-bytes=1", "`max-bytes` and `socket` exclude"),
            ("socket=s,period=1", "`period` and `socket` exclude"),
            ("wait=1s", "`wait` is for a `socket=PATH`"),
            ("max-bytes=0", "max-bytes 0: give 1 to"),
            ("period=0", "period 0: give 1 to 4294967295"),
            ("period=4294967296", "give 1 to 4294967295"),
        ] {
            let error = entropy("rng0", rng(text).unwrap()).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert!(rng("speed=9").unwrap_err().contains("unknown key"));
        assert!(rng(",").unwrap_err().contains("unknown key ``"));
    }

    #[test]
    fn a_back_end_is_told_what_was_asked_for_and_no_more() {
        for (text, told) in [
            ("", &["--fd=3"][..]),
            ("backend=b", &["--fd=3"]),
            (
                "max-bytes=5,period=7",
                &["--fd=3", "--max-bytes=5", "--period=7"],
            ),
        ] {
            let (device, source) = entropy("rng0", rng(text).unwrap()).unwrap();
            assert_eq!((device.kind.virtio_id, device.queues), (4, 1));
            let Source::Rng(asked) = source else {
                panic!("a program serves it");
            };
            assert_eq!(arguments(&asked), told);
        }
    }
}
