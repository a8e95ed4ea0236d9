//! KVM's rules for doorbells (KVM_IOEVENTFD), each asked of the real /dev/kvm
//! by the bare ioctl: those of the text that introduced them (2009), and what
//! today's kernel has added, length 0. The product's own type
//! (`outboard::machine::kvm::doorbell`) can break none but the collision, and
//! that it leaves nothing behind is the matter of `doorbell_leaks.rs`.
//!
//! Without /dev/kvm the tests are skipped, loudly.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_CAP_IOEVENTFD_ANY_LENGTH, KVMIO, kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch,
    kvm_ioeventfd_flag_nr_deassign, kvm_ioeventfd_flag_nr_max, kvm_ioeventfd_flag_nr_pio,
};
use kvm_ioctls::{Kvm, VmFd};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vmm_sys_util::ioctl::ioctl_with_ref;

mod number {
    vmm_sys_util::ioctl_iow_nr!(
        KVM_IOEVENTFD,
        kvm_bindings::KVMIO,
        0x79,
        kvm_bindings::kvm_ioeventfd
    );
}

const PIO: u32 = 1 << kvm_ioeventfd_flag_nr_pio;
const MATCH: u32 = 1 << kvm_ioeventfd_flag_nr_datamatch;
const DEASSIGN: u32 = 1 << kvm_ioeventfd_flag_nr_deassign;
/// In memory and as a port.
const SPACES: [u32; 2] = [0, PIO];
/// An address that is nothing else in either space.
const ADDRESS: u64 = 0xc000;

/// One KVM_IOEVENTFD as it is given to the kernel.
#[derive(Clone, Copy, Debug)]
struct Doorbell {
    addr: u64,
    len: u32,
    flags: u32,
    data: u64,
    fd: RawFd,
}

impl Doorbell {
    fn ask(&self, vm: &VmFd, flags: u32) -> Result<(), i32> {
        let argument = kvm_ioeventfd {
            datamatch: self.data,
            addr: self.addr,
            len: self.len,
            fd: self.fd,
            flags: self.flags | flags,
            ..Default::default()
        };
        // SAFETY: `vm` is a VM's descriptor, and KVM only reads `argument`.
        match unsafe { ioctl_with_ref(vm, number::KVM_IOEVENTFD(), &argument) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        }
    }

    fn assign(&self, vm: &VmFd) -> Result<(), i32> {
        self.ask(vm, 0)
    }

    fn release(&self, vm: &VmFd) -> Result<(), i32> {
        self.ask(vm, DEASSIGN)
    }
}

/// A wildcard of four bytes, in memory, to be varied.
fn plain(kick: &EventFd) -> Doorbell {
    Doorbell {
        addr: ADDRESS,
        len: 4,
        flags: 0,
        data: 0,
        fd: kick.as_fd().as_raw_fd(),
    }
}

fn eventfd() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap()
}

fn kvm() -> Option<Kvm> {
    let kvm = Kvm::new()
        .map_err(|error| eprintln!("SKIP: no usable /dev/kvm: {error}"))
        .ok()?;
    if kvm.check_extension_raw(KVM_CAP_IOEVENTFD_ANY_LENGTH.into()) <= 0 {
        eprintln!("SKIP: this KVM knows no doorbells of any length");
        return None;
    }
    Some(kvm)
}

fn vm() -> Option<VmFd> {
    kvm().map(|kvm| kvm.create_vm().unwrap())
}

#[test]
fn a_length_is_1_2_4_8_or_any_and_every_other_is_invalid() {
    let Some(vm) = vm() else { return };
    assert_eq!(KVMIO, 0xae);
    let kick = eventfd();
    for flags in SPACES {
        for len in [0, 1, 2, 4, 8] {
            let one = Doorbell {
                len,
                flags,
                ..plain(&kick)
            };
            assert_eq!(one.assign(&vm), Ok(()), "{one:?}");
            assert_eq!(one.release(&vm), Ok(()), "{one:?}");
        }
        for len in [3, 5, 6, 7, 9, 16, 4096, u32::MAX] {
            let one = Doorbell {
                len,
                flags,
                ..plain(&kick)
            };
            assert_eq!(one.assign(&vm), Err(libc::EINVAL), "{one:?}");
        }
    }
}

