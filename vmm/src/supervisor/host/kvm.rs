//! /dev/kvm, and who may use it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Result, anyhow};

/// Opens the device at `path`.
///
/// # Errors
/// A message that says what lets this user have a KVM.
pub(crate) fn open(path: &Path) -> Result<File> {
    let shown = path.display();
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => anyhow!(
            "there is no {shown}: {error}; load the module kvm_intel or kvm_amd, and turn \
             virtualization on in the firmware, or nested virtualization in a virtual machine"
        ),
        Some(libc::EACCES | libc::EPERM) => {
            anyhow!("no permission to use {shown}: {error}; {}", way_in(path))
        }
        _ => anyhow!("{shown} cannot be opened: {error}"),
    })
}

/// What lets a user in who may not use the device at `path`.
fn way_in(path: &Path) -> String {
    let shown = path.display();
    let has_group = |device: fs::Metadata| device.gid() != 0 && device.mode() & 0o060 == 0o060;
    if fs::metadata(path).is_ok_and(has_group) {
        format!(
            "join its group (`sudo usermod -aG $(stat -c %G {shown}) $USER`, then log in again)"
        )
    } else {
        format!("only root may: until the next boot, `sudo chown $USER {shown}` lets you too")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_missing_kvm_says_what_to_load() {
        let error = open(Path::new("/nowhere/kvm")).unwrap_err().to_string();
        assert!(error.contains("load the module"), "{error}");
    }

    #[test]
    fn who_may_not_use_kvm_hears_what_would_let_them() {
        let device = tempfile::NamedTempFile::new().unwrap();
        let mode = |bits| fs::set_permissions(device.path(), fs::Permissions::from_mode(bits));
        mode(0o600).unwrap();
        let said = way_in(device.path());
        assert!(said.contains("sudo chown $USER"), "{said}");
        mode(0o660).unwrap();
        // Where the tests run as root, its group is root's.
        let joins = nix::unistd::getgid().as_raw() != 0;
        assert_eq!(way_in(device.path()).contains("usermod"), joins);
    }
}
