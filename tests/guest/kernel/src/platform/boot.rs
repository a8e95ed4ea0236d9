//! What whoever loaded the guest left for it: command line, memory map, the address of ACPI's root.
//! PVH's `hvm_start_info` and Linux's `boot_params` say the same in different places.

use super::phys::Span;
use guest_logic::words::Words;

/// How the guest was entered, as entry.s passes it.
pub const PVH: u64 = 0;

const MAX_REGIONS: usize = 64;
const MAX_COMMAND_LINE: usize = 2048;
const RAM: u32 = 1;

const PVH_MAGIC: u32 = 0x336e_c578;

/// A piece of RAM.
#[derive(Clone, Copy, Debug, Default)]
pub struct Region {
    /// Its first address.
    pub base: u64,
    /// Its size in bytes.
    pub length: u64,
}

/// What was found.
pub struct Boot {
    /// RAM, in the order in which it was listed.
    regions: [Region; MAX_REGIONS],
    count: usize,
    /// Address of the RSDP, 0 if it was not given.
    pub rsdp: u64,
    command_line: [u8; MAX_COMMAND_LINE],
    command_line_length: usize,
}

/// Firmware information lies below 4 GiB, all of which is mapped.
fn table(address: u64, length: u64) -> Span {
    // SAFETY: mapped at link time; loaders keep these structures away from the kernel's image.
    unsafe { Span::new(address, length) }
}

impl Boot {
    /// Reads what the loader left at `address`.
    pub fn read(kind: u64, address: u64) -> Boot {
        let mut boot = Boot {
            regions: [Region::default(); MAX_REGIONS],
            count: 0,
            rsdp: 0,
            command_line: [0; MAX_COMMAND_LINE],
            command_line_length: 0,
        };
        if kind == PVH {
            boot.read_start_info(address)
        } else {
            boot.read_boot_params(address)
        }
        boot
    }

    /// The command line's words.
    pub fn words(&self) -> Words<'_> {
        Words::new(
            core::str::from_utf8(&self.command_line[..self.command_line_length]).unwrap_or(""),
        )
    }

    /// Pieces of RAM.
    pub fn ram(&self) -> &[Region] {
        &self.regions[..self.count]
    }

    // struct hvm_start_info, version 1
    fn read_start_info(&mut self, address: u64) {
        let info = table(address, 56);
        assert!(
            info.read::<u32>(0) == PVH_MAGIC,
            "no start_info at {address:#x}"
        );
        self.rsdp = info.read(32);
        self.copy_command_line(info.read(24));
        if info.read::<u32>(4) == 0 {
            return;
        }
        let entries = u64::from(info.read::<u32>(48));
        let map = table(info.read(40), entries * 24);
        for at in (0..entries).map(|entry| entry * 24) {
            self.add(map.read(at), map.read(at + 8), map.read(at + 16));
        }
    }

    // struct boot_params
    fn read_boot_params(&mut self, address: u64) {
        let params = table(address, 4096);
        self.rsdp = params.read(0x70);
        let high = u64::from(params.read::<u32>(0xc8));
        self.copy_command_line(high << 32 | u64::from(params.read::<u32>(0x228)));
        for entry in 0..u64::from(params.read::<u8>(0x1e8)).min(128) {
            let at = 0x2d0 + entry * 20;
            self.add(params.read(at), params.read(at + 8), params.read(at + 16));
        }
    }

    fn add(&mut self, base: u64, length: u64, kind: u32) {
        if kind == RAM && length != 0 && self.count < MAX_REGIONS {
            self.regions[self.count] = Region { base, length };
            self.count += 1;
        }
    }

    fn copy_command_line(&mut self, address: u64) {
        if address == 0 {
            return;
        }
        let text = table(address, MAX_COMMAND_LINE as u64);
        for (at, byte) in self.command_line.iter_mut().enumerate() {
            *byte = text.read(at as u64);
            if *byte == 0 {
                self.command_line_length = at;
                return;
            }
        }
    }
}
