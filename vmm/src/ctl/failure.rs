//! How `outboard ctl` fails: its exit codes, which scripts may rely on.

/// Why something was not done, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The VM says no.
    Refused(String),
    /// The command line is wrong.
    Usage(String),
    /// There is no VM, or none any more.
    NoVm(String),
    /// It has not come to be in time.
    Late(String),
    /// Nobody reads what is printed.
    NotRead,
}

/// The exit codes as `outboard ctl --help` shows them.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  it is done
  1  the VM refused it; the message says why
  2  the command line is wrong
  3  there is no VM at that socket, or it has ended meanwhile
  4  it has not come to be in time, or the VM does not answer";

impl Failure {
    /// What the user is told, and the exit code.
    pub(super) fn told(self) -> (Option<String>, u8) {
        match self {
            Self::Refused(why) => (Some(why), 1),
            Self::Usage(why) => (Some(why), 2),
            Self::NoVm(why) => (Some(why), 3),
            Self::Late(why) => (Some(why), 4),
            // As every program that writes to a pipe; `events | head` has what it wants.
            Self::NotRead => (None, 0),
        }
    }
}
