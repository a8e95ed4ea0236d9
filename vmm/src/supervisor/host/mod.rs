//! What a VM needs from the host, measured, opened and locked. Nothing is started.

pub mod connect;
pub mod descriptors;
pub mod image;
pub mod kernel;
pub mod kvm;
pub mod lend;
pub mod listener;
pub mod memory;
pub mod output;
pub mod program;
pub mod resources;
pub mod tap;
