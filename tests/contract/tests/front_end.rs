//! The machine's front-end, message by message, against a back-end that follows
//! a script: what it sends in which order, that it uses nothing that was not
//! negotiated, and that it takes no wrong answer ("Front-end message types").
//!
//! Each fault at each request, and silence, are in the front-end's own tests.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;

use outboard::machine::device::kinds;
use outboard::machine::frontend::{Connected, Interruption, RingStart, Session};
use outboard::machine::memory::{Backing, Ram};
use outboard::machine::virtio::Ring;
use outboard_contract::client::PROTOCOL_FEATURES;
use outboard_contract::scripted::{Fault, Scripted};
use outboard_protocol::devices::Kind;
use outboard_protocol::launch;
use outboard_protocol::wire::{Header, Message};
use vhost::vhost_user::message::{FrontendReq as R, VhostUserProtocolFeatures as P};
use vmm_sys_util::eventfd::EventFd;

const VERSION_1: u64 = 1 << 32;
/// What a device of ours may be asked for.
const PROFILE: [P; 7] = [
    P::MQ,
    P::REPLY_ACK,
    P::BACKEND_REQ,
    P::CONFIG,
    P::INFLIGHT_SHMFD,
    P::RESET_DEVICE,
    P::CONFIGURE_MEM_SLOTS,
];
const QUEUES: u16 = 2;

fn ring(index: u16) -> RingStart {
    RingStart {
        ring: Ring {
            index,
            size: 64,
            descriptors: 0x1000,
            available: 0x2000,
            used: 0x3000,
        },
        base: 7 + index,
        kick: Arc::new(EventFd::new(0).unwrap()),
        call: Arc::new(EventFd::new(0).unwrap()),
        error: Arc::new(EventFd::new(0).unwrap()),
    }
}

/// A device of which nothing is known but its queues and its configuration.
fn spec(queues: u16, config: u32) -> launch::Device {
    launch::Device {
        id: "some0".into(),
        kind: Kind::unnamed(4, config),
        queues,
        fewer: false,
        queue_size: 64,
        hang_timeout: None,
    }
}

fn ram(size: u64) -> Ram {
    Ram::new(size, Backing::default()).unwrap()
}

/// Two drivers, one after the other, do all that a driver can do; the second has
/// other features, and its second ring comes late.
fn drive(script: Scripted, queues: u16) -> (anyhow::Result<()>, Vec<Message>) {
    let (stream, running) = script.start();
    let result = drive_stream(stream, queues);
    (result, running.messages())
}

fn drive_stream(stream: std::os::unix::net::UnixStream, queues: u16) -> anyhow::Result<()> {
    let ram = ram(2 << 20);
    let spec = spec(queues, 8);
    let mut session =
        Session::<Connected>::new(stream).negotiate(&spec.id, &Interruption::default())?;
    kinds::fits(&session.agreement(), &spec)?;
    session.read_config(8)?;
    session.write_config(4, &[1])?;
    let sizes = (queues, 64);
    let all: Vec<_> = (0..queues).map(ring).collect();
    let (first, late) = all.split_at(1);
    let session = session.describe(&ram, VERSION_1, sizes, &mut None, &all)?;
    let session = session.enable(&all)?;
    let (mut session, bases) = session.stop()?;
    assert_eq!(bases.len(), usize::from(queues));
    session.reset_device()?;
    let session = session.describe(&ram, VERSION_1 | 1 << 29, sizes, &mut None, first)?;
    let mut session = session.enable(first)?;
    session.start_rings(late)?;
    let mut session = session.stop()?.0;
    session.reset_device()
}

/// Watches what comes and says what was not legal.
#[derive(Default)]
struct Judge {
    protocol: u64,
    protocol_bit: bool,
    owner: bool,
    features: Option<u64>,
    memory: bool,
    inflight: bool,
    rings: [Told; 2],
}

/// What has been said of a ring.
#[derive(Clone, Copy, Default)]
struct Told {
    num: bool,
    base: bool,
    addr: bool,
    call: bool,
    err: bool,
    kick: bool,
}

impl Judge {
    fn has(&self, feature: P) -> bool {
        self.protocol & feature.bits() != 0
    }

