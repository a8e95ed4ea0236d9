//! Images that cannot be disks, or not of this VM, or not now: refused with a
//! message that says what to do.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use outboard_e2e::image::Image;
use outboard_e2e::vm::Run;
use outboard_protocol::image_lock::{self, Access};

use crate::disks::storage_daemon;
use crate::wrong_use::refused;
use crate::{KVM, Need, Test, test};

const MIB: u64 = 1 << 20;
const MOUNTS: &[Need] = &[Need::Kvm, Need::Root, Need::Program("unshare")];
const QEMU: &[Need] = &[Need::Kvm, Need::Program("qemu-storage-daemon")];
const QEMU_IMG: &[Need] = &[Need::Kvm, Need::Program("qemu-img")];
const BLOCKS: &[Need] = &[
    Need::Kvm,
    Need::Root,
    Need::Program("unshare"),
    Need::Program("losetup"),
    Need::Program("mkfs.ext4"),
];
const LOOP: &[Need] = &[Need::Kvm, Need::Root, Need::Program("losetup")];

pub fn tests() -> Vec<Test> {
    vec![
        test("an image must have whole sectors", KVM, odd_images),
        test("an image in use is refused", KVM, image_in_use),
        test(
            "an image of another VM is refused",
            KVM,
            image_of_another_vm,
        ),
        test("an image of QEMU is refused", QEMU, image_of_qemu),
        test(
            "the same image twice is refused if either writes",
            KVM,
            image_twice,
        ),
        test(
            "the same block device twice is refused if either writes",
            LOOP,
            device_twice,
        ),
        test(
            "an image that may not be written says so",
            MOUNTS,
            read_only_image,
        ),
        test(
            "a block device that is set read-only says so",
            LOOP,
            read_only_device,
        ),
        test(
            "an image of another format is refused whoever is to serve it",
            QEMU_IMG,
            other_format,
        ),
        test(
            "a header of another format does not stop a vm that runs",
            KVM,
            header_of_a_guest,
        ),
        test(
            "direct on storage of larger blocks is refused unless they are asked for",
            BLOCKS,
            larger_blocks,
        ),
    ]
}

fn odd_images() -> Result<()> {
    let odd = Image::new(1000)?;
    let run = Run::guest("")?.with("--disk", odd.option());
    refused(run, 1, "1000 bytes, not a multiple of 512")?;
    let empty = Image::new(0)?;
    let run = Run::guest("")?.with("--disk", empty.option());
    refused(run, 1, "is empty; `truncate -s 1G")
}

fn image_in_use() -> Result<()> {
    let image = Image::new(MIB)?;
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(image.path())?;
    image_lock::lock(&file, Access::Write)?;
    let run = Run::guest("")?.with("--disk", image.option());
    refused(run, 1, "is in use by another process, which writes to it")?;
    image_lock::unlock(&file, Access::Write);
    // Read by one, it can be read by another, and not be written.
    let reader = fs::File::open(image.path())?;
    image_lock::lock(&reader, Access::ReadOnly)?;
    let run = Run::guest("")?.with("--disk", image.option());
    refused(run, 1, "is in use by another process, which reads it")?;
    let run =
        Run::guest("scenario=poweroff")?.with("--disk", format!("{},readonly", image.option()));
    run.to_the_end()?.with_code(0)?;
    Ok(())
}

/// Refused, with either access, and nothing is written.
fn held(image: &Image) -> Result<()> {
    let before = fs::read(image.path())?;
    for more in ["", ",readonly"] {
        let option = format!("{}{more}", image.option());
        let run = Run::guest("")?.with("--disk", option);
        refused(run, 1, "is in use by another process, which writes to it")?;
    }
    ensure!(fs::read(image.path())? == before, "the image has changed");
    Ok(())
}

fn image_of_another_vm() -> Result<()> {
    let image = Image::new(MIB)?;
    let mut vm = Run::guest("")?.with("--disk", image.option()).start()?;
    vm.console_line("OUTBOARD idle result=pass")?;
    held(&image)?;
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.with_code(0)?;
    vm.check_nothing_is_left()
}

