//! What a vCPU says of itself: the host's CPUID as far as KVM virtualizes it,
//! with the topology of this machine (one package of single-threaded cores).

use anyhow::{Context, Result};
use kvm_bindings::kvm_cpuid_entry2;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

/// KVM counts its local APIC timers in nanoseconds: a bus of 1 GHz.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// Leaves that tell frequencies to a guest of a hypervisor.
const HYPERVISOR_BASE: u32 = 0x4000_0000;
const HYPERVISOR_FREQUENCIES: u32 = 0x4000_0010;

/// The leaves that all vCPUs share; each gets its own by [`Cpuid::of`].
pub(crate) struct Cpuid {
    entries: Vec<kvm_cpuid_entry2>,
    cpus: u8,
}

impl Cpuid {
    /// What `kvm` supports, for a machine of `cpus` vCPUs.
    ///
    /// # Errors
    /// Those of KVM_GET_SUPPORTED_CPUID.
    pub(crate) fn new(kvm: &Kvm, cpus: u8) -> Result<Self> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .context("asking KVM what CPUID it supports")?;
        let mut entries = supported.as_slice().to_vec();
        // KVM does not list the TSC deadline timer: it has it only together
        // with a local APIC in the kernel, which this machine has.
        let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        for entry in entries.iter_mut().filter(|entry| entry.function == 1) {
            entry.ecx |= ecx1::HYPERVISOR;
            if deadline {
                entry.ecx |= ecx1::TSC_DEADLINE;
            }
        }
        Ok(Self { entries, cpus })
    }

    /// The leaves of the vCPU with this APIC id, below the number of vCPUs.
    /// `tsc_khz` is its TSC frequency, where known.
    ///
    /// # Errors
    /// There are more leaves than KVM takes.
    pub(crate) fn of(&self, apic_id: u8, tsc_khz: Option<u32>) -> Result<CpuId> {
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            self.place(entry, u32::from(apic_id));
        }
        self.add_topology(&mut entries, u32::from(apic_id));
        if let Some(khz) = tsc_khz {
            add_frequencies(&mut entries, khz);
        }
        CpuId::from_entries(&entries).context("putting a vCPU's CPUID together")
    }

    /// Whether the vendor is AMD, or Hygon, which builds on AMD's.
    fn is_amd(&self) -> bool {
        let vendor = self.entries.iter().find(|entry| entry.function == 0);
        vendor.is_some_and(|leaf| matches!(&leaf.ebx.to_le_bytes(), b"Auth" | b"Hygo"))
    }

    /// How many low bits of an APIC id number the cores.
    fn core_bits(&self) -> u32 {
        u32::from(self.cpus.max(1))
            .next_power_of_two()
            .trailing_zeros()
    }

    /// Corrects a leaf that tells which of how many processors this is.
    fn place(&self, entry: &mut kvm_cpuid_entry2, apic_id: u32) {
        let cpus = u32::from(self.cpus.max(1));
        match (entry.function, entry.index) {
            (1, _) => {
                entry.ebx = entry.ebx & 0xffff | cpus << 16 | apic_id << 24;
                entry.edx &= !edx1::HTT;
                if cpus > 1 {
                    entry.edx |= edx1::HTT;
                }
            }
            // Caches, of Intel's and of AMD's: bits 14 to 25 are how many
            // threads share one, less one. A null type ends the list.
            (4 | 0x8000_001d, _) if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 7;
                let sharing = if level >= 3 { cpus } else { 1 };
                entry.eax = entry.eax & !(0xfff << 14) | (sharing - 1) << 14;
                if entry.function == 4 {
                    entry.eax = entry.eax & !(0x3f << 26) | (cpus - 1) << 26;
                }
            }
            // AMD's number of cores and of APIC id bits that number them.
            (0x8000_0008, _) if self.is_amd() => {
                entry.ecx = entry.ecx & !0xf0ff | (cpus - 1) | self.core_bits() << 12;
            }
            // AMD's extended APIC id, core id (one thread each) and node 0 of 1.
            (0x8000_001e, _) => {
                entry.eax = apic_id;
                entry.ebx = apic_id & 0xff;
                entry.ecx = 0;
            }
            _ => {}
        }
    }

    /// Replaces the leaves 0xb and 0x1f: a level of threads, one of cores.
    fn add_topology(&self, entries: &mut Vec<kvm_cpuid_entry2>, apic_id: u32) {
        const THREADS: u32 = 1;
        const CORES: u32 = 2;
        let last = entries.iter().find(|entry| entry.function == 0);
        let last = last.map_or(0, |entry| entry.eax);
        entries.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
        for function in [0xb, 0x1f].into_iter().filter(|leaf| *leaf <= last) {
            let levels = [
                (0, 1, THREADS),
                (self.core_bits(), u32::from(self.cpus), CORES),
                (0, 0, 0),
            ];
            for (index, (shift, processors, kind)) in (0u32..).zip(levels) {
                entries.push(kvm_cpuid_entry2 {
                    function,
                    index,
                    flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                    eax: shift,
                    ebx: processors,
                    ecx: kind << 8 | index,
                    edx: apic_id,
                    ..Default::default()
                });
            }
        }
    }
}

