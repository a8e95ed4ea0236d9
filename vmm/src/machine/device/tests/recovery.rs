//! A back-end is lost while its driver uses the device, and another comes.

use super::*;
use crate::machine::device::kinds::blk::Capacity;
use crate::machine::device::resume::{self, Successor};

const INFLIGHT: Protocol = Protocol::INFLIGHT_SHMFD;
const WCE: u64 = 1 << 11 | 1 << 9;

/// A disk's back-end that was started and is lost.
fn lost(bench: &Bench, fake: Scripted) {
    let fake = bench.attached(fake);
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    lose(bench, fake);
}

fn lose(bench: &Bench, fake: Running) {
    fake.hang_up();
    assert!(bench.lost().contains("closed"));
    bench.device.is_vacant(1);
}

/// The driver has made so many requests available.
fn makes_available(bench: &Bench, index: u16) {
    let available = GuestAddress(0x2002);
    bench.ram.guest().write_obj(index, available).unwrap();
}

fn attach(bench: &Bench, fake: Scripted, whose: Whose, restored: Restored) -> Running {
    let (stream, running) = fake.start();
    bench.device.attach(Newcomer {
        replaces: None,
        number: 2,
        session: Session::new(stream).of(whose),
        restored,
    });
    running
}

fn comes(bench: &Bench, fake: Scripted) -> Running {
    attach(bench, fake, Whose::default(), Restored::Nothing)
}

fn is_attached(bench: &Bench) {
    let device = "disk0".into();
    assert_eq!(bench.event(), FromMachine::Attached { device, session: 2 });
}

