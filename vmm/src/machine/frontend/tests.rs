mod regions;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use outboard_contract::scripted::{Fault, Scripted};
use outboard_protocol::Deadline;
use outboard_protocol::wire::{Header, WireError};
use vhost::vhost_user::message::{BackendReq, VhostUserProtocolFeatures as Protocol};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::machine::memory::{Backing, Ram};
use crate::machine::virtio::Ring;

/// Enough for an answer on a busy machine.
const SHORT: Limits = Limits {
    message: Duration::from_secs(5),
    answer: Duration::from_secs(5),
};

fn ring_start(index: u16) -> RingStart {
    RingStart {
        ring: Ring {
            index,
            size: 64,
            descriptors: 0x1000,
            available: 0x2000,
            used: 0x3000,
        },
        base: 7,
        kick: Arc::new(EventFd::new(0).unwrap()),
        call: Arc::new(EventFd::new(0).unwrap()),
        error: Arc::new(EventFd::new(0).unwrap()),
    }
}

/// Everything that a session can do, once.
fn drive(stream: std::os::unix::net::UnixStream) -> Result<()> {
    let ram = Ram::new(2 << 20, Backing::default())?;
    let session = Session::<Connected>::new(stream).within(SHORT);
    let mut session = session.negotiate("disk0", &Interruption::default())?;
    let config = session.read_config(60)?.context("no configuration")?;
    assert_eq!(config[..2], [0, 8]);
    session.write_config(32, &[1])?;
    let rings = [ring_start(0), ring_start(1)];
    let session = session.describe(&ram, 1 << 32, (2, 64), &mut None, &rings)?;
    let session = session.enable(&rings)?;
    assert_eq!(session.rings(), [0, 1]);
    let (mut session, stopped) = session.stop()?;
    let stopped: Vec<_> = stopped.iter().map(|ring| (ring.queue, ring.base)).collect();
    assert_eq!(stopped, [(0, 0), (1, 0)]);
    session.reset_device()
}

/// Every request that is answered, in the order of the whole session.
const ANSWERED: [FrontendReq; 21] = [
    FrontendReq::GET_FEATURES,
    FrontendReq::GET_PROTOCOL_FEATURES,
    FrontendReq::GET_QUEUE_NUM,
    FrontendReq::SET_BACKEND_REQ_FD,
    FrontendReq::SET_OWNER,
    FrontendReq::GET_CONFIG,
    FrontendReq::SET_CONFIG,
    FrontendReq::SET_FEATURES,
    FrontendReq::GET_MAX_MEM_SLOTS,
    FrontendReq::ADD_MEM_REG,
    FrontendReq::GET_INFLIGHT_FD,
    FrontendReq::SET_INFLIGHT_FD,
    FrontendReq::SET_VRING_NUM,
    FrontendReq::SET_VRING_BASE,
    FrontendReq::SET_VRING_ADDR,
    FrontendReq::SET_VRING_ERR,
    FrontendReq::SET_VRING_CALL,
    FrontendReq::SET_VRING_KICK,
    FrontendReq::SET_VRING_ENABLE,
    FrontendReq::GET_VRING_BASE,
    FrontendReq::RESET_DEVICE,
];

#[test]
fn a_session_goes_its_whole_way_and_each_request_comes_in_its_place() {
    let (stream, fake) = Scripted::disk().start();
    drive(stream).unwrap();
    let mut seen: Vec<_> = fake.seen.iter().map(|(request, _)| request).collect();
    seen.dedup();
    let places = ANSWERED
        .iter()
        .map(|request| seen.iter().position(|other| other == request).unwrap());
    assert!(places.is_sorted(), "{seen:?}");
    fake.join();
}

