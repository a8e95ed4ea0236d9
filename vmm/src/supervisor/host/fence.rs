//! When the I/O of a back-end is over that has died.
//!
//! That its process is gone does not say so: direct I/O that it submitted by io_uring
//! goes on in the kernel, a late write would land over a successor's data, and a late
//! read over guest memory in new use. But whoever reads or writes a file holds its open
//! file description until it has done. So each instance of a back-end is lent one of its
//! own, with a lock on it that means nothing to anybody else (fcntl(2), `F_OFD_SETLK`):
//! the kernel drops that lock with the last request, and we see it go.
//!
//! ```text
//!  Image::lend ─▶ a description of its own, locked at a place of its own
//!                   │ lent, and our copy closed
//!                   ▼
//!  Fence::is_lifted: can the place be locked? not while anybody has the description
//! ```
//! The kernel looks after what a process leaves behind by timers: 5 to 20 ms pass where
//! a request was under way. So no fence stands where the kernel does all I/O in threads
//! of the process that asks for it, which are gone with it ([`Image::lend`]).
//!
//! The locks that QEMU's programs know lie elsewhere ([`outboard_protocol::image_lock`])
//! and stay on the supervisor's own description, so nobody else gets the image between
//! two instances.

use std::fs::{File, OpenOptions};
use std::hash::BuildHasher;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::rc::Rc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, FsType, TMPFS_MAGIC, XFS_SUPER_MAGIC,
    fstatfs,
};
use outboard_protocol::launch::SessionNumber;

use super::image::Claim;

/// First of the bytes that are locked: far behind the end of any image.
const FIRST: i64 = 1 << 62;
/// Bits of a session's number in the place of its lock; those above tell one VM from
/// another that reads the same image.
const SESSION_BITS: u32 = 24;

/// An image that is lent to one back-end after another.
#[derive(Debug)]
pub(crate) struct Image {
    file: File,
    /// Where the locks of this VM begin.
    first: i64,
    /// That it is this device's.
    _claim: Option<Rc<Claim>>,
}

impl Image {
    /// `file`, the supervisor's own, which stays open.
    pub(crate) fn new(file: File) -> Self {
        let random = std::hash::RandomState::new().hash_one(file.as_raw_fd());
        let vm = i64::from(random as u32) << SESSION_BITS;
        Self {
            file,
            first: FIRST.saturating_add(vm),
            _claim: None,
        }
    }

    /// The same, which a device has claimed.
    pub(crate) fn claimed((file, claim): (File, Rc<Claim>)) -> Self {
        Self {
            _claim: Some(claim),
            ..Self::new(file)
        }
    }

    /// The supervisor's own description.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Our own description, which a back-end that keeps version 1 of the launch contract
    /// confirms the lock on, and works with: nobody sees when its I/O is over. Any other
    /// closes it.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// What the back-end of this session is lent, and its fence. There is none if it
    /// `has_no_heirs`, no process that has what it was lent, and all of its I/O goes
    /// through the page cache.
    ///
    /// # Errors
    /// Those of open(2) and fcntl(2).
    pub(crate) fn lend(
        &self,
        session: SessionNumber,
        has_no_heirs: bool,
    ) -> io::Result<(OwnedFd, Option<Fence>)> {
        let flags = OFlag::from_bits_truncate(fcntl(&self.file, FcntlArg::F_GETFL)?);
        let access = flags & OFlag::O_ACCMODE;
        let file = OpenOptions::new()
            .read(access != OFlag::O_WRONLY)
            .write(access != OFlag::O_RDONLY)
            // A block device's claim (O_EXCL) is the supervisor's.
            .custom_flags((flags & OFlag::O_DIRECT).bits())
            .open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        if has_no_heirs && !flags.contains(OFlag::O_DIRECT) && is_cached(&self.file) {
            return Ok((file.into(), None));
        }
        let number = session & ((1 << SESSION_BITS) - 1);
        let place = self.first.saturating_add(number as i64);
        fcntl(&file, FcntlArg::F_OFD_SETLK(&range(place, libc::F_RDLCK)))?;
        let fence = Fence {
            file: self.file.try_clone()?,
            place,
        };
        Ok((file.into(), Some(fence)))
    }
}

