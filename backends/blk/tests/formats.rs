//! Images of other formats, made by the programs whose formats they are: each
//! is refused and left as it was, and what the refusal says makes a raw image
//! of it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use outboard_blk::image::{Image, Options};
use outboard_contract::program::command;
use support::*;

/// By qemu-img: the format, its options, and what the refusal calls it.
const CONTAINERS: [(&str, &str, &str); 14] = [
    ("qcow2", "compat=1.1", "a qcow2 image"),
    ("qcow2", "compat=0.10", "a qcow2 image"),
    ("qcow", "", "a qcow image"),
    ("qed", "", "a QED image"),
    ("vmdk", "subformat=monolithicSparse", "a VMDK image"),
    ("vmdk", "subformat=monolithicFlat", "a VMDK image"),
    ("vmdk", "subformat=twoGbMaxExtentSparse", "a VMDK image"),
    ("vmdk", "subformat=twoGbMaxExtentFlat", "a VMDK image"),
    ("vmdk", "subformat=streamOptimized", "a VMDK image"),
    ("vdi", "", "a VDI image"),
    ("vpc", "subformat=dynamic", "a VHD image"),
    ("vpc", "subformat=fixed", "a VHD image"),
    ("vhdx", "", "a VHDX image"),
    ("parallels", "", "a Parallels image"),
];

/// By a program that writes to standard output.
const COMPRESSORS: [(&str, &str); 5] = [
    ("gzip", "compressed by gzip"),
    ("bzip2", "compressed by bzip2"),
    ("xz", "compressed by xz"),
    ("zstd", "compressed by zstd"),
    ("lz4", "compressed by lz4"),
];

/// Whether it ran and succeeded; `None` where there is no such program.
fn run(command: &mut Command) -> Option<bool> {
    let ended = command.stdin(Stdio::null()).status();
    ended.ok().map(|status| status.success())
}

/// What the program says to this image when it refuses it.
fn refusal(image: &Path, more: &[&str]) -> String {
    serve(image, more).ends_with(1, "").unwrap()
}

/// Every file of a folder, with its content.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = fs::read_dir(folder).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| (path.clone(), fs::read(path).unwrap());
    paths.into_iter().map(read).collect()
}

/// The image is refused, nothing has changed, and the command in the refusal
/// makes the disk `original` of it.
fn refused(image: &Path, called: &str, original: &[u8]) {
    let folder = image.parent().unwrap();
    let before = contents(folder);
    for more in [&[][..], &["--read-only"]] {
        let said = refusal(image, more);
        assert!(said.contains(&format!("is {called},")), "{called}: {said}");
        assert!(said.contains("use --format=raw"), "{said}");
    }
    assert!(contents(folder) == before, "{called}: it has changed");
    let said = refusal(image, &[]);
    let command = said.split('`').nth(1).unwrap();
    assert_eq!(run(Command::new("sh").args(["-c", command])), Some(true));
    let made = PathBuf::from(format!("{}.raw", image.display()));
    Image::open(&made, Options::default()).unwrap();
    // A VHD is as large as its geometry makes it.
    let content = fs::read(&made).unwrap();
    assert!(content.starts_with(original), "{called}: another disk");
    let raw = Options {
        raw: true,
        ..Options::default()
    };
    if let Err(error) = Image::open(image, raw) {
        let error = format!("{error:#}");
        assert!(error.contains("not a multiple of"), "{error}");
    }
}

#[test]
fn an_image_of_each_format_that_qemu_makes_is_refused_and_left_alone() {
    let original = pattern(1 << 20, 3);
    for (format, options, called) in CONTAINERS {
        let folder = tempfile::tempdir().unwrap();
        let (raw, image) = (folder.path().join("disk"), folder.path().join("image"));
        fs::write(&raw, &original).unwrap();
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-f", "raw", "-O", format]);
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        match run(command.arg(&raw).arg(&image)) {
            Some(true) => refused(&image, called, &original),
            None => return eprintln!("SKIP: there is no qemu-img"),
            Some(false) => panic!("qemu-img cannot make {format} {options}"),
        }
    }
}

#[test]
fn a_compressed_image_is_refused_and_left_alone() {
    let original = pattern(1 << 20, 4);
    for (compressor, called) in COMPRESSORS {
        let folder = tempfile::tempdir().unwrap();
        let (raw, image) = (folder.path().join("disk"), folder.path().join("image"));
        fs::write(&raw, &original).unwrap();
        let mut command = Command::new(compressor);
        command.arg("-c").arg(&raw);
        command.stdout(fs::File::create(&image).unwrap());
        match run(&mut command) {
            Some(success) => assert!(success, "{compressor}"),
            None => {
                eprintln!("SKIP: there is no {compressor}");
                continue;
            }
        }
        refused(&image, called, &original);
    }
}

#[test]
fn only_raw_can_be_asked_for() {
    let arguments = ["--null=1M", "--format=qcow2"];
    let refused = Program::serve(&mut command(program(), &arguments)).unwrap();
    refused.ends_with(2, "qemu-img convert -O raw").unwrap();
}

/// An image whose guest has written such a header goes on as long as it is
/// served, and with the remedy.
#[test]
fn a_header_that_a_guest_wrote_is_served_by_whoever_says_that_it_is_raw() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    let mut header = vec![0; 512];
    header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    let program = serve(&path, &[]);
    let mut driver = Driver::of(&program, EVERYTHING);
    assert_eq!(driver.write(0, &header), (OK, 1));
    drop(driver);
    // The next front-end of the same program.
    let mut driver = Driver::of(&program, EVERYTHING);
    assert_eq!(driver.read(0, 512), (OK, 513, header.clone()));
    drop(driver);
    drop(program);
    assert!(refusal(&path, &[]).contains("is a qcow2 image"));
    let program = serve(&path, &["--format=raw"]);
    let mut driver = Driver::of(&program, EVERYTHING);
    assert_eq!(driver.read(0, 512), (OK, 513, header.clone()));
    drop(driver);
    drop(program);
    // Lent, it is not looked at.
    let program = inherit(&path, &[]);
    let mut driver = Driver::of(&program, EVERYTHING);
    assert_eq!(driver.read(0, 512), (OK, 513, header));
}
