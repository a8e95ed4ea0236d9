//! The program under test, a driver of it, and the network behind it.
#![allow(
    dead_code,
    unused_imports,
    reason = "not every test file needs all of it"
)]

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use outboard_contract::client::Client;
pub use outboard_contract::driver::{EVERYTHING, VERSION_1};
use outboard_contract::memory::Memory;
pub use outboard_contract::ours::patient;
pub use outboard_contract::program::Program;
use outboard_contract::program::{command, lend, option};
use outboard_contract::ring::{Buffer, Ring};
use outboard_contract::{driver, ours, soon};
use outboard_net::header::Header;
use outboard_protocol::devices::NetConfig;
use outboard_protocol::kept::Kept;
use outboard_protocol::launch::{self, Channel, FromBackend, Link, ToBackend};
use outboard_protocol::wire::Connection;
use vhost::vhost_user::message::BackendReq;
use virtio_bindings::virtio_net::*;

/// Bytes of a header.
pub const HEADER: usize = 12;

/// Guest memory of the tests: two regions that touch.
const MIDDLE: u64 = 0x40_0000;
const END: u64 = 0x80_0000;
/// Where rings are, and the data of each.
fn place(ring: u8) -> u64 {
    0x1000 + 0x2000 * u64::from(ring)
}
/// Receive buffers, over the border of the regions; transmit buffers; commands.
pub const RX_DATA: u64 = MIDDLE - 0x2_0000;
pub const TX_DATA: u64 = 0x10_0000;
pub const COMMAND: u64 = 0x9_0000;

pub fn bit(feature: u32) -> u64 {
    1 << feature
}

/// Gives the calling thread, and what it starts, a network of its own; false,
/// and says so, where that is not possible.
pub fn own_network() -> bool {
    let result = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET);
    if result.is_err() || !std::path::Path::new("/dev/net/tun").exists() {
        println!("SKIP: taps in a network namespace need root and /dev/net/tun");
        return false;
    }
    // No frames that the test did not send.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    true
}

pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

/// A tap that is up.
pub fn make_tap(name: &str, options: &str) {
    ip(format!("tuntap add dev {name} mode tap {options}").trim());
    ip(&format!("link set {name} up"));
}

/// The program under test; another build of it by OUTBOARD_NET.
pub fn program() -> PathBuf {
    let other = std::env::var_os("OUTBOARD_NET");
    other.map_or(env!("CARGO_BIN_EXE_outboard-net").into(), PathBuf::from)
}

/// The program with these arguments.
pub fn start(arguments: &[&str]) -> Program {
    Program::serve(&mut command(program(), arguments)).unwrap()
}

/// The program with a line to a supervisor who has said `start`, and with this as its
/// descriptor 8; it is ready.
pub fn supervised(
    start: &ToBackend,
    lent: Option<OwnedFd>,
    arguments: &[&str],
) -> (Program, Channel) {
    let (line, theirs) = Channel::pair().unwrap();
    line.send(start, &[], soon()).unwrap();
    let theirs = OwnedFd::from(theirs);
    let mut command = outboard_contract::program::lent(theirs, program(), arguments).unwrap();
    command.env(launch::VERSION_ENV, launch::OLDEST_VERSION.to_string());
    command.env(launch::LINE_ENV, "9");
    if let Some(fd) = lent {
        lend(&mut command, &fd, 8).unwrap();
    }
    let program = Program::serve(&mut command).unwrap();
    let ready = line.recv::<FromBackend>(soon()).unwrap();
    let (ready, _counters) = ready.expect("it is open");
    assert!(matches!(ready, FromBackend::Ready { .. }), "{ready:?}");
    (program, line)
}

/// What a supervisor says first.
pub fn start_with(kept: Kept, link: Link, waits: bool) -> ToBackend {
    ToBackend::Start {
        version: launch::VERSION,
        kept,
        link,
        replay: Default::default(),
        waits,
    }
}

/// The program connected to a peer of ours.
pub fn connected() -> (Program, UnixStream) {
    ours::connected(program(), &[]).unwrap()
}

/// The program on a tap, that tap and the guest's address as they are everywhere
/// in these tests.
pub fn on_tap(tap: &str, arguments: &[&str]) -> Program {
    let tap = format!("--tap={tap}");
    start(&[&[tap.as_str(), "--mac=02:00:00:00:00:01"], arguments].concat())
}

