//! The command line of `outboard-net`, and the card that it asks for.

use std::env;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::{ArgGroup, Parser};
use outboard_protocol::launch;
use outboard_protocol::tap::{MAX_QUEUES, Mac, parse_mac};
use outboard_runtime::Supervisor;
use outboard_runtime::inherited;
use outboard_runtime::manual::after_help;
use outboard_runtime::outside::Behind;
use outboard_runtime::program::{self, Capabilities};
use outboard_runtime::supervisor;

use crate::card::{Card, Settings};
use crate::device::Net;
use crate::outside::{self, Inside};

const USAGE: &str = "outboard-net [--socket-path PATH | --fd FDNUM] \
    {--tap NAME | --tap-fd FDNUM,… | --peer PATH | --peer-fd FDNUM} [OPTIONS]";

const EXAMPLES: &str = "\
Examples:
  A tap of one's own, served to QEMU, Outboard or any other front-end:
    sudo ip tuntap add dev tap0 mode tap user $USER
    sudo ip link set tap0 up
    outboard-net --socket-path=/tmp/net.sock --tap=tap0 \\
        --mac=02:00:00:00:00:01
  The same with four pairs of queues:
    sudo ip tuntap add dev tap0 mode tap multi_queue user $USER
    outboard-net --socket-path=/tmp/net.sock --tap=tap0 --num-queues=4
  Without a tap and without rights, by way of passt:
    passt --socket /tmp/passt.sock
    outboard-net --socket-path=/tmp/net.sock --peer=/tmp/passt.sock";

/// Serve a tap or a stream of frames as a virtio network card over vhost-user
#[derive(Debug, Parser)]
#[command(
    version = outboard_version::VERSION,
    override_usage = USAGE,
    after_help = EXAMPLES,
    after_long_help = after_help(EXAMPLES),
    group(ArgGroup::new("port").args(["tap", "tap_fd", "peer"])),
)]
pub struct Cli {
    #[command(flatten)]
    program: program::Args,

    /// The network: a tap, which must exist
    #[arg(long, value_name = "NAME", required_unless_present_any = ["tap_fd", "peer", "peer_fd", "print_capabilities"])]
    tap: Option<String>,

    /// The network: inherited descriptors of a tap, one for each pair of
    /// queues, opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR
    #[arg(long, value_name = "FDNUM,…", value_delimiter = ',')]
    tap_fd: Vec<RawFd>,

    /// The network: a peer at this Unix stream socket, each frame after its
    /// length as a 4-byte big-endian number; it listens there, or we do
    #[arg(long, value_name = "PATH[,listen]")]
    peer: Option<String>,

    /// The network: an inherited socket to a peer, connected or listening; one
    /// that is connected is connected again at the PATH of --peer, if given
    #[arg(long, value_name = "FDNUM", conflicts_with_all = ["tap", "tap_fd"])]
    peer_fd: Option<RawFd>,

    /// MAC address of the card; without it the driver chooses one
    #[arg(long, value_name = "ADDRESS", value_parser = parse_mac)]
    mac: Option<Mac>,

    /// MTU that the driver is told, in bytes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(68..))]
    mtu: Option<u16>,

    /// Number of pairs of queues, with --tap
    #[arg(long, value_name = "PAIRS", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_QUEUES)))]
    num_queues: u16,

    /// Largest queue size, a power of two from 2 to 32768; Linux's driver needs
    /// 32. Frames that are still to be cut up (TSO, USO) are taken from the driver
    /// from 32 on, and given to it from 128 on
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = queue_size)]
    queue_size: u16,
}

fn queue_size(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(size) if size.is_power_of_two() && (2..=32768).contains(&size) => Ok(size),
        _ => Err("it must be a power of two from 2 to 32768".into()),
    }
}

impl Cli {
    /// Serves the card that the command line asks for. Call it first of all,
    /// since inherited descriptors are taken by number; see [`program::run`]
    /// for what happens then.
    pub fn serve(self) -> ExitCode {
        let capabilities = Capabilities {
            kind: "net",
            features: &[],
        };
        // Before anything else opens descriptors, and those numbers with it.
        let taps: io::Result<Vec<_>> = self.tap_fd.iter().copied().map(inherited::take).collect();
        let peer = self.peer_fd.map(inherited::take);
        program::run_with(&self.program, capabilities, || {
            let settings = Settings {
                mac: self.mac,
                mtu: self.mtu,
                queue_size: self.queue_size,
            };
            let (behind, inside) = self.open(taps, peer)?;
            let build = move |supervisor: &Supervisor| {
                let port = inside.port(supervisor.waits())?;
                Ok(Net::new(match supervisor.waits() {
                    true => Card::waiting(port, settings),
                    false => Card::new(port, settings),
                }))
            };
            Ok((behind, build))
        })
    }

    fn open(
        &self,
        taps: io::Result<Vec<OwnedFd>>,
        peer: Option<io::Result<OwnedFd>>,
    ) -> anyhow::Result<(Behind, Inside)> {
        let taps = taps.context("cannot use --tap-fd")?;
        if let Some(fd) = peer {
            let fd = fd.context("cannot use --peer-fd")?;
            return outside::inherit(fd, self.peer.as_deref().map(Path::new));
        }
        if !taps.is_empty() {
            // A supervisor takes back what was set, when the VM is over.
            let supervised = env::var_os(launch::VERSION_ENV).is_some();
            return Ok(outside::queues_of_a_tap(taps, !supervised));
        }
        if let Some(name) = &self.tap {
            return outside::tap(name, self.num_queues);
        }
        let Some(text) = &self.peer else {
            anyhow::bail!("no network: give --tap=NAME or --peer=PATH");
        };
        // Who has a supervisor listens nowhere, and connects to nobody.
        let alone = !supervisor::is_there();
        match text.strip_suffix(",listen") {
            Some(path) => outside::listen(Path::new(path), alone),
            None => outside::connect(Path::new(text), alone),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
