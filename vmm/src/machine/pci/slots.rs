//! The slots of the bus, and which function an access is for. To find it takes
//! no lock, and as long in the last slot as in the first: only the function that
//! an address belongs to takes its own.

use std::sync::Arc;

use anyhow::{Result, bail};

use super::decoded::Places;
use super::function::Function;
use super::layout::{IO_SIZE, MEMORY_SIZE};

/// Slots for functions: all but the host bridge's.
pub(crate) const MAX_FUNCTIONS: usize = 31;

/// The functions, each in its slot: the first in slot 1.
#[derive(Debug)]
pub(crate) struct Slots {
    functions: Vec<Arc<Function>>,
    memory: Arc<Places>,
    ports: Arc<Places>,
}

impl Default for Slots {
    fn default() -> Self {
        Self {
            functions: Vec::new(),
            memory: Arc::new(Places::of(MEMORY_SIZE)),
            ports: Arc::new(Places::of(IO_SIZE)),
        }
    }
}

impl Slots {
    /// Puts a function in the next slot, and its BARs in the windows.
    ///
    /// # Errors
    /// All slots are taken.
    pub(crate) fn add(&mut self, function: Arc<Function>) -> Result<()> {
        if self.functions.len() >= MAX_FUNCTIONS {
            bail!("more than {MAX_FUNCTIONS} devices: the PCI bus has no more slots");
        }
        self.functions.push(Arc::clone(&function));
        let slot = self.functions.len() as u8;
        function.decoded().seat(slot, &self.memory, &self.ports);
        function.place(slot);
        Ok(())
    }

    /// The function in a slot, from 1 on.
    pub(crate) fn get(&self, slot: usize) -> Option<&Function> {
        let function = self.functions.get(slot.checked_sub(1)?)?;
        Some(function.as_ref())
    }

    /// The functions whose memory BAR has this guest-physical address, by slot. It
    /// may have been moved since, so the function itself has the last word.
    pub(crate) fn at_address(&self, address: u64) -> impl Iterator<Item = &Function> {
        let functions = self.memory.at(address).filter_map(|slot| self.get(slot));
        functions
            .filter(move |function: &&Function| function.decoded().in_memory(address).is_some())
    }