fn image_of_qemu() -> Result<()> {
    let image = Image::new(MIB)?;
    let socket = image.directory().join("socket");
    let _daemon = storage_daemon(&image, &socket)?;
    // It has what it asks for before it listens.
    held(&image)
}

fn image_twice() -> Result<()> {
    let image = Image::new(MIB)?;
    let readonly = format!("{},readonly", image.option());
    let run = Run::guest("")?
        .with("--disk", image.option())
        .with("--disk", readonly.clone());
    refused(run, 1, "is given twice, to disk0 and disk1")?;
    let run = Run::guest("scenario=poweroff")?
        .with("--disk", readonly.clone())
        .with("--disk", readonly);
    run.to_the_end()?.with_code(0)?;
    // By other names.
    let path = image.path().display();
    let other = |name: &str| image.directory().join(name);
    fs::hard_link(image.path(), other("hard"))?;
    std::os::unix::fs::symlink(image.path(), other("soft"))?;
    let dots = other("../").join(image.directory().file_name().context("a name")?);
    let names = [
        other("hard"),
        other("soft"),
        dots.join("disk.img"),
        "/proc/self/fd/9".into(),
    ];
    let script = format!("exec 9<>{path} && exec \"$@\"");
    for name in names {
        for (first, second) in [("", ",readonly"), (",readonly", "")] {
            let run = Run::guest("")?
                .with("--disk", format!("{}{first}", image.option()))
                .with("--disk", format!("path={}{second}", name.display()));
            let run = run.under(&["sh", "-c", &script, "sh"]);
            refused(run, 1, "is given twice, to disk0 and disk1")?;
        }
    }
    Ok(())
}

