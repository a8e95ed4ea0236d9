//! One vCPU: what an exit asks for, and how another thread interrupts it.
//!
//! A kick is a signal. Its handler runs on the vCPU's own thread and sets
//! `immediate_exit`, so a kick that comes just before KVM_RUN is not lost: the
//! ioctl returns at once.

use std::cell::Cell;
use std::io;
use std::ptr;

use anyhow::{Context, Result};
use kvm_bindings::{KVM_EXIT_IO_OUT, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use outboard_protocol::launch::Ending;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::cpuid::Cpuid;
use super::failure;
use super::registers;
use crate::machine::memory::Ram;

/// One virtual processor.
pub(crate) struct Vcpu {
    fd: VcpuFd,
    id: u8,
}

/// Which address space an access is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// Ports.
    Port,
    /// Memory that is not RAM.
    Memory,
}

/// What a vCPU left KVM for.
pub(crate) enum Exit<'a> {
    /// The guest reads or writes, in pieces of `size` bytes that are all at `address`.
    Access {
        /// Where.
        space: Space,
        /// Guest-physical address, or port.
        address: u64,
        /// Bytes in one access: 1 to 8.
        size: usize,
        /// One access, or several of a string instruction: what the guest writes, or what
        /// is to be filled before the next run.
        data: &'a mut [u8],
        /// Whether it writes.
        is_write: bool,
    },
    /// A kick, or a signal that was not one.
    Interrupted,
    /// The guest is over.
    End(Ending),
}

impl Vcpu {
    /// Makes the vCPU with this id, which is its APIC id. All but the first
    /// wait in KVM for their start-up interrupt.
    ///
    /// # Errors
    /// KVM refused it.
    pub(crate) fn new(vm: &VmFd, cpuid: &Cpuid, id: u8) -> Result<Self> {
        let fd = vm
            .create_vcpu(u64::from(id))
            .with_context(|| format!("making vCPU {id}"))?;
        let leaves = cpuid.of(id, fd.get_tsc_khz().ok())?;
        fd.set_cpuid2(&leaves)
            .with_context(|| format!("giving vCPU {id} its CPUID"))?;
        registers::set_firmware_msrs(&fd);
        Ok(Self { fd, id })
    }

    /// Its number, from 0.
    pub(crate) fn id(&self) -> u8 {
        self.id
    }

    /// Readies the first vCPU to enter a kernel.
    ///
    /// # Errors
    /// KVM refused the registers.
    pub(crate) fn enter_at(&self, entry: &registers::Entry) -> Result<()> {
        registers::set(&self.fd, entry)
    }

    /// Runs until the next exit. Only on a thread that holds a [`Kickable`] of
    /// this vCPU can a kick end it.
    pub(crate) fn run(&mut self, ram: &Ram) -> Exit<'_> {
        /// An exit without what borrows the vCPU, which the failing ones need.
        enum Kind {
            Port,
            Memory,
            Interrupted,
            Ended(Ending),
            Failed(String),
        }
        let kind = match self.fd.run() {
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => Kind::Port,
            Ok(VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..)) => Kind::Memory,
            Ok(VcpuExit::Intr) => Kind::Interrupted,
            Ok(VcpuExit::Shutdown) => Kind::Ended(Ending::TripleFault),
            Ok(VcpuExit::SystemEvent(kind, _)) => match kind {
                kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Kind::Ended(Ending::PowerOff),
                kvm_bindings::KVM_SYSTEM_EVENT_RESET => Kind::Ended(Ending::Reset),
                other => Kind::Failed(format!("system event {other}")),
            },
            Ok(other) => Kind::Failed(format!("{other:?}")),
            Err(error) => match io::Error::from(error).kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Kind::Interrupted,
                _ => Kind::Failed(format!("KVM_RUN failed: {error}")),
            },
        };
        match kind {
            Kind::Port => self.port_access(),
            Kind::Memory => self.memory_access(),
            Kind::Interrupted => {
                // The handler may have set it; the caller looks for a stop or a
                // pause before the next run.
                self.fd.set_kvm_immediate_exit(0);
                Exit::Interrupted
            }
            Kind::Ended(ending) => Exit::End(ending),
            Kind::Failed(what) => {
                let detail = failure::describe(&mut self.fd, self.id, &what, ram);
                Exit::End(Ending::KvmError { detail })
            }
        }
    }

    /// It was not run for a while, which its guest is told, if that has a clock of
    /// KVM's: or it would take the time for that of a processor that hangs.
    pub(crate) fn has_rested(&self) {
        // EINVAL: it has none.
        let _ = self.fd.kvmclock_ctrl();
    }

    fn port_access(&mut self) -> Exit<'_> {
        let run = self.fd.get_kvm_run();
        // SAFETY: the exit was KVM_EXIT_IO, so this is the member in use.
        let io = unsafe { run.__bindgen_anon_1.io };
        let size = usize::from(io.size.max(1));
        let length = size * io.count as usize;
        let start: *mut u8 = ptr::from_mut(run).cast();
        // SAFETY: KVM says that `length` bytes of data lie at `data_offset`
        // within the area that is mapped for this vCPU, which lives as long as
        // the borrow of `self`.
        let data =
            unsafe { std::slice::from_raw_parts_mut(start.add(io.data_offset as usize), length) };
        Exit::Access {
            space: Space::Port,
            address: io.port.into(),
            size,
            data,
            is_write: u32::from(io.direction) == KVM_EXIT_IO_OUT,
        }
    }

    fn memory_access(&mut self) -> Exit<'_> {
        let run = self.fd.get_kvm_run();
        // SAFETY: the exit was KVM_EXIT_MMIO, so this is the member in use.
        let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
        let size = (mmio.len as usize).min(mmio.data.len());
        let data = mmio.data.get_mut(..size).unwrap_or_default();
        Exit::Access {
            space: Space::Memory,
            address: mmio.phys_addr,
            size,
            data,
            is_write: mmio.is_write != 0,
        }
    }

    /// Makes kicks on the calling thread interrupt this vCPU.
    pub(crate) fn kickable(&mut self) -> Kickable {
        RUNNING.set(ptr::from_mut(self.fd.get_kvm_run()));
        Kickable(std::marker::PhantomData)
    }
}

thread_local! {
    /// The run area of the vCPU that this thread runs, for the signal handler.
    static RUNNING: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// While it lives, kicks reach the vCPU that this thread runs. To be dropped
/// before the vCPU.
pub(crate) struct Kickable(std::marker::PhantomData<*const ()>);

impl Drop for Kickable {
    fn drop(&mut self) {
        RUNNING.set(ptr::null_mut());
    }
}

/// The signal that is a kick.
pub(crate) fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Installs the handler of kicks, once for the process.
///
/// # Errors
/// Those of sigaction(2).
pub(crate) fn install_kick_handler() -> Result<()> {
    extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        let run = RUNNING.get();
        if !run.is_null() {
            // SAFETY: `Kickable` set the pointer on this thread, and clears it
            // before the area is unmapped; KVM reads the byte concurrently.
            unsafe { ptr::write_volatile(&raw mut (*run).immediate_exit, 1) };
        }
    }
    register_signal_handler(kick_signal(), on_kick).context("installing the handler of kicks")
}
