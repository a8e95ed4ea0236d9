//! Descriptors that a front-end lends, keeps a copy of, and changes afterwards:
//! whatever it does to them, its session ends and the next one is served.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socket,
};
use outboard_contract::client::Ack;
use outboard_contract::memory::Memory as Guest;
use outboard_contract::ring::{Ring, wait_event};
use outboard_contract::soon;
use outboard_protocol::wire::Header;
use outboard_runtime::session::End;
use support::*;
use vhost::vhost_user::message::FrontendReq as R;

/// A count that takes nothing more.
const FULL: u64 = u64::MAX - 1;

/// Fills a lent eventfd and makes it block.
fn obstruct(event: &EventFd) {
    fcntl(event, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let _ = event.read();
    event.write(FULL).unwrap();
    fcntl(event, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
}

/// A session whose ring runs, with call and error descriptors that do not block.
fn running(guest: &Guest) -> (Session, Ring) {
    let session = Session::ready(2, VERSION_1, guest);
    let mut ring = Ring::new(guest, LOW, 16, false).unwrap();
    for event in [&ring.call, &ring.err] {
        fcntl(event, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    }
    session.client.start_ring(0, &ring, 0).unwrap();
    still_serves(guest, &mut ring);
    (session, ring)
}

/// What is wanted of a session whose worker its front-end holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wanted {
    /// To see that the front-end has gone.
    Close,
    /// To end.
    Stop,
    /// To stop the ring.
    Base,
    /// To take other descriptors.
    Replace,
}

const WANTED: [Wanted; 4] = [Wanted::Close, Wanted::Stop, Wanted::Base, Wanted::Replace];

fn is_done(session: Session, mut ring: Ring, guest: &Guest, wanted: Wanted, broken: bool) {
    match wanted {
        Wanted::Close => assert_eq!(session.close(), End::Closed),
        Wanted::Stop => assert_eq!(session.stop(), End::Stopped),
        Wanted::Base => {
            session.client.stop_ring(0).unwrap();
            let mut ring = Ring::new(guest, HIGH, 16, false).unwrap();
            session.client.start_ring(0, &ring, 0).unwrap();
            still_serves(guest, &mut ring);
            assert_eq!(session.close(), End::Closed);
        }
        Wanted::Replace => {
            ring.renew_events().unwrap();
            for (request, event) in [
                (R::SET_VRING_CALL, &ring.call),
                (R::SET_VRING_ERR, &ring.err),
            ] {
                let ack = session.client.vring_fd(request, 0, event).unwrap();
                assert_eq!(ack, Ack::Done);
            }
            let kick = &ring.kick;
            let ack = session.client.vring_fd(R::SET_VRING_KICK, 0, kick).unwrap();
            assert_eq!(ack, Ack::Done);
            if !broken {
                ring.take_used().unwrap().unwrap();
                still_serves(guest, &mut ring);
                wait_event(&ring.call, soon()).unwrap();
            }
            assert_eq!(session.close(), End::Closed);
        }
    }
}

#[test]
fn a_call_that_is_filled_and_made_to_block_holds_nothing_up() {
    let guest = guest();
    for wanted in WANTED {
        let (session, mut ring) = running(&guest);
        obstruct(&ring.call);
        submit(&guest, &mut ring, NOW, 1);
        // The call comes next.
        wait(|| ring.used_idx().unwrap() == 2);
        is_done(session, ring, &guest, wanted, false);
    }
}

#[test]
fn an_error_that_is_filled_and_made_to_block_holds_nothing_up() {
    let guest = guest();
    for wanted in WANTED {
        let (session, ring) = running(&guest);
        obstruct(&ring.err);
        ring.set_avail_idx(100).unwrap();
        ring.kick().unwrap();
        is_done(session, ring, &guest, wanted, true);
    }
}

#[test]
fn an_error_of_a_ring_that_does_not_start_holds_nothing_up() {
    let guest = guest();
    // In the session, and in the worker.
    for in_session in [true, false] {
        let session = Session::ready(1, VERSION_1, &guest);
        let client = &session.client;
        if in_session {
            let (described, fd) = client.get_inflight(1, 8).unwrap();
            client.set_inflight(&described, fd.as_fd()).unwrap();
        } else {
            use std::sync::atomic::Ordering;
            session.knobs.no_queues.store(true, Ordering::SeqCst);
        }
        // Larger than the region.
        let ring = Ring::new(&guest, LOW, 16, false).unwrap();
        fcntl(&ring.err, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        client.vring_state(R::SET_VRING_NUM, 0, 16).unwrap();
        client.vring_addr(0, &ring).unwrap();
        client.vring_fd(R::SET_VRING_ERR, 0, &ring.err).unwrap();
        client.vring_fd(R::SET_VRING_KICK, 0, &ring.kick).unwrap();
        obstruct(&ring.err);
        let ack = client.vring_state(R::SET_VRING_ENABLE, 0, 1).unwrap();
        assert_eq!(ack, Ack::Refused);
        client.config(0, 4).unwrap();
        assert_eq!(session.close(), End::Closed);
    }
}

/// How often a semaphore may still be read.
fn left(event: &EventFd) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", event.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    let count = lines.find_map(|line| line.strip_prefix("eventfd-count:"));
    u64::from_str_radix(count.unwrap().trim(), 16).unwrap()
}

#[test]
fn a_kick_without_an_end_breaks_its_ring_and_the_worker_sleeps() {
    let guest = guest();
    let (session, mut ring) = running(&guest);
    let mut other = Ring::new(&guest, HIGH, 16, false).unwrap();
    session.client.start_ring(1, &other, 0).unwrap();
    ring.kick = EventFd::from_value_and_flags(0, EfdFlags::EFD_SEMAPHORE).unwrap();
    let client = &session.client;
    let ack = client.vring_fd(R::SET_VRING_KICK, 0, &ring.kick).unwrap();
    assert_eq!(ack, Ack::Done);
    // As an eventfd it is like any other.
    still_serves(&guest, &mut ring);
    ring.kick.write(FULL - 100).unwrap();
    wait_event(&ring.err, soon()).unwrap();
    // Nobody reads it any more: once it stays the same, for good.
    let mut count = 0;
    wait(|| std::mem::replace(&mut count, left(&ring.kick)) == left(&ring.kick));
    still_serves(&guest, &mut other);
    client.config(0, 4).unwrap();
    assert_eq!(left(&ring.kick), count);
    // With another kick the ring begins again.
    let base = client.stop_ring(0).unwrap();
    ring.renew_events().unwrap();
    client.start_ring(0, &ring, base).unwrap();
    still_serves(&guest, &mut ring);
    assert_eq!(session.close(), End::Closed);
}

#[test]
fn a_driver_that_kicks_for_nothing_is_served_on() {
    let guest = guest();
    for flags in [EfdFlags::empty(), EfdFlags::EFD_SEMAPHORE] {
        let (session, mut ring) = running(&guest);
        ring.kick = EventFd::from_value_and_flags(0, flags).unwrap();
        let kick = session.client.vring_fd(R::SET_VRING_KICK, 0, &ring.kick);
        assert_eq!(kick.unwrap(), Ack::Done);
        for _ in 0..1000 {
            ring.kick().unwrap();
            wait(|| left(&ring.kick) == 0);
        }
        still_serves(&guest, &mut ring);
        assert_eq!(session.close(), End::Closed);
    }
}

#[test]
fn a_front_end_that_lends_its_own_end_as_an_event_is_seen_to_go() {
    for request in [R::SET_VRING_KICK, R::SET_VRING_CALL, R::SET_VRING_ERR] {
        let mut session = Session::new(1);
        session.client.negotiate(VERSION_1).unwrap();
        let own: BorrowedFd<'_> = session.client.connection.as_fd();
        let ack = session.client.tell(request, &[0; 8], &[own]).unwrap();
        assert_eq!(ack, Ack::Refused);
        assert_eq!(session.close(), End::Closed);
    }
}

#[test]
fn a_front_end_that_lends_its_own_end_as_a_channel_is_cut_off() {
    let mut session = Session::new(1);
    session.client.negotiate(VERSION_1).unwrap();
    let own = session.client.connection.as_fd();
    let request = R::SET_BACKEND_REQ_FD;
    let ack = session.client.tell(request, &[], &[own]).unwrap();
    assert_eq!(ack, Ack::CutOff);
    let End::CutOff(why) = session.end() else {
        panic!("it was not cut off");
    };
    assert!(why.contains("own end of this connection"), "{why}");
    // Nor does it help to ask for no answer and to go at once.
    let mut session = Session::new(1);
    session.client.negotiate(VERSION_1).unwrap();
    let own = session.client.connection.as_fd();
    let header = Header::request(request.into());
    session.client.send(header, &[], &[own]).unwrap();
    let end = session.close();
    assert!(matches!(end, End::CutOff(_)), "{end:?}");
}

/// Puts a descriptor into a socket, with as many bytes.
fn hide(fd: BorrowedFd<'_>, socket: &UnixStream, bytes: usize, flags: MsgFlags) {
    let (fds, bytes) = ([fd.as_raw_fd()], vec![0; bytes]);
    let rights = [ControlMessage::ScmRights(&fds)];
    let bytes = [IoSlice::new(&bytes)];
    sendmsg::<()>(socket.as_raw_fd(), &bytes, &rights, flags, None).unwrap();
}

#[test]
fn a_front_end_that_hides_its_own_end_in_a_channel_is_seen_to_go() {
    let plain = [MsgFlags::empty()];
    // A kernel may know no urgent bytes on such sockets.
    let (one, _other) = UnixStream::pair().unwrap();
    let urgent = nix::sys::socket::send(one.as_raw_fd(), &[0], MsgFlags::MSG_OOB);
    let both = [MsgFlags::empty(), MsgFlags::MSG_OOB];
    let kinds = if urgent.is_ok() {
        &both[..]
    } else {
        &plain[..]
    };
    for flags in kinds {
        for in_another in [false, true] {
            let mut session = Session::new(1);
            session.client.negotiate(VERSION_1).unwrap();
            let own = session.client.connection.as_fd();
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (inner, outer) = UnixStream::pair().unwrap();
            for bytes in [10_000, 1, 2] {
                if in_another {
                    hide(own, &inner, bytes, *flags);
                } else {
                    hide(own, &ours, bytes, *flags);
                }
            }
            if in_another {
                hide(outer.as_fd(), &ours, 1, *flags);
            }
            let request = R::SET_BACKEND_REQ_FD;
            let ack = session.client.tell(request, &[], &[theirs.as_fd()]);
            assert_eq!(ack.unwrap(), Ack::Done);
            // Nor is there a way into it any more.
            let late = nix::sys::socket::send(ours.as_raw_fd(), &[0], MsgFlags::MSG_NOSIGNAL);
            assert_eq!(late, Err(Errno::EPIPE));
            drop((ours, theirs, inner, outer));
            assert_eq!(session.close(), End::Closed);
        }
    }
}

#[test]
fn a_channel_that_is_no_connected_stream_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
    let (datagrams, _other) = UnixDatagram::pair().unwrap();
    let kind = SockType::Stream;
    let alone = socket(AddressFamily::Unix, kind, SockFlag::empty(), None).unwrap();
    let internet = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let internet = std::net::TcpStream::connect(internet.local_addr().unwrap()).unwrap();
    let (reader, _writer) = nix::unistd::pipe().unwrap();
    let event = EventFd::new().unwrap();
    let mut session = Session::new(1);
    session.client.negotiate(VERSION_1).unwrap();
    for other in [
        listener.as_fd(),
        datagrams.as_fd(),
        alone.as_fd(),
        internet.as_fd(),
        reader.as_fd(),
        event.as_fd(),
    ] {
        let request = R::SET_BACKEND_REQ_FD;
        let ack = session.client.tell(request, &[], &[other]).unwrap();
        assert_eq!(ack, Ack::Refused);
    }
    assert_eq!(session.close(), End::Closed);
}
