//! Starting a process that has exactly the descriptors it is given.
//!
//! The one unsafe file of the supervisor. Between fork and exec a process may
//! do little: no allocation, no lock, no panic. So everything is prepared
//! before the fork, and the child makes system calls and nothing else.
//!
//! What a child gets: standard input as given, our standard error for its
//! output and its errors, descriptors 3, 4, … as given, and no other; a session
//! of its own (so that a terminal's signals do not reach it and it cannot write
//! into the terminal's input); default signal actions and no signal blocked; the
//! soft limit on descriptors that we found ourselves; death by SIGKILL when its
//! parent dies.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::unistd::{Pid, pipe2};
use rustix::process;

use crate::supervisor::host::descriptors;

/// First descriptor after standard input, output and error.
const FIRST_FD: RawFd = 3;
/// Exit status of a child that could not become its program.
pub(crate) const NOT_STARTED: i32 = 127;

/// What a process is to be.
pub(crate) struct Spawn<'a> {
    /// The program, opened (O_PATH is enough).
    pub(crate) program: BorrowedFd<'a>,
    /// Its path, if it must be started by that: an interpreter opens a script
    /// by name, which a descriptor that closes on exec does not give it.
    pub(crate) script: Option<&'a CStr>,
    /// Arguments, the first of which is the name.
    pub(crate) args: &'a [CString],
    /// Environment, `NAME=value`.
    pub(crate) environment: &'a [CString],
    /// Standard input.
    pub(crate) stdin: BorrowedFd<'a>,
    /// Descriptors 3, 4, ….
    pub(crate) fds: &'a [BorrowedFd<'a>],
}

/// A process that has been started, or is about to find that it cannot be.
#[derive(Debug)]
pub(crate) struct Spawned {
    /// Its process id: valid until it has been reaped.
    pub(crate) pid: Pid,
    /// Readable when it has ended.
    pub(crate) pidfd: OwnedFd,
    /// At its end of file the program runs, unless an error number came first.
    pub(crate) exec: OwnedFd,
}

/// The same as C strings want it: pointers, and a null one at the end.
struct Vector(Vec<*const libc::c_char>);

impl Vector {
    fn new(strings: &[CString]) -> Self {
        let pointers = strings.iter().map(|string| string.as_ptr());
        Self(pointers.chain([ptr::null()]).collect())
    }
}

/// What the child needs, ready before the fork.
struct Plan {
    parent: libc::pid_t,
    stdin: RawFd,
    /// Sources of descriptors 3, 4, …, all above the place of the last.
    fds: Vec<RawFd>,
    program: RawFd,
    script: *const libc::c_char,
    errors: RawFd,
    args: Vector,
    environment: Vector,
    /// The limits on descriptors that the program is to find.
    limits: Option<libc::rlimit>,
}

impl Spawn<'_> {
    /// Starts the process. Does not wait for its exec: a failure shows in
    /// [`Spawned::exec`] and as exit status [`NOT_STARTED`].
    ///
    /// # Errors
    /// Those of pipe2(2), fcntl(2), fork(2) and pidfd_open(2).
    pub(crate) fn start(&self) -> io::Result<Spawned> {
        // Every source is moved above the places to be filled, or filling one
        // could overwrite the source of another.
        let above = FIRST_FD + self.fds.len() as RawFd + 2;
        let mut moved = Vec::new();
        for fd in self.fds {
            moved.push(duplicate(*fd, above)?);
        }
        let stdin = duplicate(self.stdin, above)?;
        let program = duplicate(self.program, above)?;
        let (exec, errors) = pipe2(OFlag::O_CLOEXEC)?;
        let errors = duplicate(errors.as_fd(), above)?;
        let plan = Plan {
            parent: Pid::this().as_raw(),
            stdin: stdin.as_raw_fd(),
            fds: moved.iter().map(AsRawFd::as_raw_fd).collect(),
            program: program.as_raw_fd(),
            script: self.script.map_or(ptr::null(), CStr::as_ptr),
            errors: errors.as_raw_fd(),
            args: Vector::new(self.args),
            environment: Vector::new(self.environment),
            limits: descriptors::found().map(|(soft, hard)| libc::rlimit {
                rlim_cur: soft,
                rlim_max: hard,
            }),
        };
        // SAFETY: the child calls `become_program` alone, which makes system
        // calls on prepared data and never returns.
        let pid = unsafe {
            match libc::fork() {
                -1 => return Err(io::Error::last_os_error()),
                0 => become_program(&plan),
                pid => Pid::from_raw(pid),
            }
        };
        let pidfd = pidfd_open(pid)?;
        Ok(Spawned { pid, pidfd, exec })
    }
}

