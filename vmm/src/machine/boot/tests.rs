//! Kernels made by hand: each kind is loaded as its protocol says, and each
//! way in which a file can be wrong is said so.

use std::io::Write;

use proptest::prelude::*;
use vm_memory::ByteValued;

use super::super::memory::Backing;
use super::*;

const MIB: u64 = 1 << 20;

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn ram(mib: u64) -> Ram {
    Ram::new(mib * MIB, Backing::default()).unwrap()
}

/// An ELF file of one segment of 16 bytes at `address`, `in_memory` large, and
/// optionally a PVH note.
pub(in crate::machine) fn elf(address: u64, in_memory: u64, pvh: Option<u32>) -> Vec<u8> {
    let notes = u16::from(pvh.is_some());
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend(2u16.to_le_bytes());
    bytes.extend(62u16.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(address.to_le_bytes());
    bytes.extend(64u64.to_le_bytes());
    bytes.extend([0; 12]);
    for word in [64u16, 56, 1 + notes, 0, 0, 0] {
        bytes.extend(word.to_le_bytes());
    }
    let body = 64 + 56 * u64::from(1 + notes);
    let mut header = |kind: u32, offset: u64, size: u64, in_memory: u64| {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(7u32.to_le_bytes());
        for word in [offset, address, address, size, in_memory, 4] {
            bytes.extend(word.to_le_bytes());
        }
    };
    header(1, body, 16, in_memory);
    if pvh.is_some() {
        header(4, body + 16, 20, 20);
    }
    bytes.extend([0x90; 16]);
    if let Some(entry) = pvh {
        for word in [4, 4, 18] {
            bytes.extend(u32::to_le_bytes(word));
        }
        bytes.extend(b"Xen\0");
        bytes.extend(entry.to_le_bytes());
    }
    bytes
}

/// A bzImage whose loaded part is `body`.
fn bzimage(
    body: &[u8],
    change: impl FnOnce(&mut linux_loader::bootparam::setup_header),
) -> Vec<u8> {
    let mut header = linux_loader::bootparam::setup_header {
        setup_sects: 1,
        syssize: body.len().div_ceil(16) as u32,
        boot_flag: 0xaa55,
        header: 0x5372_6448,
        version: 0x20f,
        loadflags: 1,
        code32_start: 0x10_0000,
        initrd_addr_max: 0x7fff_ffff,
        kernel_alignment: 0x20_0000,
        relocatable_kernel: 1,
        xloadflags: 1,
        cmdline_size: 2047,
        pref_address: 0x100_0000,
        init_size: 0x1_0000,
        ..Default::default()
    };
    change(&mut header);
    let mut bytes = vec![0; 1024];
    let header = header.as_slice();
    bytes[0x1f1..0x1f1 + header.len()].copy_from_slice(header);
    bytes.extend(body);
    bytes
}

fn boot(ram: &Ram, kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str) -> Result<Entry> {
    let kernel = Kernel {
        kernel: file(kernel),
        initrd: initrd.map(file),
        name: "vmlinuz".into(),
        cmdline: cmdline.into(),
    };
    load(ram, kernel, b"tables")
}

fn refusal(kernel: &[u8]) -> String {
    format!("{:#}", boot(&ram(64), kernel, None, "").unwrap_err())
}

fn read<T: ByteValued>(ram: &Ram, address: u64) -> T {
    ram.guest().read_obj(GuestAddress(address)).unwrap()
}

#[test]
fn an_elf_file_with_the_note_is_entered_by_pvh() {
    let ram = ram(64);
    let kernel = elf(0x20_0000, 4096, Some(0x20_0008));
    let entry = boot(&ram, &kernel, Some(b"disk"), "a=b").unwrap();
    let expected = Entry {
        mode: super::super::kvm::registers::Mode::Protected,
        address: 0x20_0008,
        argument: map::START_INFO,
        gdt: map::GDT,
    };
    assert_eq!(entry, expected);
    assert_eq!(read::<u32>(&ram, map::START_INFO), 0x336e_c578);
    assert_eq!(read::<u32>(&ram, map::START_INFO + 4), 1);
    // One module, which ends at the end of memory.
    assert_eq!(read::<u32>(&ram, map::START_INFO + 12), 1);
    let module = read::<u64>(&ram, map::START_INFO + 16);
    let (start, size) = (read::<u64>(&ram, module), read::<u64>(&ram, module + 8));
    assert_eq!((start, size), (64 * MIB - 4096, 4));
    assert_eq!(&read::<[u8; 4]>(&ram, start), b"disk");
    let cmdline = read::<u64>(&ram, map::START_INFO + 24);
    assert_eq!(&read::<[u8; 4]>(&ram, cmdline), b"a=b\0");
    let root = read::<u64>(&ram, map::START_INFO + 32);
    assert_eq!(&read::<[u8; 6]>(&ram, root), b"tables");
    let list = read::<u64>(&ram, map::START_INFO + 40);
    let count = read::<u32>(&ram, map::START_INFO + 48) as usize;
    let expected = map::memory_map(&ram);
    assert_eq!(count, expected.len());
    for (at, span) in (list..).step_by(24).zip(expected) {
        assert_eq!(read::<u64>(&ram, at), span.start);
        assert_eq!(read::<u64>(&ram, at + 8), span.size);
        assert_eq!(read::<u64>(&ram, at + 16), span.kind as u64);
    }
}

#[test]
fn an_elf_file_without_the_note_is_entered_by_the_64_bit_protocol() {
    let ram = ram(64);
    let entry = boot(&ram, &elf(0x20_0000, 4096, None), Some(b"disk"), "a=b").unwrap();
    assert_eq!((entry.address, entry.argument), (0x20_0000, map::ZERO_PAGE));
    let page = read::<linux_loader::bootparam::boot_params>(&ram, map::ZERO_PAGE);
    let (cmdline, rsdp) = (page.hdr.cmd_line_ptr, page.acpi_rsdp_addr);
    let (image, size) = (page.hdr.ramdisk_image, page.hdr.ramdisk_size);
    assert_eq!(&read::<[u8; 4]>(&ram, cmdline.into()), b"a=b\0");
    assert_eq!(&read::<[u8; 6]>(&ram, rsdp), b"tables");
    assert_eq!(&read::<[u8; 4]>(&ram, image.into()), b"disk");
    assert_eq!(size, 4);
    assert_eq!(usize::from(page.e820_entries), map::memory_map(&ram).len());
}

#[test]
fn the_page_tables_map_every_address_below_4_gib_to_itself() {
    let ram = ram(64);
    boot(&ram, &elf(0x20_0000, 4096, None), None, "").unwrap();
    for address in [0u64, 0x20_0000, 0x3fff_ffff, 0x4000_0000, 0xffff_f000] {
        let mut table = map::PAGE_TABLES;
        for shift in [39, 30, 21] {
            let entry = read::<u64>(&ram, table + (address >> shift & 0x1ff) * 8);
            assert_eq!(entry & 3, 3);
            table = entry & !0xfff;
        }
        assert_eq!(table, address & !0x1f_ffff);
    }
}

#[test]
fn a_bzimage_lies_where_it_prefers_and_is_told_by_its_own_header() {
    let ram = ram(64);
    let kernel = bzimage(&[7; 0x300], |_| {});
    let entry = boot(&ram, &kernel, None, "a=b").unwrap();
    assert_eq!(
        (entry.address, entry.argument),
        (0x100_0200, map::ZERO_PAGE)
    );
    assert_eq!(read::<u8>(&ram, 0x100_02ff), 7);
    let page = read::<linux_loader::bootparam::boot_params>(&ram, map::ZERO_PAGE);
    let (version, loader) = (page.hdr.version, page.hdr.type_of_loader);
    assert_eq!((version, loader), (0x20f, 0xff));
}

#[test]
fn an_initial_ram_disk_lies_below_the_kernels_limit() {
    let ram = ram(64);
    let kernel = bzimage(&[7; 0x300], |header| header.initrd_addr_max = 0x1ff_ffff);
    boot(&ram, &kernel, Some(&[1; 5000]), "").unwrap();
    let page = read::<linux_loader::bootparam::boot_params>(&ram, map::ZERO_PAGE);
    let image = page.hdr.ramdisk_image;
    assert_eq!(image, 0x200_0000 - 0x2000);
}

#[test]
fn what_is_not_a_kernel_is_named() {
    for (bytes, name) in [
        (&b""[..], "empty"),
        (&b"hello"[..], "not a kernel"),
        (&[0; 4096][..], "not a kernel"),
        (&b"\x1f\x8b\x08"[..], "gunzip"),
        (&b"\x28\xb5\x2f\xfd"[..], "unzstd"),
        (&b"\x02\x21\x4c\x18"[..], "unlz4"),
        (&b"070701"[..], "initrd"),
        (&b"#!/bin/sh\n"[..], "script"),
        (&b"QFI\xfb"[..], "qcow2"),
    ] {
        let refusal = refusal(bytes);
        assert!(refusal.contains(name), "{name}: {refusal}");
        assert!(refusal.contains("kernel"), "{refusal}");
    }
    let folder = Kernel {
        kernel: File::open("/").unwrap(),
        initrd: None,
        name: "vmlinuz".into(),
        cmdline: String::new(),
    };
    let refusal = load(&ram(64), folder, b"").unwrap_err();
    assert!(format!("{refusal:#}").contains("directory"));
}

#[test]
fn a_kernel_cut_short_anywhere_is_said_to_be_truncated_or_no_kernel() {
    for whole in [
        elf(0x20_0000, 4096, Some(0x20_0000)),
        bzimage(&[7; 100], |_| {}),
    ] {
        assert!(boot(&ram(64), &whole, None, "").is_ok());
        for cut in (0..whole.len()).step_by(7) {
            // The last unit of a bzImage may be begun only; so may the padding
            // behind a note.
            if let Err(error) = boot(&ram(64), &whole[..cut], None, "") {
                assert!(format!("{error:#}").contains("kernel"), "{cut}: {error:#}");
            } else {
                assert!(whole.len() - cut < 16, "{cut} of {}", whole.len());
            }
        }
    }
}

#[test]
fn a_kernel_that_does_not_fit_is_told_how_much_it_needs() {
    let large = refusal(&elf(0x20_0000, 100 * MIB, None));
    assert!(
        large.contains("102 MiB") && large.contains("--memory"),
        "{large}"
    );
    let large = refusal(&bzimage(&[7; 0x300], |header| {
        header.init_size = 0x1000_0000
    }));
    assert!(large.contains("272 MiB"), "{large}");
    assert!(refusal(&elf(0x1000, 4096, None)).contains("below 1 MiB"));
    assert!(refusal(&elf(u64::MAX - 10, 4096, None)).contains("beyond all memory"));
}

#[test]
fn kernels_of_other_machines_are_refused() {
    let mut arm = elf(0x20_0000, 4096, None);
    arm[18] = 183;
    assert!(refusal(&arm).contains("another processor"));
    let mut small = elf(0x20_0000, 4096, None);
    small[4] = 1;
    assert!(refusal(&small).contains("64-bit"));
    let old = bzimage(&[7; 0x300], |header| header.xloadflags = 0);
    assert!(refusal(&old).contains("64-bit entry"));
    assert!(refusal(&elf(0x20_0000, 4096, Some(0x1000))).contains("outside itself"));
}

#[test]
fn an_initial_ram_disk_must_fit_and_must_be_something() {
    let kernel = elf(0x20_0000, 4096, None);
    let error = boot(&ram(4), &kernel, Some(&[1; 3 << 20]), "").unwrap_err();
    let text = format!("{error:#}");
    assert!(
        text.contains("3 MiB") && text.contains("--memory"),
        "{text}"
    );
    let error = boot(&ram(4), &kernel, Some(&[]), "").unwrap_err();
    assert!(format!("{error:#}").contains("initrd"), "{error:#}");
}

#[test]
fn a_command_line_must_fit_the_kernel_that_reads_it() {
    let kernel = bzimage(&[7; 0x300], |_| {});
    assert!(boot(&ram(64), &kernel, None, &"x".repeat(2047)).is_ok());
    assert!(boot(&ram(64), &kernel, None, &"x".repeat(2048)).is_err());
    assert!(boot(&ram(64), &kernel, None, "a\0b").is_err());
    let kernel = elf(0x20_0000, 4096, None);
    assert!(boot(&ram(64), &kernel, None, &"x".repeat(0xffff)).is_ok());
    assert!(boot(&ram(64), &kernel, None, &"x".repeat(0x1_0000)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever a header says, the answer is a kernel or a message.
    #[test]
    fn any_header_is_loaded_or_refused(
        pvh in any::<bool>(),
        changes in prop::collection::vec((0usize..200, any::<u8>()), 1..8),
    ) {
        let mut kernel = elf(0x20_0000, 4096, pvh.then_some(0x20_0000));
        for (at, value) in changes {
            if let Some(byte) = kernel.get_mut(at) {
                *byte = value;
            }
        }
        let _ = boot(&ram(8), &kernel, None, "");
    }

    #[test]
    fn any_boot_header_is_loaded_or_refused(
        changes in prop::collection::vec((0x1f1usize..0x26c, any::<u8>()), 1..8),
    ) {
        let mut kernel = bzimage(&[7; 0x300], |_| {});
        for (at, value) in changes {
            kernel[at] = value;
        }
        let _ = boot(&ram(32), &kernel, Some(b"disk"), "x");
    }
}
