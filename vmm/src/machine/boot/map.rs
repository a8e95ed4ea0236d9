//! Where the loader puts things, and which memory the guest is told of.
//!
//! ```text
//! 0x0500    descriptor table
//! 0x6000    PVH start information
//! 0x7000    zero page (boot_params)
//! 0x9000    page tables: 4 GiB mapped to itself
//! 0x2_0000  command line
//! 0xe_0000  ACPI tables
//! 0xf_fff0  the code that a PC's firmware has there: a reset
//! 1 MiB     the kernel, from here or higher
//!           the initial RAM disk, as high as it may
//! ```

use super::super::layout;
use super::super::memory::Ram;

/// Descriptor table.
pub(crate) const GDT: u64 = 0x500;
/// PVH start information, with its lists behind it.
pub(crate) const START_INFO: u64 = 0x6000;
/// The Linux boot protocol's zero page.
pub(crate) const ZERO_PAGE: u64 = 0x7000;
/// Six pages of page tables.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// Command line with its terminating zero.
pub(crate) const CMDLINE: u64 = 0x2_0000;
/// Room for it, in bytes.
pub(crate) const CMDLINE_ROOM: u64 = 0x1_0000;
/// ACPI tables; the root pointer comes first, where a kernel would scan for it.
pub(crate) const ACPI: std::ops::Range<u64> = 0xe_0000..0x10_0000;
/// Where real-mode code jumps for a reset (f000:fff0), the last bytes of
/// [`ACPI`].
pub(crate) const RESET_VECTOR: u64 = 0xf_fff0;
/// End of low memory that the guest is told of.
pub(crate) const LOW_END: u64 = 0xa_0000;
/// A kernel lies here or higher.
pub(crate) const KERNEL_MIN: u64 = 0x10_0000;

/// What a range of memory is, by its number in E820 and in PVH's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// Usable.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
    /// ACPI tables.
    Acpi = 3,
}

/// One range of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// First guest-physical address.
    pub(crate) start: u64,
    /// Size in bytes.
    pub(crate) size: u64,
    /// What it is.
    pub(crate) kind: Kind,
}

/// End of RAM below 4 GiB.
pub(crate) fn low_ram_end(ram: &Ram) -> u64 {
    let low = ram.regions().iter().find(|region| region.guest_phys == 0);
    low.map_or(0, |region| region.size)
}

/// The memory map, by rising address. ECAM must be in it as reserved, or Linux
/// does not use it.
pub(crate) fn memory_map(ram: &Ram) -> Vec<Span> {
    let span = |range: std::ops::Range<u64>, kind| Span {
        start: range.start,
        size: range.end - range.start,
        kind,
    };
    let mut map = vec![
        span(0..LOW_END, Kind::Ram),
        span(ACPI, Kind::Acpi),
        span(KERNEL_MIN..low_ram_end(ram), Kind::Ram),
        span(layout::ECAM, Kind::Reserved),
        // KVM's identity map, and its TSS of three pages.
        span(
            layout::KVM_IDENTITY_MAP..layout::KVM_TSS + 0x3000,
            Kind::Reserved,
        ),
    ];
    for region in ram.regions() {
        if region.guest_phys >= layout::HIGH_RAM_START {
            map.push(span(
                region.guest_phys..region.guest_phys + region.size,
                Kind::Ram,
            ));
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::super::super::memory::Backing;
    use super::*;

    #[test]
    fn the_map_rises_without_overlap_and_holds_all_of_memory_above_1_mib() {
        for size in [256 << 20, 3 << 30, 5 << 30] {
            let ram = Ram::new(size, Backing::default()).unwrap();
            let map = memory_map(&ram);
            for pair in map.windows(2) {
                assert!(pair[0].start + pair[0].size <= pair[1].start, "{pair:x?}");
            }
            let usable: u64 = map
                .iter()
                .filter(|span| span.kind == Kind::Ram && span.start >= KERNEL_MIN)
                .map(|span| span.size)
                .sum();
            assert_eq!(usable, size - KERNEL_MIN);
        }
    }

    #[test]
    fn ecam_is_reserved() {
        let ram = Ram::new(2 << 20, Backing::default()).unwrap();
        let ecam = Span {
            start: layout::ECAM.start,
            size: 1 << 20,
            kind: Kind::Reserved,
        };
        assert!(memory_map(&ram).contains(&ecam));
    }
}
