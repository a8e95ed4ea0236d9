mod causes;
mod recovery;
mod standbys;
mod swaps;
mod watch;

use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;
use nix::poll::PollFlags;
use outboard_contract::scripted::{Fault, Running, Scripted};
use outboard_protocol::Deadline;
use outboard_protocol::devices::{BlkConfig, Kind};
use outboard_protocol::launch::{Cause, Restored, Whose};
use outboard_protocol::wire::{Connection, Header, WireError};
use proptest::prelude::*;
use vhost::vhost_user::message::{BackendReq, FrontendReq, VhostUserProtocolFeatures as Protocol};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::machine::ending::End;
use crate::machine::frontend::{Connected, Limits, Session};
use crate::machine::gate::Gate;
use crate::machine::kvm::doorbell::{Address, Doorbell};
use crate::machine::layout;
use crate::machine::memory::{Backing, Ram};
use crate::machine::pci::{Host, Targets};
use crate::machine::virtio::status;

const PATIENCE: Duration = Duration::from_secs(60);
/// BAR 0 of slot 1, from the start of the memory window.
const BAR: u64 = 0x8000;
const CONFIG: u64 = BAR + 0x2000;
const NOTIFY: u64 = BAR + 0x3000;
const TABLE: u64 = BAR + 0x4000;
const PENDING: u64 = BAR + 0x7000;
const USED: u64 = 0x3000;

fn newcomer(number: u64, session: Session<Connected>) -> Newcomer {
    let restored = Restored::Nothing;
    Newcomer {
        replaces: None,
        number,
        session,
        restored,
    }
}

/// A device on a bus, and the test as its driver.
struct Bench {
    vm: Arc<VmFd>,
    ram: Arc<Ram>,
    gate: Arc<Gate>,
    events: Arc<Mailbox<FromMachine>>,
    unheard: Mutex<VecDeque<FromMachine>>,
    device: Device,
    bus: Targets,
}

impl Bench {
    fn new() -> Option<Self> {
        Self::with(launch::KickPath::Kvm)
    }

    fn with(kick_path: launch::KickPath) -> Option<Self> {
        let spec = spec(Kind::blk(), 2, false);
        Self::made(spec, kick_path)
    }

    fn of(spec: launch::Device) -> Option<Self> {
        Self::made(spec, launch::KickPath::Kvm)
    }

    fn made(spec: launch::Device, kick_path: launch::KickPath) -> Option<Self> {
        let vm = match Kvm::new().and_then(|kvm| kvm.create_vm()) {
            Ok(vm) => Arc::new(vm),
            Err(error) => {
                eprintln!("SKIP: no usable /dev/kvm: {error}");
                return None;
            }
        };
        vm.create_irq_chip().unwrap();
        let ram = Arc::new(Ram::new(2 << 20, Backing::default()).unwrap());
        let routes = Routes::new(Arc::clone(&vm)).unwrap();
        let gate = Gate::new(1, &Arc::new(End::new().unwrap())).unwrap();
        let gate = Arc::new(gate);
        let events = Arc::new(Mailbox::new().unwrap());
        let surroundings = Surroundings {
            doorbell: launch::Doorbell::Mmio,
            kick_path,
            ram: Arc::clone(&ram),
            vm: Arc::clone(&vm),
            routes,
            gate: Arc::clone(&gate),
            events: Arc::clone(&events),
        };
        let device = Device::new(&spec, &surroundings).unwrap();
        let mut host = Host::new();
        host.add(device.function()).unwrap();
        let bus = host.targets();
        let ecam = 1 << 15;
        bus.ecam.write(ecam + 4, &[6, 0]);
        Some(Self {
            vm,
            ram,
            gate,
            events,
            unheard: Mutex::default(),
            device,
            bus,
        })
    }

    fn attach(&self, fake: Scripted) -> Running {
        self.attach_within(fake, Limits::default(), Whose::default())
    }

    fn attach_within(&self, fake: Scripted, limits: Limits, whose: Whose) -> Running {
        let (stream, running) = fake.start();
        let session = Session::new(stream).within(limits).of(whose);
        self.device.attach(newcomer(1, session));
        running
    }

    fn attached(&self, fake: Scripted) -> Running {
        self.attached_within(fake, Limits::default(), Whose::default())
    }

    fn attached_within(&self, fake: Scripted, limits: Limits, whose: Whose) -> Running {
        let running = self.attach_within(fake, limits, whose);
        let device = "disk0".into();
        assert_eq!(self.event(), FromMachine::Attached { device, session: 1 });
        running
    }

    /// What is told next.
    fn next(&self) -> FromMachine {
        let mut unheard = self.unheard.lock().unwrap();
        eventually(|| {
            unheard.extend(self.events.take());
            !unheard.is_empty()
        });
        unheard.pop_front().unwrap()
    }

    /// The same, but for what was agreed on.
    fn event(&self) -> FromMachine {
        loop {
            match self.next() {
                FromMachine::Agreed { .. } => {}
                event => return event,
            }
        }
    }

    /// All that has been told and not been looked at, but for what was agreed on.
    fn told(&self) -> Vec<FromMachine> {
        let mut told: Vec<_> = std::mem::take(&mut *self.unheard.lock().unwrap()).into();
        told.extend(heard(&self.events));
        told.retain(|event| !matches!(event, FromMachine::Agreed { .. }));
        told
    }

    /// What was agreed on next: features, and whether there is a record of requests.
    fn agreed(&self) -> (Option<u64>, bool) {
        match self.next() {
            FromMachine::Agreed {
                features, tracked, ..
            } => (features, tracked),
            other => panic!("{other:?}"),
        }
    }

