//! How many descriptors a process may have, and how many a VM needs.
//!
//! The limit that counts is a soft one, and 1024 as a rule for the sake of old
//! programs that call select(2). Each program of ours raises its own to the
//! hard limit; what the supervisor starts finds the soft limit as it was.

use std::sync::OnceLock;

use anyhow::{Result, bail};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use outboard_protocol::launch::Device;

use crate::supervisor::config::{Config, Source};
use crate::supervisor::net::Port;

/// Soft and hard, as this process found them.
static FOUND: OnceLock<(rlim_t, rlim_t)> = OnceLock::new();

/// The machine: its standard ones, those of the start message, memory, the
/// VM, what wakes its threads, and room for those that a message brings.
const MACHINE: u64 = 32;
/// A device of the machine: its connection, the back-end's own requests, the
/// inflight region, what its thread waits for.
const DEVICE: u64 = 8;
/// A queue of the machine: kick, call and error.
const QUEUE: u64 = 3;
/// A back-end of ours: its standard ones, socket, signals, and room for those
/// that a message brings.
const BACK_END: u64 = 20;
/// A queue of a back-end of ours: kick, call, error, its worker's event and
/// engine.
const OWN_QUEUE: u64 = 5;
/// The supervisor: its standard ones, those of the start message, the machine
/// and the console, and what a start takes for a moment.
const SUPERVISOR: u64 = 40;
/// A device of the supervisor: its program, process and socket.
const SERVED: u64 = 6;

/// Raises the soft limit to the hard one, for this process alone.
pub fn raise() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    let _ = FOUND.set((soft, hard));
    // Nothing is lost where it cannot be.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
}

/// The limits, soft and hard, that a child is to find: those before
/// [`raise`], if that has been called.
pub fn found() -> Option<(rlim_t, rlim_t)> {
    FOUND.get().copied()
}

/// Checks that each process of the VM may have as many as it needs.
///
/// # Errors
/// A message that names the process, what is missing, and what to do.
pub fn check(config: &Config) -> Result<()> {
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return Ok(());
    };
    let devices = &config.devices;
    fits(&needs(config.machine.cpus, devices, &config.sources), hard)
}

/// What a process of the VM needs.
#[derive(Debug, PartialEq, Eq)]
struct Need {
    who: String,
    descriptors: u64,
}

fn fits(needs: &[Need], hard: rlim_t) -> Result<()> {
    let most = needs.iter().max_by_key(|need| need.descriptors);
    let Some(Need { who, descriptors }) = most.filter(|need| need.descriptors > hard) else {
        return Ok(());
    };
    bail!(
        "{who} needs up to {descriptors} descriptors, and the hard limit is {hard} (`ulimit -Hn`): \
         raise it (as root, or by LimitNOFILE= of a service), or give fewer queues or devices"
    )
}

fn needs(cpus: u8, devices: &[Device], sources: &[Source]) -> Vec<Need> {
    let queues = |device: &Device| u64::from(device.queues);
    let all: u64 = devices.iter().map(queues).sum();
    let count = devices.len() as u64;
    let lent: Vec<_> = sources.iter().map(lent).collect();
    // Those that are being handed over are there twice more.
    let largest = lent.iter().max().map_or(0, |most| 2 * most);
    let mut needs = vec![
        Need {
            who: "the machine process".into(),
            descriptors: MACHINE + u64::from(cpus) + DEVICE * count + QUEUE * all,
        },
        Need {
            who: "outboard itself".into(),
            descriptors: SUPERVISOR + SERVED * count + lent.iter().sum::<u64>() + largest,
        },
    ];
    for ((device, source), lent) in devices.iter().zip(sources).zip(lent) {
        let (program, a_queue) = match source {
            Source::Socket { .. } => continue,
            Source::Program(disk) => (&disk.program, OWN_QUEUE),
            Source::Net(card) => (&card.program, OWN_QUEUE),
            // The daemon has one thread for all.
            Source::Rng(entropy) => (&entropy.program, QUEUE),
        };
        // Of a foreign one this much is sure, and no more.
        let (base, a_queue) = match program {
            Some(_) => (0, QUEUE),
            None => (BACK_END, a_queue),
        };
        needs.push(Need {
            who: format!("the back-end of {}", device.id),
            descriptors: base + lent + a_queue * queues(device),
        });
    }
    needs
}

/// Descriptors that a back-end is lent beside its socket.
fn lent(source: &Source) -> u64 {
    match source {
        Source::Net(card) => match card.port {
            Port::Tap(_) => card.pairs.into(),
            Port::Peer { .. } => 1,
            Port::Program => 0,
        },
        Source::Program(_) => 1,
        Source::Rng(_) | Source::Socket { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::text::options;
    use crate::supervisor::text::settings::Settings;

    fn config(disk: &[&str], net: &[&str]) -> Config {
        Config::new(Settings {
            kernel: Some("k".into()),
            disk: disk
                .iter()
                .map(|text| options::read(text).unwrap())
                .collect(),
            net: net
                .iter()
                .map(|text| options::read(text).unwrap())
                .collect(),
            ..Settings::default()
        })
        .unwrap()
    }

    fn refused(config: &Config, hard: u64) -> Option<String> {
        let needs = needs(config.machine.cpus, &config.devices, &config.sources);
        fits(&needs, hard).err().map(|error| error.to_string())
    }

    #[test]
    fn what_is_missing_is_named_with_who_needs_it() {
        let many = config(&["path=a,queues=64"], &[]);
        let error = refused(&many, 150).unwrap();
        assert!(
            error.starts_with("the back-end of disk0 needs up to 341 descriptors"),
            "{error}"
        );
        assert!(error.contains("hard limit is 150"), "{error}");
        assert_eq!(refused(&many, 1024), None);
        let foreign = config(&["path=a,queues=64,backend=b"], &[]);
        let error = refused(&foreign, 150).unwrap();
        assert!(error.starts_with("the machine process needs"), "{error}");
    }

    #[test]
    fn an_ordinary_vm_needs_little() {
        assert_eq!(refused(&config(&["path=a"], &["tap=t0"]), 128), None);
        assert_eq!(refused(&config(&["socket=a,queues=8"], &[]), 128), None);
    }

    #[test]
    fn every_queue_of_every_device_counts() {
        let disks = ["socket=a,queues=64", "socket=b,queues=64"];
        let [one, two] = [1, 2].map(|count| config(&disks[..count], &[]));
        let machine = |config: &Config| {
            needs(config.machine.cpus, &config.devices, &config.sources)[0].descriptors
        };
        assert_eq!(machine(&two), machine(&one) + DEVICE + 64 * QUEUE);
        let taps = config(&[], &["tap=t0,queues=8"]);
        assert_eq!(lent(&taps.sources[0]), 8);
    }
}
