//! Transfers through a bounce buffer that another request has used before.

use std::fs::File;
use std::os::unix::fs::FileExt;

use outboard_runtime::chain::Buffer;

use super::*;
use crate::data::BOUNCE;
use crate::guest::{Guest, pattern};

/// What another request has left in the bounce buffer, and what the guest has
/// in its own.
const STALE: u8 = 0x5e;
const UNTOUCHED: u8 = 0xdd;

/// More than a bounce buffer, and no whole number of them.
const LENGTH: usize = 2 * BOUNCE + 1536;

struct Fixture {
    durability: Arc<Durability>,
    refused: Refused,
    troubles: Troubles,
    file: File,
    guest: Guest,
    buffers: [Buffer; 2],
}

impl Fixture {
    /// A file of this content, and a guest that has `bytes` in two buffers.
    fn new(content: &[u8], bytes: &[u8]) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(content, 0).unwrap();
        let mut guest = Guest::new();
        let (first, second) = bytes.split_at(777);
        let buffers = [first, second].map(|part| guest.put(part));
        Self {
            durability: Durability::new(true),
            refused: Refused::default(),
            troubles: Troubles::default(),
            file,
            guest,
            buffers,
        }
    }

    fn rules(&self) -> Rules<'_> {
        Rules {
            durability: &self.durability,
            refused: &self.refused,
            troubles: &self.troubles,
            flushes: true,
            holds: false,
        }
    }

    /// The first step of a task on the guest's buffers.
    fn begin(&self, make: impl FnOnce(u64, GuestBuffers) -> Task) -> (Task, Step) {
        let mut data = GuestBuffers::default();
        let buffers = self.buffers.into_iter();
        data.extend(&self.guest.memory, buffers).unwrap();
        let mut bounce = Bounce::new(BOUNCE);
        bounce.take(BOUNCE).fill(STALE);
        let mut task = make(0, data);
        task.give(bounce);
        let step = task.start(self.rules());
        (task, step)
    }

    /// What the guest has now.
    fn found(&self) -> Vec<u8> {
        let parts = self.buffers.iter().map(|part| self.guest.get(*part));
        parts.collect::<Vec<_>>().concat()
    }
}

#[test]
fn a_bounced_read_brings_what_was_read_and_nothing_of_another_request() {
    let content = pattern(LENGTH, 1);
    let fixture = Fixture::new(&content, &[UNTOUCHED; LENGTH]);
    let (mut task, mut step) = fixture.begin(Task::read);
    let mut end = 0;
    // The kernel stops where it likes.
    for most in [1, 511, 4096, 777, 40_000].into_iter().cycle() {
        let Step::Next(mut job) = step else { break };
        let count = job.data.read_at(&fixture.file, job.offset).unwrap();
        let count = count.min(most);
        end += count as usize;
        step = task.complete(job, Ok(count), fixture.rules());
        let found = fixture.found();
        assert!(found[..end] == content[..end], "the first {end} bytes");
        assert!(found[end..].iter().all(|byte| *byte == UNTOUCHED), "{end}");
    }
    assert!(matches!(step, Step::Done(Status::Ok)));
    assert_eq!(end, LENGTH);
    assert_eq!(task.written(), LENGTH as u64);
}

#[test]
fn a_bounced_read_that_ends_early_leaves_the_rest_as_it_was() {
    let content = pattern(512, 1);
    let fixture = Fixture::new(&content, &[UNTOUCHED; 3072]);
    for how in [Ok(0), Err(io::Error::from_raw_os_error(libc::EIO))] {
        let (mut task, step) = fixture.begin(Task::read);
        let Step::Next(mut job) = step else {
            panic!("{step:?}")
        };
        let count = job.data.read_at(&fixture.file, 0).unwrap();
        assert_eq!(count, 512, "the file is as short");
        let step = task.complete(job, Ok(count), fixture.rules());
        let Step::Next(job) = step else {
            panic!("{step:?}")
        };
        assert_eq!((job.offset, job.data.remaining()), (512, 2560));
        let step = task.complete(job, how, fixture.rules());
        assert!(matches!(step, Step::Done(Status::IoErr)), "{step:?}");
        assert_eq!(task.written(), 512);
        let found = fixture.found();
        assert!(found[..512] == content);
        assert!(found[512..].iter().all(|byte| *byte == UNTOUCHED));
        assert!(task.dismantle().1.is_some(), "the bounce buffer is back");
    }
}

#[test]
fn a_bounced_write_goes_on_where_the_kernel_stopped() {
    let content = pattern(LENGTH, 1);
    let fixture = Fixture::new(&[], &content);
    let (mut task, mut step) = fixture.begin(Task::write);
    for most in [1, 511, 4096, 777, 40_000].into_iter().cycle() {
        let Step::Next(job) = step else { break };
        let count = job.data.write_at(&fixture.file, job.offset, false).unwrap();
        step = task.complete(job, Ok(count.min(most)), fixture.rules());
    }
    assert!(matches!(step, Step::Done(Status::Ok)));
    let mut found = vec![0; LENGTH];
    fixture.file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == content);
    assert_eq!(fixture.file.metadata().unwrap().len(), LENGTH as u64);
    assert_eq!(task.written(), 0, "to the guest");
}
