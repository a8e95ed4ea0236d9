//! The walk through ACPI's tables: RSDP, XSDT, then MCFG, FADT and MADT. No address is assumed.

use super::paging;
use super::phys::Span;
use super::port;
use super::power::{Power, Register};
use alloc::vec::Vec;

/// What the tables say.
#[derive(Default)]
pub struct Platform {
    /// Configuration space of PCI segment 0 and its first and last bus.
    pub ecam: Option<(u64, u8, u8)>,
    /// APIC identities of the processors that are enabled.
    pub processors: Vec<u32>,
    /// Power-off and reset.
    pub power: Power,
}

fn window(address: u64, length: u64) -> Span {
    paging::map(address, length);
    // SAFETY: mapped by now; firmware keeps its tables away from RAM that it calls usable.
    unsafe { Span::new(address, length) }
}

/// Walks the tables from `rsdp`, or from one found in the BIOS area if it is 0.
pub fn walk(rsdp: u64) -> Platform {
    let mut platform = Platform::default();
    let rsdp = if rsdp != 0 { Some(rsdp) } else { scan() };
    let Some(root) = rsdp.map(|address| window(address, 36)).filter(is_rsdp) else {
        return platform;
    };
    let xsdt = if root.read::<u8>(15) >= 2 {
        root.read::<u64>(24)
    } else {
        0
    };
    let (address, width) = if xsdt != 0 {
        (xsdt, 8)
    } else {
        (u64::from(root.read::<u32>(16)), 4)
    };
    let Some(list) = table(address) else {
        return platform;
    };
    for at in (36..list.length())
        .step_by(width)
        .take_while(|at| at + width as u64 <= list.length())
    {
        let address = if width == 8 {
            list.read::<u64>(at)
        } else {
            u64::from(list.read::<u32>(at))
        };
        let Some(table) = table(address) else {
            continue;
        };
        match &table.read::<u32>(0).to_le_bytes() {
            b"MCFG" => read_mcfg(&table, &mut platform),
            b"FACP" => read_fadt(&table, &mut platform),
            b"APIC" => read_madt(&table, &mut platform),
            _ => {}
        }
    }
    platform
}

fn is_rsdp(root: &Span) -> bool {
    root.read::<u64>(0) == u64::from_le_bytes(*b"RSD PTR ")
}

// A BIOS leaves the RSDP on a 16-byte boundary of its area.
fn scan() -> Option<u64> {
    (0xe_0000..0x10_0000)
        .step_by(16)
        .find(|address| is_rsdp(&window(*address, 36)))
}

fn table(address: u64) -> Option<Span> {
    if address == 0 {
        return None;
    }
    let length = u64::from(window(address, 36).read::<u32>(4));
    (36..1 << 20)
        .contains(&length)
        .then(|| window(address, length))
}

fn read_mcfg(table: &Span, platform: &mut Platform) {
    for at in (44..table.length())
        .step_by(16)
        .take_while(|at| at + 16 <= table.length())
    {
        if table.read::<u16>(at + 8) == 0 {
            platform.ecam = Some((table.read(at), table.read(at + 10), table.read(at + 11)));
        }
    }
}

fn read_fadt(table: &Span, platform: &mut Platform) {
    const RESET_SUPPORTED: u32 = 1 << 10;
    if table.length() >= 129 && table.read::<u32>(112) & RESET_SUPPORTED != 0 {
        platform.power.reset = register(table, 116).map(|register| (register, table.read(128)));
    }
    if table.length() >= 256 {
        platform.power.sleep = register(table, 244);
    }
}

// A Generic Address Structure
fn register(table: &Span, at: u64) -> Option<Register> {
    let address = table.read::<u64>(at + 4);
    match (table.read::<u8>(at), address) {
        (_, 0) => None,
        (0, _) => Some(Register::Memory(window(address, 1))),
        (1, _) => Some(Register::Port(address as u16)),
        _ => None,
    }
}

fn read_madt(table: &Span, platform: &mut Platform) {
    const LOCAL_APIC: u8 = 0;
    const LOCAL_X2APIC: u8 = 9;
    const ENABLED: u32 = 1;
    const HAS_8259: u32 = 1;
    if table.length() >= 44 && table.read::<u32>(40) & HAS_8259 != 0 {
        mask_8259();
    }
    let mut at = 44;
    while at + 2 <= table.length() {
        let (kind, length) = (table.read::<u8>(at), u64::from(table.read::<u8>(at + 1)));
        if length < 2 || at + length > table.length() {
            return;
        }
        let found = match (kind, length) {
            (LOCAL_APIC, 8..) => Some((
                u32::from(table.read::<u8>(at + 3)),
                table.read::<u32>(at + 4),
            )),
            (LOCAL_X2APIC, 16..) => Some((table.read::<u32>(at + 4), table.read::<u32>(at + 8))),
            _ => None,
        };
        if let Some((id, flags)) = found
            && flags & ENABLED != 0
            && !platform.processors.contains(&id)
        {
            platform.processors.push(id);
        }
        at += length;
    }
}

// A BIOS leaves the old interrupt controllers' timer on, at a vector that means an exception.
fn mask_8259() {
    port::out8(0x21, 0xff);
    port::out8(0xa1, 0xff);
}
