//! The bundled guest: a bare-metal program that drives virtio devices from ring 3. It starts in
//! milliseconds on any KVM, also on one that emulates ring 0 in software, and does what its command line
//! says: see README.md in the folder above.
//!
//! ```text
//! entry.s (ring 0) -> guest_main (ring 3) -> scenario -> one result line -> power-off
//! ```

#![no_std]
#![no_main]

extern crate alloc;

mod blk;
mod cpu;
mod net;
mod pci;
mod platform;
mod scenario;
mod virtio;

use platform::{acpi, boot::Boot, clock, console, dma, power};

core::arch::global_asm!(include_str!("entry.s"));

unsafe extern "C" {
    #[link_name = "__bss_end"]
    static IMAGE_END: u8;
}

/// entry.s comes here, in ring 3, with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn guest_main(kind: u64, address: u64) -> ! {
    let boot = Boot::read(kind, address);
    console::start();
    let words = boot.words();
    if words.text("console", "") == "bytes" {
        console::write_byte_by_byte();
    }
    // Ends the line of the start-up mark.
    say!("");
    dma::start(boot.ram(), (&raw const IMAGE_END) as u64);
    let platform = acpi::walk(boot.rsdp);
    power::configure(platform.power);
    cpu::start_first();
    clock::start(words.number("tsc_khz", 0).unwrap_or(0));
    let machine = scenario::Machine {
        words,
        platform: &platform,
        ram: boot.ram(),
    };
    scenario::run(&machine)
}