    fn see(&mut self, message: &Message, offered: u64) -> Result<(), String> {
        let request = R::try_from(message.header.request).map_err(|_| "unknown".to_owned())?;
        let payload = &message.payload;
        let word = |at: usize| u32::from_ne_bytes(payload[at..at + 4].try_into().unwrap());
        let number = || u64::from_ne_bytes(payload[..8].try_into().unwrap());
        let (length, fds) = shape(request, message);
        let check = |ok: bool, why: &str| ok.then_some(()).ok_or(format!("{request:?}: {why}"));
        check(payload.len() == length, "payload's length")?;
        check(message.fds.len() == fds, "number of descriptors")?;
        check(!message.header.reply, "reply flag")?;
        // The acknowledgement of protocol features comes before their use.
        let asks = message.header.need_reply;
        check(!asks || self.has(P::REPLY_ACK), "need_reply not negotiated")?;
        let has_bit = self.features.unwrap_or(0) & PROTOCOL_FEATURES != 0;
        match request {
            R::GET_FEATURES => {}
            R::GET_PROTOCOL_FEATURES => check(offered & PROTOCOL_FEATURES != 0, "not offered")?,
            R::SET_PROTOCOL_FEATURES => {
                self.protocol = number();
                self.protocol_bit = true;
            }
            R::SET_OWNER => self.owner = true,
            R::GET_QUEUE_NUM => check(self.has(P::MQ), "without MQ")?,
            R::SET_BACKEND_REQ_FD => check(self.has(P::BACKEND_REQ), "without BACKEND_REQ")?,
            R::GET_CONFIG | R::SET_CONFIG => check(self.has(P::CONFIG), "without CONFIG")?,
            R::SET_FEATURES => {
                check(number() & !offered == 0, "features not offered")?;
                check(self.owner, "before SET_OWNER")?;
                self.features = Some(number());
            }
            R::GET_MAX_MEM_SLOTS | R::ADD_MEM_REG => {
                check(self.has(P::CONFIGURE_MEM_SLOTS), "without memory slots")?;
                self.memory |= request == R::ADD_MEM_REG;
            }
            R::SET_MEM_TABLE => self.memory = true,
            R::GET_INFLIGHT_FD => check(self.has(P::INFLIGHT_SHMFD), "without INFLIGHT")?,
            R::SET_INFLIGHT_FD => {
                check(self.has(P::INFLIGHT_SHMFD), "without INFLIGHT")?;
                check(self.rings.iter().all(|ring| !ring.kick), "while rings run")?;
                self.inflight = true;
            }
            R::RESET_DEVICE => {
                check(self.has(P::RESET_DEVICE), "without RESET_DEVICE")?;
                self.features = None;
            }
            _ => {
                check(self.features.is_some(), "before SET_FEATURES")?;
                check(self.memory, "before memory")?;
                let tracked = !self.has(P::INFLIGHT_SHMFD) || self.inflight;
                let ring = &mut self.rings[word(0) as usize & 0xff];
                match request {
                    R::SET_VRING_NUM => ring.num = true,
                    R::SET_VRING_BASE => ring.base = true,
                    R::SET_VRING_ADDR => ring.addr = true,
                    R::SET_VRING_CALL => ring.call = true,
                    R::SET_VRING_ERR => ring.err = true,
                    // This lets the ring run as soon as it is enabled.
                    R::SET_VRING_KICK => {
                        let all = ring.num && ring.base && ring.addr && ring.call && ring.err;
                        check(all && tracked, "before all is said")?;
                        ring.kick = true;
                    }
                    R::SET_VRING_ENABLE => {
                        check(has_bit, "without the protocol features' bit")?;
                        check(ring.kick == (word(4) == 1), "of a ring in the other state")?;
                    }
                    R::GET_VRING_BASE => *ring = Told::default(),
                    _ => return Err(format!("{request:?} is not of the profile")),
                }
            }
        }
        Ok(())
    }
}

