//! Images that are in another format than raw, told by their first and last
//! bytes.
//!
//! A disk is served raw, whatever is in it: what a guest writes decides
//! nothing. But a file that somebody names as an image may be a container of
//! another format, whose headers a guest would overwrite. So whoever opens an
//! image *by its path* looks once, at that moment, and refuses; it is never
//! opened as that format, and who is lent an open image never looks. A guest can
//! write such a header too, and its user then says that the image is raw.
//!
//! Never refused: partition tables, file systems, LUKS, ISO images and the like,
//! which are what a raw disk consists of.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use crate::aligned::{Aligned, BLOCK};
use crate::image_blocks;

/// Bytes of the footer of a VHD.
const FOOTER: usize = 512;

/// A format that an image is not to be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// That of a disk: what messages call it, and what qemu-img does.
    Image(&'static str, &'static str),
    /// Compressed by this program.
    Compressed(&'static str),
}

/// VMware's: a sparse extent, or the text that describes extents.
const VMDK: Format = Format::Image("VMDK", "vmdk");
/// Of two versions.
const PARALLELS: Format = Format::Image("Parallels", "parallels");
/// Virtual PC's and Hyper-V's, dynamic or fixed.
const VHD: Format = Format::Image("VHD", "vpc");

/// Where a format has which bytes.
const MAGICS: &[(usize, &[u8], Format)] = &[
    (0, b"QFI\xfb\0\0\0\x01", Format::Image("qcow", "qcow")),
    (0, b"QFI\xfb\0\0\0", Format::Image("qcow2", "qcow2")),
    (0, b"QED\0", Format::Image("QED", "qed")),
    // Sparse extents of hosted products, of old ESX, and of newer ones.
    (0, b"KDMV", VMDK),
    (0, b"COWD", VMDK),
    (0, b"\xbe\xba\xfe\xca\0\0\0\0", VMDK),
    // After a text that every program words in its own way.
    (64, b"\x7f\x10\xda\xbe", Format::Image("VDI", "vdi")),
    (0, b"conectix", VHD),
    (0, b"vhdxfile", Format::Image("VHDX", "vhdx")),
    (0, b"WithoutFreeSpace", PARALLELS),
    (0, b"WithouFreSpacExt", PARALLELS),
    (0, b"\x1f\x8b\x08", Format::Compressed("gzip")),
    (4, b"1AY&SY", Format::Compressed("bzip2")),
    (0, b"\xfd7zXZ\0", Format::Compressed("xz")),
    (0, b"\x28\xb5\x2f\xfd", Format::Compressed("zstd")),
    (0, b"\x04\x22\x4d\x18", Format::Compressed("lz4")),
];

/// The first line of a text that describes a VMDK's extents.
const DESCRIPTOR: &[u8] = b"# Disk DescriptorFile";

impl Format {
    /// Looks at an image that has just been opened by its path.
    ///
    /// # Errors
    /// It cannot be read, or its size not be found out.
    pub fn probe(image: &File) -> io::Result<Option<Self>> {
        const WHOLE: u64 = BLOCK as u64;
        let size = image_blocks::size(image)?;
        // The image may be open for direct I/O.
        let mut space = Aligned::new(2);
        let bytes = space.bytes();
        let head = read(image, bytes, 0)?;
        if let Some(format) = Self::of_head(head) {
            return Ok(Some(format));
        }
        let last = size.saturating_sub(FOOTER as u64);
        let begin = last.saturating_sub(last % WHOLE);
        let tail = read(image, bytes, begin)?;
        let footer = tail.get(last.saturating_sub(begin) as usize..);
        Ok(footer.and_then(Self::of_footer))
    }

    /// By the first bytes of an image.
    fn of_head(head: &[u8]) -> Option<Self> {
        let has = |at: usize, magic: &[u8]| {
            let there = head.get(at..);
            there.is_some_and(|there| there.starts_with(magic))
        };
        let mut magics = MAGICS.iter();
        let found = magics.find(|(at, magic, _)| has(*at, magic));
        let found = found.map(|(_, _, format)| *format);
        found.or_else(|| describes_extents(head).then_some(VMDK))
    }

    /// By the last 512 bytes: a fixed VHD is its disk, and a footer after it.
    /// That of the oldest is a byte shorter.
    fn of_footer(footer: &[u8]) -> Option<Self> {
        let has = |at: usize| {
            let there = footer.get(at..);
            there.is_some_and(|there| there.starts_with(b"conectix"))
        };
        (has(0) || has(1)).then_some(VHD)
    }

    /// What makes a raw image of the one at `path`, as the second half of a
    /// sentence.
    pub fn remedy(self, path: impl fmt::Display) -> String {
        match self {
            Self::Image(_, name) => {
                format!("convert it with `qemu-img convert -f {name} -O raw {path} {path}.raw`")
            }
            Self::Compressed(by) => format!("decompress it with `{by} -dc {path} > {path}.raw`"),
        }
    }

    /// Whether there are programs that serve it as it is.
    pub fn can_be_served(self) -> bool {
        matches!(self, Self::Image(..))
    }
}

/// As the object of a sentence: `a qcow2 image`.
impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(name, _) => write!(f, "a {name} image"),
            Self::Compressed(by) => write!(f, "compressed by {by}"),
        }
    }
}

/// Among the comments that a text begins with.
fn describes_extents(head: &[u8]) -> bool {
    let lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    lines
        .take_while(|line| line.is_empty() || line.starts_with(b"#"))
        .any(|line| line.eq_ignore_ascii_case(DESCRIPTOR))
}

/// What there is from `offset` on, up to the length of `bytes`.
fn read<'a>(image: &File, bytes: &'a mut [u8], offset: u64) -> io::Result<&'a [u8]> {
    let count = loop {
        match image.read_at(bytes, offset) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    Ok(bytes.get(..count).unwrap_or_default())
}

#[cfg(test)]
mod tests;
