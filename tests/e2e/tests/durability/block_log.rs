//! A log of everything that reached a disk, in order, as QEMU's `blklogwrites`
//! writes it (the format of Linux' dm-log-writes): a superblock, then an entry
//! for each write, discard or flush, followed by its data, each from a sector
//! on. All numbers are little-endian.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const SECTOR: u64 = 512;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// An open log.
#[derive(Debug)]
pub struct Log {
    file: File,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The first sector, and how many.
    sector: u64,
    sectors: u64,
    flags: u64,
    /// Where in the log its data is, in bytes.
    data: u64,
}

impl Entry {
    fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    fn covers(&self, sector: u64) -> bool {
        (self.sector..self.sector + self.sectors).contains(&sector)
    }
}

impl Log {
    /// Opens a log whose sectors have 512 bytes.
    ///
    /// # Errors
    /// It is none, or is cut off.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        let [magic, version, count, size] = words(&file, 0)?;
        ensure!(
            magic == MAGIC && version == 1 && size & 0xffff_ffff == SECTOR,
            "{} is no log of a disk",
            path.display()
        );
        let mut entries = Vec::new();
        let mut at = SECTOR;
        for _ in 0..count {
            let [sector, sectors, flags, _] = words(&file, at)?;
            let data = at + SECTOR;
            let entry = Entry {
                sector,
                sectors,
                flags,
                data,
            };
            at = data
                + if entry.has(DISCARD) {
                    0
                } else {
                    sectors * SECTOR
                };
            entries.push(entry);
        }
        Ok(Self { file, entries })
    }

    /// Makes the disk, which was empty in the beginning, as it is after its
    /// power was cut when sector `mark` had been written: it has what had been
    /// written when the last flush before that was done, and what was forced
    /// unto it since.
    ///
    /// # Errors
    /// The mark is not in the log, or no flush is before it.
    pub fn replay_until_cut(&self, mark: u64, disk: &Path) -> Result<()> {
        let cut = self.entries.iter().position(|entry| entry.covers(mark));
        let cut = cut.with_context(|| format!("sector {mark} was never written"))?;
        let before = self.entries.get(..cut).unwrap_or_default();
        let flushed = before.iter().rposition(|entry| entry.has(FLUSH));
        let flushed = flushed.context("nothing was flushed")?;
        let disk = File::create(disk)?;
        disk.set_len(mark * SECTOR)?;
        for (at, entry) in before.iter().enumerate() {
            if at < flushed || entry.has(FUA) {
                self.apply(entry, &disk)?;
            }
        }
        Ok(())
    }

    fn apply(&self, entry: &Entry, disk: &File) -> Result<()> {
        let mut data = vec![0; usize::try_from(entry.sectors * SECTOR)?];
        if !entry.has(DISCARD) {
            self.file.read_exact_at(&mut data, entry.data)?;
        }
        Ok(disk.write_all_at(&data, entry.sector * SECTOR)?)
    }
}

fn words(file: &File, at: u64) -> Result<[u64; 4]> {
    let mut words = [0; 4];
    let mut bytes = [0; 8];
    for (place, word) in (at..).step_by(8).zip(&mut words) {
        file.read_exact_at(&mut bytes, place)
            .context("the log ends early")?;
        *word = u64::from_le_bytes(bytes);
    }
    Ok(words)
}
