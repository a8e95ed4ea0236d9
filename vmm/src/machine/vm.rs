//! The machine as a whole: this file alone orders its construction.
//!
//! memory ─> KVM ─> console ─> devices ─> buses ─> kernel and tables ─> vCPUs ─>
//! threads

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use kvm_ioctls::{Kvm, VmFd};
use outboard_protocol::launch::{self, Ending, Machine as Spec, StartFd};

use super::bus::{Bus, Target};
use super::config_ports::{self, ConfigPorts};
use super::console::Console;
use super::device::Surroundings;
use super::devices::Devices;
use super::ending::{AcpiPorts, End, KeyboardController};
use super::gate::Gate;
use super::kvm::cpuid::Cpuid;
use super::kvm::irq::Routes;
use super::kvm::registers::Entry;
use super::kvm::vcpu::Vcpu;
use super::kvm::{self};
use super::memory::{Backing, Ram};
use super::pci;
use super::post::Mailbox;
use super::threads::Threads;
use super::vcpu::{self, World};
use super::{acpi, boot, layout};

/// A machine that is built and does not run yet.
pub(crate) struct Machine {
    vcpus: Vec<Vcpu>,
    world: Arc<World>,
    console: Arc<Console>,
    console_in: Option<File>,
    devices: Devices,
}

/// Most vCPUs of a machine.
const MAX_CPUS: u8 = 32;

impl Machine {
    /// Builds what `spec` says from the descriptors that came with it.
    ///
    /// # Errors
    /// What cannot be built, and what to do.
    pub(crate) fn build(
        spec: &Spec,
        devices: &[launch::Device],
        mut fds: BTreeMap<StartFd, OwnedFd>,
    ) -> Result<Self> {
        if !(1..=MAX_CPUS).contains(&spec.cpus) {
            bail!("{} vCPUs: a machine has 1 to {MAX_CPUS}", spec.cpus);
        }
        let mut take = |fd| fds.remove(&fd).map(File::from);
        let kvm = take(StartFd::Kvm).context("the start message came without /dev/kvm")?;
        let kernel = take(StartFd::Kernel).context("the start message came without a kernel")?;
        let output =
            take(StartFd::ConsoleOut).context("the start message came without a console")?;
        let (initrd, console_in) = (take(StartFd::Initrd), take(StartFd::ConsoleIn));

        let backing = Backing {
            hugepages: spec.hugepages,
            prefault: spec.prefault,
        };
        let ram = Arc::new(Ram::new(spec.memory, backing)?);
        let kvm = kvm::adopt(kvm.into())?;
        check_cpus(&kvm, spec.cpus)?;
        let vm = kvm::create_vm(&kvm, &ram)?;

        let gate = gate(spec.cpus).context("making an eventfd")?;
        let console = console(output, &gate, &vm)?;
        let surroundings = Surroundings {
            doorbell: spec.doorbell,
            kick_path: spec.kick_path,
            ram: Arc::clone(&ram),
            vm: Arc::clone(&vm),
            routes: Routes::new(Arc::clone(&vm))?,
            gate: Arc::clone(&gate),
            events: Arc::new(Mailbox::new().context("making an eventfd")?),
        };
        let (devices, bus) = Devices::new(devices, &surroundings)?;
        let world = Arc::new(World {
            ports: ports(&console, gate.end(), &bus)?,
            memory: memory(bus)?,
            ram: Arc::clone(&ram),
            end: Arc::clone(gate.end()),
            gate,
        });

        let kernel = boot::Kernel {
            kernel,
            initrd,
            name: spec.kernel.clone(),
            cmdline: spec.cmdline.clone(),
        };
        let tables = acpi::tables(spec.cpus, boot::map::ACPI.start);
        let entry = boot::load(&ram, kernel, &tables)?;
        Ok(Self {
            vcpus: vcpus(&kvm, &vm, spec.cpus, &entry)?,
            world,
            console,
            console_in,
            devices,
        })
    }

    /// Why the run ends; readable then.
    pub(crate) fn end(&self) -> &Arc<End> {
        &self.world.end
    }

