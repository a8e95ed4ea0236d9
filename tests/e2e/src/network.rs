//! A network of a test's own, and the host's side of the guest's network
//! scenarios.
//!
//! A test that needs taps or bridges is run a second time, alone, by this very
//! program in a network namespace of its own; without root in a user namespace
//! too, in which it may do with the network as it likes. Nothing that it makes
//! there outlives it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use crate::eventually;
use crate::products::Products;
use crate::vm::GuestResult;

/// In the environment of a test that has a network of its own.
const INSIDE: &str = "OUTBOARD_TEST_NETWORK";
/// Seconds after which a [`Peer`] that was left behind gives up by itself.
const PEER_SECONDS: &str = "3600";

/// Whether this process has a network of its own.
pub fn is_own() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// A command in a network of its own.
fn unshared() -> Command {
    let mut command = Command::new("unshare");
    command.arg("--net").env(INSIDE, "1").stdin(Stdio::null());
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command
}

/// Why there can be no network of one's own here, with a tap in it.
pub fn missing() -> Option<String> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    let try_it = || {
        let mut command = unshared();
        let words = ["ip", "tuntap", "add", "dev", "probe", "mode", "tap"];
        let said = match command.args(words).output() {
            Ok(output) if output.status.success() => return None,
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => format!("unshare: {error}"),
        };
        Some(format!(
            "no network of one's own with a tap in it ({said}); run as root, or allow user \
             namespaces and /dev/net/tun, and install iproute2"
        ))
    };
    match is_own() {
        true => None,
        false => MISSING.get_or_init(try_it).clone(),
    }
}

/// Runs the test of this name in a network of its own.
///
/// It comes to its end: none of its own waits is without one.
///
/// # Errors
/// What it said, if it failed.
pub fn run_again(name: &str) -> Result<()> {
    let mut said = tempfile::tempfile()?;
    let status = unshared()
        .arg(std::env::current_exe()?)
        .args(["--exact", name, "--test-threads=1", "--color=never"])
        .stdout(said.try_clone()?)
        .stderr(said.try_clone()?)
        .status()
        .context("unshare")?;
    let said = text(&mut said)?;
    // That it ran is said by it alone: a filter that finds nothing succeeds.
    ensure!(
        status.success() && said.contains("1 passed"),
        "{status}:\n{said}"
    );
    Ok(())
}

fn text(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Runs `ip` with these words.
///
/// # Errors
/// What it said.
pub fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(words.split_whitespace())
        .output()
        .context("ip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {words}: {said}");
    Ok(())
}

/// Makes the tap `name`, with `more` words, and turns it on.
///
/// # Errors
/// What `ip` said.
pub fn tap(name: &str, more: &str) -> Result<()> {
    ip(&format!("tuntap add dev {name} mode tap {more}"))?;
    // No frames but the test's own, whose every drop is counted: this kernel
    // asks for routers and neighbours as soon as the tap is on.
    let ipv6 = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    let _ = fs::write(ipv6, "1");
    ip(&format!("link set {name} up"))
}

/// A tap at the address that the guest takes for its peer's.
///
/// # Errors
/// What `ip` said.
pub fn tap_with_address(name: &str, more: &str) -> Result<()> {
    tap(name, more)?;
    ip(&format!("addr add 10.0.2.1/24 dev {name}"))
}

/// Waits until the interface takes frames: it is up, and what stands behind it is there
/// (carrier). From the moment that a tap's first descriptor is opened until the kernel has
/// worked that up, by a thread of its own, the interface says that it is down and has no queue:
/// what is sent is dropped without an error (Linux, net/core/link_watch.c; reason `QDISC_DROP`).
///
/// # Errors
/// What `ip` said; it stays down.
pub fn takes_frames(name: &str) -> Result<()> {
    eventually("the interface is up", || {
        let words = ["-br", "link", "show", "dev", name];
        let output = Command::new("ip").args(words).output().context("ip")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "ip link show {name}: {said}");
        Ok((!said.contains(" DOWN ")).then_some(()))
    })
}