/// A tap of the name `t0` in a network of the test's own, and the program on it.
pub struct Bench {
    pub program: Program,
    pub wire: Wire,
}

impl Bench {
    /// With a tap of this kind, and these arguments for the program. The wire has
    /// the headers of PACKET_VNET_HDR. `None`, and says so, where that is not
    /// possible.
    pub fn new(kind: &str, arguments: &[&str]) -> Option<Self> {
        let made = own_network();
        made.then(|| Self::again(kind, arguments))
    }

    /// With an ordinary tap.
    pub fn plain() -> Option<Self> {
        Self::new("", &[])
    }

    /// With a tap of four pairs of queues.
    pub fn of_four_pairs() -> Option<Self> {
        Self::new("multi_queue", &["--num-queues=4"])
    }

    /// Another tap in the network that is there, after the end of the one before.
    pub fn again(kind: &str, arguments: &[&str]) -> Self {
        make_tap("t0", kind);
        Self {
            program: on_tap("t0", arguments),
            wire: Wire::new("t0", true),
        }
    }

    /// Another program on the same tap, after the end of this one.
    pub fn anew(self) -> Self {
        drop(self.program);
        Self {
            program: on_tap("t0", &[]),
            wire: self.wire,
        }
    }

    /// Ends the program and deletes the tap.
    pub fn end(self) {
        drop(self);
        ip("link del t0");
    }

    pub fn driver(&self, features: u64) -> Driver {
        Driver::of(&self.program, features)
    }

    /// A driver with every feature and so many receive buffers for whole frames.
    pub fn ready(&self, count: usize) -> Driver {
        let mut driver = self.driver(EVERYTHING);
        driver.post(0, count, 1526);
        driver
    }

    /// Sends a frame to the guest as it is.
    pub fn send(&self, frame: &[u8]) {
        self.wire.send(Header::default(), frame);
    }
}

/// Waits until the driver is told a change after which the link is so.
pub fn link_becomes(requests: &Connection, driver: &Driver, status: u16) {
    while driver.config().status != status {
        let change = requests.recv(soon()).unwrap();
        let number: u32 = BackendReq::CONFIG_CHANGE_MSG.into();
        assert_eq!(change.header.request, number);
    }
}

/// A pair of queues and what the driver has in them.
pub struct Pair {
    pub rx: Ring,
    pub tx: Ring,
    /// Where the next receive buffers are.
    base: u64,
    /// Receive buffers by head: address and length.
    posted: Vec<(u16, u64, u32)>,
    /// Size of a receive buffer; 0 for none yet.
    size: u32,
}

pub struct Driver {
    driver: driver::Driver,
    pub pairs: Vec<Pair>,
    pub control: Option<Ring>,
}

impl Deref for Driver {
    type Target = driver::Driver;

    fn deref(&self) -> &driver::Driver {
        &self.driver
    }
}

const RX_SIZE: u16 = 128;
const TX_SIZE: u16 = 128;

impl Driver {
    /// A driver of the first pair, started, without receive buffers.
    pub fn of(program: &Program, features: u64) -> Self {
        Self::new(program.client().unwrap(), features)
    }

    pub fn new(client: Client, features: u64) -> Self {
        let mut driver = Self::negotiated(client, features);
        driver.start_pair();
        driver.start_control();
        driver
    }

    /// The same with rings of another size.
    pub fn sized(client: Client, features: u64, size: u16) -> Self {
        let mut driver = Self::negotiated(client, features);
        driver.add_pair((driver.ring(0, size), driver.ring(1, size)));
        driver.control = Some(driver.ring(2, size));
        driver
    }

    pub fn negotiated(client: Client, features: u64) -> Self {
        let memory = Memory::new(&[(0, MIDDLE), (MIDDLE, END - MIDDLE)]).unwrap();
        Self {
            driver: driver::Driver::new(client, features, memory),
            pairs: Vec::new(),
            control: None,
        }
    }

    pub fn ring(&self, index: u8, size: u16) -> Ring {
        self.driver.ring(index, place(index), size)
    }

    /// A ring that is described, and not enabled.
    pub fn described(&self, index: u8) -> Ring {
        let ring = self.fresh_ring(place(index), RX_SIZE);
        self.client.describe_ring(index, &ring, 0).unwrap();
        ring
    }

    pub fn start_pair(&mut self) {
        let index = self.pairs.len() as u8;
        let rings = (
            self.ring(2 * index, RX_SIZE),
            self.ring(2 * index + 1, TX_SIZE),
        );
        self.add_pair(rings);
    }

