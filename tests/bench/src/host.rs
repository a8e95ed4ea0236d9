//! On what was measured.

use std::fs;
use std::process::Command;

/// Versions of kernel, QEMU and processor, in one line.
pub fn versions() -> String {
    let kernel = nix::sys::utsname::uname().map_or_else(
        |_| "an unknown kernel".to_owned(),
        |name| format!("Linux {}", name.release().display()),
    );
    let qemu = Command::new("qemu-system-x86_64").arg("--version").output();
    let qemu = qemu.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let qemu = qemu.unwrap_or_default();
    let qemu = qemu.lines().next().unwrap_or("QEMU of unknown version");
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut models = processor
        .lines()
        .filter_map(|line| line.strip_prefix("model name"));
    let model = models.next().map_or("an unknown processor", |model| {
        model.trim_start_matches([' ', '\t', ':'])
    });
    let cores = 1 + models.count();
    let kvm = if has_hardware_kvm() {
        "hardware"
    } else {
        "software"
    };
    format!("{kernel}, {qemu}, {cores} x {model}, {kvm} KVM")
}

/// Whether a stock Linux can be run on this machine's /dev/kvm: its processor has
/// virtualization.
pub fn has_hardware_kvm() -> bool {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut words = processor.split_whitespace();
    words.any(|word| word == "vmx" || word == "svm")
}
