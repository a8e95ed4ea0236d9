//! The lock on a disk image: one that QEMU's programs take too, so that either
//! keeps the other out.
//!
//! Every permission that a user of an image may need has a number, and every
//! number two bytes of the image file: whoever *has* permission `n` holds a
//! read lock on byte 100 + n, whoever does *not share* it with others holds
//! one on byte 200 + n. Read locks never clash, so taking them always
//! succeeds, and works on a descriptor that is open for reading only; a clash
//! is found by asking, afterwards, whether a write lock could be had on the
//! opposite bytes. Two who start at the same moment may both back off, never
//! both go on.
//!
//! | access     | has                    | does not share |
//! |------------|------------------------|----------------|
//! | read only  | consistent read        | write, resize  |
//! | write      | consistent read, write | write, resize  |
//!
//! These are open file description locks (fcntl(2), `F_OFD_SETLK`): they
//! belong to the open file and not to the process, survive being handed to
//! another process, and end when its last descriptor is closed. A lock that a
//! supervisor took is therefore held by each back-end that it lends the
//! descriptor to, and [`confirm`] lets the back-end make sure.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// First of the bytes that say which permissions are in use.
const HAS: u8 = 100;
/// First of the bytes that say which permissions are not shared.
const UNSHARED: u8 = 200;

/// Reads that see what was last written.
const CONSISTENT_READ: u8 = 0;
/// Writes.
const WRITE: u8 = 1;
/// Changes of the size.
const RESIZE: u8 = 3;
/// What neither access shares.
const NEVER_SHARED: [u8; 2] = [WRITE, RESIZE];

/// How often a clash is looked at again, and after what pause: a program that
/// is just being refused holds its bytes for a moment.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(50);

/// What an image is locked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading; others may read at the same time, none may write.
    ReadOnly,
    /// Reading and writing; nobody else may have the image.
    Write,
}

impl Access {
    fn has(self) -> &'static [u8] {
        match self {
            Self::ReadOnly => &[CONSISTENT_READ],
            Self::Write => &[CONSISTENT_READ, WRITE],
        }
    }

    /// The bytes that stand for this access, all to be held.
    fn bytes(self) -> impl Iterator<Item = u8> {
        let has = self.has().iter().map(|number| HAS.saturating_add(*number));
        has.chain(NEVER_SHARED.map(|number| UNSHARED.saturating_add(number)))
    }

    /// The bytes that nobody else may hold, each with what it means if
    /// somebody does.
    fn opposites(self) -> impl Iterator<Item = (u8, Clash)> {
        let has = self.has().iter().map(|number| {
            let clash = match *number {
                WRITE => Clash::ForbidsWriting,
                _ => Clash::ForbidsReading,
            };
            (UNSHARED.saturating_add(*number), clash)
        });
        let unshared = NEVER_SHARED.map(|number| (HAS.saturating_add(number), Clash::Writes));
        // Writers first: "writes to it" says more than "does not share it".
        unshared.into_iter().chain(has)
    }
}

/// In what way somebody else uses an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clash {
    /// It writes to the image, or may change its size.
    Writes,
    /// It reads the image and relies on nobody writing.
    ForbidsWriting,
    /// It has the image for itself, as one who repairs it would.
    ForbidsReading,
}

/// Why an image is not locked.
#[derive(Debug)]
pub enum Error {
    /// Somebody else has it in a way that excludes this access.
    InUse(Clash),
    /// The file system cannot lock, or the descriptor is not one of a file.
    Os(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse(clash) => {
                let how = match clash {
                    Clash::Writes => "writes to it",
                    Clash::ForbidsWriting => "reads it and must not see it change",
                    Clash::ForbidsReading => "has it for itself",
                };
                write!(
                    f,
                    "the image is in use by another process, which {how}; \
                     stop that process (`lsof` finds it), or use a copy"
                )
            }
            Self::Os(error) => write!(
                f,
                "the image cannot be locked: {error}; \
                 move it to a file system that supports locks"
            ),
        }
    }
}

/// Without a source: its words are in the text, before what to do about them.
impl std::error::Error for Error {}

/// Locks an image that this process has just opened. The lock ends with the
/// last descriptor of this open file.
///
/// Waits up to 0.1 s for one who is on his way out.
///
/// # Errors
/// [`Error::InUse`] when somebody else excludes this access, and then nothing
/// is held; [`Error::Os`] when locks do not work here.
pub fn lock(image: impl AsFd, access: Access) -> Result<(), Error> {
    attempt(ATTEMPTS, || {
        hold(&image, access)
            .and_then(|()| check(&image, access))
            .inspect_err(|_| unlock(&image, access))
    })
}

/// Makes sure of the lock on an image that was opened elsewhere and lent: holds
/// what its opener holds, or locks it if that was forgotten. Unlike [`lock`] it
/// gives nothing up when refused, since the lock is the opener's too.
///
/// # Errors
/// As [`lock`].
pub fn confirm(image: impl AsFd, access: Access) -> Result<(), Error> {
    hold(&image, access)?;
    attempt(ATTEMPTS, || check(&image, access))
}

/// Tries as long as the image is in use, `attempts` times.
fn attempt(attempts: u32, mut once: impl FnMut() -> Result<(), Error>) -> Result<(), Error> {
    for _ in 1..attempts {
        match once() {
            Err(Error::InUse(_)) => thread::sleep(PAUSE),
            other => return other,
        }
    }
    once()
}

/// Gives up what [`lock`] took, for everyone who shares this open file.
/// Closing alone does so with the last descriptor of it, and a child that any
/// thread starts has one until it has become its program.
pub fn unlock(image: impl AsFd, access: Access) {
    for byte in access.bytes() {
        // Nothing is left to do about a failure: closing releases as well.
        let _ = set(&image, byte, libc::F_UNLCK);
    }
}

