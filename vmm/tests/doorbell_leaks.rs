//! Doorbells leave nothing behind: thousands are registered and released on the
//! real /dev/kvm by the product's own types, as the sessions of a device do.
//! It is the only test of its program, so that it may count what the process
//! holds. `OUTBOARD_REGISTRATIONS` is another number than 2,000, 32 at least.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use kvm_ioctls::Kvm;
use outboard::machine::kvm::doorbell::{Address, Doorbell};
use outboard::machine::pci::Doorbells;
use outboard_protocol::launch::KickPath;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const QUEUES: u16 = 16;
/// Bytes from one queue's doorbell to the next: notify_off_multiplier.
const STRIDE: u16 = 4;

fn registrations() -> usize {
    let text = std::env::var("OUTBOARD_REGISTRATIONS");
    text.map_or(2000, |text| text.parse().expect("a number"))
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The kernel's number of an eventfd: unique while anyone, KVM included, holds
/// it; the lowest free one is given out next.
fn number(of: &EventFd) -> u32 {
    let info = format!("/proc/self/fdinfo/{}", of.as_raw_fd());
    let text = fs::read_to_string(info).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("eventfd-id:"));
    line.unwrap().trim().parse().unwrap()
}

/// Sessions of all queues begin and end, until there were `wanted` registrations
/// in all; returns the eventfds' numbers.
fn sessions(doorbells: &Doorbells, base: Address, wanted: usize) -> BTreeSet<u32> {
    let mut numbers = BTreeSet::new();
    let mut former: Vec<Option<Arc<EventFd>>> = vec![None; QUEUES.into()];
    for (turn, queue) in (0..wanted).zip((0..QUEUES).cycle()) {
        if queue == 0 {
            // Either the session ends, or the driver moves its BAR, or each
            // queue is started again in its turn: the last one rarely, since
            // KVM takes 8 ms for a release that follows a registration.
            match turn / usize::from(QUEUES) % 16 {
                15 => {}
                round if round % 2 == 0 => (0..QUEUES).for_each(|queue| doorbells.withdraw(queue)),
                _ => drop(doorbells.place(None)),
            }
        }
        let kick = doorbells.lend(queue).unwrap();
        numbers.insert(number(&kick));
        if let Some(former) = former[usize::from(queue)].replace(kick) {
            assert_eq!(Arc::strong_count(&former), 1, "after {turn} others");
        }
        if queue == QUEUES - 1 {
            doorbells.place(Some(base));
        }
    }
    (0..QUEUES).for_each(|queue| doorbells.withdraw(queue));
    for kick in former.into_iter().flatten() {
        assert_eq!(Arc::strong_count(&kick), 1, "when all sessions are over");
    }
    numbers
}

#[test]
fn thousands_of_registrations_and_releases_leave_nothing() {
    let vm = match Kvm::new().and_then(|kvm| kvm.create_vm()) {
        Ok(vm) => Arc::new(vm),
        Err(error) => {
            eprintln!("SKIP: no usable /dev/kvm: {error}");
            return;
        }
    };
    let wanted = registrations();
    assert!(wanted >= 2 * usize::from(QUEUES), "{wanted} are too few");
    let before = descriptors();
    for base in [Address::Memory(0xc000_3000), Address::Port(0xc000)] {
        let began = Instant::now();
        let doorbells = Doorbells::new("disk0", Arc::clone(&vm), QUEUES, KickPath::Kvm).unwrap();
        doorbells.place(Some(base));
        let numbers = sessions(&doorbells, base, wanted / 2);
        eprintln!(
            "{base}: {} registrations and releases in {:?}, with {} eventfds",
            wanted / 2,
            began.elapsed(),
            numbers.len()
        );
        // Of eventfds that KVM kept none would come again, and there are as
        // many of them as registrations. Other processes make some, too.
        let most = 2 * usize::from(QUEUES) + wanted / 8;
        assert!(numbers.len() < most, "{} eventfds are held", numbers.len());
        // Each place is free again, for a doorbell of any kind.
        let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        for offset in (0..QUEUES).map(|queue| queue * STRIDE) {
            let place = match base {
                Address::Memory(base) => Address::Memory(base + u64::from(offset)),
                Address::Port(base) => Address::Port(base + offset),
            };
            Doorbell::register(&vm, place, &event).expect("nothing is left there");
        }
        assert_eq!(Arc::strong_count(&event), 1);
        drop(doorbells);
    }
    assert_eq!(descriptors(), before, "open descriptors");
    assert_eq!(Arc::strong_count(&vm), 1, "holders of the VM");
}
