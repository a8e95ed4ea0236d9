//! What to tell of a guest on which KVM gave up: registers, code bytes, reason.

use std::fmt::Write;

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_DELIVERY_EV,
    KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_regs, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::host_has_hardware_virtualization;
use crate::machine::memory::Ram;

/// Describes the state in which KVM gave up on a vCPU. `what` is the exit.
pub(crate) fn describe(vcpu: &mut VcpuFd, id: u8, what: &str, ram: &Ram) -> String {
    let mut text = format!("vCPU {id}: {what}");
    // Writing to a String cannot fail.
    let _ = write!(text, "{}", reason(vcpu));
    match (vcpu.get_regs(), vcpu.get_sregs()) {
        (Ok(general), Ok(special)) => {
            let _ = write!(text, "\n{}", registers(&general, &special));
            let linear = special.cs.base.wrapping_add(general.rip);
            let _ = write!(text, "\ncode at RIP: {}", code(vcpu, linear, &special, ram));
        }
        _ => text.push_str("\n(its registers cannot be read)"),
    }
    if !host_has_hardware_virtualization() {
        text.push_str(
            "\nThis host's processor has neither svm nor vmx: its KVM emulates ring 0 in software, \
             one instruction at a time, and does not know all of them. Stock kernels do not boot \
             on it; scripts/linux runs them in an emulated host.",
        );
    }
    text
}

/// KVM's own reason, from the run area.
fn reason(vcpu: &mut VcpuFd) -> String {
    let run = vcpu.get_kvm_run();
    match run.exit_reason {
        KVM_EXIT_INTERNAL_ERROR => {
            // SAFETY: the exit reason says that this member is in use.
            let internal = unsafe { run.__bindgen_anon_1.internal };
            let name = match internal.suberror {
                KVM_INTERNAL_ERROR_EMULATION => "an instruction that KVM cannot emulate",
                KVM_INTERNAL_ERROR_SIMUL_EX => "simultaneous exceptions",
                KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while an event was delivered",
                KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an unexpected exit reason",
                _ => "unknown",
            };
            let data = internal.data.iter().take(internal.ndata as usize);
            let data: Vec<_> = data.map(|word| format!("{word:#x}")).collect();
            format!(
                ", suberror {} ({name}), data [{}]",
                internal.suberror,
                data.join(", ")
            )
        }
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: the exit reason says that this member is in use.
            let fail = unsafe { run.__bindgen_anon_1.fail_entry };
            format!(
                ", hardware entry failure reason {:#x}",
                fail.hardware_entry_failure_reason
            )
        }
        _ => String::new(),
    }
}

fn registers(general: &kvm_regs, special: &kvm_sregs) -> String {
    let g = general;
    let rows = [
        [
            ("rax", g.rax),
            ("rbx", g.rbx),
            ("rcx", g.rcx),
            ("rdx", g.rdx),
        ],
        [
            ("rsi", g.rsi),
            ("rdi", g.rdi),
            ("rsp", g.rsp),
            ("rbp", g.rbp),
        ],
        [("r8 ", g.r8), ("r9 ", g.r9), ("r10", g.r10), ("r11", g.r11)],
        [
            ("r12", g.r12),
            ("r13", g.r13),
            ("r14", g.r14),
            ("r15", g.r15),
        ],
        [
            ("rip", g.rip),
            ("flg", g.rflags),
            ("cs ", u64::from(special.cs.selector)),
            ("ss ", u64::from(special.ss.selector)),
        ],
        [
            ("cr0", special.cr0),
            ("cr2", special.cr2),
            ("cr3", special.cr3),
            ("cr4", special.cr4),
        ],
    ];
    let rows = rows.map(|row| {
        row.map(|(name, value)| format!("{name}={value:016x}"))
            .join(" ")
    });
    format!("{}\nefer={:x}", rows.join("\n"), special.efer)
}

/// The bytes of the instruction at a linear address, as far as they are RAM.
fn code(vcpu: &VcpuFd, linear: u64, special: &kvm_sregs, ram: &Ram) -> String {
    const CR0_PG: u64 = 1 << 31;
    let physical = if special.cr0 & CR0_PG == 0 {
        linear
    } else {
        match vcpu.translate_gva(linear) {
            Ok(translation) if translation.valid != 0 => translation.physical_address,
            _ => return "not mapped".into(),
        }
    };
    let mut bytes = [0; 15];
    match ram.guest().read(&mut bytes, GuestAddress(physical)) {
        Ok(count) => {
            let bytes = bytes.iter().take(count).map(|byte| format!("{byte:02x}"));
            bytes.collect::<Vec<_>>().join(" ")
        }
        Err(_) => "not in memory".into(),
    }
}
