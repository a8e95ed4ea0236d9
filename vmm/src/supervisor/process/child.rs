//! A child process, from its start to its reaping.
//!
//! ```text
//! start ──▶ alive ──▶ dead (a zombie: its pid is still ours) ──▶ reaped
//! ```
//! Its process group is killed between the last two, while the pid cannot
//! belong to anybody else.

use std::ffi::CString;
use std::fmt;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use outboard_protocol::Deadline;
use outboard_protocol::deadline::limits;

use super::spawn::{NOT_STARTED, Spawn, Spawned};
use crate::supervisor::host::program::Program;

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// It never became its program.
    NotStarted(Errno),
    /// It exited with this status.
    Exited(i32),
    /// A signal ended it.
    Killed(Signal),
    /// It ended in a way that this program has no word for.
    Unknown,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted(errno) => {
                write!(f, "could not be executed: {}", io::Error::from(*errno))
            }
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Killed(signal) => write!(f, "was killed by {signal}"),
            Self::Unknown => write!(f, "ended"),
        }
    }
}

/// Who starts children: the thread that made this, and no other, since a child
/// dies with the thread that forked it. That thread lives as long as the program.
#[derive(Debug)]
pub(crate) struct Parent(PhantomData<*const ()>);

impl Parent {
    /// Of all children of this thread.
    pub(crate) fn of_all() -> Self {
        Self(PhantomData)
    }
}

/// A child process. Dropping it kills and reaps it.
#[derive(Debug)]
pub(crate) struct Child {
    spawned: Spawned,
    reaped: bool,
}

impl Child {
    /// Starts `program` with `args` after its name, `environment` beside the
    /// inherited one, `fds` as its descriptors 3, 4, … and an empty input.
    ///
    /// # Errors
    /// Those of fork(2) and of opening /dev/null. A program that cannot be
    /// executed is a [`Death::NotStarted`].
    pub(crate) fn start(
        _: &Parent,
        program: &Program,
        args: &[String],
        environment: &[(&str, String)],
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<Self> {
        let null = std::fs::File::open("/dev/null")?;
        let mut words = vec![c_string(program.name().as_bytes())?];
        for arg in args {
            words.push(c_string(arg.as_bytes())?);
        }
        let script = program.script().map(c_path).transpose()?;
        let spawned = Spawn {
            program: program.as_fd(),
            script: script.as_deref(),
            args: &words,
            environment: &self::environment(environment)?,
            stdin: null.as_fd(),
            fds,
        }
        .start()?;
        Ok(Self {
            spawned,
            reaped: false,
        })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        self.spawned.pid
    }

    /// Becomes readable when it has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.spawned.pidfd.as_fd()
    }

    /// Whether it is stopped, as by SIGSTOP: it lives and does nothing.
    pub(crate) fn is_stopped(&self) -> bool {
        let look = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let status = waitid(Id::PIDFd(self.pidfd()), look);
        matches!(status, Ok(WaitStatus::Stopped(..)))
    }

    /// Reaps it if it has ended, and kills what is left of its process group.
    pub(crate) fn try_reap(&mut self) -> Option<Death> {
        if self.reaped {
            return None;
        }
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        match waitid(Id::PIDFd(self.pidfd()), look | WaitPidFlag::WNOWAIT) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => return None,
            _ => {}
        }
        // It is a zombie now, so the group is its own.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        let status = waitid(Id::PIDFd(self.pidfd()), look);
        self.reaped = true;
        Some(match status {
            Ok(WaitStatus::Exited(_, NOT_STARTED)) => match self.exec_error() {
                Some(errno) => Death::NotStarted(errno),
                None => Death::Exited(NOT_STARTED),
            },
            Ok(WaitStatus::Exited(_, status)) => Death::Exited(status),
            Ok(WaitStatus::Signaled(_, signal, _)) => Death::Killed(signal),
            _ => Death::Unknown,
        })
    }

    /// Waits for its end; `None` when it still lives at the deadline, or has
    /// been reaped before.
    pub(crate) fn wait(&mut self, deadline: Deadline) -> Option<Death> {
        while !self.reaped {
            let death = self.try_reap();
            if death.is_some() || deadline.passed() {
                return death;
            }
            let _ = deadline.wait_for(self.pidfd(), PollFlags::POLLIN);
        }
        None
    }

    /// Asks it and its process group to end.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Kills it and its process group; does not wait for that.
    pub(crate) fn signal_kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Kills it and its process group, and reaps it. A process that is stuck
    /// in the kernel is left to its parent's parent after a while.
    pub(crate) fn kill(&mut self) -> Option<Death> {
        self.signal_kill();
        self.wait(Deadline::after(limits::KILLED))
    }

    /// Leaves it alone: it has been killed, and hangs in the kernel.
    pub(crate) fn abandon(&mut self) {
        self.reaped = true;
    }

    fn signal(&self, signal: Signal) {
        if !self.reaped {
            // The group exists from the child's first instruction on, and
            // before that there is only the child.
            let _ = killpg(self.pid(), signal);
            let _ = kill(self.pid(), signal);
        }
    }

    /// The error number that the child wrote before it gave up.
    fn exec_error(&mut self) -> Option<Errno> {
        let pipe = self.spawned.exec.try_clone().ok()?;
        let mut bytes = Vec::new();
        std::fs::File::from(pipe).read_to_end(&mut bytes).ok()?;
        let bytes = <[u8; 4]>::try_from(bytes).ok()?;
        Some(Errno::from_raw(i32::from_ne_bytes(bytes)))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
        }
    }
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| {
        let text = String::from_utf8_lossy(bytes);
        io::Error::other(format!("{text:?} contains a zero byte"))
    })
}