/// A block device, also by a name of its own that is no link: it is told by its
/// number.
fn device_twice() -> Result<()> {
    let image = Image::new(MIB)?;
    let (path, other) = (image.path(), image.directory().join("other"));
    let script = format!(
        "device=$(losetup --find --show {path:?}) || exit 77
        trap 'losetup --detach $device' EXIT
        numbers=$(stat --format='%t %T' $device)
        mknod {other:?} b 0x${{numbers% *}} 0x${{numbers#* }} || exit 77
        ln -s $device {other:?}.link
        for word; do
            shift
            set -- \"$@\" \"$(echo \"$word\" | sed s,LOOP,$device,)\"
        done
        \"$@\"",
    );
    let other = other.display();
    for name in ["LOOP".into(), format!("{other}"), format!("{other}.link")] {
        for (first, second) in [("", ""), ("", ",readonly"), (",readonly", "")] {
            fs::remove_file(format!("{other}")).ok();
            fs::remove_file(format!("{other}.link")).ok();
            let run = Run::guest("")?
                .with("--disk", format!("path=LOOP{first}"))
                .with("--disk", format!("path={name}{second}"))
                .under(&["sh", "-c", &script, "sh"]);
            refused(run, 1, "is given twice, to disk0 and disk1")
                .with_context(|| format!("{name}{second} after {first}"))?;
        }
    }
    Ok(())
}

/// Root may write anything but a file system that is mounted read-only.
fn read_only_image() -> Result<()> {
    let image = Image::new(MIB)?;
    let folder = image.directory().display();
    let script = format!(
        "mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} && exec \"$@\""
    );
    let words = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let run = Run::guest("")?.with("--disk", image.option()).under(&words);
    refused(run, 1, "add `readonly`")?;
    let run =
        Run::guest("scenario=poweroff")?.with("--disk", format!("{},readonly", image.option()));
    run.under(&words).to_the_end()?.with_code(0)?;
    Ok(())
}

/// It opens for writing, and fails each write.
fn read_only_device() -> Result<()> {
    let image = Image::new(MIB)?;
    let script = format!(
        "device=$(losetup --find --show --read-only {:?}) || exit 77
        trap 'losetup --detach $device' EXIT
        for word; do
            shift
            set -- \"$@\" \"$(echo \"$word\" | sed s,LOOP,$device,)\"
        done
        \"$@\"",
        image.path()
    );
    let words = ["sh", "-c", &script, "sh"];
    let run = Run::guest("")?.with("--disk", "path=LOOP").under(&words);
    refused(run, 1, "is set read-only; add `readonly`")?;
    let run = Run::guest("scenario=identify")?.with("--disk", "path=LOOP,readonly");
    let ended = run.under(&words).to_the_end()?.with_code(0)?;
    ensure!(ended.console.contains(" ro=1 "), "{ended}");
    Ok(())
}

/// With data in it, so that the size is that of a disk; and left as it is.
fn other_format() -> Result<()> {
    for (format, options, called) in [
        ("qcow2", "compat=1.1", "is a qcow2 image"),
        ("vmdk", "subformat=monolithicFlat", "is a VMDK image"),
        ("vpc", "subformat=fixed", "is a VHD image"),
    ] {
        let image = Image::new(MIB)?;
        fs::write(image.path(), vec![7; MIB as usize])?;
        let made = image.directory().join("made");
        let status = Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", format, "-o", options])
            .arg(image.path())
            .arg(&made)
            .status()?;
        ensure!(status.success(), "qemu-img: {status}");
        let before = fs::read(&made)?;
        for more in ["", ",readonly", ",backend=/bin/true"] {
            let run = Run::guest("")?.with("--disk", format!("path={}{more}", made.display()));
            refused(run, 1, called)?;
        }
        ensure!(fs::read(&made)? == before, "the {format} image has changed");
    }
    Ok(())
}

/// As a guest may write it: the VM goes on, over a reset of the guest too, and
/// the next one needs the word of its user.
fn header_of_a_guest() -> Result<()> {
    let image = Image::new(MIB)?;
    let mut vm = Run::guest("scenario=identify exit=reset")?
        .with("--disk", image.option())
        .with("--on-reset", "restart")
        .start()?;
    vm.console_line("OUTBOARD identify result=pass")?;
    let file = fs::OpenOptions::new().write(true).open(image.path())?;
    file.write_all_at(b"QFI\xfb\0\0\0\x03", 0)?;
    // The first of them may have been on its way.
    for _ in 0..3 {
        vm.console_line("OUTBOARD identify result=pass")?;
    }
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.with_code(0)?;
    let run = Run::guest("")?.with("--disk", image.option());
    refused(run, 1, "add `format=raw`")?;
    let raw = format!("{},format=raw", image.option());
    let run = Run::guest("scenario=poweroff")?.with("--disk", raw);
    run.to_the_end()?.with_code(0)?;
    Ok(())
}

/// On ext4 over a loop device whose sectors have 4096 bytes.
fn larger_blocks() -> Result<()> {
    let storage = Image::new(64 * MIB)?;
    let folder = storage.directory().join("mounted");
    fs::create_dir(&folder)?;
    let script = format!(
        "device=$(losetup --find --show --sector-size 4096 {:?}) || exit 77
        mkfs.ext4 -q -F -b 4096 $device && mount $device {folder:?} && mounted=1
        # Gone with the last mount.
        losetup --detach $device
        [ $mounted ] || exit 77
        truncate -s 16M {folder:?}/disk && \"$@\" && code=0 || code=$?
        umount {folder:?}
        exit $code",
        storage.path()
    );
    let words = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let disk = format!("path={}/disk", folder.display());
    let run = Run::guest("")?.with("--disk", format!("{disk},direct"));
    refused(run.under(&words), 1, "add `block-size=4096`")?;
    let mut seen = Vec::new();
    for (more, block) in [
        ("", 512),
        (",block-size=4096", 4096),
        (",block-size=4096,direct", 4096),
    ] {
        let run = Run::guest("scenario=verify,identify requests=500 fresh=0")?
            .with("--disk", format!("{disk}{more}"));
        let ended = run.under(&words).to_the_end()?.with_code(0)?;
        ended.result("verify")?.passed()?;
        let mut lines = ended.console.lines();
        let line = lines.find(|line| line.contains("block_size="));
        let line = line.context("a line about the disk")?.to_owned();
        ensure!(line.contains(&format!(" block_size={block} ")), "{line}");
        seen.push(line);
    }
    ensure!(
        seen[1] == seen[2],
        "what is seen follows `direct`: {seen:?}"
    );
    Ok(())
}
