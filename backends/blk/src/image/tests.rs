use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

use super::*;

fn file(size: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

fn open(path: &Path, options: Options) -> Result<Image, String> {
    Image::open(path, options).map_err(|error| format!("{error:#}"))
}

const WRITABLE: Options = Options {
    read_only: false,
    direct: false,
    block_size: None,
    raw: false,
};
const READ_ONLY: Options = Options {
    read_only: true,
    direct: false,
    block_size: None,
    raw: false,
};
/// That the message has each of these words.
fn says(result: Result<Image, String>, words: &[&str]) {
    let message = result.unwrap_err();
    for word in words {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
}

#[test]
fn a_file_of_whole_sectors_is_an_image() {
    let file = file(512 * 3);
    let image = open(file.path(), WRITABLE).unwrap();
    assert_eq!(image.blocks.size, 1536);
    assert_eq!(image.limits().block_size, 512);
    assert!(image.blocks.alignment.is_none());
    assert!(image.blocks.physical.is_power_of_two());
    let length = file.as_file().metadata().unwrap().len();
    assert_eq!(length, 1536, "asking what it can changes nothing");
}

#[test]
fn what_is_not_an_image_is_named_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    says(open(folder.path(), WRITABLE), &["directory", "raw image"]);
    let missing = folder.path().join("missing.img");
    says(open(&missing, WRITABLE), &["missing.img", "truncate -s"]);
    let null = PathBuf::from("/dev/null");
    says(open(&null, WRITABLE), &["/dev/null", "character device"]);
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    says(open(&fifo, READ_ONLY), &["pipe"]);
    says(open(file(0).path(), WRITABLE), &["empty", "truncate"]);
    says(
        open(file(1000).path(), WRITABLE),
        &["1000 bytes", "multiple of 512", "truncate -s %512"],
    );
    let large = Options {
        block_size: Some(4096),
        ..WRITABLE
    };
    says(
        open(file(4608).path(), large),
        &["4608 bytes", "truncate -s %4096", "--block-size=512"],
    );
}

#[test]
fn an_image_of_another_format_is_refused_by_whoever_opens_it() {
    for size in [1000, 4096] {
        let file = file(size);
        file.as_file().write_all_at(b"QED\0", 0).unwrap();
        for options in [WRITABLE, READ_ONLY] {
            says(
                open(file.path(), options),
                &["a QED image", "qemu-img convert -f qed", "--format=raw"],
            );
        }
    }
    let file = file(4096);
    file.as_file().write_all_at(b"QED\0", 0).unwrap();
    let raw = Options {
        raw: true,
        ..WRITABLE
    };
    open(file.path(), raw).unwrap();
    // Its guest may have written it.
    let lent = OwnedFd::from(file.reopen().unwrap());
    Image::inherit(lent, WRITABLE).unwrap();
}

#[test]
fn an_image_without_rights_is_named_with_a_remedy() {
    let file = file(4096);
    let read_only = std::fs::Permissions::from_mode(0o444);
    file.as_file().set_permissions(read_only).unwrap();
    // Root may write anything: this thread alone goes on as nobody, who may not.
    let nobody = nix::unistd::Uid::from_raw(65534);
    let user = nix::unistd::setfsuid(nobody);
    says(
        open(file.path(), WRITABLE),
        &["right to write", "--read-only"],
    );
    open(file.path(), READ_ONLY).unwrap();
    nix::unistd::setfsuid(user);
}

#[test]
fn readers_share_and_a_writer_is_alone() {
    let file = file(4096);
    let reader = open(file.path(), READ_ONLY).unwrap();
    let second = open(file.path(), READ_ONLY).unwrap();
    says(open(file.path(), WRITABLE), &["in use by another process"]);
    drop((reader, second));
    let _writer = open(file.path(), WRITABLE).unwrap();
    says(open(file.path(), READ_ONLY), &["in use", "writes to it"]);
}

#[test]
fn an_inherited_image_keeps_the_lock_of_its_opener() {
    let file = file(4096);
    let opener = open(file.path(), WRITABLE).unwrap();
    let lent = OwnedFd::from(opener.file.try_clone().unwrap());
    let image = Image::inherit(lent, WRITABLE).unwrap();
    drop(opener);
    says(open(file.path(), READ_ONLY), &["in use"]);
    drop(image);
    open(file.path(), READ_ONLY).unwrap();
}

#[test]
fn an_inherited_image_that_nobody_locked_is_locked() {
    let file = file(4096);
    let fd = OwnedFd::from(file.reopen().unwrap());
    let _image = Image::inherit(fd, WRITABLE).unwrap();
    says(open(file.path(), WRITABLE), &["in use"]);
}

#[test]
fn an_inherited_image_must_be_open_for_what_is_asked() {
    let file = file(4096);
    let reading = || OwnedFd::from(File::open(file.path()).unwrap());
    let message = format!("{:#}", Image::inherit(reading(), WRITABLE).unwrap_err());
    assert!(message.contains("--read-only"), "{message}");
    assert!(Image::inherit(reading(), READ_ONLY).is_ok());
    let writing = OpenOptions::new().write(true).open(file.path()).unwrap();
    assert!(Image::inherit(writing.into(), READ_ONLY).is_err());
    let folder = File::open("/").unwrap();
    let message = format!(
        "{:#}",
        Image::inherit(folder.into(), READ_ONLY).unwrap_err()
    );
    assert!(message.contains("directory"), "{message}");
}

#[test]
fn an_inherited_file_that_does_not_block_is_made_to() {
    let file = file(4096);
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(file.path())
        .unwrap();
    let image = Image::inherit(opened.into(), WRITABLE).unwrap();
    let flags = fcntl(&image.file, FcntlArg::F_GETFL).unwrap();
    assert_eq!(flags & libc::O_NONBLOCK, 0);
}

#[test]
fn an_inherited_file_that_appends_is_made_to_write_in_place() {
    let file = file(4096);
    let mut options = OpenOptions::new();
    let opened = options.read(true).append(true).open(file.path()).unwrap();
    let image = Image::inherit(opened.into(), WRITABLE).unwrap();
    image.file.write_all_at(&[7; 512], 512).unwrap();
    assert_eq!(image.file.metadata().unwrap().len(), 4096);
}

#[test]
fn an_inherited_image_that_is_sealed_is_refused_for_writing() {
    let flags = nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING;
    let memfd = nix::sys::memfd::memfd_create("image", flags).unwrap();
    let memfd = File::from(memfd);
    memfd.set_len(4096).unwrap();
    let seal = nix::fcntl::SealFlag::F_SEAL_WRITE;
    fcntl(&memfd, FcntlArg::F_ADD_SEALS(seal)).unwrap();
    let lent = || OwnedFd::from(memfd.try_clone().unwrap());
    let message = format!("{:#}", Image::inherit(lent(), WRITABLE).unwrap_err());
    assert!(message.contains("is sealed against writing"), "{message}");
    assert!(message.contains("use --read-only"), "{message}");
    Image::inherit(lent(), READ_ONLY).unwrap();
}

#[test]
fn direct_io_is_heeded_where_it_is_found() {
    let file = file(1 << 20);
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(file.path());
    let Ok(opened) = opened else {
        return eprintln!("SKIP: no direct I/O for temporary files");
    };
    let large = Options {
        block_size: Some(4096),
        ..WRITABLE
    };
    let image = Image::inherit(opened.into(), large).unwrap();
    let alignment = image.blocks.alignment.unwrap();
    assert!(alignment.offset <= 4096);
    assert_eq!(image.limits().block_size, 4096);
}

#[test]
fn direct_io_that_needs_larger_blocks_says_which_to_ask_for() {
    let said = |needed, block| unfit("it", Unfit::Coarse { needed, block }).to_string();
    let message = said(4096, 512);
    assert!(message.contains("use --block-size=4096"), "{message}");
    assert!(message.contains("leave --direct away"), "{message}");
    let message = said(8192, 4096);
    assert!(!message.contains("--block-size"), "{message}");
    let message = unfit("it", Unfit::NoDirect).to_string();
    assert!(message.contains("leave --direct away"), "{message}");
}