    fn lost(&self) -> String {
        match self.event() {
            FromMachine::Lost { text, .. } => text,
            other => panic!("{other:?}"),
        }
    }

    fn read(&self, offset: u64, len: usize) -> u64 {
        let mut bytes = [0; 8];
        self.bus.memory.read(offset, &mut bytes[..len]);
        u64::from_le_bytes(bytes)
    }

    fn write(&self, offset: u64, value: u64, len: usize) {
        self.bus.memory.write(offset, &value.to_le_bytes()[..len]);
    }

    fn status(&self) -> u8 {
        self.read(BAR + 20, 1) as u8
    }

    /// Brings the driver up with queue 0, its vector 1, the configuration's 0.
    fn drive(&self) {
        self.drive_at(0x1000);
    }

    fn drive_at(&self, descriptors: u64) {
        self.drive_ring([descriptors, 0x2000, USED], 0);
    }

    /// As [`Self::drive`], with these features below bit 32.
    fn drive_with(&self, features: u64) {
        self.drive_ring([0x1000, 0x2000, USED], features);
    }

    fn drive_ring(&self, parts: [u64; 3], features: u64) {
        self.write(BAR + 20, 3, 1);
        self.write(BAR + 8, 0, 4);
        self.write(BAR + 12, features, 4);
        self.write(BAR + 8, 1, 4);
        self.write(BAR + 12, 1, 4);
        self.write(BAR + 20, 11, 1);
        assert_eq!(self.status(), 11);
        self.write(BAR + 16, 0, 2);
        self.write(BAR + 22, 0, 2);
        self.write(BAR + 26, 1, 2);
        for (at, address) in [32, 40, 48].into_iter().zip(parts) {
            self.write(BAR + at, address, 8);
        }
        self.write(BAR + 28, 1, 2);
        self.write(BAR + 20, 15, 1);
    }

    /// What the used ring of queue 0 says.
    fn uses(&self, index: u16) {
        let used = GuestAddress(USED + 2);
        self.ram.guest().write_obj(index, used).unwrap();
    }

    fn reset(&self) {
        self.write(BAR + 20, 0, 1);
        eventually(|| self.status() == 0);
    }

    /// Whoever served is gone; the driver resets the device.
    fn vacate_and_reset(&self) {
        self.device.is_vacant(u64::MAX);
        self.reset();
        let device = "disk0".into();
        assert_eq!(self.event(), FromMachine::Free { device });
    }

    /// Whether KVM has a doorbell at this guest-physical address.
    fn has_doorbell(&self, address: u64) -> bool {
        let event = EventFd::new(0).unwrap();
        Doorbell::register(&self.vm, Address::Memory(address), &Arc::new(event)).is_err()
    }

    /// Pending bits of vectors 0 to 7. MSI-X is off, so none is delivered.
    fn pending(&self) -> u8 {
        self.read(PENDING, 1) as u8
    }
}

/// A device with this many queues, or with fewer.
fn spec(kind: Kind, queues: u16, fewer: bool) -> launch::Device {
    launch::Device {
        id: "disk0".into(),
        kind,
        queues,
        fewer,
        queue_size: 64,
        hang_timeout: None,
    }
}

fn eventually(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_driver_and_back_end_agree_on_is_told() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    let features = bench.device.function().with_registers(|it| it.offered());
    assert_eq!(bench.agreed(), (None, true));
    bench.drive();
    let (acknowledged, tracked) = bench.agreed();
    let acknowledged = acknowledged.unwrap();
    assert!(tracked && acknowledged != 0 && acknowledged & !features == 0);
    bench.reset();
    assert_eq!(bench.agreed(), (None, true));
    bench.device.stop();
    fake.join();
}

#[test]
fn a_driver_comes_and_goes_as_often_as_it_likes() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    assert_eq!(bench.read(CONFIG, 8), 2048, "capacity");
    assert_eq!(bench.read(CONFIG + 34, 2), 2, "queues, not the fake's 4");
    for _ in 0..3 {
        bench.drive();
        let kick = fake.wait_for(FrontendReq::SET_VRING_KICK);
        assert_eq!(kick.fds.len(), 1);
        fake.wait_for(FrontendReq::SET_VRING_ENABLE);
        bench.reset();
        fake.wait_for(FrontendReq::RESET_DEVICE);
    }
    bench.device.stop();
    fake.join();
}

#[test]
fn a_reset_is_not_done_before_the_back_end_has_let_go() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    // The fake says that it has stopped at 0; by the ring it is 5 short of that.
    bench.uses(0u16.wrapping_sub(5));
    bench.write(BAR + 20, 0, 1);
    fake.wait_for(FrontendReq::GET_VRING_BASE);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(bench.status(), 15, "requests are still under way");
    bench.uses(0u16);
    eventually(|| bench.status() == 0);
}

#[test]
fn a_back_end_that_is_silent_at_a_reset_is_lost_and_the_reset_done_once_it_is_gone() {
    let Some(bench) = Bench::new() else { return };
    let silent = Scripted::disk().on(FrontendReq::GET_VRING_BASE, Fault::Silence);
    let limits = Limits {
        answer: Duration::from_secs(1),
        ..Limits::default()
    };
    let _fake = bench.attached_within(silent, limits, Whose::Own);
    bench.drive();
    bench.write(BAR + 20, 0, 1);
    assert!(bench.lost().contains("silent: GET_VRING_BASE"));
    // It may still write into what the guest is about to use for other things.
    std::thread::sleep(Duration::from_millis(50));
    assert_ne!(bench.status(), 0);
    bench.device.is_vacant(1);
    eventually(|| bench.status() == 0);
    let device = "disk0".into();
    assert_eq!(bench.event(), FromMachine::Free { device });
}

