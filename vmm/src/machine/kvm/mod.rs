//! The virtual machine as KVM knows it: its capabilities, its interrupt
//! controllers, its memory slots.

pub(crate) mod cpuid;
pub mod doorbell;
pub(crate) mod failure;
pub(crate) mod irq;
pub(crate) mod registers;
pub(crate) mod vcpu;

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use kvm_bindings::{KVM_API_VERSION, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::layout;
use super::memory::Ram;

/// What Outboard cannot do without, and the first Linux that has them all.
const NEEDED: [(Cap, &str); 9] = [
    (Cap::Irqchip, "an interrupt controller in the kernel"),
    (Cap::UserMemory, "user memory"),
    (Cap::SetTssAddr, "a TSS address"),
    (Cap::SetIdentityMapAddr, "an identity map address"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::Irqfd, "irqfd"),
    (Cap::IrqRouting, "interrupt routing"),
    (Cap::SignalMsi, "message-signalled interrupts"),
    (Cap::ImmediateExit, "immediate exit"),
];

/// Adopts an open /dev/kvm.
///
/// # Errors
/// It is not KVM, or one without something that Outboard needs.
pub(crate) fn adopt(fd: OwnedFd) -> Result<Kvm> {
    // SAFETY: the descriptor is owned and given away here. What it refers to is
    // checked by the first request: anything but KVM refuses it.
    let kvm = unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) };
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION as i32 {
        bail!("the descriptor given as /dev/kvm is not KVM (API version {version})");
    }
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(cap, _)| !kvm.check_extension(*cap))
        .map(|(_, name)| *name)
        .collect();
    if !missing.is_empty() {
        bail!(
            "this KVM lacks {}; a Linux of 4.13 or later has all of it",
            missing.join(", ")
        );
    }
    Ok(kvm)
}

/// Makes the virtual machine: memory slots and interrupt controllers, no vCPUs.
///
/// # Errors
/// KVM refused a part of it; the text says which.
pub(crate) fn create_vm(kvm: &Kvm, ram: &Ram) -> Result<Arc<VmFd>> {
    let vm = kvm.create_vm().context("making a virtual machine")?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .context("placing KVM's identity map")?;
    vm.set_tss_address(layout::KVM_TSS as usize)
        .context("placing KVM's TSS")?;
    // Before any vCPU: each is made with its local APIC.
    vm.create_irq_chip()
        .context("making the interrupt controllers")?;
    for (slot, region) in (0..).zip(ram.regions()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.guest_phys,
            memory_size: region.size,
            userspace_addr: region.host_address,
        };
        // SAFETY: the range is a mapping that `Ram` owns. The machine keeps
        // its `Ram` for as long as any vCPU runs, and KVM holds references of
        // its own to the pages it maps.
        unsafe { vm.set_user_memory_region(slot) }.with_context(|| {
            format!(
                "giving the guest {} MiB of memory at {:#x}",
                region.size >> 20,
                region.guest_phys
            )
        })?;
    }
    Ok(Arc::new(vm))
}

/// Whether this host's processor runs guests itself. Without that, KVM is a
/// software one that emulates ring 0.
pub fn host_has_hardware_virtualization() -> bool {
    use std::arch::x86_64::__cpuid;
    let vmx = __cpuid(1).ecx & 1 << 5 != 0;
    let extended = __cpuid(0x8000_0000).eax;
    let svm = extended >= 0x8000_0001 && __cpuid(0x8000_0001).ecx & 1 << 2 != 0;
    vmx || svm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_that_is_not_kvm_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let error = adopt(null.into()).unwrap_err();
        assert!(error.to_string().contains("not KVM"), "{error}");
    }
}