/// Whether what is read and written without `O_DIRECT` is copied from and to the page
/// cache by a thread of the process that asks for it, be it one of its io_uring's, and
/// by nobody else; what is cleared (fallocate(2)) is waited for by that thread, also when
/// it is killed (Linux, block/blk-lib.c). Of a file system that is not listed this is not
/// known: FUSE, for one, has files whose every request goes to its server while nobody
/// waits.
fn is_cached(file: &File) -> bool {
    const KNOWN: [FsType; 5] = [
        TMPFS_MAGIC,
        // And ext2, ext3.
        EXT4_SUPER_MAGIC,
        XFS_SUPER_MAGIC,
        BTRFS_SUPER_MAGIC,
        F2FS_SUPER_MAGIC,
    ];
    // A block device lies on a tmpfs itself, as a rule.
    let known = fstatfs(file).is_ok_and(|system| KNOWN.contains(&system.filesystem_type()));
    known
        || file
            .metadata()
            .is_ok_and(|data| data.file_type().is_block_device())
}

/// Stands until the I/O of one instance is over.
#[derive(Debug)]
pub(crate) struct Fence {
    /// The supervisor's description.
    file: File,
    place: i64,
}

impl Fence {
    /// Whether nobody has the description any more that was lent: no process, and no
    /// request in the kernel.
    ///
    /// # Errors
    /// Those of fcntl(2): it cannot be known.
    pub(crate) fn is_lifted(&self) -> io::Result<bool> {
        let mut asked = range(self.place, libc::F_WRLCK);
        fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut asked))?;
        Ok(i32::from(asked.l_type) == libc::F_UNLCK)
    }
}

fn range(place: i64, kind: i32) -> libc::flock {
    libc::flock {
        // F_RDLCK, F_WRLCK and F_UNLCK are 0 to 2.
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: place,
        l_len: 1,
        // 0 is what the kernel demands of these locks.
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use outboard_protocol::image_lock::{self, Access};

    use super::*;

    fn opened(path: &std::path::Path, write: bool) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(write).open(path).unwrap()
    }

    /// Its program may have anything.
    fn fenced(image: &Image, session: SessionNumber) -> (OwnedFd, Fence) {
        let (lent, fence) = image.lend(session, false).unwrap();
        (lent, fence.unwrap())
    }

    /// Where it is not known to go with its process, and where it does not.
    #[test]
    fn only_io_that_can_outlive_its_process_is_fenced() {
        let image = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        let opened = |flags: OFlag| {
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(flags.bits());
            options.open(image.path()).map(Image::new)
        };
        let cached = opened(OFlag::empty()).unwrap();
        assert!(cached.lend(1, true).unwrap().1.is_none());
        assert!(cached.lend(1, false).unwrap().1.is_some());
        // From Linux 6.6 on a tmpfs takes the flag.
        if let Ok(direct) = opened(OFlag::O_DIRECT) {
            assert!(direct.lend(1, true).unwrap().1.is_some());
        }
        let other = Image::new(File::open("/proc/self/status").unwrap());
        assert!(other.lend(1, true).unwrap().1.is_some());
    }

    #[test]
    fn a_fence_stands_as_long_as_anybody_has_what_was_lent() {
        let image = tempfile::NamedTempFile::new().unwrap();
        for write in [true, false] {
            let image = Image::new(opened(image.path(), write));
            let (lent, fence) = fenced(&image, 1);
            // As a request in the kernel has it, or a child of a child.
            let copy = lent.as_fd().try_clone_to_owned().unwrap();
            assert!(!fence.is_lifted().unwrap());
            drop(lent);
            assert!(!fence.is_lifted().unwrap());
            // A successor's is another.
            let (_successor, other) = fenced(&image, 2);
            drop(copy);
            assert!(fence.is_lifted().unwrap());
            assert!(!other.is_lifted().unwrap());
        }
    }

    #[test]
    fn two_vms_that_read_one_image_do_not_wait_for_each_other() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let vm = || Image::new(opened(file.path(), false));
        let (one, other) = (vm(), vm());
        let (lent, fence) = fenced(&one, 7);
        let _others = fenced(&other, 7);
        drop(lent);
        assert!(fence.is_lifted().unwrap());
    }

    #[test]
    fn what_is_lent_is_the_same_file_in_the_same_way_and_the_lock_stays_with_us() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let ours = opened(named.path(), true);
        image_lock::lock(&ours, Access::Write).unwrap();
        // Whatever becomes of its name.
        let gone = named.path().to_owned();
        let image = Image::new(ours);
        named.close().unwrap();
        let (lent, _) = image.lend(1, true).unwrap();
        let lent = File::from(lent);
        lent.set_len(512).unwrap();
        assert_eq!(image.file.metadata().unwrap().len(), 512);
        assert!(!gone.exists());
        image_lock::confirm(image.share().unwrap(), Access::Write).unwrap();
        assert!(
            image_lock::confirm(&lent, Access::Write).is_err(),
            "it is not theirs"
        );
    }
}