/// Length of payload and number of descriptors ("Payload", "Communication").
fn shape(request: R, message: &Message) -> (usize, usize) {
    match request {
        R::SET_FEATURES | R::SET_PROTOCOL_FEATURES => (8, 0),
        R::SET_VRING_NUM | R::SET_VRING_BASE | R::GET_VRING_BASE | R::SET_VRING_ENABLE => (8, 0),
        R::SET_VRING_KICK | R::SET_VRING_CALL | R::SET_VRING_ERR => (8, 1),
        R::SET_VRING_ADDR => (40, 0),
        R::SET_MEM_TABLE => (
            8 + 32 * message.fds.len().clamp(1, 8),
            message.fds.len().max(1),
        ),
        R::ADD_MEM_REG => (40, 1),
        R::GET_CONFIG => (12 + 8, 0),
        R::SET_CONFIG => (12 + 1, 0),
        R::GET_INFLIGHT_FD => (24, 0),
        R::SET_INFLIGHT_FD => (24, 1),
        R::SET_BACKEND_REQ_FD => (0, 1),
        _ => (0, 0),
    }
}

/// Every set of these bits.
fn subsets() -> impl Iterator<Item = u64> {
    (0..1u64 << PROFILE.len()).map(|choice| {
        let chosen = PROFILE.iter().enumerate();
        let chosen = chosen.filter(|(at, _)| choice & 1 << at != 0);
        chosen.fold(0, |bits, (_, feature)| bits | feature.bits())
    })
}

#[test]
fn nothing_is_used_that_was_not_negotiated_whatever_is_offered() {
    let ours = PROFILE
        .iter()
        .fold(0, |bits, feature| bits | feature.bits());
    for (at, bits) in subsets().enumerate() {
        // Others beside them, in-band notifications and unknown ones too.
        let foreign = if at % 2 == 0 { 0 } else { !ours };
        let queues = if bits & P::MQ.bits() == 0 { 1 } else { QUEUES };
        let features = VERSION_1 | 1 << 29;
        let script = Scripted::new(features, QUEUES, vec![0; 8]).protocol(bits | foreign);
        let (result, messages) = drive(script, queues);
        result.unwrap_or_else(|error| panic!("{bits:#x}: {error:#}"));
        let mut judge = Judge::default();
        for message in &messages {
            let offered = features | PROTOCOL_FEATURES;
            if let Err(why) = judge.see(message, offered) {
                panic!("with protocol features {bits:#x}: {why}");
            }
        }
        assert_eq!(judge.protocol, bits, "only what is known is acknowledged");
        assert!(judge.memory && judge.features.is_some() != judge.has(P::RESET_DEVICE));
    }
}

/// PROTOCOL.md, section 3: the order, whole.
#[test]
fn a_session_has_the_order_that_is_promised() {
    let ours = PROFILE
        .iter()
        .fold(0, |bits, feature| bits | feature.bits());
    let script = Scripted::new(VERSION_1 | 1 << 29, 1, vec![0; 8]).protocol(ours);
    let (result, messages) = drive(script, 1);
    result.unwrap();
    let numbers = messages.iter().map(|message| message.header.request);
    let requests: Vec<_> = numbers.map(|number| R::try_from(number).unwrap()).collect();
    let fits = [
        R::GET_FEATURES,
        R::GET_PROTOCOL_FEATURES,
        R::SET_PROTOCOL_FEATURES,
        R::GET_QUEUE_NUM,
        R::SET_BACKEND_REQ_FD,
        R::SET_OWNER,
        R::GET_CONFIG,
    ];
    let memory = [R::GET_MAX_MEM_SLOTS, R::ADD_MEM_REG];
    let ring = [
        R::SET_VRING_NUM,
        R::SET_VRING_BASE,
        R::SET_VRING_ADDR,
        R::SET_VRING_ERR,
        R::SET_VRING_CALL,
        R::SET_VRING_KICK,
        R::SET_VRING_ENABLE,
        // Its answer says that the ring is enabled and can be kicked.
        R::GET_FEATURES,
    ];
    let stop = [R::GET_VRING_BASE, R::SET_VRING_ENABLE, R::RESET_DEVICE];
    let inflight = [R::GET_INFLIGHT_FD, R::SET_INFLIGHT_FD];
    let start: &[R] = &[R::SET_FEATURES];
    let parts: [&[R]; 11] = [
        &fits,
        &[R::SET_CONFIG],
        start,
        &memory,
        &inflight,
        &ring,
        &stop,
        // The second driver: memory is there still, the region is fresh.
        start,
        &inflight,
        &ring,
        &stop,
    ];
    assert_eq!(requests, parts.concat());
}

