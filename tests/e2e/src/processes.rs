//! What /proc says of processes: who is there, and who holds which memory.
//!
//! Each VM is started with a mark in its environment, which every process of
//! it inherits; so a process that got away is found, whoever is its parent.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::unistd::Pid;

/// The environment variable that marks the processes of a VM.
pub const MARK: &str = "OUTBOARD_TEST_MARK";

/// A process that was there when it was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: Pid,
    /// Its arguments, the name first.
    pub args: Vec<String>,
}

impl Process {
    /// Whether it is a machine.
    pub fn is_machine(&self) -> bool {
        self.args.get(1).is_some_and(|word| word == "machine")
    }

    /// Whether it is a back-end.
    pub fn is_backend(&self) -> bool {
        self.args.iter().any(|word| word.starts_with("--fd="))
    }
}

/// All process ids there are.
fn all() -> Result<Vec<Pid>> {
    let entries = fs::read_dir("/proc").context("/proc")?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
        .collect())
}

fn file(pid: Pid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// Words that end with a zero each, as /proc has them.
fn words(pid: Pid, name: &str) -> Vec<String> {
    let bytes = fs::read(file(pid, name)).unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .split_terminator('\0')
        .map(str::to_owned)
        .collect()
}

/// The processes that bear a mark. One that has ended and is not reaped yet
/// (it has no arguments any more) is not among them.
///
/// # Errors
/// /proc cannot be read.
pub fn marked(mark: &str) -> Result<Vec<Process>> {
    let variable = format!("{MARK}={mark}");
    let mut found = Vec::new();
    for pid in all()? {
        if words(pid, "environ").contains(&variable) {
            let args = words(pid, "cmdline");
            if !args.is_empty() {
                found.push(Process { pid, args });
            }
        }
    }
    Ok(found)
}

/// The children of a process, whichever of its threads has them; those of one thread are
/// in the order in which they were started, which process ids are not, since these begin
/// anew at the largest (/proc/sys/kernel/pid_max). As for [`marked`], one that has ended
/// and is not reaped yet is not among them.
pub fn children(parent: Pid) -> Vec<Process> {
    let threads = fs::read_dir(file(parent, "task")).into_iter().flatten();
    let lists = threads
        .flatten()
        .map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    let mut found = Vec::new();
    for list in lists {
        for pid in list.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            let pid = Pid::from_raw(pid);
            let args = words(pid, "cmdline");
            if !args.is_empty() {
                found.push(Process { pid, args });
            }
        }
    }
    found
}

/// Whether this is a memfd, and no page of counters, which a supervisor holds too.
fn is_memory(file: &str) -> bool {
    file.contains("/memfd:") && !file.contains("/memfd:counters")
}

/// The memfds that a process holds or maps, by inode, but for pages of counters.
pub fn memfds(pid: Pid) -> BTreeSet<u64> {
    let mut inodes = BTreeSet::new();
    for entry in fs::read_dir(file(pid, "fd"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if is_memory(&target.to_string_lossy()) {
            inodes.extend(fs::metadata(entry.path()).map(|memfd| memfd.ino()));
        }
    }
    // address perms offset device inode path
    for line in fs::read_to_string(file(pid, "maps"))
        .unwrap_or_default()
        .lines()
    {
        if is_memory(line) {
            inodes.extend(
                line.split_whitespace()
                    .nth(4)
                    .and_then(|inode| inode.parse::<u64>().ok()),
            );
        }
    }
    inodes
}

/// Who holds any of these memfds.
///
/// # Errors
/// /proc cannot be read.
pub fn holders(inodes: &BTreeSet<u64>) -> Result<Vec<Process>> {
    let holds = |pid: &Pid| !memfds(*pid).is_disjoint(inodes);
    let process = |pid| Process {
        pid,
        args: words(pid, "cmdline"),
    };
    Ok(all()?.into_iter().filter(holds).map(process).collect())
}

/// What a process's descriptors are, by number.
pub fn descriptors(pid: Pid) -> Vec<(u32, String)> {
    let mut found: Vec<_> = fs::read_dir(file(pid, "fd"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let target = fs::read_link(entry.path()).ok()?;
            Some((number, target.to_string_lossy().into_owned()))
        })
        .collect();
    found.sort_unstable();
    found
}

/// The page of counters of a back-end that runs by itself
/// (`outboard_protocol::counters`), once it has one: then it is ready to serve.
pub fn counters(pid: Pid) -> Option<fs::File> {
    let mut all = descriptors(pid).into_iter();
    let (number, _) = all.find(|(_, target)| target.contains("/memfd:counters"))?;
    fs::File::open(file(pid, &format!("fd/{number}"))).ok()
}

/// Whether somebody listens on a Unix socket, in this network namespace. That
/// its file is there says less: bind(2) makes it, listen(2) comes later.
pub fn is_listened_on(socket: &Path) -> bool {
    // Num RefCount Protocol Flags Type St Inode Path; flag 0x10000 says that
    // connections are accepted.
    let list = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let path = socket.to_string_lossy();
    list.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        words.get(3) == Some(&"00010000") && words.get(7) == Some(&path.as_ref())
    })
}
