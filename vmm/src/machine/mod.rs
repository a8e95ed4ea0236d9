//! The process that owns /dev/kvm: guest memory, vCPUs, PCI and the front-end.

pub(crate) mod acpi;
#[allow(unsafe_code)]
mod aio;
pub(crate) mod boot;
pub(crate) mod bus;
pub(crate) mod config_ports;
pub(crate) mod console;
pub mod device;
pub(crate) mod devices;
pub(crate) mod ending;
pub mod frontend;
pub(crate) mod gate;
#[allow(unsafe_code)]
mod heap;
#[allow(unsafe_code)]
pub mod kvm;
pub(crate) mod layout;
#[allow(unsafe_code)]
pub mod memory;
pub mod pci;
pub(crate) mod post;
mod run;
mod signal;
pub(crate) mod threads;
pub(crate) mod vcpu;
pub mod virtio;
pub(crate) mod vm;

pub use run::run;
