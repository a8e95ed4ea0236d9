//! As much of ELF64 as the guest's own file needs.

use std::ops::Range;

const ENTRY: usize = 24;
const PROGRAM_HEADERS: usize = 32;
const PROGRAM_HEADER_COUNT: usize = 56;
const PROGRAM_HEADER: usize = 56;
const PT_NULL: u32 = 0;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// The guest as it lies in memory.
#[derive(Debug, PartialEq, Eq)]
pub struct Image {
    /// Its first address.
    pub address: u64,
    /// What the file has for it.
    pub bytes: Vec<u8>,
    /// Its size in memory, from `address`.
    pub size: u64,
}

fn bytes<const N: usize>(file: &[u8], at: usize) -> Result<[u8; N], String> {
    let end = at.checked_add(N).ok_or("an offset overflows")?;
    let bytes = file.get(at..end).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| format!("the ELF file ends before {end:#x}"))
}

fn word(file: &[u8], at: usize) -> Result<u32, String> {
    bytes(file, at).map(u32::from_le_bytes)
}

fn long(file: &[u8], at: usize) -> Result<u64, String> {
    bytes(file, at).map(u64::from_le_bytes)
}

fn index(value: u64) -> Result<usize, String> {
    usize::try_from(value).map_err(|_| format!("{value:#x} is no offset in a file"))
}

/// Offsets of the program headers of this type.
fn headers(file: &[u8], kind: u32) -> Result<Vec<usize>, String> {
    if bytes(file, 0)? != *b"\x7fELF\x02\x01" {
        return Err("the guest is not a little-endian ELF64 file".into());
    }
    let first = index(long(file, PROGRAM_HEADERS)?)?;
    let count = usize::from(u16::from_le_bytes(bytes(file, PROGRAM_HEADER_COUNT)?));
    let mut found = Vec::new();
    for at in (0..count).map(|number| first.saturating_add(number * PROGRAM_HEADER)) {
        if word(file, at)? == kind {
            found.push(at);
        }
    }
    Ok(found)
}

fn contents(file: &[u8], header: usize) -> Result<Range<usize>, String> {
    let start = index(long(file, header + 8)?)?;
    let end = start
        .checked_add(index(long(file, header + 32)?)?)
        .ok_or("a segment overflows")?;
    if end > file.len() {
        return Err(format!("the ELF file ends before {end:#x}"));
    }
    Ok(start..end)
}

/// The one segment that is loaded.
pub fn image(file: &[u8]) -> Result<Image, String> {
    let loads = headers(file, PT_LOAD)?;
    let [header] = loads.as_slice() else {
        return Err(format!(
            "the guest has {} segments to load, not one",
            loads.len()
        ));
    };
    let bytes = file[contents(file, *header)?].to_vec();
    Ok(Image {
        address: long(file, header + 24)?,
        bytes,
        size: long(file, header + 40)?,
    })
}

/// The same file without its note, entered at `entry`.
pub fn without_note(file: &[u8], entry: u64) -> Result<Vec<u8>, String> {
    let mut changed = file.to_vec();
    for header in headers(file, PT_NOTE)? {
        // The note's bytes lie in the segment that is loaded and stay there as plain zeroes.
        changed[contents(file, header)?].fill(0);
        changed[header..header + 4].copy_from_slice(&PT_NULL.to_le_bytes());
    }
    changed[ENTRY..ENTRY + 8].copy_from_slice(&entry.to_le_bytes());
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Vec<u8> {
        let mut file = vec![0; 0x200];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[PROGRAM_HEADERS] = 64;
        file[PROGRAM_HEADER_COUNT] = 2;
        for (at, kind, offset, address, in_file, in_memory) in [
            (64usize, PT_LOAD, 0x100u64, 0x10_0000u64, 0x80u64, 0x1000u64),
            (120, PT_NOTE, 0x140, 0x10_0040, 8, 8),
        ] {
            file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            for (field, value) in [(8, offset), (24, address), (32, in_file), (40, in_memory)] {
                file[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        file[0x100..0x180].fill(7);
        file
    }

    #[test]
    fn the_image_is_the_one_segment() {
        let image = image(&file()).unwrap();
        assert_eq!((image.address, image.size), (0x10_0000, 0x1000));
        assert_eq!(image.bytes, [7; 0x80]);
    }

    #[test]
    fn a_file_without_its_note_has_another_entry_and_nothing_that_looks_like_the_note() {
        let changed = without_note(&file(), 0x10_0200).unwrap();
        assert_eq!(long(&changed, ENTRY), Ok(0x10_0200));
        assert_eq!(headers(&changed, PT_NOTE), Ok(vec![]));
        assert_eq!(changed[0x140..0x148], [0; 8]);
        assert_eq!(changed[0x148], 7);
    }

    #[test]
    fn files_that_are_cut_or_not_elf_are_refused() {
        assert!(image(&file()[..0x110]).unwrap_err().contains("ends before"));
        assert!(
            image(&[0; 100])
                .unwrap_err()
                .contains("not a little-endian ELF64")
        );
    }
}
