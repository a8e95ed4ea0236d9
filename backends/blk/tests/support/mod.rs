//! The program under test and a driver of it.
#![allow(dead_code, reason = "not every test file needs all of it")]

use std::ffi::OsString;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use outboard_contract::client::Client;
use outboard_contract::memory::Memory;
use outboard_contract::ring::{Buffer, Ring};
use outboard_contract::soon;
use virtio_bindings::virtio_blk::*;
use vm_memory::{Bytes, GuestAddress};

pub const VERSION_1: u64 = 1 << 32;
pub const EVERYTHING: u64 = !(1 << 30);

/// Where the test has what in guest memory; the data lies over two regions.
pub const RINGS: u64 = 0x1000;
pub const HEADER: u64 = 0x8000;
pub const STATUS: u64 = 0x9000;
pub const DATA: u64 = 0x0f_f000;

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

/// The program under test; another build of it by OUTBOARD_BLK.
pub fn program() -> OsString {
    std::env::var_os("OUTBOARD_BLK").unwrap_or(env!("CARGO_BIN_EXE_outboard-blk").into())
}

/// The program, ended when dropped.
pub struct Program {
    pub child: Child,
    pub folder: tempfile::TempDir,
    path: PathBuf,
}

impl Program {
    /// Serves an image of 1 MiB, with these arguments besides.
    pub fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        let mut command = Command::new("timeout");
        command.arg("120").arg(program());
        command.arg(format!("--blk-file={}", path.display()));
        Self::spawn(command, folder, &path, arguments)
    }

    /// The same; what it says goes to `log`.
    pub fn logged(log: std::fs::File, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::File::create(&path)
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        let mut command = Command::new("timeout");
        command.arg("120").arg(program()).stderr(log);
        command.arg(format!("--blk-file={}", path.display()));
        Self::spawn(command, folder, &path, arguments)
    }

    /// Serves another image.
    pub fn serve(path: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new("timeout");
        command.arg("120").arg(program());
        command.arg(format!("--blk-file={}", path.display()));
        Self::spawn(command, tempfile::tempdir().unwrap(), path, arguments)
    }

    /// Serves an image that a shell has opened as descriptor 5.
    pub fn inherit(path: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new("timeout");
        command.args(["120", "sh", "-c", "exec \"$@\" 5<>\"$0\""]);
        command.arg(path).arg(program()).arg("--blk-fd=5");
        Self::spawn(command, tempfile::tempdir().unwrap(), path, arguments)
    }

    fn spawn(
        mut command: Command,
        folder: tempfile::TempDir,
        path: &Path,
        arguments: &[&str],
    ) -> Self {
        let socket = folder.path().join("socket");
        command.arg(format!("--socket-path={}", socket.display()));
        Self {
            child: command.args(arguments).spawn().unwrap(),
            folder,
            path: path.to_owned(),
        }
    }

    /// The program's own id: timeout(1) is its parent.
    pub fn pid(&mut self) -> u32 {
        let pid = outboard_contract::timeout::pid(&mut self.child).unwrap();
        pid.unwrap().as_raw() as u32
    }

    pub fn image(&self) -> std::fs::File {
        std::fs::File::open(&self.path).unwrap()
    }

    pub fn content(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.image().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    /// A driver that acknowledges `features` as far as they are offered.
    pub fn driver(&self, features: u64) -> Driver {
        Driver::new(
            Client::connect(&self.folder.path().join("socket")).unwrap(),
            features,
        )
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

/// Asks a program to end, and waits.
pub fn stop(child: &mut Child) {
    let _ = outboard_contract::timeout::stop(child);
}

/// Starts a ring of the test's.
pub fn ring(client: &Client, memory: &Memory, index: u8, features: u64) -> Ring {
    let event_idx = features & (1 << 29) != 0;
    let at = RINGS + 0x1000 * u64::from(index);
    let ring = Ring::new(memory, at, 64, event_idx).unwrap();
    client.start_ring(index, &ring, 0).unwrap();
    ring
}

/// A driver of the first queue.
pub struct Driver {
    pub client: Client,
    pub memory: Memory,
    pub ring: Ring,
    pub features: u64,
}

impl Driver {
    pub fn new(mut client: Client, features: u64) -> Self {
        let memory = Memory::new(&[(0, 0x10_0000), (0x10_0000, 0x10_0000)]).unwrap();
        let features = client.negotiate(features | VERSION_1).unwrap();
        client.set_mem_table(&memory).unwrap();
        let ring = ring(&client, &memory, 0, features);
        Self {
            client,
            memory,
            ring,
            features,
        }
    }

    pub fn has(&self, bit: u32) -> bool {
        self.features & (1 << bit) != 0
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        let guest = &self.memory.guest;
        guest.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let guest = &self.memory.guest;
        guest.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Makes buffers available and waits: the used length.
    pub fn submit(&mut self, buffers: &[Buffer]) -> u32 {
        let old = self.ring.next_avail;
        let head = self.ring.add(buffers).unwrap();
        self.ring.announce(old).unwrap();
        let (used, length) = self.ring.wait_used(soon()).unwrap();
        assert_eq!(used, head);
        length
    }

    /// One request: its status and used length.
    pub fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.put(HEADER, &header);
        self.put(STATUS, &[0xee]);
        let (readable, writable): (Vec<_>, Vec<_>) =
            data.iter().copied().partition(|part| !part.writable);
        let mut buffers = vec![Buffer::readable(HEADER, 16)];
        buffers.extend(readable);
        buffers.extend(writable);
        buffers.push(Buffer::writable(STATUS, 1));
        let length = self.submit(&buffers);
        (self.get(STATUS, 1)[0], length)
    }

    pub fn write(&mut self, sector: u64, bytes: &[u8]) -> (u8, u32) {
        self.put(DATA, bytes);
        let data = Buffer::readable(DATA, bytes.len() as u32);
        self.request(VIRTIO_BLK_T_OUT, sector, &[data])
    }

    pub fn read(&mut self, sector: u64, length: u32) -> (u8, u32, Vec<u8>) {
        self.put(DATA, &vec![0xff; length as usize]);
        let data = Buffer::writable(DATA, length);
        let (status, used) = self.request(VIRTIO_BLK_T_IN, sector, &[data]);
        (status, used, self.get(DATA, length as usize))
    }

    pub fn segment(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> (u8, u32) {
        let mut segment = sector.to_le_bytes().to_vec();
        segment.extend(sectors.to_le_bytes());
        segment.extend(flags.to_le_bytes());
        self.put(DATA, &segment);
        self.request(kind, 0, &[Buffer::readable(DATA, 16)])
    }

    /// That it still works after all that was done to it.
    pub fn works(&mut self) {
        assert_eq!(self.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
        assert_eq!(self.ring.err.read().unwrap_or(0), 0, "the ring is broken");
    }
}

pub fn pattern(length: usize, generation: u8) -> Vec<u8> {
    (0..length)
        .map(|i| (i / 512) as u8 ^ i as u8 ^ generation)
        .collect()
}

/// The ways to serve, each of which must do the same.
pub const WAYS: [&[&str]; 4] = [
    &["--engine=auto"],
    &["--engine=threads"],
    &["--engine=auto", "--direct"],
    &["--engine=threads", "--direct"],
];
