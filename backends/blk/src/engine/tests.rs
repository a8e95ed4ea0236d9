use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_runtime::chain::Buffer;
use outboard_runtime::guest_buffers::GuestBuffers;

use super::*;
use crate::guest::{Guest, pattern};

/// Both engines, the first only where the kernel has it.
fn engines() -> Vec<Choice> {
    match Uring::probe() {
        Ok(()) => vec![Choice::IoUring, Choice::Threads],
        Err(error) => {
            eprintln!("SKIP: io_uring is not to be had here ({error})");
            vec![Choice::Threads]
        }
    }
}

fn image(size: u64) -> Arc<File> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    Arc::new(file)
}

fn buffers(guest: &mut Guest, parts: &[&[u8]]) -> Data {
    let buffers: Vec<_> = parts.iter().map(|part| guest.put(part)).collect();
    data(guest, &buffers)
}

fn data(guest: &Guest, parts: &[Buffer]) -> Data {
    let mut buffers = GuestBuffers::default();
    let parts = parts.iter().copied();
    buffers.extend(&guest.memory, parts).unwrap();
    Data::Guest(buffers)
}

fn job(operation: Operation, offset: u64, data: Data) -> Job {
    Job {
        operation,
        offset,
        data,
    }
}

const WRITE: Operation = Operation::Write { durable: false };

/// Waits on the engine's descriptor until `count` jobs are done.
fn wait(engine: &mut dyn Engine, count: usize) -> Vec<Completion> {
    engine.submit().unwrap();
    let mut done = Vec::new();
    while done.len() < count {
        {
            let mut fds = [PollFd::new(engine.ready().unwrap(), PollFlags::POLLIN)];
            let minute = PollTimeout::try_from(Duration::from_secs(60)).unwrap();
            assert_eq!(poll(&mut fds, minute).unwrap(), 1, "nothing completes");
        }
        engine.reap(&mut done).unwrap();
    }
    assert_eq!(done.len(), count);
    done
}

fn one(engine: &mut dyn Engine, job: Job) -> io::Result<u64> {
    assert!(engine.start(0, job).is_none());
    wait(engine, 1).remove(0).result
}

#[test]
fn what_is_written_is_read() {
    for choice in engines() {
        let file = image(1 << 20);
        let mut engine = choice.make(&file, 8).unwrap();
        let mut guest = Guest::new();
        for durable in [false, true] {
            let content = pattern(4096, durable.into());
            let (a, b) = content.split_at(1000);
            for parts in [&[&content[..]][..], &[a, b]] {
                file.write_all_at(&[0; 4096], 8192).unwrap();
                let write = Operation::Write { durable };
                let data = buffers(&mut guest, parts);
                let result = one(&mut *engine, job(write, 8192, data));
                assert_eq!(result.unwrap(), 4096);
                let mut found = vec![0; 4096];
                file.read_exact_at(&mut found, 8192).unwrap();
                assert_eq!(found, content);
                let target = guest.allocate(4096, 1);
                let data = self::data(&guest, &[target]);
                let result = one(&mut *engine, job(Operation::Read, 8192, data));
                assert_eq!(result.unwrap(), 4096);
                assert_eq!(guest.get(target), content);
            }
        }
        assert_eq!(
            one(&mut *engine, job(Operation::Sync, 0, Data::Nothing)).unwrap(),
            0
        );
    }
}

/// What cannot be synced says so; with the sync deleted it would not be asked.
#[test]
fn a_sync_reaches_the_file() {
    for choice in engines() {
        let null = File::open("/dev/null").unwrap();
        let mut engine = choice.make(&Arc::new(null), 8).unwrap();
        let result = one(&mut *engine, job(Operation::Sync, 0, Data::Nothing));
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}

#[test]
fn ranges_are_cleared_and_the_size_stays() {
    for choice in engines() {
        let file = image(1 << 20);
        let mut engine = choice.make(&file, 8).unwrap();
        for mode in [Clear::Punch, Clear::Zero] {
            file.write_all_at(&[0xaa; 1 << 20], 0).unwrap();
            let length = 256 << 10;
            let clear = Operation::Clear { mode, length };
            match one(&mut *engine, job(clear, 4096, Data::Nothing)) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    eprintln!("SKIP: no {mode:?} on the file system of temporary files");
                    continue;
                }
                Err(error) => panic!("{mode:?}: {error}"),
            }
            let beyond = job(clear, (1 << 20) - 4096, Data::Nothing);
            one(&mut *engine, beyond).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 1 << 20);
            let mut found = vec![1; length as usize];
            file.read_exact_at(&mut found, 4096).unwrap();
            assert!(found.iter().all(|byte| *byte == 0));
        }
    }
}

