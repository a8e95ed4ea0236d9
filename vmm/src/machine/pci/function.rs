//! A virtio function on the PCI bus: where an access to configuration space or
//! to a BAR becomes an access to the registers, and where what the registers
//! ask for is done or posted to the device's owner.
//!
//! Locks, in this order: the function's own, then that of its interrupts, its
//! doorbells or its bus mastering. Nothing is waited for under any of them but
//! KVM.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;
use outboard_protocol::launch;

use super::config::{self, ConfigSpace, Identity};
use super::decoded::Decoded;
use super::doorbells::Doorbells;
use super::interrupts::Interrupts;
use super::layout::{self as bars, Capabilities, Offsets, Part};
use super::mastering::{Clearing, Mastering};
use crate::machine::gate::Gate;
use crate::machine::kvm::doorbell::Address;
use crate::machine::kvm::irq::Routes;
use crate::machine::layout;
use crate::machine::post::{Command, Mailbox};
use crate::machine::virtio::{Event, Registers, Shape};

const VENDOR_VIRTIO: u16 = 0x1af4;
/// Device ids of modern virtio devices start here (virtio 1.3, section 4.1.2).
const DEVICE_ID_BASE: u16 = 0x1040;

/// A virtio function.
#[derive(Debug)]
pub(crate) struct Function {
    offsets: Offsets,
    doorbell: launch::Doorbell,
    commands: Arc<Mailbox<Command>>,
    /// Its interrupts.
    pub(crate) interrupts: Interrupts,
    /// Its doorbells.
    pub(crate) doorbells: Doorbells,
    mastering: Mastering,
    decoded: Decoded,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    config: ConfigSpace,
    registers: Registers,
}

