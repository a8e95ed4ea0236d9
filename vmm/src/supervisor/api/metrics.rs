//! The figures of a VM as text for Prometheus, in the format of OpenMetrics 1.0.
//!
//! Nothing is counted here: the figures are written out of a status, so there is
//! nothing to be kept between two scrapes.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::model::{Device, DeviceState, QueueCounters, Vm, VmState};

/// The content type of such a text.
pub(super) const CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The text; `None` if it could not be made.
pub(super) fn text(vm: Vm) -> Option<String> {
    let mut registry = Registry::with_prefix("outboard");
    registry.register_collector(Box::new(Figures(vm)));
    let mut text = String::new();
    encode(&mut text, &registry).ok()?;
    Some(text)
}

#[derive(Debug)]
struct Figures(Vm);

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        of_vm(&self.0, &mut encoder)?;
        of_devices(&self.0.devices, &mut encoder)?;
        of_queues(&self.0.devices, &mut encoder)
    }
}

fn of_vm(vm: &Vm, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let labels = [
        ("name", vm.name.clone().unwrap_or_default()),
        ("version", vm.version.clone()),
    ];
    let mut info = encoder.encode_descriptor("vm", "The VM", None, MetricType::Info)?;
    info.encode_info(&labels)?;
    let running = i64::from(vm.state == VmState::Running);
    let uptime = ConstGauge::new(vm.uptime_ms as f64 / 1000.0);
    let memory = ConstGauge::new(vm.memory as f64);
    let vcpus = ConstGauge::new(i64::from(vm.vcpus));
    for (name, help, unit, gauge) in [
        (
            "vm_running",
            "1 while the guest runs",
            None,
            &ConstGauge::new(running) as &dyn Figure,
        ),
        (
            "vm_uptime",
            "Time since outboard run began",
            Some(Unit::Seconds),
            &uptime,
        ),
        ("vm_memory", "Guest memory", Some(Unit::Bytes), &memory),
        ("vm_vcpus", "Virtual CPUs", None, &vcpus),
    ] {
        let encoder = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        gauge.write(encoder)?;
    }
    Ok(())
}

/// A figure of any type.
trait Figure {
    fn write(&self, encoder: prometheus_client::encoding::MetricEncoder<'_>) -> fmt::Result;
}

impl<M: EncodeMetric> Figure for M {
    fn write(&self, encoder: prometheus_client::encoding::MetricEncoder<'_>) -> fmt::Result {
        self.encode(encoder)
    }
}

fn of_devices(devices: &[Device], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "1 while the device is served";
    let mut up = encoder.encode_descriptor("device_up", help, None, MetricType::Gauge)?;
    for device in devices {
        let labels = [("device", device.id.clone()), ("kind", device.kind.clone())];
        let is_up = i64::from(device.state == DeviceState::Running);
        ConstGauge::new(is_up).encode(up.encode_family(&labels)?)?;
    }
    let help = "Times that the back-end was replaced";
    let mut restarts =
        encoder.encode_descriptor("device_restarts", help, None, MetricType::Counter)?;
    for device in devices {
        let labels = [("device", device.id.clone())];
        ConstCounter::new(device.restarts).encode(restarts.encode_family(&labels)?)?;
    }
    let help = "Requests ended in an error because back-ends had died of them";
    let mut refused =
        encoder.encode_descriptor("device_refused_requests", help, None, MetricType::Counter)?;
    for device in devices {
        let labels = [("device", device.id.clone())];
        ConstCounter::new(device.refused_requests).encode(refused.encode_family(&labels)?)?;
    }
    let (help, unit) = ("How long the last loss of a back-end took", Unit::Seconds);
    let mut outage =
        encoder.encode_descriptor("device_last_outage", help, Some(&unit), MetricType::Gauge)?;
    for device in devices {
        let labels = [("device", device.id.clone())];
        if let Some(micros) = device.last_outage_us {
            let seconds = ConstGauge::new(micros as f64 / 1e6);
            seconds.encode(outage.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// What is counted of a queue: its name, its help, and where it is.
type Counter = (
    &'static str,
    &'static str,
    fn(&QueueCounters) -> Option<u64>,
);

const COUNTERS: [Counter; 8] = [
    ("queue_requests", "Requests taken", |queue| queue.requests),
    ("queue_read_bytes", "Bytes given to the driver", |queue| {
        queue.bytes_read
    }),
    (
        "queue_written_bytes",
        "Bytes taken from the driver",
        |queue| queue.bytes_written,
    ),
    ("queue_errors", "Requests that failed", |queue| queue.errors),
    ("queue_kicks", "Kicks seen", |queue| queue.kicks),
    ("queue_calls", "Calls made", |queue| queue.calls),
    (
        "queue_calls_suppressed",
        "Calls that the driver did not want",
        |queue| queue.suppressed,
    ),
    (
        "queue_latency_samples",
        "Requests whose latency was measured",
        |queue| queue.latency_samples,
    ),
];

fn of_queues(devices: &[Device], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    for (name, help, count) in COUNTERS {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, queue) in queues(devices) {
            if let Some(count) = count(queue) {
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
    }
    let (help, unit) = ("The sum of those latencies", Unit::Seconds);
    let mut sum =
        encoder.encode_descriptor("queue_latency", help, Some(&unit), MetricType::Counter)?;
    for (labels, queue) in queues(devices) {
        if let Some(micros) = queue.latency_sum_us {
            let seconds = ConstCounter::new(micros as f64 / 1e6);
            seconds.encode(sum.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

type Labels = [(&'static str, String); 2];

fn queues(devices: &[Device]) -> impl Iterator<Item = (Labels, &QueueCounters)> {
    devices.iter().flat_map(|device| {
        let queues = device.counters.iter().enumerate();
        queues.map(|(number, queue)| {
            let labels = [("device", device.id.clone()), ("queue", number.to_string())];
            (labels, queue)
        })
    })
}
