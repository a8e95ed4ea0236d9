use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

use super::*;

const SIZE: usize = 1 << 20;

const QCOW: Format = Format::Image("qcow", "qcow");
const QCOW2: Format = Format::Image("qcow2", "qcow2");

/// A disk with these bytes at these places.
fn disk(parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    for (at, part) in parts {
        bytes[*at..][..part.len()].copy_from_slice(part);
    }
    bytes
}

fn probe(bytes: &[u8]) -> Option<Format> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let found = Format::probe(file.as_file()).unwrap();
    let mut direct = OpenOptions::new();
    direct.read(true).custom_flags(libc::O_DIRECT);
    match direct.open(file.path()) {
        Ok(direct) => assert_eq!(Format::probe(&direct).unwrap(), found),
        Err(error) => eprintln!("not tried with direct I/O: {error}"),
    }
    found
}

#[test]
fn every_magic_is_known_by_itself() {
    for (at, magic, format) in MAGICS {
        assert_eq!(probe(&disk(&[(*at, magic)])), Some(*format), "{magic:?}");
        let mut other = magic.to_vec();
        *other.last_mut().unwrap() ^= 0x80;
        // Another version of the same.
        let expected = (*format == QCOW).then_some(QCOW2);
        assert_eq!(probe(&disk(&[(*at, &other)])), expected, "{other:?}");
    }
}

#[test]
fn a_footer_is_found_at_the_very_end_alone() {
    for size in [512, 4096, 4608, 8192, SIZE, SIZE + 512] {
        let with = |at: usize| {
            let mut bytes = vec![0; size];
            bytes[at..][..8].copy_from_slice(b"conectix");
            probe(&bytes)
        };
        assert_eq!(with(size - 512), Some(VHD), "{size}");
        assert_eq!(with(size - 511), Some(VHD), "{size}");
        if size > 512 {
            assert_eq!(with(size - 513), None, "{size}");
            assert_eq!(with(size - 510), None, "{size}");
        }
    }
}

#[test]
fn a_text_that_describes_extents_is_no_disk() {
    for text in [
        "# Disk DescriptorFile\nversion=1\n",
        "# disk descriptorfile\r\nversion=3\r\n",
        "\n# written by a program\n\n# Disk DescriptorFile\n",
    ] {
        assert_eq!(probe(text.as_bytes()), Some(VMDK), "{text}");
    }
    for text in ["# a script\nversion=1\n", "\n\n", "# Disk", "version=1\n"] {
        assert_eq!(probe(text.as_bytes()), None, "{text}");
    }
}

/// What a raw disk may hold, as it lies there.
#[test]
fn what_disks_consist_of_is_raw() {
    let boot: &[u8] = &[0xeb, 0x63, 0x90];
    let end = SIZE - 512;
    for (what, parts) in [
        ("nothing", &[][..]),
        (
            "MBR",
            &[(0, boot), (446, &[0x80, 0, 1]), (510, b"\x55\xaa")],
        ),
        (
            "GPT",
            &[(510, b"\x55\xaa"), (512, b"EFI PART"), (end, b"EFI PART")],
        ),
        ("GPT of 4096", &[(510, b"\x55\xaa"), (4096, b"EFI PART")]),
        ("LUKS 1", &[(0, b"LUKS\xba\xbe\0\x01")]),
        (
            "LUKS 2",
            &[(0, b"LUKS\xba\xbe\0\x02"), (16384, b"SKUL\xba\xbe\0\x02")],
        ),
        ("ISO", &[(0x8000, b"\x01CD001\x01\0")]),
        (
            "hybrid ISO",
            &[(0, boot), (510, b"\x55\xaa"), (0x8000, b"\x01CD001")],
        ),
        ("ext4", &[(0x438, b"\x53\xef")]),
        ("XFS", &[(0, b"XFSB")]),
        ("FAT", &[(0, b"\xeb\x3c\x90mkfs.fat"), (510, b"\x55\xaa")]),
        ("LVM", &[(512, b"LABELONE"), (536, b"LVM2 001")]),
        ("squashfs", &[(0, b"hsqs")]),
        ("tar", &[(0, b"name"), (257, b"ustar")]),
    ] {
        assert_eq!(probe(&disk(parts)), None, "{what}");
    }
}

#[test]
fn short_images_are_looked_at_as_far_as_they_go() {
    for size in [0, 1, 8, 9, 511, 513, 1000] {
        assert_eq!(probe(&vec![0; size]), None, "{size}");
    }
    assert_eq!(probe(b"QFI\xfb\0\0\0\x03"), Some(QCOW2));
}

#[test]
fn the_remedy_names_the_program_and_the_image() {
    let said = VHD.remedy("a.vhd");
    assert!(said.contains("-f vpc -O raw a.vhd a.vhd.raw"), "{said}");
    let said = Format::Compressed("xz").remedy("a");
    assert!(said.contains("`xz -dc a > a.raw`"), "{said}");
    assert_eq!(Format::Image("QED", "qed").to_string(), "a QED image");
}
