//! Where the program may make few threads or none, and the kernel none for it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use support::{Driver, EVERYTHING, OK, Program, by_shell, pattern};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_WRITE_ZEROES};

/// Each test has a user of its own, whose tasks nobody else adds to.
fn limited(user: u32, tasks: u32, arguments: &[&str]) -> Option<Program> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP: only root can become a user that has no tasks yet");
        return None;
    }
    let user = 20_000 + (5 * std::process::id() + user) % 40_000;
    // The half of it that stays outside is a task, too.
    let tasks = tasks + 1;
    let script = format!(
        "truncate -s 1M $folder/image; cp \"$1\" $folder/program; shift; \
         chmod 666 $folder/image; chmod 777 $folder; \
         exec prlimit --nproc={tasks} setpriv --reuid={user} --clear-groups \
         $folder/program \"$@\" --blk-file=$folder/image"
    );
    Some(by_shell(&script, arguments))
}

fn writes_flushes_and_wipes(disk: &Program) {
    let mut driver = Driver::of(disk, EVERYTHING);
    for round in 0..3 {
        let bytes = pattern(4096, round);
        assert_eq!(driver.write(8, &bytes), (OK, 1), "{}", disk.said());
        let flush = driver.request(VIRTIO_BLK_T_FLUSH, 0, &[]);
        assert_eq!(flush, (OK, 1), "{}", disk.said());
        let zeroes = driver.segment(VIRTIO_BLK_T_WRITE_ZEROES, 64, 8, 0);
        assert_eq!(zeroes, (OK, 1), "{}", disk.said());
        assert_eq!(driver.read(8, 4096), (OK, 4097, bytes));
    }
    driver.works();
}

#[test]
fn without_a_thread_for_io_uring_the_engine_is_threads_and_that_is_said() {
    // The program, its queue, and nothing for either engine.
    let Some(disk) = limited(0, 2, &["--engine=auto"]) else {
        return;
    };
    writes_flushes_and_wipes(&disk);
    disk.says(&["no threads for its work", "using threads", "ulimit -u"])
        .unwrap();
    disk.says(&["0 of 4 threads", "does its I/O itself"])
        .unwrap();
}

#[test]
fn fewer_threads_than_wanted_serve_as_well() {
    let Some(disk) = limited(1, 3, &["--engine=threads"]) else {
        return;
    };
    writes_flushes_and_wipes(&disk);
    disk.says(&["1 of 4 threads", "slower"]).unwrap();
}

#[test]
fn io_uring_without_threads_is_refused_when_asked_for_by_name() {
    let Some(mut disk) = limited(2, 2, &["--engine=io_uring"]) else {
        return;
    };
    assert!(!disk.wait().unwrap().success());
    disk.says(&[
        "cannot use io_uring",
        "no threads",
        "--engine=auto",
        "pids.max",
    ])
    .unwrap();
}

#[test]
fn without_a_thread_for_its_queues_it_does_not_start_and_says_what_to_do() {
    let Some(mut disk) = limited(4, 1, &["--engine=threads"]) else {
        return;
    };
    assert!(!disk.wait().unwrap().success());
    disk.says(&["no thread for queue 0", "ulimit -u", "pids.max"])
        .unwrap();
}

#[test]
fn a_thread_that_is_missed_only_later_is_no_error_of_the_guest() {
    // Enough for the probe at the start, but not for two queues at a time.
    let Some(disk) = limited(3, 3, &["--engine=auto", "--num-queues=2"]) else {
        return;
    };
    let mut driver = Driver::of(&disk, EVERYTHING);
    let _second = driver.queue(1);
    let flush = driver.request(VIRTIO_BLK_T_FLUSH, 0, &[]);
    assert_eq!(flush, (OK, 1), "{}", disk.said());
    disk.says(&["no thread for a job of io_uring", "ulimit -u"])
        .unwrap();
    assert_eq!(driver.write(8, &pattern(4096, 1)), (OK, 1));
    driver.works();
    assert!(!disk.said().contains("using threads"), "{}", disk.said());
}
