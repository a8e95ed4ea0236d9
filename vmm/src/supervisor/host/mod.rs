//! What a VM needs from the host, measured, opened and locked. Nothing is started.

pub(crate) mod connect;
pub mod descriptors;
pub(crate) mod fence;
pub(crate) mod image;
pub(crate) mod kernel;
pub(crate) mod kvm;
pub(crate) mod lend;
pub(crate) mod memory;
pub(crate) mod output;
pub(crate) mod program;
pub(crate) mod resources;
mod size;
pub(crate) mod tap;
