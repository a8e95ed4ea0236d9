//! `scenario=slots`: what the read of a register costs, at the device in the first slot and at that in the last.

use super::{Machine, Outcome, options};
use crate::platform::{clock, port};
use crate::virtio::transport::{Notify, Transport, common};
use alloc::string::String;
use alloc::vec::Vec;

/// A register, and its name in the result line.
type Register = (&'static str, fn(&Transport));

const REGISTERS: [Register; 3] = [
    ("config", |device| {
        device.function.config.read::<u16>(0);
    }),
    ("memory", |device| {
        device.common.read::<u16>(common::QUEUES);
    }),
    ("port", |device| {
        // Doorbells are the only registers that are ports.
        if let Notify::Port(base, _) = device.notify {
            port::in8(base);
        }
    }),
];

/// Ticks that one read takes.
fn time(read: fn(&Transport), device: &Transport) -> u64 {
    let begin = clock::now();
    read(device);
    clock::now().wrapping_sub(begin)
}

/// `scenario=slots`
pub fn run(machine: &Machine<'_>) -> Outcome {
    let reads = options::within(&machine.words, "reads", 2000, 1, 1 << 16)?;
    let devices = machine.devices()?;
    let (Some(first), Some(last)) = (devices.first(), devices.last()) else {
        return Err("reason=no-device".into());
    };
    let mut line = alloc::format!("devices={} reads={reads}", devices.len());
    for (name, read) in REGISTERS {
        if name == "port" && matches!(first.notify, Notify::Memory(_)) {
            continue;
        }
        let (mut low, mut high) = (Vec::new(), Vec::new());
        for turn in 0..reads {
            // Each is first in every other turn.
            if turn % 2 == 0 {
                low.push(time(read, first));
                high.push(time(read, last));
            } else {
                high.push(time(read, last));
                low.push(time(read, first));
            }
        }
        line += &figures(name, &mut low, &mut high);
    }
    Ok(line)
}

/// The medians, in ticks: nanoseconds would round the ratio.
fn figures(name: &str, first: &mut [u64], last: &mut [u64]) -> String {
    let [first, last] = [first, last].map(|times| {
        times.sort_unstable();
        times[times.len() / 2]
    });
    alloc::format!(
        " {name}_first_ticks={first} {name}_last_ticks={last} {name}_first_ns={}",
        clock::nanoseconds(first)
    )
}