impl Function {
    /// The function of a device whose back-end is not known yet. What the
    /// guest asks for is posted to `commands`.
    ///
    /// # Errors
    /// `InvalidInput` when the device cannot be put on this bus, with the
    /// reason; else those of eventfd(2) and of starting a thread.
    pub(crate) fn new(
        spec: &launch::Device,
        (doorbell, kick_path): (launch::Doorbell, launch::KickPath),
        vm: &Arc<VmFd>,
        routes: &Arc<Routes>,
        commands: Arc<Mailbox<Command>>,
        gate: &Arc<Gate>,
    ) -> io::Result<Self> {
        check(spec)?;
        let kind = &spec.kind;
        let vectors = spec.queues + 1;
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR_VIRTIO,
            device: DEVICE_ID_BASE + kind.virtio_id,
            revision: 1,
            class: kind.pci_class,
            subsystem_vendor: VENDOR_VIRTIO,
            subsystem: kind.virtio_id,
        });
        let offsets = bars::furnish(
            &mut config,
            Capabilities {
                vectors,
                config_len: kind.config_len,
                io_doorbells: doorbell == launch::Doorbell::Pio,
            },
        );
        let registers = Registers::new(Shape {
            queues: spec.queues,
            queue_size: spec.queue_size,
            vectors,
            config_len: kind.config_len as usize,
            device_features: kind.device_features,
        });
        Ok(Self {
            offsets,
            doorbell,
            commands,
            interrupts: Interrupts::new(&spec.id, routes, spec.queues, vectors)?,
            doorbells: Doorbells::new(&spec.id, Arc::clone(vm), spec.queues, kick_path)?,
            mastering: Mastering::new(Arc::clone(gate)),
            decoded: Decoded::default(),
            state: Mutex::new(State { config, registers }),
        })
    }

    /// Gives the BARs of the function in slot `slot` their addresses.
    pub(crate) fn place(&self, slot: u8) {
        let mut state = self.state();
        let memory = layout::PCI_MEMORY.start + u64::from(slot) * u64::from(bars::MEMORY_SIZE);
        let ports = layout::PCI_IO.start + u64::from(slot) * u64::from(bars::IO_SIZE);
        state.config.place_bar(bars::MEMORY_BAR, memory as u32);
        if self.doorbell == launch::Doorbell::Pio {
            state.config.place_bar(bars::IO_BAR, ports as u32);
        }
    }

    /// Where its BARs are decoded, to be asked without its lock.
    pub(crate) fn decoded(&self) -> &Decoded {
        &self.decoded
    }

    /// Does something to the registers from the owner's thread.
    pub(crate) fn with_registers<T>(&self, action: impl FnOnce(&mut Registers) -> T) -> T {
        action(&mut self.state().registers)
    }

    /// What the back-end had was taken back: nothing writes to guest memory
    /// any more.
    pub(crate) fn is_quiet(&self, clearing: Clearing) {
        self.mastering.is_quiet(clearing);
    }

    /// The guest reads configuration space.
    pub(crate) fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut state = self.state();
        let window = self.offsets.window + bars::WINDOW_DATA;
        if config::touches(offset, data.len(), window..window + 4)
            && let Some((at, len)) = self.window(&state)
        {
            let mut bytes = [0; 4];
            if let Some(bytes) = bytes.get_mut(..len) {
                self.read_part(&mut state, at, bytes);
                state.config.put(window, bytes);
            }
        }
        state.config.read(offset, data);
    }

    /// The guest writes configuration space. A write that turns bus mastering
    /// off returns when nothing is written to guest memory any more.
    pub(crate) fn write_config(&self, offset: usize, data: &[u8]) {
        if let Some(clearing) = self.write_config_now(offset, data) {
            self.mastering.wait(clearing);
        }
    }

    fn write_config_now(&self, offset: usize, data: &[u8]) -> Option<Clearing> {
        let mut state = self.state();
        let before = state.config.command();
        state.config.write(offset, data);
        let touches = |range| config::touches(offset, data.len(), range);
        let window = self.offsets.window + bars::WINDOW_DATA;
        if touches(window..window + 4)
            && let Some((at, len)) = self.window(&state)
        {
            let bytes = state.config.double_word(window).to_le_bytes();
            let bytes = bytes.get(..len).unwrap_or_default();
            match at {
                Part::Notify(queue) => self.notify(queue, false),
                part => self.write_part(&mut state, part, bytes),
            }
        }
        if touches(self.offsets.msix_control..self.offsets.msix_control + 2) {
            let control = state.config.word(self.offsets.msix_control);
            self.interrupts.set_control(control);
        }
        if touches(config::COMMAND..config::COMMAND + 2) || touches(0x10..0x28) {
            self.decode(&state);
        }
        self.master(before, state.config.command())
    }

    /// Passes on what became of the bus master bit.
    fn master(&self, before: u16, now: u16) -> Option<Clearing> {
        let [before, now] = [before, now].map(|command| command & config::COMMAND_MASTER != 0);
        if before == now {
            return None;
        }
        let cleared = before.then(|| self.mastering.cleared());
        let command = cleared.map_or(Command::MayMaster, Command::MustNotMaster);
        // Only configuration writes are ever dropped.
        let _ = command.post_to(&self.commands);
        cleared
    }

    /// The guest reads a guest-physical address in the PCI window; returns
    /// whether it is this function's.
    pub(crate) fn read_memory(&self, address: u64, data: &mut [u8]) -> bool {
        let mut state = self.state();
        let Some(part) = self.decoded.in_memory(address).map(Part::at) else {
            return false;
        };
        self.read_part(&mut state, part, data);
        true
    }

    /// The guest writes a guest-physical address in the PCI window; returns
    /// whether it is this function's.
    pub(crate) fn write_memory(&self, address: u64, data: &[u8]) -> bool {
        let mut state = self.state();
        let Some(part) = self.decoded.in_memory(address).map(Part::at) else {
            return false;
        };
        self.write_part(&mut state, part, data);
        true
    }

    /// The guest accesses a port; returns whether it is this function's. All
    /// there is are doorbells, which read as zero.
    pub(crate) fn read_port(&self, port: u16, data: &mut [u8]) -> bool {
        let hit = self.decoded.in_ports(port).is_some();
        if hit {
            data.fill(0);
        }
        hit
    }

    /// The guest writes a port; returns whether it is this function's.
    pub(crate) fn write_port(&self, port: u16, data: &[u8]) -> bool {
        let mut state = self.state();
        let Some(part) = self.decoded.in_ports(port).map(Part::notify) else {
            return false;
        };
        self.write_part(&mut state, part, data);
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Command or BARs were written: what is decoded now, and where. Sizing a
    /// BAR while it is decoded moves nothing.
    fn decode(&self, state: &State) {
        let command = state.config.command();
        let (address, sizing) = state.config.bar(bars::MEMORY_BAR);
        if command & config::COMMAND_MEMORY == 0 {
            self.decoded.set_memory(None);
        } else if !sizing {
            let range = address.into()..u64::from(address) + u64::from(bars::MEMORY_SIZE);
            let base = inside(&range, &layout::PCI_MEMORY).then_some(range.start);
            self.decoded.set_memory(base);
        }
        let (address, sizing) = state.config.bar(bars::IO_BAR);
        if command & config::COMMAND_IO == 0 || self.doorbell != launch::Doorbell::Pio {
            self.decoded.set_ports(None);
        } else if !sizing {
            let range = address.into()..u64::from(address) + u64::from(bars::IO_SIZE);
            let port = inside(&range, &layout::PCI_IO).then(|| u16::try_from(range.start));
            self.decoded.set_ports(port.and_then(Result::ok));
        }
        let moved = self.doorbells.place(match self.doorbell {
            launch::Doorbell::Mmio => {
                let base = self.decoded.memory();
                base.map(|base| Address::Memory(base + u64::from(bars::NOTIFY)))
            }
            launch::Doorbell::Pio => self.decoded.ports().map(Address::Port),
        });
        for queue in moved {
            // Only configuration writes are ever dropped.
            let _ = Command::Kick(queue).post_to(&self.commands);
        }
    }

    /// Where the window of VIRTIO_PCI_CAP_PCI_CFG looks, and how many bytes it
    /// moves (virtio 1.3, section 4.1.4.9); `None` when the driver has written
    /// something that it must not.
    fn window(&self, state: &State) -> Option<(Part, usize)> {
        let at = self.offsets.window;
        let bar = usize::from(state.config.word(at + bars::WINDOW_BAR) & 0xff);
        let offset = state.config.double_word(at + bars::WINDOW_OFFSET);
        let length = state.config.double_word(at + bars::WINDOW_LENGTH);
        if !matches!(length, 1 | 2 | 4) || !offset.is_multiple_of(length) {
            return None;
        }
        let part = match bar {
            bars::MEMORY_BAR if offset < bars::MEMORY_SIZE => Part::at(offset),
            bars::IO_BAR if self.doorbell == launch::Doorbell::Pio && offset < bars::IO_SIZE => {
                Part::notify(offset)
            }
            _ => return None,
        };
        Some((part, length as usize))
    }

    fn read_part(&self, state: &mut State, part: Part, data: &mut [u8]) {
        data.fill(0);
        match part {
            Part::Common(offset) => state.registers.read_common(offset, data),
            Part::Isr => {
                if let Some(byte) = data.first_mut() {
                    *byte = state.registers.read_isr();
                }
            }
            Part::Device(offset) => state.registers.read_config(offset, data),
            Part::Table(offset) => self.interrupts.read_table(offset, data),
            Part::Pending(offset) => self.interrupts.read_pending(offset, data),
            Part::Notify(_) | Part::Hole => {}
        }
    }

    /// A kick that exited to us.
    fn notify(&self, queue: u16, at_doorbell: bool) {
        if self.doorbells.exited(queue, at_doorbell) {
            // Only configuration writes are ever dropped.
            let _ = Command::Kick(queue).post_to(&self.commands);
        }
    }

    fn write_part(&self, state: &mut State, part: Part, data: &[u8]) {
        let events = match part {
            Part::Common(offset) => state.registers.write_common(offset, data),
            Part::Device(offset) => state.registers.write_config(offset, data),
            Part::Table(offset) => {
                self.interrupts.write_table(offset, data);
                return;
            }
            Part::Notify(queue) => {
                self.notify(queue, true);
                return;
            }
            Part::Isr | Part::Pending(_) | Part::Hole => return,
        };
        for event in events {
            match event {
                Event::Vector { source, vector } => self.interrupts.assign(source, vector),
                Event::VectorsCleared => self.interrupts.clear_vectors(),
                event => {
                    if Command::Guest(event).post_to(&self.commands) {
                        state.registers.config_written();
                    }
                }
            }
        }
    }
}

fn inside(inner: &std::ops::Range<u64>, outer: &std::ops::Range<u64>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

fn check(spec: &launch::Device) -> io::Result<()> {
    let problem = if !(1..=64).contains(&spec.queues) {
        format!("{} queues, 1 to 64 are possible", spec.queues)
    } else if !spec.queue_size.is_power_of_two() || !(2..=32768).contains(&spec.queue_size) {
        format!(
            "queue size {}, a power of two from 2 to 32768 is possible",
            spec.queue_size
        )
    } else if spec.kind.config_len > bars::MAX_CONFIG_LEN {
        format!(
            "a configuration of {} bytes, {} at most",
            spec.kind.config_len,
            bars::MAX_CONFIG_LEN
        )
    } else if !(1..=63).contains(&spec.kind.virtio_id) {
        format!("virtio id {}, 1 to 63 are possible", spec.kind.virtio_id)
    } else {
        return Ok(());
    };
    let message = format!("device {}: {problem}", spec.id);
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}