/// Tells the frequencies of TSC and APIC timer, in kHz, so that no guest needs
/// to measure them.
fn add_frequencies(entries: &mut Vec<kvm_cpuid_entry2>, tsc_khz: u32) {
    let Some(base) = entries
        .iter_mut()
        .find(|entry| entry.function == HYPERVISOR_BASE)
    else {
        return;
    };
    base.eax = base.eax.max(HYPERVISOR_FREQUENCIES);
    entries.retain(|entry| entry.function != HYPERVISOR_FREQUENCIES);
    entries.push(kvm_cpuid_entry2 {
        function: HYPERVISOR_FREQUENCIES,
        eax: tsc_khz,
        ebx: APIC_BUS_KHZ,
        ..Default::default()
    });
}

mod ecx1 {
    pub(crate) const TSC_DEADLINE: u32 = 1 << 24;
    pub(crate) const HYPERVISOR: u32 = 1 << 31;
}

mod edx1 {
    /// Several logical processors in the package.
    pub(crate) const HTT: u32 = 1 << 28;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            ..Default::default()
        }
    }

    fn made(cpus: u8, apic_id: u8) -> Vec<kvm_cpuid_entry2> {
        made_by(b"Auth", cpus, apic_id)
    }

    fn made_by(vendor: &[u8; 4], cpus: u8, apic_id: u8) -> Vec<kvm_cpuid_entry2> {
        let mut first = leaf(0, 0);
        first.eax = 0x1f;
        first.ebx = u32::from_le_bytes(*vendor);
        let mut one = leaf(1, 0);
        one.ebx = 0xffff_0800;
        let mut l3 = leaf(4, 3);
        l3.eax = 0xffff_c163;
        let hypervisor = leaf(HYPERVISOR_BASE, 0);
        let entries = vec![
            first,
            one,
            l3,
            leaf(0xb, 0),
            leaf(0x8000_0008, 0),
            leaf(0x8000_001e, 0),
            hypervisor,
        ];
        let cpuid = Cpuid { entries, cpus };
        cpuid
            .of(apic_id, Some(2_000_000))
            .unwrap()
            .as_slice()
            .to_vec()
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut found = entries
            .iter()
            .filter(|e| (e.function, e.index) == (function, index));
        let entry = *found.next().unwrap();
        assert!(found.next().is_none(), "leaf {function:#x} twice");
        entry
    }

    #[test]
    fn each_vcpu_finds_its_own_id_in_every_leaf_that_tells_one() {
        for (cpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (32, 5)] {
            for id in 0..cpus {
                let entries = made(cpus, id);
                let one = find(&entries, 1, 0);
                assert_eq!(
                    one.ebx,
                    u32::from(id) << 24 | u32::from(cpus) << 16 | 0x0800
                );
                assert_eq!(one.edx & edx1::HTT != 0, cpus > 1);
                assert_eq!(find(&entries, 0x8000_001e, 0).eax, u32::from(id));
                for function in [0xb, 0x1f] {
                    let cores = find(&entries, function, 1);
                    assert_eq!((cores.eax, cores.ebx), (bits, u32::from(cpus)));
                    assert_eq!(cores.ecx, 0x201);
                    assert_eq!(cores.edx, u32::from(id));
                    assert_eq!(find(&entries, function, 2).ecx, 2);
                }
            }
        }
    }

    #[test]
    fn the_last_cache_is_shared_by_all_cores_and_the_rest_of_its_leaf_is_the_hosts() {
        let l3 = find(&made(4, 1), 4, 3);
        assert_eq!(l3.eax & 0x3fff, 0xffff_c163 & 0x3fff);
        assert_eq!(l3.eax >> 14 & 0xfff, 3);
        assert_eq!(l3.eax >> 26, 3);
    }

    #[test]
    fn the_number_of_cores_is_told_amds_way_by_amd_alone() {
        assert_eq!(find(&made(3, 0), 0x8000_0008, 0).ecx, 2 << 12 | 2);
        assert_eq!(find(&made_by(b"Genu", 3, 0), 0x8000_0008, 0).ecx, 0);
    }

    #[test]
    fn the_frequencies_are_told() {
        let entries = made(1, 0);
        assert_eq!(
            find(&entries, HYPERVISOR_BASE, 0).eax,
            HYPERVISOR_FREQUENCIES
        );
        let frequencies = find(&entries, HYPERVISOR_FREQUENCIES, 0);
        assert_eq!((frequencies.eax, frequencies.ebx), (2_000_000, 1_000_000));
    }
}
