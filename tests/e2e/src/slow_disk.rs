//! A disk that keeps one request for as long as a test wants, while it serves all
//! others: what a real one may do at any time, here at will.
//!
//! It is a file system of one file (FUSE, fuse(4)), mounted over the image itself and
//! served by a thread of the test. The kernel has the request meanwhile, on behalf of
//! whoever began it, dead or alive: by direct I/O, an io_uring waits for it and a
//! process does not.
//!
//! ```text
//!  serves all ── keep ──▶ the next such request is kept ── let_go ──▶ serves all
//!                         those after it are served, and seen
//! ```

mod wire;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::eventually;
use crate::image::Image;
use wire::{Call, Message, Piece};

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A read: it is served from what the disk holds when it is let go.
    Read,
    /// A write, with the data that it has when it is kept.
    Write,
}

#[derive(Debug, Default)]
struct State {
    /// What is to be kept.
    keep: Option<Kind>,
    kept: Option<Kept>,
    /// Each place that was written since it is kept.
    since: Vec<Piece>,
}

#[derive(Debug)]
struct Kept {
    request: u64,
    piece: Piece,
    /// What is to be written; none: it is to be read.
    data: Option<Vec<u8>>,
}

/// Whoever answers the kernel.
#[derive(Debug)]
struct Server {
    kernel: File,
    /// The image below.
    image: File,
    size: u64,
    state: Mutex<State>,
}

/// See the module. Dropped, it is gone, and the image is an ordinary one again.
#[derive(Debug)]
pub struct SlowDisk {
    server: Arc<Server>,
    thread: Option<JoinHandle<io::Result<()>>>,
    mounted: PathBuf,
}

impl SlowDisk {
    /// Mounts one over this image, whose path leads to it from now on.
    ///
    /// # Errors
    /// Those of the system: it takes /dev/fuse, and root.
    pub fn over(image: &Image) -> Result<Self> {
        let below = OpenOptions::new()
            .read(true)
            .write(true)
            .open(image.path())?;
        let kernel = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .context("/dev/fuse")?;
        let options = format!(
            "fd={},rootmode=100000,user_id=0,group_id=0,allow_other",
            kernel.as_raw_fd()
        );
        let server = Arc::new(Server {
            kernel,
            size: below.metadata()?.len(),
            image: below,
            state: Mutex::default(),
        });
        let mounted = image.path().to_owned();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let name = Some("slow-disk");
        mount(name, &mounted, Some("fuse"), flags, Some(options.as_str()))
            .context("mounting a disk of FUSE")?;
        let serving = server.clone();
        let thread = Some(thread::spawn(move || serving.serve()));
        let disk = Self {
            server,
            thread,
            mounted,
        };
        // A write behind the end that the kernel knows of is waited for; now it knows.
        std::fs::metadata(&disk.mounted)?;
        Ok(disk)
    }

    /// Keeps the next request of this kind.
    pub fn keep(&self, kind: Kind) {
        let mut state = self.server.state();
        state.keep = Some(kind);
        state.since.clear();
    }

    /// Waits until it has one.
    ///
    /// # Errors
    /// There is none.
    pub fn until_kept(&self) -> Result<()> {
        eventually("a request is kept", || {
            Ok(self.server.state().kept.as_ref().map(drop))
        })
    }

    /// How many writes to the place of what is kept the disk has served since.
    pub fn writes_since(&self) -> usize {
        let state = self.server.state();
        let Some(kept) = &state.kept else {
            return 0;
        };
        let same = state.since.iter().filter(|piece| piece.meets(&kept.piece));
        same.count()
    }