#[test]
fn any_length_has_no_data_to_match() {
    let Some(vm) = vm() else { return };
    let kick = eventfd();
    for flags in SPACES.map(|space| space | MATCH) {
        for (len, answer) in [
            (0, Err(libc::EINVAL)),
            (1, Ok(())),
            (2, Ok(())),
            (4, Ok(())),
            (8, Ok(())),
        ] {
            let one = Doorbell {
                len,
                flags,
                data: 7,
                ..plain(&kick)
            };
            assert_eq!(one.assign(&vm), answer, "{one:?}");
        }
    }
}

#[test]
fn an_address_must_not_wrap_and_a_flag_must_be_known() {
    let Some(vm) = vm() else { return };
    let kick = eventfd();
    for flags in SPACES {
        for (addr, len) in [
            (u64::MAX, 1),
            (u64::MAX, 2),
            (u64::MAX - 2, 4),
            (u64::MAX - 3, 4),
            (u64::MAX - 6, 8),
        ] {
            let one = Doorbell {
                addr,
                len,
                flags,
                ..plain(&kick)
            };
            assert_eq!(one.assign(&vm), Err(libc::EINVAL), "{one:?}");
        }
        for bit in kvm_ioeventfd_flag_nr_max..32 {
            let one = Doorbell {
                flags: flags | 1 << bit,
                ..plain(&kick)
            };
            assert_eq!(one.assign(&vm), Err(libc::EINVAL), "{one:?}");
        }
    }
    for (addr, len) in [(u64::MAX - 4, 4), (u64::MAX, 0)] {
        let last = Doorbell {
            addr,
            len,
            ..plain(&kick)
        };
        assert_eq!(last.assign(&vm), Ok(()), "{last:?}");
    }
}

#[test]
fn what_is_signalled_must_be_an_eventfd() {
    let Some(vm) = vm() else { return };
    let kick = eventfd();
    let file = fs::File::open("/dev/null").unwrap();
    for (fd, answer) in [(-1, libc::EBADF), (file.as_raw_fd(), libc::EINVAL)] {
        let one = Doorbell { fd, ..plain(&kick) };
        assert_eq!(one.assign(&vm), Err(answer));
    }
}

/// Two doorbells at one address, and whether there is room for both.
#[test]
fn doorbells_collide_by_address_and_length_unless_both_match_other_data() {
    let Some(vm) = vm() else { return };
    let (kick, other) = (eventfd(), eventfd());
    let wildcard = |len| (len, 0, 0);
    let matching = |len, data| (len, MATCH, data);
    let cases = [
        (wildcard(4), wildcard(4), false),
        (wildcard(4), matching(4, 1), false),
        (matching(4, 1), wildcard(4), false),
        (matching(4, 1), matching(4, 1), false),
        (matching(4, 1), matching(4, 2), true),
        (wildcard(2), wildcard(4), true),
        (wildcard(2), matching(4, 1), true),
        (matching(2, 1), matching(4, 1), true),
        (wildcard(0), wildcard(0), false),
        (wildcard(0), wildcard(8), false),
        (wildcard(1), wildcard(0), false),
        (wildcard(0), matching(2, 1), false),
        (matching(2, 1), wildcard(0), false),
    ];
    for space in SPACES {
        for (first, second, both) in cases {
            let [first, second] =
                [(first, &kick), (second, &other)].map(|((len, flags, data), fd)| Doorbell {
                    len,
                    data,
                    flags: flags | space,
                    ..plain(fd)
                });
            assert_eq!(first.assign(&vm), Ok(()));
            let answer = if both { Ok(()) } else { Err(libc::EEXIST) };
            assert_eq!(second.assign(&vm), answer, "{first:?} {second:?}");
            // Not even the same eventfd may be there twice.
            let again = Doorbell {
                fd: first.fd,
                ..second
            };
            if !both {
                assert_eq!(again.assign(&vm), Err(libc::EEXIST));
            }
            assert_eq!(first.release(&vm), Ok(()));
            assert_eq!(
                second.release(&vm),
                if both { Ok(()) } else { Err(libc::ENOENT) }
            );
        }
    }
    let memory = plain(&kick);
    let port = Doorbell {
        flags: PIO,
        ..memory
    };
    assert_eq!(memory.assign(&vm), Ok(()));
    assert_eq!(port.assign(&vm), Ok(()), "another address space");
    let next = Doorbell {
        addr: ADDRESS + 2,
        ..memory
    };
    assert_eq!(next.assign(&vm), Ok(()), "overlapping is no collision");
    let Some(another) = self::vm() else { return };
    assert_eq!(memory.release(&another), Err(libc::ENOENT));
    assert_eq!(memory.assign(&another), Ok(()), "another VM");
}

