//! How each side is started: the same guest, one vCPU, one pair of queues.

use std::process::Command;

use crate::Products;

use super::link::TAP;
use super::plan::Side;

const MAC: &str = "52:54:00:00:00:02";
/// The guest's frames are one descriptor each, as Linux's small ones are.
const WORDS: &str = "queues=1 pieces=1 indirect=never depth=256 buffers=256 timeout=20 exit=halt";

/// The command of a side's VM; the guest does what `words` say.
pub fn command(products: &Products, side: Side, words: &str) -> Command {
    // A VM does not outlive this program, whatever becomes of it.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]);
    match side {
        Side::Outboard => outboard(products, &mut command, words),
        Side::Qemu => qemu(products, &mut command, words),
    }
    command
}

fn outboard(products: &Products, command: &mut Command, words: &str) {
    command
        .arg(products.bin.join("outboard"))
        .args(["run", "--memory", "256M", "--cpus", "1"])
        .arg("--kernel")
        .arg(&products.guest)
        .args(["--cmdline", &format!("{words} {WORDS}")])
        .args(["--net", &format!("tap={TAP},mac={MAC}")]);
}

fn qemu(products: &Products, command: &mut Command, words: &str) {
    command
        .arg("qemu-system-x86_64")
        .args(["-M", "microvm,pcie=on,rtc=off", "-accel", "kvm"])
        .args(["-m", "256", "-smp", "1", "-cpu", "host,-arch-capabilities"])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args([
            "-no-reboot",
            "-serial",
            "stdio",
            "-name",
            "bench,debug-threads=on",
        ])
        .arg("-kernel")
        .arg(&products.guest)
        .args(["-append", &format!("{words} {WORDS} ecam=0xe0000000")])
        .arg("-netdev")
        .arg(format!(
            "tap,id=n,ifname={TAP},script=no,downscript=no,vhost=off"
        ))
        .arg("-device")
        .arg(format!(
            "virtio-net-pci,disable-legacy=on,netdev=n,mac={MAC},mq=off"
        ));
}
