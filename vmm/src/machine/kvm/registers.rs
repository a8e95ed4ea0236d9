//! The state in which the first vCPU enters a kernel.

use anyhow::{Context, Result};
use kvm_bindings::{Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// 64-bit: paging on, the page tables at `page_tables` map what the kernel
    /// needs to its own address; RSI = `argument` (Linux boot protocol, section
    /// "64-bit Boot Protocol").
    Long {
        /// Guest-physical address of the top page table.
        page_tables: u64,
    },
    /// 32-bit, paging off; EBX = `argument` (PVH, "x86/HVM direct boot ABI").
    Protected,
}

/// Where and how the first vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// In which mode.
    pub(crate) mode: Mode,
    /// The first instruction's guest-physical address.
    pub(crate) address: u64,
    /// Guest-physical address of what the kernel is told.
    pub(crate) argument: u64,
    /// Guest-physical address of [`gdt`]'s table.
    pub(crate) gdt: u64,
}

/// Selectors as the Linux boot protocol names them (__BOOT_CS, __BOOT_DS).
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

/// The descriptor table that a mode's selectors point into.
pub(crate) fn gdt(mode: Mode) -> [u64; 5] {
    let code = match mode {
        Mode::Long { .. } => 0x00af_9b00_0000_ffff,
        Mode::Protected => 0x00cf_9b00_0000_ffff,
    };
    [0, 0, code, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067]
}

/// Readies the first vCPU to enter a kernel.
///
/// # Errors
/// KVM refused the registers.
pub(crate) fn set(vcpu: &VcpuFd, entry: &Entry) -> Result<()> {
    let mut special = vcpu
        .get_sregs()
        .context("reading the first vCPU's registers")?;
    set_special(&mut special, entry);
    vcpu.set_sregs(&special)
        .context("setting the first vCPU's system registers")?;
    let mut general = kvm_regs {
        rip: entry.address,
        // Bit 1 is always set.
        rflags: 2,
        ..Default::default()
    };
    match entry.mode {
        Mode::Long { .. } => general.rsi = entry.argument,
        Mode::Protected => general.rbx = entry.argument,
    }
    vcpu.set_regs(&general)
        .context("setting the first vCPU's registers")
}

fn set_special(special: &mut kvm_sregs, entry: &Entry) {
    const CR0_PE: u64 = 1;
    const CR0_ET: u64 = 1 << 4;
    const CR0_PG: u64 = 1 << 31;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LME: u64 = 1 << 8;
    const EFER_LMA: u64 = 1 << 10;
    let flat = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let long = matches!(entry.mode, Mode::Long { .. });
    special.cs = kvm_segment {
        selector: CODE,
        // Execute, read, accessed.
        type_: 0xb,
        l: u8::from(long),
        db: u8::from(!long),
        ..flat
    };
    let data = kvm_segment {
        selector: DATA,
        // Read, write, accessed.
        type_: 3,
        db: 1,
        ..flat
    };
    special.ds = data;
    special.es = data;
    special.fs = data;
    special.gs = data;
    special.ss = data;
    special.tr = kvm_segment {
        selector: TASK,
        limit: 0x67,
        // A busy task state segment.
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    special.gdt = kvm_dtable {
        base: entry.gdt,
        limit: size_of_val(&gdt(entry.mode)) as u16 - 1,
        ..Default::default()
    };
    special.idt = kvm_dtable::default();
    special.cr0 = CR0_PE | CR0_ET;
    special.cr4 = 0;
    if let Mode::Long { page_tables } = entry.mode {
        special.cr0 |= CR0_PG;
        special.cr3 = page_tables;
        special.cr4 = CR4_PAE;
        special.efer |= EFER_LME | EFER_LMA;
    }
}

/// Sets what firmware would have set on every processor: memory is cached
/// unless a page says otherwise (without it Linux leaves the page attribute
/// table off), and string instructions are fast.
pub(crate) fn set_firmware_msrs(vcpu: &VcpuFd) {
    const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRING: u64 = 1;
    const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
    const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
    for (index, data) in [
        (MSR_MTRR_DEFAULT_TYPE, MTRR_ENABLED_WRITE_BACK),
        (MSR_IA32_MISC_ENABLE, FAST_STRING),
    ] {
        let entry = kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        // A KVM that has not got the register has nothing to be told by it.
        let set = Msrs::from_entries(&[entry]).map(|msrs| vcpu.set_msrs(&msrs));
        if !matches!(set, Ok(Ok(1))) {
            log::debug!("KVM does not take MSR {index:#x}");
        }
    }
}