#[test]
fn a_release_must_repeat_descriptor_address_length_space_wildcard_and_data() {
    let Some(vm) = vm() else { return };
    let (kick, other) = (eventfd(), eventfd());
    for space in SPACES {
        let one = Doorbell {
            flags: space | MATCH,
            data: 7,
            ..plain(&kick)
        };
        assert_eq!(one.assign(&vm), Ok(()));
        for wrong in [
            Doorbell {
                fd: other.as_fd().as_raw_fd(),
                ..one
            },
            Doorbell {
                addr: ADDRESS + 4,
                ..one
            },
            Doorbell { len: 2, ..one },
            Doorbell {
                len: 0,
                flags: space,
                ..one
            },
            Doorbell {
                flags: (space ^ PIO) | MATCH,
                ..one
            },
            Doorbell {
                flags: space,
                ..one
            },
            Doorbell { data: 8, ..one },
        ] {
            assert_eq!(wrong.release(&vm), Err(libc::ENOENT), "{wrong:?}");
        }
        assert_eq!(one.release(&vm), Ok(()));
        assert_eq!(one.release(&vm), Err(libc::ENOENT), "it was released");
        let wildcard = Doorbell {
            flags: space,
            data: 0,
            ..one
        };
        assert_eq!(wildcard.assign(&vm), Ok(()));
        let matching = Doorbell {
            flags: space | MATCH,
            ..wildcard
        };
        assert_eq!(matching.release(&vm), Err(libc::ENOENT));
        let unread = Doorbell {
            data: 7,
            ..wildcard
        };
        assert_eq!(unread.release(&vm), Ok(()), "a wildcard has no data");
    }
}

/// The kernel's number of an eventfd: unique while anyone, KVM included, holds
/// it; the lowest free one is given out next.
fn number(of: &EventFd) -> u32 {
    let info = format!("/proc/self/fdinfo/{}", of.as_fd().as_raw_fd());
    let text = fs::read_to_string(info).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("eventfd-id:"));
    line.unwrap().trim().parse().unwrap()
}

/// Waits until one of these numbers is given out again: the eventfd that had it
/// is held by nobody any more. KVM gives it back after a grace period.
fn comes_back(numbers: &BTreeSet<u32>) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        let fresh: Vec<_> = (0..numbers.len()).map(|_| eventfd()).collect();
        if fresh.iter().any(|event| numbers.contains(&number(event))) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("KVM holds every one of {} eventfds", numbers.len());
}

#[test]
fn everything_is_released_when_the_vm_ends() {
    let Some(vm) = vm() else { return };
    let held: BTreeSet<_> = (0..200)
        .map(|index| {
            let kick = eventfd();
            let one = Doorbell {
                addr: ADDRESS + 8 * index,
                ..plain(&kick)
            };
            assert_eq!(one.assign(&vm), Ok(()));
            number(&kick)
        })
        .collect();
    let fresh: Vec<_> = (0..400).map(|_| eventfd()).collect();
    let taken = fresh.iter().any(|event| held.contains(&number(event)));
    assert!(!taken, "KVM holds them, though nobody else does");
    drop((vm, fresh));
    comes_back(&held);
}

#[test]
fn a_vm_has_room_for_more_doorbells_than_its_devices_can_have() {
    let Some(vm) = vm() else { return };
    let kick = eventfd();
    // 31 devices with 64 queues each.
    for index in 0..31 * 64 {
        let one = Doorbell {
            addr: ADDRESS + 8 * index,
            ..plain(&kick)
        };
        assert_eq!(one.assign(&vm), Ok(()), "after {index} others");
    }
}
