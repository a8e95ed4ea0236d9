//! Command line values with a result line's kind of complaint.

use crate::blk;
use crate::virtio::transport::Transport;
use alloc::string::String;
use alloc::vec::Vec;
use guest_logic::words::{BadValue, Words};

fn complain(bad: BadValue<'_>) -> String {
    alloc::format!("reason=bad-value key={} value={}", bad.key, bad.value)
}

/// A number.
pub fn number(words: &Words<'_>, key: &'static str, otherwise: u64) -> Result<u64, String> {
    words.number(key, otherwise).map_err(complain)
}

/// A number in a range.
pub fn within(
    words: &Words<'_>,
    key: &'static str,
    otherwise: u64,
    low: u64,
    high: u64,
) -> Result<u64, String> {
    let value = number(words, key, otherwise)?;
    if (low..=high).contains(&value) {
        return Ok(value);
    }
    Err(alloc::format!(
        "reason=out-of-range key={key} value={value} low={low} high={high}"
    ))
}

/// Yes or no.
pub fn flag(words: &Words<'_>, key: &'static str, otherwise: bool) -> Result<bool, String> {
    words.flag(key, otherwise).map_err(complain)
}

/// The block device that the command line chooses by `device=`, counted from 0.
pub fn block_device(words: &Words<'_>, devices: &[Transport]) -> Result<Transport, String> {
    device(words, devices, blk::KIND, "block")
}

/// The device of this kind that the command line chooses by `device=`, counted from 0.
pub fn device(
    words: &Words<'_>,
    devices: &[Transport],
    kind: u16,
    name: &str,
) -> Result<Transport, String> {
    let wanted = number(words, "device", 0)? as usize;
    let mut such = devices.iter().filter(|device| device.kind == kind);
    such.nth(wanted)
        .cloned()
        .ok_or_else(|| alloc::format!("reason=no-{name}-device device={wanted}"))
}

/// An IPv4 address.
pub fn address(
    words: &Words<'_>,
    key: &'static str,
    otherwise: &'static str,
) -> Result<[u8; 4], String> {
    let text = words.get(key).unwrap_or(otherwise);
    // A prefix length is accepted and not needed: every peer is on the same link.
    let digits = text.split_once('/').map_or(text, |(address, _)| address);
    parts(digits, '.', 10).ok_or_else(|| alloc::format!("reason=bad-value key={key} value={text}"))
}

/// An Ethernet address, if there is one.
pub fn ethernet_address(words: &Words<'_>, key: &'static str) -> Result<Option<[u8; 6]>, String> {
    let Some(text) = words.get(key) else {
        return Ok(None);
    };
    parts(text, ':', 16)
        .map(Some)
        .ok_or_else(|| alloc::format!("reason=bad-value key={key} value={text}"))
}

/// A list of Ethernet addresses, if there is one.
pub fn ethernet_addresses(
    words: &Words<'_>,
    key: &'static str,
) -> Result<Option<Vec<[u8; 6]>>, String> {
    let Some(text) = words.get(key) else {
        return Ok(None);
    };
    let list = text.split(',').map(|one| {
        parts(one, ':', 16).ok_or_else(|| alloc::format!("reason=bad-value key={key} value={text}"))
    });
    list.collect::<Result<_, _>>().map(Some)
}

fn parts<const N: usize>(text: &str, separator: char, radix: u32) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let mut parts = text.split(separator);
    for byte in &mut bytes {
        *byte = u8::from_str_radix(parts.next()?, radix).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}