#[test]
fn a_back_end_that_goes_is_lost_and_one_for_a_fresh_driver_may_follow() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attach(Scripted::disk().queues(1));
    let advice = "the back-end offers 1 queue, 2 were asked: use queues=1";
    assert_eq!(bench.lost(), advice);
    fake.join();
    let fake = bench.attached(Scripted::disk().on(FrontendReq::SET_VRING_ENABLE, Fault::Close));
    bench.drive();
    assert!(bench.lost().contains("closed its connection"));
    fake.join();
    bench.vacate_and_reset();
    let fake = bench.attached(Scripted::disk());
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
}

#[test]
fn a_number_that_nobody_asked_for_becomes_what_the_back_end_has() {
    let fewer = spec(Kind::blk(), 4, true);
    for (has, gets) in [(1, 1), (3, 3), (8, 4)] {
        let Some(bench) = Bench::of(fewer.clone()) else {
            return;
        };
        // Whatever number its configuration has.
        let config = BlkConfig {
            num_queues: 8,
            ..BlkConfig::default()
        };
        let _fake = bench.attached(
            Scripted::disk()
                .queues(has)
                .config(config.to_bytes().to_vec()),
        );
        assert_eq!(bench.read(CONFIG + 34, 2), gets, "of {has}");
    }
}

#[test]
fn a_card_s_pairs_are_those_asked_for_or_it_is_refused() {
    let asked = spec(Kind::net(), 9, false);
    let card = Scripted::disk()
        .with(1 << 5 | 1 << 17 | 1 << 22)
        .queues(5)
        .config([&[0; 8][..], &[2, 0, 0, 0]].concat());
    let Some(bench) = Bench::of(asked.clone()) else {
        return;
    };
    let _refused = bench.attach(card.clone());
    let words = "the back-end offers 2 pairs of queues, 4 were asked: use queues=2";
    assert_eq!(bench.lost(), words);
    let nobody_asked = Bench::of(launch::Device {
        fewer: true,
        ..asked
    });
    let _served = nobody_asked.unwrap().attached(card);
}

#[test]
fn a_changed_configuration_reaches_the_driver_with_an_interrupt() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    let generation = bench.read(BAR + 21, 1);
    // The driver scribbles over its view; the fake's answer puts it right.
    bench.write(CONFIG, 7, 8);
    assert_eq!(bench.read(CONFIG, 8), 7);
    eventually(|| bench.read(CONFIG, 8) == 2048);
    eventually(|| bench.read(BAR + 21, 1) == generation + 1);
    // Vector 1 waits too: every start owes one call.
    eventually(|| bench.pending() == 0b11);
    // A notice without a change is no change.
    let theirs = fake.channel.recv_timeout(PATIENCE).unwrap();
    let notice = Header::request(BackendReq::CONFIG_CHANGE_MSG.into());
    let deadline = Deadline::after(PATIENCE);
    let channel = Connection::new(theirs.into());
    channel.send(notice, &[], &[], deadline).unwrap();
    fake.wait_for(FrontendReq::GET_CONFIG);
    fake.wait_for(FrontendReq::GET_CONFIG);
    assert_eq!(bench.read(BAR + 21, 1), generation + 1);
}

/// A back-end may end its session over it.
#[test]
fn what_no_driver_may_write_is_not_passed_on() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    bench.drive();
    bench.write(CONFIG, 7, 8);
    bench.write(CONFIG + 32, 1, 1);
    eventually(|| bench.read(CONFIG, 8) == 2048);
    bench.reset();
    assert!(!fake.has_come(FrontendReq::SET_CONFIG));
}

#[test]
fn a_ring_that_the_back_end_gives_up_or_that_lies_nowhere_needs_a_reset() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    let broken = 15 | status::NEEDS_RESET;
    bench.drive();
    let error = fake.wait_for(FrontendReq::SET_VRING_ERR).fds.remove(0);
    nix::unistd::write(&error, &1u64.to_ne_bytes()).unwrap();
    eventually(|| bench.status() == broken);
    assert_eq!(bench.pending() & 1, 1);
    bench.reset();
    assert_eq!(bench.pending(), 0);
    for descriptors in [0x1008, 2 << 20, layout::PCI_MEMORY.start] {
        bench.drive_at(descriptors);
        eventually(|| bench.status() == broken);
        bench.reset();
    }
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
}

/// MSI-X on, a vector with a message and unmasked; where the capability is.
fn unmask(bench: &Bench, vector: u64) -> u64 {
    let ecam = 1 << 15;
    let msix = (0x40..0x100u64)
        .find(|at| {
            let mut bytes = [0; 4];
            bench.bus.ecam.read(ecam + at, &mut bytes);
            bytes[0] == 0x11 && bytes[2..] == [2, 0]
        })
        .unwrap();
    bench.bus.ecam.write(ecam + msix + 2, &[0, 0x80]);
    let entry = TABLE + 16 * vector;
    bench.write(entry, 0xfee0_0000, 8);
    bench.write(entry + 8, 0x41, 4);
    bench.write(entry + 12, 0, 4);
    msix
}

