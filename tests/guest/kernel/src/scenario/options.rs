//! Command line values with a result line's kind of complaint.

use crate::blk;
use crate::virtio::transport::Transport;
use alloc::string::String;
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
    let wanted = number(words, "device", 0)? as usize;
    let mut disks = devices.iter().filter(|device| device.kind == blk::KIND);
    disks
        .nth(wanted)
        .cloned()
        .ok_or_else(|| alloc::format!("reason=no-block-device device={wanted}"))
}
