//! The process that owns /dev/kvm: guest memory, vCPUs, PCI and the front-end.

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod config_ports;
pub mod console;
pub mod device;
pub mod devices;
pub mod ending;
pub mod frontend;
pub mod kvm;
pub mod layout;
pub mod memory;
pub mod pci;
pub mod post;
mod run;
mod signal;
pub mod threads;
pub mod vcpu;
pub mod virtio;
pub mod vm;

pub use run::run;