fn hold(image: &impl AsFd, access: Access) -> Result<(), Error> {
    for byte in access.bytes() {
        set(image, byte, libc::F_RDLCK).map_err(os)?;
    }
    Ok(())
}

fn check(image: &impl AsFd, access: Access) -> Result<(), Error> {
    for (byte, clash) in access.opposites() {
        let mut asked = range(byte, libc::F_WRLCK);
        fcntl(image, FcntlArg::F_OFD_GETLK(&mut asked)).map_err(os)?;
        if i32::from(asked.l_type) != libc::F_UNLCK {
            return Err(Error::InUse(clash));
        }
    }
    Ok(())
}

fn set(image: &impl AsFd, byte: u8, kind: i32) -> nix::Result<()> {
    fcntl(image, FcntlArg::F_OFD_SETLK(&range(byte, kind))).map(drop)
}

fn os(errno: Errno) -> Error {
    match errno {
        // A write lock, from one who does not follow this protocol.
        Errno::EAGAIN | Errno::EACCES => Error::InUse(Clash::ForbidsReading),
        other => Error::Os(other.into()),
    }
}

fn range(byte: u8, kind: i32) -> libc::flock {
    libc::flock {
        // F_RDLCK, F_WRLCK and F_UNLCK are 0 to 2.
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte.into(),
        l_len: 1,
        // 0 is what the kernel demands of these locks.
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// An image of its own for each test, deleted in the end.
    struct Image(PathBuf);

    impl Image {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("outboard-lock-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            File::create(&path).unwrap().set_len(4096).unwrap();
            Self(path)
        }

        fn reader(&self) -> File {
            File::open(&self.0).unwrap()
        }

        fn writer(&self) -> File {
            let mut options = OpenOptions::new();
            options.read(true).write(true).open(&self.0).unwrap()
        }
    }

    impl Drop for Image {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn clash(result: Result<(), Error>) -> Clash {
        match result {
            Err(Error::InUse(clash)) => clash,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn readers_share_an_image() {
        let image = Image::new();
        let (a, b) = (image.reader(), image.reader());
        lock(&a, Access::ReadOnly).unwrap();
        lock(&b, Access::ReadOnly).unwrap();
    }

    #[test]
    fn a_writer_excludes_readers_and_writers_until_it_closes() {
        let image = Image::new();
        let writer = image.writer();
        lock(&writer, Access::Write).unwrap();
        assert_eq!(clash(lock(image.reader(), Access::ReadOnly)), Clash::Writes);
        assert_eq!(clash(lock(image.writer(), Access::Write)), Clash::Writes);
        drop(writer);
        lock(image.writer(), Access::Write).unwrap();
    }

    #[test]
    fn an_image_that_was_unlocked_is_free_whoever_has_it_open() {
        let image = Image::new();
        let writer = image.writer();
        let _shared = writer.try_clone().unwrap();
        lock(&writer, Access::Write).unwrap();
        unlock(&writer, Access::Write);
        lock(image.writer(), Access::Write).unwrap();
    }

    #[test]
    fn a_reader_excludes_writers() {
        let image = Image::new();
        let reader = image.reader();
        lock(&reader, Access::ReadOnly).unwrap();
        let result = lock(image.writer(), Access::Write);
        assert_eq!(clash(result), Clash::ForbidsWriting);
    }

    #[test]
    fn one_who_was_refused_holds_nothing() {
        let image = Image::new();
        let (reader, writer) = (image.reader(), image.writer());
        lock(&reader, Access::ReadOnly).unwrap();
        clash(lock(&writer, Access::Write));
        lock(image.reader(), Access::ReadOnly).unwrap();
    }

    #[test]
    fn one_who_was_refused_half_way_holds_nothing() {
        let image = Image::new();
        let (foreign, refused) = (image.writer(), image.writer());
        // The last byte that a writer takes.
        let last = range(UNSHARED + RESIZE, libc::F_WRLCK);
        fcntl(&foreign, FcntlArg::F_OFD_SETLK(&last)).unwrap();
        clash(lock(&refused, Access::Write));
        drop(foreign);
        lock(image.writer(), Access::Write).unwrap();
    }

    #[test]
    fn a_lent_descriptor_keeps_the_lock_and_confirms_it() {
        let image = Image::new();
        let opened = image.writer();
        lock(&opened, Access::Write).unwrap();
        let lent = opened.try_clone().unwrap();
        drop(opened);
        confirm(&lent, Access::Write).unwrap();
        assert_eq!(clash(lock(image.writer(), Access::Write)), Clash::Writes);
    }

    #[test]
    fn a_lent_descriptor_that_nobody_locked_is_locked_by_confirming() {
        let image = Image::new();
        let lent = image.writer();
        confirm(&lent, Access::Write).unwrap();
        assert_eq!(clash(lock(image.writer(), Access::Write)), Clash::Writes);
    }

    #[test]
    fn a_refused_confirmation_leaves_the_openers_lock() {
        let image = Image::new();
        let opened = image.reader();
        lock(&opened, Access::ReadOnly).unwrap();
        let other = image.reader();
        lock(&other, Access::ReadOnly).unwrap();
        // Lent to one who asks for more than was opened, while another reads.
        clash(confirm(&opened, Access::Write));
        drop(other);
        clash(lock(image.writer(), Access::Write));
    }

    #[test]
    fn a_foreign_write_lock_over_the_bytes_is_in_use_too() {
        let image = Image::new();
        let foreign = image.writer();
        let mut whole = range(0, libc::F_WRLCK);
        whole.l_len = 0;
        fcntl(&foreign, FcntlArg::F_OFD_SETLK(&whole)).unwrap();
        clash(lock(image.writer(), Access::Write));
    }
}
