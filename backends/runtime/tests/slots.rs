//! As many memory regions as other back-ends have, added one by one: none of
//! them costs a descriptor, and the ring goes on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use outboard_contract::client::Ack;
use outboard_contract::memory::{Memory as Guest, sealed};
use outboard_contract::ring::{Buffer, Ring};
use outboard_contract::soon;
use outboard_protocol::wire::Header;
use outboard_runtime::session::End;
use support::*;
use vhost::vhost_user::message::{FrontendReq as R, VhostUserSingleMemoryRegion};
use vm_memory::ByteValued;

/// What the specification's front-ends ask for at most
/// (VHOST_USER_MAX_RAM_SLOTS).
const SLOTS: u64 = 509;
const FIRST: u64 = 0x8000_0000;
const PAGE: u64 = 0x1000;

/// Descriptors are counted by one test at a time.
static ONE: Mutex<()> = Mutex::new(());

/// The region of a slot, a page of one file each; not next to one another.
fn region(slot: u64) -> VhostUserSingleMemoryRegion {
    let at = FIRST + 2 * slot * PAGE;
    VhostUserSingleMemoryRegion::new(at, PAGE, at, slot * PAGE)
}

/// A session with every slot in use but `spare`, and the file of most.
struct Full {
    guest: Guest,
    session: Session,
    ring: Ring,
    file: File,
}

impl Full {
    fn new(spare: u64) -> Self {
        let guest = guest();
        let session = Session::ready(2, VERSION_1, &guest);
        let ring = Ring::new(&guest, LOW, 16, false).unwrap();
        let full = Self {
            guest,
            session,
            ring,
            file: sealed((SLOTS + 2) * PAGE).unwrap(),
        };
        for slot in 2..SLOTS - spare {
            assert_eq!(full.add(slot), Ack::Done, "slot {slot}");
        }
        let client = &full.session.client;
        client.start_ring(1, &full.ring, 0).unwrap();
        full
    }

    fn add(&self, slot: u64) -> Ack {
        let fd = self.file.as_fd();
        let client = &self.session.client;
        client
            .tell(R::ADD_MEM_REG, region(slot).as_slice(), &[fd])
            .unwrap()
    }

    fn remove(&self, slot: u64) -> Ack {
        let client = &self.session.client;
        client
            .tell(R::REM_MEM_REG, region(slot).as_slice(), &[])
            .unwrap()
    }

    /// The device reads in one region and writes in another.
    fn copies(&mut self, from: u64, to: u64) {
        use std::os::unix::fs::FileExt;
        let text = [NOW, 7, from as u8, to as u8, 1, 2, 3, 4];
        self.file.write_all_at(&text, from * PAGE + 8).unwrap();
        let at = |slot: u64| FIRST + 2 * slot * PAGE + 8;
        let buffers = [Buffer::readable(at(from), 8), Buffer::writable(at(to), 8)];
        let head = self.ring.add(&buffers).unwrap();
        self.ring.kick().unwrap();
        assert_eq!(self.ring.wait_used(soon()).unwrap(), (head, 8));
        let mut copy = [0; 8];
        self.file.read_exact_at(&mut copy, to * PAGE + 8).unwrap();
        assert_eq!(copy, text);
    }
}

#[test]
fn there_are_509_memory_slots_and_no_more() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut full = Full::new(0);
    let slots = full.session.client.ask(R::GET_MAX_MEM_SLOTS, &[]).unwrap();
    assert_eq!(slots.body::<u64>().unwrap(), SLOTS);
    assert_eq!(full.add(SLOTS), Ack::Refused);
    full.copies(2, SLOTS - 1);
    full.copies(SLOTS / 2, 3);
    // One that is there already is no other; one that goes makes room.
    assert_eq!(full.add(5), Ack::Done);
    assert_eq!(full.remove(5), Ack::Done);
    assert_eq!(full.remove(5), Ack::Done);
    assert_eq!(full.add(SLOTS), Ack::Done);
    assert_eq!(full.add(5), Ack::Refused);
    full.copies(SLOTS, 4);
    still_serves(&full.guest, &mut full.ring);
    // A front-end that does not ask is told by the end, and the user why.
    let client = &full.session.client;
    let fd = full.file.as_fd();
    let header = Header::request(R::ADD_MEM_REG.into());
    client.send(header, region(5).as_slice(), &[fd]).unwrap();
    match full.session.end() {
        End::CutOff(why) => assert!(why.contains("there are 509 already"), "{why}"),
        end => panic!("{end:?}"),
    }
}

#[test]
fn a_region_costs_no_descriptor() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let full = Full::new(20);
    let before = count();
    for slot in SLOTS - 20..SLOTS {
        assert_eq!(full.add(slot), Ack::Done, "slot {slot}");
    }
    assert_eq!(count(), before);
    assert_eq!(full.session.close(), End::Closed);
}
