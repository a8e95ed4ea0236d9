use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use super::*;

const PLAIN: Asked = Asked {
    block: None,
    direct: false,
};

fn file(size: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

/// The file for direct I/O, and what that needs; `None` where there is none.
fn direct(path: &Path) -> Option<(File, Alignment)> {
    let mut options = File::options();
    options.read(true).custom_flags(nix::libc::O_DIRECT);
    let file = options.open(path).ok()?;
    let asked = Asked {
        block: Some(MAX_BLOCK),
        direct: true,
    };
    let blocks = Blocks::of(&file, asked).unwrap();
    Some((file, blocks.alignment.unwrap()))
}

#[test]
fn a_size_is_a_multiple_of_the_block_size() {
    for (size, block, fits) in [
        (512, None, true),
        (512, Some(512), true),
        (1000, None, false),
        (4608, Some(512), true),
        (4608, Some(4096), false),
        (8192, Some(4096), true),
    ] {
        let asked = Asked { block, ..PLAIN };
        match Blocks::of(file(size).as_file(), asked) {
            Ok(blocks) => {
                assert!(fits, "{size} {block:?}");
                assert_eq!(blocks.size, size);
                assert_eq!(blocks.logical, block.unwrap_or(512));
                assert!(blocks.physical >= blocks.logical);
            }
            Err(Unfit::Odd { size: found, block }) => {
                assert!(!fits, "{size} {block:?}");
                assert_eq!(found, size);
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    let empty = Blocks::of(file(0).as_file(), PLAIN);
    assert!(matches!(empty, Err(Unfit::Empty)), "{empty:?}");
}

#[test]
fn physical_blocks_are_powers_of_two_from_the_block_size_to_a_page() {
    assert_eq!(physical_block(4096, 512), 4096);
    assert_eq!(physical_block(512, 4096), 4096);
    assert_eq!(physical_block(1 << 20, 512), 4096);
    assert_eq!(physical_block(1000, 512), 512);
    assert_eq!(physical_block(0, 512), 512);
}

#[test]
fn direct_io_knows_its_alignment_by_whatever_way() {
    let file = file(1 << 20);
    file.as_file().write_all_at(&[7; 8192], 0).unwrap();
    file.as_file().sync_all().unwrap();
    let Some((opened, alignment)) = direct(file.path()) else {
        return eprintln!("SKIP: no direct I/O for temporary files");
    };
    let mut space = Aligned::new(1);
    let block = space.bytes().get_mut(..alignment.offset as usize).unwrap();
    opened
        .read_exact_at(block, alignment.offset.into())
        .unwrap();
    // By trying, the answer is the same or more careful.
    let probed = probe_alignment(&opened).unwrap();
    assert!(probed >= alignment.offset, "{probed} {alignment:?}");
}

/// Runs in a thread with mounts of its own, on ext4 whose storage has blocks of
/// 4096 bytes; not at all where that cannot be made.
fn on_storage_of_4096(test: impl FnOnce(&Path) + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let folder = tempfile::tempdir().unwrap();
            let here = folder.path().display();
            let script = format!(
                "set -e; mount --make-rprivate /; truncate -s 16M {here}/storage; mkdir {here}/m
                 loop=$(losetup --find --show --sector-size 4096 {here}/storage)
                 trap 'losetup --detach $loop' EXIT
                 mkfs.ext4 -q -b 4096 $loop; mount $loop {here}/m"
            );
            let unshared = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS);
            let made = || Command::new("sh").args(["-c", &script]).status();
            if unshared.is_ok() && made().is_ok_and(|status| status.success()) {
                test(&folder.path().join("m"));
                let mut command = Command::new("umount");
                command.arg(folder.path().join("m")).status().unwrap();
            } else {
                eprintln!("SKIP: cannot make a file system on blocks of 4096 bytes");
            }
        });
    });
}

#[test]
fn direct_io_that_needs_larger_blocks_is_refused_and_changes_no_block_size() {
    on_storage_of_4096(|folder| {
        let path = folder.join("image");
        std::fs::write(&path, vec![7; 1 << 16]).unwrap();
        let (opened, alignment) = direct(&path).unwrap();
        assert_eq!(alignment.offset, 4096);
        assert_eq!(probe_alignment(&opened), Some(4096));
        let mut seen = Vec::new();
        for direct in [false, true] {
            let small = Asked {
                block: None,
                direct,
            };
            match Blocks::of(&opened, small) {
                Ok(blocks) => assert!(!direct && blocks.logical == 512),
                Err(Unfit::Coarse { needed, block }) => {
                    assert!(direct && (needed, block) == (4096, 512));
                }
                Err(other) => panic!("{other:?}"),
            }
            let block = Some(4096);
            let large = Blocks::of(&opened, Asked { block, direct }).unwrap();
            seen.push((large.size, large.logical, large.physical));
        }
        assert_eq!(seen[0], seen[1], "what is seen follows `direct`");
    });
}
