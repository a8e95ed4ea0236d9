//! Interrupt routes: which message KVM delivers for a GSI, and which eventfd
//! raises it (KVM_SET_GSI_ROUTING, KVM_IRQFD).
//!
//! KVM_SET_GSI_ROUTING replaces the whole table and waits for every reader of
//! the old one, so the table is written only when a message really changes: a
//! message stays in it while its vector is masked.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1,
};
use kvm_ioctls::VmFd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_log::rarely;
use vmm_sys_util::eventfd::EventFd;

use crate::machine::layout;

/// What a message-signalled interrupt writes, and where (PCI 6.8.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// Address, 64 bits.
    pub(crate) address: u64,
    /// Data.
    pub(crate) data: u32,
}

/// The GSI routing table of one VM: the I/O APIC's pins, and a [`Route`] for
/// every MSI-X vector that asked for one.
#[derive(Debug)]
pub(crate) struct Routes {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    messages: BTreeMap<u32, Message>,
    free: Vec<u32>,
    next: u32,
}

impl Routes {
    /// Installs a table of the I/O APIC's pins alone: this machine has no PIC.
    /// The in-kernel interrupt controllers must exist.
    ///
    /// # Errors
    /// Those of KVM_SET_GSI_ROUTING.
    pub(crate) fn new(vm: Arc<VmFd>) -> Result<Arc<Self>> {
        let routes = Self {
            vm,
            table: Mutex::new(Table {
                next: layout::FIRST_MSI_GSI,
                ..Table::default()
            }),
        };
        routes.install(&routes.table())?;
        Ok(Arc::new(routes))
    }

    /// A route of one's own, without a message yet.
    pub(crate) fn route(self: &Arc<Self>) -> Route {
        let mut table = self.table();
        let gsi = match table.free.pop() {
            Some(gsi) => gsi,
            None => {
                let gsi = table.next;
                table.next += 1;
                gsi
            }
        };
        Route {
            routes: Arc::clone(self),
            gsi,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn install(&self, table: &Table) -> Result<()> {
        let pins = (0..layout::FIRST_MSI_GSI).map(pin_entry);
        let messages = table.messages.iter().map(|(gsi, m)| msi_entry(*gsi, *m));
        let entries: Vec<_> = pins.chain(messages).collect();
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|error| anyhow!("more interrupt routes than KVM takes: {error:?}"))?;
        self.vm
            .set_gsi_routing(&routing)
            .context("setting KVM's interrupt routes")
    }
}

fn pin_entry(pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi: pin,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip {
                irqchip: KVM_IRQCHIP_IOAPIC,
                pin,
            },
        },
        ..Default::default()
    }
}

fn msi_entry(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo: message.address as u32,
                address_hi: (message.address >> 32) as u32,
                data: message.data,
                __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1::default(),
            },
        },
        ..Default::default()
    }
}

/// A GSI that delivers one message. Freed when dropped; drop the [`Irqfd`]s
/// bound to it first.
#[derive(Debug)]
pub(crate) struct Route {
    routes: Arc<Routes>,
    gsi: u32,
}

impl Route {
    /// Sets the message; free when it is the one already set.
    ///
    /// # Errors
    /// KVM does not take the message (an address that no local APIC has); the
    /// former one is then still in force.
    pub(crate) fn set(&self, message: Message) -> Result<()> {
        let mut table = self.routes.table();
        let former = table.messages.insert(self.gsi, message);
        if former == Some(message) {
            return Ok(());
        }
        let result = self.routes.install(&table);
        if result.is_err() {
            match former {
                Some(former) => table.messages.insert(self.gsi, former),
                None => table.messages.remove(&self.gsi),
            };
        }
        result
    }

    /// Makes `event` raise this route's interrupt, now if it is signalled
    /// already. Several may be bound to one route, each once.
    ///
    /// # Errors
    /// Those of KVM_IRQFD.
    pub(crate) fn bind(&self, event: &Arc<EventFd>) -> Result<Irqfd> {
        self.routes
            .vm
            .register_irqfd(event, self.gsi)
            .with_context(|| format!("binding an eventfd to GSI {}", self.gsi))?;
        Ok(Irqfd {
            vm: Arc::clone(&self.routes.vm),
            event: Arc::clone(event),
            gsi: self.gsi,
        })
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        let mut table = self.routes.table();
        // The stale message does no harm; the next change of the table drops it.
        table.messages.remove(&self.gsi);
        table.free.push(self.gsi);
    }
}

/// A bound eventfd; unbound when dropped. Unbinding takes what the eventfd has
/// counted, which has then been delivered; what is counted later waits in it.
#[derive(Debug)]
pub(crate) struct Irqfd {
    vm: Arc<VmFd>,
    event: Arc<EventFd>,
    gsi: u32,
}

impl Drop for Irqfd {
    fn drop(&mut self) {
        if let Err(error) = self.vm.unregister_irqfd(&self.event, self.gsi) {
            // A guest masks and unmasks as often as it likes.
            rarely!(error, "unbinding an eventfd from GSI {}: {error}", self.gsi);
        }
    }
}

/// The descriptor of an eventfd, to be lent or polled.
pub(crate) fn descriptor(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: `event` stays open for as long as the borrow.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Whether an eventfd has a count, asked without taking it.
pub(crate) fn is_signalled(event: &EventFd) -> bool {
    let mut fds = [PollFd::new(descriptor(event), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count == 1)
}

#[cfg(test)]
mod tests {
    use kvm_ioctls::Kvm;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn routes() -> Option<Arc<Routes>> {
        let vm = match Kvm::new().and_then(|kvm| kvm.create_vm()) {
            Ok(vm) => vm,
            Err(error) => {
                eprintln!("SKIP: no usable /dev/kvm: {error}");
                return None;
            }
        };
        vm.create_irq_chip().unwrap();
        Some(Routes::new(Arc::new(vm)).unwrap())
    }

    fn eventfd() -> Arc<EventFd> {
        Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())
    }

    const MESSAGE: Message = Message {
        address: 0xfee0_0000,
        data: 0x41,
    };

    #[test]
    fn a_bound_eventfd_is_consumed_and_an_unbound_one_waits() {
        let Some(routes) = routes() else { return };
        let route = routes.route();
        route.set(MESSAGE).unwrap();
        let event = eventfd();
        let bound = route.bind(&event).unwrap();
        event.write(1).unwrap();
        assert!(!is_signalled(&event), "KVM takes the count");
        drop(bound);
        event.write(1).unwrap();
        assert!(is_signalled(&event), "nobody takes it");
        // KVM raises the interrupt when it is bound, and the count goes with
        // the next unbinding: it has been delivered.
        drop(route.bind(&event).unwrap());
        assert!(!is_signalled(&event));
    }

    #[test]
    fn several_eventfds_share_a_route_and_one_is_bound_once() {
        let Some(routes) = routes() else { return };
        let route = routes.route();
        route.set(MESSAGE).unwrap();
        let (one, two) = (eventfd(), eventfd());
        let _first = route.bind(&one).unwrap();
        let _second = route.bind(&two).unwrap();
        assert!(route.bind(&one).is_err());
    }

    #[test]
    fn a_freed_gsi_is_used_again_and_hundreds_fit() {
        let Some(routes) = routes() else { return };
        let gsi = routes.route().gsi;
        assert_eq!(routes.route().gsi, gsi);
        let many: Vec<_> = (0..600).map(|_| routes.route()).collect();
        for (route, data) in many.iter().zip(0..).take(20) {
            route.set(Message { data, ..MESSAGE }).unwrap();
        }
        many[599].set(MESSAGE).unwrap();
    }
}
