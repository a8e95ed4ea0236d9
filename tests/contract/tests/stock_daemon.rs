//! Where the stock `vhost-user-backend` daemon, by `outboard-rng`, does other than
//! the specification says. A walk through legal orders does without these
//! ([`outboard_contract::model::Daemon`]); when one of these tests fails, the
//! daemon has been mended, and the walk need not any more.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_contract::client::{Ack, Client};
use outboard_contract::memory::Memory;
use outboard_contract::ours;
use outboard_contract::program::Program;
use outboard_contract::ring::{Ring, drain, fresh_event};
use outboard_contract::soon;
use outboard_contract::traffic::{Entropy, Traffic, page};
use outboard_protocol::wire::{Header, WireError};
use vhost::vhost_user::message::FrontendReq as R;

const VERSION_1: u64 = 1 << 32;
const SIZE: u16 = 16;
const PAGES: u64 = 0x1_0000;
/// An index, and the bit that says that there is no descriptor.
const POLLED: u64 = 1 << 8;

/// A session with one ring, of which nothing has been said.
struct Served {
    program: Program,
    client: Client,
    memory: Memory,
    ring: Ring,
}

impl Served {
    fn start() -> Self {
        let program = ours::rng().unwrap();
        let memory = Memory::new(&[(0, 0x10_0000)]).unwrap();
        let mut client = program.client().unwrap();
        client.negotiate(VERSION_1).unwrap();
        client.set_mem_table(&memory).unwrap();
        let ring = Ring::new(&memory, 0x1000, SIZE, false).unwrap();
        Self {
            program,
            client,
            memory,
            ring,
        }
    }

    /// Says where the ring is, and how long, and enables it.
    fn describe(&self, base: u16) {
        for (request, number) in [
            (R::SET_VRING_NUM, SIZE),
            (R::SET_VRING_BASE, base),
            (R::SET_VRING_ENABLE, 1),
        ] {
            let ack = self.client.vring_state(request, 0, number.into());
            assert_eq!(ack.unwrap(), Ack::Done);
        }
        assert_eq!(self.client.vring_addr(0, &self.ring).unwrap(), Ack::Done);
    }

    fn lend_kick(&self) {
        let ack = self.client.vring_fd(R::SET_VRING_KICK, 0, &self.ring.kick);
        assert_eq!(ack.unwrap(), Ack::Done);
    }

    fn lend_call(&self) {
        let ack = self.client.vring_fd(R::SET_VRING_CALL, 0, &self.ring.call);
        assert_eq!(ack.unwrap(), Ack::Done);
    }

    fn submit(&mut self) {
        let number = u64::from(self.ring.next_avail);
        let place = page(PAGES, 0, number);
        let buffers = Entropy.prepare(&self.memory, place, 0, number).unwrap();
        self.ring.add(&buffers).unwrap();
    }

    /// The program has read the kick.
    fn wait_until_read(&self) {
        let deadline = soon();
        loop {
            let mut kick = [PollFd::new(self.ring.kick.as_fd(), PollFlags::POLLIN)];
            if poll(&mut kick, PollTimeout::ZERO).unwrap() == 0 {
                return;
            }
            assert!(!deadline.passed(), "the kick is not read");
            std::thread::yield_now();
        }
    }

    /// Stops the ring, with which nothing more is done: how many were served.
    fn served(&mut self) -> u16 {
        let base = self.client.stop_ring(0).unwrap();
        assert_eq!(self.ring.used_idx().unwrap(), base);
        assert!(self.program.is_alive());
        base
    }
}

/// "SET_VRING_KICK", bit 8: "polling should be used instead of waiting for the
/// kick". It is not: the ring does not start.
#[test]
fn a_ring_without_a_kick_is_not_polled() {
    let mut served = Served::start();
    served.describe(0);
    served.submit();
    served.lend_call();
    let polled = POLLED.to_ne_bytes();
    let order = served.client.order(R::SET_VRING_KICK, &polled, &[]);
    order.unwrap();
    // Long enough for one that polls; more would only find nothing for longer.
    let mut call = [PollFd::new(served.ring.call.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut call, PollTimeout::from(1000u16)).unwrap(), 0);
    assert_eq!(served.served(), 0);
}

/// "SET_VRING_KICK" sets the event that the ring waits for. A second one is taken
/// and never waited for, until the ring is stopped.
#[test]
fn a_kick_that_is_replaced_is_not_heard() {
    let mut served = Served::start();
    served.describe(0);
    served.lend_kick();
    served.submit();
    served.ring.kick().unwrap();
    served.ring.wait_used(soon()).unwrap();
    let _old = std::mem::replace(&mut served.ring.kick, fresh_event().unwrap());
    served.lend_kick();
    served.submit();
    served.ring.kick().unwrap();
    assert_eq!(served.served(), 1);
}

/// "Ring states": a ring starts on the kick. One that comes before the ring's
/// place is known is read, and forgotten.
#[test]
fn a_kick_before_the_addresses_is_forgotten() {
    let mut served = Served::start();
    served.lend_kick();
    let enabled = served.client.vring_state(R::SET_VRING_ENABLE, 0, 1);
    assert_eq!(enabled.unwrap(), Ack::Done);
    served.submit();
    served.ring.kick().unwrap();
    served.wait_until_read();
    served.describe(0);
    assert_eq!(served.served(), 0);
    // And as it should be.
    served.describe(0);
    served.lend_kick();
    served.ring.kick().unwrap();
    served.lend_call();
    served.ring.wait_used(soon()).unwrap();
    assert_eq!(served.served(), 1);
}

/// "GET_VRING_BASE" stops a ring, and says nothing of its call, which was lent
/// once: the daemon forgets it.
#[test]
fn a_stopped_ring_has_no_call_any_more() {
    let mut served = Served::start();
    for lent in [true, false] {
        let base = served.ring.used_idx().unwrap();
        served.describe(base);
        if lent {
            served.lend_call();
        }
        served.lend_kick();
        served.submit();
        served.ring.kick().unwrap();
        let deadline = soon();
        while served.ring.used_idx().unwrap() == base {
            assert!(!deadline.passed(), "the request is not served");
            std::thread::yield_now();
        }
        // The daemon calls under the lock that this one needs.
        assert_eq!(served.served(), base + 1);
        let calls = drain(&served.ring.call);
        assert_eq!(calls, u64::from(lent), "calls, lent: {lent}");
    }
}

/// "SET_OWNER" marks the sender as the session's front-end, which it is already
/// when it says so again, as QEMU does over one connection when a device is
/// plugged in once more. The daemon ends the session.
#[test]
fn a_session_that_is_claimed_twice_ends() {
    let served = Served::start();
    let owner = Header::request(R::SET_OWNER.into());
    served.client.send(owner, &[], &[]).unwrap();
    assert!(matches!(served.client.receive(), Err(WireError::Closed)));
}
