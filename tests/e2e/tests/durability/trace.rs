//! What the kernel did with one file, by its tracepoints: an instance of the
//! tracing file system of this test's own, which sees that file alone.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, statfs};

const TRACING: &str = "/sys/kernel/tracing";
const INSTANCES: &str = "/sys/kernel/tracing/instances";
const PREFIX: &str = "outboard-durability-";
/// Tracepoint, the filter's name for the inode, and that for its device.
const EVENTS: [(&str, &str, &str); 2] = [
    ("ext4/ext4_sync_file_enter", "ino", "dev"),
    ("filemap/mm_filemap_add_to_page_cache", "i_ino", "s_dev"),
];

/// Where images may lie, besides the usual folder for temporary files.
const PLACES: [&str; 2] = ["/var/tmp", "/scratch"];

fn is_ext4(folder: &Path) -> bool {
    statfs(folder).is_ok_and(|stat| stat.filesystem_type() == EXT4_SUPER_MAGIC)
}

/// Has images made where their syncs can be seen, and the tracing file system
/// mounted for this process and its children alone where nobody has mounted it;
/// [`unusable`] says what is missing then. Call it first of all: a thread that
/// is there already keeps what it sees.
pub fn prepare() {
    if !Path::new(INSTANCES).exists() {
        let _ = mount_tracefs();
    }
    if is_ext4(&std::env::temp_dir()) {
        return;
    }
    if let Some(place) = PLACES.iter().find(|place| is_ext4(Path::new(place))) {
        let _ = tempfile::env::override_temp_dir(Path::new(place));
    }
}

fn mount_tracefs() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let (nothing, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
    mount(nothing, "/", nothing, private, nothing)?;
    let tracefs = Some("tracefs");
    mount(tracefs, TRACING, tracefs, MsFlags::empty(), nothing)
}

/// Why nothing can be seen on this machine.
pub fn unusable() -> Option<String> {
    let folder = tempfile::env::temp_dir();
    if !is_ext4(&folder) {
        return Some(format!("{} is not on ext4", folder.display()));
    }
    let tried = Trace::of(&folder);
    tried
        .err()
        .map(|error| format!("no tracepoints: {error:#}"))
}

/// What has happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// How often it was synced: by fdatasync(2) or fsync(2), or for a write
    /// that was to be durable.
    pub syncs: u64,
    /// How often pages of it entered the page cache.
    pub pages: u64,
}

/// Sees what happens to one file. Dropped, it is gone from the kernel.
#[derive(Debug)]
pub struct Trace {
    instance: PathBuf,
}

impl Trace {
    /// Begins to look.
    ///
    /// # Errors
    /// There is no tracing file system, or not for us.
    pub fn of(file: &Path) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        remove_strays();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let instance = Path::new(INSTANCES).join(name);
        fs::create_dir(&instance).with_context(|| format!("making {}", instance.display()))?;
        let this = Self { instance };
        let metadata = fs::metadata(file)?;
        // The kernel's own form of a device number: 12 bits and 20.
        let device = major(metadata.dev()) << 20 | minor(metadata.dev());
        for (event, ino, dev) in EVENTS {
            let filter = format!("{ino} == {} && {dev} == {device}", metadata.ino());
            this.write(&format!("events/{event}/filter"), &filter)?;
            this.write(&format!("events/{event}/enable"), "1")?;
        }
        Ok(this)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.instance.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// What was seen so far.
    ///
    /// # Errors
    /// It cannot be read, or some of it was lost.
    pub fn counts(&self) -> Result<Counts> {
        self.check_nothing_was_lost()?;
        let seen = fs::read_to_string(self.instance.join("trace"))?;
        let count = |event: &str| seen.lines().filter(|line| line.contains(event)).count() as u64;
        Ok(Counts {
            syncs: count(" ext4_sync_file_enter: "),
            pages: count(" mm_filemap_add_to_page_cache: "),
        })
    }

    fn check_nothing_was_lost(&self) -> Result<()> {
        for cpu in fs::read_dir(self.instance.join("per_cpu"))? {
            let stats = fs::read_to_string(cpu?.path().join("stats"))?;
            let mut lost = stats.lines().filter(|line| {
                let lossy = ["overrun: ", "commit overrun: ", "dropped events: "];
                lossy.iter().any(|name| line.starts_with(name)) && !line.ends_with(": 0")
            });
            if let Some(line) = lost.next() {
                bail!("the trace is not complete: {line}");
            }
        }
        Ok(())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        remove(&self.instance);
    }
}

/// An instance goes by rmdir(2), whatever is in it; not while anybody looks
/// into it, for which it is tried a few times.
fn remove(instance: &Path) {
    for (event, ..) in EVENTS {
        let _ = fs::write(instance.join(format!("events/{event}/enable")), "0");
    }
    for _ in 0..100 {
        if fs::remove_dir(instance).is_ok() || !instance.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes what tests have left that were killed.
fn remove_strays() {
    for entry in fs::read_dir(INSTANCES).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let owner = owner.and_then(|owner| owner.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&entry.path());
        }
    }
}