fn duplicate(fd: BorrowedFd<'_>, above: RawFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, above)?)
}

/// Takes the descriptor that this process was started with, if it is open, and
/// marks it close-on-exec. To be called once, before anything else opens
/// descriptors: the number may be of one of those afterwards.
pub fn inherited(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: borrowed for one fcntl only, which fails on a closed descriptor.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    // SAFETY: it is open, came with the process, and is taken once only.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A descriptor for a child that has not been reaped.
fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    let pid = process::Pid::from_raw(pid.as_raw()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(process::pidfd_open(pid, process::PidfdFlags::empty())?)
}

/// In the child: takes on what the plan says and executes the program.
///
/// # Safety
/// To be called in a process that fork(2) has just made, with the descriptors
/// and strings of `plan` valid.
unsafe fn become_program(plan: &Plan) -> ! {
    // SAFETY: system calls on data that was prepared before the fork.
    unsafe {
        // The death signal counts from here on; a parent that died before is
        // noticed by its missing.
        let ready = libc::setsid() >= 0
            && libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0
            && libc::getppid() == plan.parent
            && take_descriptors(plan);
        if ready {
            default_signals();
            // Last: descriptors may have numbers above the limit.
            if let Some(limits) = &plan.limits {
                libc::setrlimit(libc::RLIMIT_NOFILE, limits);
            }
            execute(plan);
        }
        let errno = *libc::__errno_location();
        libc::write(plan.errors, (&raw const errno).cast(), size_of_val(&errno));
        libc::_exit(NOT_STARTED)
    }
}

/// Puts every descriptor in its place; the program and the error pipe follow
/// the last and close on exec, and so ends what stays open.
///
/// # Safety
/// As [`become_program`].
unsafe fn take_descriptors(plan: &Plan) -> bool {
    // SAFETY: system calls on integers.
    unsafe {
        // Standard output may be the guest's console: no child's words go there.
        if libc::dup2(plan.stdin, 0) < 0 || libc::dup2(2, 1) < 0 {
            return false;
        }
        let mut place = FIRST_FD;
        for fd in &plan.fds {
            // The sources lie above every place, so dup2 always makes a copy,
            // and a copy does not close on exec.
            if libc::dup2(*fd, place) < 0 {
                return false;
            }
            place += 1;
        }
        libc::syscall(
            libc::SYS_close_range,
            place,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        ) == 0
    }
}

/// Makes of the signal actions that this process was started with those that
/// it counts on. To be called once, before there are threads.
///
/// A parent that ignores SIGCHLD hands that down, and then a child is gone
/// without a word of how it ended. SIGXFSZ is ignored, so that a console or a
/// log at its greatest size (RLIMIT_FSIZE) makes writes fail and ends nobody.
pub fn own_signals() {
    // SAFETY: neither action runs code of ours.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// # Safety
/// As [`become_program`].
unsafe fn default_signals() {
    // SAFETY: an empty set on the stack; default actions run no code of ours.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

/// Returns only when the program cannot be executed.
///
/// # Safety
/// As [`become_program`].
unsafe fn execute(plan: &Plan) {
    let (args, environment) = (plan.args.0.as_ptr(), plan.environment.0.as_ptr());
    // SAFETY: both vectors end with a null pointer and live in `plan`.
    unsafe {
        if plan.script.is_null() {
            libc::syscall(
                libc::SYS_execveat,
                plan.program,
                c"".as_ptr(),
                args,
                environment,
                libc::AT_EMPTY_PATH,
            );
        } else {
            libc::execve(plan.script, args, environment);
        }
    }
}
