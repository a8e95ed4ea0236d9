//! What a vCPU's thread does.
//!
//! ```text
//! start ──> gate ──> KVM ──exit──> bus ──> has the run ended? ──yes──> thread ends
//!            ^─────────────────────────────────no─┘
//! ```

use std::sync::Arc;

use super::bus::Bus;
use super::ending::End;
use super::gate::Gate;
use super::kvm::vcpu::{Exit, Space, Vcpu};
use super::memory::Ram;

/// What the guest can reach.
pub(crate) struct World {
    /// Behind port instructions.
    pub(crate) ports: Bus,
    /// Behind addresses that are not RAM.
    pub(crate) memory: Bus,
    /// Its RAM.
    pub(crate) ram: Arc<Ram>,
    /// Where its vCPUs wait while it is paused.
    pub(crate) gate: Arc<Gate>,
    /// Why the run ends.
    pub(crate) end: Arc<End>,
}

/// Runs a vCPU until the run ends.
pub(crate) fn run(mut vcpu: Vcpu, world: &World) {
    let _kickable = vcpu.kickable();
    while world.end.get().is_none() {
        if world.gate.pass() {
            vcpu.has_rested();
            continue;
        }
        match vcpu.run(&world.ram) {
            Exit::Access {
                space,
                address,
                size,
                data,
                is_write,
            } => {
                let bus = world.bus(space);
                for piece in data.chunks_mut(size) {
                    match is_write {
                        true => bus.write(address, piece),
                        false => bus.read(address, piece),
                    }
                }
            }
            Exit::Interrupted => {}
            Exit::End(ending) => world.end.set(ending),
        }
    }
}

impl World {
    fn bus(&self, space: Space) -> &Bus {
        match space {
            Space::Port => &self.ports,
            Space::Memory => &self.memory,
        }
    }
}
