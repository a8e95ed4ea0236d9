//! The network: a namespace of this process's own, and the taps in it.
//!
//! ```text
//! host 10.0.2.1 ── tap0 ── 10.0.2.2 guest         guest 10.0.2.2 ── tap1 ┐
//! host 10.0.3.1 ── veth0 ─ veth1 ── 10.0.3.2      guest 10.0.2.3 ── tap2 ┴ bridge
//! ```

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};

/// A guest's place on the network.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its tap.
    pub tap: &'static str,
    /// Its Ethernet address.
    pub mac: &'static str,
    /// Its address.
    pub ip: &'static str,
    /// The address that it talks to.
    pub peer: &'static str,
}

/// A guest that the host talks to.
pub const GUEST: Place = Place {
    tap: "tap0",
    mac: "52:54:00:00:00:02",
    ip: "10.0.2.2",
    peer: "10.0.2.1",
};
/// A guest on the bridge, which sends.
pub const SENDER: Place = Place {
    tap: "tap1",
    mac: "52:54:00:00:00:12",
    ip: "10.0.2.2",
    peer: "10.0.2.3",
};
/// The other guest on the bridge.
pub const RECEIVER: Place = Place {
    tap: "tap2",
    mac: "52:54:00:00:00:13",
    ip: "10.0.2.3",
    peer: "10.0.2.2",
};
/// The far end of the veth pair, in a namespace of its own.
pub const FAR: &str = "10.0.3.2";

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
        ip("link add br0 type bridge")?;
        ip("link set br0 up")?;
        for place in [GUEST, SENDER, RECEIVER] {
            ip(&format!("tuntap add dev {} mode tap vnet_hdr", place.tap))?;
            ip(&format!("link set {} up", place.tap))?;
        }
        ip(&format!("addr add {}/24 dev {}", GUEST.peer, GUEST.tap))?;
        for place in [SENDER, RECEIVER] {
            ip(&format!("link set {} master br0", place.tap))?;
        }
        Ok(Self(()))
    }

    /// Makes the veth pair, whose far end goes to the namespace of a process.
    pub fn add_veth(&self, far: u32) -> Result<()> {
        ip("link add veth0 type veth peer name veth1")?;
        ip(&format!("link set veth1 netns {far}"))?;
        ip("addr add 10.0.3.1/24 dev veth0")?;
        ip("link set veth0 up")
    }

    /// Removes it.
    pub fn remove_veth(&self) {
        // It goes by itself when its far end's namespace does.
        let _ = ip("link del veth0");
    }
}

/// Runs ip(8).
fn ip(words: &str) -> Result<()> {
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
