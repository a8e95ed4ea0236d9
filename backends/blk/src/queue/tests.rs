use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proptest::prelude::*;
use virtio_bindings::virtio_blk::*;
use vm_memory::{Bytes, GuestAddress};

use outboard_runtime::device::Change;

use super::*;
use crate::cache;
use crate::disk::{Settings, Storage};
use crate::engine::{Choice, Clear, Job, Uring};
use crate::guest::{Guest, SIZE, START, header, pattern, segment};
use crate::image::{Image, Options};

mod durability;
mod hold;
mod hostile;
#[allow(unsafe_code)]
mod real;
mod resize;

const IN: u32 = VIRTIO_BLK_T_IN;
const OUT: u32 = VIRTIO_BLK_T_OUT;
const FLUSH: u32 = VIRTIO_BLK_T_FLUSH;
const DISCARD: u32 = VIRTIO_BLK_T_DISCARD;
const WRITE_ZEROES: u32 = VIRTIO_BLK_T_WRITE_ZEROES;

use crate::data::Place;
use crate::engine::Operation as Op;

/// What the engine of a test does with a job.
enum Fate {
    /// As if only so many bytes had moved.
    Short(u64),
    /// An errno.
    Fails(i32),
}

/// What a test sees and steers of its engines.
#[derive(Default)]
struct Stage {
    /// What was asked for: operation, offset, bytes.
    log: Vec<(Op, u64, u64)>,
    /// The fates of the next jobs; those after succeed.
    fates: VecDeque<Fate>,
    /// Whether each job's buffers were fit for direct I/O of 512 bytes.
    aligned: Vec<bool>,
    /// It fails.
    broken: bool,
}

/// An engine that holds its jobs until it is reaped.
#[derive(Default)]
struct Staged {
    stage: Arc<Mutex<Stage>>,
    held: Vec<(usize, Job)>,
}

impl Engine for Staged {
    fn start(&mut self, id: usize, mut job: Job) -> Option<Completion> {
        let mut stage = self.stage.lock().unwrap();
        let length = match job.operation {
            Op::Clear { length, .. } => length,
            _ => job.data.remaining(),
        };
        stage.log.push((job.operation, job.offset, length));
        stage.aligned.push(match job.data.source() {
            Place::One(start, length) => start.addr() % 512 == 0 && length % 512 == 0,
            Place::Many(many) => many
                .iter()
                .all(|piece| piece.iov_base.addr() % 512 == 0 && piece.iov_len % 512 == 0),
        });
        self.held.push((id, job));
        None
    }

    fn submit(&mut self) -> io::Result<()> {
        match self.stage.lock().unwrap().broken {
            true => Err(io::Error::other("a broken engine")),
            false => Ok(()),
        }
    }

    fn ready(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        for (id, job) in self.held.drain(..) {
            let result = match self.stage.lock().unwrap().fates.pop_front() {
                Some(Fate::Fails(errno)) => Err(io::Error::from_raw_os_error(errno)),
                Some(Fate::Short(count)) => Ok(count),
                None => Ok(job.data.remaining()),
            };
            done.push(Completion { id, job, result });
        }
        Ok(())
    }

    fn drain(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        self.reap(done)
    }
}

/// A disk of 1 MiB on a file that is deleted in the end.
struct Fixture {
    disk: Arc<Disk>,
    file: tempfile::NamedTempFile,
    stage: Arc<Mutex<Stage>>,
    guest: Guest,
}

impl Fixture {
    fn new() -> Self {
        Self::with(Settings::default(), Options::default()).unwrap()
    }

    fn with(settings: Settings, options: Options) -> anyhow::Result<Self> {
        let file = tempfile::NamedTempFile::new()?;
        file.as_file().set_len(1 << 20)?;
        let image = Image::open(file.path(), options)?;
        Ok(Self {
            disk: Arc::new(Disk::new(Storage::Image(image), settings)?),
            file,
            stage: Arc::default(),
            guest: Guest::new(),
        })
    }

    /// A queue on an engine of the test's; `flushes` when FLUSH is negotiated.
    fn staged(&self, flushes: bool) -> BlkQueue {
        let engine = Staged {
            stage: self.stage.clone(),
            held: Vec::new(),
        };
        self.started(Box::new(engine), flushes)
    }