#[test]
fn answers_that_come_a_byte_at_a_time_are_answers() {
    let asked = [
        R::GET_FEATURES,
        R::GET_QUEUE_NUM,
        R::SET_FEATURES,
        R::GET_MAX_MEM_SLOTS,
    ];
    let script = Scripted::new(VERSION_1 | 1 << 29, 1, vec![0; 8]);
    let script = { asked }
        .into_iter()
        .fold(script, |script, request| script.on(request, Fault::Dribble));
    drive(script, 1).0.unwrap();
}

#[test]
fn queue_numbers_are_believed_as_far_as_they_go() {
    for (queues, works) in [
        (u64::MAX, true),
        (1 << 32, true),
        (2, true),
        (1, false),
        (0, false),
    ] {
        let reply = Fault::Payload(queues.to_ne_bytes().to_vec());
        let script = Scripted::new(VERSION_1 | 1 << 29, 2, vec![0; 8]).on(R::GET_QUEUE_NUM, reply);
        let (result, _) = drive(script, 2);
        assert_eq!(result.is_ok(), works, "{queues}: {result:?}");
    }
}

/// More than the 32-bit hole leaves is two regions; memory is not touched here.
#[test]
fn memory_in_two_regions_is_lent_by_table_or_by_slots() {
    let ram = ram(5 << 30);
    for (protocol, slots, works) in [
        (P::empty(), 0, true),
        (P::CONFIGURE_MEM_SLOTS, 2, true),
        (P::CONFIGURE_MEM_SLOTS, u64::MAX, true),
        (P::CONFIGURE_MEM_SLOTS, 1, false),
        (P::CONFIGURE_MEM_SLOTS, 0, false),
    ] {
        let reply = Fault::Payload(u64::to_ne_bytes(slots).to_vec());
        let script = Scripted::new(VERSION_1, 1, vec![])
            .protocol((protocol | P::REPLY_ACK).bits())
            .on(R::GET_MAX_MEM_SLOTS, reply);
        let (stream, running) = script.start();
        let session = Session::<Connected>::new(stream)
            .negotiate("some0", &Interruption::default())
            .unwrap();
        let rings = [ring(0)];
        let described = session.describe(&ram, VERSION_1, (1, 64), &mut None, &rings);
        let result = described.and_then(|session| session.enable(&rings));
        let result = result.map(drop).map_err(|error| format!("{error:#}"));
        let memory = [R::SET_MEM_TABLE, R::ADD_MEM_REG].map(u32::from);
        let messages = running.messages();
        let memory = messages
            .iter()
            .filter(|m| memory.contains(&m.header.request));
        let fds: Vec<_> = memory.map(|message| message.fds.len()).collect();
        match (works, protocol.is_empty()) {
            (false, _) => {
                let error = result.unwrap_err();
                let text = format!("{slots} memory slots, the guest's memory needs 2");
                assert!(error.contains(&text), "{error}");
                assert!(fds.is_empty(), "a part is not lent");
            }
            (true, true) => assert_eq!(fds, [2]),
            (true, false) => assert_eq!(fds, [1, 1]),
        }
    }
}

#[test]
fn inflight_regions_that_cannot_be_are_refused() {
    let padded = |size: u64, offset: u64| {
        let mut payload = [size.to_ne_bytes(), offset.to_ne_bytes()].concat();
        payload.extend([1, 0, 64, 0, 0, 0, 0, 0]);
        payload
    };
    let cases = [
        (Fault::WithFds(padded(4096, 0), 1), true),
        (Fault::WithFds(padded(4096, 0)[..20].to_vec(), 1), true),
        (Fault::Payload(padded(4096, 0)), false),
        (Fault::WithFds(padded(4096, 0), 2), false),
        (Fault::WithFds(padded(4096, 0), 8), false),
        (Fault::WithFds(padded(0, 0), 1), false),
        (Fault::Payload(padded(0, 0)), false),
        (Fault::WithFds(padded(u64::MAX, 1), 1), false),
        (Fault::WithFds(padded(4096, 0)[..19].to_vec(), 1), false),
        (Fault::WithFds(vec![], 1), false),
    ];
    for (action, works) in cases {
        let script = Scripted::new(VERSION_1 | 1 << 29, 1, vec![0; 8])
            .protocol((P::INFLIGHT_SHMFD | P::CONFIG).bits())
            .on(R::GET_INFLIGHT_FD, action.clone());
        let (result, messages) = drive(script, 1);
        assert_eq!(result.is_ok(), works, "{action:?}: {result:?}");
        let started: u32 = R::SET_VRING_KICK.into();
        let started = messages.iter().any(|m| m.header.request == started);
        assert_eq!(started, works, "no ring runs without its region");
    }
}

