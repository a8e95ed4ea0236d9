//! Where `scenario=storm` has its data on a disk, what a block of it says, and the table of what each block
//! must hold, which the guest writes behind the data so that the host can check the image by itself.
//!
//! ```text
//! | blocks of data | table, in whole blocks | one block: the stop mark |
//! ```
//!
//! A block is a number of sectors that one write fills with one generation (`pattern`), so that one of which
//! only a part was written is found. But for `pattern` this file has no dependencies: a test on the host
//! can include both by `#[path]`.

use crate::pattern::{self, SECTOR, WORDS, splitmix64};

/// Blocks that one sector of the table tells of.
pub const ENTRIES: usize = 120;
/// The first word of a sector of the table: "OUTBRECD" in bytes.
pub const MAGIC: u64 = u64::from_le_bytes(*b"OUTBRECD");
/// The first word of the stop block when the guest is to end: "OUTBSTOP" in bytes.
pub const STOP: u64 = u64::from_le_bytes(*b"OUTBSTOP");
/// Words before the entries of a sector of the table.
const HEADER: usize = 4;

/// Where everything is, in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Sectors in a block.
    pub block: u64,
    /// Blocks of data, from sector 0 on.
    pub blocks: u64,
    /// The first sector of the table.
    pub table: u64,
    /// Sectors of the table that tell of blocks.
    pub table_sectors: u64,
    /// The first sector of the stop block.
    pub stop: u64,
}

impl Layout {
    /// The layout of a disk of so many sectors; `None` if it is too small or there is no such block.
    #[must_use]
    pub const fn new(sectors: u64, block: u64) -> Option<Layout> {
        if block == 0 || sectors / block < 3 {
            return None;
        }
        let stop = (sectors / block - 1) * block;
        let mut blocks = stop / block - 1;
        loop {
            let table_sectors = blocks.div_ceil(ENTRIES as u64);
            let table = blocks * block;
            if table + table_sectors.div_ceil(block) * block <= stop {
                return Some(Layout {
                    block,
                    blocks,
                    table,
                    table_sectors,
                    stop,
                });
            }
            blocks -= 1;
        }
    }
}

/// What a block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// One generation in every sector; 0: it was never written.
    Whole(u32),
    /// Sectors of several generations, of which these are the lowest and the highest.
    Mixture(u32, u32),
    /// A sector of another place, which is named.
    Elsewhere(u64),
    /// A sector that is no pattern: at this word is the first wrong one.
    Broken(usize, u64),
}

/// Looks at a block, sector by sector.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    seed: u64,
    seen: Option<Seen>,
}

impl Look {
    /// Nothing was seen yet.
    #[must_use]
    pub const fn new(seed: u64) -> Look {
        Look { seed, seen: None }
    }

    /// Looks at the block's next sector, which is this one of the disk.
    pub fn sector(&mut self, words: &[u64; WORDS], sector: u64) {
        let next = one(words, sector, self.seed);
        self.seen = Some(match (self.seen, next) {
            (None, next) => next,
            (Some(Seen::Broken(word, found)), _) => Seen::Broken(word, found),
            (Some(Seen::Elsewhere(place)), _) => Seen::Elsewhere(place),
            (Some(_), Seen::Broken(..) | Seen::Elsewhere(_)) => next,
            (Some(before), _) => {
                let ((a, b), (c, d)) = (range(before), range(next));
                match (a.min(c), b.max(d)) {
                    (low, high) if low == high => Seen::Whole(low),
                    (low, high) => Seen::Mixture(low, high),
                }
            }
        });
    }

    /// What the whole block says; `None` if it has no sector.
    #[must_use]
    pub const fn seen(&self) -> Option<Seen> {
        self.seen
    }
}

const fn range(seen: Seen) -> (u32, u32) {
    match seen {
        Seen::Whole(generation) => (generation, generation),
        Seen::Mixture(low, high) => (low, high),
        Seen::Elsewhere(_) | Seen::Broken(..) => (0, 0),
    }
}

fn one(words: &[u64; WORDS], sector: u64, seed: u64) -> Seen {
    if pattern::check_zero(words).is_ok() {
        return Seen::Whole(0);
    }
    let [_, place, generation, ..] = words.map(u64::from_le);
    let wrong = match pattern::check(words, sector, generation, seed) {
        Ok(()) => match u32::try_from(generation) {
            Ok(generation) => return Seen::Whole(generation),
            Err(_) => return Seen::Broken(2, generation),
        },
        Err(wrong) => wrong,
    };
    match pattern::check(words, place, generation, seed) {
        Ok(()) => Seen::Elsewhere(place),
        Err(_) => Seen::Broken(wrong.word, wrong.found),
    }
}