    fn add_pair(&mut self, (rx, tx): (Ring, Ring)) {
        let base = RX_DATA + 0x8_0000 * self.pairs.len() as u64;
        self.pairs.push(Pair {
            rx,
            tx,
            base,
            posted: Vec::new(),
            size: 0,
        });
    }

    /// Takes rings in the order of their indices, the last one for control.
    pub fn take_rings(&mut self, rings: Vec<Ring>) {
        let mut rings = rings.into_iter();
        while let Some(ring) = rings.next() {
            match rings.next() {
                Some(tx) => self.add_pair((ring, tx)),
                None => self.control = Some(ring),
            }
        }
    }

    pub fn start_control(&mut self) {
        if self.has(VIRTIO_NET_F_CTRL_VQ) {
            let config = self.config();
            let pairs = if self.has(VIRTIO_NET_F_MQ) {
                config.max_virtqueue_pairs
            } else {
                1
            };
            self.control = Some(self.ring(2 * pairs as u8, 16));
        }
    }

    pub fn config(&self) -> NetConfig {
        let bytes = self.client.config(0, NetConfig::LEN as u32).unwrap();
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        NetConfig {
            mac: bytes[..6].try_into().unwrap(),
            status: word(6),
            max_virtqueue_pairs: word(8),
            mtu: word(10),
        }
    }

    /// Gives `count` receive buffers of `size` bytes.
    pub fn post(&mut self, pair: usize, count: usize, size: u32) {
        let pair = &mut self.pairs[pair];
        pair.size = size;
        let old = pair.rx.next_avail;
        for _ in 0..count {
            let taken = |slot: u64| pair.posted.iter().any(|(_, at, _)| *at == slot);
            let step = u64::from(size).next_multiple_of(64) + 64;
            let address = (0..)
                .map(|index| pair.base + index * step)
                .find(|slot| !taken(*slot))
                .unwrap();
            let head = pair.rx.add(&[Buffer::writable(address, size)]).unwrap();
            pair.posted.push((head, address, size));
        }
        pair.rx.announce(old).unwrap();
    }

    /// The next frame, if there is one by the time; its buffers are given
    /// again.
    pub fn try_receive(&mut self, pair: usize, wait: Duration) -> Option<(Header, Vec<u8>)> {
        let deadline = outboard_protocol::Deadline::after(wait);
        let (head, length) = loop {
            if let Some(used) = self.pairs[pair].rx.take_used().unwrap() {
                break used;
            }
            if deadline.passed() {
                return None;
            }
            std::thread::sleep(Duration::from_micros(100));
        };
        let mut bytes = self.take_buffer(pair, head, length);
        let header = Header::from_bytes(bytes[..HEADER].try_into().unwrap());
        assert!(header.num_buffers >= 1, "{header:?}");
        for _ in 1..header.num_buffers {
            let (head, length) = self.pairs[pair].rx.wait_used(soon()).unwrap();
            assert!(length > 0);
            bytes.extend(self.take_buffer(pair, head, length));
        }
        let size = self.pairs[pair].size;
        self.post(pair, header.num_buffers.into(), size);
        Some((header, bytes[HEADER..].to_vec()))
    }

    pub fn receive(&mut self, pair: usize) -> (Header, Vec<u8>) {
        self.try_receive(pair, Duration::from_secs(30))
            .expect("a frame")
    }

    fn take_buffer(&mut self, pair: usize, head: u16, length: u32) -> Vec<u8> {
        let posted = &mut self.pairs[pair].posted;
        let place = posted.iter().position(|(known, ..)| *known == head);
        let (_, address, size) = posted.swap_remove(place.unwrap());
        assert!(length <= size);
        self.get(address, length as usize)
    }

    /// Makes a frame available for transmission, in slot `slot` of memory.
    pub fn queue_frame(&mut self, pair: usize, slot: usize, header: Header, frame: &[u8]) {
        let step = (frame.len() + 64).next_multiple_of(64) as u64;
        let address = TX_DATA + slot as u64 * step;
        let bytes = [&header.to_bytes()[..], frame].concat();
        self.put(address, &bytes);
        let length = bytes.len() as u32;
        // The header alone, with the frame, or in two parts, by turns.
        let buffers = match slot % 3 {
            0 => vec![Buffer::readable(address, length)],
            1 => vec![
                Buffer::readable(address, 12),
                Buffer::readable(address + 12, length - 12),
            ],
            _ => vec![
                Buffer::readable(address, 5),
                Buffer::readable(address + 5, 10),
                Buffer::readable(address + 15, length - 15),
            ],
        };
        self.pairs[pair].tx.add(&buffers).unwrap();
    }

