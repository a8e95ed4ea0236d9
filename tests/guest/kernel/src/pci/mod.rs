//! PCI by memory-mapped configuration space (PCI Express 7.2.2): bus 0, its functions, their BARs and
//! capabilities.

pub mod msix;

use crate::platform::acpi::Platform;
use crate::platform::{paging, phys::Span};
use alloc::string::String;
use alloc::vec::Vec;
use guest_logic::words::Words;

const FUNCTION_SPACE: u64 = 4096;
const FUNCTIONS: u64 = 32 * 8;
/// Where BARs go that firmware left alone: QEMU microvm's window.
const MEMORY_WINDOW: u64 = 0xc000_0000;
const PORT_WINDOW: u64 = 0x1000;

const COMMAND: u64 = 0x04;
const STATUS: u64 = 0x06;
const HEADER_TYPE: u64 = 0x0e;
const FIRST_BAR: u64 = 0x10;
const FIRST_CAPABILITY: u64 = 0x34;
const HAS_CAPABILITIES: u16 = 0x10;
const MULTI_FUNCTION: u8 = 0x80;

/// Command register bits (PCI 3.0, 6.2.2).
pub const DECODE_PORTS: u16 = 1;
/// Memory decoding.
pub const DECODE_MEMORY: u16 = 2;
/// Bus mastering.
pub const BUS_MASTER: u16 = 4;
const NO_INTX: u16 = 0x400;

/// Where a BAR lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// It does not exist.
    None,
    /// At this physical address.
    Memory(u64),
    /// At this port.
    Port(u16),
}

/// One function of bus 0.
#[derive(Clone)]
pub struct Function {
    /// Device number.
    pub slot: u8,
    /// Function number.
    pub number: u8,
    /// Its configuration space.
    pub config: Span,
    /// Its BARs.
    pub bars: [Bar; 6],
}

/// A part of the address space that BARs are given from.
struct Windows {
    memory: u64,
    ports: u64,
}

impl Function {
    /// Vendor and device identity.
    pub fn identity(&self) -> (u16, u16) {
        (self.config.read(0), self.config.read(2))
    }

    /// Offsets of the capabilities with this identity.
    pub fn capabilities(&self, identity: u8) -> Vec<u64> {
        let mut found = Vec::new();
        if self.config.read::<u16>(STATUS) & HAS_CAPABILITIES == 0 {
            return found;
        }
        let mut at = u64::from(self.config.read::<u8>(FIRST_CAPABILITY) & 0xfc);
        // There is room for 48 of them; a list that is longer goes in circles.
        for _ in 0..48 {
            if at == 0 {
                break;
            }
            if self.config.read::<u8>(at) == identity {
                found.push(at);
            }
            at = u64::from(self.config.read::<u8>(at + 1) & 0xfc);
        }
        found
    }

    /// The registers at `offset` in a memory BAR.
    pub fn memory(&self, bar: u8, offset: u64, length: u64) -> Result<Span, String> {
        match self.bars.get(usize::from(bar)) {
            Some(Bar::Memory(base)) => {
                paging::map(base + offset, length);
                // SAFETY: mapped by now; the memory map keeps RAM out of BARs.
                Ok(unsafe { Span::new(base + offset, length) })
            }
            other => Err(alloc::format!(
                "reason=no-memory-bar slot={} bar={bar} is={other:?}",
                self.slot
            )),
        }
    }

    /// Reads the command register.
    pub fn command(&self) -> u16 {
        self.config.read(COMMAND)
    }

    /// Writes the command register.
    pub fn set_command(&self, value: u16) {
        self.config.write(COMMAND, value);
    }

    /// Switches on decoding and bus mastering, and pin interrupts off.
    fn enable(&self) {
        let command = self.command() | DECODE_PORTS | DECODE_MEMORY | BUS_MASTER | NO_INTX;
        self.set_command(command);
    }

