//! The disk shrinks and grows while requests are under way.

use outboard_protocol::Deadline;
use outboard_protocol::launch::{Channel, FromBackend};
use outboard_runtime::News;
use outboard_runtime::device::Device as _;

use super::*;
use crate::disk::{Blk, OnIoError};
use crate::hold::tests::supervisor;

/// Half of the disk, which has 1 MiB.
const HALF: u64 = 1 << 19;
/// The first sector of the other half.
const BEYOND: u64 = HALF / 512;

/// A disk whose supervisor has this end of the line.
fn resized(settings: Settings) -> (Fixture, Blk, Channel) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(2 * HALF).unwrap();
    let image = Image::open(file.path(), Options::default()).unwrap();
    let disk = Disk::new(Storage::Image(image), settings).unwrap();
    let blk = Blk::new(disk);
    let (supervisor, line) = supervisor(false);
    blk.supervised(&supervisor);
    let fixture = Fixture {
        disk: blk.shared(),
        file,
        stage: Arc::default(),
        guest: Guest::new(),
    };
    (fixture, blk, line)
}

/// What has been answered by now.
fn answer(line: &Channel) -> Option<u64> {
    let heard = line.recv::<FromBackend>(Deadline::after(Duration::ZERO));
    match heard.ok().flatten()?.0 {
        FromBackend::Resized { size } => Some(size),
        other => panic!("{other:?}"),
    }
}

fn read(fixture: &mut Fixture, sector: u64) -> Chain {
    let data = fixture.guest.allocate(1024, 512);
    fixture.guest.chain(IN, sector, &[], &[data])
}

/// Takes a chain, which the engine has then.
fn enter(queue: &mut BlkQueue, chain: &Chain) {
    assert_eq!(queue.take(chain), Outcome::Deferred);
    queue.submit().unwrap();
}

#[test]
fn what_the_kernel_has_beyond_the_end_completes_before_the_answer() {
    let (mut fixture, blk, line) = resized(Settings::default());
    let mut queues = [fixture.staged(true), fixture.staged(true)];
    let chains = [
        fixture.write(BEYOND - 1, &[1; 1024]),
        fixture.segments(DISCARD, &[segment(BEYOND + 8, 8, 0)]),
    ];
    let within = fixture.write(0, &[1; 1024]);
    for (queue, chain) in queues.iter_mut().zip(&chains) {
        enter(queue, chain);
        enter(queue, &within);
    }
    blk.hear(News::Resize(HALF));
    for (queue, chain) in queues.iter_mut().zip(&chains) {
        assert_eq!(answer(&line), None);
        assert_eq!(reap(queue, 2).len(), 2);
        assert_eq!(fixture.guest.answer(chain), OK);
    }
    assert_eq!(answer(&line), Some(HALF));
    assert_eq!(answer(&line), None);
}

#[test]
fn everything_beyond_a_new_end_fails_and_is_as_it_was_when_there_is_more_again() {
    let (mut fixture, blk, line) = resized(Settings::default());
    let mut queue = fixture.staged(true);
    let requests = |fixture: &mut Fixture| {
        [
            fixture.write(BEYOND - 1, &[1; 1024]),
            read(fixture, BEYOND),
            fixture.segments(DISCARD, &[segment(0, 1, 0), segment(BEYOND - 1, 2, 0)]),
            fixture.segments(WRITE_ZEROES, &[segment(BEYOND, 1, 0)]),
        ]
    };
    for (size, status) in [(HALF, IOERR), (2 * HALF, OK), (HALF + 511, IOERR)] {
        blk.hear(News::Resize(size));
        assert_eq!(answer(&line), Some(size / 512 * 512));
        for chain in requests(&mut fixture) {
            assert_eq!(fixture.run(&mut queue, &chain).0, status, "{size}");
        }
        assert_eq!(fixture.log().is_empty(), status == IOERR);
        let inside = fixture.write(BEYOND - 2, &[1; 1024]);
        assert_eq!(fixture.run(&mut queue, &inside), (OK, 1));
        fixture.log();
    }
}