    pub fn send_with(&mut self, pair: usize, header: Header, frame: &[u8]) {
        let old = self.pairs[pair].tx.next_avail;
        self.queue_frame(pair, 0, header, frame);
        self.pairs[pair].tx.announce(old).unwrap();
        self.sent(pair);
    }

    pub fn send(&mut self, pair: usize, frame: &[u8]) {
        self.send_with(pair, Header::default(), frame);
    }

    /// Waits until a frame has gone.
    pub fn sent(&mut self, pair: usize) {
        let (_, length) = self.pairs[pair].tx.wait_used(soon()).unwrap();
        assert_eq!(length, 0);
    }

    /// Transmits any chain, and waits until it comes back.
    pub fn send_chain(&mut self, buffers: &[Buffer]) {
        assert_eq!(self.pairs[0].tx.submit(buffers).unwrap(), 0);
    }

    /// Gives a command of these bytes: its status, if it was answered.
    pub fn command(&mut self, bytes: &[u8]) -> Option<u8> {
        self.put(COMMAND, bytes);
        self.put(COMMAND - 1, &[0xee]);
        let split = bytes.len().min(2) as u32;
        let mut buffers = vec![Buffer::readable(COMMAND, split)];
        if bytes.len() > 2 {
            let rest = bytes.len() as u32 - 2;
            buffers.push(Buffer::readable(COMMAND + 2, rest));
        }
        buffers.push(Buffer::writable(COMMAND - 1, 1));
        let length = self.command_chain(&buffers);
        (length == 1).then(|| self.get(COMMAND - 1, 1)[0])
    }

    pub fn command_chain(&mut self, buffers: &[Buffer]) -> u32 {
        self.control.as_mut().unwrap().submit(buffers).unwrap()
    }

    /// That no ring is broken.
    pub fn is_whole(&self) {
        for pair in &self.pairs {
            assert_eq!(pair.rx.err.read().unwrap_or(0), 0, "rx is broken");
            assert_eq!(pair.tx.err.read().unwrap_or(0), 0, "tx is broken");
        }
    }
}

/// EtherType "local experimental": the frames of the tests.
const TYPE: [u8; 2] = [0x88, 0xb5];

/// A frame of `length` bytes, 14 at least, that no other is equal to.
pub fn frame(to: [u8; 6], length: usize, mark: u8) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend([2, 0, 0, 0, 0, 0x77]);
    frame.extend(TYPE);
    frame.extend((14..length).map(|at| (at * 7 + at / 251 + length) as u8 ^ mark));
    frame
}

pub const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const HOST: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

/// Until a thread of the kernel's has worked up that a tap has a user, the tap has no queue
/// and drops in silence what it is sent (Linux, net/core/link_watch.c).
fn until_it_takes_frames(interface: &str) {
    let deadline = soon();
    let mut show = Command::new("ip");
    show.args(["-br", "link", "show", "dev", interface]);
    while String::from_utf8_lossy(&show.output().unwrap().stdout).contains(" DOWN ") {
        assert!(!deadline.passed(), "{interface} stays down");
    }
}

/// A packet socket on an interface: what the host sees and sends there.
pub struct Wire {
    socket: OwnedFd,
    headers: bool,
}

