//! What was aimed at, and whether it is met.

use std::fmt::Write as _;

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
    let mut text = format!("\nKVM: {kvm}\n");
    let trip = |back_end, guest| format!("round trip, back-end {back_end}, guest {guest}");
    let asleep = trip("asleep", "asleep");
    // The first two are for a software KVM, and told of any other.
    let targets = [
        (
            "exit MMIO, 1 others".into(),
            "ioeventfd MMIO, length 4, 1 others".into(),
            5.0,
            !is_hardware(),
        ),
        (
            "exit PIO, 1 others".into(),
            "ioeventfd PIO, length 4, 1 others".into(),
            5.0,
            !is_hardware(),
        ),
        (asleep.clone(), trip("polling", "polling"), 5.0, true),
        (asleep, trip("polling", "asleep"), 2.0, true),
    ];
    for (dear, cheap, least, is_target) in targets {
        if let Some(ratio) = report.ratio(&dear, &cheap) {
            let verdict = match ratio.quantile(0.5) >= least {
                _ if !is_target => "reported",
                true => "met",
                false => "MISSED",
            };
            let ratio = brief(&ratio);
            let _ = writeln!(
                text,
                "{cheap}: {ratio} times cheaper than {dear}; target {least}: {verdict}"
            );
        }
    }
    for kind in report.kinds.iter().filter(|kind| is_alone(kind)) {
        let Some((dear, theirs)) = &kind.text else {
            continue;
        };
        if let Some(ratio) = report.ratio(dear, &kind.name) {
            let (cheap, ratio) = (&kind.name, brief(&ratio));
            let _ = writeln!(
                text,
                "{cheap}: {ratio} times cheaper than {dear}; in 2009: {theirs:.2}"
            );
        }
    }
    for kind in [
        "exit MMIO",
        "ioeventfd MMIO, length 4",
        "exit PIO",
        "ioeventfd PIO, length 4",
    ] {
        for others in [512, 4096] {
            let (few, many) = (
                format!("{kind}, 1 others"),
                format!("{kind}, {others} others"),
            );
            if let Some(ratio) = report.ratio(&many, &few) {
                let ratio = brief(&ratio);
                let _ = writeln!(
                    text,
                    "{kind}: with {others} other doorbells {ratio} times as dear as with 1"
                );
            }
        }
    }
    text
}

/// A write with hardly another doorbell in the VM, as in 2009.
pub fn is_alone(kind: &Kind) -> bool {
    matches!(kind.what, What::Write(write) if write.others == 1)
}
