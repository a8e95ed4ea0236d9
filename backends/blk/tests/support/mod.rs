//! The program under test and a driver of it.
#![allow(
    dead_code,
    unused_imports,
    reason = "not every test file needs all of it"
)]

use std::ffi::OsString;
use std::fs::File;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::Path;

use outboard_contract::client::Client;
pub use outboard_contract::driver::{EVERYTHING, VERSION_1};
use outboard_contract::memory::Memory;
pub use outboard_contract::program::Program;
use outboard_contract::program::{command, option};
use outboard_contract::ring::{Buffer, Ring};
use outboard_contract::{driver, program};
use virtio_bindings::virtio_blk::*;

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

/// Serves the file `image` of 1 MiB in the program's folder.
pub fn start(arguments: &[&str]) -> Program {
    by_shell(
        "truncate -s 1M $folder/image; exec \"$@\" --blk-file=$folder/image",
        arguments,
    )
}

/// Serves another image.
pub fn serve(image: &Path, arguments: &[&str]) -> Program {
    let mut command = command(program(), arguments);
    Program::serve(command.arg(option("--blk-file=", image))).unwrap()
}

/// Serves an image that a shell has opened as descriptor 5.
pub fn inherit(image: &Path, arguments: &[&str]) -> Program {
    let script = format!("exec \"$@\" --blk-fd=5 5<>{}", image.display());
    by_shell(&script, arguments)
}

/// Behind a shell's script that arranges what it lives in.
pub fn by_shell(script: &str, arguments: &[&str]) -> Program {
    let mut command = program::by_shell(script, program(), arguments);
    Program::serve(&mut command).unwrap()
}

/// The image in the program's folder, to be changed behind its back.
pub fn image(program: &Program) -> File {
    let image = program.folder().join("image");
    File::options().read(true).write(true).open(image).unwrap()
}

/// What lies in the image.
pub fn stored(image: &File, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    image.read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

/// A driver of the first queue.
pub struct Driver {
    driver: driver::Driver,
    pub ring: Ring,
}

impl Deref for Driver {
    type Target = driver::Driver;

    fn deref(&self) -> &driver::Driver {
        &self.driver
    }
}

impl Driver {
    pub fn new(client: Client, features: u64) -> Self {
        let memory = Memory::new(&[(0, 0x10_0000), (0x10_0000, 0x10_0000)]).unwrap();
        Self::with(client, features, memory)
    }

    pub fn with(client: Client, features: u64, memory: Memory) -> Self {
        let driver = driver::Driver::new(client, features, memory);
        let ring = driver.ring(0, RINGS, 64);
        Self { driver, ring }
    }

    /// That acknowledges `features` as far as they are offered.
    pub fn of(program: &Program, features: u64) -> Self {
        Self::new(program.client().unwrap(), features)
    }

    /// Starts another queue.
    pub fn queue(&self, index: u8) -> Ring {
        self.driver
            .ring(index, RINGS + 0x1000 * u64::from(index), 64)
    }

    /// Makes buffers available and waits: the used length.
    pub fn submit(&mut self, buffers: &[Buffer]) -> u32 {
        self.ring.submit(buffers).unwrap()
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
