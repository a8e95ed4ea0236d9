//! BARs that move about: part of `scenario=registers`.

use crate::pci::{Bar, DECODE_MEMORY, DECODE_PORTS, Function};
use crate::platform::dma;
use crate::virtio::transport::Transport;
use alloc::string::String;

/// Where a BAR may be sent: free addresses, RAM, other devices' registers, nonsense.
fn destinations(own: u64) -> [u64; 8] {
    let ram = dma::allocate(1 << 16, 1 << 16);
    ram.fill(0x5a);
    [
        ram.address(),
        0xfee0_0000,
        0xfec0_0000,
        0xe000_0000,
        0,
        0xffff_0000,
        own ^ 0x0100_0000,
        own,
    ]
}

fn write_bar(function: &Function, index: usize, address: u64) {
    let register = Function::bar_register(index);
    let wide = function.config.read::<u32>(register) & 7 == 4;
    function.config.write(register, address as u32);
    if wide {
        function.config.write(register + 4, (address >> 32) as u32);
    }
}

/// Moves each BAR about, with decoding off and on meanwhile, and home again.
pub fn move_bars(device: &Transport) -> Result<(), String> {
    let function = &device.function;
    let command = function.command();
    let off = command & !(DECODE_MEMORY | DECODE_PORTS);
    for (index, bar) in function.bars.iter().enumerate() {
        let home = match bar {
            Bar::Memory(home) => *home,
            Bar::Port(home) => u64::from(*home),
            Bar::None => continue,
        };
        let others = function.bars.iter().filter_map(|other| match other {
            Bar::Memory(address) if *address != home => Some(*address),
            _ => None,
        });
        for address in destinations(home).into_iter().chain(others) {
            function.set_command(off);
            write_bar(function, index, address);
            function.set_command(command);
            let _ = function.command();
            // Once more while it decodes, which real firmware avoids.
            write_bar(function, index, u64::from(u32::MAX));
            write_bar(function, index, address);
            function.set_command(off);
            write_bar(function, index, home);
            function.set_command(command);
        }
        let found = function.config.read::<u32>(Function::bar_register(index)) & !0xf;
        if matches!(bar, Bar::Memory(_)) && found != home as u32 {
            return Err(alloc::format!(
                "reason=bar-lost bar={index} wanted={home:#x} found={found:#x}"
            ));
        }
    }
    Ok(())
}