#[test]
fn a_masked_call_waits_in_its_eventfd_and_goes_when_it_is_unmasked() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    let ecam = 1 << 15;
    let msix = unmask(&bench, 1);
    bench.drive();
    let call = fake.wait_for(FrontendReq::SET_VRING_CALL).fds.remove(0);
    let ring = || {
        nix::unistd::write(&call, &1u64.to_ne_bytes()).unwrap();
    };
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    ring();
    assert_eq!(bench.pending(), 0, "delivered");
    for (mask, unmask) in [
        (&[0, 0xc0][..], &[0, 0x80][..]),
        (&[0, 0][..], &[0, 0x80][..]),
    ] {
        bench.bus.ecam.write(ecam + msix + 2, mask);
        assert_eq!(bench.pending(), 0, "nothing waits");
        ring();
        assert_eq!(bench.pending(), 0b10);
        bench.bus.ecam.write(ecam + msix + 2, unmask);
        assert_eq!(bench.pending(), 0, "delivered");
    }
    bench.write(TABLE + 28, 1, 4);
    ring();
    assert_eq!(bench.pending(), 0b10);
    // A message that no local APIC takes is not an error, only not delivered.
    bench.write(TABLE + 16, 0xffff_ffff_ffff_ffff, 8);
    bench.write(TABLE + 28, 0, 4);
    bench.write(TABLE + 28, 1, 4);
    bench.write(TABLE + 16, 0xfee0_0000, 8);
    bench.write(TABLE + 28, 0, 4);
    assert_eq!(bench.pending(), 0);
}

#[test]
fn a_kick_through_the_window_restarts_the_ring_and_one_at_the_doorbell_does_not() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    bench.write(NOTIFY, 0, 2);
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    // What exits at a registered doorbell exited before that was registered.
    bench.write(NOTIFY, 0, 2);
    let ecam = 1 << 15;
    let window = (0x40..0x100u64)
        .step_by(4)
        .find(|at| {
            let mut bytes = [0; 4];
            bench.bus.ecam.read(ecam + at, &mut bytes);
            bytes[0] == 9 && bytes[3] == 5
        })
        .unwrap();
    bench.bus.ecam.write(ecam + window + 4, &[0]);
    bench
        .bus
        .ecam
        .write(ecam + window + 8, &0x3000u32.to_le_bytes());
    bench
        .bus
        .ecam
        .write(ecam + window + 12, &2u32.to_le_bytes());
    bench.bus.ecam.write(ecam + window + 16, &[0, 0]);
    // One stop, for the one kick; then a fresh kick eventfd.
    fake.wait_for(FrontendReq::GET_VRING_BASE);
    fake.wait_for(FrontendReq::SET_VRING_KICK);
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    bench.reset();
    let rest: Vec<_> = fake.seen.try_iter().map(|(request, _)| request).collect();
    let stops = rest.iter().filter(|r| **r == FrontendReq::GET_VRING_BASE);
    assert_eq!(stops.count(), 1, "the reset's own: {rest:?}");
}

#[test]
fn stopping_does_not_wait_for_a_silent_back_end() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attach(
        Scripted::disk()
            .on(FrontendReq::GET_FEATURES, Fault::Silence)
            .protocol(0),
    );
    fake.wait_for(FrontendReq::GET_FEATURES);
    let Bench { device, events, .. } = bench;
    device.stop();
    fake.join();
    assert!(heard(&events).is_empty(), "that is not a loss");
}

#[test]
fn doorbells_are_where_the_bar_is_and_only_while_they_can_be_rung() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    let ecam = 1 << 15;
    let start = layout::PCI_MEMORY.start;
    let bar = |address: u32| bench.bus.ecam.write(ecam + 0x10, &address.to_le_bytes());
    let command = |bits: u8| bench.bus.ecam.write(ecam + 4, &[bits, 0]);
    let here = start + NOTIFY;
    assert!(!bench.has_doorbell(here), "no session needs one");
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    assert!(bench.has_doorbell(here));
    assert!(!bench.has_doorbell(here + 4), "queue 1 is not enabled");
    bar(u32::MAX);
    let mut size = [0; 4];
    bench.bus.ecam.read(ecam + 0x10, &mut size);
    assert_eq!(u32::from_le_bytes(size), 0xffff_8000);
    assert!(bench.has_doorbell(here), "sizing moves nothing");
    bar((start + 0x10_0000) as u32);
    // The move is made good by the kick that a restart owes: the ring goes on
    // where it was.
    let base = Cell::new(0u16);
    let served = |index: u16| {
        base.set(index);
        fake.stop_at(index);
        bench.uses(index);
    };
    let restarted = || {
        fake.wait_for(FrontendReq::GET_VRING_BASE);
        let message = fake.wait_for(FrontendReq::SET_VRING_BASE);
        assert_eq!(message.payload[4..6], base.get().to_ne_bytes());
        fake.wait_for(FrontendReq::SET_VRING_KICK);
        fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    };
    restarted();
    assert!(!bench.has_doorbell(here));
    assert!(bench.has_doorbell(start + 0x10_0000 + 0x3000));
    for outside in [0, 0x10_0000, 0xfee0_0000u32, 0xdfff_c000 + 0x8000] {
        bar(outside);
        assert!(!bench.has_doorbell(u64::from(outside & !0x7fff) + 0x3000));
        let mut bytes = [0xff; 4];
        bench.bus.memory.read(0x10_0000, &mut bytes);
        assert_eq!(bytes, [0xff; 4], "nobody answers");
    }
    command(4);
    bar((start + BAR) as u32);
    assert!(!bench.has_doorbell(here), "decoding is off");
    served(9);
    command(6);
    restarted();
    assert!(bench.has_doorbell(here));
    let queues = || {
        let mut bytes = [0xff; 2];
        bench.bus.memory.read(BAR + 18, &mut bytes);
        u16::from_le_bytes(bytes)
    };
    assert_eq!(queues(), 2);
    command(4);
    assert_eq!(queues(), u16::MAX, "nobody answers");
    assert!(!bench.has_doorbell(here));
    command(6);
    restarted();
    assert_eq!(queues(), 2);
    bench.reset();
    assert!(!bench.has_doorbell(here), "no session needs one");
}