/// One sector of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// The first block that it tells of.
    pub first: u64,
    /// How many it tells of.
    pub count: usize,
    /// The generation that each of them holds.
    pub entries: [u32; ENTRIES],
}

impl Page {
    /// Writes it as it lies on the disk. (Words are little-endian there; so is the guest.)
    #[must_use]
    pub fn words(&self, seed: u64) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        words[0] = MAGIC.to_le();
        words[1] = self.first.to_le();
        words[2] = (self.count as u64).to_le();
        for (word, pair) in words[HEADER..].iter_mut().zip(self.entries.chunks_exact(2)) {
            *word = (u64::from(pair[0]) | u64::from(pair[1]) << 32).to_le();
        }
        words[3] = sum(&words, seed).to_le();
        words
    }

    /// Reads it; `None` if it is none, or of another seed, or damaged.
    #[must_use]
    pub fn read(words: &[u64; WORDS], seed: u64) -> Option<Page> {
        let [magic, first, count, checksum, ..] = words.map(u64::from_le);
        let count = usize::try_from(count).ok()?;
        if magic != MAGIC || count > ENTRIES || checksum != sum(words, seed) {
            return None;
        }
        let mut entries = [0; ENTRIES];
        for (pair, word) in entries.chunks_exact_mut(2).zip(&words[HEADER..]) {
            let word = u64::from_le(*word);
            pair.copy_from_slice(&[word as u32, (word >> 32) as u32]);
        }
        Some(Page {
            first,
            count,
            entries,
        })
    }
}

// Of all words but the one that holds it.
fn sum(words: &[u64; WORDS], seed: u64) -> u64 {
    let (before, rest) = words.split_at(HEADER - 1);
    let all = before.iter().chain(&rest[1..]);
    all.fold(splitmix64(seed), |sum, word| {
        splitmix64(sum ^ u64::from_le(*word))
    })
}

/// What the host has found on an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Blocks that were looked at.
    pub blocks: u64,
    /// Of these, the ones that must hold something.
    pub written: u64,
    /// Blocks that hold something older than the table says.
    pub lost: u64,
    /// Blocks of several generations, or with sectors that are no pattern.
    pub torn: u64,
    /// Blocks with a sector of another place.
    pub misplaced: u64,
    /// Blocks that hold something newer than the table says.
    pub newer: u64,
    /// Sectors of the table that are none.
    pub unreadable: u64,
}

impl Found {
    /// Whether every block holds what it must.
    #[must_use]
    pub const fn is_right(&self) -> bool {
        self.lost + self.torn + self.misplaced + self.newer + self.unreadable == 0
    }
}

