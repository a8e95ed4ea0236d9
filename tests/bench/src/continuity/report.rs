//! The table and the ratios.

use std::time::Duration;

use super::times::Times;
use super::{Done, Row, replug};
use crate::host;
use crate::spread::Spread;

const SHARES: [f64; 4] = [0.5, 0.9, 0.99, 1.0];

/// What else there is to know of QEMU's rows.
const HOW: [&str; 4] = [
    "QEMU's rows but the last: on KVM, with the guest and the load of Outboard's.",
    "  stop and reconnect: SIGTERM, stop, the next back-end, connected (reconnect=1, the least of 7.2), cont.",
    "    It cannot stop first: QEMU 7.2's device is dead if its back-end goes while the VM is stopped.",
    "  listens: its chardev has server=on, and the next back-end has connected to it before SIGTERM.",
];

/// Prints all rows, and how many times as long as Outboard's QEMU's are.
pub fn print(rows: &[Done]) {
    println!("{}", host::versions());
    println!(
        "SIGKILL (where it is replaced by plan: the last completion before it) to the next completion, ms; \
         64 requests in flight on 2 queues"
    );
    println!(
        "{:<38}{:>6}{:>10}{:>10}{:>10}{:>10}",
        "", "times", "p50", "p90", "p99", "longest"
    );
    for (row, name, times) in rows {
        print_row(*row, name, times);
    }
    let median = |row| {
        let outages = of(rows, row).map_or(&[][..], |times| &times.outages);
        Spread::millis(outages).quantile(0.5)
    };
    let [restart, standby, qemu] = [Row::Restart, Row::Standby, Row::Qemu].map(median);
    println!(
        "QEMU / outboard, medians: {:.0}; with standby=1: {:.0} (target: at least 40)",
        qemu / restart,
        qemu / standby
    );
    println!(
        "{:<38}{:>16}   each round's: median (p10–p90)",
        "/ outboard, ctl swap", "of the medians"
    );
    let swap = of(rows, Row::Swap).map_or(&[][..], |times| &times.rounds);
    for (row, name, times) in rows {
        if row.is_qemu() && times.failed.is_none() {
            let ratios = ratios(&times.rounds, swap);
            let medians = median(*row) / median(Row::Swap);
            println!("{name:<38}{medians:>16.1}   {}", ratios.brief(1));
        }
    }
    for line in HOW {
        println!("{line}");
    }
    println!("{}", replug::how());
}

fn of(rows: &[Done], wanted: Row) -> Option<&Times> {
    let row = rows.iter().find(|(row, _, _)| *row == wanted);
    row.map(|(_, _, times)| times)
}

/// Of the rounds that have both.
fn ratios(these: &[f64], others: &[f64]) -> Spread {
    let both = these.iter().zip(others);
    let ratios = both.map(|(this, other)| this / other);
    Spread::new(ratios.filter(|ratio| ratio.is_finite()).collect())
}

fn print_row(row: Row, name: &str, times: &Times) {
    if let Some(reason) = &times.failed {
        println!("{name:<38} {reason}");
        return;
    }
    let spread = Spread::millis(&times.outages);
    print!("{name:<38}{:>6}{}", spread.len(), line(&spread));
    let p99 = spread.quantile(0.99);
    match row.target() {
        Some(target) if p99 < target => println!("  target: p99 under {target} ms: met"),
        Some(target) => println!("  target: p99 under {target} ms: MISSED"),
        None => println!(),
    }
    print_parts(&times.parts);
    if !times.slowest.is_empty() {
        let slowest = Spread::millis(&times.slowest).quantile(1.0);
        println!(
            "{:<44}{}  beyond the slowest request without a kill ({slowest:.2})",
            "",
            quantiles(&spread, slowest)
        );
    }
    if !times.errors.is_empty() {
        let errors = Spread::new(times.errors.clone()).brief(0);
        println!("    I/O errors that the guest's load saw, each time: {errors}");
    }
}

fn print_parts(parts: &[[Duration; 5]]) {
    if parts.is_empty() {
        return;
    }
    let names = [
        "stop",
        "drain",
        "rest",
        "start",
        "all that the machine sees",
    ];
    for (place, name) in names.iter().enumerate() {
        let part = parts.iter().filter_map(|parts| parts.get(place));
        let spread = Spread::millis(&part.copied().collect::<Vec<_>>());
        println!("    {name:<40}{}", line(&spread));
    }
}

fn line(spread: &Spread) -> String {
    quantiles(spread, 0.0)
}

/// Less this.
fn quantiles(spread: &Spread, less: f64) -> String {
    let values = SHARES.map(|share| format!("{:>10.2}", spread.quantile(share) - less));
    values.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_one_round_and_one_that_a_row_lacks_is_of_none() {
        let swap = [2.0, 4.0, 5.0];
        assert_eq!(
            ratios(&[20.0, 400.0, f64::NAN], &swap).brief(0),
            "100 (10–100)"
        );
        // It failed in its second round.
        assert_eq!(ratios(&[20.0], &swap).brief(0), "10 (10–10)");
    }
}