#[test]
fn more_jobs_than_the_ring_has_entries_all_complete() {
    for choice in engines() {
        let file = image(1 << 20);
        let mut engine = choice.make(&file, 512).unwrap();
        let mut guest = Guest::new();
        for id in 0..512 {
            let data = buffers(&mut guest, &[&pattern(512, id as u8)]);
            assert!(
                engine
                    .start(id, job(WRITE, id as u64 * 512, data))
                    .is_none()
            );
        }
        let mut ids: Vec<_> = wait(&mut *engine, 512)
            .into_iter()
            .map(|done| {
                assert_eq!(done.result.unwrap(), 512);
                done.id
            })
            .collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..512).collect::<Vec<_>>());
        for id in 0..512 {
            let mut found = [0; 512];
            file.read_exact_at(&mut found, id * 512).unwrap();
            assert_eq!(found[..], pattern(512, id as u8));
        }
    }
}

#[test]
fn errors_and_ends_of_the_file_are_told_as_they_are() {
    for choice in engines() {
        let file = image(1024);
        let mut engine = choice.make(&file, 8).unwrap();
        let mut guest = Guest::new();
        let data = buffers(&mut guest, &[&[1; 4096]]);
        let short = one(&mut *engine, job(Operation::Read, 512, data));
        assert_eq!(short.unwrap(), 512);
        let data = buffers(&mut guest, &[&[1; 512]]);
        let end = one(&mut *engine, job(Operation::Read, 1024, data));
        assert_eq!(end.unwrap(), 0);
        let null = File::open("/dev/null").unwrap();
        let mut engine = choice.make(&Arc::new(null), 8).unwrap();
        let data = buffers(&mut guest, &[&[1; 512]]);
        let result = one(&mut *engine, job(WRITE, 0, data));
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}

#[test]
fn draining_brings_every_job_back_even_those_not_submitted() {
    for choice in engines() {
        let file = image(1 << 20);
        let mut engine = choice.make(&file, 128).unwrap();
        let mut guest = Guest::new();
        for id in 0..128 {
            let data = buffers(&mut guest, &[&[7; 4096]]);
            let _ = engine.start(id, job(WRITE, id as u64 * 4096, data));
            if id == 100 {
                engine.submit().unwrap();
            }
        }
        let mut done = Vec::new();
        engine.drain(&mut done).unwrap();
        assert_eq!(done.len(), 128);
        let memory = Arc::downgrade(&guest.memory);
        drop((done, guest));
        assert_eq!(memory.strong_count(), 0, "the engine keeps no memory");
    }
}

#[test]
fn a_dropped_engine_has_written_what_it_took() {
    for choice in engines() {
        let file = image(1 << 20);
        let mut engine = choice.make(&file, 128).unwrap();
        let mut guest = Guest::new();
        for id in 0..128 {
            let data = buffers(&mut guest, &[&[7; 4096]]);
            let _ = engine.start(id, job(WRITE, id as u64 * 4096, data));
        }
        drop(engine);
        let mut found = vec![0; 128 * 4096];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found.iter().all(|byte| *byte == 7));
    }
}

#[test]
fn the_null_engine_reads_zeroes_at_once() {
    let mut guest = Guest::new();
    let buffer = guest.put(&[5; 1024]);
    let data = data(&guest, &[buffer]);
    let done = Null.start(0, job(Operation::Read, 0, data)).unwrap();
    assert_eq!(done.result.unwrap(), 1024);
    assert_eq!(guest.get(buffer), [0; 1024]);
}

#[test]
fn an_engine_that_was_asked_for_is_the_one() {
    assert_eq!(Choice::Threads.settle().unwrap(), Choice::Threads);
    let auto = Choice::Auto.settle().unwrap();
    match Uring::probe() {
        Ok(()) => assert_eq!(auto, Choice::Auto),
        Err(_) => {
            assert_eq!(auto, Choice::Threads);
            assert!(Choice::IoUring.settle().is_err());
        }
    }
}