    /// As [`Self::at_address`], for a port.
    pub(crate) fn at_port(&self, port: u16) -> impl Iterator<Item = &Function> {
        let functions = self.ports.at(port.into());
        let functions = functions.filter_map(|slot| self.get(slot));
        functions.filter(move |function: &&Function| function.decoded().in_ports(port).is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use kvm_ioctls::Kvm;
    use outboard_protocol::devices::Kind;
    use outboard_protocol::launch;

    use super::*;
    use crate::machine::ending::End;
    use crate::machine::gate::Gate;
    use crate::machine::kvm::irq::Routes;
    use crate::machine::layout as map;
    use crate::machine::pci::Host;
    use crate::machine::post::Mailbox;

    fn functions() -> Option<Vec<Arc<Function>>> {
        let vm = match Kvm::new().and_then(|kvm| kvm.create_vm()) {
            Ok(vm) => Arc::new(vm),
            Err(error) => {
                eprintln!("SKIP: no usable /dev/kvm: {error}");
                return None;
            }
        };
        vm.create_irq_chip().unwrap();
        let routes = Routes::new(Arc::clone(&vm)).unwrap();
        let gate = Gate::new(1, &Arc::new(End::new().unwrap())).unwrap();
        let gate = Arc::new(gate);
        let spec = |id| launch::Device {
            id,
            kind: Kind::blk(),
            queues: 1,
            fewer: false,
            queue_size: 64,
            hang_timeout: None,
        };
        let kicks = (launch::Doorbell::Mmio, launch::KickPath::Kvm);
        let made = (0..=MAX_FUNCTIONS).map(|number| {
            let spec = spec(format!("disk{number}"));
            let commands = Arc::new(Mailbox::new().unwrap());
            Arc::new(Function::new(&spec, kicks, &vm, &routes, commands, &gate).unwrap())
        });
        Some(made.collect())
    }

    #[test]
    fn the_last_function_is_reached_while_all_others_are_locked() {
        let Some(mut functions) = functions() else {
            return;
        };
        let mut host = Host::new();
        let one_more = functions.pop().unwrap();
        for function in &functions {
            host.add(Arc::clone(function)).unwrap();
        }
        assert!(host.add(one_more).is_err(), "the bus is full");
        let bus = host.targets();
        for slot in 1..=MAX_FUNCTIONS as u64 {
            bus.ecam.write((slot << 15) + 4, &[2, 0]);
        }
        let (sender, receiver) = channel();
        let read = move || {
            // The number of queues, of the common configuration.
            let mut queues = [0xff; 2];
            bus.memory
                .read(0x8000 * MAX_FUNCTIONS as u64 + 18, &mut queues);
            sender.send(queues).unwrap();
        };
        let last = functions.pop().unwrap();
        locked(&functions, || {
            thread::spawn(read);
            let queues = receiver.recv_timeout(Duration::from_secs(60));
            assert_eq!(queues, Ok([1, 0]));
        });
        drop(last);
    }

    #[test]
    fn of_two_that_overlap_the_one_in_the_lower_slot_answers() {
        let Some(functions) = functions() else {
            return;
        };
        let mut slots = Slots::default();
        for function in functions.iter().take(3) {
            slots.add(Arc::clone(function)).unwrap();
        }
        for base in [0xc010_0000, 0xc010_4000, 0xc010_0000u64] {
            functions[1].decoded().set_memory(Some(base));
            functions[2].decoded().set_memory(Some(0xc010_0000));
            functions[1].decoded().set_ports(Some(0xc100));
            functions[2].decoded().set_ports(Some(0xc100));
            let is_second = |found: &Function| std::ptr::eq(found, functions[1].as_ref());
            assert!(slots.at_address(0xc010_4000).next().is_some_and(is_second));
            assert_eq!(slots.at_address(0xc010_4000).count(), 2);
            assert!(slots.at_port(0xc101).next().is_some_and(is_second));
            assert_eq!(slots.at_port(0xc101).count(), 2);
            assert_eq!(slots.at_port(0xd000).count(), 0);
        }
    }

    #[test]
    fn who_reads_one_function_notices_nothing_of_another_that_is_moved_about() {
        let Some(functions) = functions() else {
            return;
        };
        let mut host = Host::new();
        for function in functions.iter().take(MAX_FUNCTIONS) {
            host.add(Arc::clone(function)).unwrap();
        }
        let bus = host.targets();
        let on = |slot: u64| bus.ecam.write((slot << 15) + 4, &[2, 0]);
        let base = |slot: usize| map::PCI_MEMORY.start + 0x8000 * slot as u64;
        (1..=MAX_FUNCTIONS as u64).for_each(on);
        thread::scope(|scope| {
            scope.spawn(|| {
                for turn in 0..20_000 {
                    // Over the one that is read, and as far away as shares its place.
                    for slot in [MAX_FUNCTIONS, MAX_FUNCTIONS + 64, 1 + turn % 500] {
                        let base = base(slot) as u32;
                        bus.ecam.write((1 << 15) + 0x10, &base.to_le_bytes());
                    }
                    on(MAX_FUNCTIONS as u64);
                }
            });
            for turn in 0..20_000 {
                let mut queues = [0xff; 2];
                let offset = base(MAX_FUNCTIONS) + 18 - map::PCI_MEMORY.start;
                bus.memory.read(offset, &mut queues);
                assert_eq!(queues, [1, 0], "{turn}");
            }
        });
    }

    /// Does something with the lock of each function held.
    fn locked(functions: &[Arc<Function>], action: impl FnOnce()) {
        match functions.split_first() {
            Some((first, rest)) => first.with_registers(|_| locked(rest, action)),
            None => action(),
        }
    }
}