#[test]
fn a_back_end_that_was_asked_already_is_not_asked_again() {
    let (stream, fake) = Scripted::disk().start();
    let asked = Connection::new(stream.try_clone().unwrap());
    let request = Header::request(FrontendReq::GET_FEATURES.into());
    let long = Deadline::after(Duration::from_secs(60));
    asked.send(request, &[], &[], long).unwrap();
    let session = Session::asked(stream)
        .negotiate("disk0", &Interruption::default())
        .unwrap();
    assert_eq!(session.agreement().features, Scripted::disk().features);
    drop((session, asked));
    let seen = fake.seen.iter().map(|(request, _)| request);
    let times = seen.filter(|request| *request == FrontendReq::GET_FEATURES);
    assert_eq!(times.count(), 1);
    fake.join();
}

#[test]
fn every_fault_at_every_request_ends_the_session_with_a_reason() {
    let faults = [
        Fault::Close,
        Fault::Silence,
        Fault::Half,
        Fault::Short,
        Fault::Long,
        Fault::Other,
        Fault::NoReply,
        Fault::Fd,
        Fault::Value,
    ];
    // Side by side: a silent one costs its whole deadline.
    let cases = ANSWERED
        .iter()
        .flat_map(|r| faults.clone().map(|f| (*r, f)));
    let threads: Vec<_> = cases
        .map(|case| std::thread::spawn(move || (case.clone(), one_fault(case))))
        .collect();
    for thread in threads {
        let ((request, fault), result) = thread.join().unwrap();
        // A driver's write to the configuration may be refused, and whether no
        // queue is enough is for who knows the device (`device/kinds`).
        let may_be = [FrontendReq::SET_CONFIG, FrontendReq::GET_QUEUE_NUM];
        if fault == Fault::Value && may_be.contains(&request) {
            result.unwrap();
            continue;
        }
        let error = format!(
            "{:#}",
            result.expect_err(&format!("{fault:?} at {request:?}"))
        );
        match fault {
            Fault::Close => assert!(error.contains("closed its connection"), "{error}"),
            // What describes rings goes out together: the next answer is taken for it.
            Fault::Silence | Fault::Half if error.contains("SET_") => {
                let told = ["was silent", "with something else", "malformed"];
                assert!(told.iter().any(|words| error.contains(words)), "{error}");
            }
            Fault::Silence | Fault::Half => assert!(error.contains("was silent"), "{error}"),
            _ => {}
        }
    }
}

fn one_fault(case: (FrontendReq, Fault)) -> Result<()> {
    let fake = Scripted::disk().on(case.0, case.1);
    let (stream, fake) = fake.start();
    let result = drive(stream);
    fake.join();
    result
}

#[test]
fn a_back_end_without_protocol_features_is_never_asked_for_them() {
    let fake = Scripted::disk().features(1 << 32);
    let (stream, fake) = fake.start();
    let ram = Ram::new(2 << 20, Backing::default()).unwrap();
    let mut session = Session::<Connected>::new(stream)
        .negotiate("rng0", &Interruption::default())
        .unwrap();
    assert_eq!(session.read_config(0).unwrap(), None);
    session.reset_device().unwrap();
    let rings = [ring_start(0)];
    let session = session
        .describe(&ram, 1 << 32, (1, 64), &mut None, &rings)
        .and_then(|session| session.enable(&rings))
        .unwrap();
    session.stop().unwrap();
    let seen: Vec<_> = fake.seen.iter().collect();
    let features = &seen[2].1;
    assert_eq!(features.payload, (1u64 << 32).to_ne_bytes());
    let memory = &seen[3];
    assert_eq!(memory.0, FrontendReq::SET_MEM_TABLE);
    assert_eq!((memory.1.payload.len(), memory.1.fds.len()), (40, 1));
    for (request, message) in &seen {
        assert!(!message.header.need_reply, "{request:?}");
        assert_ne!(*request, FrontendReq::SET_VRING_ENABLE);
    }
    fake.join();
}