    /// A queue on the disk's engine.
    fn real(&self) -> BlkQueue {
        self.started(self.disk.engine().unwrap(), true)
    }

    fn started(&self, engine: Box<dyn Engine>, flushes: bool) -> BlkQueue {
        let mut queue = BlkQueue::new(self.disk.clone(), engine);
        start(&mut queue, flushes, &self.guest);
        queue
    }

    /// The driver turns the cache on or off, and that has been done.
    fn set_writeback(&self, writeback: bool) {
        if let Change::After(mut preparation) = cache::set_writeback(&self.disk, writeback) {
            preparation.prepare().unwrap();
            preparation.commit();
        }
    }

    fn fates(&self, fates: impl IntoIterator<Item = Fate>) {
        self.stage.lock().unwrap().fates.extend(fates);
    }

    fn log(&self) -> Vec<(Op, u64, u64)> {
        std::mem::take(&mut self.stage.lock().unwrap().log)
    }

    fn write(&mut self, sector: u64, content: &[u8]) -> Chain {
        let data = self.guest.put(content);
        self.guest.chain(OUT, sector, &[data], &[])
    }

    fn flush(&mut self) -> Chain {
        self.guest.chain(FLUSH, 0, &[], &[])
    }

    fn segments(&mut self, kind: u32, segments: &[[u8; 16]]) -> Chain {
        let data = self.guest.put(&segments.concat());
        self.guest.chain(kind, 0, &[data], &[])
    }

    /// Executes a chain: its status and used length.
    fn run(&mut self, queue: &mut BlkQueue, chain: &Chain) -> (u8, u32) {
        let used = match queue.take(chain) {
            Outcome::Done(used) => used,
            Outcome::NotNow => panic!("the queue is not full"),
            Outcome::Deferred => {
                let answers = reap(queue, 1);
                assert_eq!(answers[0].0, chain.head);
                answers[0].1
            }
        };
        (self.guest.answer(chain), used)
    }

    fn content(&self) -> Vec<u8> {
        let mut content = vec![0; 1 << 20];
        self.file.as_file().read_exact_at(&mut content, 0).unwrap();
        content
    }
}

/// Hands a ring to a queue.
fn start(queue: &mut BlkQueue, flushes: bool, guest: &Guest) {
    queue
        .begin(u64::from(flushes) << VIRTIO_BLK_F_FLUSH)
        .unwrap();
    queue.map(guest.memory.clone());
}

/// Waits for `count` answers, or for all if there are fewer.
fn reap(queue: &mut BlkQueue, count: usize) -> Vec<(u16, u32)> {
    queue.submit().unwrap();
    let mut answers = Vec::new();
    while answers.len() < count && queue.in_flight() > 0 {
        if let Some(ready) = queue.ready() {
            let mut fds = [PollFd::new(ready, PollFlags::POLLIN)];
            let minute = PollTimeout::try_from(Duration::from_secs(60)).unwrap();
            assert_eq!(poll(&mut fds, minute).unwrap(), 1, "nothing completes");
        }
        queue
            .reap(&mut |head, used| answers.push((head, used)))
            .unwrap();
    }
    answers
}

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const WRITE: Op = Op::Write { durable: false };
const DURABLE: Op = Op::Write { durable: true };

#[test]
fn short_transfers_are_continued() {
    let mut fixture = Fixture::new();
    let mut queue = fixture.staged(true);
    fixture.fates([Fate::Short(100), Fate::Short(412)]);
    let chain = fixture.write(2, &[1; 1024]);
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
    assert_eq!(
        fixture.log(),
        [(WRITE, 1024, 1024), (WRITE, 1124, 924), (WRITE, 1536, 512)]
    );
    let data = fixture.guest.allocate(1024, 1);
    let chain = fixture.guest.chain(IN, 0, &[], &[data]);
    fixture.fates([Fate::Short(1)]);
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 1025));
    assert_eq!(fixture.log(), [(Op::Read, 0, 1024), (Op::Read, 1, 1023)]);
}

