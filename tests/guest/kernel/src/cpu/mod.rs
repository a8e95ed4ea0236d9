//! Processors: what each knows about itself, its interrupt controller, and work for several of them.

pub mod apic;
pub mod percpu;
pub mod smp;

pub use smp::start_first;
