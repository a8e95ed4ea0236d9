//! What one run counted, and the figures that follow from it.

use crate::processes::Cpu;

/// What one run counted.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Frames that arrived; of segments, those that were to be cut.
    pub packets: u64,
    /// Bytes of data in them.
    pub bytes: u64,
    /// From the first one's arrival to the last one's.
    pub nanoseconds: u64,
    /// Frames that did not arrive.
    pub lost: u64,
    /// Of the VM's processes.
    pub cpu: Cpu,
    /// Processor time of the load on the host, in nanoseconds.
    pub peer: u64,
    /// Of round trips alone.
    pub latency: Option<Latency>,
}

/// Quantiles of the round trips of a run, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// What one of a hundred exceeds.
    pub p99: f64,
    /// What one of a thousand exceeds.
    pub p999: f64,
}

/// A figure of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Frames that arrived in a second.
    PacketsPerSecond,
    /// Bytes of data that arrived in a second.
    BytesPerSecond,
    /// Nanoseconds that the devices' threads took for a frame.
    DevicePerPacket,
    /// The same with the vCPUs'.
    CpuPerPacket,
    /// Seconds that the devices' threads took for 10⁹ bytes.
    DevicePerGigabyte,
    /// The same with the vCPUs'.
    CpuPerGigabyte,
    /// Nanoseconds that the load on the host took for a frame.
    PeerPerPacket,
    /// Frames lost of a million sent.
    LostPerMillion,
    /// Median of the round trips, in microseconds.
    P50,
    /// What one of a hundred exceeds.
    P99,
    /// What one of a thousand exceeds.
    P999,
}

impl Figure {
    /// Of frames that go one way.
    pub const OF_A_FLOW: [Self; 8] = [
        Self::PacketsPerSecond,
        Self::BytesPerSecond,
        Self::DevicePerPacket,
        Self::CpuPerPacket,
        Self::DevicePerGigabyte,
        Self::CpuPerGigabyte,
        Self::PeerPerPacket,
        Self::LostPerMillion,
    ];
    /// Without a VM.
    pub const OF_THE_HOST: [Self; 4] = [
        Self::PacketsPerSecond,
        Self::BytesPerSecond,
        Self::PeerPerPacket,
        Self::LostPerMillion,
    ];
    /// Of frames that go there and back, one at a time.
    pub const OF_ROUND_TRIPS: [Self; 7] = [
        Self::P50,
        Self::P99,
        Self::P999,
        Self::PacketsPerSecond,
        Self::DevicePerPacket,
        Self::CpuPerPacket,
        Self::LostPerMillion,
    ];

    /// With its unit.
    pub fn name(self) -> &'static str {
        match self {
            Self::PacketsPerSecond => "packets/s",
            Self::BytesPerSecond => "MB/s",
            Self::DevicePerPacket => "device ns/packet",
            Self::CpuPerPacket => "CPU ns/packet",
            Self::DevicePerGigabyte => "device s/GB",
            Self::CpuPerGigabyte => "CPU s/GB",
            Self::PeerPerPacket => "load ns/packet",
            Self::LostPerMillion => "lost/million",
            Self::P50 => "p50 µs",
            Self::P99 => "p99 µs",
            Self::P999 => "p99.9 µs",
        }
    }

    /// Decimals that are worth printing.
    pub fn decimals(self) -> usize {
        match self {
            Self::DevicePerGigabyte | Self::CpuPerGigabyte => 3,
            Self::P50 | Self::P99 | Self::P999 => 1,
            _ => 0,
        }
    }

    /// Of one run.
    pub fn of(self, sample: &Sample) -> f64 {
        let packets = sample.packets as f64;
        let gigabytes = sample.bytes as f64 / 1e9;
        let seconds = sample.nanoseconds as f64 / 1e9;
        let all = sample.cpu.all() as f64;
        let devices = sample.cpu.devices as f64;
        let latency = |of: fn(&Latency) -> f64| sample.latency.as_ref().map_or(f64::NAN, of);
        match self {
            Self::PacketsPerSecond => packets / seconds,
            Self::BytesPerSecond => gigabytes * 1e3 / seconds,
            Self::DevicePerPacket => devices / packets,
            Self::CpuPerPacket => all / packets,
            Self::DevicePerGigabyte => devices / 1e9 / gigabytes,
            Self::CpuPerGigabyte => all / 1e9 / gigabytes,
            Self::PeerPerPacket => sample.peer as f64 / packets,
            Self::LostPerMillion => {
                sample.lost as f64 * 1e6 / (sample.packets + sample.lost) as f64
            }
            Self::P50 => latency(|latency| latency.p50),
            Self::P99 => latency(|latency| latency.p99),
            Self::P999 => latency(|latency| latency.p999),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_follow_from_the_counts() {
        let sample = Sample {
            packets: 4_000_000,
            bytes: 2_000_000_000,
            nanoseconds: 500_000_000,
            lost: 0,
            cpu: Cpu {
                vcpus: 400_000_000,
                devices: 200_000_000,
            },
            peer: 100_000_000,
            latency: None,
        };
        let figures = Figure::OF_A_FLOW.map(|figure| figure.of(&sample));
        assert_eq!(figures, [8e6, 4e3, 50.0, 150.0, 0.1, 0.3, 25.0, 0.0]);
    }

    #[test]
    fn nothing_received_has_no_finite_figures() {
        let sample = Sample {
            packets: 0,
            bytes: 0,
            nanoseconds: 0,
            lost: 0,
            cpu: Cpu::default(),
            peer: 0,
            latency: None,
        };
        assert!(
            Figure::OF_A_FLOW
                .iter()
                .all(|figure| !figure.of(&sample).is_finite())
        );
    }
}