/// Half a request on the back-end's channel is waited for, but not at the end.
#[test]
fn stopping_does_not_wait_for_a_request_that_is_not_completed() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached_within(Scripted::disk(), PATIENT, Whose::Own);
    let mut theirs = File::from(fake.channel.recv_timeout(PATIENCE).unwrap());
    theirs.write_all(&[2, 0, 0, 0, 1]).unwrap();
    // Some time for the device's owner to begin to read it.
    std::thread::sleep(Duration::from_millis(50));
    stopped(bench);
    fake.join();
}

#[test]
fn stopping_does_not_wait_for_slow_io() {
    let late = Scripted::disk().on(FrontendReq::GET_VRING_BASE, Fault::Silence);
    // Of the first the answer is late, of the second its ring.
    for fake in [late, Scripted::disk()] {
        let Some(bench) = Bench::new() else { return };
        let fake = bench.attached_within(fake, PATIENT, Whose::default());
        bench.drive();
        bench.uses(u16::MAX);
        bench.write(BAR + 20, 0, 1);
        fake.wait_for(FrontendReq::GET_VRING_BASE);
        stopped(bench);
        fake.join();
    }
}

/// Far longer than a test.
const PATIENT: Limits = Limits {
    message: Duration::from_secs(3600),
    answer: Duration::from_secs(3600),
};

/// What has been told, but for what was agreed on.
fn heard(events: &Mailbox<FromMachine>) -> Vec<FromMachine> {
    let heard = events.take().into_iter();
    heard
        .filter(|event| !matches!(event, FromMachine::Agreed { .. }))
        .collect()
}

fn stopped(bench: Bench) {
    let Bench { device, events, .. } = bench;
    let stopping = std::thread::spawn(move || device.stop());
    eventually(|| stopping.is_finished());
    stopping.join().unwrap();
    assert!(heard(&events).is_empty(), "that is not a loss");
}

/// A slow disk is no broken back-end.
#[test]
fn a_reset_waits_for_io_longer_than_for_an_answer_that_needs_none() {
    let Some(bench) = Bench::new() else { return };
    let slow = Scripted::disk().on(
        FrontendReq::GET_VRING_BASE,
        Fault::Late(Duration::from_secs(4)),
    );
    let limits = Limits {
        message: Duration::from_secs(3),
        answer: Duration::from_secs(600),
    };
    let fake = bench.attached_within(slow, limits, Whose::Own);
    bench.drive();
    bench.reset();
    bench.drive();
    fake.wait_for(FrontendReq::RESET_DEVICE);
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    assert!(bench.told().is_empty(), "nothing is lost");
}

#[test]
fn a_back_end_that_does_not_finish_what_it_has_taken_is_lost() {
    let Some(bench) = Bench::new() else { return };
    let limits = Limits {
        answer: Duration::from_secs(1),
        ..Limits::default()
    };
    let _fake = bench.attached_within(Scripted::disk(), limits, Whose::default());
    bench.drive();
    bench.uses(u16::MAX);
    bench.write(BAR + 20, 0, 1);
    let words = "stopped queue 0 and did not finish its requests in time";
    let cause = bench.lost();
    assert!(cause.contains(words), "{cause}");
}

/// It keeps what it has taken to receive into, and lets go of it by the stop.
#[test]
fn a_card_s_buffers_are_not_waited_for_as_a_disk_s_requests() {
    for (kind, limits) in [
        (
            Kind::net(),
            Limits {
                message: Duration::from_secs(2),
                ..PATIENT
            },
        ),
        (
            Kind::unnamed(41, 0),
            Limits {
                answer: Duration::from_secs(1),
                ..Limits::default()
            },
        ),
    ] {
        let spec = spec(kind, 3, true);
        let Some(bench) = Bench::of(spec) else { return };
        let fake = Scripted::disk()
            .features(1 << 32 | 1 << 30 | 1 << 5)
            .queues(3);
        let _fake = bench.attached_within(fake, limits, Whose::default());
        bench.drive();
        bench.uses(u16::MAX);
        bench.reset();
        assert!(bench.told().is_empty(), "nothing is lost");
    }
}

/// What ours says is enough: the guest may have used its ring for other things.
#[test]
fn a_back_end_of_ours_has_finished_when_it_says_so() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached_within(Scripted::disk(), PATIENT, Whose::Own);
    bench.drive();
    bench.uses(u16::MAX);
    bench.reset();
    fake.wait_for(FrontendReq::RESET_DEVICE);
}

#[test]
fn a_back_end_that_reads_no_answers_costs_nobody_anything() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached_within(Scripted::disk(), PATIENT, Whose::Own);
    let theirs = Connection::new(fake.channel.recv_timeout(PATIENCE).unwrap().into());
    let ask = Header::request(BackendReq::CONFIG_CHANGE_MSG.into()).with_need_reply();
    let closed = |_| {
        let sent = theirs.send(ask, &[], &[], Deadline::after(PATIENCE));
        sent.is_err_and(|error| matches!(error, WireError::Closed))
    };
    assert!((0..100_000).any(closed), "its channel is closed");
    bench.drive();
    bench.reset();
    assert!(bench.told().is_empty());
}

