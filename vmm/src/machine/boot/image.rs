//! What kind of file a kernel image is.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};

/// The kinds that can be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Linux's own compressed image, "vmlinuz".
    BzImage,
    /// An ELF file: vmlinux, or anything with a PVH note.
    Elf,
}

/// Beginnings of files that are compressed, by which program, and what undoes that.
const COMPRESSED: [(&[u8], &str, &str); 6] = [
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"\xfd7zXZ\0", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
    (b"\x02\x21\x4c\x18", "lz4", "unlz4"),
    (b"\x04\x22\x4d\x18", "lz4", "unlz4"),
    (b"BZh", "bzip2", "bunzip2"),
];
/// Beginnings of other files that people take for kernels.
const MISTAKEN: [(&[u8], &str); 4] = [
    (b"MZ", "an EFI program without a Linux kernel's header"),
    (b"#!", "a script"),
    (b"070701", "a cpio archive, which an initrd is"),
    (b"QFI\xfb", "a qcow2 disk image"),
];

/// Size of a file that must be a regular one and not empty.
pub(crate) fn size(file: &File) -> Result<u64> {
    let metadata = file.metadata().context("reading its size")?;
    if metadata.is_dir() {
        bail!("it is a directory");
    }
    if !metadata.is_file() {
        bail!("it is not a regular file");
    }
    if metadata.len() == 0 {
        bail!("it is an empty file");
    }
    Ok(metadata.len())
}

/// Tells the kinds apart by content.
///
/// # Errors
/// It is none of them; the text says what it looks like.
pub(crate) fn identify(file: &File) -> Result<Kind> {
    size(file)?;
    let mut head = Vec::with_capacity(0x400);
    while head.len() < 0x400 {
        let mut piece = [0; 0x400];
        let count = file
            .read_at(&mut piece, head.len() as u64)
            .context("reading it")?;
        if count == 0 {
            break;
        }
        head.extend(piece.iter().take(count));
    }
    if head.starts_with(b"\x7fELF") {
        return Ok(Kind::Elf);
    }
    if head.get(0x202..0x206) == Some(b"HdrS") {
        return Ok(Kind::BzImage);
    }
    for (start, by, undo) in COMPRESSED {
        if head.starts_with(start) {
            bail!("it is not a kernel but a file compressed by {by}: decompress it ({undo}) first");
        }
    }
    for (start, what) in MISTAKEN {
        if head.starts_with(start) {
            bail!("it is not a kernel but {what}");
        }
    }
    bail!(
        "it is not a kernel: it has neither an ELF header nor a Linux boot header; give a bzImage \
         (vmlinuz) or an ELF vmlinux"
    );
}
