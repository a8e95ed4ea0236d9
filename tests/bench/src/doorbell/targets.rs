//! What was aimed at, and whether it is met.

use super::report::{Kind, Report, What, brief};

/// Whether this host's processor runs guests itself.
pub fn is_hardware() -> bool {
    outboard::machine::kvm::host_has_hardware_virtualization()
}

/// The verdicts.
pub fn text(report: &Report) -> String {
    let kvm = match is_hardware() {
        true => "hardware",
        false => "software (ring 0 of a guest is emulated)",
    };
    let mut lines = vec![String::new(), format!("KVM: {kvm}")];
    aims(report, &mut lines);
    beside_2009(report, &mut lines);
    among_many(report, &mut lines);
    lines.push(String::new());
    lines.join("\n")
}

fn aims(report: &Report, lines: &mut Vec<String>) {
    let trip = |back_end, guest| format!("round trip, back-end {back_end}, guest {guest}");
    let alone = |kind| format!("{kind}, 1 others");
    let asleep = trip("asleep", "asleep");
    // The first two are for a software KVM, and told of any other.
    let [mmio, pio] = ["MMIO", "PIO"].map(|space| {
        let exit = alone(format!("exit {space}"));
        let ours = alone(format!("ioeventfd {space}, length 4"));
        (exit, ours, 5.0, !is_hardware())
    });
    let polling = (asleep.clone(), trip("polling", "polling"), 5.0, true);
    let waking = (asleep, trip("polling", "asleep"), 2.0, true);
    for (dear, cheap, least, is_aim) in [mmio, pio, polling, waking] {
        if let Some(ratio) = report.ratio(&dear, &cheap) {
            let verdict = match ratio.quantile(0.5) >= least {
                _ if !is_aim => "reported",
                true => "met",
                false => "MISSED",
            };
            let ratio = brief(&ratio);
            lines.push(format!(
                "{cheap}: {ratio} times cheaper than {dear}; target {least}: {verdict}"
            ));
        }
    }
}

fn beside_2009(report: &Report, lines: &mut Vec<String>) {
    for kind in report.kinds.iter().filter(|kind| is_alone(kind)) {
        let (Some((dear, theirs)), cheap) = (&kind.text, &kind.name) else {
            continue;
        };
        if let Some(ratio) = report.ratio(dear, cheap) {
            let ratio = brief(&ratio);
            lines.push(format!(
                "{cheap}: {ratio} times cheaper than {dear}; in 2009: {theirs:.2}"
            ));
        }
    }
}

fn among_many(report: &Report, lines: &mut Vec<String>) {
    for way in ["exit", "ioeventfd"] {
        for (space, others) in [("MMIO", 512), ("MMIO", 4096), ("PIO", 512), ("PIO", 4096)] {
            let kind = match way {
                "exit" => format!("exit {space}"),
                _ => format!("ioeventfd {space}, length 4"),
            };
            let [few, many] = [1, others].map(|others| format!("{kind}, {others} others"));
            if let Some(ratio) = report.ratio(&many, &few) {
                let ratio = brief(&ratio);
                lines.push(format!(
                    "{kind}: with {others} other doorbells {ratio} times as dear as with 1"
                ));
            }
        }
    }
}

/// A write with hardly another doorbell in the VM, as in 2009.
pub fn is_alone(kind: &Kind) -> bool {
    matches!(kind.what, What::Write(write) if write.others == 1)
}
