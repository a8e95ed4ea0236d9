//! How many descriptors a process may have, and how many a VM needs.
//!
//! The limit that counts is a soft one, and 1024 as a rule for the sake of old
//! programs that call select(2). Each program of ours raises its own to the
//! hard limit; what the supervisor starts finds the soft limit as it was.

use std::sync::OnceLock;

use anyhow::{Result, bail};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

use crate::supervisor::api;
use crate::supervisor::device::plan::{Executable, Plan, ServedBy};
use crate::supervisor::plan::VmPlan;

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
/// A back-end of ours: its standard ones, socket, line, signals, counters, and room
/// for those that a message brings.
const BACK_END: u64 = 20;
/// A queue that has a thread of its own in a back-end of ours: that thread's event
/// and engine as well.
const THREAD_QUEUE: u64 = QUEUE + 2;
/// The supervisor: its standard ones, those of the start message, the machine
/// and the console, and what a start takes for a moment.
const SUPERVISOR: u64 = 40;
/// A device of the supervisor: its program, process and socket.
const SERVED: u64 = 6;
/// A line of the supervisor to a back-end that it has started: what it waits for and
/// its end, the counters, and the news of an interface or, of a peer, what it waits
/// for, a timer, a copy of the listener, and one who has come.
const LINE: u64 = 3 + 4;

/// The control API: its socket, and each client.
const API: u64 = 1 + api::MOST as u64;

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
pub(crate) fn found() -> Option<(rlim_t, rlim_t)> {
    FOUND.get().copied()
}

/// Checks that each process of the VM may have as many as it needs.
///
/// # Errors
/// A message that names the process, what is missing, and what to do.
pub(crate) fn check(vm: &VmPlan) -> Result<()> {
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return Ok(());
    };
    fits(&needs(vm), hard)
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

fn needs(vm: &VmPlan) -> Vec<Need> {
    let (cpus, devices) = (vm.machine.cpus, &vm.devices);
    let api = if vm.api.is_some() { API } else { 0 };
    let queues = |device: &Plan| u64::from(device.spec.queues);
    let all: u64 = devices.iter().map(queues).sum();
    let count = devices.len() as u64;
    let is_started = |device: &&Plan| matches!(device.served_by, ServedBy::Program { .. });
    let lines = devices.iter().filter(is_started).count() as u64;
    let lent = devices.iter().map(lent);
    // Those that are being handed over are there twice more.
    let largest = lent.clone().max().map_or(0, |most| 2 * most);
    let mut needs = vec![
        Need {
            who: "the machine process".into(),
            descriptors: MACHINE + u64::from(cpus) + DEVICE * count + QUEUE * all,
        },
        Need {
            who: "outboard itself".into(),
            descriptors: SUPERVISOR
                + api
                + SERVED * count
                + LINE * lines
                + lent.sum::<u64>()
                + largest,
        },
    ];
    for device in devices {
        let ServedBy::Program { executable, .. } = &device.served_by else {
            continue;
        };
        let (base, a_queue) = match executable {
            Executable::Own { threads: true, .. } => (BACK_END, THREAD_QUEUE),
            Executable::Own { threads: false, .. } => (BACK_END, QUEUE),
            // Of a foreign one this much is sure, and no more.
            Executable::Named { .. } => (0, QUEUE),
        };
        needs.push(Need {
            who: format!("the back-end of {}", device.spec.id),
            descriptors: base + self::lent(device) + a_queue * queues(device),
        });
    }
    needs
}

/// Descriptors that a back-end is lent beside its socket.
fn lent(device: &Plan) -> u64 {
    match &device.served_by {
        ServedBy::Program { lend, .. } => lend.count().into(),
        ServedBy::Socket { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::text::options;
    use crate::supervisor::text::settings::Settings;

    fn planned(disk: &[&str], net: &[&str]) -> VmPlan {
        VmPlan::new(Settings {
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

    fn refused(vm: &VmPlan, hard: u64) -> Option<String> {
        let needs = needs(vm);
        fits(&needs, hard).err().map(|error| error.to_string())
    }

    #[test]
    fn what_is_missing_is_named_with_who_needs_it() {
        let many = planned(&["path=a,queues=64"], &[]);
        let error = refused(&many, 150).unwrap();
        assert!(
            error.starts_with("the back-end of disk0 needs up to 341 descriptors"),
            "{error}"
        );
        assert!(error.contains("hard limit is 150"), "{error}");
        assert_eq!(refused(&many, 1024), None);
        let foreign = planned(&["path=a,queues=64,backend=b"], &[]);
        let error = refused(&foreign, 150).unwrap();
        assert!(error.starts_with("the machine process needs"), "{error}");
    }

    #[test]
    fn an_ordinary_vm_needs_little() {
        assert_eq!(refused(&planned(&["path=a"], &["tap=t0"]), 128), None);
        assert_eq!(refused(&planned(&["socket=a,queues=8"], &[]), 128), None);
    }

    #[test]
    fn every_queue_of_every_device_counts() {
        let disks = ["socket=a,queues=64", "socket=b,queues=64"];
        let [one, two] = [1, 2].map(|count| planned(&disks[..count], &[]));
        let machine = |vm: &VmPlan| needs(vm)[0].descriptors;
        assert_eq!(machine(&two), machine(&one) + DEVICE + 64 * QUEUE);
        let taps = planned(&[], &["tap=t0,queues=8"]);
        assert_eq!(lent(&taps.devices[0]), 8);
        // The supervisor has a line to whom it starts.
        let [others, ours] = ["socket=a", "path=a"].map(|disk| planned(&[disk], &[]));
        let supervisor = |vm: &VmPlan| needs(vm)[1].descriptors;
        assert_eq!(supervisor(&ours), supervisor(&others) + LINE + 3);
        let mut asked = ours.clone();
        asked.api = Some("vm.sock".into());
        assert_eq!(supervisor(&asked), supervisor(&ours) + API);
    }
}