    /// Serves what is kept, now.
    ///
    /// # Errors
    /// Nothing is, or the kernel does not want it any more.
    pub fn let_go(&self) -> Result<()> {
        let kept = self.server.state().kept.take();
        let kept = kept.context("nothing is kept")?;
        let data = kept.data.as_deref();
        Ok(self.server.access(kept.request, kept.piece, data)?)
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // It would be waited for.
        let _ = self.let_go();
        let _ = umount2(&self.mounted, MntFlags::MNT_DETACH);
        // The thread ends when the last one who had the file open is gone.
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            let _ = self.thread.take().map(JoinHandle::join);
        }
    }
}

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until it is unmounted.
    fn serve(&self) -> io::Result<()> {
        let mut buffer = vec![0; wire::LONGEST];
        loop {
            let length = match (&self.kernel).read(&mut buffer) {
                Ok(length) => length,
                Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                    Errno::ENODEV => return Ok(()),
                    // The request is there no more, or a signal came.
                    Errno::ENOENT | Errno::EINTR | Errno::EAGAIN => continue,
                    _ => return Err(error),
                },
            };
            let message = Message::read(buffer.get(..length).unwrap_or_default())?;
            self.answer(message)?;
        }
    }

    fn answer(&self, message: Message<'_>) -> io::Result<()> {
        let request = message.request;
        match message.call {
            Call::Init => self.reply(request, &wire::init()),
            Call::Attributes => self.reply(request, &wire::attributes(self.size)),
            Call::Open => self.reply(request, &wire::open()),
            Call::Sync => {
                self.image.sync_data()?;
                self.reply(request, &[])
            }
            Call::Nothing => self.reply(request, &[]),
            Call::NoReply => Ok(()),
            Call::Unknown => self.send(request, Errno::ENOSYS as i32, &[]),
            Call::Read(piece) => self.access_or_keep(request, Kind::Read, piece, None),
            Call::Write(piece, data) => {
                self.access_or_keep(request, Kind::Write, piece, Some(data))
            }
        }
    }

    fn access_or_keep(
        &self,
        request: u64,
        kind: Kind,
        piece: Piece,
        data: Option<&[u8]>,
    ) -> io::Result<()> {
        let mut state = self.state();
        if state.keep == Some(kind) {
            state.keep = None;
            state.kept = Some(Kept {
                request,
                piece,
                data: data.map(<[u8]>::to_vec),
            });
            return Ok(());
        }
        if data.is_some() {
            state.since.push(piece);
        }
        drop(state);
        self.access(request, piece, data)
    }

    fn access(&self, request: u64, piece: Piece, data: Option<&[u8]>) -> io::Result<()> {
        match data {
            Some(data) => {
                self.image.write_all_at(data, piece.offset)?;
                self.reply(request, &wire::written(piece.length))
            }
            None => {
                let mut data = vec![0; piece.length as usize];
                let end = self.size.saturating_sub(piece.offset);
                data.truncate(usize::try_from(end).unwrap_or(usize::MAX));
                self.image.read_exact_at(&mut data, piece.offset)?;
                self.reply(request, &data)
            }
        }
    }

    fn reply(&self, request: u64, body: &[u8]) -> io::Result<()> {
        self.send(request, 0, body)
    }

    fn send(&self, request: u64, errno: i32, body: &[u8]) -> io::Result<()> {
        let reply = wire::reply(request, errno, body);
        match (&self.kernel).write_all(&reply) {
            // Whoever asked does not want to know any more.
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(()),
            done => done,
        }
    }
}

/// Whether this process may mount one; else why not.
pub fn missing() -> Option<String> {
    let try_it = || {
        let image = Image::new(4096)?;
        let disk = SlowDisk::over(&image)?;
        let mut bytes = [1; 512];
        File::open(image.path())?.read_exact_at(&mut bytes, 0)?;
        ensure!(bytes == [0; 512], "it holds something else");
        drop(disk);
        anyhow::Ok(())
    };
    try_it().err().map(|error| format!("{error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image on such a disk, opened; `None`: there can be none here.
    fn slowed() -> Option<(Image, SlowDisk, File)> {
        if let Some(why) = missing() {
            eprintln!("SKIP: {why}");
            return None;
        }
        let image = Image::new(1 << 20).unwrap();
        let disk = SlowDisk::over(&image).unwrap();
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).open(image.path()).unwrap();
        Some((image, disk, file))
    }

    #[test]
    fn one_request_is_kept_and_others_are_served() {
        let Some((_image, disk, file)) = slowed() else {
            return;
        };
        let other = file.try_clone().unwrap();
        let read = || {
            let mut bytes = [7; 512];
            file.read_exact_at(&mut bytes, 512).unwrap();
            bytes
        };
        disk.keep(Kind::Write);
        let writer = thread::spawn(move || other.write_all_at(&[1; 512], 512));
        disk.until_kept().unwrap();
        assert_eq!(read(), [0; 512]);
        assert!(!writer.is_finished());
        disk.let_go().unwrap();
        writer.join().unwrap().unwrap();
        assert_eq!(read(), [1; 512]);
    }

    #[test]
    fn an_image_is_an_ordinary_one_afterwards() {
        let Some((image, disk, file)) = slowed() else {
            return;
        };
        disk.keep(Kind::Write);
        let writer = thread::spawn(move || file.write_all_at(&[1; 512], 0));
        disk.until_kept().unwrap();
        drop(disk);
        // What was kept is served.
        writer.join().unwrap().unwrap();
        let bytes = std::fs::read(image.path()).unwrap();
        assert_eq!(bytes.first(), Some(&1));
        let folder = image.directory().to_owned();
        drop(image);
        assert!(!folder.exists());
    }
}
