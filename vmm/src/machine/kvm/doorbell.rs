//! A doorbell: a guest address at which a write signals an eventfd in KVM,
//! without an exit to us (KVM_IOEVENTFD).
//!
//! KVM's rules: an address space (memory or ports), an address, a length of
//! 1, 2, 4 or 8 bytes or, where KVM_CAP_IOEVENTFD_ANY_LENGTH is there, any
//! (length 0). Two registrations collide (EEXIST) at one address when their
//! lengths are equal or one of them is "any". A release must repeat all that
//! was registered, else it is ENOENT. (`vmm/tests/doorbell_rules.rs` asks KVM
//! for each.) Here a [`Doorbell`] is registered for as long as it lives, lengths
//! and flags are ours, and what it signals is an eventfd, so that of all this
//! only a collision, an address that wraps and want of room can be met.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use kvm_bindings::{
    KVM_CAP_IOEVENTFD_ANY_LENGTH, kvm_ioeventfd, kvm_ioeventfd_flag_nr_deassign,
    kvm_ioeventfd_flag_nr_pio,
};
use kvm_ioctls::VmFd;
use outboard_log::rarely;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

mod number {
    #![allow(missing_docs)] // The macro makes a public function without any.
    vmm_sys_util::ioctl_iow_nr!(
        KVM_IOEVENTFD,
        kvm_bindings::KVMIO,
        0x79,
        kvm_bindings::kvm_ioeventfd
    );
}

/// Where a doorbell is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// A guest-physical address.
    Memory(u64),
    /// A port.
    Port(u16),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(address) => write!(f, "guest-physical address {address:#x}"),
            Self::Port(port) => write!(f, "port {port:#x}"),
        }
    }
}

/// The width of a write that rings, in bytes: any, the wildcard, which KVM's fast path
/// for memory needs.
const ANY: u32 = 0;

/// A registered doorbell. Dropping it releases it; a kick in flight then is
/// either signalled or exits to us.
#[derive(Debug)]
pub struct Doorbell {
    _registered: Vec<Registration>,
}

impl Doorbell {
    /// Makes writes at `address` signal `kick`, whatever their value: writes of
    /// any width, or of 2 and 4 bytes where KVM knows no "any".
    ///
    /// # Errors
    /// Another doorbell is there, the address wraps, or KVM has no room for
    /// more; the text says which, and what to do. Nothing stays registered.
    pub fn register(vm: &Arc<VmFd>, address: Address, kick: &Arc<EventFd>) -> Result<Self> {
        let any = vm.check_extension_raw(KVM_CAP_IOEVENTFD_ANY_LENGTH.into()) > 0;
        let widths: &[u32] = if any { &[ANY] } else { &[2, 4] };
        let registered = widths
            .iter()
            .map(|width| Registration::new(vm, address, *width, kick))
            .collect::<Result<_>>()?;
        Ok(Self {
            _registered: registered,
        })
    }
}

/// One KVM_IOEVENTFD that is in force.
#[derive(Debug)]
struct Registration {
    vm: Arc<VmFd>,
    address: Address,
    width: u32,
    kick: Arc<EventFd>,
}

impl Registration {
    fn new(vm: &Arc<VmFd>, address: Address, width: u32, kick: &Arc<EventFd>) -> Result<Self> {
        // Dropped only when registered: a failed one has nothing to release.
        set(vm, address, width, kick, 0).map_err(|error| explain(address, &error))?;
        Ok(Self {
            vm: Arc::clone(vm),
            address,
            width,
            kick: Arc::clone(kick),
        })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let deassign = 1 << kvm_ioeventfd_flag_nr_deassign;
        if let Err(error) = set(&self.vm, self.address, self.width, &self.kick, deassign) {
            // Only if KVM has lost it: all that was registered is repeated.
            rarely!(error, "releasing the doorbell at {}: {error}", self.address);
        }
    }
}