/// One that answers before it is done must have somebody to call when it is.
#[test]
fn a_back_end_that_may_be_late_is_given_another_call_before_it_answers_that_it_has_stopped() {
    let silent = Scripted::disk().on(FrontendReq::GET_VRING_BASE, Fault::Silence);
    for (fake, answers) in [(Scripted::disk(), true), (silent, false)] {
        let (stream, fake) = fake.start();
        let ram = Ram::new(2 << 20, Backing::default()).unwrap();
        let session = Session::<Connected>::new(stream);
        let mut session = session
            .negotiate("disk0", &Interruption::default())
            .unwrap();
        session.expect_late_calls().unwrap();
        let rings = [ring_start(0), ring_start(1)];
        let session = session.describe(&ram, 1 << 32, (2, 64), &mut None, &rings);
        let session = session.and_then(|session| session.enable(&rings)).unwrap();
        let stopping = std::thread::spawn(move || session.stop().map(drop));
        for queue in 0..2u64 {
            fake.wait_for(FrontendReq::GET_VRING_BASE);
            let (request, message) = fake.seen.recv().unwrap();
            assert_eq!(request, FrontendReq::SET_VRING_CALL);
            assert_eq!(message.payload, queue.to_ne_bytes());
            assert_eq!(message.fds.len(), 1);
        }
        if !answers {
            fake.hang_up();
        }
        assert_eq!(stopping.join().unwrap().is_ok(), answers);
    }
}

#[test]
fn a_ring_is_described_as_the_specification_says() {
    let (stream, fake) = Scripted::disk().start();
    drive(stream).unwrap();
    let words = |message: outboard_protocol::wire::Message| -> Vec<u32> {
        let words = message.payload.chunks(4);
        words
            .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
            .collect()
    };
    let region = words(fake.wait_for(FrontendReq::ADD_MEM_REG));
    assert_eq!(region, [0, 0, 0, 0, 2 << 20, 0, 0, 0, 0, 0]);
    let inflight = words(fake.wait_for(FrontendReq::SET_INFLIGHT_FD));
    assert_eq!(inflight, [4096, 0, 0, 0, 64 << 16 | 2, 0]);
    let size = words(fake.wait_for(FrontendReq::SET_VRING_NUM));
    assert_eq!(size, [0, 64]);
    assert_eq!(words(fake.wait_for(FrontendReq::SET_VRING_BASE)), [0, 7]);
    let address = words(fake.wait_for(FrontendReq::SET_VRING_ADDR));
    assert_eq!(address, [0, 0, 0x1000, 0, 0x3000, 0, 0x2000, 0, 0, 0]);
    let kick = fake.wait_for(FrontendReq::SET_VRING_KICK);
    assert_eq!((kick.fds.len(), &kick.payload[..]), (1, &[0; 8][..]));
    assert_eq!(words(fake.wait_for(FrontendReq::SET_VRING_ENABLE)), [0, 1]);
    fake.join();
}

#[test]
fn requests_of_the_back_end_are_answered_also_while_a_reply_is_awaited() {
    let (stream, fake) = Scripted::disk().start();
    let mut session = Session::<Connected>::new(stream)
        .negotiate("disk0", &Interruption::default())
        .unwrap();
    let theirs = fake.channel.recv_timeout(Duration::from_secs(60)).unwrap();
    let theirs = Connection::new(theirs.into());
    let soon = || Deadline::after(Duration::from_secs(60));
    let ask = |request: BackendReq| {
        let header = Header::request(request.into()).with_need_reply();
        theirs.send(header, &[], &[], soon()).unwrap();
    };
    let answer = || {
        let reply = theirs.recv(soon()).unwrap();
        assert!(reply.header.reply);
        reply.body::<u64>().unwrap()
    };
    for _ in 0..100 {
        ask(BackendReq::CONFIG_CHANGE_MSG);
    }
    let mut answers = 0;
    while answers < 100 {
        session.read_config(60).unwrap();
        session.listen().unwrap();
        assert_eq!(answer(), 0);
        answers += 1;
    }
    let notices = session.take_notices();
    assert!(notices.config_changed && !notices.ring_broken);
    assert_eq!(session.take_notices(), Notices::default());
    ask(BackendReq::SHMEM_MAP);
    session.listen().unwrap();
    assert_eq!(answer(), 1, "refused");
    drop(theirs);
    session.listen().unwrap();
    assert!(session.fds().1.is_none(), "it may close the channel");
    session.read_config(60).unwrap();
}

