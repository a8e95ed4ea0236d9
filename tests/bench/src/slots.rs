//! What the read of a device's register costs in the last slot, beside the first.
//!
//! The bundled guest times both, in turn, in a VM of as many devices as there are
//! slots; all it prints are the medians. The exit to user space is the most of it
//! and the same for both: so beside the ratio stands the difference.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::program::{Program, passed, word};
use crate::spread::Spread;
use crate::{Other, Products};

/// As many as there are slots.
const DEVICES: usize = 31;
/// For one VM.
const WAIT: Duration = Duration::from_secs(120);
/// What the last slot may cost of the first.
const TARGET: f64 = 1.2;

/// Registers by the words of the guest's line.
const REGISTERS: [(&str, &str); 3] = [
    ("config", "configuration space"),
    ("memory", "memory BAR"),
    ("port", "I/O BAR"),
];

/// Medians of one VM, in nanoseconds.
#[derive(Clone, Copy)]
struct Cost {
    first: f64,
    last: f64,
}

/// Runs both builds `runs` times, interleaved, and prints what it found.
pub fn run(products: &Products, runs: usize, other: &Other) -> Result<()> {
    let other = other.against.as_deref().map(|bin| products.beside(bin));
    let sides: Vec<_> = [("this build", products)]
        .into_iter()
        .chain(other.iter().map(|other| ("another build", other)))
        .collect();
    let mut costs = vec![Vec::new(); sides.len()];
    for _ in 0..runs.max(1) {
        for ((_, products), costs) in sides.iter().zip(&mut costs) {
            costs.push(once(products)?);
        }
    }
    println!("a read of a register, {DEVICES} devices, the last beside the first");
    for (register, (_, name)) in REGISTERS.iter().enumerate() {
        for ((side, _), costs) in sides.iter().zip(&costs) {
            let spread = |figure: fn(Cost) -> f64| {
                Spread::new(costs.iter().map(|cost| figure(cost[register])).collect())
            };
            let ratio = spread(|cost| cost.last / cost.first);
            println!(
                "  {name}, {side}: last/first {ratio:.3}; last - first, ns, {:.0}; first, ns, {:.0}",
                spread(|cost| cost.last - cost.first),
                spread(|cost| cost.first),
            );
            if *side == "this build" {
                let median = ratio.quantile(0.5);
                let verdict = if median <= TARGET { "met" } else { "MISSED" };
                println!("    target: at most {TARGET}: {verdict} ({median:.3})");
            }
        }
    }
    Ok(())
}

/// One VM; its figures in the order of [`REGISTERS`].
fn once(products: &Products) -> Result<[Cost; REGISTERS.len()]> {
    let mut command = Command::new(products.bin.join("outboard"));
    command
        .args(["run", "--memory", "256M", "--cpus", "1"])
        .args(["--doorbell", "pio", "--cmdline", "scenario=slots"])
        .arg("--kernel")
        .arg(&products.guest)
        .args(["--rng"; DEVICES]);
    let line = Program::start(&mut command)?.line("OUTBOARD slots", WAIT)?;
    passed(&line)?;
    ensure!(
        word(&line, "devices")? == DEVICES as u64,
        "devices are missing: {line}"
    );
    let mut costs = [Cost {
        first: 0.0,
        last: 0.0,
    }; REGISTERS.len()];
    for ((register, _), cost) in REGISTERS.iter().zip(&mut costs) {
        let figure = |of: &str| word(&line, &format!("{register}_{of}")).map(|value| value as f64);
        // In ticks, as nanoseconds would round the ratio.
        let tick = figure("first_ns")? / figure("first_ticks")?;
        *cost = Cost {
            first: figure("first_ticks")? * tick,
            last: figure("last_ticks")? * tick,
        };
    }
    Ok(costs)
}