    /// Offset of a BAR's register.
    pub fn bar_register(index: usize) -> u64 {
        FIRST_BAR + 4 * index as u64
    }

    fn find_bars(&mut self, windows: &mut Windows) {
        let mut index = 0;
        while index < 6 {
            let register = Self::bar_register(index);
            let low: u32 = self.config.read(register);
            let wide = low & 7 == 4 && index < 5;
            let high = if wide {
                self.config.read::<u32>(register + 4)
            } else {
                0
            };
            let mask = if low & 1 == 1 { !3 } else { !15 };
            let address = u64::from(high) << 32 | u64::from(low & mask);
            let address = if address == 0 {
                self.assign(register, wide, windows)
            } else {
                address
            };
            self.bars[index] = match (address, low & 1) {
                (0, _) => Bar::None,
                (port, 1) => Bar::Port(port as u16),
                (base, _) => Bar::Memory(base),
            };
            index += if wide { 2 } else { 1 };
        }
    }

    /// Sizes a BAR that nobody placed and places it. 0 if there is none.
    fn assign(&self, register: u64, wide: bool, windows: &mut Windows) -> u64 {
        let command = self.command();
        self.set_command(command & !(DECODE_MEMORY | DECODE_PORTS));
        self.config.write(register, u32::MAX);
        let bits: u32 = self.config.read(register);
        let is_port = bits & 1 == 1;
        let mut size = if is_port {
            u64::from(!(bits & !3) as u16)
        } else {
            u64::from(!(bits & !15))
        };
        if wide {
            self.config.write(register + 4, u32::MAX);
            size |= u64::from(!self.config.read::<u32>(register + 4)) << 32;
        }
        let size = if bits == 0 { 0 } else { size + 1 };
        let address = if size == 0 {
            0
        } else {
            let window = if is_port {
                &mut windows.ports
            } else {
                &mut windows.memory
            };
            let address = window.next_multiple_of(size);
            *window = address + size;
            address
        };
        self.config.write(register, address as u32);
        if wide {
            self.config.write(register + 4, (address >> 32) as u32);
        }
        self.set_command(command);
        address
    }
}

/// Finds the functions of bus 0 and switches them on.
pub fn scan(platform: &Platform, words: &Words<'_>) -> Result<Vec<Function>, String> {
    let given = number(words, "ecam", 0)?;
    let ecam = platform.ecam.map_or(given, |(base, _, _)| base);
    if ecam == 0 {
        return Err("reason=no-pci-configuration-space".into());
    }
    let mut windows = Windows {
        memory: number(words, "pcimmio", MEMORY_WINDOW)?,
        ports: number(words, "pciio", PORT_WINDOW)?,
    };
    paging::map(ecam, FUNCTIONS * FUNCTION_SPACE);
    let mut functions = Vec::new();
    for slot in 0..32 {
        let mut last = 0;
        let mut number = 0;
        while number <= last {
            let at = ecam + (u64::from(slot) * 8 + u64::from(number)) * FUNCTION_SPACE;
            // SAFETY: mapped above; configuration space holds no RAM.
            let config = unsafe { Span::new(at, FUNCTION_SPACE) };
            if config.read::<u16>(0) != 0xffff {
                let kind: u8 = config.read(HEADER_TYPE);
                if number == 0 && kind & MULTI_FUNCTION != 0 {
                    last = 7;
                }
                if kind & 0x7f == 0 {
                    let mut function = Function {
                        slot,
                        number,
                        config,
                        bars: [Bar::None; 6],
                    };
                    function.find_bars(&mut windows);
                    function.enable();
                    functions.push(function);
                }
            }
            number += 1;
        }
    }
    Ok(functions)
}

fn number(words: &Words<'_>, key: &'static str, otherwise: u64) -> Result<u64, String> {
    words
        .number(key, otherwise)
        .map_err(|bad| alloc::format!("reason=bad-value key={} value={}", bad.key, bad.value))
}
