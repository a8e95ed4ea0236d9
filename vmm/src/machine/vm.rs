//! The machine as a whole: this file alone orders its construction.
//!
//! memory ─> KVM ─> console ─> buses ─> kernel and tables ─> vCPUs ─> threads

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use kvm_ioctls::{Kvm, VmFd};
use outboard_protocol::launch::{Machine as Spec, StartFd};

use super::bus::{Bus, Target};
use super::console::Console;
use super::ending::{AcpiPorts, End, LegacyReset};
use super::kvm::cpuid::Cpuid;
use super::kvm::vcpu::{self as kvm_vcpu, Vcpu};
use super::kvm::{self};
use super::memory::{Backing, Ram};
use super::threads::Threads;
use super::vcpu::{self, World};
use super::{acpi, boot, layout};

/// A machine that is built and does not run yet.
pub struct Machine {
    vcpus: Vec<Vcpu>,
    world: Arc<World>,
    console: Arc<Console>,
    console_in: Option<File>,
    /// Kept open for as long as anything of the machine is.
    _vm: Arc<VmFd>,
}

/// Most vCPUs of a machine.
const MAX_CPUS: u8 = 32;

impl Machine {
    /// Builds what `spec` says from the descriptors that came with it.
    ///
    /// # Errors
    /// What cannot be built, and what to do.
    pub fn build(spec: &Spec, mut fds: BTreeMap<StartFd, OwnedFd>) -> Result<Self> {
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

        let end = Arc::new(End::new().context("making an eventfd")?);
        let console = Console::new(output, Arc::clone(&end)).context("making the console")?;
        let console = Arc::new(console);
        vm.register_irqfd(console.interrupt(), layout::COM1_GSI)
            .context("binding the console's interrupt")?;
        let world = Arc::new(World {
            ports: ports(&console, &end)?,
            memory: Bus::new(Vec::new())?,
            ram: Arc::clone(&ram),
            end,
        });

        let kernel = boot::Kernel {
            kernel,
            initrd,
            cmdline: spec.cmdline.clone(),
        };
        let tables = acpi::tables(spec.cpus, boot::map::ACPI.start);
        let entry = boot::load(&ram, kernel, &tables)?;
        let cpuid = Cpuid::new(&kvm, spec.cpus)?;
        let vcpus: Vec<_> = (0..spec.cpus)
            .map(|id| Vcpu::new(&vm, &cpuid, id))
            .collect::<Result<_>>()?;
        if let Some(first) = vcpus.first() {
            first.enter_at(&entry)?;
        }
        Ok(Self {
            vcpus,
            world,
            console,
            console_in,
            _vm: vm,
        })
    }

    /// Why the run ends; readable then.
    pub fn end(&self) -> &Arc<End> {
        &self.world.end
    }

    /// Starts the vCPUs and the console's input. They run until [`Self::end`]
    /// has a reason.
    ///
    /// # Errors
    /// The threads cannot be made; those that were have been stopped.
    pub fn start(&mut self) -> Result<Threads> {
        let mut threads = Threads::new(&self.world.end)?;
        let result = self.start_threads(&mut threads);
        if let Err(error) = result {
            self.world
                .end
                .set(outboard_protocol::launch::Ending::Stopped);
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

fn check_cpus(kvm: &Kvm, cpus: u8) -> Result<()> {
    let limit = kvm_vcpu::limit(kvm);
    if usize::from(cpus) > limit {
        bail!("{cpus} vCPUs: this KVM allows {limit}; ask for fewer --cpus");
    }
    Ok(())
}

fn ports(console: &Arc<Console>, end: &Arc<End>) -> Result<Bus> {
    let com1 = u64::from(layout::COM1);
    let acpi = u64::from(layout::ACPI_PORTS.start)..u64::from(layout::ACPI_PORTS.end);
    let console: Arc<dyn Target> = Arc::clone(console) as _;
    Bus::new(vec![
        (com1..com1 + 8, console),
        (acpi, Arc::new(AcpiPorts(Arc::clone(end)))),
        (
            LegacyReset::KEYBOARD..LegacyReset::KEYBOARD + 1,
            Arc::new(LegacyReset::keyboard(Arc::clone(end))),
        ),
        (
            LegacyReset::CONTROL..LegacyReset::CONTROL + 1,
            Arc::new(LegacyReset::control(Arc::clone(end))),
        ),
    ])
}