fn c_path(path: &Path) -> io::Result<CString> {
    c_string(path.as_os_str().as_bytes())
}

/// Without it, `RUST_BACKTRACE=1` has every error in a child's way look for its own
/// backtrace, which costs 1.5 ms the first time; nobody sees it. A panic has one all
/// the same.
const NO_BACKTRACES: (&str, &str) = ("RUST_LIB_BACKTRACE", "0");

fn environment(added: &[(&str, String)]) -> io::Result<Vec<CString>> {
    let mut strings = Vec::new();
    let (name, value) = NO_BACKTRACES;
    if std::env::var_os(name).is_none() {
        strings.push(c_string(format!("{name}={value}").as_bytes())?);
    }
    for (name, value) in std::env::vars_os() {
        if added.iter().all(|(known, _)| name != *known) {
            let pair = [name.into_vec(), value.into_vec()].join(&b'=');
            strings.push(c_string(&pair)?);
        }
    }
    for (name, value) in added {
        strings.push(c_string(format!("{name}={value}").as_bytes())?);
    }
    Ok(strings)
}

/// Ends what children of children have left behind. Such a process becomes
/// ours when its own parent ends ([`nix::sys::prctl::set_child_subreaper`]).
/// To be called when every [`Child`] has been reaped.
pub(crate) fn end_strays(deadline: Deadline) {
    while let Some(children) = children() {
        for pid in children {
            let _ = kill(pid, Signal::SIGKILL);
            // Whoever is not dead yet is looked at again.
            let _ = nix::sys::wait::waitpid(pid, Some(WaitPidFlag::WNOHANG));
        }
        if deadline.passed() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The children of this thread, which has started them all; `None` if there
/// are none.
fn children() -> Option<Vec<Pid>> {
    let text = std::fs::read_to_string("/proc/thread-self/children").ok()?;
    let pids: Vec<_> = text
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok().map(Pid::from_raw))
        .collect();
    (!pids.is_empty()).then_some(pids)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;

    use nix::poll::{PollFd, poll};
    use nix::unistd::pipe;

    use super::*;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(60))
    }

    fn shell(script: &str, fds: &[BorrowedFd<'_>]) -> Child {
        let program = Program::open(Path::new("/bin/sh")).unwrap();
        let args = ["-c".to_owned(), script.to_owned()];
        let environment = [("OUTBOARD_LAUNCH", "1".to_owned())];
        Child::start(&Parent::of_all(), &program, &args, &environment, fds).unwrap()
    }

    fn death(script: &str) -> Death {
        shell(script, &[]).wait(soon()).unwrap()
    }

    #[test]
    fn a_child_has_the_descriptors_it_was_given_in_order_and_no_other() {
        let (reader, writer) = pipe().unwrap();
        let image = tempfile::NamedTempFile::new().unwrap();
        // An inheritable one, as a careless parent of ours would leave.
        let _careless = nix::unistd::dup(image.as_file()).unwrap();
        let script = "exec ls -l /proc/self/fd >&3";
        let mut child = shell(script, &[writer.as_fd(), image.as_fd()]);
        drop(writer);
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(child.wait(soon()), Some(Death::Exited(0)));
        let lines: Vec<_> = text
            .lines()
            .filter_map(|line| line.rsplit_once(" -> "))
            .map(|(start, target)| (start.rsplit(' ').next().unwrap(), target))
            // What ls(1) opens itself, to look at them.
            .filter(|(_, target)| !target.starts_with("/proc"))
            .collect();
        let numbers: Vec<_> = lines.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, ["0", "1", "2", "3", "4"], "{text}");
        assert_eq!(lines[0].1, "/dev/null");
        assert!(lines[3].1.starts_with("pipe:"));
        assert_eq!(lines[4].1, image.path().to_str().unwrap());
    }

    #[test]
    fn sources_may_be_among_the_places_to_be_filled() {
        // Given in reverse: the first source is likely one of the last places.
        let (first, writer) = pipe().unwrap();
        let (second, _) = pipe().unwrap();
        let fds = [second.as_fd(), first.as_fd(), writer.as_fd()];
        let mut child = shell("echo found >&5", &fds);
        drop(writer);
        let mut text = String::new();
        File::from(first).read_to_string(&mut text).unwrap();
        assert_eq!(
            (text.as_str(), child.wait(soon())),
            ("found\n", Some(Death::Exited(0)))
        );
    }

    #[test]
    fn a_child_leads_a_session_and_has_one_output_and_no_signal_blocked_or_ignored() {
        // Signals 32 and 33 are the C library's own, out of anybody's reach.
        let script = "read pid comm state ppid group session rest < /proc/$$/stat; \
            [ $session = $$ ] && [ $group = $$ ] && \
            [ /proc/$$/fd/1 -ef /proc/$$/fd/2 ] && [ $OUTBOARD_LAUNCH = 1 ] && \
            exec awk '/Sig(Blk|Ign)/ && $2 !~ /^0+[01][08]0000000$/ { bad = 1 } END { exit bad }' \
            /proc/self/status";
        assert_eq!(death(script), Death::Exited(0));
    }

    #[test]
    fn each_way_to_end_is_told_apart() {
        assert_eq!(death("exit 3").to_string(), "exited with status 3");
        assert_eq!(death("exit 127"), Death::Exited(127));
        assert_eq!(death("kill -9 $$").to_string(), "was killed by SIGKILL");
    }

    #[test]
    fn a_program_that_is_none_is_a_death_with_its_reason() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "no program").unwrap();
        let refused = Program::open(file.path()).unwrap_err();
        assert!(format!("{refused:#}").contains("chmod +x"));
        std::fs::set_permissions(file.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let file = file.into_temp_path();
        let program = Program::open(&file).unwrap();
        let mut child = Child::start(&Parent::of_all(), &program, &[], &[], &[]).unwrap();
        let death = child.wait(soon()).unwrap();
        assert!(matches!(death, Death::NotStarted(_)), "{death}");
        assert!(death.to_string().contains("could not be executed"));
    }

    #[test]
    fn a_script_is_started_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backend");
        // Another process writes it: a child that another test starts meanwhile
        // would hold what this one has open for writing (ETXTBSY).
        let write = "printf '#!/bin/sh\\nexit 7\\n' >$0; chmod 700 $0";
        let mut shell = std::process::Command::new("/bin/sh");
        let written = shell.args(["-c", write]).arg(&path).status().unwrap();
        assert!(written.success());
        let program = Program::open(&path).unwrap();
        let mut child = Child::start(&Parent::of_all(), &program, &[], &[], &[]).unwrap();
        assert_eq!(child.wait(soon()), Some(Death::Exited(7)));
    }

    #[test]
    fn a_child_dies_with_its_parent() {
        // The death signal counts the thread that forked as the parent.
        let parent = std::thread::spawn(|| {
            let mut child = shell("exec sleep 1000", &[]);
            // The shell runs: its death signal is set. (A parent process that
            // dies before that is noticed, a thread is not.)
            assert_eq!(child.exec_error(), None);
            let pidfd = child.pidfd().try_clone_to_owned().unwrap();
            std::mem::forget(child);
            pidfd
        });
        let pidfd = parent.join().unwrap();
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, soon().poll_timeout()), Ok(1));
        let status = waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED).unwrap();
        assert!(matches!(
            status,
            WaitStatus::Signaled(_, Signal::SIGKILL, _)
        ));
    }

    #[test]
    fn what_a_child_leaves_in_its_group_dies_with_it_and_a_dropped_child_too() {
        let (reader, writer) = pipe().unwrap();
        let mut child = shell("sleep 1000 & exit 0", &[writer.as_fd()]);
        let dropped = shell("trap '' TERM; sleep 1000", &[writer.as_fd()]);
        drop(writer);
        child.wait(soon()).unwrap();
        drop(dropped);
        // The last of them has gone when nobody can write any more.
        let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLHUP)];
        assert_eq!(poll(&mut fds, soon().poll_timeout()), Ok(1));
    }
}
