//! What a verifier does, as the command line says.

use super::options;
use crate::blk::queue::MAX_PIECES;
use crate::blk::{Blk, SECTOR, feature};
use alloc::string::String;
use guest_logic::random::Random;
use guest_logic::words::Words;

/// What a worker does to its part.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The patterns' and the choices' seed.
    pub seed: u64,
    /// Bytes in the largest request.
    pub size: u64,
    /// Whether all requests are of that size.
    pub size_fixed: bool,
    /// Sectors that positions and lengths are multiples of.
    pub block: u64,
    /// A flush after each so many requests; 0 for none.
    pub flush_every: u64,
    /// The most pieces that data is cut into.
    pub pieces: usize,
    /// Whether pieces may be of any length, not only whole sectors.
    pub ragged: bool,
    /// Discards too.
    pub discard: bool,
    /// Writes zeroes too.
    pub write_zeroes: bool,
    /// Whether sectors that were not written yet are known to be zero.
    pub fresh: bool,
}

impl Plan {
    /// What the command line says.
    pub fn read(words: &Words<'_>, disk: &Blk) -> Result<Plan, String> {
        let says = &disk.configuration;
        let block = u64::from(says.block_size.max(512)) / SECTOR;
        let size = options::within(
            words,
            "size",
            4096.max(block * SECTOR),
            block * SECTOR,
            1 << 20,
        )?;
        let pieces =
            options::within(words, "segments", 4, 1, 16)?.min(u64::from(says.seg_max)) as usize;
        let has = |bit: u64| disk.features & bit != 0;
        let flush = if has(feature::FLUSH) {
            options::number(words, "flush_every", 64)?
        } else {
            0
        };
        Ok(Plan {
            seed: options::number(words, "seed", 1)?,
            size: size / (block * SECTOR) * block * SECTOR,
            size_fixed: options::flag(words, "size_fixed", false)?,
            block,
            flush_every: flush,
            pieces,
            ragged: options::flag(words, "ragged", false)?,
            discard: options::flag(words, "discard", false)? && has(feature::DISCARD),
            write_zeroes: options::flag(words, "write_zeroes", false)?
                && has(feature::WRITE_ZEROES),
            fresh: options::flag(words, "fresh", true)?,
        })
    }

    /// Cuts a length into random pieces and returns their number.
    pub fn cut(&self, random: &mut Random, length: u64, pieces: &mut [u32; MAX_PIECES]) -> usize {
        let unit = if self.ragged { 1 } else { SECTOR };
        let wanted = 1 + random.below(self.pieces as u64) as usize;
        let mut left = length / unit;
        let mut count = 0;
        while left > 0 {
            let piece = if count + 1 == wanted {
                left
            } else {
                1 + random.below(left)
            };
            pieces[count] = (piece * unit) as u32;
            left -= piece;
            count += 1;
        }
        count
    }
}
