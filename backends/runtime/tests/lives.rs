//! What lives as long as the program: threads, descriptors, and what memory is
//! mapped when. Each test is alone in the process, since it looks at all of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use outboard_contract::client::{Ack, Client};
use outboard_contract::memory::{Memory as Guest, Region};
use outboard_contract::ring::Ring;
use outboard_runtime::event::Event;
use outboard_runtime::session::{End, Host, Limits, serve};
use support::*;
use vhost::vhost_user::message::FrontendReq;
use vm_memory::ByteValued;

const QUEUES: u8 = 4;

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn entries(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// The threads of this process, and its descriptors with what they are of.
fn possessions() -> (Vec<String>, Vec<String>) {
    let descriptors = entries("/proc/self/fd").into_iter().filter_map(|fd| {
        let target = fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
        // The one by which they are listed.
        let listed = target.starts_with("/proc");
        (!listed).then(|| target.to_str().unwrap().to_owned())
    });
    let mut descriptors: Vec<_> = descriptors.collect();
    descriptors.sort();
    (entries("/proc/self/task"), descriptors)
}

/// How often a region's file is mapped in this process, once of it by the test.
fn mapped(region: &Region) -> usize {
    let inode = fs::metadata(format!("/proc/self/fd/{}", number(region)))
        .unwrap()
        .ino()
        .to_string();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let of_it = |line: &&str| line.split_whitespace().nth(4) == Some(inode.as_str());
    maps.lines().filter(of_it).count()
}

fn number(region: &Region) -> i32 {
    use std::os::fd::AsRawFd;
    region.as_fd().as_raw_fd()
}

fn add(client: &Client, region: &Region) {
    let single = region.single();
    let fds = [region.as_fd()];
    client
        .order(FrontendReq::ADD_MEM_REG, single.as_slice(), &fds)
        .unwrap();
}

fn remove(client: &Client, region: &Region) {
    let single = region.single();
    client
        .order(FrontendReq::REM_MEM_REG, single.as_slice(), &[])
        .unwrap();
}

fn rings(guest: &Guest) -> Vec<Ring> {
    (0..u64::from(QUEUES))
        .map(|index| Ring::new(guest, LOW + 0x4000 * index, 16, true).unwrap())
        .collect()
}

/// Each of the rings serves, and goes on where it is.
fn all_serve(guest: &Guest, rings: &mut [Ring]) {
    rings.iter_mut().for_each(|ring| still_serves(guest, ring));
}

fn start(client: &Client, rings: &[Ring]) {
    for (index, ring) in (0..).zip(rings) {
        client.start_ring(index, ring, ring.next_avail).unwrap();
    }
}

fn stop(client: &Client) {
    for index in 0..QUEUES {
        client.stop_ring(index).unwrap();
    }
}

#[test]
fn no_start_reset_or_change_of_memory_makes_a_thread_or_a_descriptor() {
    let _alone = alone();
    let guest = guest();
    let features = EVENT_IDX | VERSION_1;
    let mut session = Session::ready(QUEUES.into(), features, &guest);
    let more = Guest::new(&[(HIGH * 2, REGION)]).unwrap();
    let mut rings = rings(&guest);
    start(&session.client, &rings);
    all_serve(&guest, &mut rings);
    let before = possessions();
    assert!(before.0.len() > QUEUES.into());
    for round in 0..20 {
        stop(&session.client);
        start(&session.client, &rings);
        all_serve(&guest, &mut rings);
        add(&session.client, &more.regions[0]);
        all_serve(&guest, &mut rings);
        remove(&session.client, &more.regions[0]);
        all_serve(&guest, &mut rings);
        let reset = FrontendReq::RESET_DEVICE;
        assert_eq!(session.client.order(reset, &[], &[]).unwrap(), ());
        session.client.negotiate(features).unwrap();
        session.client.set_mem_table(&guest).unwrap();
        start(&session.client, &rings);
        all_serve(&guest, &mut rings);
        assert_eq!(possessions(), before, "round {round}");
    }
    session.close();
}

#[test]
fn a_region_is_mapped_from_its_description_to_its_removal_and_no_longer() {
    let _alone = alone();
    let guest = guest();
    let session = Session::ready(QUEUES.into(), EVENT_IDX | VERSION_1, &guest);
    let more = Guest::new(&[(HIGH * 2, REGION)]).unwrap();
    let region = &more.regions[0];
    let mut rings = rings(&guest);
    start(&session.client, &rings);
    for round in 0..4 {
        assert_eq!(mapped(region), 1, "the test's own");
        add(&session.client, region);
        assert_eq!(mapped(region), 2);
        all_serve(&guest, &mut rings);
        match round {
            // While all rings run, and none.
            0 => {}
            1 => stop(&session.client),
            // Of another table nothing else is kept either.
            _ => session.client.set_mem_table(&guest).unwrap(),
        }
        if round < 2 {
            remove(&session.client, region);
        }
        assert_eq!(mapped(region), 1, "round {round}");
        if round == 1 {
            start(&session.client, &rings);
        }
        all_serve(&guest, &mut rings);
    }
    assert_eq!(mapped(&guest.regions[0]), 2);
    session.close();
    assert_eq!(mapped(&guest.regions[0]), 1, "the session is over");
}

/// How often each worker but the first has slept and waked by itself; none but
/// one that sleeps counts.
fn wakes() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for task in entries("/proc/self/task") {
        let read = |name: &str| fs::read_to_string(format!("/proc/self/task/{task}/{name}"));
        let (Ok(name), Ok(status)) = (read("comm"), read("status")) else {
            continue;
        };
        let line = |key: &str| status.lines().find(|line| line.starts_with(key));
        let asleep = line("State:").is_some_and(|state| state.contains("S (sleeping)"));
        if name.starts_with("queue") && name.trim() != "queue 0" && asleep {
            let count = line("voluntary_ctxt_switches:").unwrap();
            found.push((name.trim().to_owned(), count.to_owned()));
        }
    }
    found.sort();
    found
}

#[test]
fn a_worker_without_a_ring_does_not_wake_over_many_sessions_of_the_others() {
    let _alone = alone();
    let guest = guest();
    let (device, knobs) = Loopback::new(QUEUES.into());
    // One that polls would not sleep at all.
    let poll = Duration::from_secs(1);
    let limits = Limits::default();
    let mut host = Host::new(device, Limits { poll, ..limits }).unwrap();
    let stop = Event::new().unwrap();
    let mut before = Vec::new();
    for round in 0..30 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let end = thread::scope(|scope| {
            let session = scope.spawn(|| serve(&mut host, theirs, stop.as_fd()));
            let mut client = Client::new(ours);
            client.negotiate(EVENT_IDX | VERSION_1).unwrap();
            client.set_mem_table(&guest).unwrap();
            let mut ring = Ring::new(&guest, LOW, 16, true).unwrap();
            client.start_ring(0, &ring, 0).unwrap();
            still_serves(&guest, &mut ring);
            let ack = client.vring_state(FrontendReq::SET_VRING_ENABLE, 0, 0);
            assert_eq!(ack.unwrap(), Ack::Done);
            drop(client);
            session.join().unwrap()
        });
        assert_eq!(end, Ok(End::Closed));
        if round == 0 {
            wait(|| wakes().len() == usize::from(QUEUES) - 1);
            before = wakes();
        }
        assert_eq!(wakes(), before, "round {round}");
    }
    assert_eq!(knobs.ends.load(Ordering::SeqCst), 30);
}