impl Wire {
    /// Of a tap that somebody has opened. With `headers`, frames have the 10-byte header of
    /// PACKET_VNET_HDR.
    pub fn new(interface: &str, headers: bool) -> Self {
        until_it_takes_frames(interface);
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
        .unwrap();
        let name = std::ffi::CString::new(interface).unwrap();
        // SAFETY: `name` ends with a zero byte.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        // SAFETY: all fields may be zero.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as i32;
        // SAFETY: the address is as long as is said.
        let result = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as u32,
            )
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        // PACKET_VNET_HDR, and PACKET_IGNORE_OUTGOING.
        for (option, on) in [(15, i32::from(headers)), (23, 1i32)] {
            // SAFETY: both options are ints.
            let result = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_PACKET,
                    option,
                    (&raw const on).cast(),
                    4,
                )
            };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
        }
        let room = nix::sys::socket::sockopt::RcvBufForce;
        nix::sys::socket::setsockopt(&socket, room, &(16 << 20)).unwrap();
        Self { socket, headers }
    }

    pub fn send(&self, header: Header, frame: &[u8]) {
        let header = &header.to_bytes()[..10];
        let header = if self.headers { header } else { &[] };
        let bytes = [header, frame].concat();
        let sent = send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty()).unwrap();
        assert_eq!(sent, bytes.len());
    }

    /// The next frame of a test's that came in.
    pub fn try_receive(&self, wait: Duration) -> Option<(Header, Vec<u8>)> {
        let deadline = outboard_protocol::Deadline::after(wait);
        let mut bytes = vec![0; 70_000];
        while !deadline.passed() {
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            let left = PollTimeout::try_from(deadline.left()).unwrap();
            if poll(&mut fds, left).unwrap() == 0 {
                break;
            }
            let length = recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT);
            let Ok(length) = length else { continue };
            let split = if self.headers { 10 } else { 0 };
            let mut header = [0; 12];
            header[..split].copy_from_slice(&bytes[..split]);
            let frame = &bytes[split..length];
            if frame[12..14] == TYPE || frame[12..14] == [8, 0] {
                return Some((Header::from_bytes(&header), frame.to_vec()));
            }
        }
        None
    }

    pub fn receive(&self) -> (Header, Vec<u8>) {
        self.try_receive(Duration::from_secs(30)).expect("a frame")
    }
}

/// A TCP segment over IPv4 with `payload` bytes, its checksum begun as for
/// NEEDS_CSUM, and the header for it to be cut into parts of `mss`.
pub fn tcp(to: [u8; 6], payload: usize, mss: u16) -> (Header, Vec<u8>) {
    let mut frame = to.to_vec();
    frame.extend(HOST);
    frame.extend([8, 0]);
    let total = (40 + payload) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend(total.to_be_bytes());
    ip.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let checksum = !sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut pseudo = ip[12..20].to_vec();
    pseudo.extend([0, 6]);
    pseudo.extend(((20 + payload) as u16).to_be_bytes());
    let mut tcp = vec![
        0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff,
    ];
    tcp.extend(sum(&pseudo).to_be_bytes());
    tcp.extend([0, 0]);
    frame.extend(ip);
    frame.extend(tcp);
    frame.extend((0..payload).map(|at| (at * 13 + at / 253) as u8));
    let header = Header {
        flags: 1,
        gso_type: if mss > 0 { 1 } else { 0 },
        hdr_len: if mss > 0 { 54 } else { 0 },
        gso_size: mss,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    (header, frame)
}

/// A UDP datagram over IPv4, likewise, to be cut into datagrams of `part` bytes.
pub fn udp(to: [u8; 6], payload: usize, part: u16) -> (Header, Vec<u8>) {
    let (header, mut frame) = tcp(to, payload, part);
    let length = (8 + payload) as u16;
    // The IP header's length, protocol and checksum; then UDP's in TCP's place.
    frame[16..18].copy_from_slice(&(20 + length).to_be_bytes());
    frame[23] = 17;
    frame[24..26].fill(0);
    let checksum = !sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    let mut pseudo = frame[26..34].to_vec();
    pseudo.extend([0, 17]);
    pseudo.extend(length.to_be_bytes());
    let mut udp = vec![0x10, 0, 0x20, 0];
    udp.extend(length.to_be_bytes());
    udp.extend(sum(&pseudo).to_be_bytes());
    frame.splice(34..54, udp);
    let header = Header {
        gso_type: VIRTIO_NET_HDR_GSO_UDP_L4 as u8,
        hdr_len: 42,
        csum_offset: 6,
        ..header
    };
    (header, frame)
}

/// The Internet checksum's sum.
pub fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Whether a TCP segment over IPv4 has its checksum.
pub fn tcp_is_sound(frame: &[u8]) -> bool {
    let length = u16::from_be_bytes([frame[16], frame[17]]) as usize;
    let segment = &frame[34..14 + length];
    let mut pseudo = frame[26..34].to_vec();
    pseudo.extend([0, 6]);
    pseudo.extend((segment.len() as u16).to_be_bytes());
    pseudo.extend(segment);
    sum(&pseudo) == 0xffff && sum(&frame[14..34]) == 0xffff
}
