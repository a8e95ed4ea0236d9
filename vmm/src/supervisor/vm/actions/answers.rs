//! What a VM answers by its control API: its states, and what its processes and pages of
//! counters tell beside them.

use std::time::Instant;

use outboard_protocol::counters::Reading;

use super::Hands;
use super::standbys::served;
use crate::supervisor::api::call::{Reply, Ticket};
use crate::supervisor::api::model::{Change, Device, GapTimes, QueueCounters, Swapped, Vm};
use crate::supervisor::api::{Api, call};
use crate::supervisor::vm::answer::{Answer, DeviceStanding, Standing};
use crate::supervisor::vm::backend::Backend;
use crate::supervisor::vm::event::Event;
use crate::supervisor::vm::explain::explain;

impl Hands<'_> {
    /// The same, with a control API.
    pub(crate) fn with_api(mut self, api: Option<Api>) -> Self {
        self.api = api;
        self
    }

    /// What is asked there.
    pub(super) fn calls(&mut self) -> Vec<Event> {
        let Some(api) = &mut self.api else {
            return Vec::new();
        };
        let calls = api.attend(Instant::now()).into_iter();
        calls
            .map(|(ticket, call): (Ticket, call::Call)| Event::Call(ticket, call))
            .collect()
    }

    /// Answers a call.
    pub(super) fn answer(&mut self, ticket: Ticket, answer: Answer) {
        let reply = match answer {
            Answer::Reply(reply) => reply,
            Answer::Status(standing) => Reply::Status(Box::new(self.status(standing))),
            Answer::Swapped {
                place,
                gap,
                dry_run,
            } => match self.swapped(place, gap, dry_run) {
                Some(swapped) => Reply::Swapped(swapped),
                None => return,
            },
            Answer::Link { place, up } => self.link(place, up),
            Answer::Explain {
                place,
                is_known,
                agreed,
            } => match self.backends.get(place) {
                Some(backend) => Reply::Explanation(explain(backend.opened(), is_known, agreed)),
                None => return,
            },
        };
        if let Some(api) = &mut self.api {
            api.answer(ticket, reply, Instant::now());
        }
    }

    fn swapped(&mut self, place: usize, gap: Option<GapTimes>, dry_run: bool) -> Option<Swapped> {
        let (from, to) = self.swaps.get(place)?.clone()?;
        // Its release is known since it has spoken; whoever was only tried may be gone.
        let now = match dry_run {
            true => self.standbys.get(place)?.as_ref(),
            false => self.backends.get(place),
        };
        Some(Swapped {
            from,
            to: now.map_or(to, served),
            device: self.id(place)?,
            gap,
        })
    }

    /// Tells who reads the event stream.
    pub(super) fn tell(&mut self, mut change: Change) {
        if let Change::Device { device, pid, .. } = &mut change {
            let mut backends = self.backends.iter();
            let backend = backends.find(|backend| backend.opened().spec.id == *device);
            *pid = backend.and_then(Backend::pid);
        }
        if let Some(api) = &mut self.api {
            api.tell(change, Instant::now());
        }
    }

    fn status(&self, standing: Standing) -> Vm {
        let devices = self.backends.iter().zip(standing.devices).enumerate();
        let devices = devices.map(|(place, (backend, standing))| {
            let mut device = device(backend, standing);
            let held = self.is_held_down(place);
            let held = held.then(|| "its link is held down".to_owned());
            device.reason = device.reason.or(held);
            device
        });
        let machine = &self.resources.machine;
        let pid = |pid: nix::unistd::Pid| pid.as_raw().unsigned_abs();
        Vm {
            name: self.resources.logging.name.clone(),
            version: outboard_version::VERSION.to_owned(),
            state: standing.state,
            reason: standing.reason,
            pid: std::process::id(),
            machine_pid: self
                .machine
                .as_ref()
                .map(|machine| pid(machine.child.pid())),
            uptime_ms: self.began.elapsed().as_millis() as u64,
            vcpus: machine.cpus,
            memory: machine.memory,
            devices: devices.collect(),
        }
    }
}

fn device(backend: &Backend, standing: DeviceStanding) -> Device {
    let opened = backend.opened();
    let (refused_requests, last_refused) = standing.refused;
    Device {
        id: opened.spec.id.clone(),
        kind: opened.spec.kind.name.clone(),
        state: standing.state,
        reason: standing.reason,
        pid: backend.pid(),
        program: opened.server.name(),
        version: backend.release().map(str::to_owned),
        features: standing.features.map(|bits| format!("{bits:#x}")),
        queues: opened.spec.queues,
        standby: standing.standby,
        restarts: standing.restarts,
        last_error: standing.last_error,
        last_outage_us: standing.last_outage_us,
        refused_requests,
        last_refused,
        counters: backend.sums().iter().map(counters).collect(),
    }
}

fn counters(reading: &Reading) -> QueueCounters {
    let counts = &reading.counts;
    QueueCounters {
        requests: Some(counts.chains),
        bytes_read: Some(counts.bytes_read),
        bytes_written: Some(counts.bytes_written),
        errors: Some(counts.errors),
        kicks: Some(counts.kicks),
        calls: Some(counts.calls),
        suppressed: Some(counts.suppressed),
        latency_samples: Some(counts.timed),
        latency_sum_us: Some(counts.time / 1000),
        latency_longest_us: Some(counts.longest / 1000),
        in_kernel: Some(reading.in_kernel),
    }
}
