//! What is measured: the rows, and who takes part in each.

use super::stats::Figure;

/// Where frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// From a socket of the host to the guest.
    HostToGuest,
    /// From the guest to a socket of the host.
    GuestToHost,
    /// From a guest to another, each on a tap of one bridge.
    GuestToGuest,
    /// From the guest to a socket of the host and back, one at a time.
    RoundTrip,
    /// From a socket of the host to another, without any VM.
    HostToHost,
}

/// What they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// UDP in frames of so many bytes.
    Frames(usize),
    /// TCP of 65,160 bytes in one frame, to be cut into segments of 1,448 if
    /// anybody must.
    Segments,
}

/// Bytes of Ethernet, IP and UDP headers.
const UDP_HEADERS: usize = 42;

impl Load {
    /// Bytes of data in each frame.
    pub fn data(self) -> usize {
        match self {
            Self::Frames(length) => length - UDP_HEADERS,
            Self::Segments => 65_160,
        }
    }
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Outboard with outboard-net.
    Outboard,
    /// QEMU's microvm with its own tap back-end, vhost off, virtio over PCI.
    Qemu,
    /// A veth pair between two network namespaces of the host.
    Veth,
    /// The host's loopback device.
    Loopback,
}

impl Side {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Outboard => "Outboard",
            Self::Qemu => "QEMU",
            Self::Veth => "veth",
            Self::Loopback => "loopback",
        }
    }
}

/// One thing measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Where frames go.
    pub path: Path,
    /// What they are.
    pub load: Load,
}

impl Row {
    /// For people, and for `--only`.
    pub fn name(&self) -> String {
        let path = match self.path {
            Path::HostToGuest => "host to guest",
            Path::GuestToHost => "guest to host",
            Path::GuestToGuest => "guest to guest",
            Path::RoundTrip => "guest to host and back",
            Path::HostToHost => "host to host",
        };
        match self.load {
            Load::Frames(length) => format!("{path}, {length} B frames"),
            Load::Segments => format!("{path}, 64 KiB segments"),
        }
    }

    /// Who takes part.
    pub fn sides(&self) -> Vec<Side> {
        match self.path {
            Path::HostToHost => vec![Side::Veth, Side::Loopback],
            _ => vec![Side::Outboard, Side::Qemu],
        }
    }

    /// What is told of each run.
    pub fn figures(&self) -> &'static [Figure] {
        match self.path {
            Path::RoundTrip => &Figure::OF_ROUND_TRIPS,
            Path::HostToHost => &Figure::OF_THE_HOST,
            Path::HostToGuest | Path::GuestToHost | Path::GuestToGuest => &Figure::OF_A_FLOW,
        }
    }
}

/// All rows.
pub fn rows() -> Vec<Row> {
    let loads = [Load::Frames(64), Load::Frames(1500), Load::Segments];
    let flows = [
        Path::HostToGuest,
        Path::GuestToHost,
        Path::GuestToGuest,
        Path::HostToHost,
    ];
    let mut rows = Vec::new();
    for path in flows {
        rows.extend(loads.map(|load| Row { path, load }));
    }
    rows.push(Row {
        path: Path::RoundTrip,
        load: Load::Frames(64),
    });
    rows
}
