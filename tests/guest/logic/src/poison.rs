//! Memory whose every word follows from its address, so that a write to it is seen, also one that copies
//! such memory from elsewhere; and a sum, for memory that is to stay as it is.

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn word(address: u64) -> u64 {
    (address ^ STEP).wrapping_mul(STEP)
}

fn byte(address: u64) -> u8 {
    (word(address & !7) >> (8 * (address & 7))) as u8
}

// How much of `length` bytes at `address` lies before the first whole word.
fn head(address: u64, length: usize) -> usize {
    (address.wrapping_neg() & 7).min(length as u64) as usize
}

/// Poisons these bytes, which are at `address`.
pub fn fill(address: u64, bytes: &mut [u8]) {
    let (head, rest) = bytes.split_at_mut(head(address, bytes.len()));
    for (at, place) in (address..).zip(head.iter_mut()) {
        *place = byte(at);
    }
    let mut at = address + head.len() as u64;
    let mut words = rest.chunks_exact_mut(8);
    for place in &mut words {
        place.copy_from_slice(&word(at).to_le_bytes());
        at += 8;
    }
    for (at, place) in (at..).zip(words.into_remainder()) {
        *place = byte(at);
    }
}

/// Where these bytes, which are at `address`, are no longer as `fill` left them.
#[must_use]
pub fn first_wrong(address: u64, bytes: &[u8]) -> Option<usize> {
    let (head, rest) = bytes.split_at(head(address, bytes.len()));
    let (words, tail) = rest.as_chunks::<8>();
    let begin = address + head.len() as u64;
    let differs = |(at, found): (u64, &u8)| *found != byte(at);
    let whole = (begin..)
        .step_by(8)
        .zip(words)
        .all(|(at, found)| u64::from_le_bytes(*found) == word(at));
    let ends = (address..).zip(head).any(differs)
        || (begin + 8 * words.len() as u64..).zip(tail).any(differs);
    if whole && !ends {
        return None;
    }
    (address..).zip(bytes).position(differs)
}

/// A sum that any change of a word changes.
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    let (words, tail) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..tail.len()].copy_from_slice(tail);
    words.iter().chain([&last]).fold(0, |sum: u64, word| {
        (sum.rotate_left(5) ^ u64::from_le_bytes(*word)).wrapping_mul(STEP)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_byte_is_found_whatever_the_alignment() {
        for address in 0x1000..0x1009 {
            for length in [0, 1, 3, 7, 8, 9, 16, 29] {
                let mut bytes = vec![0; length];
                fill(address, &mut bytes);
                assert_eq!(first_wrong(address, &bytes), None);
                for at in 0..length {
                    bytes[at] ^= 0x10;
                    assert_eq!(first_wrong(address, &bytes), Some(at));
                    bytes[at] ^= 0x10;
                }
            }
        }
    }

    #[test]
    fn a_part_is_as_the_whole_has_it_and_no_other_place_is() {
        let mut bytes = [0; 64];
        fill(0x2003, &mut bytes);
        assert_eq!(first_wrong(0x2003 + 13, &bytes[13..50]), None);
        assert_eq!(first_wrong(0x2003 + 21, &bytes[13..50]), Some(0));
    }

    #[test]
    fn a_sum_changes_with_every_byte() {
        let mut bytes = [7; 29];
        let before = sum(&bytes);
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            assert_ne!(sum(&bytes), before);
            bytes[at] ^= 1;
        }
    }
}