    /// Where its vCPUs wait while it is paused.
    pub(crate) fn gate(&self) -> &Gate {
        &self.world.gate
    }

    /// Its devices.
    pub(crate) fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Ends every device's session. The vCPUs have been stopped.
    pub(crate) fn stop_devices(self) {
        self.devices.stop();
    }

    /// Starts the vCPUs and the console's input. They run until [`Self::end`]
    /// has a reason.
    ///
    /// # Errors
    /// The threads cannot be made; those that were have been stopped.
    pub(crate) fn start(&mut self) -> Result<Threads> {
        let mut threads = Threads::new(&self.world.end)?;
        let result = self.start_threads(&mut threads);
        if let Err(error) = result {
            self.world.end.set(Ending::Stopped);
            threads.stop()?;
            return Err(error);
        }
        Ok(threads)
    }

    fn start_threads(&mut self, threads: &mut Threads) -> Result<()> {
        for cpu in self.vcpus.drain(..) {
            let world = Arc::clone(&self.world);
            threads.start(format!("vcpu{}", cpu.id()), move || vcpu::run(cpu, &world))?;
        }
        if let Some(input) = self.console_in.take() {
            let console = Arc::clone(&self.console);
            threads.start("console".into(), move || console.listen(input))?;
        }
        Ok(())
    }
}

/// Of a run that has no end yet.
fn gate(cpus: u8) -> io::Result<Arc<Gate>> {
    let end = Arc::new(End::new()?);
    Ok(Arc::new(Gate::new(cpus, &end)?))
}

/// The vCPUs, of which the first enters the kernel.
fn vcpus(kvm: &Kvm, vm: &Arc<VmFd>, count: u8, entry: &Entry) -> Result<Vec<Vcpu>> {
    let cpuid = Cpuid::new(kvm, count)?;
    let vcpus = (0..count).map(|id| Vcpu::new(vm, &cpuid, id));
    let vcpus: Vec<_> = vcpus.collect::<Result<_>>()?;
    if let Some(first) = vcpus.first() {
        first.enter_at(entry)?;
    }
    Ok(vcpus)
}

fn check_cpus(kvm: &Kvm, cpus: u8) -> Result<()> {
    let limit = kvm.get_max_vcpus();
    if usize::from(cpus) > limit {
        bail!("{cpus} vCPUs: this KVM allows {limit}; ask for fewer --cpus");
    }
    Ok(())
}

fn console(output: File, gate: &Arc<Gate>, vm: &VmFd) -> Result<Arc<Console>> {
    let console = Console::new(output, Arc::clone(gate)).context("making the console")?;
    vm.register_irqfd(console.interrupt(), layout::COM1_GSI)
        .context("binding the console's interrupt")?;
    Ok(Arc::new(console))
}

/// What is behind port instructions.
fn ports(console: &Arc<Console>, end: &Arc<End>, bus: &pci::Targets) -> Result<Bus> {
    let com1 = u64::from(layout::COM1);
    let keyboard = KeyboardController::PORT;
    let acpi = u64::from(layout::ACPI_PORTS.start)..u64::from(layout::ACPI_PORTS.end);
    let console: Arc<dyn Target> = Arc::clone(console) as _;
    Bus::new(vec![
        (com1..com1 + 8, console),
        (acpi, Arc::new(AcpiPorts(Arc::clone(end)))),
        (layout::PCI_IO, Arc::clone(&bus.io)),
        (
            keyboard..keyboard + 1,
            Arc::new(KeyboardController(Arc::clone(end))),
        ),
        (
            config_ports::PORTS,
            Arc::new(ConfigPorts::new(Arc::clone(&bus.ecam), Arc::clone(end))),
        ),
    ])
}

/// What is behind addresses that are not RAM.
fn memory(bus: pci::Targets) -> Result<Bus> {
    Bus::new(vec![
        (layout::PCI_MEMORY, bus.memory),
        (layout::ECAM, bus.ecam),
    ])
}

#[cfg(test)]
mod tests;
