//! What a front-end lends and changes afterwards, and what passes by itself: the
//! next front-end is served.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::Signal;
use outboard_contract::client::Client;
use outboard_contract::driver::Driver;
use outboard_contract::memory::Memory;
use outboard_contract::program::{Program, command};
use outboard_contract::ring::{Buffer, Ring};
use outboard_contract::soon;
use vhost::vhost_user::message::FrontendReq as R;

const DATA: u64 = 0x8000;

fn start() -> Program {
    let mut program = command(env!("CARGO_BIN_EXE_outboard-rng"), &[""; 0]);
    Program::serve(&mut program).unwrap()
}

fn begun(program: &Program) -> Driver {
    let memory = Memory::new(&[(0, 0x10_0000)]).unwrap();
    Driver::new(program.client().unwrap(), 0, memory)
}

/// A connection with a ring that runs, which has served one request.
fn session(program: &Program) -> (Client, Memory, Ring) {
    let mut driver = begun(program);
    let mut ring = driver.fresh_ring(0x1000, 16);
    for event in [&ring.kick, &ring.call] {
        fcntl(event, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    }
    driver.client.start_ring(0, &ring, 0).unwrap();
    driver.client.acknowledged = true;
    ask(&mut ring);
    ring.wait_used(soon()).unwrap();
    (driver.client, driver.memory, ring)
}

/// Serves another front-end, and ends by this signal; what it said.
fn ends(program: Program, signal: Signal) -> String {
    drop(session(&program));
    program.ends_by(signal).unwrap()
}

fn ask(ring: &mut Ring) {
    ring.add(&[Buffer::writable(DATA, 64)]).unwrap();
    ring.kick().unwrap();
}

#[test]
fn what_is_no_eventfd_is_cut_off_its_own_end_of_the_connection_too() {
    let program = start();
    for request in [R::SET_VRING_KICK, R::SET_VRING_CALL, R::SET_VRING_ERR] {
        let client = begun(&program).client;
        let own = client.connection.as_fd();
        client.tell(request, &[0; 8], &[own]).unwrap();
        // Whatever it was answered: it is over.
        while client.receive().is_ok() {}
    }
    let said = ends(program, Signal::SIGTERM);
    assert!(said.contains("no eventfd"), "{said}");
}

#[test]
fn a_kick_without_an_end_is_cut_off() {
    let program = start();
    let (client, _guest, _ring) = session(&program);
    let endless = EventFd::from_value_and_flags(u32::MAX, EfdFlags::EFD_SEMAPHORE).unwrap();
    client.stop_ring(0).unwrap();
    let _ = client.vring_fd(R::SET_VRING_KICK, 0, &endless);
    while client.receive().is_ok() {}
    let said = ends(program, Signal::SIGTERM);
    assert!(said.contains("EFD_SEMAPHORE"), "{said}");
}

#[test]
fn a_call_that_is_filled_and_made_to_block_holds_nothing_up() {
    let program = start();
    for stopped in [false, true] {
        let (client, _guest, mut ring) = session(&program);
        let _ = ring.call.read();
        ring.call.write(u64::MAX - 1).unwrap();
        fcntl(&ring.call, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        ask(&mut ring);
        ring.wait_used(soon()).unwrap();
        if stopped {
            // It is answered, or cut off.
            let _ = client.stop_ring(0);
        }
    }
    ends(program, Signal::SIGTERM);
}

#[test]
fn a_lack_of_descriptors_is_waited_out() {
    let program = start();
    let session = session(&program);
    program.limit_descriptors(5).unwrap();
    drop(session);
    let words = "cannot accept a front-end for the moment";
    program.says(&[words]).unwrap();
    program.limit_descriptors(1000).unwrap();
    ends(program, Signal::SIGTERM);
}

#[test]
fn a_hangup_ends_it_in_order() {
    let said = ends(start(), Signal::SIGHUP);
    assert_eq!(said, "");
}