fn is_refused(bench: &Bench, cause: Cause, words: &str) {
    match bench.event() {
        FromMachine::Lost {
            session,
            cause: given,
            text,
            ..
        } => {
            assert_eq!((session, given), (2, cause), "{text}");
            assert!(text.contains(words), "{text}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.status(), 15, "the driver knows nothing of it");
}

#[test]
fn a_successor_goes_on_at_the_used_index_with_the_region_of_the_one_before() {
    let Some(bench) = Bench::new() else { return };
    lost(&bench, Scripted::disk());
    makes_available(&bench, 9);
    bench.uses(5);
    let fake = comes(&bench, Scripted::disk());
    let mut seen = Vec::new();
    let base = loop {
        let (request, message) = fake.seen.recv_timeout(PATIENCE).unwrap();
        seen.push(request);
        if request == FrontendReq::SET_VRING_BASE {
            break message;
        }
    };
    assert_eq!(base.payload[4..6], 5u16.to_ne_bytes());
    assert!(seen.contains(&FrontendReq::SET_INFLIGHT_FD), "{seen:?}");
    assert!(!seen.contains(&FrontendReq::GET_INFLIGHT_FD), "{seen:?}");
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    is_attached(&bench);
    assert_eq!(bench.status(), 15);
    bench.reset();
    fake.wait_for(FrontendReq::RESET_DEVICE);
}

/// The back-end dies while it is asked for its region: no ring of it has run.
#[test]
fn a_driver_whose_rings_have_never_run_goes_on_at_their_beginning() {
    let Some(bench) = Bench::new() else { return };
    makes_available(&bench, 9);
    let fake = bench.attached(Scripted::disk().on(FrontendReq::GET_INFLIGHT_FD, Fault::Close));
    bench.drive();
    assert!(bench.lost().contains("closed"));
    bench.device.is_vacant(1);
    fake.join();
    let fake = comes(&bench, Scripted::disk());
    let base = fake.wait_for(FrontendReq::SET_VRING_BASE);
    assert_eq!(base.payload[4..6], 0u16.to_ne_bytes());
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    is_attached(&bench);
    bench.reset();
    fake.wait_for(FrontendReq::RESET_DEVICE);
}

#[test]
fn without_a_record_only_what_has_nothing_outstanding_goes_on() {
    let bare = || Scripted::disk().without(INFLIGHT);
    // The last one kept a record; a successor that does not read it cannot go on.
    for (first, second) in [
        (bare(), bare()),
        (bare(), Scripted::disk()),
        (Scripted::disk(), bare()),
    ] {
        let Some(bench) = Bench::new() else { return };
        lost(&bench, first);
        makes_available(&bench, 9);
        bench.uses(5);
        let _fake = comes(&bench, second);
        is_refused(&bench, Cause::NotRecoverable, "kept no record");
        bench.vacate_and_reset();
    }
    let Some(bench) = Bench::new() else { return };
    lost(&bench, bare());
    makes_available(&bench, 7);
    bench.uses(7);
    let fake = comes(&bench, bare());
    let base = fake.wait_for(FrontendReq::SET_VRING_BASE);
    assert_eq!(base.payload[4..6], 7u16.to_ne_bytes());
    is_attached(&bench);
}

#[test]
fn one_that_is_not_what_the_driver_knows_is_refused() {
    // A smaller disk.
    let other = |bytes: &mut Vec<u8>| bytes[1] ^= 8;
    let mut config = BlkConfig {
        capacity: 2048,
        num_queues: 4,
        ..BlkConfig::default()
    }
    .to_bytes()
    .to_vec();
    let disk = |config: &[u8]| Scripted::disk().config(config.to_vec());
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(disk(&config).with(1 << 9));
    bench.drive_with(1 << 9);
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    lose(&bench, fake);
    let _fake = comes(&bench, disk(&config));
    is_refused(&bench, Cause::DoesNotFit, "features 0x200");
    other(&mut config);
    let _fake = comes(&bench, disk(&config).with(1 << 9));
    let words = "has 0 bytes, and the driver knows 1048576";
    is_refused(&bench, Cause::DoesNotFit, words);
    other(&mut config);
    let _fake = comes(&bench, disk(&config).with(1 << 9));
    is_attached(&bench);
}

#[test]
fn what_a_disk_of_ours_kept_must_be_known_to_its_successor() {
    for (whose, restored, known) in [
        (Whose::Own, Restored::Unknown, false),
        (Whose::Own, Restored::Kept, true),
        (Whose::Own, Restored::Nothing, true),
        (Whose::default(), Restored::Unknown, true),
    ] {
        let Some(bench) = Bench::new() else { return };
        lost(&bench, Scripted::disk());
        let _fake = attach(&bench, Scripted::disk(), whose, restored);
        match known {
            true => is_attached(&bench),
            false => is_refused(&bench, Cause::NotRecoverable, "whether a sync"),
        }
    }
}

#[test]
fn one_that_knows_of_a_driver_that_has_gone_is_told_so() {
    let Some(bench) = Bench::new() else { return };
    lost(&bench, Scripted::disk());
    bench.vacate_and_reset();
    let fake = attach(&bench, Scripted::disk(), Whose::Own, Restored::Kept);
    fake.wait_for(FrontendReq::RESET_DEVICE);
    is_attached(&bench);
}

#[test]
fn a_kind_that_holds_state_of_its_own_does_not_go_on() {
    let spec = spec(Kind::unnamed(26, 0), 1, false);
    let Some(bench) = Bench::of(spec) else { return };
    lost(&bench, Scripted::disk());
    let _fake = comes(&bench, Scripted::disk());
    is_refused(&bench, Cause::NotRecoverable, "holds state of its own");
}

#[test]
fn a_reset_while_nobody_serves_waits_until_whoever_did_is_gone() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    fake.hang_up();
    bench.lost();
    bench.write(BAR + 20, 0, 1);
    bench.device.is_vacant(0);
    std::thread::sleep(Duration::from_millis(50));
    assert_ne!(
        bench.status(),
        0,
        "it may still write into the guest's memory"
    );
    bench.device.is_vacant(1);
    eventually(|| bench.status() == 0);
    let device = "disk0".into();
    assert_eq!(bench.event(), FromMachine::Free { device });
    // A driver that comes before a back-end does is served once one is there.
    let fake = comes(&bench, Scripted::disk());
    is_attached(&bench);
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
}

/// The cache byte that a successor was told last before its first ring.
fn told_before_its_rings(fake: &Running) -> Option<u8> {
    let mut last = None;
    loop {
        let (request, message) = fake.seen.recv_timeout(PATIENCE).unwrap();
        match request {
            FrontendReq::SET_CONFIG => last = message.payload.last().copied(),
            FrontendReq::SET_VRING_KICK => return last,
            _ => {}
        }
    }
}

/// What the guest writes meanwhile is told to the successor, too.
#[test]
fn a_cache_byte_is_set_in_the_successor_before_its_first_ring() {
    let Some(bench) = Bench::new() else { return };
    let disk = || cached().with(WCE);
    let fake = bench.attached(disk());
    bench.drive_with(WCE);
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    lose(&bench, fake);
    bench.write(CONFIG + 32, 0, 1);
    let fake = comes(&bench, disk());
    assert_eq!(told_before_its_rings(&fake), Some(0));
    is_attached(&bench);
    assert_eq!(bench.read(CONFIG + 32, 1), 0);
}

/// The driver reads back what it has written, and goes by it, before its back-end has
/// obeyed: one that is lost meanwhile leaves that to its successor.
#[test]
fn a_cache_byte_over_which_a_back_end_was_lost_is_set_in_the_successor() {
    for fault in [Fault::Close, Fault::Silence] {
        let Some(bench) = Bench::new() else { return };
        // The first time it is set before the driver sees the device.
        let first = cached().with(WCE);
        let first = first.on_after(FrontendReq::SET_CONFIG, 1, fault.clone());
        let answer = Duration::from_millis(200);
        let limits = Limits {
            answer,
            ..Limits::default()
        };
        let fake = bench.attached_within(first, limits, Whose::default());
        bench.drive_with(WCE);
        fake.wait_for(FrontendReq::SET_VRING_ENABLE);
        bench.write(CONFIG + 32, 0, 1);
        assert_eq!(bench.read(CONFIG + 32, 1), 0);
        bench.lost();
        bench.device.is_vacant(1);
        let fake = comes(&bench, cached().with(WCE));
        assert_eq!(told_before_its_rings(&fake), Some(0), "{fault:?}");
        is_attached(&bench);
        assert_eq!(bench.read(CONFIG + 32, 1), 0, "{fault:?}");
    }
}

/// One that its back-end declines is not for the successor: the driver has been shown so.
#[test]
fn a_cache_byte_that_was_declined_is_not_set_in_the_successor() {
    let Some(bench) = Bench::new() else { return };
    let first = cached().with(WCE);
    let fake = bench.attached(first.on_after(FrontendReq::SET_CONFIG, 1, Fault::Value));
    bench.drive_with(WCE);
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    bench.write(CONFIG + 32, 0, 1);
    eventually(|| bench.read(CONFIG + 32, 1) == 1);
    lose(&bench, fake);
    let fake = comes(&bench, cached().with(WCE));
    assert_eq!(told_before_its_rings(&fake), Some(1));
    is_attached(&bench);
}

/// A driver resets the device after its back-end was lost and while the next is being
/// started, which was told what the last had kept: a new driver, which may be there
/// before that back-end is, begins with a device as it was made.
#[test]
fn what_a_former_driver_has_set_is_not_left_to_a_new_one() {
    for is_quick in [true, false] {
        let Some(bench) = Bench::new() else { return };
        lost(&bench, Scripted::disk());
        bench.reset();
        let device = "disk0".into();
        assert_eq!(bench.event(), FromMachine::Free { device });
        if is_quick {
            bench.drive();
        }
        let fake = attach(&bench, Scripted::disk(), Whose::Own, Restored::Kept);
        is_attached(&bench);
        if !is_quick {
            bench.drive();
        }
        let mut seen = Vec::new();
        while seen.last() != Some(&FrontendReq::SET_VRING_ENABLE) {
            seen.push(fake.seen.recv_timeout(PATIENCE).unwrap().0);
        }
        assert!(
            seen.contains(&FrontendReq::RESET_DEVICE),
            "{is_quick}: {seen:?}"
        );
        // What this one sets is its own.
        fake.hang_up();
        assert!(bench.lost().contains("closed"));
        bench.device.is_vacant(2);
        let fake = attach(&bench, Scripted::disk(), Whose::Own, Restored::Kept);
        is_attached(&bench);
        fake.wait_for(FrontendReq::SET_VRING_KICK);
        assert!(!fake.has_come(FrontendReq::RESET_DEVICE));
    }
}

/// As above: whatever is shown meanwhile, a driver that reads that the cache is off sends
/// no flush.
#[test]
fn a_cache_byte_that_a_new_driver_reads_while_nobody_serves_is_set_in_the_successor() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(cached().with(WCE));
    bench.drive_with(WCE);
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    bench.write(CONFIG + 32, 0, 1);
    fake.wait_for(FrontendReq::GET_CONFIG);
    lose(&bench, fake);
    bench.reset();
    let device = "disk0".into();
    assert_eq!(bench.event(), FromMachine::Free { device });
    bench.drive_with(WCE);
    let shown = bench.read(CONFIG + 32, 1);
    let fake = comes(&bench, cached().with(WCE));
    assert_eq!(told_before_its_rings(&fake).map(u64::from), Some(shown));
    is_attached(&bench);
    assert_eq!(bench.read(CONFIG + 32, 1), shown);
}

/// As above: nobody knows what the last one has kept, and it matters no more.
#[test]
fn what_nobody_knows_of_a_former_driver_keeps_no_successor_from_a_new_one() {
    let Some(bench) = Bench::new() else { return };
    lost(&bench, Scripted::disk());
    bench.reset();
    let device = "disk0".into();
    assert_eq!(bench.event(), FromMachine::Free { device });
    bench.drive();
    let fake = attach(&bench, Scripted::disk(), Whose::Own, Restored::Unknown);
    is_attached(&bench);
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
}

/// A driver that has acknowledged it after its reset could be served by nobody else.
#[test]
fn what_only_a_successor_offers_no_driver_is_offered() {
    const SIZE_MAX: u64 = 1 << 1;
    let Some(bench) = Bench::new() else { return };
    lost(&bench, cached());
    let offered = bench.offered();
    bench.reset();
    let device = "disk0".into();
    assert_eq!(bench.event(), FromMachine::Free { device });
    let fake = comes(&bench, cached().with(SIZE_MAX));
    is_attached(&bench);
    assert_eq!(bench.offered(), offered);
    fake.hang_up();
    assert!(bench.lost().contains("closed"));
    bench.device.is_vacant(2);
    // What it does not offer is not, either.
    let _fake = comes(&bench, Scripted::disk());
    is_attached(&bench);
    assert_ne!(bench.offered() & CONFIG_WCE, offered & CONFIG_WCE);
}

#[test]
fn a_ring_that_was_given_up_is_not_given_to_a_successor() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    bench.drive();
    let error = fake.wait_for(FrontendReq::SET_VRING_ERR).fds.remove(0);
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    nix::unistd::write(&error, &1u64.to_ne_bytes()).unwrap();
    eventually(|| bench.status() == 15 | status::NEEDS_RESET);
    lose(&bench, fake);
    let fake = comes(&bench, Scripted::disk());
    is_attached(&bench);
    assert!(!starts(&bench, &fake));
}