#[test]
fn rings_over_one_another_are_the_driver_s_fault() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    let broken = 15 | status::NEEDS_RESET;
    for parts in [
        [0x1000, 0x2000, 0x1000],
        [0x1000, 0x2000, 0x13fc],
        [0x1000, 0x2000, 0x2000],
        [0x1000, 0x2000, 0x1e00],
    ] {
        bench.drive_ring(parts, 0);
        eventually(|| bench.status() == broken);
        bench.reset();
    }
    // One ring runs; a second that comes later lies over it.
    for used in [0x1000, 0x2000, USED] {
        bench.drive();
        fake.wait_for(FrontendReq::SET_VRING_ENABLE);
        bench.write(BAR + 22, 1, 2);
        for (at, address) in [(32, 0x5000), (40, 0x6000), (48, used)] {
            bench.write(BAR + at, address, 8);
        }
        bench.write(BAR + 28, 1, 2);
        eventually(|| bench.status() == broken);
        bench.reset();
    }
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    assert!(bench.told().is_empty(), "nothing is lost");
}

const FLUSH: u64 = 1 << 9;
const CONFIG_WCE: u64 = 1 << 11;

/// A disk whose cache can be set, and is said to be off.
fn cached() -> Scripted {
    Scripted::disk().with(FLUSH | CONFIG_WCE)
}

impl Bench {
    /// The features below bit 32 that the driver is offered.
    fn offered(&self) -> u64 {
        self.write(BAR, 0, 4);
        self.read(BAR + 4, 4)
    }

    fn writeback(&self) -> u64 {
        self.read(CONFIG + u64::from(BlkConfig::WRITEBACK), 1)
    }
}

#[test]
fn a_foreign_disk_s_cache_is_on_before_a_driver_sees_it_and_after_each_reset() {
    let Some(bench) = Bench::new() else { return };
    // It goes back to 0 upon each reset, and lets the driver change it.
    let fake = bench.attached(cached());
    for _ in 0..3 {
        assert_eq!(bench.offered() & CONFIG_WCE, CONFIG_WCE);
        assert_eq!(bench.writeback(), 1);
        bench.drive_with(FLUSH | CONFIG_WCE);
        let at = CONFIG + u64::from(BlkConfig::WRITEBACK);
        bench.write(at, 0, 1);
        fake.wait_for(FrontendReq::GET_CONFIG);
        eventually(|| bench.writeback() == 0);
        bench.reset();
    }
    assert_eq!(bench.writeback(), 1);
    let written = fake.seen.try_iter();
    let written: Vec<_> = written
        .filter(|(request, _)| *request == FrontendReq::SET_CONFIG)
        .collect();
    assert!(written.len() >= 6, "{}", written.len());
}

#[test]
fn a_cache_is_what_whoever_started_the_back_end_said() {
    for (whose, before, after) in [
        (Whose::Own, 0, 0),
        (Whose::Own, 1, 1),
        (Whose::Foreign { writeback: true }, 0, 1),
        (Whose::Foreign { writeback: false }, 1, 0),
    ] {
        let Some(bench) = Bench::new() else { return };
        let mut fake = cached();
        fake.config[BlkConfig::WRITEBACK as usize] = before;
        let _fake = bench.attached_within(fake, Limits::default(), whose);
        assert_eq!(bench.writeback(), after, "{whose:?}, {before}");
        assert_eq!(bench.offered() & CONFIG_WCE, CONFIG_WCE);
    }
}

#[test]
fn a_cache_that_cannot_be_set_is_not_offered_to_be() {
    for fault in [Fault::Value, Fault::Idle] {
        let Some(bench) = Bench::new() else { return };
        let _fake = bench.attached(cached().on(FrontendReq::SET_CONFIG, fault.clone()));
        let offered = bench.offered();
        assert_eq!(offered & (CONFIG_WCE | FLUSH), FLUSH, "{fault:?}");
        bench.drive_with(FLUSH);
        bench.reset();
        assert_eq!(bench.offered(), offered);
    }
    // Without CONFIG_WCE a driver goes by FLUSH anyway.
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk().features(cached().features & !CONFIG_WCE));
    assert_eq!(bench.offered() & FLUSH, FLUSH);
    assert!(!fake.has_come(FrontendReq::SET_CONFIG));
}

#[test]
fn a_driver_that_does_not_flush_has_no_cache() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(cached());
    fake.wait_for(FrontendReq::SET_CONFIG);
    bench.drive_with(CONFIG_WCE);
    let written = fake.wait_for(FrontendReq::SET_CONFIG);
    assert_eq!(written.payload[12..], [0]);
    eventually(|| bench.writeback() == 0);
    bench.reset();
    assert_eq!(bench.writeback(), 1);
}

#[derive(Clone, Debug)]
enum Access {
    Ecam(u64, Vec<u8>),
    Memory(u64, Vec<u8>),
    Io(u64, Vec<u8>),
}

