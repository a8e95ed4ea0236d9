//! A bare loop of guest writes, each timed by the guest, with nothing behind
//! the doorbell but a counter: the eventfd's, or one of ours after an exit.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use kvm_bindings::{kvm_ioeventfd, kvm_regs};
use kvm_ioctls::{Kvm, VcpuExit, VmFd};
use nix::sys::eventfd::{EfdFlags, EventFd};
use outboard_ring3::{DATA, DEVICES, Machine, Program, Vcpu};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::report::{Kind, Sample, What};

mod number {
    #![allow(missing_docs)] // The macro makes a public function without any.
    vmm_sys_util::ioctl_iow_nr!(
        KVM_IOEVENTFD,
        kvm_bindings::KVMIO,
        0x79,
        kvm_bindings::kvm_ioeventfd
    );
}

const DATA_MATCH: u32 = 1 << kvm_bindings::kvm_ioeventfd_flag_nr_datamatch;
const PORT: u32 = 1 << kvm_bindings::kvm_ioeventfd_flag_nr_pio;
/// With this a request is a release.
pub const RELEASE: u32 = 1 << kvm_bindings::kvm_ioeventfd_flag_nr_deassign;
/// What is written, and matched.
const VALUE: u64 = 7;
/// Writes in a sample, to a doorbell in KVM and by exits.
const WRITES: u64 = 4000;
const EXITS: u64 = 400;
/// The doorbell under test, in memory and as a port; the others lie behind.
const MEMORY_PLACE: u64 = DEVICES;
const PORT_PLACE: u64 = 0xa000;

/// In memory, or a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Memory,
    Port,
}

/// What is registered for the address that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bell {
    /// Nothing: each write exits to user space.
    Exit,
    /// An ioeventfd for this many bytes, 0 being any number.
    Wildcard(u32),
    /// One for 4 bytes of one value.
    Match,
}

/// A write of 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    pub space: Space,
    pub bell: Bell,
    /// Further doorbells in the same space.
    pub others: usize,
}

impl Write {
    fn name(&self) -> String {
        let space = match self.space {
            Space::Memory => "MMIO",
            Space::Port => "PIO",
        };
        let bell = match self.bell {
            Bell::Exit => format!("exit {space}"),
            Bell::Wildcard(0) => format!("ioeventfd {space}, any length"),
            Bell::Wildcard(length) => format!("ioeventfd {space}, length {length}"),
            Bell::Match => format!("ioeventfd {space}, length 4, data match"),
        };
        format!("{bell}, {} others", self.others)
    }

    fn place(&self) -> u64 {
        match self.space {
            Space::Memory => MEMORY_PLACE,
            Space::Port => PORT_PLACE,
        }
    }
}

/// All of them.
pub fn kinds(others: &[usize]) -> Vec<Kind> {
    let writes = [
        (Space::Memory, Bell::Exit),
        (Space::Memory, Bell::Wildcard(4)),
        (Space::Memory, Bell::Wildcard(0)),
        (Space::Memory, Bell::Match),
        (Space::Port, Bell::Exit),
        (Space::Port, Bell::Wildcard(4)),
        (Space::Port, Bell::Match),
    ];
    let mut kinds = Vec::new();
    for others in others {
        for (space, bell) in writes {
            let write = |bell| Write {
                space,
                bell,
                others: *others,
            };
            kinds.push(Kind {
                what: What::Write(write(bell)),
                name: write(bell).name(),
                reference: write(Bell::Exit).name(),
                text: text(&write(bell)),
            });
        }
    }
    kinds
}

/// What the text of 2009 says: 9.09 us by an exit in memory, 5.00 by an ioeventfd
/// there, 2.72 by one for a port.
fn text(write: &Write) -> Option<(String, f64)> {
    let ratio = match (write.space, write.bell) {
        (Space::Memory, Bell::Wildcard(4)) => 9.09 / 5.00,
        (Space::Port, Bell::Wildcard(4)) => 9.09 / 2.72,
        _ => return None,
    };
    let exit = Write {
        space: Space::Memory,
        bell: Bell::Exit,
        ..*write
    };
    Some((exit.name(), ratio))
}

/// VMs with so many doorbells each.
pub struct Bench {
    crowds: BTreeMap<usize, Crowd>,
}

/// A VM with other doorbells, and a vCPU for each space.
struct Crowd {
    machine: Machine,
    memory: Vcpu,
    port: Vcpu,
    /// Held, that their doorbells stay.
    _kicks: Vec<EventFd>,
}

