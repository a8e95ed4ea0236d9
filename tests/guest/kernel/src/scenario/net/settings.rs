//! What the command line says is to be set in a card by its control queue.

use super::options;
use crate::net::control::{MODES, SET_MAC, SET_OFFLOADS, SET_TABLE};
use crate::net::{Net, feature};
use alloc::string::String;
use alloc::vec::Vec;
use guest_logic::words::Words;

/// Sets the address `own`, the modes, the tables and the offloads; what the card does not offer is left out.
pub fn set(net: &mut Net, words: &Words<'_>, own: [u8; 6]) -> Result<(), String> {
    if own != net.configuration.mac && net.has(feature::CTRL_MAC_ADDR) {
        net.command(SET_MAC, &own)?;
    }
    for (key, command) in MODES {
        if words.get(key).is_some() && net.has(feature::CTRL_RX) {
            let on = options::flag(words, key, false)?;
            net.command(command, &[u8::from(on)])?;
        }
    }
    if let Some(table) = options::ethernet_addresses(words, "table")? {
        net.command(SET_TABLE, &tables(&table))?;
    }
    if words.get("offloads").is_some() {
        let offloads = options::number(words, "offloads", 0)?;
        net.command(SET_OFFLOADS, &offloads.to_le_bytes())?;
    }
    Ok(())
}

// The table of stations, and then that of groups, each after its length (5.1.6.5.2).
fn tables(addresses: &[[u8; 6]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for group in [0, 1] {
        let such = addresses.iter().filter(|address| address[0] & 1 == group);
        let count = such.clone().count() as u32;
        bytes.extend(count.to_le_bytes());
        bytes.extend(such.flatten());
    }
    bytes
}