fn access() -> impl Strategy<Value = Access> {
    let data = || {
        let any_bytes = prop::collection::vec(any::<u8>(), 1..9);
        prop_oneof![any_bytes, Just(vec![0xff; 4]), Just(vec![0; 4])]
    };
    let function = 1u64 << 15;
    prop_oneof![
        (0..1u64 << 20, data()).prop_map(|(at, data)| Access::Ecam(at, data)),
        (function..function + 256, data()).prop_map(|(at, data)| Access::Ecam(at, data)),
        (0..1u64 << 29, data()).prop_map(|(at, data)| Access::Memory(at, data)),
        (BAR..BAR + 64, data()).prop_map(|(at, data)| Access::Memory(at, data)),
        (BAR..BAR + 0x8000, data()).prop_map(|(at, data)| Access::Memory(at, data)),
        (0..0x4000u64, data()).prop_map(|(at, data)| Access::Io(at, data)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_accesses_break_a_device_for_the_driver_that_comes_after(
        accesses in prop::collection::vec(access(), 0..200),
    ) {
        let Some(bench) = Bench::new() else { return Ok(()) };
        let fake = bench.attached(Scripted::disk());
        for access in accesses {
            let (target, at, mut data) = match access {
                Access::Ecam(at, data) => (&bench.bus.ecam, at, data),
                Access::Memory(at, data) => (&bench.bus.memory, at, data),
                Access::Io(at, data) => (&bench.bus.io, at, data),
            };
            target.write(at, &data);
            target.read(at, &mut data);
        }
        let ecam = 1 << 15;
        let bar = (layout::PCI_MEMORY.start + BAR) as u32;
        bench.bus.ecam.write(ecam + 0x10, &bar.to_le_bytes());
        bench.bus.ecam.write(ecam + 4, &[6, 0]);
        bench.reset();
        while fake.seen.try_recv().is_ok() {}
        bench.drive();
        fake.wait_for(FrontendReq::SET_VRING_KICK);
    }
}

#[test]
fn a_driver_that_floods_the_configuration_still_sees_what_the_back_end_has() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    // Far more than wait for a back-end; the rest is dropped, and forgotten.
    for value in 0..4096 {
        bench.write(CONFIG, value, 8);
    }
    eventually(|| bench.read(CONFIG, 8) == 2048);
}

#[test]
fn a_queue_that_the_back_end_does_not_have_stays_unserved() {
    let Some(bench) = Bench::of(spec(Kind::net(), 5, true)) else {
        return;
    };
    let fake = bench.attached(
        Scripted::disk()
            .features(1 << 32 | 1 << 30 | 1 << 5)
            .queues(3)
            .config(vec![0; 60]),
    );
    let enable = |queue: u64| {
        bench.write(BAR + 22, queue, 2);
        for (at, address) in [(32, 0x5000), (40, 0x6000), (48, 0x7000)] {
            bench.write(BAR + at, address + 0x4000 * queue, 8);
        }
        bench.write(BAR + 28, 1, 2);
    };
    bench.drive();
    enable(4);
    enable(3);
    enable(2);
    bench.reset();
    let seen: Vec<_> = fake.seen.try_iter().collect();
    let of = |wanted| seen.iter().filter(move |(request, _)| *request == wanted);
    let started = of(FrontendReq::SET_VRING_NUM).map(|(_, message)| message.payload[0]);
    assert!(started.eq([0, 2]));
    assert!(bench.told().is_empty());
}

/// The kicks since the last look, at the eventfd that a back-end was lent.
fn kicks(lent: &mut File) -> u64 {
    let mut count = [0; 8];
    match lent.read(&mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_kick_that_exits_can_be_passed_on_by_the_vcpu_or_by_a_worker() {
    for path in [launch::KickPath::Exit, launch::KickPath::Worker] {
        let Some(bench) = Bench::with(path) else {
            return;
        };
        let fake = bench.attached(Scripted::disk());
        bench.drive();
        let message = fake.wait_for(FrontendReq::SET_VRING_KICK);
        let mut kick = File::from(message.fds.into_iter().next().unwrap());
        fake.wait_for(FrontendReq::SET_VRING_ENABLE);
        assert!(!bench.has_doorbell(layout::PCI_MEMORY.start + NOTIFY));
        // The one from the start, and the one when the ring is enabled.
        let mut count = 0;
        eventually(|| {
            count += kicks(&mut kick);
            count == 2
        });
        for _ in 0..3 {
            bench.write(NOTIFY, 0, 2);
            let mut count = 0;
            eventually(|| {
                count = kicks(&mut kick);
                count != 0
            });
            assert_eq!(count, 1, "{path:?}");
        }
        // Queue 1 has no session, and there is no queue 2.
        bench.write(NOTIFY + 4, 1, 2);
        bench.write(NOTIFY + 8, 2, 2);
        bench.reset();
        bench.write(NOTIFY, 0, 2);
        assert_eq!(kicks(&mut kick), 0, "it is not this session's any more");
    }
}

/// Memory decoding on, and bus mastering on or off.
fn master(bench: &Bench, on: bool) {
    let command = if on { 6 } else { 2 };
    bench.bus.ecam.write((1 << 15) + 4, &[command, 0]);
}

#[test]
fn a_write_that_turns_bus_mastering_off_returns_when_the_rings_are_back() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    // The fake says that it has stopped at 0; by the ring it is 5 short of that.
    bench.uses(0u16.wrapping_sub(5));
    std::thread::scope(|scope| {
        let vcpu = scope.spawn(|| master(&bench, false));
        fake.wait_for(FrontendReq::GET_VRING_BASE);
        std::thread::sleep(Duration::from_millis(50));
        assert!(!vcpu.is_finished(), "requests are still under way");
        bench.uses(0u16);
        vcpu.join().unwrap();
    });
    assert_eq!(bench.status(), 15, "the driver knows nothing of it");
    let here = layout::PCI_MEMORY.start + NOTIFY;
    assert!(!bench.has_doorbell(here));
    master(&bench, true);
    bench.write(NOTIFY, 0, 2);
    fake.wait_for(FrontendReq::SET_VRING_KICK);
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    assert!(bench.has_doorbell(here));
}

#[test]
fn a_pause_neither_waits_for_a_write_that_turns_bus_mastering_off_nor_ends_it() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    bench.uses(0u16.wrapping_sub(5));
    std::thread::scope(|scope| {
        let vcpu = scope.spawn(|| master(&bench, false));
        fake.wait_for(FrontendReq::GET_VRING_BASE);
        bench.gate.close();
        Deadline::after(PATIENCE)
            .wait_for(bench.gate.as_fd(), PollFlags::POLLIN)
            .unwrap();
        assert!(bench.gate.all_are_away());
        std::thread::sleep(Duration::from_millis(50));
        assert!(!vcpu.is_finished(), "requests are still under way");
        // The back-end finishes in the pause, and the write with it.
        bench.uses(0u16);
        vcpu.join().unwrap();
        assert!(bench.gate.is_closed(), "its vCPU comes to the gate");
    });
}

/// Whether a ring is started before the thread has obeyed all that was posted.
fn starts(bench: &Bench, fake: &Running) -> bool {
    bench.write(CONFIG, 7, 8);
    let mut starts = false;
    loop {
        let (seen, _) = fake.seen.recv_timeout(PATIENCE).unwrap();
        starts |= seen == FrontendReq::SET_VRING_KICK;
        // What was written is asked for, whether the back-end got it or not.
        if seen == FrontendReq::GET_CONFIG {
            return starts;
        }
    }
}

#[test]
fn rings_go_on_where_they_were_with_a_kick_or_without_one() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    for kicks in [true, false] {
        let base = 7 + u16::from(kicks);
        bench.uses(base);
        fake.stop_at(base);
        master(&bench, false);
        // Without the bit a kick is only noted.
        bench.write(NOTIFY, 0, 2);
        assert!(!starts(&bench, &fake));
        master(&bench, true);
        if kicks {
            bench.write(NOTIFY, 0, 2);
        }
        let message = fake.wait_for(FrontendReq::SET_VRING_BASE);
        assert_eq!(message.payload[4..6], base.to_ne_bytes());
        fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    }
}

