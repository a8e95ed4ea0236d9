//! What lies between the scenarios and the bare machine: memory, ports, console, tables, power.

pub mod acpi;
pub mod boot;
pub mod canary;
pub mod clock;
pub mod console;
pub mod dma;
pub mod exception;
pub mod heap;
pub mod memops;
pub mod paging;
pub mod phys;
pub mod port;
pub mod power;
pub mod ring0;
pub mod sync;