/// Compares an image with the table on it. `read` reads one sector.
///
/// # Errors
/// Those of `read`.
pub fn check<E>(
    layout: &Layout,
    seed: u64,
    mut read: impl FnMut(u64, &mut [u8; SECTOR]) -> Result<(), E>,
) -> Result<Found, E> {
    let mut found = Found::default();
    let mut bytes = [0; SECTOR];
    for at in 0..layout.table_sectors {
        read(layout.table + at, &mut bytes)?;
        let first = at * ENTRIES as u64;
        let page = Page::read(&pattern::words_of(&bytes), seed);
        let Some(page) = page.filter(|page| page.first == first) else {
            found.unreadable += 1;
            continue;
        };
        for (block, entry) in (first..layout.blocks).zip(&page.entries[..page.count]) {
            let mut look = Look::new(seed);
            for sector in block * layout.block..(block + 1) * layout.block {
                read(sector, &mut bytes)?;
                look.sector(&pattern::words_of(&bytes), sector);
            }
            found.blocks += 1;
            found.written += u64::from(*entry != 0);
            match look.seen() {
                Some(Seen::Whole(generation)) if generation < *entry => found.lost += 1,
                Some(Seen::Whole(generation)) if generation > *entry => found.newer += 1,
                Some(Seen::Mixture(..) | Seen::Broken(..)) => found.torn += 1,
                Some(Seen::Elsewhere(_)) => found.misplaced += 1,
                Some(Seen::Whole(_)) | None => {}
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    const SEED: u64 = 7;

    fn disk(layout: &Layout) -> Vec<[u64; WORDS]> {
        let mut disk = vec![[0; WORDS]; (layout.stop + layout.block) as usize];
        for block in 0..layout.blocks {
            write(&mut disk, layout, block, block as u32 + 1);
        }
        for at in 0..layout.table_sectors {
            let first = at * ENTRIES as u64;
            let count = (layout.blocks - first).min(ENTRIES as u64) as usize;
            let mut entries = [0; ENTRIES];
            for (entry, block) in entries[..count].iter_mut().zip(first..) {
                *entry = block as u32 + 1;
            }
            disk[(layout.table + at) as usize] = Page {
                first,
                count,
                entries,
            }
            .words(SEED);
        }
        disk
    }

    fn write(disk: &mut [[u64; WORDS]], layout: &Layout, block: u64, generation: u32) {
        for sector in block * layout.block..(block + 1) * layout.block {
            pattern::fill(&mut disk[sector as usize], sector, generation.into(), SEED);
        }
    }

    fn found(disk: &[[u64; WORDS]], layout: &Layout) -> Found {
        check(layout, SEED, |sector, bytes| {
            for (bytes, word) in bytes.chunks_exact_mut(8).zip(disk[sector as usize]) {
                bytes.copy_from_slice(&word.to_ne_bytes());
            }
            Ok::<(), Infallible>(())
        })
        .unwrap()
    }

    #[test]
    fn data_table_and_stop_block_lie_behind_one_another_and_fill_the_disk() {
        for block in [1, 8] {
            for sectors in 3 * block..3000 {
                let layout = Layout::new(sectors, block).unwrap();
                let table = layout.table_sectors.div_ceil(block) * block;
                assert!(layout.table == layout.blocks * block, "{layout:?}");
                assert!(layout.table_sectors * ENTRIES as u64 >= layout.blocks);
                assert!(layout.table + table <= layout.stop, "{layout:?}");
                assert!(layout.stop + block <= sectors && layout.stop + 2 * block > sectors);
                // Not more than one block, which a longer table would not leave, is lost.
                assert!(layout.stop - layout.table - table <= block, "{layout:?}");
            }
        }
        assert_eq!(Layout::new(2, 1), None);
        assert_eq!(Layout::new(100, 0), None);
    }

    #[test]
    fn an_image_as_it_must_be_is_right() {
        let layout = Layout::new(4096, 8).unwrap();
        let found = found(&disk(&layout), &layout);
        assert!(found.is_right(), "{found:?}");
        assert_eq!(
            (found.blocks, found.written),
            (layout.blocks, layout.blocks)
        );
    }

    #[test]
    fn each_kind_of_damage_is_counted_as_what_it_is() {
        let layout = Layout::new(4096, 8).unwrap();
        let good = disk(&layout);
        let one = |change: &dyn Fn(&mut Vec<[u64; WORDS]>)| {
            let mut disk = good.clone();
            change(&mut disk);
            let found = found(&disk, &layout);
            assert!(!found.is_right());
            [
                found.lost,
                found.torn,
                found.misplaced,
                found.newer,
                found.unreadable,
            ]
        };
        assert_eq!(one(&|disk| write(disk, &layout, 9, 3)), [1, 0, 0, 0, 0]);
        let forgotten = |disk: &mut Vec<[u64; WORDS]>| disk[72..80].fill([0; WORDS]);
        assert_eq!(one(&forgotten), [1, 0, 0, 0, 0]);
        let half = |disk: &mut Vec<[u64; WORDS]>| {
            pattern::fill(&mut disk[75], 75, 3, SEED);
        };
        assert_eq!(one(&half), [0, 1, 0, 0, 0]);
        assert_eq!(one(&|disk| disk[75][60] ^= 1), [0, 1, 0, 0, 0]);
        assert_eq!(one(&|disk| disk[75] = disk[83]), [0, 0, 1, 0, 0]);
        assert_eq!(one(&|disk| write(disk, &layout, 9, 5000)), [0, 0, 0, 1, 0]);
        let table = layout.table as usize;
        assert_eq!(one(&|disk| disk[table][20] ^= 1), [0, 0, 0, 0, 1]);
        let shifted = |disk: &mut Vec<[u64; WORDS]>| disk[table] = disk[table + 1];
        assert_eq!(one(&shifted), [0, 0, 0, 0, 1]);
    }

    #[test]
    fn a_page_is_read_as_it_was_written_and_of_its_own_seed_only() {
        let mut entries = [0; ENTRIES];
        entries
            .iter_mut()
            .zip(1..)
            .for_each(|(entry, n)| *entry = n * 7);
        let page = Page {
            first: 240,
            count: 77,
            entries,
        };
        assert_eq!(Page::read(&page.words(3), 3), Some(page));
        assert_eq!(Page::read(&page.words(3), 4), None);
        assert_eq!(Page::read(&[0; WORDS], 3), None);
    }
}