impl Bench {
    /// Makes the VMs that these kinds need.
    ///
    /// # Errors
    /// KVM refuses it.
    pub fn new(kinds: &[Kind], others: &[usize]) -> Result<Self> {
        let kvm = Kvm::new().context("opening /dev/kvm")?;
        let mut crowds = BTreeMap::new();
        for others in others {
            let wanted =
                |kind: &Kind| matches!(kind.what, What::Write(write) if write.others == *others);
            if kinds.iter().any(wanted) {
                crowds.insert(*others, Crowd::new(&kvm, *others)?);
            }
        }
        Ok(Self { crowds })
    }

    /// One sample, of some thousand writes.
    pub fn sample(&mut self, write: &Write) -> Result<Sample> {
        let crowd = self.crowds.get_mut(&write.others).context("no such VM")?;
        let kick = eventfd()?;
        let bell = match write.bell {
            Bell::Exit => None,
            Bell::Wildcard(length) => Some((length, 0)),
            Bell::Match => Some((4, DATA_MATCH)),
        };
        let request = |crowd: &Crowd, flag| match bell {
            Some((length, flags)) => {
                let (vm, place) = (crowd.machine.vm(), write.place());
                ask(vm, write.space, place, length, &kick, flags | flag)
            }
            None => Ok(()),
        };
        request(crowd, 0)?;
        let sample = crowd.timed(write);
        request(crowd, RELEASE)?;
        let (sample, exits) = sample?;
        let counted = if bell.is_some() { kick.read()? } else { exits };
        // The turn that warms up is counted too.
        if counted != 2 * sample.count {
            bail!("{} writes, and {counted} rang", 2 * sample.count);
        }
        Ok(sample)
    }
}

impl Crowd {
    fn new(kvm: &Kvm, others: usize) -> Result<Self> {
        let machine = Machine::new(kvm)?;
        let mut kicks = Vec::new();
        for number in 1..=others as u64 {
            for (space, base) in [(Space::Memory, MEMORY_PLACE), (Space::Port, PORT_PLACE)] {
                let kick = eventfd()?;
                ask(machine.vm(), space, base + 4 * number, 4, &kick, 0)?;
                kicks.push(kick);
            }
        }
        Ok(Self {
            memory: machine.vcpu(0)?,
            port: machine.vcpu(1)?,
            machine,
            _kicks: kicks,
        })
    }

    /// The guest's own times of each write; and how many of all exited.
    fn timed(&mut self, write: &Write) -> Result<(Sample, u64)> {
        let (vcpu, program) = match write.space {
            Space::Memory => (&mut self.memory, Program::memory_writes()),
            Space::Port => (&mut self.port, Program::port_writes()),
        };
        let writes = match write.bell {
            Bell::Exit => EXITS,
            Bell::Wildcard(_) | Bell::Match => WRITES,
        };
        let registers = kvm_regs {
            rdi: write.place(),
            rsi: DATA,
            rbx: VALUE,
            rcx: writes,
            ..Default::default()
        };
        vcpu.begin(&program, registers)?;
        let mut exits = 0;
        // The first turn warms the caches, and what KVM knows of the pages.
        for _ in 0..2 {
            loop {
                match vcpu.run()? {
                    VcpuExit::IoOut(0x10, _) => break,
                    VcpuExit::MmioWrite(..) | VcpuExit::IoOut(..) => exits += 1,
                    other => bail!("the guest ends with {other:?}"),
                }
            }
        }
        let ticks = f64::from(vcpu.ticks_in_a_millisecond()?);
        let mut histogram = Histogram::new(3)?;
        for index in 0..writes {
            let time = self.machine.word(DATA + 8 * index)? as f64 * 1e6 / ticks;
            histogram.record(time as u64)?;
        }
        Ok((Sample::of(&histogram), exits))
    }
}

/// One request of KVM_IOEVENTFD, of any kind.
pub fn ask(vm: &VmFd, space: Space, addr: u64, len: u32, kick: &EventFd, flags: u32) -> Result<()> {
    let space = match space {
        Space::Memory => 0,
        Space::Port => PORT,
    };
    let argument = kvm_ioeventfd {
        datamatch: if flags & DATA_MATCH == 0 { 0 } else { VALUE },
        addr,
        len,
        fd: kick.as_fd().as_raw_fd(),
        flags: flags | space,
        ..Default::default()
    };
    // SAFETY: `vm` is a VM's descriptor, and KVM only reads `argument`.
    match unsafe { ioctl_with_ref(vm, number::KVM_IOEVENTFD(), &argument) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error())
            .with_context(|| format!("a doorbell of {len} bytes at {addr:#x}")),
    }
}

/// An eventfd that nobody waits for.
pub fn eventfd() -> Result<EventFd> {
    Ok(EventFd::from_flags(
        EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
    )?)
}
