//! What the guest writes on a disk, and how anyone can check it. This file has no dependencies, so that
//! a test on the host can include it by `#[path]`.
//!
//! Each 512-byte sector is 64 little-endian 64-bit words: the magic, the sector's number, the generation
//! (counted up with each write, so no sector ever holds the same content twice), and a stream that
//! depends on all of these and a seed. A sector in the wrong place, an old one, or a mixture of two is
//! found, and a changed byte too.

/// Words in a sector.
pub const WORDS: usize = 64;
/// Bytes in a sector.
pub const SECTOR: usize = 512;
/// The first word of a sector: "OUTBOARD" in bytes.
pub const MAGIC: u64 = u64::from_le_bytes(*b"OUTBOARD");

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of the splitmix64 generator, applied to the state that follows `state`.
#[must_use]
pub const fn splitmix64(state: u64) -> u64 {
    let mut mixed = state.wrapping_add(GOLDEN);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The state that the stream of one sector starts from.
const fn stream(sector: u64, generation: u64, seed: u64) -> u64 {
    splitmix64(splitmix64(splitmix64(seed) ^ sector) ^ generation)
}

/// Fills a sector's words.
pub fn fill(words: &mut [u64; WORDS], sector: u64, generation: u64, seed: u64) {
    words[0] = MAGIC.to_le();
    words[1] = sector.to_le();
    words[2] = generation.to_le();
    let mut state = stream(sector, generation, seed);
    for word in &mut words[3..] {
        *word = splitmix64(state).to_le();
        state = state.wrapping_add(GOLDEN);
    }
}

/// What is wrong with a sector's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Index of the first wrong word, 0 to 63.
    pub word: usize,
    /// What it should be.
    pub expected: u64,
    /// What it is.
    pub found: u64,
}

/// Checks that a sector's words are exactly what `fill` writes for this sector, generation and seed.
///
/// # Errors
/// The first word that differs.
pub fn check(
    words: &[u64; WORDS],
    sector: u64,
    generation: u64,
    seed: u64,
) -> Result<(), Mismatch> {
    let mut expected = [0; WORDS];
    fill(&mut expected, sector, generation, seed);
    first_difference(words, &expected)
}

/// Checks that a sector was never written.
///
/// # Errors
/// The first word that is not zero.
pub fn check_zero(words: &[u64; WORDS]) -> Result<(), Mismatch> {
    first_difference(words, &[0; WORDS])
}

fn first_difference(words: &[u64; WORDS], expected: &[u64; WORDS]) -> Result<(), Mismatch> {
    for (word, (found, expected)) in words.iter().zip(expected).enumerate() {
        if found != expected {
            return Err(Mismatch {
                word,
                expected: *expected,
                found: *found,
            });
        }
    }
    Ok(())
}

/// Reads a sector as it lies on the disk into words.
#[must_use]
pub fn words_of(bytes: &[u8; SECTOR]) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut buffer = [0; 8];
        buffer.copy_from_slice(bytes);
        *word = u64::from_ne_bytes(buffer);
    }
    words
}

/// Checks a sector of a disk image whose generation is not known: `None` if it is all zero, or the
/// generation that it says it has, if everything else agrees with that.
///
/// # Errors
/// The first word that is wrong.
pub fn generation_of(
    bytes: &[u8; SECTOR],
    sector: u64,
    seed: u64,
) -> Result<Option<u64>, Mismatch> {
    let words = words_of(bytes);
    if check_zero(&words).is_ok() {
        return Ok(None);
    }
    let generation = u64::from_le(words[2]);
    check(&words, sector, generation, seed).map(|()| Some(generation))
}

/// One written sector's share of a run's digest; the digest is the wrapping sum of them.
#[must_use]
pub const fn digest(sector: u64, generation: u64) -> u64 {
    splitmix64(sector ^ generation.rotate_left(32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(number: u64, generation: u64, seed: u64) -> [u8; SECTOR] {
        let mut words = [0; WORDS];
        fill(&mut words, number, generation, seed);
        let mut bytes = [0; SECTOR];
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn the_generator_is_the_published_splitmix64() {
        assert_eq!(splitmix64(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(splitmix64(GOLDEN), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn a_sector_begins_with_the_projects_name() {
        assert_eq!(&sector(7, 1, 0)[..8], b"OUTBOARD");
        assert_eq!(MAGIC, 0x4452_414f_4254_554f);
    }

    #[test]
    fn a_sector_tells_its_generation() {
        assert_eq!(generation_of(&sector(9, 12, 3), 9, 3), Ok(Some(12)));
        assert_eq!(generation_of(&[0; SECTOR], 9, 3), Ok(None));
    }

    #[test]
    fn every_changed_byte_is_found() {
        let good = sector(5, 2, 1);
        for at in 0..SECTOR {
            let mut bad = good;
            bad[at] ^= 0x10;
            assert!(generation_of(&bad, 5, 1).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_sector_in_the_wrong_place_or_of_another_seed_is_found() {
        assert_eq!(generation_of(&sector(5, 2, 1), 6, 1).unwrap_err().word, 1);
        assert_eq!(generation_of(&sector(5, 2, 1), 5, 2).unwrap_err().word, 3);
    }

    #[test]
    fn a_mixture_of_two_generations_is_found() {
        let mut mixed = sector(5, 2, 1);
        mixed[256..].copy_from_slice(&sector(5, 3, 1)[256..]);
        assert_eq!(generation_of(&mixed, 5, 1).unwrap_err().word, 32);
    }

    #[test]
    fn digests_tell_sector_and_generation_apart() {
        assert_ne!(digest(1, 2), digest(2, 1));
        assert_ne!(
            digest(1, 2).wrapping_add(digest(2, 2)),
            digest(1, 1).wrapping_add(digest(2, 3))
        );
    }
}
