//! How each side is started: the same guest, one vCPU, one pair of queues.

use std::process::Command;

use crate::Products;

use super::link::Place;

/// The guest's frames are one descriptor each, as Linux's small ones are.
const WORDS: &str = "queues=1 pieces=1 indirect=never depth=256 buffers=256 timeout=20 exit=halt";

/// A command that does not outlive this program, whatever becomes of it.
pub fn child() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]);
    command
}

fn words(place: Place, words: &str) -> String {
    format!("{words} {WORDS} ip={}/24 peer={}", place.ip, place.peer)
}

/// Outboard's VM; the guest does what `scenario` says.
pub fn outboard(products: &Products, place: Place, scenario: &str) -> Command {
    let mut command = child();
    command
        .arg(products.bin.join("outboard"))
        .args(["run", "--memory", "256M", "--cpus", "1"])
        .arg("--kernel")
        .arg(&products.guest)
        .args(["--cmdline", &words(place, scenario)])
        .args(["--net", &format!("tap={},mac={}", place.tap, place.mac)]);
    command
}

/// QEMU's.
pub fn qemu(products: &Products, place: Place, scenario: &str) -> Command {
    let mut command = child();
    let netdev = format!(
        "tap,id=n,ifname={},script=no,downscript=no,vhost=off",
        place.tap
    );
    let device = format!(
        "virtio-net-pci,disable-legacy=on,netdev=n,mac={},mq=off",
        place.mac
    );
    command
        .arg("qemu-system-x86_64")
        .args(["-M", "microvm,pcie=on,rtc=off", "-accel", "kvm"])
        .args(["-m", "256", "-smp", "1", "-cpu", "host,-arch-capabilities"])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-no-reboot", "-serial", "stdio"])
        // Names of threads, by which vCPUs are told from the device.
        .args(["-name", "bench,debug-threads=on"])
        .arg("-kernel")
        .arg(&products.guest)
        .arg("-append")
        .arg(format!("{} ecam=0xe0000000", words(place, scenario)))
        .args(["-netdev", &netdev, "-device", &device]);
    command
}