#[test]
fn configuration_of_another_place_or_length_is_refused() {
    let reply = |offset: u32, size: u32, bytes: usize| {
        let mut payload = [offset, size, 0].map(u32::to_ne_bytes).concat();
        payload.resize(12 + bytes, 0);
        Fault::Payload(payload)
    };
    for (action, works) in [
        (reply(0, 8, 8), true),
        (reply(0, 8, 7), false),
        (reply(0, 8, 9), false),
        (reply(0, 7, 8), false),
        (reply(4, 8, 8), false),
        (reply(0, 0, 0), false),
        (reply(0, u32::MAX, 8), false),
        (Fault::Payload(vec![0; 11]), false),
        (Fault::Payload(vec![]), false),
        (Fault::WithFds(vec![0; 20], 1), false),
    ] {
        let script =
            Scripted::new(VERSION_1 | 1 << 29, 1, vec![0; 8]).on(R::GET_CONFIG, action.clone());
        let (result, _) = drive(script, 1);
        assert_eq!(result.is_ok(), works, "{action:?}: {result:?}");
    }
}

/// A back-end may answer each piece with what lies at its start, and say that it
/// is the piece: nothing is asked for in pieces.
#[test]
fn a_configuration_is_asked_for_once_and_whole() {
    for length in [8, 256, 257, 1024, 4080] {
        let config: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let script = Scripted::new(VERSION_1, 1, config.clone());
        let (stream, running) = script.start();
        let mut session = Session::<Connected>::new(stream)
            .negotiate("some0", &Interruption::default())
            .unwrap();
        let read = session.read_config(length as usize).unwrap();
        assert_eq!(read, Some(config));
        drop(session);
        let number = u32::from(R::GET_CONFIG);
        let messages = running.messages();
        let mut asked = messages.iter().filter(|m| m.header.request == number);
        let head = [0, length, 0].map(u32::to_ne_bytes).concat();
        assert_eq!(asked.next().unwrap().payload[..12], head);
        assert!(asked.next().is_none());
    }
}

/// What a front-end has no use for is an error to it: descriptors would pile up,
/// and what comes unasked belongs to no question.
#[test]
fn an_answer_is_one_answer_and_its_own() {
    let header = |request: R, flags: u32, size: u32| {
        [u32::from(request), flags, size]
            .map(u32::to_ne_bytes)
            .concat()
    };
    let number = (VERSION_1 | PROTOCOL_FEATURES).to_ne_bytes();
    let two = [header(R::GET_FEATURES, 5, 8), number.to_vec()]
        .concat()
        .repeat(2);
    let cases = [
        // Version, flags, request, size.
        [header(R::GET_FEATURES, 4, 8), number.to_vec()].concat(),
        [header(R::GET_FEATURES, 1, 8), number.to_vec()].concat(),
        [header(R::GET_FEATURES, 13, 8), number.to_vec()].concat(),
        [header(R::GET_FEATURES, 0x15, 8), number.to_vec()].concat(),
        [header(R::GET_QUEUE_NUM, 5, 8), number.to_vec()].concat(),
        header(R::GET_FEATURES, 5, 0),
        header(R::GET_FEATURES, 5, 4097),
        header(R::GET_FEATURES, 5, u32::MAX),
        two,
    ];
    for bytes in cases {
        let script = Scripted::new(0, 1, vec![]).on(R::GET_FEATURES, Fault::Raw(bytes.clone()));
        let (result, messages) = drive(script, 1);
        assert!(result.is_err(), "{bytes:?}");
        let same = Header::request(R::GET_FEATURES.into());
        assert_eq!(messages[0].header, same);
    }
}
