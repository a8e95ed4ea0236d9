//! The process that owns /dev/kvm: guest memory, vCPUs, PCI and the front-end.

pub mod bus;
pub mod layout;
pub mod memory;
