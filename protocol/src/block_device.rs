//! What the kernel says of a block device's queue (sysfs, `queue/…`; Linux's
//! Documentation/ABI/stable/sysfs-block).

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

/// An attribute of the queue behind an open block device, such as `zoned`.
/// `None` for anything else, for a kernel that does not have the attribute, and
/// where there is no /sys.
pub fn queue_attribute(device: &File, name: &str) -> Option<String> {
    let metadata = device.metadata().ok()?;
    if !metadata.file_type().is_block_device() {
        return None;
    }
    let number = metadata.rdev();
    let folder = format!("/sys/dev/block/{}:{}", major(number), minor(number));
    attribute(Path::new(&folder), name)
}

/// A partition has no queue of its own: its disk is the folder above, behind
/// the symbolic link that a number is.
fn attribute(folder: &Path, name: &str) -> Option<String> {
    let places = [PathBuf::from("queue"), PathBuf::from("../queue")];
    let mut texts = places
        .iter()
        .map(|queue| fs::read_to_string(folder.join(queue).join(name)));
    let text = texts.find_map(Result::ok)?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_asked_by_its_disk() {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("disk");
        fs::create_dir_all(disk.join("queue")).unwrap();
        fs::create_dir(disk.join("part")).unwrap();
        fs::write(disk.join("queue/zoned"), "host-managed\n").unwrap();
        for (name, target) in [("8:0", "disk"), ("8:1", "disk/part")] {
            let link = sys.path().join(name);
            std::os::unix::fs::symlink(sys.path().join(target), &link).unwrap();
            assert_eq!(attribute(&link, "zoned").as_deref(), Some("host-managed"));
            assert_eq!(attribute(&link, "speed"), None);
        }
    }

    #[test]
    fn a_file_has_no_queue() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(queue_attribute(file.as_file(), "zoned"), None);
    }
}
