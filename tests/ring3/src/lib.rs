//! A virtual machine without a kernel: its vCPUs begin in ring 3 of 64-bit
//! mode, by KVM_SET_SREGS, and run a few instructions there. That is all a test
//! or a measurement of KVM itself needs, and it is the one mode that every KVM
//! runs natively: a software one emulates ring 0.
//!
//! Addresses are mapped to themselves: [`MEMORY`] bytes of memory from 0 on,
//! and the gigabyte from [`DEVICES`] on, where there is nothing. All ports may
//! be used. There are no interrupts.

mod code;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

pub use code::Program;

/// Bytes of guest memory.
pub const MEMORY: u64 = 2 << 20;
/// Where device memory is.
pub const DEVICES: u64 = 0xc000_0000;
/// Memory that is the caller's: from here to the end of [`MEMORY`].
pub const DATA: u64 = 0x10_0000;

const TABLES: u64 = 0x1000;
const CODE: u64 = 0x1_0000;
/// Bytes of a program.
const ROOM: usize = 0x100;
const TASK: u64 = 0x2_0000;
/// Bytes of a 64-bit TSS before its I/O bitmap, and of that with its end.
const TASK_HEAD: u16 = 104;
const BITMAP: u64 = 8192 + 1;
/// Present, writable, user; and: a large page.
const ENTRY: u64 = 0b111;
const LARGE: u64 = 1 << 7;

/// One processor of a [`Machine`].
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    /// Where its program is put.
    place: u64,
    memory: Memory,
}

impl Vcpu {
    /// Ticks of its time stamp counter in a millisecond.
    ///
    /// # Errors
    /// KVM does not say.
    pub fn ticks_in_a_millisecond(&self) -> Result<u32> {
        self.fd.get_tsc_khz().context("asking for the TSC's rate")
    }

    /// Begins `program`, of 256 bytes at most, with these registers.
    ///
    /// # Errors
    /// KVM refuses it.
    pub fn begin(&mut self, program: &Program, registers: kvm_regs) -> Result<()> {
        ensure!(program.bytes().len() <= ROOM, "a program of this size");
        put(&self.memory, self.place, program.bytes())?;
        self.fd.set_regs(&kvm_regs {
            rip: self.place,
            // Ports for ring 3, and the bit that is always set.
            rflags: 3 << 12 | 1 << 1,
            ..registers
        })?;
        Ok(())
    }

    /// Runs it until it exits.
    ///
    /// # Errors
    /// Those of KVM_RUN.
    pub fn run(&mut self) -> Result<VcpuExit<'_>> {
        self.fd.run().context("running a vCPU")
    }
}

type Memory = Arc<GuestMemoryMmap>;

/// See the module.
#[derive(Debug)]
pub struct Machine {
    vm: Arc<VmFd>,
    memory: Memory,
}

impl Machine {
    /// One without vCPUs.
    ///
    /// # Errors
    /// KVM or the kernel refuses a part of it.
    pub fn new(kvm: &Kvm) -> Result<Self> {
        let vm = kvm.create_vm().context("making a virtual machine")?;
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY as usize)])?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        };
        // SAFETY: the range is the mapping of `memory`, which lives as long as
        // the machine and each of its vCPUs, who share it.
        unsafe { vm.set_user_memory_region(region) }.context("giving it memory")?;
        let machine = Self {
            vm: Arc::new(vm),
            memory: Arc::new(memory),
        };
        machine.map()?;
        Ok(machine)
    }

    /// Page tables, and a task whose every port is allowed.
    fn map(&self) -> Result<()> {
        let [top, directories, low, high] = [0, 1, 2, 3].map(|page| TABLES + page * 0x1000);
        self.put(top, directories | ENTRY)?;
        self.put(directories, low | ENTRY)?;
        self.put(directories + 8 * (DEVICES >> 30), high | ENTRY)?;
        self.put(low, ENTRY | LARGE)?;
        for page in 0..512 {
            let address = DEVICES + (page << 21);
            self.put(high + 8 * page, address | ENTRY | LARGE)?;
        }
        self.put_bytes(TASK + 102, &TASK_HEAD.to_le_bytes())?;
        self.put_bytes(TASK + u64::from(TASK_HEAD) + BITMAP - 1, &[0xff])
    }

    /// The VM.
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// A word of memory as it is now; what a vCPU wrote before it is seen too.
    ///
    /// # Errors
    /// There is no such word.
    pub fn word(&self, address: u64) -> Result<u64> {
        Ok(self.memory.load(GuestAddress(address), Ordering::Acquire)?)
    }

    fn put(&self, address: u64, word: u64) -> Result<()> {
        self.put_bytes(address, &word.to_le_bytes())
    }

    fn put_bytes(&self, address: u64, bytes: &[u8]) -> Result<()> {
        put(&self.memory, address, bytes)
    }

    /// Makes a vCPU in ring 3, which has nothing to do yet.
    ///
    /// # Errors
    /// KVM refuses it.
    pub fn vcpu(&self, id: u8) -> Result<Vcpu> {
        let fd = self.vm.create_vcpu(id.into()).context("making a vCPU")?;
        let sregs = ring_3(fd.get_sregs()?);
        fd.set_sregs(&sregs).context("entering ring 3")?;
        Ok(Vcpu {
            fd,
            place: CODE + ROOM as u64 * u64::from(id),
            memory: Arc::clone(&self.memory),
        })
    }
}

fn put(memory: &Memory, address: u64, bytes: &[u8]) -> Result<()> {
    Ok(memory.write_slice(bytes, GuestAddress(address))?)
}

/// 64-bit mode, privilege level 3, with the tables of [`Machine::map`].
fn ring_3(sregs: kvm_sregs) -> kvm_sregs {
    let flat = |type_, selector, long: bool| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 3,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    };
    // Executable and readable, accessed; writable, accessed.
    let (code, data) = (flat(0xb, 0x33, true), flat(3, 0x2b, false));
    kvm_sregs {
        cs: code,
        ss: data,
        ds: data,
        es: data,
        tr: kvm_segment {
            base: TASK,
            limit: u32::from(TASK_HEAD) + BITMAP as u32 - 1,
            selector: 0x40,
            type_: 0xb,
            present: 1,
            s: 0,
            ..Default::default()
        },
        cr3: TABLES,
        // Protection, extension type, numeric errors, write protection, paging.
        cr0: 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31,
        // Physical address extension.
        cr4: 1 << 5,
        // Long mode, enabled and active.
        efer: 1 << 8 | 1 << 10,
        ..sregs
    }
}