/// What is lost while the machine has not seen it is gone all the same.
#[test]
fn one_that_is_vacated_before_its_end_was_seen_is_lost() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    bench.device.is_vacant(1);
    bench.lost();
    let _fake = comes(&bench, Scripted::disk());
    is_attached(&bench);
}

/// The address that a driver has set by a command is in the configuration of whoever
/// was told of it, and not in the one that the driver was shown before.
#[test]
fn a_card_s_address_is_another_only_for_a_driver_that_may_have_set_it() {
    let successor = Successor {
        capacity: Capacity::Larger,
        whose: Whose::Own,
        restored: Restored::Kept,
    };
    let has = |address: u8, mtu: u8| [[address; 6].as_slice(), &[1, 0, 4, 0, mtu, 0]].concat();
    let fits = |features, now: Vec<u8>| {
        let seen = has(1, 2);
        resume::fits(successor, &Kind::net(), (features, &seen), (u64::MAX, &now))
    };
    const SETS_ADDRESS: u64 = 1 << 23;
    fits(SETS_ADDRESS, has(3, 2)).unwrap();
    fits(0, has(1, 2)).unwrap();
    let other = fits(0, has(3, 2)).unwrap_err();
    assert!(other.to_string().contains("at byte 0"), "{other:#}");
    let other = fits(SETS_ADDRESS, has(3, 4)).unwrap_err();
    assert!(other.to_string().contains("at byte 10"), "{other:#}");
}