/// Frames that an interface has dropped: (received, sent), as the kernel sees
/// it.
///
/// # Errors
/// There is no such interface.
pub fn dropped(interface: &str) -> Result<(u64, u64)> {
    // Eight columns each: bytes packets errs drop …
    Ok((count(interface, 3)?, count(interface, 11)?))
}

/// Frames that the kernel has received by an interface: of a tap, the guest's.
///
/// # Errors
/// There is no such interface.
pub fn received(interface: &str) -> Result<u64> {
    count(interface, 1)
}

/// Pairs of queues of a tap, as the kernel has them: (in use, turned off).
///
/// # Errors
/// What `ip` said.
pub fn pairs(tap: &str) -> Result<(u64, u64)> {
    let words = ["-d", "link", "show", "dev", tap];
    let output = Command::new("ip").args(words).output().context("ip")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let after = |name: &str| {
        let mut words = said.split_whitespace().skip_while(|word| *word != name);
        let count = words.nth(1).and_then(|word| word.parse().ok());
        count.with_context(|| format!("no {name}: {said}"))
    };
    Ok((after("numqueues")?, after("numdisabled")?))
}

/// Frames that an interface has passed on: of a tap, to the guest.
///
/// # Errors
/// There is no such interface.
pub fn sent(interface: &str) -> Result<u64> {
    count(interface, 9)
}

fn count(interface: &str, column: usize) -> Result<u64> {
    let table = fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = table.lines().find_map(|line| {
        let (name, counts) = line.split_once(':')?;
        (name.trim() == interface).then_some(counts)
    });
    let line = line.with_context(|| format!("no interface {interface}"))?;
    let word = line.split_whitespace().nth(column);
    word.and_then(|word| word.parse().ok())
        .context("/proc/net/dev")
}

/// Datagrams that this network's UDP sockets had no room for.
///
/// # Errors
/// /proc cannot be read.
pub fn without_room() -> Result<u64> {
    let table = fs::read_to_string("/proc/thread-self/net/snmp")?;
    let mut lines = table.lines().filter(|line| line.starts_with("Udp: "));
    let (names, counts) = (lines.next(), lines.next());
    let mut columns = names
        .into_iter()
        .flat_map(str::split_whitespace)
        .zip(counts.into_iter().flat_map(str::split_whitespace));
    let count = columns.find(|(name, _)| *name == "RcvbufErrors");
    count
        .and_then(|(_, count)| count.parse().ok())
        .context("/proc/net/snmp")
}

/// A running `guest-peer`, which ends by itself in any case. Dropped, it is
/// killed.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    lines: BufReader<ChildStdout>,
    words: String,
}

impl Peer {
    /// Starts one with these words.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(words: &str) -> Result<Self> {
        let mut child = Command::new(Products::get()?.guest("guest-peer"))
            .args(words.split_whitespace())
            .args(["--seconds", PEER_SECONDS])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("guest-peer")?;
        let stdout = child.stdout.take().context("no output")?;
        Ok(Self {
            child,
            lines: BufReader::new(stdout),
            words: words.to_owned(),
        })
    }

    /// Starts one that listens, and waits until it does.
    ///
    /// # Errors
    /// It cannot be started, or does not listen.
    pub fn listening(words: &str) -> Result<Self> {
        let mut peer = Self::start(words)?;
        let line = peer.line()?;
        ensure!(line == "PEER ready", "guest-peer {words}: {line:?}");
        Ok(peer)
    }

    /// Starts one and waits for its end.
    ///
    /// # Errors
    /// Those of [`Self::start`] and [`Self::end`].
    pub fn run(words: &str) -> Result<GuestResult> {
        Self::start(words)?.end()
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Waits for its end, which is now if it goes by its standard input, and
    /// answers its result.
    ///
    /// # Errors
    /// It did not pass.
    pub fn end(mut self) -> Result<GuestResult> {
        drop(self.child.stdin.take());
        let line = self.line()?;
        self.child.wait()?;
        let result = GuestResult::from_line(&line, "PEER");
        result
            .and_then(GuestResult::passed)
            .with_context(|| format!("guest-peer {}", self.words))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