#[test]
fn interrupted_operations_are_repeated_but_not_for_ever() {
    let mut fixture = Fixture::new();
    let mut queue = fixture.staged(true);
    fixture.fates([Fate::Fails(libc::EINTR), Fate::Fails(libc::EAGAIN)]);
    let chain = fixture.write(0, &[1; 512]);
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
    assert_eq!(fixture.log(), [(WRITE, 0, 512); 3]);
    fixture.fates((0..1000).map(|_| Fate::Fails(libc::EAGAIN)));
    assert_eq!(fixture.run(&mut queue, &chain), (IOERR, 1));
    assert!(fixture.log().len() < 1000);
}

#[test]
fn a_read_beyond_the_end_of_a_shrunken_image_tells_how_far_it_came() {
    let mut fixture = Fixture::new();
    let mut queue = fixture.staged(true);
    let data = fixture.guest.allocate(1024, 1);
    let chain = fixture.guest.chain(IN, 0, &[], &[data]);
    fixture.fates([Fate::Short(512), Fate::Short(0)]);
    assert_eq!(fixture.run(&mut queue, &chain), (IOERR, 513));
    fixture.fates([Fate::Fails(libc::EIO)]);
    assert_eq!(fixture.run(&mut queue, &chain), (IOERR, 1));
}

#[test]
fn more_than_was_asked_for_is_not_believed() {
    let mut fixture = Fixture::new();
    let mut queue = fixture.staged(true);
    let data = fixture.guest.allocate(512, 1);
    let chain = fixture.guest.chain(IN, 0, &[], &[data]);
    fixture.fates([Fate::Short(u64::MAX)]);
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 513));
}

#[test]
fn a_discard_that_is_not_to_be_had_is_a_hint_not_taken() {
    let mut fixture = Fixture::new();
    let mut queue = fixture.staged(true);
    let chain = fixture.segments(
        DISCARD,
        &[segment(0, 8, 0), segment(8, 0, 0), segment(16, 8, 0)],
    );
    let punch = Op::Clear {
        mode: Clear::Punch,
        length: 4096,
    };
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
    assert_eq!(fixture.log(), [(punch, 0, 4096), (punch, 8192, 4096)]);
    fixture.fates([Fate::Fails(libc::EOPNOTSUPP)]);
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
    assert_eq!(fixture.log(), [(punch, 0, 4096)], "it is not asked again");
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
    assert_eq!(fixture.log(), []);
}

#[test]
fn zeroes_are_written_when_nothing_else_makes_them() {
    let mut fixture = Fixture::new();
    let mut queue = fixture.staged(true);
    let chain = fixture.segments(WRITE_ZEROES, &[segment(0, 8, 1), segment(8, 8, 0)]);
    let punch = Op::Clear {
        mode: Clear::Punch,
        length: 4096,
    };
    let zero = Op::Clear {
        mode: Clear::Zero,
        length: 4096,
    };
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
    assert_eq!(fixture.log(), [(punch, 0, 4096), (zero, 4096, 4096)]);
    fixture.fates([Fate::Fails(libc::EOPNOTSUPP), Fate::Fails(libc::EOPNOTSUPP)]);
    fixture.fates([Fate::Short(1000)]);
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
    assert_eq!(
        fixture.log(),
        [
            (punch, 0, 4096),
            (zero, 0, 4096),
            (WRITE, 0, 4096),
            (WRITE, 1000, 3096),
            (WRITE, 4096, 4096)
        ]
    );
    fixture.fates([Fate::Fails(libc::ENOSPC)]);
    assert_eq!(fixture.run(&mut queue, &chain), (IOERR, 1));
}

#[test]
fn a_range_that_is_no_whole_block_of_a_device_is_written_or_left() {
    let mut fixture = Fixture::new();
    let mut queue = fixture.staged(true);
    let chain = fixture.segments(WRITE_ZEROES, &[segment(1, 1, 1), segment(8, 8, 0)]);
    let clear = |mode, length| Op::Clear { mode, length };
    fixture.fates([Fate::Fails(libc::EINVAL)]);
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
    assert_eq!(
        fixture.log(),
        [
            (clear(Clear::Punch, 512), 512, 512),
            (WRITE, 512, 512),
            // Others are still cleared in the best way.
            (clear(Clear::Zero, 4096), 4096, 4096),
        ]
    );
    let chain = fixture.segments(DISCARD, &[segment(1, 1, 0), segment(8, 8, 0)]);
    fixture.fates([Fate::Fails(libc::EINVAL)]);
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
    let punch = |offset, length| (clear(Clear::Punch, length), offset, length);
    assert_eq!(fixture.log(), [punch(512, 512), punch(4096, 4096)]);
}

