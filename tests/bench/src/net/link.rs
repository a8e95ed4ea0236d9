//! The network: a namespace of this process's own, and the tap in it.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};

/// The tap of the VM that is measured.
pub const TAP: &str = "tap0";
/// Address of the host on it, and of the guest.
pub const HOST: &str = "10.0.2.1";
/// See [`HOST`].
pub const GUEST: &str = "10.0.2.2";

/// A network namespace that ends with this process and its children.
pub struct Link(());

impl Link {
    /// Leaves the network of the machine for one of its own.
    pub fn new() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context(
            "cannot make a network namespace for the taps: run as root (or with CAP_SYS_ADMIN and CAP_NET_ADMIN)",
        )?;
        // No frames but those that are measured.
        for which in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
            // A kernel without IPv6 sends none either.
            let _ = fs::write(path, "1");
        }
        ip("link set lo up")?;
        ip(&format!("tuntap add dev {TAP} mode tap vnet_hdr"))?;
        ip(&format!("addr add {HOST}/24 dev {TAP}"))?;
        ip(&format!("link set {TAP} up"))?;
        // Segments are for a packet socket; the host's TCP would answer each
        // with a reset.
        ip("rule add pref 10 lookup local")?;
        ip("rule del pref 0")?;
        ip(&format!("rule add pref 5 iif {TAP} ipproto tcp blackhole"))?;
        Ok(Self(()))
    }
}

/// Runs ip(8).
pub fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(words.split_whitespace())
        .output()
        .context("cannot run ip: install iproute2")?;
    if !output.status.success() {
        bail!(
            "ip {words}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