#[test]
fn the_rest_of_a_request_beyond_the_end_is_not_begun() {
    let (mut fixture, blk, line) = resized(Settings::default());
    let mut queue = fixture.staged(true);
    let write = fixture.write(BEYOND - 1, &[1; 1024]);
    let wipe = [segment(0, 8, 1), segment(BEYOND, 8, 1)];
    let wipe = fixture.segments(WRITE_ZEROES, &wipe);
    enter(&mut queue, &write);
    enter(&mut queue, &wipe);
    assert_eq!(fixture.log().len(), 2);
    blk.hear(News::Resize(HALF));
    assert_eq!(answer(&line), None);
    fixture.fates([Fate::Short(512)]);
    assert_eq!(reap(&mut queue, 2).len(), 2);
    assert_eq!(fixture.log(), []);
    assert_eq!(fixture.guest.answer(&write), IOERR);
    assert_eq!(fixture.guest.answer(&wipe), IOERR);
    assert_eq!(answer(&line), Some(HALF));
}

#[test]
fn what_is_held_back_beyond_the_end_fails_when_it_is_tried_again() {
    let (mut fixture, blk, line) = resized(Settings {
        on_io_error: OnIoError::Pause,
        ..Settings::default()
    });
    let mut queue = fixture.staged(true);
    queue.hold_back(0).unwrap();
    let write = fixture.write(BEYOND, &[1; 1024]);
    enter(&mut queue, &write);
    fixture.fates([Fate::Fails(libc::ENOSPC)]);
    queue.reap(&mut |_, _| panic!("it is held")).unwrap();
    let heard = line.recv::<FromBackend>(Deadline::after(Duration::ZERO));
    let heard = heard.unwrap().unwrap().0;
    assert!(matches!(heard, FromBackend::IoError { .. }), "{heard:?}");
    blk.hear(News::Resize(HALF));
    assert_eq!(answer(&line), Some(HALF), "the kernel does not have it");
    fixture.log();
    blk.hear(News::Retry);
    assert_eq!(reap(&mut queue, 1), [(7, 1)]);
    assert_eq!(fixture.guest.answer(&write), IOERR);
    assert_eq!(fixture.log(), []);
    assert_eq!(answer(&line), None);
}

#[test]
fn what_cannot_be_is_refused_and_answered_with_what_stays() {
    let (mut fixture, blk, line) = resized(Settings::default());
    for wrong in [0, 511, 2 * HALF + 512, u64::MAX] {
        blk.hear(News::Resize(wrong));
        assert_eq!(answer(&line), Some(2 * HALF), "{wrong}");
    }
    // Bytes that are no whole block need not be there.
    blk.hear(News::Resize(2 * HALF + 511));
    assert_eq!(answer(&line), Some(2 * HALF));
    // A refusal is no answer to what is still under way.
    let mut queue = fixture.staged(true);
    let write = fixture.write(BEYOND, &[1; 1024]);
    enter(&mut queue, &write);
    blk.hear(News::Resize(HALF));
    blk.hear(News::Resize(0));
    assert_eq!(answer(&line), None);
    queue.end();
    assert_eq!(answer(&line), Some(HALF));
}

#[test]
fn one_that_waits_takes_the_size_of_its_image_when_it_takes_over() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(2 * HALF).unwrap();
    let image = Image::open(file.path(), Options::default()).unwrap();
    let blk = Blk::new(Disk::new(Storage::Image(image), Settings::default()).unwrap());
    let (supervisor, line) = supervisor(true);
    blk.supervised(&supervisor);
    blk.hear(News::Resize(HALF));
    assert_eq!(blk.shared().limits().capacity, 2 * HALF);
    file.as_file().set_len(HALF).unwrap();
    blk.attend();
    assert_eq!(blk.shared().limits().capacity, HALF);
    assert_eq!(answer(&line), None);
}

#[test]
fn larger_blocks_stay_whole() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(2 * HALF).unwrap();
    let options = Options {
        block_size: Some(4096),
        ..Options::default()
    };
    let image = Image::open(file.path(), options).unwrap();
    let blk = Blk::new(Disk::new(Storage::Image(image), Settings::default()).unwrap());
    let (supervisor, line) = supervisor(false);
    blk.supervised(&supervisor);
    for (told, has) in [
        (HALF + 4095, HALF),
        (4095, HALF),
        (HALF + 4096, HALF + 4096),
    ] {
        blk.hear(News::Resize(told));
        assert_eq!(answer(&line), Some(has), "{told}");
    }
}