fn set(vm: &VmFd, address: Address, width: u32, kick: &EventFd, deassign: u32) -> io::Result<()> {
    let (addr, space) = match address {
        Address::Memory(address) => (address, 0),
        Address::Port(port) => (port.into(), 1 << kvm_ioeventfd_flag_nr_pio),
    };
    let argument = kvm_ioeventfd {
        addr,
        len: width,
        fd: kick.as_raw_fd(),
        flags: space | deassign,
        ..Default::default()
    };
    // SAFETY: `vm` is a VM's descriptor, and KVM only reads `argument`.
    let result = unsafe { ioctl_with_ref(vm, number::KVM_IOEVENTFD(), &argument) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn explain(address: Address, error: &io::Error) -> anyhow::Error {
    let reason = match error.raw_os_error() {
        Some(libc::EEXIST) => {
            "another doorbell is there; the driver must move one of the two BARs".into()
        }
        Some(libc::ENOSPC) => {
            "KVM holds as many doorbells as it can; give the devices fewer queues".into()
        }
        Some(libc::ENOMEM) => {
            "the host has no memory for it; free some, or use fewer queues".into()
        }
        // Of lengths, flags and descriptors there are none but good ones.
        Some(libc::EINVAL) => {
            "it would reach beyond the last address; the driver must move the BAR down".into()
        }
        _ => error.to_string(),
    };
    anyhow!("registering a doorbell at {address}: {reason}")
}

#[cfg(test)]
mod tests {
    use kvm_ioctls::Kvm;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn vm() -> Option<Arc<VmFd>> {
        match Kvm::new().and_then(|kvm| kvm.create_vm()) {
            Ok(vm) => Some(Arc::new(vm)),
            Err(error) => {
                eprintln!("SKIP: no usable /dev/kvm: {error}");
                None
            }
        }
    }

    fn eventfd() -> Arc<EventFd> {
        Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())
    }

    const PLACES: [Address; 2] = [Address::Memory(0xc000_3000), Address::Port(0xc000)];

    #[test]
    fn two_doorbells_at_one_address_are_refused_and_say_so() {
        let Some(vm) = vm() else { return };
        for place in PLACES {
            let first = Doorbell::register(&vm, place, &eventfd()).unwrap();
            let error = Doorbell::register(&vm, place, &eventfd()).unwrap_err();
            let error = error.to_string();
            assert!(error.contains("another doorbell"), "{error}");
            assert!(error.contains(&place.to_string()), "{error}");
            drop(first);
            Doorbell::register(&vm, place, &eventfd()).unwrap();
        }
    }

    #[test]
    fn an_address_that_wraps_is_refused_and_says_so() {
        let Some(vm) = vm() else { return };
        let last = Address::Memory(u64::MAX);
        let error = Registration::new(&vm, last, 2, &eventfd()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("0xffffffffffffffff"), "{error}");
        assert!(error.contains("beyond the last address"), "{error}");
    }

    #[test]
    fn a_refusal_names_the_place_and_what_to_do() {
        for (code, what, to_do) in [
            (libc::EEXIST, "another doorbell", "move"),
            (libc::EINVAL, "beyond", "move"),
            (libc::ENOSPC, "as many doorbells", "fewer queues"),
            (libc::ENOMEM, "no memory", "fewer queues"),
            (libc::EPERM, "not permitted", ""),
        ] {
            for (place, name) in PLACES
                .into_iter()
                .zip(["address 0xc0003000", "port 0xc000"])
            {
                let error = explain(place, &io::Error::from_raw_os_error(code)).to_string();
                for part in [name, what, to_do] {
                    assert!(error.contains(part), "{error}: {part}");
                }
            }
        }
    }

    #[test]
    fn a_dropped_doorbell_leaves_its_address_free() {
        let Some(vm) = vm() else { return };
        for place in PLACES {
            for _ in 0..3 {
                drop(Doorbell::register(&vm, place, &eventfd()).unwrap());
            }
        }
    }

    #[test]
    fn a_failed_registration_leaves_nothing_behind() {
        let Some(vm) = vm() else { return };
        let place = PLACES[0];
        // A four-byte doorbell in the way of the second of two widths.
        let obstacle = Registration::new(&vm, place, 4, &eventfd()).unwrap();
        assert!(Doorbell::register(&vm, place, &eventfd()).is_err());
        drop(obstacle);
        Doorbell::register(&vm, place, &eventfd()).unwrap();
    }

    #[test]
    fn a_release_must_repeat_all_that_was_registered() {
        let Some(vm) = vm() else { return };
        let (kick, other) = (eventfd(), eventfd());
        let one = Registration::new(&vm, PLACES[0], ANY, &kick).unwrap();
        let deassign = 1 << kvm_ioeventfd_flag_nr_deassign;
        for (place, width, fd) in [
            (PLACES[0], 2, &kick),
            (PLACES[0], ANY, &other),
            (Address::Memory(0xc000_3004), ANY, &kick),
            (Address::Port(0x3000), ANY, &kick),
        ] {
            let error = set(&vm, place, width, fd, deassign).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        }
        drop(one);
    }
}