#[test]
fn an_error_in_one_segment_ends_the_request() {
    let mut fixture = Fixture::new();
    let mut queue = fixture.staged(true);
    let chain = fixture.segments(DISCARD, &[segment(0, 8, 0), segment(16, 8, 0)]);
    fixture.fates([Fate::Fails(libc::EIO)]);
    assert_eq!(fixture.run(&mut queue, &chain), (IOERR, 1));
    assert_eq!(fixture.log().len(), 1);
}

#[test]
fn a_full_queue_takes_no_more_until_one_is_answered() {
    let settings = Settings {
        queue_size: 4,
        ..Settings::default()
    };
    let mut fixture = Fixture::with(settings, Options::default()).unwrap();
    let mut queue = fixture.staged(true);
    let chain = fixture.write(0, &[1; 512]);
    for _ in 0..4 {
        assert_eq!(queue.take(&chain), Outcome::Deferred);
    }
    assert_eq!(queue.take(&chain), Outcome::NotNow);
    assert_eq!(queue.in_flight(), 4);
    assert_eq!(reap(&mut queue, 4).len(), 4);
    assert_eq!(queue.in_flight(), 0);
    assert_eq!(queue.take(&chain), Outcome::Deferred);
}

#[test]
fn an_engine_that_has_failed_is_made_anew_for_the_next_ring_and_no_other_is() {
    let mut fixture = Fixture::new();
    let mut queue = fixture.staged(true);
    queue.end();
    start(&mut queue, true, &fixture.guest);
    let chain = fixture.write(0, &[1; 512]);
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
    assert_eq!(fixture.log(), [(WRITE, 0, 512)], "the test's engine");

    assert_eq!(queue.take(&chain), Outcome::Deferred);
    fixture.stage.lock().unwrap().broken = true;
    assert!(queue.submit().is_err());
    queue.end();
    assert_eq!(queue.in_flight(), 0);
    fixture.log();
    start(&mut queue, true, &fixture.guest);
    assert_eq!(fixture.run(&mut queue, &chain), (OK, 1));
    assert_eq!(fixture.log(), [], "the disk's own engine");
    assert_eq!(fixture.content()[..512], [1; 512]);
}

#[test]
fn a_disk_that_is_not_there_answers_at_once() {
    let null = Storage::Null {
        size: 1 << 30,
        block_size: 512,
    };
    let disk = Disk::new(null, Settings::default()).unwrap();
    let disk = Arc::new(disk);
    let mut queue = BlkQueue::new(disk.clone(), disk.engine().unwrap());
    let mut guest = Guest::new();
    start(&mut queue, true, &guest);
    let data = guest.put(&[9; 4096]);
    for (kind, used) in [(OUT, 1), (IN, 4097), (FLUSH, 1)] {
        let (readable, writable): (&[_], &[_]) = match kind {
            OUT => (&[data], &[]),
            IN => (&[], &[data]),
            _ => (&[], &[]),
        };
        let chain = guest.chain(kind, 0, readable, writable);
        assert_eq!(queue.take(&chain), Outcome::Done(used));
        assert_eq!(guest.answer(&chain), OK);
    }
    assert_eq!(guest.get(data), [0; 4096]);
    assert!(queue.ready().is_none());
}

#[test]
fn the_serial_number_is_cut_and_padded() {
    let settings = Settings {
        serial: "disk-one".into(),
        ..Settings::default()
    };
    let mut fixture = Fixture::with(settings, Options::default()).unwrap();
    let mut queue = fixture.staged(true);
    for (asked, expected) in [(20, &b"disk-one\0\0\0\0\0\0\0\0\0\0\0\0"[..]), (4, b"disk")] {
        let data = fixture.guest.put(&vec![0xff; asked]);
        let chain = fixture.guest.chain(VIRTIO_BLK_T_GET_ID, 0, &[], &[data]);
        assert_eq!(fixture.run(&mut queue, &chain), (OK, asked as u32 + 1));
        assert_eq!(fixture.guest.get(data), expected);
    }
}