/// One who asks and reads no answer costs its channel, and nobody's time.
#[test]
fn answers_that_are_not_read_are_not_waited_for() {
    let (stream, fake) = Scripted::disk().start();
    let mut session = Session::<Connected>::new(stream)
        .negotiate("disk0", &Interruption::default())
        .unwrap();
    let theirs = fake.channel.recv_timeout(Duration::from_secs(60)).unwrap();
    let theirs = Connection::new(theirs.into());
    let header = Header::request(BackendReq::CONFIG_CHANGE_MSG.into()).with_need_reply();
    let mut asked = 0;
    while session.fds().1.is_some() {
        asked += 1;
        assert!(asked < 100_000, "an answer always fits");
        let soon = Deadline::after(Duration::from_secs(60));
        theirs.send(header, &[], &[], soon).unwrap();
        session.listen().unwrap();
    }
    let notices = session.take_notices();
    assert!(notices.unread && notices.config_changed);
    let soon = Deadline::after(Duration::from_secs(60));
    let closed = theirs.send(header, &[], &[], soon).unwrap_err();
    assert!(matches!(closed, WireError::Closed), "{closed}");
    // The rest of the session is as good as before.
    assert!(session.read_config(60).unwrap().is_some());
}

#[test]
fn what_may_need_io_is_waited_for_longer_than_what_does_not() {
    let limits = Limits::default();
    let io = [
        FrontendReq::SET_CONFIG,
        FrontendReq::SET_FEATURES,
        FrontendReq::SET_VRING_ENABLE,
        FrontendReq::GET_VRING_BASE,
        FrontendReq::RESET_DEVICE,
    ];
    for request in ANSWERED {
        let wait = limits.wait_for(request);
        let expected = match io.contains(&request) {
            true => limits.answer,
            false => limits.message,
        };
        assert_eq!(wait.limit(), expected, "{request:?}");
        // That is mentioned before the end, and nothing else is.
        assert_eq!(wait.next() < wait.end(), io.contains(&request));
    }
}

/// A back-end obeys in order: without acknowledgements the next answer waits for
/// what was asked before.
#[test]
fn what_follows_an_unanswered_request_may_need_as_long() {
    let (stream, fake) = Scripted::disk()
        .without(Protocol::REPLY_ACK)
        .on(FrontendReq::SET_CONFIG, Fault::Late(Duration::from_secs(3)))
        .start();
    let limits = Limits {
        message: Duration::from_secs(2),
        answer: Duration::from_secs(120),
    };
    let mut session = Session::<Connected>::new(stream)
        .within(limits)
        .negotiate("disk0", &Interruption::default())
        .unwrap();
    session.write_config(32, &[1]).unwrap();
    assert!(session.read_config(60).unwrap().is_some());
    drop(session);
    fake.join();
}

#[test]
fn a_configuration_is_read_whole_or_not_at_all() {
    for len in [60, 256, 300, 4080] {
        let (stream, fake) = Scripted::disk()
            .config((0..len).map(|at| at as u8).collect())
            .start();
        let mut session = Session::<Connected>::new(stream)
            .negotiate("disk0", &Interruption::default())
            .unwrap();
        let config = session.read_config(len).unwrap().unwrap();
        assert!((0..len).all(|at| config[at] == at as u8));
        session.read_config(len + 1).unwrap_err();
        drop(session);
        let asked = fake
            .seen
            .iter()
            .filter(|(r, _)| *r == FrontendReq::GET_CONFIG);
        assert_eq!(asked.count(), 2, "{len}");
    }
}

#[test]
fn a_message_that_nobody_asked_for_ends_the_session() {
    let (stream, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut session = Session::<Connected>::new(stream);
    session.listen().unwrap();
    let soon = Deadline::after(Duration::from_secs(60));
    Connection::new(theirs)
        .send(Header::reply_to(1), &[0; 8], &[], soon)
        .unwrap();
    let error = session.listen().unwrap_err().to_string();
    assert!(error.contains("nobody asked for"), "{error}");
}