#[test]
fn a_region_is_asked_for_once_and_anew_after_a_reset() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    bench.drive();
    fake.wait_for(FrontendReq::GET_INFLIGHT_FD);
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    master(&bench, false);
    master(&bench, true);
    bench.write(NOTIFY, 0, 2);
    let mut seen = Vec::new();
    while seen.last() != Some(&FrontendReq::SET_VRING_KICK) {
        seen.push(fake.seen.recv_timeout(PATIENCE).unwrap().0);
    }
    assert!(seen.contains(&FrontendReq::SET_INFLIGHT_FD), "{seen:?}");
    assert!(!seen.contains(&FrontendReq::GET_INFLIGHT_FD), "{seen:?}");
    bench.reset();
    bench.drive();
    fake.wait_for(FrontendReq::GET_INFLIGHT_FD);
}

/// A kernel that was entered by kexec sets the bit, then resets the device.
#[test]
fn a_reset_after_bus_mastering_was_off_starts_nothing_of_the_driver_before() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    master(&bench, false);
    master(&bench, true);
    bench.reset();
    // Told to the back-end, as of a driver whose rings run: it keeps nothing.
    fake.wait_for(FrontendReq::RESET_DEVICE);
    assert!(!starts(&bench, &fake));
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
}

#[test]
fn a_device_that_is_no_bus_master_is_not_started_and_sends_no_interrupt() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    master(&bench, false);
    bench.drive();
    unmask(&bench, 0);
    assert!(!starts(&bench, &fake));
    // What the driver wrote and the back-end did not take is told by vector 0.
    eventually(|| bench.pending() == 1);
    master(&bench, true);
    fake.wait_for(FrontendReq::SET_VRING_KICK);
    eventually(|| bench.pending() & 1 == 0);
}

#[test]
fn a_back_end_that_keeps_the_memory_is_lost_and_the_write_returns_once_it_is_gone() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk().on(FrontendReq::GET_VRING_BASE, Fault::Close));
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    let bench = Arc::new(bench);
    let vcpu = std::thread::spawn({
        let bench = Arc::clone(&bench);
        move || master(&bench, false)
    });
    assert!(bench.lost().contains("closed its connection"));
    std::thread::sleep(Duration::from_millis(50));
    assert!(!vcpu.is_finished());
    bench.device.is_vacant(1);
    eventually(|| vcpu.is_finished());
}

#[test]
fn a_broken_ring_is_not_waited_for_and_not_started_again() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    bench.drive();
    let error = fake.wait_for(FrontendReq::SET_VRING_ERR).fds.remove(0);
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    bench.uses(0u16.wrapping_sub(5));
    nix::unistd::write(&error, &1u64.to_ne_bytes()).unwrap();
    eventually(|| bench.status() == 15 | status::NEEDS_RESET);
    master(&bench, false);
    master(&bench, true);
    bench.write(NOTIFY, 0, 2);
    fake.wait_for(FrontendReq::SET_FEATURES);
    assert!(!starts(&bench, &fake));
}

#[test]
fn a_reset_waits_for_no_ring_that_was_given_up() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    bench.drive();
    let error = fake.wait_for(FrontendReq::SET_VRING_ERR).fds.remove(0);
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    bench.uses(0u16.wrapping_sub(5));
    nix::unistd::write(&error, &1u64.to_ne_bytes()).unwrap();
    eventually(|| bench.status() == 15 | status::NEEDS_RESET);
    bench.reset();
    fake.wait_for(FrontendReq::RESET_DEVICE);
    assert!(bench.told().is_empty(), "its back-end is there");
}
